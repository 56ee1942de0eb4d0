//! Faults in net-uk, and in its NIC driver, while a guest sends a checked TCP stream and pings to
//! the outside.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use system::Role;

use super::Options;
use super::harness::{Guest, Outcome, Parts, follow};
use crate::build;
use crate::faults::Plan;
use crate::guest::variant;
use crate::progress::Steps;
use crate::qemu::{Clock, ECHO, GATEWAY, Machine, Nic};
use crate::report::{Promise, Report};

/// The experiment's name.
pub const NAME: &str = "net-faults";

/// The unit that is broken.
const UNIT: &str = "net-uk";

/// Kinds of faults, in turn.
const KINDS: [&str; 3] = ["crash-undefined", "crash-wild-jump", "hang-loop"];

/// The build whose NIC driver ends itself in its fault domain (`net-uk/unikernel`, feature
/// `fault-points`), the kinds of that, and how many come in a boot.
const POINTS: &str = "net-uk/fault-points";
const DRIVER_KINDS: [&str; 8] = [
    "driver-panic",
    "driver-wild-read",
    "driver-wild-write",
    "driver-wild-jump",
    "driver-undefined",
    "driver-stack-overflow",
    "driver-division-by-zero",
    "driver-hang-loop",
];
const DRIVER_FAULTS: u64 = 24;
/// What the names of driver faults begin with, and of those among them that trap nowhere.
const DRIVER: &str = "driver-";
const DRIVER_HANG: &str = "driver-hang-";
/// The NICs whose drivers end themselves.
const NICS: [Nic; 2] = [Nic::E1000e, Nic::VirtioNet];
/// For so many faults in net-uk there is one boot of that build for each of them.
const RUNS_PER_POINTS_BOOT: u64 = 15;
/// Virtual time that its faults take, with some to spare.
const POINTS_S: u64 = 8;

/// Faults per boot.
const FAULTS_PER_BOOT: u64 = 20;

/// Mean time between faults: as for xenstore-uk, so that each meets the lowest rung.
const GAP_US: u64 = 240_000;

/// Work handed to net-uk before the first fault: its interface is being connected then.
const AFTER: u64 = 60;

/// Virtual time that the stream goes on after the last fault, and before the first.
const QUIET_S: u64 = 4;

/// Host time for a boot, and for a virtual second of a busy stream, with room to spare.
const BOOT_LIMIT_S: u64 = 600;
const HOST_SECONDS_PER_SECOND: u64 = 40;

/// Fields of the stream's last line that must be zero.
const MUST_BE_ZERO: [&str; 4] = ["wrong", "lost", "pings_lost", "timeouts"];
/// Fields that are told.
const TOLD: [&str; 4] = ["sent", "pings", "retransmitted", "longest_gap_ns"];

/// Promises for crashes, in nanoseconds from the fault (docs/SPECIFICATION.md).
const CRASH_DETECTED_NS: u64 = 50_000;
const REPAIRED_NS: [(u64, u64); 3] = [(1, 1_000_000), (2, 5_000_000), (3, 25_000_000)];
const DRIVER_CRASH_DETECTED_NS: u64 = 100_000;
const DRIVER_HANG_DETECTED_NS: u64 = 2_000_000;
const DRIVER_REPAIRED_NS: u64 = 10_000_000;

/// An outcome in words.
struct Streamed(Outcome);

impl fmt::Display for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { faults, recoveries, .. } = &self.0;
        let is_whole = MUST_BE_ZERO.iter().all(|field| self.0.total(field) == Some(0));
        let verdict = if is_whole { "the stream is whole" } else { "THE STREAM IS NOT WHOLE" };
        write!(f, "{} faults, {recoveries} recoveries, {verdict}", faults.len())
    }
}

/// Injects `runs` faults into net-uk, a third of them from each rung on, and those of its driver.
pub fn run(options: &Options, runs: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut parts = Parts::open(NAME, options.seed)?;
    let mut outcomes = Vec::new();
    let third = runs / 3;
    for (rung, mut left) in [(1, runs - 2 * third), (2, third), (3, third)] {
        while left > 0 {
            let count = left.min(FAULTS_PER_BOOT);
            let seed = options.seed * 1000 + outcomes.len() as u64;
            let label = format!("{count} faults from rung {rung}, seed {seed}");
            let work = || parts.part(&label, || boot(seed, count, rung)).map(Streamed);
            outcomes.push(steps.step(&label, work)?.0);
            left -= count;
        }
    }
    let boots = runs.div_ceil(RUNS_PER_POINTS_BOOT);
    build::run(&build::Options { features: vec![POINTS.into()], ..build::Options::default() })?;
    for number in 0..boots {
        for nic in NICS {
            let label = format!("{DRIVER_FAULTS} faults in the driver of {nic:?}, boot {number}");
            let work = || parts.part(&label, || boot_points(nic)).map(Streamed);
            outcomes.push(steps.step(&label, work)?.0);
        }
    }
    parts.finish()?;
    let in_drivers = boots * NICS.len() as u64 * DRIVER_FAULTS;
    Ok(judge(options.seed, runs + in_drivers, &outcomes))
}

/// One boot whose ladder begins at `rung`.
fn boot(seed: u64, count: u64, rung: u64) -> Result<Outcome> {
    let seconds = (count * GAP_US).div_ceil(1_000_000) + QUIET_S;
    let plan =
        Plan { kinds: KINDS.to_vec(), count, seed, gap_us: GAP_US, after: AFTER, during: None };
    let words = [plan.word_for(Role::Net)?, format!("rung={rung}")];
    stream(Nic::E1000e, seconds, &words)
}

/// One boot of the build whose driver ends itself.
fn boot_points(nic: Nic) -> Result<Outcome> {
    stream(nic, POINTS_S, &[])
}

/// One boot whose guest sends its stream for so many seconds.
fn stream(nic: Nic, seconds: u64, words: &[String]) -> Result<Outcome> {
    let mut machine = Machine::host(&format!("experiment-{NAME}"), Clock::Virtual);
    machine.nic = nic;
    machine.has_echo = true;
    let work = format!("run:xsload,net,{ECHO},{GATEWAY},{seconds}");
    machine.archive = Some(variant::archive(NAME, &work)?);
    machine.orchestrator_args.extend(words.iter().cloned());
    let limit = Duration::from_secs(BOOT_LIMIT_S + seconds * HOST_SECONDS_PER_SECOND);
    let guest = Guest { does: "stream", work: "run", total: "net-total", unit: UNIT };
    Ok(follow(&machine, limit, &guest)?.0)
}

/// Turns the outcomes into samples and holds them to the promises.
fn judge(seed: u64, runs: u64, outcomes: &[Outcome]) -> Report {
    let mut report = Report::new(NAME, Clock::Virtual, seed, runs);
    report.samples.extend(outcomes.iter().flat_map(|o| o.samples(UNIT)).map(Some));
    for sample in report.samples.iter_mut().flatten() {
        // What the stream came to is judged as a whole, below.
        sample.ok = sample.repaired.is_some();
    }
    let missing = (runs as usize).saturating_sub(report.samples.len());
    report.samples.extend(vec![None; missing]);
    for outcome in outcomes {
        for field in TOLD.iter().chain(&MUST_BE_ZERO) {
            report.measure(field, "ours", outcome.total(field).unwrap_or(u64::MAX));
        }
    }
    report.promises = promises(&report);
    for field in MUST_BE_ZERO {
        let values = report.measures[field]["ours"].iter();
        let sum = values.fold(0, |sum: u64, value| sum.saturating_add(*value));
        report.promises.push(Promise::at_most(format!("stream: {field}"), 0, Some(sum)));
    }
    report
}

fn promises(report: &Report) -> Vec<Promise> {
    let mut out = Vec::new();
    let crashes: Vec<_> = report.of_kind("crash-").collect();
    let detected: Vec<u64> = crashes.iter().filter_map(|s| s.detection()).collect();
    out.push(Promise::worst_of("crashes detected, ns,", CRASH_DETECTED_NS, &detected));
    for (rung, limit) in REPAIRED_NS {
        let on_rung = crashes.iter().filter(|s| s.rung == Some(rung));
        let repaired: Vec<u64> = on_rung.filter_map(|s| s.repair()).collect();
        out.push(Promise::worst_of(&format!("repaired by rung {rung}, ns,"), limit, &repaired));
    }
    let driver = |is_hang: bool| {
        let all = report.of_kind(DRIVER);
        let some = all.filter(move |sample| sample.kind.starts_with(DRIVER_HANG) == is_hang);
        some.filter_map(|sample| sample.detection()).collect::<Vec<_>>()
    };
    let (name, limit) = ("driver crashes detected, ns,", DRIVER_CRASH_DETECTED_NS);
    out.push(Promise::worst_of(name, limit, &driver(false)));
    let (name, limit) = ("driver hangs detected, ns,", DRIVER_HANG_DETECTED_NS);
    out.push(Promise::worst_of(name, limit, &driver(true)));
    let repaired: Vec<u64> = report.of_kind(DRIVER).filter_map(|s| s.repair()).collect();
    out.push(Promise::worst_of("driver repaired, ns,", DRIVER_REPAIRED_NS, &repaired));
    let unseen = DRIVER_KINDS.iter().filter(|kind| report.of_kind(kind).next().is_none()).count();
    out.push(Promise::at_most("kinds of driver faults that never came", 0, Some(unseen as u64)));
    let by_ladder = report.of_kind(DRIVER).filter(|s| s.rung != Some(0)).count();
    out.push(Promise::at_most("driver faults that needed the ladder", 0, Some(by_ladder as u64)));
    let unrepaired = report.samples.iter().flatten().filter(|s| s.repaired.is_none()).count();
    out.push(Promise::at_most("faults not repaired", 0, Some(unrepaired as u64)));
    out.push(report.all_came("faults"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Fault;

    fn outcome(rung: u64, lost: u64) -> Outcome {
        let fault = |index: u64| Fault {
            kind: KINDS[(index % 3) as usize].into(),
            at: 1_000 * index,
            detected: Some(1_000 * index + 30),
            repaired: Some(1_000 * index + 90),
            rung: Some(rung),
            ..Fault::default()
        };
        let zero = MUST_BE_ZERO.iter().map(|name| ((*name).to_owned(), 0));
        let mut totals: Vec<(String, u64)> = zero.collect();
        totals[1].1 = lost;
        totals.extend(TOLD.iter().map(|name| ((*name).to_owned(), 9)));
        Outcome { faults: (0..3).map(fault).collect(), totals, ..Outcome::default() }
    }

    fn driver_outcome(rung: u64) -> Outcome {
        let mut outcome = outcome(rung, 0);
        let faults = DRIVER_KINDS.iter().zip(1..).map(|(kind, number)| Fault {
            kind: (*kind).into(),
            at: 1_000_000 * number,
            detected: Some(1_000_000 * number + 30),
            repaired: Some(1_000_000 * number + 90),
            rung: Some(rung),
            ..Fault::default()
        });
        outcome.faults = faults.collect();
        outcome
    }

    #[test]
    fn a_perfect_run_holds_and_each_flaw_breaks_it() {
        let with = |first: Outcome, driver: Outcome, runs| {
            judge(1, runs, &[first, outcome(2, 0), outcome(3, 0), driver])
        };
        let perfect = with(outcome(1, 0), driver_outcome(0), 17);
        let broken: Vec<_> = perfect.promises.into_iter().filter(|p| !p.holds).collect();
        assert!(broken.is_empty(), "{broken:?}");
        let lost = with(outcome(1, 1), driver_outcome(0), 17);
        assert!(!lost.holds(), "a lost byte");
        let missing = with(outcome(1, 0), driver_outcome(0), 18);
        assert!(!missing.holds(), "a fault that never came");
        let mut slow = outcome(1, 0);
        slow.faults[0].repaired = Some(2_000_000);
        assert!(!with(slow, driver_outcome(0), 17).holds(), "a slow repair");
        let unfinished = Outcome { totals: Vec::new(), ..outcome(1, 0) };
        assert!(!with(unfinished, driver_outcome(0), 17).holds());
        let ladder = with(outcome(1, 0), driver_outcome(1), 17);
        assert!(!ladder.holds(), "a driver's death that was the unit's, too");
        let mut late = driver_outcome(0);
        late.faults[1].detected = late.faults[1].detected.map(|at| at + 200_000);
        late.faults[1].repaired = late.faults[1].repaired.map(|at| at + 200_000);
        assert!(!with(outcome(1, 0), late, 17).holds(), "a crash that was seen late");
    }
}
