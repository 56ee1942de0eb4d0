//! Crashes of xenstore-uk while the orchestrator has longer work: it creates a guest of 256 MiB, or
//! rebuilds another unit. A guest runs a checked script through its own kernel meanwhile.

use anyhow::Result;
use system::Role;

use super::Options;
use super::harness::{Boot, MUST_BE_ZERO, Outcome, Parts, UNIT};
use crate::build;
use crate::faults::{During, Fault, Plan, Target};
use crate::progress::Steps;
use crate::qemu::Clock;
use crate::report::{Promise, Report, Sample};

/// The experiment's name.
pub const NAME: &str = "busy-faults";

/// Kinds of faults, in turn.
const KINDS: [&str; 4] =
    ["crash-undefined", "crash-wild-jump", "crash-wild-stack", "crash-wild-registers"];

/// What the orchestrator is in the middle of, in turn; the last one needs another host.
const SPANS: [During; 3] =
    [During::Rebuild(Role::Net), During::Rebuild(Role::Tool), During::Create];

/// Faults per boot while guests are created: they are given up after five ends in a row each.
const CREATE_FAULTS: u64 = 20;
/// Mean time between two faults in one creation, which takes some 0.35 s. Half of it is the
/// shortest: more than `min_run_ms` of the system description.
const CREATE_GAP_US: u64 = 60_000;
/// Virtual time until the guests have ended for the first time, and what a fault takes from then
/// on, at most.
const CREATE_FIRST_MS: u64 = 5_000;
const CREATE_MS: u64 = 800;

/// Faults per boot while a unit is rebuilt.
const REBUILD_FAULTS: u64 = 15;
/// Mean time between a rebuild and the next failures of its unit. Half of it is the shortest: more
/// than `healthy_ms`, so that the unit's ladder does not end in a global restart.
const REBUILD_GAP_US: u64 = 240_000;
/// Virtual time that a fault takes then, and the script's after the last one. In most rebuilds the
/// store is never caught at work, as the guests hardly run meanwhile.
const REBUILD_S: u64 = 3;
const QUIET_S: u64 = 3;

/// Work handed to the store before the first fault: the script runs.
const AFTER: u64 = 1_000;

/// Memory of the emulated machine: three guests beside the services.
const MEMORY_MIB: u32 = 1_280;

/// Clients of the script in the guest: the more of them, the more often a rebuild finds the store
/// at work.
const CLIENTS: u64 = 4;

/// Promise, in nanoseconds from the fault (docs/SPECIFICATION.md).
const CRASH_DETECTED_NS: u64 = 50_000;

/// Samples that each kind of span needs.
const PER_SPAN: u64 = 30;

/// Injects `runs` faults in each kind of span.
pub fn run(options: &Options, runs: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut parts = Parts::open(NAME, options.seed)?;
    let mut outcomes = Vec::new();
    for during in SPANS {
        let most = if during == During::Create {
            build::run_system("busy")?;
            CREATE_FAULTS
        } else {
            REBUILD_FAULTS
        };
        let mut left = share(during, runs);
        while left > 0 {
            let count = left.min(most);
            let seed = options.seed * 1000 + outcomes.len() as u64;
            let label = format!("{count} faults in {during:?}, seed {seed}");
            let work = || parts.part(&label, || boot(seed, count, during));
            outcomes.push((during, steps.step(&label, work)?));
            left -= count;
        }
    }
    parts.finish()?;
    Ok(judge(options.seed, runs, &outcomes))
}

/// Of so many faults in each kind of span, how many come in this one: two units share the rebuilds.
fn share(during: During, runs: u64) -> u64 {
    match during {
        During::Create => runs,
        During::Rebuild(Role::Net) => runs / 2,
        During::Rebuild(_) => runs - runs / 2,
    }
}

/// The span's name in results.
fn target(during: During) -> String {
    format!("{UNIT}/{}", during.word())
}

/// One boot.
fn boot(seed: u64, count: u64, during: During) -> Result<Outcome> {
    let (gap_us, seconds) = match during {
        During::Create => {
            let ms = CREATE_FIRST_MS + count * CREATE_MS;
            (CREATE_GAP_US, ms.div_ceil(1_000))
        }
        During::Rebuild(_) => (REBUILD_GAP_US, count * REBUILD_S + QUIET_S),
    };
    let (kinds, during) = (KINDS.to_vec(), Some(during));
    let target = Target::First;
    let plan = Some(Plan { kinds, count, seed, gap_us, after: AFTER, during, target });
    let clock = Clock::Virtual;
    let boot = Boot { name: NAME, clock, cpus: 1, seed, seconds, clients: CLIENTS, plan };
    let mut machine = boot.machine(&[], "")?;
    machine.memory_mib = MEMORY_MIB;
    Ok(boot.follow_script(&machine)?.0)
}

/// Turns the outcomes into samples and holds them to the promises.
fn judge(seed: u64, runs: u64, outcomes: &[(During, Outcome)]) -> Report {
    let wanted = SPANS.iter().map(|during| share(*during, runs)).sum();
    let mut report = Report::new(NAME, Clock::Virtual, seed, wanted);
    let mut outside = 0;
    for (during, outcome) in outcomes {
        report.samples.extend(outcome.samples(&target(*during)).into_iter().map(Some));
        let is_outside = |fault: &&Fault| !is_within(fault, *during);
        outside += outcome.faults.iter().filter(is_outside).count() as u64;
        outcome.measure(&mut report, "ours");
    }
    report.note_missing(wanted);
    report.promises = promises(&report, runs);
    report.promises.push(Promise::at_most("faults outside of their span", 0, Some(outside)));
    report.promise_none("script", &MUST_BE_ZERO);
    report
}

/// Whether a fault took effect while the orchestrator was in the middle of this.
fn is_within(fault: &Fault, during: During) -> bool {
    fault.during.as_deref() == Some(during.word())
}

fn promises(report: &Report, runs: u64) -> Vec<Promise> {
    let mut out = Vec::new();
    for target in [SPANS[0], SPANS[2]].map(target) {
        let all: Vec<&Sample> =
            report.samples.iter().flatten().filter(|s| s.target == target).collect();
        let detected = |kind: &str| -> Vec<u64> {
            let of_kind = all.iter().filter(|s| s.kind.starts_with(kind));
            of_kind.filter_map(|s| s.detection()).collect()
        };
        out.push(Promise::enough(&target, PER_SPAN.min(runs), all.len()));
        for kind in KINDS {
            let detected = detected(kind);
            if !detected.is_empty() {
                let name = format!("{target}: {kind} detected, ns,");
                out.push(Promise::worst_of(&name, CRASH_DETECTED_NS, &detected));
            }
        }
        let name = format!("{target}: crashes detected, ns,");
        out.push(Promise::worst_of(&name, CRASH_DETECTED_NS, &detected("crash-")));
    }
    let unrepaired = report.samples.iter().flatten().filter(|s| !s.ok).count();
    out.push(Promise::at_most("faults not repaired", 0, Some(unrepaired as u64)));
    out.push(report.all_came("faults"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: u64 = 40;

    fn outcome(during: During) -> (During, Outcome) {
        let fault = |index: u64| Fault {
            kind: KINDS[index as usize % KINDS.len()].into(),
            at: 1_000 * index,
            detected: Some(1_000 * index + 30),
            repaired: Some(1_000 * index + 90),
            rung: Some(1),
            during: Some(during.word().into()),
            ..Fault::default()
        };
        let mut totals: Vec<_> = MUST_BE_ZERO.iter().map(|name| ((*name).to_owned(), 0)).collect();
        totals.extend([("requests".into(), 9), ("doomed".into(), 0)]);
        (
            during,
            Outcome {
                faults: (0..share(during, RUNS)).map(fault).collect(),
                totals,
                ..Outcome::default()
            },
        )
    }

    #[test]
    fn a_perfect_run_holds_and_each_flaw_breaks_it() {
        let holds = |spoil: fn(&mut Outcome)| {
            let mut outcomes = SPANS.map(outcome);
            spoil(&mut outcomes[1].1);
            judge(1, RUNS, &outcomes).holds()
        };
        assert!(holds(|_| ()));
        assert!(!holds(|of| of.faults.clear()), "spans that never came");
        assert!(!holds(|of| drop(of.faults.pop())), "a fault that never came");
        assert!(!holds(|of| of.faults[3].detected = Some(3_000 + 50_001)), "a late detection");
        assert!(!holds(|of| of.faults[3].repaired = None), "a fault not repaired");
        assert!(!holds(|of| of.faults[3].during = None), "a fault outside of its span");
        assert!(!holds(|of| of.faults[3].during = Some("create".into())), "in another span");
        assert!(!holds(|of| of.totals[1].1 = 1), "a lost request");
        assert!(!holds(|of| of.totals.clear()), "a script that never ended");
    }
}
