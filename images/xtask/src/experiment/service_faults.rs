//! Faults in xenstore-uk while a guest runs a checked script through its own kernel.

use anyhow::Result;

use super::harness::{Boot, MUST_BE_ZERO, Outcome, Parts, UNIT};
use super::{ONE_STORE, Options};
use crate::build;
use crate::faults::{self, Plan, Target};
use crate::progress::Steps;
use crate::qemu::Clock;
use crate::report::{Promise, Report, Sample, stats};

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

/// Kinds that damage a record, in turn.
const RECORD_KINDS: [&str; 6] = [
    "corrupt-record-node",
    "corrupt-record-slot",
    "corrupt-record-header",
    "corrupt-record-area",
    "corrupt-record-control",
    "corrupt-record-health",
];

/// The one after which a life must read the whole store back, whatever its rung.
const RELOADING: &str = RECORD_KINDS[0];

/// Mean time between damages to records. Three eighths of it pass before the injector looks whether
/// the damage is still there: longer than the scrubber takes to see the script's whole store.
const RECORD_GAP_US: u64 = 600_000;

/// Registers, too, may be overwritten before the unit reads them: by those it pushed on its stack.
const OVERWRITTEN: &str = "crash-wild-registers";

/// Kinds that only a build with fault points can do (`xenstore-uk/unikernel`, feature
/// `fault-points`).
const POINT_KINDS: [&str; 6] = [
    "crash-panic",
    "crash-wild-read",
    "crash-wild-write",
    "crash-shutdown",
    "crash-stack-overflow",
    "hang-no-progress",
];

/// Kinds that both builds can do, and how far apart their median detection may be, in nanoseconds:
/// a crash by what the dying life takes to write its line, a hang by a tenth of its limit.
const BOTH: [(&str, u64); 2] = [("crash-undefined", 10_000), ("hang-loop", 100_000)];

/// The build whose faults come at chosen points.
const POINTS: &str = "xenstore-uk/fault-points";

/// For so many faults from outside there is one boot of that build, whose lives end themselves:
/// thirteen boots, from which each kind has the hundred samples that a 99th percentile needs.
const RUNS_PER_POINTS_BOOT: u64 = 14;

/// How many lives of such a boot end themselves: as often in each way.
const ENDED_LIVES: u64 = 64;

/// Virtual time that these take, with some to spare.
const POINTS_S: u64 = 20;

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
const RECORD_DETECTED_NS: u64 = 1_000_000_000;
const MICRORESET_NS: u64 = 200_000;
const MICROREBOOT_NS: u64 = 1_000_000;
const REBUILD_NS: u64 = 15_000_000;

/// Everything together where a lower rung could not help: the rungs' limits and the delays between.
const CLIMBED_NS: u64 = 20_000_000;

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
            let work = || parts.part(&label, || boot(seed, count, rung));
            outcomes.push(steps.step(&label, work)?);
            left -= count;
        }
    }
    let mut left = runs;
    while left > 0 {
        let count = left.min(FAULTS_PER_BOOT);
        let seed = options.seed * 1000 + outcomes.len() as u64;
        let label = format!("{count} damaged records, seed {seed}");
        let work = || parts.part(&label, || boot_records(seed, count));
        outcomes.push(steps.step(&label, work)?);
        left -= count;
    }
    let mut points = Vec::new();
    let (features, system) = (vec![POINTS.into()], Some(build::description(ONE_STORE)));
    build::run(&build::Options { features, system })?;
    for boot in 0..runs.div_ceil(RUNS_PER_POINTS_BOOT) {
        let seed = options.seed * 1000 + boot;
        let label = format!("{ENDED_LIVES} faults at chosen points, seed {seed}");
        points.push(steps.step(&label, || parts.part(&label, || boot_points(seed)))?);
    }
    parts.finish()?;
    Ok(judge(options.seed, runs, &outcomes, &points))
}

/// One boot whose ladder begins at `rung`.
fn boot(seed: u64, count: u64, rung: u64) -> Result<Outcome> {
    let (kinds, target) = (KINDS.to_vec(), Target::First);
    let plan = Plan { kinds, count, seed, gap_us: GAP_US, after: AFTER, during: None, target };
    Ok(boot_with(plan).observe(&[format!("rung={rung}")])?.0)
}

/// One boot whose records are damaged.
fn boot_records(seed: u64, count: u64) -> Result<Outcome> {
    let (kinds, target) = (RECORD_KINDS.to_vec(), Target::First);
    boot_with(Plan {
        kinds,
        count,
        seed,
        gap_us: RECORD_GAP_US,
        after: AFTER,
        during: None,
        target,
    })
    .run()
}

fn boot_with(plan: Plan) -> Boot<'static> {
    let seconds = (plan.count * plan.gap_us).div_ceil(1_000_000) + QUIET_S;
    let (clock, seed) = (Clock::Virtual, plan.seed);
    Boot { name: NAME, clock, cpus: 1, seed, seconds, clients: 1, plan: Some(plan) }
}

/// One boot of the build whose lives end themselves.
fn boot_points(seed: u64) -> Result<Outcome> {
    let clock = Clock::Virtual;
    let boot = Boot { name: NAME, clock, cpus: 1, seed, seconds: POINTS_S, clients: 1, plan: None };
    boot.run()
}

/// Turns the outcomes into samples and holds them to the promises.
fn judge(seed: u64, runs: u64, outcomes: &[Outcome], points: &[Outcome]) -> Report {
    let wanted = 2 * runs + points.len() as u64 * ENDED_LIVES;
    let mut report = Report::new(NAME, Clock::Virtual, seed, wanted);
    for (target, outcomes) in [(UNIT, outcomes), (POINTS, points)] {
        report.samples.extend(outcomes.iter().flat_map(|o| o.samples(target)).map(Some));
        outcomes.iter().for_each(|outcome| outcome.measure(&mut report, "ours"));
    }
    for fault in outcomes.iter().flat_map(|outcome| &outcome.faults) {
        if fault.is_record() || fault.kind == OVERWRITTEN {
            let is_unread = fault.detected.is_none() && fault.overwritten.is_some();
            report.measure(&format!("{}: overwritten", fault.kind), "ours", u64::from(is_unread));
        }
    }
    report.note_missing(wanted);
    report.promises = promises(&report, runs);
    if !points.is_empty() {
        let agreements = BOTH.map(|both| agree(&report, both));
        report.promises.extend(agreements);
    }
    report.promise_none("script", &MUST_BE_ZERO);
    report
}

/// Whether both builds' figures agree, so that what one of them shows holds for the other.
fn agree(report: &Report, (kind, apart_ns): (&'static str, u64)) -> Promise {
    let median = |target: &str| {
        let of_build = report.of_kind(kind).filter(|sample| sample.target == target);
        stats::median(&of_build.filter_map(Sample::detection).collect::<Vec<_>>())
    };
    let both = median(UNIT).zip(median(POINTS));
    let apart = both.map(|(outside, points)| outside.abs_diff(points));
    Promise::at_most(format!("{kind}: median detection of both builds apart, ns"), apart_ns, apart)
}

fn promises(report: &Report, runs: u64) -> Vec<Promise> {
    let mut out = Vec::new();
    for kind in KINDS.into_iter().chain(POINT_KINDS).chain(RECORD_KINDS) {
        let all: Vec<&Sample> = report.of_kind(kind).collect();
        let limit = match kind {
            _ if kind.starts_with("crash-") => CRASH_DETECTED_NS,
            _ if kind.starts_with("hang-") => HANG_DETECTED_NS,
            _ => RECORD_DETECTED_NS,
        };
        // Who hangs can be told by the CPU time that he received, and not before.
        let is_hang = kind.starts_with("hang-");
        let spent = |s: &&Sample| if is_hang { s.hang_detection() } else { s.detection() };
        let as_meant = all.iter().copied().filter(|s| !s.hung_instead());
        let detected: Vec<u64> = as_meant.filter_map(|s| spent(&s)).collect();
        out.push(Promise::enough(kind, PER_KIND.min(runs), all.len()));
        // Nothing measured is nothing promised, but for what may be overwritten unread.
        let is_record = RECORD_KINDS.contains(&kind);
        if !detected.is_empty() || !is_record {
            out.push(Promise::worst_of(&format!("{kind} detected, ns,"), limit, &detected));
        }
        let rung_1 = if kind == RELOADING { MICROREBOOT_NS } else { MICRORESET_NS };
        for (rung, limit) in [(1, rung_1), (2, MICROREBOOT_NS), (3, REBUILD_NS)] {
            // The repair of what is not seen at once is counted from its detection, which has its
            // own limit.
            let from_fault = |s: &Sample| kind.starts_with("crash-") && !s.hung_instead();
            let spent = |s: &&Sample| if from_fault(s) { s.repair() } else { s.recovery() };
            let on_rung = all.iter().copied().filter(|s| s.rung == Some(rung) && !s.has_climbed());
            let values: Vec<u64> = on_rung.filter_map(|s| spent(&s)).collect();
            let is_planned = KINDS.contains(&kind) || !is_record && rung == 1;
            if !values.is_empty() || is_planned {
                let name = format!("{kind} repaired by rung {rung}, ns,");
                out.push(Promise::worst_of(&name, limit, &values));
            }
        }
    }
    out.extend(exceptions(report));
    let is_record = |s: &&Sample| s.kind.starts_with(faults::RECORD_KINDS);
    let (records, others): (Vec<_>, Vec<_>) = report.samples.iter().flatten().partition(is_record);
    let unrepaired = others.iter().filter(|s| s.repaired.is_none() && !s.ok).count();
    out.push(Promise::at_most("faults not repaired", 0, Some(unrepaired as u64)));
    let left = records.iter().filter(|s| !s.ok).count();
    let name = "corrupt records neither repaired nor overwritten unread";
    out.push(Promise::at_most(name, 0, Some(left as u64)));
    out.push(report.all_came("faults"));
    out
}

/// Faults that came to something else than they were meant for: few, perhaps none.
fn exceptions(report: &Report) -> [Promise; 2] {
    let longest = |name: &str, limit, values: Vec<u64>| {
        let name = format!("{name}, ns, longest of {}", values.len());
        Promise::at_most(name, limit, Some(values.into_iter().max().unwrap_or(0)))
    };
    let all = || report.samples.iter().flatten();
    let hung = all().filter(|s| s.hung_instead()).filter_map(Sample::hang_detection).collect();
    let climbed = all().filter(|s| s.has_climbed()).filter_map(Sample::recovery).collect();
    [
        longest("hang- by another fault detected", HANG_DETECTED_NS, hung),
        longest("climbed: repaired by a higher rung than the first tried", CLIMBED_NS, climbed),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Fault;

    fn outcome(kinds: &[&str], faults: u64, lost: u64) -> Outcome {
        let fault = |index: u64| Fault {
            kind: kinds[index as usize % kinds.len()].into(),
            at: 1_000 * index,
            detected: Some(1_000 * index + 30),
            repaired: Some(1_000 * index + 90),
            // A kind has its turn once in a while, then on the next rung.
            rung: Some(1 + index / kinds.len() as u64 % 3),
            ..Fault::default()
        };
        let mut totals: Vec<(String, u64)> =
            MUST_BE_ZERO.iter().map(|name| ((*name).to_owned(), 0)).collect();
        totals[1].1 = lost;
        totals.extend([("requests".into(), 9), ("doomed".into(), 0)]);
        Outcome { faults: (0..faults).map(fault).collect(), totals, ..Outcome::default() }
    }

    /// Boots of the build with fault points.
    fn points(spoil: impl Fn(&mut Outcome)) -> Vec<Outcome> {
        let kinds: Vec<&str> = POINT_KINDS.into_iter().chain(BOTH.map(|(kind, _)| kind)).collect();
        let mut points = vec![outcome(&kinds, ENDED_LIVES, 0); 8];
        points.iter_mut().for_each(spoil);
        points
    }

    /// Whether the report holds of 300 faults from outside and the boots of the other build.
    fn holds(outside: Outcome, spoil: impl Fn(&mut Outcome)) -> bool {
        let records = outcome(&RECORD_KINDS, 300, 0);
        judge(1, 300, &[outside, records], &points(spoil)).holds()
    }

    #[test]
    fn a_perfect_run_holds_and_each_flaw_breaks_it() {
        let perfect = || outcome(&KINDS, 300, 0);
        assert!(holds(perfect(), |_| ()));
        assert!(!holds(outcome(&KINDS, 300, 1), |_| ()), "a lost request");
        assert!(!holds(outcome(&KINDS, 299, 0), |_| ()), "a fault that never came");
        for rung in 1..=3 {
            let mut without = perfect();
            let of_kind = without.faults.iter_mut().filter(|fault| fault.kind == KINDS[3]);
            of_kind.filter(|fault| fault.rung == Some(rung)).for_each(|fault| fault.rung = Some(4));
            assert!(!holds(without, |_| ()), "nothing measured on rung {rung}");
        }
        let mut late = perfect();
        // A hundred samples and more are judged by their 99th percentile: one late one is allowed.
        for fault in late.faults.iter_mut().filter(|fault| fault.kind == KINDS[1]).take(3) {
            fault.detected = Some(fault.at + 60_000);
        }
        assert!(!holds(late, |_| ()), "a late detection");
        let slow = |received: Option<u64>| {
            let mut slow = perfect();
            for fault in slow.faults.iter_mut().filter(|fault| fault.kind == KINDS[5]) {
                let ready = Some(fault.at + 1_300_000);
                (fault.detected, fault.repaired, fault.received) = (ready, ready, received);
            }
            slow
        };
        assert!(!holds(slow(None), |_| ()), "a hang seen late");
        assert!(holds(slow(Some(700_000)), |_| ()), "others had the CPU meanwhile");
        let hung = |received: u64, tries: u64, repaired: u64| {
            let mut hung = perfect();
            let fault = &mut hung.faults[3];
            (fault.reason, fault.received) = (Some("hang".into()), Some(received));
            (fault.tries, fault.detected) = (Some(tries), Some(fault.at + 900_000));
            fault.repaired = Some(fault.at + 900_000 + repaired);
            hung
        };
        assert!(holds(hung(800_000, 1, 90), |_| ()), "it was to crash, and hung");
        assert!(!holds(hung(1_000_001, 1, 90), |_| ()), "seen late");
        assert!(!holds(hung(800_000, 1, 200_001), |_| ()), "repaired late");
        assert!(holds(hung(800_000, 2, 200_001), |_| ()), "the ladder was climbed");
        assert!(!holds(hung(800_000, 2, 20_000_001), |_| ()), "for too long");
        let mut unrepaired = perfect();
        unrepaired.faults[4].repaired = None;
        assert!(!holds(unrepaired, |_| ()), "a fault not repaired");
        let unfinished = Outcome { totals: Vec::new(), ..perfect() };
        assert!(!holds(unfinished, |_| ()), "a script that never ended");
        assert!(!holds(perfect(), |other| drop(other.faults.pop())), "a life that did not end");
        let records = |spoil: fn(&mut Fault)| {
            let mut records = outcome(&RECORD_KINDS, 300, 0);
            spoil(&mut records.faults[7]);
            judge(1, 300, &[perfect(), records], &points(|_| ())).holds()
        };
        assert!(records(|_| ()));
        assert!(records(|fault| (fault.repaired, fault.overwritten) = (None, Some(9_000))));
        let late = |fault: &mut Fault| {
            (fault.reason, fault.detected) = (Some("hang".into()), Some(fault.at + 50_000_000));
            fault.repaired = Some(fault.at + 50_000_060);
        };
        assert!(records(late), "a hang is a way to find a damaged record");
        assert!(!records(|fault| fault.repaired = None), "a record that stays damaged");
        let later = |other: &mut Outcome| {
            for fault in &mut other.faults {
                fault.detected = fault.detected.map(|at| at + BOTH[0].1 + 1);
            }
        };
        assert!(!holds(perfect(), later), "builds that differ");
    }
}
