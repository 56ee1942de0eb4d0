//! Faults in the replica of the XenStore that leads, while a guest is created: the creation
//! succeeds. Another guest runs a checked script through its own kernel meanwhile.

use std::fmt;

use anyhow::Result;

use super::Options;
use super::harness::{Boot, MUST_BE_ZERO, Outcome, UNIT};
use crate::faults::{During, Fault, Plan, Target};
use crate::progress::Steps;
use crate::qemu::{Clock, Record};
use crate::report::{Promise, Report};

/// The experiment's name.
pub const NAME: &str = "xenstore-during-create";

/// Kinds of faults, in turn: one boot for each sort.
const SORTS: [(&str, &[&str]); 2] = [
    ("crash", &["crash-undefined", "crash-wild-jump", "crash-wild-stack"]),
    (
        "corruption",
        &[
            "corrupt-record-node",
            "corrupt-record-area",
            "corrupt-record-slot",
            "corrupt-record-header",
        ],
    ),
];

/// Mean time between two faults, and the longest from the beginning of a creation to its fault: it
/// takes about as long, so that most of them see one, and few see two.
const GAP_US: u64 = 300_000;

/// More faults than creations that are to see one: some may see two.
const SPARE: u64 = 3;

/// Virtual time of the script until the first creations, for each fault (a guest has to boot and to
/// end before it is created again), and after the last one.
const FIRST_S: u64 = 5;
const FAULT_S: u64 = 2;
const QUIET_S: u64 = 2;

/// Work handed to the store before the first fault: the script runs.
const AFTER: u64 = 1_000;

/// Memory of the emulated machine: four guests beside the services.
const MEMORY_MIB: u32 = 1_536;

/// A guest that came to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Creation {
    began: u64,
    running: u64,
}

impl Creation {
    /// What tool-uk tells of one.
    fn of(record: &Record) -> Option<Self> {
        let is_created = record.source == "(tool-uk)" && record.is("created");
        let told = || Some((record.number("began")?, record.number("running")?));
        told().filter(|_| is_created).map(|(began, running)| Self { began, running })
    }

    fn saw(&self, fault: &Fault) -> bool {
        (self.began..=self.running).contains(&fault.at)
    }
}

/// One boot.
struct Sort {
    name: &'static str,
    outcome: Outcome,
    creations: Vec<Creation>,
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} creations", self.outcome, self.creations.len())
    }
}

/// Injects `runs` faults of each sort, each in a creation.
pub fn run(options: &Options, runs: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut sorts = Vec::new();
    for (seed, (name, kinds)) in (options.seed * 1000..).zip(SORTS) {
        let label = format!("{runs} creations with a {name} in each, seed {seed}");
        sorts.push(steps.step(&label, || boot(seed, runs + SPARE, name, kinds))?);
    }
    Ok(judge(options.seed, runs, &sorts))
}

fn boot(seed: u64, count: u64, name: &'static str, kinds: &[&'static str]) -> Result<Sort> {
    let plan = Plan {
        kinds: kinds.to_vec(),
        count,
        seed,
        gap_us: GAP_US,
        after: AFTER,
        during: Some(During::Create),
        target: Target::Leader,
    };
    let (clock, plan) = (Clock::Virtual, Some(plan));
    let seconds = FIRST_S + count * FAULT_S + QUIET_S;
    let boot = Boot { name: NAME, clock, cpus: 1, seed, seconds, clients: 1, plan };
    let mut machine = boot.machine(&[], "")?;
    machine.memory_mib = MEMORY_MIB;
    let (outcome, records) = boot.follow_script(&machine)?;
    let creations = records.iter().filter_map(Creation::of).collect();
    Ok(Sort { name, outcome, creations })
}

/// Turns the boots into samples and holds them to the promises.
fn judge(seed: u64, runs: u64, sorts: &[Sort]) -> Report {
    let wanted = SORTS.len() as u64 * (runs + SPARE);
    let mut report = Report::new(NAME, Clock::Virtual, seed, wanted);
    for Sort { name, outcome, creations } in sorts {
        let samples = outcome.samples(UNIT);
        let with_fault = |one: &&Creation| outcome.faults.iter().any(|fault| one.saw(fault));
        let succeeded = |fault: &&Fault| creations.iter().any(|one| one.saw(fault));
        let failed = outcome.faults.iter().filter(|fault| !succeeded(fault)).count();
        let disturbed = creations.iter().filter(with_fault).count();
        for one in creations {
            let which = if with_fault(&one) { *name } else { "no fault" };
            report.measure("creation, ns", which, one.running - one.began);
        }
        report.promises.push(Promise::enough(
            &format!("creations that succeeded with a {name} in each"),
            runs,
            disturbed,
        ));
        let what = format!("creations that failed with a {name} in each");
        report.promises.push(Promise::at_most(what, 0, Some(failed as u64)));
        report.samples.extend(samples.into_iter().map(Some));
        outcome.measure(&mut report, "ours");
    }
    report.note_missing(wanted);
    report.promises.push(report.all_came("faults"));
    report.promise_none("script", &MUST_BE_ZERO);
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: u64 = 10;

    fn sort((name, kinds): (&'static str, &[&str])) -> Sort {
        let fault = |index: u64| Fault {
            kind: kinds[index as usize % kinds.len()].into(),
            at: 1_000 * index + 400,
            detected: Some(1_000 * index + 430),
            repaired: Some(1_000 * index + 490),
            rung: Some(0),
            ..Fault::default()
        };
        let mut totals: Vec<_> = MUST_BE_ZERO.iter().map(|name| ((*name).to_owned(), 0)).collect();
        totals.extend([("requests".into(), 9), ("doomed".into(), 0)]);
        let faults = (0..RUNS + SPARE).map(fault).collect();
        let creation = |index| Creation { began: 1_000 * index, running: 1_000 * index + 800 };
        let outcome = Outcome { faults, totals, ..Outcome::default() };
        Sort { name, outcome, creations: (0..RUNS + 5).map(creation).collect() }
    }

    #[test]
    fn a_perfect_run_holds_and_each_flaw_breaks_it() {
        let holds = |spoil: fn(&mut Sort)| {
            let mut sorts = SORTS.map(sort);
            spoil(&mut sorts[1]);
            judge(1, RUNS, &sorts).holds()
        };
        assert!(holds(|_| ()));
        assert!(!holds(|of| of.creations[4].running = 4_100), "a creation that failed");
        assert!(!holds(|of| of.outcome.faults[4].at += 450), "a fault outside of any");
        let twice = |of: &mut Sort, faults: usize| {
            of.outcome.faults[..faults].iter_mut().for_each(|fault| fault.at = 400);
        };
        let two_in_one = |faults| {
            let mut sorts = SORTS.map(sort);
            twice(&mut sorts[0], faults);
            judge(1, RUNS, &sorts).holds()
        };
        assert!(two_in_one(4) && !two_in_one(5), "ten creations are to see one");
        assert!(!holds(|of| drop(of.outcome.faults.pop())), "a fault that never came");
        assert!(!holds(|of| of.outcome.faults[3].repaired = None), "a fault not repaired");
        assert!(!holds(|of| of.outcome.totals[1].1 = 1), "a lost request");
        assert!(!holds(|of| of.outcome.totals.clear()), "a script that never ended");
        assert!(!judge(1, RUNS, &[]).holds(), "nothing at all");
    }

    #[test]
    fn only_tool_uk_tells_of_creations() {
        let told = |source: &str, event: &str| {
            let value = serde_json::json!({ "event": event, "began": 5, "running": 9 });
            Creation::of(&Record { at: std::time::Duration::ZERO, source: source.into(), value })
        };
        assert_eq!(told("(tool-uk)", "created"), Some(Creation { began: 5, running: 9 }));
        assert_eq!(told("(g17)", "created"), None);
        assert_eq!(told("(tool-uk)", "recovered"), None);
    }
}
