//! Faults in net-uk while a guest sends a checked TCP stream and pings to the outside.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use system::Role;

use super::Options;
use super::harness::{Guest, Outcome, Parts, follow};
use crate::faults::{Plan, Target};
use crate::guest::variant;
use crate::progress::Steps;
use crate::qemu::{Clock, ECHO, GATEWAY, Machine};
use crate::report::{Promise, Report};

/// The experiment's name.
pub const NAME: &str = "net-faults";

/// The unit that is broken.
const UNIT: &str = "net-uk";

/// Kinds of faults, in turn.
const KINDS: [&str; 3] = ["crash-undefined", "crash-wild-jump", "hang-loop"];

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

/// Injects `runs` faults, a third of them from each rung on.
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
    parts.finish()?;
    Ok(judge(options.seed, runs, &outcomes))
}

/// One boot whose ladder begins at `rung`.
fn boot(seed: u64, count: u64, rung: u64) -> Result<Outcome> {
    let seconds = (count * GAP_US).div_ceil(1_000_000) + QUIET_S;
    let (kinds, target) = (KINDS.to_vec(), Target::First);
    let plan = Plan { kinds, count, seed, gap_us: GAP_US, after: AFTER, during: None, target };
    let mut machine = Machine::host(&format!("experiment-{NAME}"), Clock::Virtual);
    machine.has_echo = true;
    let work = format!("run:xsload,net,{ECHO},{GATEWAY},{seconds}");
    machine.archive = Some(variant::archive(NAME, &work)?);
    machine.orchestrator_args.push(plan.word_for(Role::Net)?);
    machine.orchestrator_args.push(format!("rung={rung}"));
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
    report.note_missing(runs);
    for outcome in outcomes {
        for field in TOLD.iter().chain(&MUST_BE_ZERO) {
            report.measure(field, "ours", outcome.total(field).unwrap_or(u64::MAX));
        }
    }
    report.promises = promises(&report);
    report.promise_none("stream", &MUST_BE_ZERO);
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

    #[test]
    fn a_perfect_run_holds_and_each_flaw_breaks_it() {
        let perfect = [outcome(1, 0), outcome(2, 0), outcome(3, 0)];
        let broken: Vec<_> =
            judge(1, 9, &perfect).promises.into_iter().filter(|p| !p.holds).collect();
        assert!(broken.is_empty(), "{broken:?}");
        assert!(
            !judge(1, 9, &[outcome(1, 1), outcome(2, 0), outcome(3, 0)]).holds(),
            "a lost byte"
        );
        assert!(!judge(1, 10, &perfect).holds(), "a fault that never came");
        let mut slow = outcome(1, 0);
        slow.faults[0].repaired = Some(2_000_000);
        assert!(!judge(1, 9, &[slow, outcome(2, 0), outcome(3, 0)]).holds(), "a slow repair");
        let unfinished = Outcome { totals: Vec::new(), ..outcome(1, 0) };
        assert!(!judge(1, 9, &[unfinished, outcome(2, 0), outcome(3, 0)]).holds());
    }
}
