//! Faults in the replica of the XenStore that leads, while a guest runs a checked script through
//! its own kernel: another replica serves.

use anyhow::Result;

use super::Options;
use super::harness::{Boot, MUST_BE_ZERO, Outcome, Parts, UNIT};
use crate::faults::{Plan, Target};
use crate::progress::Steps;
use crate::qemu::Clock;
use crate::report::{Promise, Report, Sample};

/// The experiment's name.
pub const NAME: &str = "xenstore-faults";

/// Kinds of faults, in turn.
const KINDS: [&str; 4] = ["crash-wild-jump", "crash-undefined", "crash-wild-stack", "hang-loop"];

/// Faults per boot: a boot costs as much as some twenty faults.
const FAULTS_PER_BOOT: u64 = 60;

/// Mean time between faults. Half of it is the shortest: more than `healthy_ms` of the system
/// description, so that a replica that failed is forgiven before it leads again.
const GAP_US: u64 = 240_000;

/// Work handed to the store before the first fault: the guest has booted and its script runs.
const AFTER: u64 = 1_000;

/// Virtual time the script goes on after the last fault.
const QUIET_S: u64 = 3;

/// Promises, in nanoseconds from the fault (docs/SPECIFICATION.md).
const CRASH_GAP_NS: u64 = 1_000_000;
const HANG_GAP_NS: u64 = 2_500_000;

/// The rung of a fail-over.
const FAIL_OVER: u64 = 0;

/// Injects `runs` faults.
pub fn run(options: &Options, runs: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut parts = Parts::open(NAME, options.seed)?;
    let mut outcomes = Vec::new();
    let mut left = runs;
    while left > 0 {
        let count = left.min(FAULTS_PER_BOOT);
        let seed = options.seed * 1000 + outcomes.len() as u64;
        let label = format!("{count} faults, seed {seed}");
        outcomes.push(steps.step(&label, || parts.part(&label, || boot(seed, count).run()))?);
        left -= count;
    }
    parts.finish()?;
    Ok(judge(options.seed, runs, &outcomes))
}

fn boot(seed: u64, count: u64) -> Boot<'static> {
    let seconds = (count * GAP_US).div_ceil(1_000_000) + QUIET_S;
    let kinds = KINDS.to_vec();
    let target = Target::Leader;
    let plan =
        Some(Plan { kinds, count, seed, gap_us: GAP_US, after: AFTER, during: None, target });
    Boot { name: NAME, clock: Clock::Virtual, cpus: 1, seed, seconds, clients: 1, plan }
}

/// Turns the outcomes into samples and holds them to the promises.
fn judge(seed: u64, runs: u64, outcomes: &[Outcome]) -> Report {
    let mut report = Report::new(NAME, Clock::Virtual, seed, runs);
    report.samples.extend(outcomes.iter().flat_map(|o| o.samples(UNIT)).map(Some));
    outcomes.iter().for_each(|outcome| outcome.measure(&mut report, "ours"));
    report.note_missing(runs);
    let mut promises = Vec::new();
    for kind in KINDS {
        let all: Vec<&Sample> = report.of_kind(kind).collect();
        let limit = if kind.starts_with("crash-") { CRASH_GAP_NS } else { HANG_GAP_NS };
        let gaps: Vec<u64> = all.iter().filter_map(|sample| sample.repair()).collect();
        promises.push(Promise::worst_of(&format!("{kind} answered again, ns,"), limit, &gaps));
        let others = all.iter().filter(|sample| sample.rung != Some(FAIL_OVER)).count() as u64;
        promises.push(Promise::at_most(format!("{kind} without a fail-over"), 0, Some(others)));
    }
    promises.push(report.all_came("faults"));
    report.promises = promises;
    report.promise_none("script", &MUST_BE_ZERO);
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Fault;

    fn outcome(rung: u64, gap: u64, lost: u64) -> Outcome {
        let fault = |index: u64| Fault {
            kind: KINDS[index as usize % KINDS.len()].into(),
            at: 1_000 * index,
            detected: Some(1_000 * index + 30),
            repaired: Some(1_000 * index + gap),
            rung: Some(rung),
            ..Fault::default()
        };
        let mut totals: Vec<(String, u64)> =
            MUST_BE_ZERO.iter().map(|name| ((*name).to_owned(), 0)).collect();
        totals[1].1 = lost;
        totals.extend([("requests".into(), 9), ("doomed".into(), 0)]);
        Outcome { faults: (0..40).map(fault).collect(), totals, ..Outcome::default() }
    }

    #[test]
    fn a_perfect_run_holds_and_each_flaw_breaks_it() {
        let holds = |outcome: Outcome| judge(1, 40, &[outcome]).holds();
        assert!(holds(outcome(0, 400_000, 0)));
        assert!(!holds(outcome(0, 400_000, 1)), "a lost request");
        assert!(!holds(outcome(0, 1_000_001, 0)), "a long gap");
        assert!(!holds(outcome(1, 400_000, 0)), "a recovery in the place of a fail-over");
        assert!(!judge(1, 41, &[outcome(0, 400_000, 0)]).holds(), "a fault that never came");
    }
}
