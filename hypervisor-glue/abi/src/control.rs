//! What only the initial domain may ask of Xen: the orchestrator's half of the interface.

use crate::{
    Access, DomId, Frame, GrantRef, PciAddress, Port, ShutdownReason, Width, Xen, XenError,
};

/// Limits and kind of a new domain (`xen_domctl_createdomain`, domctl.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateDomain {
    /// Hardware-assisted PVH when true, PV when false.
    pub pvh: bool,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory limit in KiB (`XEN_DOMCTL_max_mem`).
    pub max_memory_kib: u64,
    /// Highest event channel port.
    pub max_port: u32,
    /// Grant table frames.
    pub grant_frames: u32,
    /// Map-track frames: how many foreign grants it may map (each frame tracks 256).
    pub maptrack_frames: u32,
}

/// Where a domain is in its life (`XEN_DOMINF_*`, domctl.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// It may run.
    Alive,
    /// It shut down, or crashed, with this reason; its memory is still there.
    Shutdown(ShutdownReason),
    /// It is being destroyed, or is a zombie held by somebody's mapping.
    Dying,
}

/// How Xen has scheduled the caller's own vCPU (`vcpu_runstate_info`, vcpu.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// System time at which it got the CPU that it runs on.
    pub running_since_ns: u64,
    /// Time that it has spent with one since its start.
    pub cpu_time_ns: u64,
    /// Time that it has spent without one since its start, asleep or kept waiting.
    pub without_cpu_ns: u64,
}

/// What Xen knows of a domain (`xen_domctl_getdomaininfo`, domctl.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// The domain.
    pub id: DomId,
    /// Its state.
    pub state: DomainState,
    /// Paused by a toolstack.
    pub paused: bool,
    /// All its vCPUs wait for an event.
    pub blocked: bool,
    /// One of its vCPUs has a physical CPU now.
    pub running: bool,
    /// CPU time its vCPUs have received, in nanoseconds.
    pub cpu_time_ns: u64,
    /// Pages it has.
    pub pages: u64,
    /// Machine frame of its shared information page.
    pub shared_info: Frame,
}

/// The general registers of a vCPU: evidence for an epitaph, and where to run next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the register it is named after")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl Registers {
    /// What a service that fails before it knows where to leave its last words has in `r12`:
    /// "PpVMMtxt".
    pub const LAST_WORDS: u64 = u64::from_le_bytes(*b"PpVMMtxt");

    /// Where a crashed service left the text of its failure in its own memory: address (equal to
    /// the pseudo-physical address) and length. The service wrote these registers: check both.
    pub fn last_words(&self) -> Option<(u64, usize)> {
        let len = usize::try_from(self.r14).ok()?;
        (self.r12 == Self::LAST_WORDS).then_some((self.r13, len))
    }
}

/// How a PV vCPU starts (`vcpu_guest_context`, arch-x86/xen.h). Everything else of its context
/// is as Xen's own builder leaves it: flat kernel segments, events masked, no GDT, no trap table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvEntry {
    /// First instruction.
    pub rip: u64,
    /// Stack pointer, also registered as the kernel stack.
    pub rsp: u64,
    /// Address of `start_info`, passed in rsi.
    pub start_info: u64,
    /// Passed in rdx: 0 for a first start, else the rung of the recovery ladder.
    pub rung: u64,
    /// Top page table, pinned.
    pub page_table: Frame,
}

/// How a PVH vCPU starts: 32-bit protected mode without paging (pvh.pandoc).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvmEntry {
    /// Physical address of the first instruction.
    pub rip: u32,
    /// Physical address of `hvm_start_info`, passed in ebx.
    pub start_info: u32,
}

/// A parameter of a PVH domain (`HVM_PARAM_*`, hvm/params.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HvmParam {
    /// Guest frame of the XenStore ring.
    StorePfn = 1,
    /// Guest's event channel for XenStore.
    StoreEvtchn = 2,
    /// Guest frame of the console ring.
    ConsolePfn = 17,
    /// Guest's event channel for its console.
    ConsoleEvtchn = 18,
    /// `SHUTDOWN_*` code that a triple fault stands for.
    TripleFaultReason = 31,
}

/// The hypervisor as the initial domain sees it.
///
/// Calls named in the documentation as *long* may take milliseconds. They run with event upcalls
/// enabled and call `during` whenever an event arrives in the middle; nothing else of PpVMM ever
/// runs asynchronously. `during` must not start a second long call.
pub trait Control: Xen {
    /// Creates the domain with exactly this id, its vCPUs, its memory limit, and a TSC that is
    /// never emulated; for PVH also the paging pool and a triple fault reported as a crash.
    ///
    /// # Errors
    /// [`XenError::Exists`] when the id is taken, by a zombie too.
    fn create_domain(&self, id: DomId, what: &CreateDomain) -> Result<(), XenError>;

    /// Destroys the domain. Long.
    fn destroy_domain(&self, id: DomId, during: &mut dyn FnMut()) -> Result<(), XenError>;

    /// What Xen knows of the domain, `None` when there is no such domain.
    fn domain_info(&self, id: DomId) -> Result<Option<DomainInfo>, XenError>;

    /// Stops the domain's vCPUs. Pauses nest: each needs its [`Control::unpause`].
    fn pause(&self, id: DomId) -> Result<(), XenError>;

    /// Takes one pause back.
    fn unpause(&self, id: DomId) -> Result<(), XenError>;

    /// Takes back a shutdown or crash (`XEN_DOMCTL_resumedomain`): reset the vCPU first, or it
    /// goes on where it fell.
    fn resume(&self, id: DomId) -> Result<(), XenError>;

    /// Ends the domain as if it had shut itself down, whether it runs, sleeps or is paused
    /// (`SCHEDOP_remote_shutdown`).
    fn shut_down(&self, id: DomId, reason: ShutdownReason) -> Result<(), XenError>;

    /// Gives the domain memory: `frames.len()` extents of `1 << order` pages. On entry `frames`
    /// holds the first guest frame of each; for PV domains it holds the machine frames on return.
    /// Long.
    fn populate(
        &self,
        id: DomId,
        order: u32,
        frames: &mut [Frame],
        during: &mut dyn FnMut(),
    ) -> Result<(), XenError>;

    /// Maps pages of another domain, contiguous, in the given order: machine frames of a PV
    /// domain, guest frames of a PVH one.
    fn map_foreign(
        &self,
        id: DomId,
        frames: &[Frame],
        access: Access,
    ) -> Result<Self::Mapping, XenError>;

    /// Maps the first frame of a domain's grant table (`XENMEM_acquire_resource`). Unmap it soon:
    /// it keeps a dead domain as a zombie.
    fn map_grant_table(&self, id: DomId) -> Result<Self::Mapping, XenError>;

    /// Pins a PV domain's top page table; its pages must not be mapped writable here. Long.
    fn pin_top_table(
        &self,
        id: DomId,
        table: Frame,
        during: &mut dyn FnMut(),
    ) -> Result<(), XenError>;

    /// Clears the vCPU: no longer blocked, no context (`setvcpucontext` without one).
    fn reset_vcpu(&self, id: DomId) -> Result<(), XenError>;

    /// Sets a PV vCPU to its entry.
    fn enter_pv(&self, id: DomId, entry: &PvEntry) -> Result<(), XenError>;

    /// Sets a PVH vCPU to its entry.
    fn enter_hvm(&self, id: DomId, entry: &HvmEntry) -> Result<(), XenError>;

    /// The registers of a paused or shut-down domain's first vCPU.
    fn registers(&self, id: DomId) -> Result<Registers, XenError>;

    /// Replaces the registers of a paused PV domain's first vCPU and leaves the rest of its
    /// context as it is.
    fn set_registers(&self, id: DomId, registers: &Registers) -> Result<(), XenError>;

    /// Sets a parameter of a PVH domain.
    fn set_hvm_param(&self, id: DomId, param: HvmParam, value: u64) -> Result<(), XenError>;

    /// Allocates a port in `owner` that `remote` may bind.
    fn alloc_port_for(&self, owner: DomId, remote: DomId) -> Result<Port, XenError>;

    /// Grants page `page` of the fabric to `to` under `reference`. Writing the same entry again
    /// changes nothing.
    fn grant_fabric(&self, reference: GrantRef, to: DomId, page: u32, access: Access);

    /// Reads four bytes of a function's configuration space; all ones where there is no function.
    /// `offset` is a multiple of 4.
    fn pci_read(&self, at: PciAddress, offset: u8) -> u32;

    /// Writes four bytes of a function's configuration space.
    fn pci_write(&self, at: PciAddress, offset: u8, value: u32);

    /// Writes a device register at a machine address: for resets, whoever uses the device else.
    ///
    /// # Errors
    /// What Xen says, when there is no device memory.
    fn write_register(&self, address: u64, width: Width, value: u32) -> Result<(), XenError>;

    /// Lets a domain map device memory: `count` frames from `first` on.
    fn allow_device_memory(&self, id: DomId, first: Frame, count: u64) -> Result<(), XenError>;

    /// Lets a domain bind the level-triggered interrupt of a device, under the number of its line
    /// at the interrupt controller.
    fn give_interrupt(&self, id: DomId, line: u32) -> Result<(), XenError>;

    /// Whether Xen uses an IOMMU. Without one, a device reaches all memory of the machine.
    fn has_iommu(&self) -> Result<bool, XenError>;

    /// Prints on Xen's console.
    fn console_write(&self, text: &[u8]);

    /// Reads what was typed on Xen's console; returns the number of bytes.
    fn console_read(&self, into: &mut [u8]) -> usize;

    /// Arms (seconds) or stops (`None`) the watchdog that restarts the machine when the
    /// orchestrator no longer re-arms it (`SCHEDOP_watchdog`).
    fn set_watchdog(&self, seconds: Option<u32>) -> Result<(), XenError>;

    /// Sets a domain's share of CPU time against others' (`XEN_DOMCTL_SCHEDOP_putinfo` of the
    /// scheduler credit2, which takes 1 to 65,535; every domain begins with 256). Who has used
    /// less of its share runs first when it wakes.
    fn set_cpu_weight(&self, id: DomId, weight: u16) -> Result<(), XenError>;

    /// Sets how long a domain runs before one that wakes may take the CPU from it, in microseconds:
    /// 0, or from 100 on (`XEN_SYSCTL_SCHEDOP_putinfo` of the scheduler credit2; Xen begins with
    /// 1,000). One that ends or goes to sleep is followed at once.
    fn set_rate_limit(&self, limit_us: u32) -> Result<(), XenError>;

    /// How Xen has scheduled the caller (`VCPUOP_get_runstate_info`).
    fn schedule(&self) -> Schedule;
}
