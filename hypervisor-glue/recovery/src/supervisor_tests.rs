//! Scenarios of one and several units, and a small model of units that run, hang and starve.

use super::*;
use crate::Policy;
use fabric::health::{Health, HealthError};
use proptest::prelude::*;

pub(crate) const POLICY: Policy = Policy {
    hang_limit_ns: 500_000,
    start_limit_ns: 40_000_000,
    ping_interval_ns: 30_000_000_000,
    min_run_ns: 20_000_000,
    backoff_ns: 1_000,
    backoff_max_ns: 50_000,
    healthy_ns: 500_000_000,
    tries: [2, 2, 3],
};

const STORE: usize = 0;
const TOOL: usize = 1;
const PLANS: [Plan; 2] =
    [Plan { policy: POLICY, depends_on: &[] }, Plan { policy: POLICY, depends_on: &[STORE] }];
const ALONE: [Plan; 1] = [Plan { policy: POLICY, depends_on: &[] }];

fn list(actions: Actions) -> Vec<Action> {
    actions.iter().collect()
}

fn recover(unit: usize, rung: Rung, epoch: Epoch) -> Action {
    Action::Recover { unit, rung, epoch }
}

fn serving(unit: usize, rung: Rung, epoch: Epoch) -> Action {
    Action::Report { unit, report: Report::Serving { rung, epoch } }
}

fn failure(unit: usize, reason: Reason, rung: Rung, epoch: Epoch) -> Vec<Action> {
    let epitaph = Action::KeepEpitaph { unit, reason, rung };
    vec![Action::Fence { unit }, epitaph, recover(unit, rung, epoch)]
}

/// What a healthy unit without work shows.
fn idle(epoch: Epoch) -> Sample {
    let state = health::State::Serving;
    let health = Health { state, epoch, taken: 5, progress: 5, pong: 0 };
    let (run, pause) = (Run::Blocked, Pause::No);
    Sample { health: Ok(health), handed: 5, cpu_time_ns: 1_000_000, run, pause }
}

/// The same with one piece of work outstanding, and awake.
fn busy(epoch: Epoch) -> Sample {
    Sample { handed: 6, run: Run::Runnable, ..idle(epoch) }
}

fn with_health(sample: Sample, change: impl FnOnce(&mut Health)) -> Sample {
    let mut health = sample.health.unwrap();
    change(&mut health);
    Sample { health: Ok(health), ..sample }
}

/// One unit in service in its first life, last looked at idle at time 0.
fn alone() -> Supervisor<1> {
    let mut supervisor = Supervisor::new(&ALONE);
    supervisor.start();
    supervisor.handle(0, 0, Event::JobDone { cpu_time_ns: 0 });
    supervisor.handle(0, 0, Event::Ready { epoch: 1 });
    supervisor
}

/// The unit's next look, with this sample.
fn look<const N: usize>(
    supervisor: &mut Supervisor<N>,
    unit: usize,
    sample: Sample,
) -> (u64, Vec<Action>) {
    let at = supervisor.units[unit].wake_at().expect("it is being looked at");
    (at, list(supervisor.handle(at, unit, Event::Timer(Some(sample)))))
}

#[test]
fn a_look_in_passing_puts_the_timer_off_and_judges_nothing() {
    let half_look = POLICY.hang_limit_ns / 4;
    let mut supervisor = alone();
    let (at, _) = look(&mut supervisor, 0, busy(1));
    let due = supervisor.wake_at().unwrap();
    assert!(!supervisor.is_near(due - half_look - 1, 0) && supervisor.is_near(due - half_look, 0));
    // It has gone on: its timer is as far away as if it had just been looked at.
    let gone_on = with_health(busy(1), |health| health.progress += 1);
    supervisor.pass(due - half_look, 0, &gone_on);
    assert_eq!(supervisor.wake_at(), Some(due - half_look + (due - at)));
    // It has not, or shows worse: nothing happens, until its timer comes.
    let wake_at = supervisor.wake_at().unwrap();
    let corrupt = Sample { health: Err(HealthError::Progress), ..gone_on };
    let asleep = Sample { run: Run::Blocked, ..gone_on };
    for sample in [gone_on, corrupt, asleep, asleep] {
        supervisor.pass(wake_at - 1, 0, &sample);
        assert_eq!(supervisor.wake_at(), Some(wake_at));
    }
    let (_, actions) = look(&mut supervisor, 0, corrupt);
    assert_eq!(actions, failure(0, Reason::Corrupt, Rung::Microreboot, 2));
    // With nothing left to do it is pinged once in a while.
    let mut supervisor = alone();
    let (at, _) = look(&mut supervisor, 0, busy(1));
    supervisor.pass(at + 1, 0, &idle(1));
    assert_eq!(supervisor.wake_at(), Some(at + 1 + POLICY.ping_interval_ns));
}

fn both_serve() -> Supervisor<2> {
    let mut supervisor = Supervisor::new(&PLANS);
    supervisor.start();
    for unit in [STORE, TOOL] {
        supervisor.handle(0, unit, Event::JobDone { cpu_time_ns: 0 });
        supervisor.handle(0, unit, Event::Ready { epoch: 1 });
        look(&mut supervisor, unit, idle(1));
    }
    supervisor
}

#[test]
fn units_start_after_those_they_depend_on() {
    let mut supervisor = Supervisor::new(&PLANS);
    assert_eq!(list(supervisor.start()), [recover(STORE, Rung::First, 1)]);
    assert!(supervisor.handle(1, STORE, Event::JobDone { cpu_time_ns: 0 }).is_empty());
    assert!(!supervisor.is_serving(STORE));
    assert!(supervisor.handle(2, STORE, Event::Ready { epoch: 7 }).is_empty(), "another life");
    let ready = list(supervisor.handle(2, STORE, Event::Ready { epoch: 1 }));
    assert_eq!(ready, [serving(STORE, Rung::First, 1), recover(TOOL, Rung::First, 1)]);
}

#[test]
fn a_first_look_may_find_it_ready() {
    let mut supervisor = Supervisor::new(&ALONE);
    supervisor.start();
    supervisor.handle(0, 0, Event::JobDone { cpu_time_ns: 0 });
    let (at, actions) = look(&mut supervisor, 0, idle(1));
    assert_eq!((at, actions), (POLICY.start_limit_ns, vec![serving(0, Rung::First, 1)]));
}

#[test]
fn an_idle_unit_is_left_alone_but_for_a_ping() {
    let mut supervisor = alone();
    let (at, actions) = look(&mut supervisor, 0, idle(1));
    assert_eq!((at, actions), (250_000, vec![]));
    assert_eq!(supervisor.wake_at(), Some(250_000 + POLICY.ping_interval_ns));
    let (_, actions) = look(&mut supervisor, 0, idle(1));
    assert_eq!(actions, [Action::Ping { unit: 0, ping: 1 }]);
    // It sleeps on: it is rung once, and then judged.
    assert_eq!(look(&mut supervisor, 0, idle(1)).1, [Action::Ring { unit: 0 }]);
    let (_, actions) = look(&mut supervisor, 0, idle(1));
    assert_eq!(actions, failure(0, Reason::Asleep, Rung::Microreset, 2));
    // One that answers is asleep and well.
    let mut supervisor = alone();
    look(&mut supervisor, 0, idle(1));
    look(&mut supervisor, 0, idle(1));
    let answered = with_health(idle(1), |health| health.pong = 1);
    assert_eq!(look(&mut supervisor, 0, answered).1, []);
    assert!(supervisor.wake_at().unwrap() > POLICY.ping_interval_ns);
}

#[test]
fn a_ping_dies_with_the_life_it_was_sent_to() {
    let mut supervisor = alone();
    look(&mut supervisor, 0, idle(1));
    assert_eq!(look(&mut supervisor, 0, idle(1)).1, [Action::Ping { unit: 0, ping: 1 }]);
    let now = supervisor.wake_at().unwrap();
    supervisor.handle(now, 0, Event::Failed(Reason::Exit(3)));
    supervisor.handle(now, 0, Event::JobDone { cpu_time_ns: 0 });
    supervisor.handle(now, 0, Event::Ready { epoch: 2 });
    // The page still holds the former life's pong.
    assert_eq!(look(&mut supervisor, 0, idle(2)).1, []);
    assert_eq!(supervisor.wake_at(), Some(now + 250_000 + POLICY.ping_interval_ns));
}

#[test]
fn a_hang_is_a_matter_of_received_cpu_time() {
    let mut supervisor = alone();
    look(&mut supervisor, 0, idle(1));
    assert!(supervisor.handed(1_000_000, 0));
    assert!(!supervisor.handed(1_000_001, 0), "the timer is armed already");
    assert_eq!(look(&mut supervisor, 0, busy(1)), (1_250_000, vec![]));
    let after = |cpu: u64| Sample { cpu_time_ns: 1_000_000 + cpu, ..busy(1) };
    // It received 100 us of 250: another half of the limit, as it may go on and hang then.
    assert_eq!(look(&mut supervisor, 0, after(100_000)), (1_500_000, vec![]));
    assert_eq!(look(&mut supervisor, 0, after(490_000)), (1_750_000, vec![]));
    let (at, actions) = look(&mut supervisor, 0, after(500_000));
    assert_eq!((at, actions), (1_800_000, failure(0, Reason::Hang, Rung::Microreset, 2)));
}

#[test]
fn progress_starts_the_deadline_anew() {
    let mut supervisor = alone();
    for step in 1..100 {
        let sample = Sample { cpu_time_ns: step * 400_000, ..busy(1) };
        let sample = with_health(sample, |health| health.progress = step);
        assert_eq!(look(&mut supervisor, 0, sample).1, []);
    }
}

#[test]
fn a_loop_without_work_is_a_hang_too() {
    let mut supervisor = alone();
    let looping = |cpu_time_ns| Sample { cpu_time_ns, run: Run::Runnable, ..idle(1) };
    assert_eq!(look(&mut supervisor, 0, looping(0)).1, []);
    let (_, actions) = look(&mut supervisor, 0, looping(600_000));
    assert_eq!(actions, failure(0, Reason::Hang, Rung::Microreset, 2));
}

#[test]
fn a_starved_unit_is_reported_once_and_not_reset() {
    let mut supervisor = alone();
    let mut reports = vec![];
    for _ in 0..1000 {
        reports.extend(look(&mut supervisor, 0, busy(1)).1);
    }
    let [Action::Report { unit: 0, report: Report::Starved { for_ns, received_ns: 0 } }] =
        reports[..]
    else {
        panic!("{reports:?}")
    };
    assert!(for_ns >= 100_000_000);
}

#[test]
fn what_no_correct_unit_shows_is_a_failure() {
    let corrupt: [Sample; 4] = [
        Sample { health: Err(HealthError::Taken), ..idle(1) },
        with_health(idle(1), |health| health.taken = 6),
        with_health(idle(1), |health| health.pong = 1),
        with_health(idle(1), |health| health.epoch = 9),
    ];
    for sample in corrupt {
        let (_, actions) = look(&mut alone(), 0, sample);
        assert_eq!(actions, failure(0, Reason::Corrupt, Rung::Microreboot, 2));
    }
    let panicked = with_health(idle(1), |health| health.state = health::State::Panicked);
    let (_, actions) = look(&mut alone(), 0, panicked);
    assert_eq!(actions, failure(0, Reason::Panic, Rung::Microreset, 2));
    let paused = Sample { pause: Pause::ByOther, ..busy(1) };
    let (_, actions) = look(&mut alone(), 0, paused);
    assert_eq!(actions, failure(0, Reason::Paused, Rung::Microreset, 2));
    let mut supervisor = alone();
    for _ in 0..10 {
        assert_eq!(look(&mut supervisor, 0, Sample { pause: Pause::ByUs, ..busy(1) }).1, []);
    }
    let gone = list(supervisor.handle(1 << 40, 0, Event::Timer(None)));
    assert_eq!(gone, failure(0, Reason::Gone, Rung::Rebuild, 2));
}

#[test]
fn two_faults_at_once_are_two_recoveries() {
    let mut supervisor = both_serve();
    let store = list(supervisor.handle(9, STORE, Event::Failed(Reason::Exit(3))));
    let tool = list(supervisor.handle(9, TOOL, Event::Failed(Reason::Panic)));
    assert_eq!(store, failure(STORE, Reason::Exit(3), Rung::Microreset, 2));
    assert_eq!(tool, failure(TOOL, Reason::Panic, Rung::Microreset, 2));
    // The same failure seen again changes nothing.
    assert!(supervisor.handle(9, TOOL, Event::Failed(Reason::Exit(3))).is_empty());
    for unit in [TOOL, STORE] {
        supervisor.handle(10, unit, Event::JobDone { cpu_time_ns: 0 });
        let ready = list(supervisor.handle(11, unit, Event::Ready { epoch: 2 }));
        assert_eq!(ready, [serving(unit, Rung::Microreset, 2)]);
    }
}

#[test]
fn a_fault_during_recovery_takes_the_next_try() {
    let mut supervisor = both_serve();
    let mut now = 0;
    let mut rungs = vec![];
    for _ in 0..12 {
        now += 1;
        let mut actions = list(supervisor.handle(now, STORE, Event::Failed(Reason::Exit(3))));
        if supervisor.wake_at().is_some_and(|at| at < now + 1_000_000) {
            now = supervisor.wake_at().unwrap();
            actions = list(supervisor.handle(now, STORE, Event::Timer(None)));
        }
        rungs.extend(actions.iter().filter_map(|action| match action {
            Action::Recover { unit: STORE, rung, .. } => Some(*rung),
            _ => None,
        }));
        supervisor.handle(now, STORE, Event::JobDone { cpu_time_ns: 0 });
    }
    use Rung::{Global as G, Microreboot as B, Microreset as M, Rebuild as R};
    assert_eq!(rungs, [M, M, B, B, R, R, R, G, R, R, R, G]);
}

#[test]
fn a_global_restart_follows_the_dependencies() {
    let mut supervisor = both_serve();
    let actions = list(supervisor.handle(5, TOOL, Event::Restart(Rung::Global)));
    let epitaph = Action::KeepEpitaph { unit: TOOL, reason: Reason::Operator, rung: Rung::Global };
    let fences = [Action::Fence { unit: TOOL }, epitaph, Action::Fence { unit: STORE }];
    assert_eq!(actions[..3], fences);
    assert_eq!(actions[3..], [recover(STORE, Rung::Global, 2)]);
    assert!(supervisor.handle(6, TOOL, Event::Failed(Reason::Exit(3))).is_empty());
    supervisor.handle(7, STORE, Event::JobDone { cpu_time_ns: 0 });
    let ready = list(supervisor.handle(8, STORE, Event::Ready { epoch: 2 }));
    assert_eq!(ready, [serving(STORE, Rung::Global, 2), recover(TOOL, Rung::Global, 2)]);
}

#[test]
fn a_global_restart_waits_for_a_job_under_way() {
    let mut supervisor = both_serve();
    supervisor.handle(5, STORE, Event::Failed(Reason::Gone));
    let actions = list(supervisor.handle(6, TOOL, Event::Restart(Rung::Global)));
    assert_eq!(actions.len(), 2, "nothing starts yet: {actions:?}");
    let after = list(supervisor.handle(7, STORE, Event::JobDone { cpu_time_ns: 0 }));
    assert_eq!(after, [recover(STORE, Rung::Global, 3)]);
}

#[test]
fn a_job_that_fails_takes_the_next_rung() {
    let mut supervisor = alone();
    supervisor.handle(5, 0, Event::Failed(Reason::Hang));
    let actions = list(supervisor.handle(6, 0, Event::JobFailed));
    assert!(matches!(
        actions[2],
        Action::Report { report: Report::Delayed { rung: Rung::Microreboot, .. }, .. }
    ));
    let at = supervisor.wake_at().unwrap();
    let actions = list(supervisor.handle(at, 0, Event::Timer(None)));
    assert_eq!(actions, [recover(0, Rung::Microreboot, 3)]);
}

#[test]
fn a_start_is_limited_by_received_cpu_time() {
    let mut supervisor = Supervisor::new(&ALONE);
    supervisor.start();
    supervisor.handle(0, 0, Event::JobDone { cpu_time_ns: 7 });
    let silent = Sample { health: Err(HealthError::State), handed: 0, ..busy(1) };
    let after = |cpu_time_ns: u64| Sample { cpu_time_ns: 7 + cpu_time_ns, ..silent };
    assert_eq!(look(&mut supervisor, 0, after(0)), (40_000_000, vec![]));
    assert_eq!(look(&mut supervisor, 0, after(30_000_000)), (80_000_000, vec![]));
    let (at, actions) = look(&mut supervisor, 0, after(40_000_000));
    assert_eq!((at, actions), (90_000_000, failure(0, Reason::Start, Rung::Microreset, 2)));
    // One that sleeps instead is rung first.
    supervisor.handle(at, 0, Event::JobDone { cpu_time_ns: 0 });
    let asleep = Sample { run: Run::Blocked, ..silent };
    assert_eq!(look(&mut supervisor, 0, asleep).1, [Action::Ring { unit: 0 }]);
    let (_, actions) = look(&mut supervisor, 0, asleep);
    assert!(actions.contains(&Action::Fence { unit: 0 }), "{actions:?}");
}

#[test]
fn an_adopted_unit_is_judged_like_any_other() {
    let mut supervisor = Supervisor::new(&PLANS);
    supervisor.adopt(100, STORE, 4, 2, true);
    supervisor.adopt(100, TOOL, 3, 0, false);
    assert!(supervisor.start().is_empty(), "both live");
    let sample = with_health(idle(4), |health| health.pong = 2);
    assert_eq!(look(&mut supervisor, STORE, sample).1, []);
    let starting = with_health(busy(3), |health| health.state = health::State::Recovering);
    let (at, actions) = look(&mut supervisor, TOOL, Sample { cpu_time_ns: 1 << 50, ..starting });
    assert_eq!((at, actions), (100 + POLICY.start_limit_ns, vec![]));
    let ready = list(supervisor.handle(at, TOOL, Event::Ready { epoch: 3 }));
    assert_eq!(ready, [serving(TOOL, Rung::First, 3)]);
}

#[test]
fn a_recovery_that_was_decided_is_taken_up_without_a_further_failure() {
    let mut supervisor = Supervisor::new(&PLANS);
    supervisor.adopt(100, STORE, 4, 2, true);
    supervisor.adopt(100, TOOL, 3, 0, true);
    let actions = list(supervisor.take_up(STORE, Rung::Microreset));
    assert_eq!(actions, [recover(STORE, Rung::Microreset, 5)]);
    assert!(!supervisor.is_serving(STORE) && supervisor.is_serving(TOOL));
    // What is still heard of the former life changes nothing.
    assert_eq!(list(supervisor.handle(101, STORE, Event::Failed(Reason::Gone))), []);
}

#[test]
fn the_operator_is_refused_while_a_recovery_runs() {
    let mut supervisor = alone();
    let actions = list(supervisor.handle(1, 0, Event::Restart(Rung::First)));
    assert_eq!(actions.last(), Some(&recover(0, Rung::Rebuild, 2)));
    let refused = Action::Report { unit: 0, report: Report::Refused };
    assert_eq!(list(supervisor.handle(2, 0, Event::Restart(Rung::Microreset))), [refused]);
}

/// A unit with a CPU that it must share, in steps of [`STEP_NS`].
struct Model {
    supervisor: Supervisor<1>,
    sample: Sample,
    now_ns: u64,
    is_hung: bool,
    /// CPU time received since it hung.
    hung_ns: u64,
    item_ns: u64,
    left_ns: u64,
}

const STEP_NS: u64 = 5_000;

impl Model {
    fn new(item_ns: u64) -> Self {
        let (supervisor, sample) = (alone(), idle(1));
        let (now_ns, is_hung, hung_ns) = (0, false, 0);
        Self { supervisor, sample, now_ns, is_hung, hung_ns, item_ns, left_ns: item_ns }
    }

    fn hand_over(&mut self) {
        self.sample.handed += 1;
        self.sample.run = Run::Runnable;
        self.supervisor.handed(self.now_ns, 0);
    }

    fn run(&mut self) {
        if self.sample.run == Run::Blocked {
            return;
        }
        self.sample.cpu_time_ns += STEP_NS;
        if self.is_hung {
            self.hung_ns += STEP_NS;
            return;
        }
        let mut health = self.sample.health.unwrap();
        self.left_ns = self.left_ns.saturating_sub(STEP_NS);
        if health.taken == self.sample.handed {
            self.sample.run = Run::Blocked;
        } else if self.left_ns == 0 {
            health.taken += 1;
            health.progress += 1;
            self.left_ns = self.item_ns;
        }
        health.pong = self.supervisor.units[0].ping;
        self.sample.health = Ok(health);
    }

    /// One step of time; the reason if the unit was found to have failed.
    fn step(&mut self, has_cpu: bool) -> Option<Reason> {
        self.now_ns += STEP_NS;
        if has_cpu {
            self.run();
        } else if self.supervisor.is_near(self.now_ns, 0) {
            // The orchestrator has it, and looks in passing.
            self.supervisor.pass(self.now_ns, 0, &self.sample);
        }
        if !self.supervisor.is_due(self.now_ns, 0) {
            return None;
        }
        let event = Event::Timer(Some(self.sample));
        for action in self.supervisor.handle(self.now_ns, 0, event).iter() {
            match action {
                Action::KeepEpitaph { reason, .. } => return Some(reason),
                Action::Ring { .. } | Action::Ping { .. } => self.sample.run = Run::Runnable,
                _ => {}
            }
        }
        None
    }
}

/// The unit goes on right after a look that found it slow for want of CPU time, and hangs then.
#[test]
fn a_hang_that_follows_little_cpu_time_is_seen_in_time() {
    let limit = POLICY.hang_limit_ns * 3 / 2 + LOOK_MIN_NS + 2 * STEP_NS;
    for item_ns in (50_000..400_000).step_by(35_000) {
        for (share, hangs_at) in (2..6).flat_map(|share| (0..300).map(move |at| (share, at))) {
            let mut model = Model::new(item_ns);
            model.hand_over();
            for step in 0..hangs_at {
                assert_eq!(model.step(step % share == 0), None);
            }
            model.is_hung = true;
            model.hand_over();
            let steps = (0..1_000).take_while(|_| model.step(true).is_none()).count();
            assert!(steps < 1_000, "never seen");
            assert!(model.hung_ns <= limit, "{} ns: {item_ns}, {share}, {hangs_at}", model.hung_ns);
        }
    }
}

proptest! {
    /// Work at any times, items up to four fifths of the limit, any share of the CPU: no alarm.
    #[test]
    fn a_healthy_unit_is_never_touched(
        item_ns in 1_000_u64..400_000,
        steps in prop::collection::vec((0_u8..20, prop::bool::weighted(0.3)), 1000..4000),
    ) {
        let mut model = Model::new(item_ns);
        for (work, has_cpu) in steps {
            if work == 0 { model.hand_over(); }
            prop_assert_eq!(model.step(has_cpu), None, "at {}", model.now_ns);
        }
        prop_assert_eq!(model.supervisor.epoch(0), 1);
    }

    /// A hang is seen within 1 ms of received CPU time, at any share of the CPU.
    #[test]
    fn a_hang_is_seen_in_time(
        before in prop::collection::vec((0_u8..20, any::<bool>()), 0..1000),
        share in 1_u64..20,
    ) {
        let mut model = Model::new(30_000);
        for (work, has_cpu) in before {
            if work == 0 { model.hand_over(); }
            prop_assert_eq!(model.step(has_cpu), None);
        }
        model.is_hung = true;
        model.hand_over();
        let mut steps = 0;
        let reason = loop {
            steps += 1;
            prop_assert!(steps < 100_000, "never seen");
            if let Some(reason) = model.step(steps % share == 0) { break reason; }
        };
        prop_assert_eq!(reason, Reason::Hang);
        let limit = POLICY.hang_limit_ns * 3 / 2 + LOOK_MIN_NS + 2 * STEP_NS;
        prop_assert!(model.hung_ns <= limit, "{} ns", model.hung_ns);
    }

    /// However units fail: each failure leads to a recovery after at most the longest delay, epochs
    /// only grow, and nobody waits for what never comes.
    #[test]
    fn every_failure_ends_in_a_recovery(
        steps in prop::collection::vec((0_usize..2, 0_u8..7, 0_u64..300_000), 0..300),
    ) {
        let mut supervisor = both_serve();
        let mut jobs: [Option<Epoch>; 2] = [None; 2];
        let mut epochs = [1; 2];
        let mut now = 1_000_000;
        for (unit, what, delay) in steps {
            now += delay;
            let event = match what {
                0 => Event::Failed(Reason::Exit(3)),
                1 => Event::Failed(Reason::Corrupt),
                2 if jobs[unit].take().is_some() => Event::JobFailed,
                3 | 4 if jobs[unit].take().is_some() => Event::JobDone { cpu_time_ns: 0 },
                5 => Event::Ready { epoch: supervisor.epoch(unit) },
                6 => Event::Restart(Rung::Global),
                _ => Event::Timer(None),
            };
            for action in supervisor.handle(now, unit, event).iter() {
                if let Action::Recover { unit, epoch, .. } = action {
                    prop_assert!(jobs[unit].is_none(), "two jobs at once");
                    prop_assert!(epoch > epochs[unit]);
                    (jobs[unit], epochs[unit]) = (Some(epoch), epoch);
                }
            }
        }
        // From now on everything succeeds: both serve before long.
        for _ in 0..20 {
            now += POLICY.backoff_max_ns;
            for unit in 0..2 {
                let mut actions = vec![];
                if supervisor.is_due(now, unit) && !supervisor.is_serving(unit) {
                    actions.extend(supervisor.handle(now, unit, Event::Timer(None)).iter());
                }
                if jobs[unit].take().is_some() {
                    let done = Event::JobDone { cpu_time_ns: 0 };
                    actions.extend(supervisor.handle(now, unit, done).iter());
                }
                let epoch = supervisor.epoch(unit);
                actions.extend(supervisor.handle(now, unit, Event::Ready { epoch }).iter());
                for action in actions {
                    if let Action::Recover { unit, epoch, .. } = action {
                        jobs[unit] = Some(epoch);
                    }
                }
            }
        }
        prop_assert!(supervisor.is_serving(STORE) && supervisor.is_serving(TOOL));
    }
}
