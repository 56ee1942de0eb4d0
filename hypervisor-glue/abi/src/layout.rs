//! Structures shared with Xen, byte for byte as the public headers of Xen 4.17 define them
//! (xen.h, grant_table.h, event_channel.h, sched.h, memory.h, arch-x86/xen.h, domctl.h).
#![allow(missing_docs, reason = "fields bear the names of the public headers")]

/// `start_info`: what a PV domain is told at its start (xen.h).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct StartInfo {
    pub magic: [u8; 32],
    pub nr_pages: u64,
    pub shared_info: u64,
    pub flags: u32,
    pub store_mfn: u64,
    pub store_evtchn: u32,
    pub console_mfn: u64,
    pub console_evtchn: u32,
    pub pt_base: u64,
    pub nr_pt_frames: u64,
    pub mfn_list: u64,
    pub mod_start: u64,
    pub mod_len: u64,
    pub cmd_line: [u8; 1024],
    pub first_p2m_pfn: u64,
    pub nr_p2m_frames: u64,
}

/// `SIF_INITDOMAIN`: this is the initial domain.
pub const SIF_INITDOMAIN: u32 = 1 << 1;

/// `gnttab_map_grant_ref`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MapGrant {
    pub host_addr: u64,
    pub flags: u32,
    pub reference: u32,
    pub dom: u16,
    pub status: i16,
    pub handle: u32,
    pub dev_bus_addr: u64,
}

/// `gnttab_unmap_grant_ref`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct UnmapGrant {
    pub host_addr: u64,
    pub dev_bus_addr: u64,
    pub handle: u32,
    pub status: i16,
}

/// `gnttab_setup_table`.
#[repr(C)]
pub struct SetupTable {
    pub dom: u16,
    pub nr_frames: u32,
    pub status: i16,
    pub frame_list: u64,
}

/// `GNTMAP_host_map`.
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
/// `GNTMAP_readonly`.
pub const GNTMAP_READONLY: u32 = 1 << 2;
/// `GTF_permit_access`.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// `GTF_readonly`.
pub const GTF_READONLY: u16 = 1 << 2;
/// `GTF_reading | GTF_writing`: Xen says that somebody has it mapped.
pub const GTF_IN_USE: u16 = 3 << 3;

/// `mmu_update`: one page-table entry.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct MmuUpdate {
    pub ptr: u64,
    pub val: u64,
}

/// `mmuext_op`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct MmuextOp {
    pub cmd: u32,
    pub arg1: u64,
    pub arg2: u64,
}

/// `trap_info`: one exception handler of a PV kernel.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TrapInfo {
    pub vector: u8,
    pub flags: u8,
    pub cs: u16,
    pub address: u64,
}

/// `FLAT_KERNEL_CS`: the code segment that Xen provides to a 64-bit PV kernel.
pub const FLAT_KERNEL_CS: u16 = 0xe033;
/// `FLAT_KERNEL_SS`.
pub const FLAT_KERNEL_SS: u16 = 0xe02b;

/// `FLAT_USER_CS`: of the kernel's, Xen clears the privilege level where it shows it.
pub const FLAT_USER_CS: u16 = 0xe033;
/// `FLAT_USER_SS`.
pub const FLAT_USER_SS: u16 = 0xe02b;

/// `callback_register` (callback.h).
#[repr(C)]
pub struct CallbackRegister {
    pub kind: u16,
    pub flags: u16,
    pub address: u64,
}

/// `vcpu_time_info`: how to compute the system time from the time-stamp counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TimeInfo {
    pub version: u32,
    pub pad0: u32,
    pub tsc_timestamp: u64,
    pub system_time: u64,
    pub tsc_to_system_mul: u32,
    pub tsc_shift: i8,
    pub flags: u8,
    pub pad1: [u8; 2],
}

/// Byte offsets in `shared_info`.
pub mod shared_info {
    /// `vcpu_info[0].evtchn_upcall_pending`.
    pub const UPCALL_PENDING: usize = 0;
    /// `vcpu_info[0].evtchn_upcall_mask`.
    pub const UPCALL_MASK: usize = 1;
    /// `vcpu_info[0].evtchn_pending_sel`.
    pub const PENDING_SELECTOR: usize = 8;
    /// `vcpu_info[0].arch.cr2`.
    pub const CR2: usize = 16;
    /// `vcpu_info[0].time`.
    pub const TIME: usize = 32;
    /// `evtchn_pending`.
    pub const PENDING: usize = 2048;
    /// `evtchn_mask`.
    pub const MASK: usize = 2560;
}

/// `xen_memory_reservation`.
#[repr(C)]
pub struct MemoryReservation {
    pub extent_start: u64,
    pub nr_extents: u64,
    pub extent_order: u32,
    pub mem_flags: u32,
    pub domid: u16,
}

/// `xen_add_to_physmap`.
#[repr(C)]
pub struct AddToPhysmap {
    pub domid: u16,
    pub size: u16,
    pub space: u32,
    pub index: u64,
    pub gpfn: u64,
}

/// `sched_poll`.
#[repr(C)]
pub struct SchedPoll {
    pub ports: u64,
    pub nr_ports: u32,
    pub timeout: u64,
}

/// `xen_mem_acquire_resource`.
#[repr(C)]
pub struct AcquireResource {
    pub domid: u16,
    pub kind: u16,
    pub id: u32,
    pub nr_frames: u32,
    pub pad: u32,
    pub frame: u64,
    pub frame_list: u64,
}

/// `evtchn_alloc_unbound`.
#[repr(C)]
pub struct AllocUnbound {
    pub dom: u16,
    pub remote_dom: u16,
    pub port: u32,
}

/// `evtchn_bind_interdomain`.
#[repr(C)]
pub struct BindInterdomain {
    pub remote_dom: u16,
    pub remote_port: u32,
    pub local_port: u32,
}

/// `evtchn_bind_virq`.
#[repr(C)]
pub struct BindVirq {
    pub virq: u32,
    pub vcpu: u32,
    pub port: u32,
}

/// `evtchn_status`; `u` is its union, two words.
#[repr(C)]
pub struct EvtchnStatus {
    pub dom: u16,
    pub port: u32,
    pub status: u32,
    pub vcpu: u32,
    pub u: [u32; 2],
}

/// `sched_remote_shutdown`.
#[repr(C)]
pub struct SchedRemoteShutdown {
    pub domid: u16,
    pub reason: u32,
}

/// `sched_watchdog`.
#[repr(C)]
pub struct SchedWatchdog {
    pub id: u32,
    pub timeout: u32,
}

/// `vcpu_runstate_info`.
#[repr(C)]
#[derive(Default)]
pub struct RunstateInfo {
    pub state: u32,
    pub pad: u32,
    pub state_entry_ns: u64,
    /// In each state since the start: running, runnable, blocked, offline.
    pub time_ns: [u64; 4],
}

/// `xen_hvm_param`.
#[repr(C)]
pub struct HvmParamArgument {
    pub domid: u16,
    pub pad: u16,
    pub index: u32,
    pub value: u64,
}

/// `gnttab_copy_ptr`; `place` is its union: a reference, or a machine frame.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CopyEnd {
    pub place: u64,
    pub domid: u16,
    pub offset: u16,
}

/// `gnttab_copy`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CopyGrant {
    pub source: CopyEnd,
    pub dest: CopyEnd,
    pub len: u16,
    pub flags: u16,
    pub status: i16,
}

/// `evtchn_bind_pirq`.
#[repr(C)]
pub struct BindPirq {
    pub pirq: u32,
    pub flags: u32,
    pub port: u32,
}

/// `physdev_setup_gsi`.
#[repr(C)]
pub struct SetupGsi {
    pub gsi: i32,
    pub triggering: u8,
    pub polarity: u8,
}

/// `physdev_map_pirq`.
#[repr(C)]
pub struct MapPirq {
    pub domid: u16,
    pub kind: i32,
    pub index: i32,
    pub pirq: i32,
    pub bus: i32,
    pub devfn: i32,
    pub entry_nr: i32,
    pub table_base: u64,
}

/// `xen_sysctl`: its union as words of 32 bits.
#[repr(C, align(8))]
pub struct SysctlArgument {
    pub cmd: u32,
    pub interface_version: u32,
    pub u: [u32; 32],
}

/// `XEN_SYSCTL_INTERFACE_VERSION` of Xen 4.17.
pub const SYSCTL_VERSION: u32 = 0x15;

/// `XEN_DOMCTL_INTERFACE_VERSION` of Xen 4.17.
pub const DOMCTL_VERSION: u32 = 0x15;

/// `xen_domctl`: its union as bytes, filled by offset.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct DomctlArgument {
    pub cmd: u32,
    pub interface_version: u32,
    pub domain: u16,
    pub pad: [u16; 3],
    pub u: [u8; 128],
}

const _: () = {
    assert!(core::mem::offset_of!(StartInfo, mfn_list) == 104);
    assert!(core::mem::offset_of!(StartInfo, cmd_line) == 128);
    assert!(size_of::<MapGrant>() == 32);
    assert!(size_of::<UnmapGrant>() == 24);
    assert!(size_of::<TimeInfo>() == 32);
    assert!(size_of::<RunstateInfo>() == 48);
    assert!(size_of::<TrapInfo>() == 16);
    assert!(size_of::<MmuextOp>() == 24);
    assert!(size_of::<CallbackRegister>() == 16);
    assert!(size_of::<DomctlArgument>() == 144);
    assert!(size_of::<EvtchnStatus>() == 24);
    assert!(size_of::<AddToPhysmap>() == 24);
    assert!(size_of::<SchedPoll>() == 24);
    assert!(size_of::<CopyGrant>() == 40);
    assert!(size_of::<MapPirq>() == 40);
    assert!(size_of::<SysctlArgument>() == 136);
};
