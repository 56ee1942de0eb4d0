//! Faults in xenstore-uk while a guest runs a checked script through its own kernel.

use std::time::Duration;

use anyhow::{Result, bail};

use super::Options;
use crate::faults::{self, Fault, Plan};
use crate::guest::variant;
use crate::progress::Steps;
use crate::qemu::{Clock, Machine, Record, Vm};
use crate::report::{Promise, Report, Sample};

/// The unit under test.
const UNIT: &str = "xenstore-uk";

/// Kinds of faults, in turn.
const KINDS: [&str; 6] = [
    "crash-wild-jump",
    "crash-undefined",
    "crash-wild-stack",
    "crash-wild-registers",
    "hang-loop",
    "hang-paused",
];

/// Mean time between faults: the ladder forgets a failure only after a while of good service, and
/// most faults are meant to meet its lowest rung.
const GAP_US: u64 = 60_000;

/// Work handed to the store before the first fault: the guest has booted and its script runs.
const AFTER: u64 = 1_000;

/// Virtual time the script goes on after the last fault.
const QUIET_S: u64 = 3;

/// Host time that a busy virtual second may take, with room to spare.
const HOST_SECONDS_PER_SECOND: u64 = 30;

/// Promises, in nanoseconds from the fault (docs/SPECIFICATION.md).
const CRASH_DETECTED_NS: u64 = 50_000;
const HANG_DETECTED_NS: u64 = 1_000_000;
const MICRORESET_NS: u64 = 200_000;
const MICROREBOOT_NS: u64 = 1_000_000;
const REBUILD_NS: u64 = 15_000_000;

/// Samples that each kind needs.
const PER_KIND: u64 = 30;

/// Runs `runs` faults.
pub fn run(options: &Options, runs: u64) -> Result<Report> {
    let seconds = (runs * GAP_US).div_ceil(1_000_000) + QUIET_S;
    let work = format!("script:--seed,{},--seconds,{seconds},--event-limit-s,2", options.seed);
    let mut machine = Machine::host("experiment-service-faults", Clock::Virtual);
    machine.archive = Some(variant::archive("service-faults", &work)?);
    let kinds = KINDS.to_vec();
    let plan = Plan { kinds, count: runs, seed: options.seed, gap_us: GAP_US, after: AFTER };
    machine.orchestrator_args = vec![plan.word()?];
    let limit = Duration::from_secs(120 + seconds * HOST_SECONDS_PER_SECOND);
    let steps = Steps::new("experiment");
    let mut records = Vec::new();
    steps.step(&format!("{runs} faults"), || {
        let mut vm = Vm::start(&machine, limit)?;
        vm.wait_for("the end of the guest's script", limit, |_, record| {
            record.filter(|r| r.is("script-total") && !r.source.is_empty()).map(|_| ())
        })?;
        records = vm.records().to_vec();
        vm.kill()?;
        Ok(format!("{} records", records.len()))
    })?;
    judge(options.seed, runs, &records)
}

/// Turns the console's records into samples and holds them to the promises.
fn judge(seed: u64, runs: u64, records: &[Record]) -> Result<Report> {
    let mut report = Report::new("service-faults", Clock::Virtual, seed, runs);
    let totals = records.iter().rev().find(|r| r.is("script-total"));
    let Some(totals) = totals else { bail!("the guest's script left no totals") };
    let count = |field: &str| totals.number(field).unwrap_or(u64::MAX);
    let samples = samples(records);
    let missing = (runs as usize).saturating_sub(samples.len());
    report.samples = samples.into_iter().map(Some).collect();
    report.samples.extend(vec![None; missing]);
    let is_clean = totals.value["ok"] == true;
    // The script cannot say which fault lost a request: the last one answers for all.
    if let Some(last) = report.samples.iter_mut().flatten().last()
        && !is_clean
    {
        last.lost = count("lost") + count("events_lost");
        last.repeated = count("repeated");
        last.ok = false;
    }
    for field in ["requests", "wrong", "lost", "repeated", "events_lost", "events_stray"] {
        report.measure(field, "ours", count(field));
    }
    report.promises = promises(&report);
    for field in ["wrong", "lost", "repeated", "events_lost", "events_stray"] {
        report.promises.push(Promise::at_most(format!("script: {field}"), 0, Some(count(field))));
    }
    Ok(report)
}

/// Each injected fault with what became of it.
fn samples(records: &[Record]) -> Vec<Sample> {
    let sample = |fault: Fault| Sample {
        ok: fault.repaired.is_some(),
        kind: fault.kind,
        target: UNIT.to_owned(),
        at: fault.at,
        detected: fault.detected,
        repaired: fault.repaired,
        rung: fault.rung,
        ..Sample::default()
    };
    faults::collect(records, UNIT).into_iter().map(sample).collect()
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
            let values: Vec<u64> = all
                .iter()
                .copied()
                .filter(|s| s.rung == Some(rung))
                .filter_map(|s| spent(&s))
                .collect();
            if !values.is_empty() {
                let name = format!("{kind} repaired by rung {rung}, ns,");
                out.push(Promise::worst_of(&name, limit, &values));
            }
        }
    }
    let unrepaired = report.samples.iter().flatten().filter(|s| s.repaired.is_none()).count();
    out.push(Promise::at_most("faults not repaired", 0, Some(unrepaired as u64)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn record(source: &str, value: Value) -> Record {
        Record { at: Duration::ZERO, source: source.into(), value }
    }

    fn injected(number: u64, kind: &str, at: u64) -> Record {
        record("", json!({ "event": "injected", "number": number, "kind": kind, "at": at }))
    }

    fn recovered(source: &str, rung: u64, detected: u64, repaired: u64) -> Record {
        record(
            source,
            json!({
                "event": "recovered",
                "unit": UNIT,
                "rung": rung,
                "detected": detected,
                "repaired": repaired,
            }),
        )
    }

    fn run_with(lost: u64) -> Vec<Record> {
        let total = json!({
            "event": "script-total", "requests": 9, "wrong": 0, "lost": lost, "repeated": 0,
            "events_lost": 0, "events_stray": 0, "ok": lost == 0,
        });
        vec![
            injected(0, "crash-undefined", 100),
            recovered("", 1, 130, 190),
            injected(1, "hang-loop", 500),
            recovered("", 1, 700, 0),
            recovered("", 2, 900, 990),
            recovered("(g16)", 1, 101, 102),
            record("(g16)", total),
        ]
    }

    #[test]
    fn faults_are_paired_with_their_recoveries_and_a_guests_lies_ignored() {
        let report = judge(1, 2, &run_with(0)).unwrap();
        let seen: Vec<_> = report
            .samples
            .iter()
            .flatten()
            .map(|s| (s.detection(), s.repair(), s.rung, s.ok))
            .collect();
        let first = (Some(30), Some(90), Some(1), true);
        let second = (Some(200), Some(490), Some(2), true);
        assert_eq!(seen, [first, second]);
        assert!(!report.holds(), "six kinds were promised, two came");
    }

    #[test]
    fn a_lost_request_breaks_a_promise_and_a_sample() {
        let report = judge(1, 3, &run_with(1)).unwrap();
        assert_eq!(report.samples.len(), 3);
        assert!(report.samples[2].is_none());
        assert!(report.samples[1].as_ref().is_some_and(|s| !s.ok && s.lost == 1));
        assert!(report.promises.iter().any(|p| p.name == "script: lost" && !p.holds));
    }
}
