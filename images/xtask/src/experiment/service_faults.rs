//! Faults in xenstore-uk while a guest runs a checked script through its own kernel.

use anyhow::Result;

use super::Options;
use super::harness::{Boot, MUST_BE_ZERO, Outcome, Parts};
use crate::faults::Plan;
use crate::progress::Steps;
use crate::qemu::Clock;
use crate::report::{Promise, Report, Sample};

/// The experiment's name.
pub const NAME: &str = "service-faults";

/// Kinds of faults, in turn.
const KINDS: [&str; 6] = [
    "crash-wild-jump",
    "crash-undefined",
    "crash-wild-stack",
    "crash-wild-registers",
    "hang-loop",
    "hang-paused",
];

/// Faults per boot: a boot costs as much as some twenty faults.
const FAULTS_PER_BOOT: u64 = 60;

/// Mean time between faults. Half of it is the shortest: more than `healthy_ms` of the system
/// description, so that each fault meets the lowest rung.
const GAP_US: u64 = 240_000;

/// Of so many faults, one is repaired by rung 2 from the start, and one by rung 3.
const HIGHER_RUNGS: u64 = 5;

/// Work handed to the store before the first fault: the guest has booted and its script runs.
const AFTER: u64 = 1_000;

/// Virtual time the script goes on after the last fault.
const QUIET_S: u64 = 3;

/// Promises, in nanoseconds from the fault (docs/SPECIFICATION.md).
const CRASH_DETECTED_NS: u64 = 50_000;
const HANG_DETECTED_NS: u64 = 1_000_000;
const MICRORESET_NS: u64 = 200_000;
const MICROREBOOT_NS: u64 = 1_000_000;
const REBUILD_NS: u64 = 15_000_000;

/// Samples that each kind needs.
const PER_KIND: u64 = 30;

/// Injects `runs` faults.
pub fn run(options: &Options, runs: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut parts = Parts::open(NAME, options.seed)?;
    let mut outcomes = Vec::new();
    let higher = runs / HIGHER_RUNGS;
    for (rung, mut left) in [(1, runs - 2 * higher), (2, higher), (3, higher)] {
        while left > 0 {
            let count = left.min(FAULTS_PER_BOOT);
            let seed = options.seed * 1000 + outcomes.len() as u64;
            let label = format!("{count} faults from rung {rung}, seed {seed}");
            let mut found = Outcome::default();
            steps.step(&label, || {
                found = parts.part(&label, || boot(seed, count, rung))?;
                let Outcome { faults, recoveries, .. } = &found;
                let verdict = if found.is_clean() { "all answers right" } else { "NOT CLEAN" };
                Ok(format!("{} injected, {recoveries} recoveries, {verdict}", faults.len()))
            })?;
            outcomes.push(found);
            left -= count;
        }
    }
    parts.finish()?;
    Ok(judge(options.seed, runs, &outcomes))
}

/// One boot whose ladder begins at `rung`.
fn boot(seed: u64, count: u64, rung: u64) -> Result<Outcome> {
    let seconds = (count * GAP_US).div_ceil(1_000_000) + QUIET_S;
    let plan = Plan { kinds: KINDS.to_vec(), count, seed, gap_us: GAP_US, after: AFTER };
    let (clock, plan) = (Clock::Virtual, Some(plan));
    let boot = Boot { name: NAME, clock, cpus: 1, seed, seconds, clients: 1, plan };
    Ok(boot.observe(&[format!("rung={rung}")])?.0)
}

/// Turns the outcomes into samples and holds them to the promises.
fn judge(seed: u64, runs: u64, outcomes: &[Outcome]) -> Report {
    let mut report = Report::new(NAME, Clock::Virtual, seed, runs);
    report.samples = outcomes.iter().flat_map(Outcome::samples).map(Some).collect();
    let missing = (runs as usize).saturating_sub(report.samples.len());
    report.samples.extend(vec![None; missing]);
    outcomes.iter().for_each(|outcome| outcome.measure(&mut report, "ours"));
    report.promises = promises(&report);
    for field in MUST_BE_ZERO {
        let values = report.measures[field]["ours"].iter();
        let sum = values.fold(0, |sum: u64, value| sum.saturating_add(*value));
        report.promises.push(Promise::at_most(format!("script: {field}"), 0, Some(sum)));
    }
    report
}

fn promises(report: &Report) -> Vec<Promise> {
    let mut out = Vec::new();
    for kind in KINDS {
        let all: Vec<&Sample> = report.of_kind(kind).collect();
        let limit = if kind.starts_with("crash-") { CRASH_DETECTED_NS } else { HANG_DETECTED_NS };
        let detected: Vec<u64> = all.iter().filter_map(|s| s.detection()).collect();
        out.push(Promise::enough(kind, PER_KIND.min(report.runs), all.len()));
        out.push(Promise::worst_of(&format!("{kind} detected, ns,"), limit, &detected));
        for (rung, limit) in [(1, MICRORESET_NS), (2, MICROREBOOT_NS), (3, REBUILD_NS)] {
            // A hang's repair is counted from its detection, which has its own limit.
            let from_fault = kind.starts_with("crash-");
            let spent = |s: &&Sample| if from_fault { s.repair() } else { s.recovery() };
            let on_rung = all.iter().copied().filter(|s| s.rung == Some(rung));
            let values: Vec<u64> = on_rung.filter_map(|s| spent(&s)).collect();
            if !values.is_empty() {
                let name = format!("{kind} repaired by rung {rung}, ns,");
                out.push(Promise::worst_of(&name, limit, &values));
            }
        }
    }
    let unrepaired = report.samples.iter().flatten().filter(|s| s.repaired.is_none()).count();
    out.push(Promise::at_most("faults not repaired", 0, Some(unrepaired as u64)));
    let never = report.samples.iter().filter(|sample| sample.is_none()).count();
    out.push(Promise::at_most("faults that never came", 0, Some(never as u64)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Fault;

    fn outcome(faults: u64, lost: u64) -> Outcome {
        let fault = |index: u64| Fault {
            kind: KINDS[(index % 6) as usize].into(),
            at: 1_000 * index,
            detected: Some(1_000 * index + 30),
            repaired: Some(1_000 * index + 90),
            rung: Some(1),
        };
        let mut totals: Vec<(String, u64)> =
            MUST_BE_ZERO.iter().map(|name| ((*name).to_owned(), 0)).collect();
        totals[1].1 = lost;
        totals.extend([("requests".into(), 9), ("doomed".into(), 0)]);
        Outcome { faults: (0..faults).map(fault).collect(), totals, ..Outcome::default() }
    }

    #[test]
    fn a_perfect_run_holds_and_each_flaw_breaks_it() {
        let perfect = judge(1, 300, &[outcome(300, 0)]);
        let broken: Vec<_> = perfect.promises.iter().filter(|p| !p.holds).collect();
        assert!(perfect.holds(), "{broken:?}");
        assert!(!judge(1, 300, &[outcome(300, 1)]).holds(), "a lost request");
        assert!(!judge(1, 300, &[outcome(299, 0)]).holds(), "a fault that never came");
        let mut late = outcome(300, 0);
        late.faults[1].detected = Some(60_000);
        assert!(!judge(1, 300, &[late]).holds(), "a late detection");
        let mut unrepaired = outcome(300, 0);
        unrepaired.faults[4].repaired = None;
        assert!(!judge(1, 300, &[unrepaired]).holds(), "a fault not repaired");
        let unfinished = Outcome { totals: Vec::new(), ..outcome(300, 0) };
        assert!(!judge(1, 300, &[unfinished]).holds(), "a script that never ended");
    }
}
