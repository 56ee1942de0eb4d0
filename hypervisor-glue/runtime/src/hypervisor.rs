//! The hypervisor as this domain sees it: the trait [`Xen`] on real Xen.

use core::cell::Cell;
use core::marker::PhantomData;

use abi::hypercall::{Call, hypercall, outcome};
use abi::layout::{AllocUnbound, BindInterdomain, BindVirq, EvtchnStatus};
use abi::{Access, DomId, Frame, GrantRef, Port, PortStatus, ShutdownReason, Virq, Xen, XenError};

use crate::boot::Boot;
use crate::cell::OneCpu;
use crate::events::EventWords;
use crate::fabric_pages;
use crate::mapping::{FabricMemory, Mapping};
use crate::window::Source;
use crate::{clock, failure, grants, heap, io, paging, shared_info, upcall};

/// Port after the one taken last: where the search for the next one begins.
static CURSOR: OneCpu<Cell<u32>> = OneCpu::new(Cell::new(0));

/// The hypervisor below this domain. A handle: its state belongs to the domain's one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Hypervisor {
    /// Not to be handed to another thread, should there ever be one.
    here: PhantomData<*mut ()>,
}

/// The event words of this domain.
pub(crate) fn event_words() -> EventWords<'static> {
    EventWords {
        selector: shared_info::selector(),
        pending: shared_info::pending(),
        mask: shared_info::mask(),
    }
}

/// One `EVTCHNOP_*` call.
///
/// # Safety
/// `argument` must be the structure that the operation documents.
pub(crate) unsafe fn event_op<T>(operation: u64, argument: &mut T) -> Result<(), XenError> {
    let arguments = [operation, &raw mut *argument as u64, 0, 0, 0];
    // SAFETY: Xen reads and writes the structure, which is the right one (the caller's duty).
    outcome(unsafe { hypercall(Call::EventChannelOp, arguments) }).map(|_| ())
}

/// Sends an event by port number.
pub(crate) fn send(port: u32) -> Result<(), XenError> {
    /// `EVTCHNOP_send`.
    const SEND: u64 = 4;
    let mut port = port;
    // SAFETY: `evtchn_send` is one word, the port.
    unsafe { event_op(SEND, &mut port) }
}

/// One `SCHEDOP_*` call with a structure, or none.
///
/// # Safety
/// `argument` must be the structure that the operation documents.
pub(crate) unsafe fn sched_op<T>(operation: u64, argument: &mut T) -> Result<u64, XenError> {
    let arguments = [operation, &raw mut *argument as u64, 0, 0, 0];
    // SAFETY: As in `event_op`.
    outcome(unsafe { hypercall(Call::SchedOp, arguments) })
}

/// Lets others run.
pub(crate) fn yield_now() {
    /// `SCHEDOP_yield`.
    const YIELD: u64 = 0;
    // SAFETY: The operation has no argument; it cannot fail.
    let _ = unsafe { sched_op(YIELD, &mut ()) };
}

impl Hypervisor {
    /// The handle.
    pub(crate) const fn new() -> Self {
        Self { here: PhantomData }
    }

    /// The orchestrator's fabric: the pages of [`crate::orchestrator!`].
    pub fn fabric(&self) -> FabricMemory {
        fabric_pages::memory()
    }

    /// Maps `count` pages of the fabric, granted by the orchestrator under `first` and the
    /// references after it, each as `access` says for its index. They stay mapped for good. Pages
    /// that a former life of this domain mapped are adopted; only the missing ones are mapped.
    ///
    /// # Errors
    /// [`XenError::Grant`] when a page is not granted to this domain, or not for this access.
    pub fn map_fabric(
        &self,
        first: GrantRef,
        count: usize,
        access: impl Fn(usize) -> Access,
    ) -> Result<FabricMemory, XenError> {
        grants::map_fabric(first, count, &access)?;
        Ok(fabric_pages::view(count))
    }

    /// Maps `count` pages of device memory from machine frame `first` on, uncached.
    ///
    /// # Errors
    /// What Xen says, when the domain may not use these frames.
    pub fn map_device(&self, first: Frame, count: usize) -> Result<Mapping, XenError> {
        let source = Source { owner: DomId::SELF, flags: paging::UNCACHED, command: 0 };
        Mapping::make((0..count).map(|page| first.0 + page as u64), source)
    }

    /// Unmaps the granted pages that a former life mapped and this one has not mapped again.
    /// Call it when the state is rebuilt: until then [`Xen::map_grants`] adopts them.
    pub fn drop_orphans(&self) {
        grants::drop_orphans();
    }

    /// From now on an allocation panics. For the orchestrator, at the end of its start.
    pub fn seal_heap(&self) {
        heap::seal();
    }

    /// Where a panic or trap of this service leaves its text before the domain crashes. `write`
    /// runs on the failing stack: it should do nothing but copy.
    pub fn set_last_words(&self, memory: FabricMemory, write: fn(&FabricMemory, &str)) {
        failure::set_last_words(memory, write);
    }

    /// Where the orchestrator goes on, with an empty stack and no mapping left, after a panic or
    /// trap of its own ([`Boot::failure`] tells which). Not after a fault on an unusable stack:
    /// Xen then restarts the machine.
    pub fn set_recovery(&self, entry: fn(Boot) -> !) {
        failure::set_recovery(entry);
    }

    /// Ends the machine: under QEMU with exit code `code << 1 | 1`, else by a restart.
    pub fn machine_exit(&self, code: u8) -> ! {
        // SAFETY: The initial domain's port access was enabled at its start; for another domain
        // the instruction traps, and the trap ends it.
        unsafe { io::exit_qemu(code) }
        self.shutdown(ShutdownReason::Reboot)
    }

    /// The time-stamp counter, for measuring short stretches of one unit's own code.
    pub fn ticks(&self) -> u64 {
        clock::tsc()
    }
}

impl Xen for Hypervisor {
    type Mapping = Mapping;

    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn set_timer(&self, at_ns: Option<u64>) {
        // 0 stops the timer; a unit that asks for the time 0 means "at once".
        let at_ns = at_ns.map_or(0, |at_ns| at_ns.max(1));
        // SAFETY: No memory is passed.
        let result = unsafe { hypercall(Call::SetTimerOp, [at_ns, 0, 0, 0, 0]) };
        // Xen refuses no time. Whoever slept on without the timer would never wake.
        assert_eq!(result, 0, "Xen sets the timer");
    }

    fn block(&self) {
        upcall::block(&event_words());
    }

    fn next_event(&self) -> Option<Port> {
        shared_info::upcall_pending().store(0, core::sync::atomic::Ordering::SeqCst);
        let port = event_words().take(CURSOR.get())?;
        CURSOR.set(port + 1);
        Some(Port(port))
    }

    fn send(&self, port: Port) -> Result<(), XenError> {
        send(port.0)
    }

    fn alloc_unbound(&self, remote: DomId) -> Result<Port, XenError> {
        let port = alloc_unbound(DomId::SELF, remote)?;
        event_words().unmask(port.0);
        Ok(port)
    }

    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, XenError> {
        /// `EVTCHNOP_bind_interdomain`.
        const BIND: u64 = 0;
        let mut bind =
            BindInterdomain { remote_dom: remote.0, remote_port: remote_port.0, local_port: 0 };
        // SAFETY: The operation's structure.
        unsafe { event_op(BIND, &mut bind) }?;
        event_words().unmask(bind.local_port);
        Ok(Port(bind.local_port))
    }

    fn bind_virq(&self, virq: Virq) -> Result<Port, XenError> {
        /// `EVTCHNOP_bind_virq`.
        const BIND: u64 = 1;
        let mut bind = BindVirq { virq: virq as u32, vcpu: 0, port: 0 };
        // SAFETY: The operation's structure.
        unsafe { event_op(BIND, &mut bind) }?;
        event_words().unmask(bind.port);
        Ok(Port(bind.port))
    }

    fn listen(&self, port: Port) {
        event_words().unmask(port.0);
        event_words().raise(port.0);
    }

    fn close(&self, port: Port) -> Result<(), XenError> {
        /// `EVTCHNOP_close`.
        const CLOSE: u64 = 3;
        let mut number = port.0;
        // SAFETY: `evtchn_close` is one word, the port.
        unsafe { event_op(CLOSE, &mut number) }?;
        event_words().silence(port.0);
        Ok(())
    }

    fn port_status(&self, domain: DomId, port: Port) -> Result<PortStatus, XenError> {
        /// `EVTCHNOP_status`.
        const STATUS: u64 = 5;
        let mut status =
            EvtchnStatus { dom: domain.0, port: port.0, status: 0, vcpu: 0, u: [0; 2] };
        // SAFETY: The operation's structure.
        unsafe { event_op(STATUS, &mut status) }?;
        let other = DomId(status.u[0] as u16);
        Ok(match status.status {
            0 => PortStatus::Closed,
            1 => PortStatus::Unbound(other),
            2 => PortStatus::Interdomain(other, Port(status.u[1])),
            3 => PortStatus::Pirq(status.u[0]),
            4 => PortStatus::Virq(status.u[0]),
            _ => PortStatus::Other,
        })
    }

    fn raise_all(&self) {
        event_words().raise_all();
    }

    fn map_grants(
        &self,
        granter: DomId,
        references: &[GrantRef],
        access: Access,
    ) -> Result<Mapping, XenError> {
        let first = grants::map(granter, references, access)?;
        // SAFETY: Just mapped by grants, or adopted; nobody else knows the slots.
        Ok(unsafe { Mapping::new(first, references.len(), true) })
    }

    fn shutdown(&self, reason: ShutdownReason) -> ! {
        /// `SCHEDOP_shutdown`.
        const SHUTDOWN: u64 = 2;
        let mut code = u32::from(reason.code());
        loop {
            // SAFETY: `sched_shutdown` is one word, the reason.
            let _ = unsafe { sched_op(SHUTDOWN, &mut code) };
        }
    }
}

/// `EVTCHNOP_alloc_unbound`.
pub(crate) fn alloc_unbound(owner: DomId, remote: DomId) -> Result<Port, XenError> {
    const ALLOC: u64 = 6;
    let mut alloc = AllocUnbound { dom: owner.0, remote_dom: remote.0, port: 0 };
    // SAFETY: The operation's structure.
    unsafe { event_op(ALLOC, &mut alloc) }?;
    Ok(Port(alloc.port))
}
