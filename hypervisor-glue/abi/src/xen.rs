//! What every unit may ask of Xen.

use fabric::SharedMemory;

use crate::{Access, DomId, GrantRef, Port, PortStatus, ShutdownReason, Virq, XenError};

/// The hypervisor as an unprivileged unit sees it.
///
/// All methods take `&self`: the implementation keeps its own state in cells, because a unit is
/// one vCPU and never runs two of these calls at once.
pub trait Xen {
    /// Memory of another domain mapped here, unmapped when dropped.
    type Mapping: SharedMemory;

    /// Xen's system time in nanoseconds since its start (`vcpu_time_info`, xen.h).
    fn now_ns(&self) -> u64;

    /// Arms the one-shot timer ([`Virq::Timer`] must be bound) for the system time `at_ns`;
    /// `None` stops it. A time that has passed fires at once.
    fn set_timer(&self, at_ns: Option<u64>);

    /// Sleeps until an unmasked event is pending; returns at once when one is.
    fn block(&self);

    /// Takes one pending event: its pending bit is clear afterwards. `None` when there is none.
    /// Ports are served round-robin, so that none starves.
    fn next_event(&self) -> Option<Port>;

    /// Notifies the other end. Sending to a port whose other end is gone is no error.
    fn send(&self, port: Port) -> Result<(), XenError>;

    /// Allocates a port that `remote` may bind; it is unmasked.
    fn alloc_unbound(&self, remote: DomId) -> Result<Port, XenError>;

    /// Binds a new local port to `remote`'s unbound `remote_port`. The new port is unmasked and
    /// pending, as Xen leaves it: the first look at shared state is never missed.
    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, XenError>;

    /// Binds a virtual interrupt to a new local port.
    fn bind_virq(&self, virq: Virq) -> Result<Port, XenError>;

    /// Lets events of a port in that somebody else allocated for us; it counts as pending once.
    fn listen(&self, port: Port);

    /// Closes a local port.
    fn close(&self, port: Port) -> Result<(), XenError>;

    /// What `port` of `domain` is bound to. Others than [`DomId::SELF`]: initial domain only.
    fn port_status(&self, domain: DomId, port: Port) -> Result<PortStatus, XenError>;

    /// Marks every port pending, so that a new life looks at everything once.
    fn raise_all(&self);

    /// Maps pages that `granter` granted to us, contiguous, in the given order.
    ///
    /// All or nothing: when one reference fails, the others are unmapped again.
    fn map_grants(
        &self,
        granter: DomId,
        references: &[GrantRef],
        access: Access,
    ) -> Result<Self::Mapping, XenError>;

    /// Ends this domain; does not return.
    fn shutdown(&self, reason: ShutdownReason) -> !;
}
