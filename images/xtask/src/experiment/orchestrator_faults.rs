//! Panics and traps in the orchestrator itself: its services and guests must not notice more than a
//! pause.

use anyhow::Result;

use super::Options;
use super::harness::{Boot, MUST_BE_ZERO, Outcome, Parts};
use crate::faults::Fault;
use crate::progress::Steps;
use crate::qemu::{Clock, Record};
use crate::report::{Promise, Report};

/// The experiment's name.
pub const NAME: &str = "orchestrator-faults";

/// Failures while the host boots: units are being built and a guest is being made. Boot takes some
/// hundred milliseconds.
const WHILE_BOOTING: u64 = 12;

/// Mean time between these: the orchestrator gives up on failures that come back at once.
const BOOTING_GAP_US: u64 = 16_000;

/// Failures per later boot.
const FAULTS_PER_BOOT: u64 = 60;

/// Mean time between these.
const GAP_US: u64 = 30_000;

/// Events before the first of these: the guest has booted and its script runs. A guest that boots
/// makes some 2,000 and then asks nothing for up to a second, which would count as a gap of ours.
const AFTER: u64 = 6_000;

/// Virtual time the script goes on after the last failure.
const QUIET_S: u64 = 2;

/// Who is broken.
const TARGET: &str = "orchestrator";

/// Makes the orchestrator fail `runs` times.
pub fn run(options: &Options, runs: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut parts = Parts::open(NAME, options.seed)?;
    let mut outcomes = Vec::new();
    let mut left = runs;
    while left > 0 {
        let is_booting = outcomes.is_empty();
        let count = left.min(if is_booting { WHILE_BOOTING } else { FAULTS_PER_BOOT });
        let seed = options.seed * 1000 + outcomes.len() as u64;
        let when = if is_booting { "while booting" } else { "in service" };
        let label = format!("{count} failures {when}, seed {seed}");
        let mut found = Outcome::default();
        steps.step(&label, || {
            found = parts.part(&label, || boot(seed, count, is_booting))?;
            let Outcome { faults, recoveries, .. } = &found;
            let verdict = if found.is_clean() { "all answers right" } else { "NOT CLEAN" };
            Ok(format!("{} failed, {recoveries} services recovered, {verdict}", faults.len()))
        })?;
        outcomes.push(found);
        left -= count;
    }
    parts.finish()?;
    Ok(judge(options.seed, runs, &outcomes))
}

fn boot(seed: u64, count: u64, is_booting: bool) -> Result<Outcome> {
    let (gap_us, after) = if is_booting { (BOOTING_GAP_US, 0) } else { (GAP_US, AFTER) };
    let seconds = (count * gap_us).div_ceil(1_000_000) + QUIET_S;
    let (clock, plan) = (Clock::Virtual, None);
    let boot = Boot { name: NAME, clock, cpus: 1, seed, seconds, clients: 1, plan };
    let word = format!("panic=count:{count};seed:{seed};gap_us:{gap_us};after:{after}");
    let (mut outcome, records) = boot.observe(&[word])?;
    outcome.faults = collect(&records);
    outcome.recoveries = named(&records, "recovered").count() as u64;
    Ok(outcome)
}

/// The orchestrator's own records of an event.
fn named<'a>(records: &'a [Record], event: &'a str) -> impl Iterator<Item = &'a Record> {
    records.iter().filter(move |r| r.source.is_empty() && r.is(event))
}

/// Every failure: detected when the recovery entry was reached, repaired when the first answer
/// reached a guest. One that was not recovered from has neither.
fn collect(records: &[Record]) -> Vec<Fault> {
    let mut faults: Vec<Fault> =
        named(records, "injected").filter_map(|record| Fault::injected(record, TARGET)).collect();
    faults.sort_by_key(|fault| fault.at);
    let ends: Vec<u64> = faults.iter().skip(1).map(|f| f.at).chain([u64::MAX]).collect();
    for (fault, end) in faults.iter_mut().zip(ends) {
        let mut entered = named(records, "self-recovered").filter_map(|r| r.number("entered"));
        fault.detected = entered.find(|entered| (fault.at..end).contains(entered));
        let answers = named(records, "relays-again").filter_map(|r| r.number("at"));
        let detected = fault.detected;
        fault.repaired = answers.filter(|at| detected.is_some_and(|from| *at >= from)).min();
    }
    faults
}

/// Turns the outcomes into samples and holds them to the promises.
fn judge(seed: u64, runs: u64, outcomes: &[Outcome]) -> Report {
    let mut report = Report::new(NAME, Clock::Virtual, seed, runs);
    report.samples = outcomes.iter().flat_map(|o| o.samples(TARGET)).map(Some).collect();
    report.note_missing(runs);
    for (index, outcome) in outcomes.iter().enumerate() {
        outcome.measure(&mut report, "ours");
        if index > 0 {
            for fault in &outcome.faults {
                let gap = fault.repaired.map_or(u64::MAX, |repaired| repaired - fault.at);
                report.measure("gap", "ours", gap);
            }
        }
    }
    report.promises.push(report.all_came("failures"));
    let lost = report.samples.iter().flatten().filter(|s| s.repaired.is_none()).count();
    report.promises.push(Promise::at_most("failures not recovered", 0, Some(lost as u64)));
    // While booting, a unit whose building was interrupted is built again.
    let touched = outcomes.iter().skip(1).map(|outcome| outcome.recoveries).sum();
    let name = "services that began another life while in service";
    report.promises.push(Promise::at_most(name, 0, Some(touched)));
    report.promise_none("script", &MUST_BE_ZERO);
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn record(value: Value) -> Record {
        Record { at: Duration::ZERO, source: String::new(), value }
    }

    fn told(at: u64) -> [Record; 3] {
        [
            record(json!({"event": "injected", "kind": "panic-explicit", "domid": 0, "at": at})),
            record(json!({"event": "self-recovered", "entered": at + 5, "ready": at + 8})),
            record(json!({"event": "relays-again", "at": at + 9})),
        ]
    }

    fn outcome(faults: Vec<Fault>) -> Outcome {
        let totals = MUST_BE_ZERO.iter().chain(&["requests", "doomed"]);
        let totals = totals.map(|name| ((*name).to_owned(), 0)).collect();
        Outcome { faults, totals, ..Outcome::default() }
    }

    #[test]
    fn each_failure_has_its_own_recovery() {
        let records: Vec<Record> = [told(100), told(200)].into_iter().flatten().collect();
        let all = collect(&records);
        assert_eq!((all[1].detected, all[1].repaired), (Some(205), Some(209)));
        // Without its own recovery the first one does not borrow the second one's.
        let all = collect(&[&records[..1], &records[3..]].concat());
        assert_eq!((all[0].detected, all[0].repaired), (None, None));
        assert_eq!((all[1].detected, all[1].repaired), (Some(205), Some(209)));
    }

    #[test]
    fn a_perfect_run_holds_and_each_flaw_breaks_it() {
        let fault = || collect(&told(100));
        let good = || vec![outcome(fault()), outcome(fault())];
        assert!(judge(1, 2, &good()).holds());
        assert!(!judge(1, 3, &good()).holds(), "one never came");
        let mut bad = good();
        bad[1].recoveries = 1;
        assert!(!judge(1, 2, &bad).holds(), "a service was touched");
        bad.swap(0, 1);
        assert!(judge(1, 2, &bad).holds(), "while booting it may be");
        bad[1].faults[0].repaired = None;
        assert!(!judge(1, 2, &bad).holds(), "not recovered");
        let mut bad = good();
        bad[0].totals.clear();
        assert!(!judge(1, 2, &bad).holds(), "a script that never ended");
    }
}
