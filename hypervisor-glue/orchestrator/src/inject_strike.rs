//! When a fault of a unit's registers takes effect: as soon as the unit runs again. What the
//! orchestrator does before it gives the CPU up is not the fault's.

use abi::{Control, DomId};

use crate::injector::Injected;

/// A fault whose unit has not run since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    fault: Injected,
    cpu_time_ns: u64,
}

impl Strike {
    /// A fault that was just made of the unit's registers. `None`: nobody knows what CPU time the
    /// unit has had, and the fault counts from now.
    pub fn begin<C: Control>(xen: &C, unit: DomId, fault: Injected) -> Option<Self> {
        Some(Self { fault, cpu_time_ns: cpu_time_ns(xen, unit)? })
    }

    /// Looks whether the unit has run. Until then the fault takes effect at this instant or later.
    pub fn look<C: Control>(&mut self, xen: &C, unit: DomId) -> Option<Injected> {
        if cpu_time_ns(xen, unit) == Some(self.cpu_time_ns) {
            self.fault.at_ns = xen.now_ns();
            return None;
        }
        Some(self.fault)
    }
}

/// CPU time that the unit has had; `None` if it is gone.
fn cpu_time_ns<C: Control>(xen: &C, unit: DomId) -> Option<u64> {
    xen.domain_info(unit).ok().flatten().map(|info| info.cpu_time_ns)
}
