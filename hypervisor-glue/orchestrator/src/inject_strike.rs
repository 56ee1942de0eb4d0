//! When a fault of a unit's registers takes effect: as soon as the unit runs again. What the
//! orchestrator does before it loses the CPU is not the fault's, nor is what others do with it.

use core::cell::Cell;

use abi::{Control, DomId, DomainState};

use crate::injector::Injected;

/// CPU time of the unit, and our own time without a CPU, when it was looked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Baseline {
    cpu_time_ns: u64,
    without_cpu_ns: u64,
}

impl Baseline {
    /// That of a unit that is stopped: it may run as soon as it no longer is, before the call that
    /// lets it go on has returned. `None`: nobody knows what CPU time it has had.
    pub fn of<C: Control>(xen: &C, unit: DomId) -> Option<Self> {
        let cpu_time_ns = xen.domain_info(unit).ok().flatten()?.cpu_time_ns;
        Some(Self { cpu_time_ns, without_cpu_ns: xen.schedule().without_cpu_ns })
    }
}

/// A fault whose unit has not run since, as far as was looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    unit: DomId,
    fault: Injected,
    last: Baseline,
    has_struck: bool,
}

impl Strike {
    /// A fault that was made of the unit's registers while it was stopped.
    pub fn begin(last: Baseline, unit: DomId, fault: Injected) -> Self {
        let fault = Injected { cpu_time_ns: Some(last.cpu_time_ns), ..fault };
        Self { unit, fault, last, has_struck: false }
    }

    /// Looks whether the unit had the CPU while we were without; to be called before anything is
    /// made of an event. The unit ran until we got the CPU back, for as long as Xen says. What the
    /// look takes is added: it keeps the watcher from seeing the fault.
    pub fn look<C: Control>(&mut self, xen: &C) {
        if self.has_struck {
            return;
        }
        let began_ns = xen.now_ns();
        // On the real clock Xen sets the time back by milliseconds now and then. Whatever is made
        // of the event that is taken next comes later than the fault.
        self.fault.at_ns = self.fault.at_ns.min(began_ns);
        let schedule = xen.schedule();
        if schedule.without_cpu_ns == self.last.without_cpu_ns {
            return;
        }
        self.last.without_cpu_ns = schedule.without_cpu_ns;
        let Some(ran) = self.ran(xen) else { return };
        self.has_struck = true;
        if let Ran::For(ran_ns) = ran {
            let at_ns = schedule.running_since_ns.saturating_sub(ran_ns);
            self.fault.at_ns = self.fault.at_ns.max(at_ns) + (xen.now_ns() - began_ns);
        }
    }

    /// The fault, if its unit has run, perhaps on another CPU. Until then it takes effect at this
    /// instant or later.
    pub fn struck<C: Control>(&mut self, xen: &C) -> Option<Injected> {
        if self.has_struck || self.ran(xen).is_some() {
            return Some(self.fault);
        }
        self.fault.at_ns = xen.now_ns();
        self.last.without_cpu_ns = xen.schedule().without_cpu_ns;
        None
    }

    /// What the unit has run since it was looked last; `None`: nothing. One that is shut down or
    /// gone has run, although Xen may count no time: its clocks differ from CPU to CPU, and a
    /// time that would be negative is none.
    fn ran<C: Control>(&self, xen: &C) -> Option<Ran> {
        let Ok(Some(info)) = xen.domain_info(self.unit) else { return Some(Ran::Unknown) };
        match info.cpu_time_ns.saturating_sub(self.last.cpu_time_ns) {
            0 => (info.state != DomainState::Alive).then_some(Ran::Unknown),
            ran_ns => Some(Ran::For(ran_ns)),
        }
    }
}

/// How long a unit ran into its fault.
enum Ran {
    /// CPU time in nanoseconds, as Xen counts it.
    For(u64),
    /// Nobody can tell.
    Unknown,
}

/// Where a strike is timed: the injector sets it at the end of a turn, and it is looked at before
/// each event that the orchestrator takes, as its unit may have run then.
#[derive(Debug, Default)]
pub struct Timed(Cell<Option<Strike>>);

impl Timed {
    /// Begins to time a strike, if there is one.
    pub fn begin(&self, strike: Option<Strike>) {
        self.0.set(strike);
    }

    /// Whether a strike is yet to take effect, as far as was looked.
    pub fn is_pending(&self) -> bool {
        self.0.get().is_some()
    }

    /// Looks whether the unit has run.
    pub fn look<C: Control>(&self, xen: &C) {
        if let Some(mut strike) = self.0.get() {
            strike.look(xen);
            self.0.set(Some(strike));
        }
    }

    /// A life of this unit is over: whatever ended it came after the fault.
    pub fn end(&self, unit: DomId) {
        if let Some(mut strike) = self.0.get().filter(|strike| strike.unit == unit) {
            strike.has_struck = true;
            self.0.set(Some(strike));
        }
    }

    /// The fault, once its unit has run into it; says so once. Call it at the end of each turn.
    pub fn struck<C: Control>(&self, xen: &C) -> Option<Injected> {
        let mut strike = self.0.get()?;
        let fault = strike.struck(xen);
        self.0.set(Some(strike).filter(|_| fault.is_none()));
        fault
    }
}

#[cfg(test)]
mod tests {
    use abi::{ShutdownReason, Xen, XenError};
    use fake_xen::{FakeXen, Machine, SMALL_DOMAIN};

    use super::*;
    use crate::inject_own::{Breaking, Progress};
    use crate::inject_plan::Kind;

    const UNIT: DomId = DomId(1);

    fn begin() -> (Strike, Machine) {
        let machine = Machine::new();
        let xen = machine.domain(DomId::ORCHESTRATOR);
        xen.create_domain(UNIT, &SMALL_DOMAIN).unwrap();
        machine.advance(1_000);
        let at_ns = xen.now_ns();
        let (kind, cpu_time_ns) = (Kind::WildJump, None);
        let fault = Injected { number: 0, kind, at_ns, cpu_time_ns, during: None };
        (Strike::begin(Baseline::of(&xen, UNIT).unwrap(), UNIT, fault), machine)
    }

    #[test]
    fn in_the_middle_of_a_long_turn_a_fault_counts_from_the_run_of_its_unit() {
        let (mut strike, machine) = begin();
        let xen = machine.domain(DomId::ORCHESTRATOR);
        machine.advance(70_000);
        strike.look(&xen);
        // Somebody else runs first, then the unit, until it fails.
        machine.take_cpu(5_000);
        strike.look(&xen);
        machine.advance(30_000);
        let unit_runs_ns = xen.now_ns() + 2_000;
        machine.take_cpu(2_000 + 9_000);
        machine.receive_cpu(UNIT, 9_000);
        machine.advance(40_000);
        strike.look(&xen);
        // Its next life runs, too, before the turn ends.
        machine.take_cpu(60_000);
        machine.receive_cpu(UNIT, 60_000);
        strike.look(&xen);
        assert_eq!(strike.struck(&xen).map(|fault| fault.at_ns), Some(unit_runs_ns));
    }

    #[test]
    fn what_the_next_life_runs_is_not_the_faults() {
        let (strike, machine) = begin();
        let xen = machine.domain(DomId::ORCHESTRATOR);
        let fired_ns = xen.now_ns();
        let timed = Timed::default();
        timed.begin(Some(strike));
        // It ran on another CPU, and was recovered before anybody looked.
        machine.advance(20_000);
        timed.end(UNIT);
        machine.receive_cpu(UNIT, 500_000);
        machine.take_cpu(700_000);
        timed.look(&xen);
        assert_eq!(timed.struck(&xen).map(|fault| fault.at_ns), Some(fired_ns));
    }

    #[test]
    fn a_clock_that_is_set_back_puts_no_fault_behind_its_detection() {
        let (strike, machine) = begin();
        let xen = machine.domain(DomId::ORCHESTRATOR);
        let set_back_ns = 6_000;
        let fault = Injected { at_ns: strike.fault.at_ns + set_back_ns, ..strike.fault };
        let timed = Timed::default();
        timed.begin(Some(Strike { fault, ..strike }));
        machine.advance(1_000);
        let looked_ns = xen.now_ns();
        timed.look(&xen);
        // The life is over, as the event that comes now says.
        timed.end(UNIT);
        assert_eq!(timed.struck(&xen).map(|fault| fault.at_ns), Some(looked_ns));
    }

    #[test]
    fn a_unit_that_died_without_any_counted_time_was_hit_before_anybody_noticed() {
        let (mut strike, machine) = begin();
        let xen = machine.domain(DomId::ORCHESTRATOR);
        machine.advance(500);
        strike.look(&xen);
        let looked_ns = xen.now_ns();
        assert_eq!(strike.struck(&xen), None);
        xen.shut_down(UNIT, ShutdownReason::Crash).unwrap();
        // It is detected, and its recovery waits for a while.
        machine.advance(20_000);
        strike.look(&xen);
        assert_eq!(strike.struck(&xen).map(|fault| fault.at_ns), Some(looked_ns));
    }

    #[test]
    fn each_way_into_the_next_life_ends_the_timing() {
        type Way = fn(&Breaking<'_, FakeXen>) -> Result<(), XenError>;
        let ways: [Way; 2] = [|xen| xen.reset_vcpu(UNIT), |xen| xen.resume(UNIT)];
        for begin_next in ways {
            let (strike, machine) = begin();
            let xen = machine.domain(DomId::ORCHESTRATOR);
            let fired_ns = xen.now_ns();
            let mut progress = Progress::default();
            let calls = Breaking::new(&xen, None, &mut progress, |_| panic!("there is no plan"));
            calls.timed().begin(Some(strike));
            // Whether the fake domain was in a state for it makes no difference.
            let _ = begin_next(&calls);
            machine.advance(20_000);
            machine.receive_cpu(UNIT, 500_000);
            machine.take_cpu(700_000);
            calls.timed().look(&xen);
            assert_eq!(calls.timed().struck(&xen).map(|fault| fault.at_ns), Some(fired_ns));
        }
    }

    #[test]
    fn a_unit_with_a_cpu_of_its_own_was_hit_when_it_was_looked_last() {
        let (mut strike, machine) = begin();
        let xen = machine.domain(DomId::ORCHESTRATOR);
        machine.advance(500);
        assert_eq!(strike.struck(&xen), None);
        let looked_ns = xen.now_ns();
        machine.advance(500);
        machine.receive_cpu(UNIT, 400);
        strike.look(&xen);
        assert_eq!(strike.struck(&xen).map(|fault| fault.at_ns), Some(looked_ns));
    }
}
