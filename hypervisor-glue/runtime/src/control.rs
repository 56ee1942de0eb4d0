//! The trait [`Control`] on real Xen: the orchestrator's privileged half.

use core::cell::{Cell, UnsafeCell};

use abi::hypercall::{Call, hypercall, outcome};
use abi::layout::{
    AcquireResource, HvmParamArgument, MemoryReservation, MmuextOp, RunstateInfo,
    SchedRemoteShutdown, SchedWatchdog,
};
use abi::{
    Access, Control, CreateDomain, DomId, DomainInfo, DomainState, Frame, GrantRef, HvmEntry,
    HvmParam, PAGE_SIZE, PciAddress, Port, PvEntry, Registers, Schedule, ShutdownReason, Width,
    XenError,
};
use fabric::SharedMemory;

use crate::cell::OneCpu;
use crate::domctl::{Domctl, Operation};
use crate::mapping::Mapping;
use crate::vcpu::{PvContext, hvm_context};
use crate::window::Source;
use crate::{Hypervisor, vcpu};
use crate::{console, device, fabric_pages, grants, hypervisor, io, paging, upcall};

/// A PV context is too large for the stack of a trap handler's callers: there is one.
static CONTEXT: OneCpu<UnsafeCell<PvContext>> = OneCpu::new(UnsafeCell::new(PvContext::new()));
/// The id of our watchdog timer, 0 before it is first armed.
static WATCHDOG: OneCpu<Cell<u32>> = OneCpu::new(Cell::new(0));

/// Memory for a PVH domain's second-level page tables: enough for a guest of 1 GiB.
const PAGING_POOL_BYTES: u64 = 1 << 20;

/// A call without addresses.
fn simple(mut call: Domctl) -> Result<Domctl, XenError> {
    // SAFETY: The callers below pass numbers only, about another domain.
    unsafe { call.call() }?;
    Ok(call)
}

fn domctl(operation: Operation, id: DomId) -> Result<(), XenError> {
    simple(Domctl::new(operation, id)).map(|_| ())
}

/// Everything of [`Control::create_domain`] after the domain exists.
fn equip(id: DomId, what: &CreateDomain) -> Result<(), XenError> {
    /// `XEN_CPUID_TSC_MODE`: 2 never emulates; an emulated read costs up to 39 µs.
    const NEVER_EMULATE: u32 = 2;
    simple(Domctl::new(Operation::MaxVcpus, id).u32(0, what.vcpus))?;
    simple(Domctl::new(Operation::SetTsc, id).u32(0, NEVER_EMULATE))?;
    if what.pvh {
        simple(Domctl::new(Operation::SetPagingPool, id).u64(0, PAGING_POOL_BYTES))?;
        let crash = u64::from(ShutdownReason::Crash.code());
        set_hvm_param(id, HvmParam::TripleFaultReason, crash)?;
    }
    simple(Domctl::new(Operation::MaxMemory, id).u64(0, what.max_memory_kib))?;
    Ok(())
}

fn create(id: DomId, what: &CreateDomain) -> Result<(), XenError> {
    /// `XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap`.
    const HARDWARE_ASSISTED: u32 = 3;
    /// `XEN_X86_EMU_LAPIC`: what a PVH domain must have, and all it gets.
    const LOCAL_APIC: u32 = 1;
    let created = simple(
        Domctl::new(Operation::Create, id)
            .u32(20, if what.pvh { HARDWARE_ASSISTED } else { 0 })
            .u32(28, what.vcpus)
            .u32(32, what.max_port)
            .u32(36, what.grant_frames)
            .u32(40, what.maptrack_frames)
            // Grant tables of version 1.
            .u32(44, 1)
            .u32(56, if what.pvh { LOCAL_APIC } else { 0 }),
    )?;
    let made = created.domain();
    if made != id {
        // Xen chooses another id only for the id 0: never act on that domain.
        destroy(made, &mut || ())?;
        return Err(XenError::Invalid);
    }
    equip(id, what).inspect_err(|_| {
        // The first error is the one to report.
        let _ = destroy(id, &mut || ());
    })
}

fn destroy(id: DomId, during: &mut dyn FnMut()) -> Result<(), XenError> {
    // SAFETY: No addresses; another domain's memory.
    unsafe { Domctl::new(Operation::Destroy, id).call_long(during) }
}

fn set_hvm_param(id: DomId, param: HvmParam, value: u64) -> Result<(), XenError> {
    /// `HVMOP_set_param`.
    const SET_PARAM: u64 = 0;
    let argument = HvmParamArgument { domid: id.0, pad: 0, index: param as u32, value };
    let arguments = [SET_PARAM, &raw const argument as u64, 0, 0, 0];
    // SAFETY: Xen reads the argument.
    outcome(unsafe { hypercall(Call::HvmOp, arguments) }).map(|_| ())
}

/// Runs `use_context` with the one PV context.
fn with_context<R>(use_context: impl FnOnce(&mut PvContext) -> R) -> R {
    // SAFETY: One vCPU; the closures below neither nest nor run where upcalls come.
    use_context(unsafe { &mut *CONTEXT.get() })
}

fn context_call(operation: Operation, id: DomId, context: u64) -> Result<(), XenError> {
    let mut call = Domctl::new(operation, id).u32(0, 0).u64(8, context);
    // SAFETY: The address is 0, or that of the one context, as large as Xen reads or writes it.
    unsafe { call.call() }
}

impl Control for Hypervisor {
    fn create_domain(&self, id: DomId, what: &CreateDomain) -> Result<(), XenError> {
        if id == DomId::ORCHESTRATOR || id >= DomId::FIRST_RESERVED {
            return Err(XenError::Invalid);
        }
        create(id, what)
    }

    fn destroy_domain(&self, id: DomId, during: &mut dyn FnMut()) -> Result<(), XenError> {
        destroy(id, during)
    }

    fn domain_info(&self, id: DomId) -> Result<Option<DomainInfo>, XenError> {
        const DYING: u32 = 1;
        const SHUTDOWN: u32 = 1 << 2;
        const PAUSED: u32 = 1 << 3;
        const BLOCKED: u32 = 1 << 4;
        const RUNNING: u32 = 1 << 5;
        let info = match simple(Domctl::new(Operation::GetInfo, id)) {
            Ok(info) => info,
            Err(XenError::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Xen answers about the next domain when this one is gone.
        if info.domain() != id {
            return Ok(None);
        }
        let flags = info.get_u32(4);
        let state = if flags & DYING != 0 {
            DomainState::Dying
        } else if flags & SHUTDOWN != 0 {
            DomainState::Shutdown(ShutdownReason::from_code((flags >> 16) as u8))
        } else {
            DomainState::Alive
        };
        Ok(Some(DomainInfo {
            id,
            state,
            paused: flags & PAUSED != 0,
            blocked: flags & BLOCKED != 0,
            running: flags & RUNNING != 0,
            cpu_time_ns: info.get_u64(56),
            pages: info.get_u64(8),
            shared_info: Frame(info.get_u64(48)),
        }))
    }

    fn pause(&self, id: DomId) -> Result<(), XenError> {
        domctl(Operation::Pause, id)
    }

    fn unpause(&self, id: DomId) -> Result<(), XenError> {
        domctl(Operation::Unpause, id)
    }

    fn resume(&self, id: DomId) -> Result<(), XenError> {
        domctl(Operation::Resume, id)
    }

    fn shut_down(&self, id: DomId, reason: ShutdownReason) -> Result<(), XenError> {
        /// `SCHEDOP_remote_shutdown`.
        const REMOTE_SHUTDOWN: u64 = 4;
        let mut end = SchedRemoteShutdown { domid: id.0, reason: u32::from(reason.code()) };
        // SAFETY: The operation's structure.
        unsafe { hypervisor::sched_op(REMOTE_SHUTDOWN, &mut end) }.map(|_| ())
    }

    fn populate(
        &self,
        id: DomId,
        order: u32,
        frames: &mut [Frame],
        during: &mut dyn FnMut(),
    ) -> Result<(), XenError> {
        /// `XENMEM_populate_physmap`.
        const POPULATE: u64 = 6;
        let reservation = MemoryReservation {
            extent_start: frames.as_mut_ptr() as u64,
            nr_extents: frames.len() as u64,
            extent_order: order,
            mem_flags: 0,
            domid: id.0,
        };
        let arguments = [POPULATE, &raw const reservation as u64, 0, 0, 0];
        // SAFETY: Xen reads the reservation and writes one word per extent, of which `frames` has
        // as many; `during` cannot reach either.
        let done = outcome(unsafe { upcall::long(Call::MemoryOp, arguments, during) })?;
        if done == frames.len() as u64 { Ok(()) } else { Err(XenError::NoMemory) }
    }

    fn map_foreign(
        &self,
        id: DomId,
        frames: &[Frame],
        access: Access,
    ) -> Result<Mapping, XenError> {
        let flags = paging::flags(access == Access::ReadWrite);
        let source = Source { owner: id, flags, command: 0 };
        Mapping::make(frames.iter().map(|frame| frame.0), source)
    }

    fn map_grant_table(&self, id: DomId) -> Result<Mapping, XenError> {
        /// `XENMEM_acquire_resource`.
        const ACQUIRE: u64 = 28;
        /// `XENMEM_resource_grant_table`.
        const GRANT_TABLE: u16 = 1;
        let mut frame = 0u64;
        let mut resource = AcquireResource {
            domid: id.0,
            kind: GRANT_TABLE,
            id: 0,
            nr_frames: 1,
            pad: 0,
            frame: 0,
            frame_list: &raw mut frame as u64,
        };
        let arguments = [ACQUIRE, &raw mut resource as u64, 0, 0, 0];
        // SAFETY: Xen reads and writes the argument, and writes one frame number.
        outcome(unsafe { hypercall(Call::MemoryOp, arguments) })?;
        let (flags, command) = (paging::flags(true), paging::NO_TRANSLATE);
        Mapping::make([frame].into_iter(), Source { owner: id, flags, command })
    }

    fn pin_top_table(
        &self,
        id: DomId,
        table: Frame,
        during: &mut dyn FnMut(),
    ) -> Result<(), XenError> {
        /// `MMUEXT_PIN_L4_TABLE`.
        const PIN_L4: u32 = 3;
        let op = MmuextOp { cmd: PIN_L4, arg1: table.0, arg2: 0 };
        let arguments = [&raw const op as u64, 1, 0, u64::from(id.0), 0];
        // SAFETY: Xen reads one operation, about another domain's page; `during` cannot reach it.
        outcome(unsafe { upcall::long(Call::MmuextOp, arguments, during) }).map(|_| ())
    }

    fn reset_vcpu(&self, id: DomId) -> Result<(), XenError> {
        context_call(Operation::SetVcpuContext, id, 0)
    }

    fn enter_pv(&self, id: DomId, entry: &PvEntry) -> Result<(), XenError> {
        with_context(|context| {
            context.enter(entry);
            context_call(Operation::SetVcpuContext, id, context.address())
        })
    }

    fn enter_hvm(&self, id: DomId, entry: &HvmEntry) -> Result<(), XenError> {
        let mut records: [u8; vcpu::HVM_BYTES] = hvm_context(entry);
        let mut call = Domctl::new(Operation::SetHvmContext, id)
            .u32(0, records.len() as u32)
            .u64(8, records.as_mut_ptr() as u64);
        // SAFETY: Xen reads the records.
        unsafe { call.call() }
    }

    fn registers(&self, id: DomId) -> Result<Registers, XenError> {
        with_context(|context| {
            context_call(Operation::GetVcpuContext, id, context.address())?;
            Ok(context.registers())
        })
    }

    fn set_registers(&self, id: DomId, registers: &Registers) -> Result<(), XenError> {
        with_context(|context| {
            context_call(Operation::GetVcpuContext, id, context.address())?;
            context.set_registers(registers);
            context_call(Operation::SetVcpuContext, id, context.address())
        })
    }

    fn set_hvm_param(&self, id: DomId, param: HvmParam, value: u64) -> Result<(), XenError> {
        set_hvm_param(id, param, value)
    }

    fn alloc_port_for(&self, owner: DomId, remote: DomId) -> Result<Port, XenError> {
        let port = hypervisor::alloc_unbound(owner, remote)?;
        if owner == DomId::SELF || owner == DomId::ORCHESTRATOR {
            hypervisor::event_words().unmask(port.0);
        }
        Ok(port)
    }

    fn grant_fabric(&self, reference: GrantRef, to: DomId, page: u32, access: Access) {
        let fabric = fabric_pages::memory();
        let offset = page as usize * PAGE_SIZE;
        assert!(offset < fabric.len(), "fabric page {page} does not exist");
        let frame = paging::machine_frame((fabric.address() + offset) as u64);
        grants::grant(reference, to, frame, access)
            .expect("the layout's references fit the grant table");
    }

    fn pci_read(&self, at: PciAddress, offset: u8) -> u32 {
        // SAFETY: The initial domain's port access was enabled at its start.
        unsafe { io::pci_read(at, offset) }
    }

    fn pci_write(&self, at: PciAddress, offset: u8, value: u32) {
        // SAFETY: 1. As above. 2. A device can be told by its own registers only where in memory
        // to read and write; what is written here at most forbids or allows it.
        unsafe { io::pci_write(at, offset, value) }
    }

    fn write_register(&self, address: u64, width: Width, value: u32) -> Result<(), XenError> {
        let page = PAGE_SIZE as u64;
        let mapping = self.map_device(Frame(address / page), 1)?;
        let offset = (address % page) as usize;
        match width {
            Width::Byte => mapping.write(offset, &[value as u8]),
            Width::Word => mapping.store_u32(offset, value),
        }
        Ok(())
    }

    fn allow_device_memory(&self, id: DomId, first: Frame, count: u64) -> Result<(), XenError> {
        let call = Domctl::new(Operation::IomemPermission, id);
        simple(call.u64(0, first.0).u64(8, count).u32(16, 1)).map(|_| ())
    }

    fn give_interrupt(&self, id: DomId, line: u32) -> Result<(), XenError> {
        device::open_line(line)?;
        device::map_line(DomId::SELF, line)?;
        simple(Domctl::new(Operation::IrqPermission, id).u32(0, line).u32(4, 1))?;
        device::map_line(id, line)
    }

    fn has_iommu(&self) -> Result<bool, XenError> {
        device::has_iommu()
    }

    fn console_write(&self, text: &[u8]) {
        console::write_to_xen(text);
    }

    fn console_read(&self, into: &mut [u8]) -> usize {
        console::read_from_xen(into)
    }

    fn set_watchdog(&self, seconds: Option<u32>) -> Result<(), XenError> {
        /// `SCHEDOP_watchdog`.
        const SET: u64 = 6;
        let id = WATCHDOG.get();
        if id == 0 && seconds.is_none() {
            return Ok(());
        }
        let mut watchdog = SchedWatchdog { id, timeout: seconds.unwrap_or(0) };
        // SAFETY: The operation's structure.
        let made = unsafe { hypervisor::sched_op(SET, &mut watchdog) }?;
        WATCHDOG.set(match (seconds, id) {
            (None, _) => 0,
            (Some(_), 0) => made as u32,
            (Some(_), id) => id,
        });
        Ok(())
    }

    fn set_cpu_weight(&self, id: DomId, weight: u16) -> Result<(), XenError> {
        /// `XEN_SCHEDULER_CREDIT2`.
        const CREDIT2: u32 = 6;
        /// `XEN_DOMCTL_SCHEDOP_putinfo`.
        const PUT: u32 = 0;
        // The weight's word also holds the cap on CPU time: 0, none.
        let call = Domctl::new(Operation::Scheduler, id);
        simple(call.u32(0, CREDIT2).u32(4, PUT).u32(8, u32::from(weight))).map(|_| ())
    }

    fn set_rate_limit(&self, limit_us: u32) -> Result<(), XenError> {
        /// `XEN_SYSCTL_scheduler_op`.
        const SCHEDULER: u32 = 19;
        /// `XEN_SCHEDULER_CREDIT2`.
        const CREDIT2: u32 = 6;
        /// `XEN_SYSCTL_SCHEDOP_putinfo`.
        const PUT: u32 = 0;
        // The pool of CPUs that all domains are in, the scheduler, what to do; a gap, the limit.
        device::sysctl(SCHEDULER, [0, CREDIT2, PUT, 0, limit_us]).map(|_| ())
    }

    fn schedule(&self) -> Schedule {
        /// `VCPUOP_get_runstate_info`.
        const GET_RUNSTATE: u64 = 4;
        let mut info = RunstateInfo::default();
        let arguments = [GET_RUNSTATE, 0, &raw mut info as u64, 0, 0];
        // SAFETY: Xen writes one structure; for the own vCPU 0 it cannot fail.
        let _ = unsafe { hypercall(Call::VcpuOp, arguments) };
        let [running, runnable, blocked, offline] = info.time_ns;
        Schedule {
            running_since_ns: info.state_entry_ns,
            cpu_time_ns: running,
            without_cpu_ns: runnable + blocked + offline,
        }
    }
}
