//! All units: their states, and what each event means.

use fabric::Epoch;
use fabric::health;

use crate::ladder::Ladder;
use crate::watch::{LOOK_MIN_NS, Verdict, Watch};
use crate::{Action, Actions, Pause, Plan, Reason, Report, Run, Rung, Sample};

/// What happened to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It failed by itself: its domain shut down or is gone, or its pages are found corrupt.
    Failed(Reason),
    /// The recovery that was asked for is carried out, and the unit runs. Say so before anything
    /// that the new life does: a failure heard during a job is one of the former life.
    JobDone {
        /// CPU time that the domain has received so far, in ns.
        cpu_time_ns: u64,
    },
    /// The recovery that was asked for cannot be carried out.
    JobFailed,
    /// It says that it serves.
    Ready {
        /// The life that says so; another than the present one is ignored.
        epoch: Epoch,
    },
    /// Its time of [`Supervisor::wake_at`] has come. The sample is `None` if there is no domain.
    Timer(Option<Sample>),
    /// The operator wants it restarted by this rung.
    Restart(Rung),
}

/// Where a unit stands; each deadline is part of the state it belongs to.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Not started; waits for the units it depends on.
    Down { rung: Rung },
    /// Failed; its recovery waits.
    Waiting { rung: Rung, until_ns: u64 },
    /// The orchestrator carries out a recovery.
    Recovering { rung: Rung, is_for_nothing: bool },
    /// It runs, and does not serve yet.
    Starting { rung: Rung, cpu_time_ns: u64, is_rung: bool, wake_at_ns: u64 },
    /// It serves, and nothing is outstanding.
    Idle { since_ns: u64, ping_at_ns: u64 },
    /// It serves, and work is outstanding.
    Busy { since_ns: u64, watch: Watch, wake_at_ns: u64 },
}

impl State {
    fn serves_since(&self) -> Option<u64> {
        match self {
            Self::Idle { since_ns, .. } | Self::Busy { since_ns, .. } => Some(*since_ns),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Unit {
    plan: Plan,
    epoch: Epoch,
    ping: u64,
    ladder: Ladder,
    state: State,
}

impl Unit {
    /// The time of its next look. `None`: no timer is needed.
    fn wake_at(&self) -> Option<u64> {
        match self.state {
            State::Down { .. } | State::Recovering { .. } => None,
            State::Waiting { until_ns, .. } => Some(until_ns),
            State::Starting { wake_at_ns, .. } | State::Busy { wake_at_ns, .. } => Some(wake_at_ns),
            State::Idle { ping_at_ns, .. } => Some(ping_at_ns),
        }
    }
}

/// The supervisor of `N` units.
#[derive(Clone, Copy, Debug)]
pub struct Supervisor<const N: usize> {
    units: [Unit; N],
}

impl<const N: usize> Supervisor<N> {
    /// The supervisor of the units with these plans; none has been started.
    pub const fn new(plans: &[Plan; N]) -> Self {
        let unit = Unit {
            plan: plans[0],
            epoch: 0,
            ping: 0,
            ladder: Ladder::new(),
            state: State::Down { rung: Rung::First },
        };
        let mut units = [unit; N];
        let mut index = 0;
        while index < N {
            units[index].plan = plans[index];
            index += 1;
        }
        Self { units }
    }

    /// Starts every unit, each when those it depends on serve.
    pub fn start(&mut self) -> Actions {
        let mut actions = Actions::new();
        self.start_those_that_can(&mut actions);
        actions
    }

    /// After a recovery of the orchestrator itself: `unit` lives its life `epoch`, was last sent
    /// `ping`, and is judged from now on. `is_serving`: as its health page says.
    pub fn adopt(&mut self, now_ns: u64, unit: usize, epoch: Epoch, ping: u64, is_serving: bool) {
        let unit = &mut self.units[unit];
        (unit.epoch, unit.ping) = (epoch, ping);
        let policy = &unit.plan.policy;
        unit.state = if is_serving {
            let wake_at_ns = now_ns + Watch::first_look_ns(policy);
            State::Busy { since_ns: now_ns, watch: Watch::new(), wake_at_ns }
        } else {
            // Its CPU time at the start is not known: the limit counts from the first look.
            let wake_at_ns = now_ns + policy.start_limit_ns;
            State::Starting { rung: Rung::First, cpu_time_ns: u64::MAX, is_rung: false, wake_at_ns }
        };
    }

    /// After a recovery of the orchestrator itself, and after [`Supervisor::adopt`]: what is done
    /// about the failure of `unit` was decided, but not carried out. It is fenced, and its epitaph
    /// is kept.
    pub fn take_up(&mut self, unit: usize, rung: Rung) -> Actions {
        let mut actions = Actions::new();
        self.recover(unit, rung, &mut actions);
        actions
    }

    /// Work was handed over to `unit`. Cheap; returns whether [`Supervisor::wake_at`] may have
    /// changed.
    pub fn handed(&mut self, now_ns: u64, unit: usize) -> bool {
        let unit = &mut self.units[unit];
        let State::Idle { since_ns, .. } = unit.state else { return false };
        let wake_at_ns = now_ns + Watch::first_look_ns(&unit.plan.policy);
        unit.state = State::Busy { since_ns, watch: Watch::new(), wake_at_ns };
        true
    }

    /// When to look next, in ns. `None`: nothing to look at before the next event.
    pub fn wake_at(&self) -> Option<u64> {
        self.units.iter().filter_map(Unit::wake_at).min()
    }

    /// Whether `unit` shall have its [`Event::Timer`].
    pub fn is_due(&self, now_ns: u64, unit: usize) -> bool {
        self.units[unit].wake_at().is_some_and(|at| at <= now_ns)
    }

    /// Whether a look at `unit` in passing is worth what it costs: its timer would soon fire.
    pub fn is_near(&self, now_ns: u64, unit: usize) -> bool {
        let Unit { plan, state, .. } = &self.units[unit];
        let early_ns = Watch::first_look_ns(&plan.policy) / 2;
        matches!(state, State::Busy { wake_at_ns, .. } if *wake_at_ns <= now_ns + early_ns)
    }

    /// A look in passing, because the orchestrator runs anyway: of a unit that has gone on since
    /// the last look, or has nothing left to do, the timer is put off, which would interrupt its
    /// work. Whatever else is seen is the timer's to judge.
    pub fn pass(&mut self, now_ns: u64, unit: usize, sample: &Sample) {
        let Unit { plan, epoch, ping, state, .. } = &mut self.units[unit];
        let State::Busy { since_ns, mut watch, .. } = *state else { return };
        match watch.look(now_ns, &plan.policy, *epoch, *ping, sample) {
            Verdict::Idle => {
                *state =
                    State::Idle { since_ns, ping_at_ns: now_ns + plan.policy.ping_interval_ns };
            }
            Verdict::Busy { wake_at_ns } if watch.is_marked_at(now_ns) => {
                *state = State::Busy { since_ns, watch, wake_at_ns };
            }
            _ => {}
        }
    }

    /// Whether `unit` serves.
    pub fn is_serving(&self, unit: usize) -> bool {
        self.units[unit].state.serves_since().is_some()
    }

    /// The present life of `unit`; 0 before the first.
    pub fn epoch(&self, unit: usize) -> Epoch {
        self.units[unit].epoch
    }

    /// What `event` of `unit` makes necessary.
    pub fn handle(&mut self, now_ns: u64, unit: usize, event: Event) -> Actions {
        let mut actions = Actions::new();
        match event {
            Event::Failed(reason) => self.fail(now_ns, unit, reason, &mut actions),
            Event::JobDone { cpu_time_ns } => self.job_done(now_ns, unit, cpu_time_ns),
            Event::JobFailed => self.job_failed(now_ns, unit, &mut actions),
            Event::Ready { epoch } => self.ready(now_ns, unit, epoch, &mut actions),
            Event::Timer(sample) => self.timer(now_ns, unit, sample, &mut actions),
            Event::Restart(rung) => self.restart(unit, rung, &mut actions),
        }
        self.start_those_that_can(&mut actions);
        actions
    }

    /// A failure of a unit that runs. One whose recovery is already decided has been fenced: what
    /// is still heard of its former life changes nothing.
    fn fail(&mut self, now_ns: u64, index: usize, reason: Reason, actions: &mut Actions) {
        let unit = &mut self.units[index];
        let served_ns = match unit.state {
            State::Starting { .. } => 0,
            State::Idle { since_ns, .. } | State::Busy { since_ns, .. } => {
                now_ns.saturating_sub(since_ns)
            }
            State::Down { .. } | State::Waiting { .. } | State::Recovering { .. } => return,
        };
        self.climb(now_ns, index, reason, served_ns, actions);
    }

    fn climb(
        &mut self,
        now_ns: u64,
        index: usize,
        reason: Reason,
        served_ns: u64,
        actions: &mut Actions,
    ) {
        let unit = &mut self.units[index];
        let step = unit.ladder.next(&unit.plan.policy, reason, served_ns);
        let rung = step.rung;
        actions.push(Action::Fence { unit: index });
        actions.push(Action::KeepEpitaph { unit: index, reason, rung });
        if step.delay_ns == 0 {
            return self.recover(index, rung, actions);
        }
        let until_ns = now_ns + step.delay_ns;
        unit.state = State::Waiting { rung, until_ns };
        let report = Report::Delayed { reason, rung, until_ns };
        actions.push(Action::Report { unit: index, report });
    }

    fn recover(&mut self, index: usize, rung: Rung, actions: &mut Actions) {
        if rung == Rung::Global {
            return self.restart_all(index, actions);
        }
        let unit = &mut self.units[index];
        unit.epoch = unit.epoch.wrapping_add(1);
        unit.state = State::Recovering { rung, is_for_nothing: false };
        actions.push(Action::Recover { unit: index, rung, epoch: unit.epoch });
    }

    /// Stops all units; they start again in the order of their dependencies.
    fn restart_all(&mut self, cause: usize, actions: &mut Actions) {
        for (index, unit) in self.units.iter_mut().enumerate() {
            if let State::Recovering { rung, .. } = unit.state {
                // Its job cannot be cut short, but its result is not wanted any more.
                unit.state = State::Recovering { rung, is_for_nothing: true };
                continue;
            }
            let is_running = matches!(
                unit.state,
                State::Starting { .. } | State::Idle { .. } | State::Busy { .. }
            );
            if index != cause && is_running {
                actions.push(Action::Fence { unit: index });
            }
            unit.state = State::Down { rung: Rung::Global };
        }
    }

    fn start_those_that_can(&mut self, actions: &mut Actions) {
        for index in 0..N {
            let State::Down { rung } = self.units[index].state else { continue };
            let can = self.units[index].plan.depends_on.iter().all(|other| self.is_serving(*other));
            if can {
                let unit = &mut self.units[index];
                unit.epoch = unit.epoch.wrapping_add(1);
                unit.state = State::Recovering { rung, is_for_nothing: false };
                actions.push(Action::Recover { unit: index, rung, epoch: unit.epoch });
            }
        }
    }

    fn job_done(&mut self, now_ns: u64, index: usize, cpu_time_ns: u64) {
        let unit = &mut self.units[index];
        let State::Recovering { rung, is_for_nothing } = unit.state else { return };
        unit.state = if is_for_nothing {
            State::Down { rung: Rung::Global }
        } else {
            let wake_at_ns = now_ns + unit.plan.policy.start_limit_ns;
            State::Starting { rung, cpu_time_ns, is_rung: false, wake_at_ns }
        };
    }

    fn job_failed(&mut self, now_ns: u64, index: usize, actions: &mut Actions) {
        match self.units[index].state {
            State::Recovering { is_for_nothing: true, .. } => {
                self.units[index].state = State::Down { rung: Rung::Global };
            }
            State::Recovering { .. } => self.climb(now_ns, index, Reason::Recovery, 0, actions),
            _ => {}
        }
    }

    fn ready(&mut self, now_ns: u64, index: usize, epoch: Epoch, actions: &mut Actions) {
        let unit = &mut self.units[index];
        let State::Starting { rung, .. } = unit.state else { return };
        if epoch != unit.epoch {
            return;
        }
        // Work may have come while it was away: the first look will tell.
        let wake_at_ns = now_ns + Watch::first_look_ns(&unit.plan.policy);
        unit.state = State::Busy { since_ns: now_ns, watch: Watch::new(), wake_at_ns };
        actions.push(Action::Report { unit: index, report: Report::Serving { rung, epoch } });
    }

    fn timer(&mut self, now_ns: u64, index: usize, sample: Option<Sample>, actions: &mut Actions) {
        if !self.is_due(now_ns, index) {
            return;
        }
        if let State::Waiting { rung, .. } = self.units[index].state {
            return self.recover(index, rung, actions);
        }
        let Some(sample) = sample else {
            return self.fail(now_ns, index, Reason::Gone, actions);
        };
        let unit = &mut self.units[index];
        match unit.state {
            State::Starting { .. } => self.look_at_start(now_ns, index, &sample, actions),
            State::Busy { since_ns, watch, .. } => {
                self.look(now_ns, index, since_ns, watch, &sample, actions);
            }
            State::Idle { since_ns, .. } => {
                unit.ping = unit.ping.wrapping_add(1) & fabric::checked::VALUE_MAX;
                actions.push(Action::Ping { unit: index, ping: unit.ping });
                let wake_at_ns = now_ns + Watch::first_look_ns(&unit.plan.policy);
                unit.state = State::Busy { since_ns, watch: Watch::pinged(), wake_at_ns };
            }
            State::Down { .. } | State::Waiting { .. } | State::Recovering { .. } => {}
        }
    }

    fn look(
        &mut self,
        now_ns: u64,
        index: usize,
        since_ns: u64,
        mut watch: Watch,
        sample: &Sample,
        actions: &mut Actions,
    ) {
        let unit = &mut self.units[index];
        let policy = &unit.plan.policy;
        let wake_at_ns = match watch.look(now_ns, policy, unit.epoch, unit.ping, sample) {
            Verdict::Idle => {
                let ping_at_ns = now_ns + policy.ping_interval_ns;
                unit.state = State::Idle { since_ns, ping_at_ns };
                return;
            }
            Verdict::Failed(reason) => return self.fail(now_ns, index, reason, actions),
            Verdict::Busy { wake_at_ns } => wake_at_ns,
            Verdict::Ring { wake_at_ns } => {
                actions.push(Action::Ring { unit: index });
                wake_at_ns
            }
            Verdict::Starved { wake_at_ns, report } => {
                actions.push(Action::Report { unit: index, report });
                wake_at_ns
            }
        };
        unit.state = State::Busy { since_ns, watch, wake_at_ns };
    }

    fn look_at_start(&mut self, now_ns: u64, index: usize, sample: &Sample, actions: &mut Actions) {
        let can_go_on =
            self.units[index].plan.depends_on.iter().all(|other| self.is_serving(*other));
        let unit = &mut self.units[index];
        let State::Starting { rung, cpu_time_ns, is_rung, .. } = unit.state else { return };
        let says = sample.health.ok().filter(|health| health.epoch == unit.epoch);
        match says.map(|health| health.state) {
            Some(health::State::Serving) => {
                let epoch = unit.epoch;
                return self.ready(now_ns, index, epoch, actions);
            }
            Some(health::State::Panicked) => {
                return self.fail(now_ns, index, Reason::Panic, actions);
            }
            _ => {}
        }
        if sample.pause == Pause::ByOther {
            return self.fail(now_ns, index, Reason::Paused, actions);
        }
        let limit_ns = unit.plan.policy.start_limit_ns;
        let start_ns = cpu_time_ns.min(sample.cpu_time_ns);
        let received_ns = sample.cpu_time_ns - start_ns;
        let is_asleep = sample.run == Run::Blocked && sample.pause == Pause::No && can_go_on;
        if received_ns >= limit_ns || (is_asleep && is_rung) {
            return self.fail(now_ns, index, Reason::Start, actions);
        }
        if is_asleep {
            actions.push(Action::Ring { unit: index });
        }
        let left_ns = if is_asleep || !can_go_on { limit_ns } else { limit_ns - received_ns };
        let wake_at_ns = now_ns + left_ns.max(LOOK_MIN_NS);
        unit.state =
            State::Starting { rung, cpu_time_ns: start_ns, is_rung: is_asleep, wake_at_ns };
    }

    fn restart(&mut self, index: usize, rung: Rung, actions: &mut Actions) {
        if matches!(self.units[index].state, State::Recovering { .. } | State::Down { .. }) {
            return actions.push(Action::Report { unit: index, report: Report::Refused });
        }
        let reason = Reason::Operator;
        actions.push(Action::Fence { unit: index });
        actions.push(Action::KeepEpitaph { unit: index, reason, rung });
        let rung = if rung == Rung::First { Rung::Rebuild } else { rung };
        self.recover(index, rung, actions);
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
pub(crate) mod tests;
