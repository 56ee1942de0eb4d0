//! What an experiment writes: samples, measures, and promises computed from them.
//!
//! Times are nanoseconds of the stated clock.

pub mod stats;
pub mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::process::Tool;
use crate::qemu::Clock;

/// One injected fault.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Sample {
    /// Its kind: `crash-`, `hang-`, `corrupt-record-` or `flip-`, then detail.
    pub kind: String,
    /// The unit it hit.
    pub target: String,
    /// When it took effect.
    pub at: u64,
    /// When the watcher had decided; none if it never did.
    pub detected: Option<u64>,
    /// CPU time that the unit received from the fault to the decision, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    /// When a client had its first correct answer that needed the unit; none if it never had.
    pub repaired: Option<u64>,
    /// The rung of the ladder that repaired it.
    pub rung: Option<u64>,
    /// Recoveries up to the one that held, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tries: Option<u64>,
    /// Whether the unit went on without end, whatever the fault was meant to do.
    pub hung: bool,
    /// Requests lost.
    pub lost: u64,
    /// Requests executed twice.
    pub repeated: u64,
    /// Whether everything about it was right.
    pub ok: bool,
}

impl Sample {
    /// From the fault to its detection.
    pub fn detection(&self) -> Option<u64> {
        self.detected?.checked_sub(self.at)
    }

    /// From the fault to its detection, in CPU time that the unit received, where that is known.
    pub fn hang_detection(&self) -> Option<u64> {
        self.received.or_else(|| self.detection())
    }

    /// Whether the fault was to crash the unit, and it went on without end instead.
    pub fn hung_instead(&self) -> bool {
        self.hung && self.kind.starts_with("crash-")
    }

    /// Whether a lower rung, or the same one, was tried before and could not help.
    pub fn has_climbed(&self) -> bool {
        self.tries.is_some_and(|tries| tries > 1)
    }

    /// From the fault to the first correct answer.
    pub fn repair(&self) -> Option<u64> {
        self.repaired?.checked_sub(self.at)
    }

    /// From the detection to the first correct answer.
    pub fn recovery(&self) -> Option<u64> {
        self.repaired?.checked_sub(self.detected?)
    }
}

/// Something promised, and what was found.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Promise {
    /// What is promised.
    pub name: String,
    /// The largest value allowed.
    pub limit: u64,
    /// The value found; none if there was nothing to compute it from, which does not hold.
    pub value: Option<u64>,
    /// Whether it holds.
    pub holds: bool,
}

impl Promise {
    /// Promises that `value` is at most `limit`.
    pub fn at_most(name: impl Into<String>, limit: u64, value: Option<u64>) -> Promise {
        let holds = value.is_some_and(|value| value <= limit);
        Promise { name: name.into(), limit, value, holds }
    }

    /// Promises that the worst of `values` (see [`stats::worst`]) is at most `limit`.
    pub fn worst_of(name: &str, limit: u64, values: &[u64]) -> Promise {
        let name = format!("{name} {} of {}", stats::worst_name(values.len()), values.len());
        Promise::at_most(name, limit, stats::worst(values))
    }

    /// Promises that there are at least `wanted` of something: counts what is missing.
    pub fn enough(name: &str, wanted: u64, found: usize) -> Promise {
        let missing = wanted.saturating_sub(found as u64);
        Promise::at_most(format!("{name}: missing of {wanted}"), 0, Some(missing))
    }
}

/// Raw values of one measure, per host.
pub type Measure = BTreeMap<String, Vec<u64>>;

/// An experiment's result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Its name.
    pub experiment: String,
    /// `virtual` or `real`.
    pub clock: &'static str,
    /// Its seed.
    pub seed: u64,
    /// Faults injected, or repetitions.
    pub runs: u64,
    /// The commit it was built from.
    pub commit: String,
    /// Faults injected into our host; none for an instant that never came.
    pub samples: Vec<Option<Sample>>,
    /// Faults on other hosts.
    pub others: BTreeMap<String, Vec<Sample>>,
    /// Raw values.
    pub measures: BTreeMap<String, Measure>,
    /// What was promised.
    pub promises: Vec<Promise>,
}

impl Report {
    /// An empty report.
    pub fn new(experiment: &str, clock: Clock, seed: u64, runs: u64) -> Report {
        Report {
            experiment: experiment.to_owned(),
            clock: match clock {
                Clock::Virtual => "virtual",
                Clock::Real => "real",
            },
            seed,
            runs,
            commit: commit(),
            samples: Vec::new(),
            others: BTreeMap::new(),
            measures: BTreeMap::new(),
            promises: Vec::new(),
        }
    }

    /// The samples whose kind begins with `prefix`.
    pub fn of_kind<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().flatten().filter(move |sample| sample.kind.starts_with(prefix))
    }

    /// The promise that every planned sample was taken; `what` they are that `never came`.
    pub fn all_came(&self, what: &str) -> Promise {
        let never = self.samples.iter().filter(|sample| sample.is_none()).count();
        Promise::at_most(format!("{what} that never came"), 0, Some(never as u64))
    }

    /// Counts the samples that never came, of so many that were wanted.
    pub fn note_missing(&mut self, wanted: u64) {
        let missing = (wanted as usize).saturating_sub(self.samples.len());
        self.samples.extend(vec![None; missing]);
    }

    /// Promises of each of these measures of ours that its values add up to nothing; of one that
    /// was never taken, that does not hold.
    pub fn promise_none(&mut self, of: &str, measures: &[&str]) {
        for name in measures {
            let values = self.measures.get(*name).and_then(|hosts| hosts.get("ours"));
            let sum = values.map(|values| values.iter().copied().fold(0, u64::saturating_add));
            self.promises.push(Promise::at_most(format!("{of}: {name}"), 0, sum));
        }
    }

    /// Adds a value to a measure.
    pub fn measure(&mut self, name: &str, host: &str, value: u64) {
        let measure = self.measures.entry(name.to_owned()).or_default();
        measure.entry(host.to_owned()).or_default().push(value);
    }

    /// Whether every promise holds and every sample is as it must be.
    pub fn holds(&self) -> bool {
        let promises = self.promises.iter().all(|promise| promise.holds);
        let samples = self.samples.iter().flatten().all(|sample| sample.ok);
        promises && samples && !self.promises.is_empty()
    }

    /// Writes the report as one JSON object.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
    }
}

/// The commit that was checked out when this program first asked, marked when files differed from
/// it: what it builds, it builds from that.
pub fn commit() -> String {
    static COMMIT: OnceLock<String> = OnceLock::new();
    COMMIT.get_or_init(checked_out).clone()
}

fn checked_out() -> String {
    let git = |args: &[&str]| {
        let out = Tool::new("git").args(args).named("git-commit").output().ok()?;
        Some(String::from_utf8_lossy(&out).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "HEAD"]) else { return "unknown".into() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => head,
        _ => head + "+changes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(kind: &str, at: u64, detected: u64) -> Sample {
        let detected = Some(detected);
        Sample { kind: kind.into(), at, detected, ok: true, ..Sample::default() }
    }

    #[test]
    fn a_report_holds_only_when_everything_does() {
        let mut report = Report::new("t", Clock::Virtual, 1, 1);
        assert!(!report.holds(), "a report that promises nothing proves nothing");
        report.promises.push(Promise::at_most("a", 5, Some(5)));
        assert!(report.holds());
        report.samples.push(None);
        report.samples.push(Some(sample("crash-x", 10, 12)));
        assert!(report.holds());
        report.samples.push(Some(Sample::default()));
        assert!(!report.holds());
        report.samples.pop();
        report.promises.push(Promise::worst_of("nothing", 5, &[]));
        assert!(!report.holds(), "no values, no promise");
    }

    #[test]
    fn values_come_from_the_samples() {
        let mut report = Report::new("t", Clock::Virtual, 1, 1);
        report.samples = vec![Some(sample("crash-x", 10, 17)), Some(sample("hang-y", 5, 7)), None];
        let detections: Vec<u64> = report.of_kind("crash-").filter_map(Sample::detection).collect();
        assert_eq!(detections, [7]);
        assert_eq!(sample("x", 10, 7).detection(), None, "time does not run backwards");
        assert!(!Promise::enough("samples", 30, 29).holds);
        assert!(Promise::enough("samples", 30, 31).holds);
    }

    #[test]
    fn the_json_has_the_agreed_fields() {
        let mut report = Report::new("service-faults", Clock::Virtual, 3, 2);
        report.samples = vec![Some(sample("crash-x", 10, 17)), None];
        report.measure("gap", "ours", 9);
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["clock"], "virtual");
        assert_eq!(value["samples"][0]["detected"], 17);
        assert!(value["samples"][1].is_null());
        assert_eq!(value["measures"]["gap"]["ours"][0], 9);
        assert!(value["promises"].is_array() && value["others"].is_object());
    }
}
