//! How long a microreboot takes by the number of nodes in the store, which the next life reads
//! back.

use anyhow::Result;

use super::Options;
use super::harness::{Boot, Outcome, Parts, UNIT};
use crate::faults::{Plan, Target};
use crate::progress::Steps;
use crate::qemu::Clock;
use crate::report::{Promise, Report, Sample};

/// The experiment's name.
pub const NAME: &str = "reload";

/// A store: its nodes, and how many of them share a directory.
#[derive(Clone, Copy, Debug)]
struct Size {
    name: &'static str,
    nodes: u64,
    per_directory: u64,
}

/// Nodes that the host and the script have in the store anyway: between 210 and 260, as each life
/// says that reads them back.
const OTHER_NODES: u64 = 230;

/// The stores. The last one is a single directory, which a life must not make in one go.
const SIZES: [Size; 4] = [
    Size { name: "1000-nodes", nodes: 1_000, per_directory: 100 },
    Size { name: "3000-nodes", nodes: 3_000, per_directory: 100 },
    Size { name: "10000-nodes", nodes: 10_000, per_directory: 100 },
    Size { name: "10000-children", nodes: 10_000, per_directory: 10_000 },
];

/// Kinds of faults, in turn.
const KINDS: [&str; 2] = ["crash-undefined", "crash-wild-jump"];

/// Mean time between faults. Half of it is the shortest: more than the nodes that a reload leaves
/// for later take to be made, and than `healthy_ms` of the system description.
const GAP_US: u64 = 240_000;

/// Virtual time the script goes on after the last fault.
const QUIET_S: u64 = 2;

/// A node is made by one request, which may come in two parts.
const WORK_PER_NODE: u64 = 2;

/// Virtual time that one piece of work takes at most, on average: the script goes on for so long
/// until the first fault.
const WORK_US: u64 = 250;

/// Promises (docs/SPECIFICATION.md): so long with so many nodes, and for each further one.
const NODES: u64 = 1_000;
const REPAIRED_NS: u64 = 1_000_000;
const PER_NODE_NS: u64 = 800;

/// Injects `runs` faults for each size.
pub fn run(options: &Options, runs: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut parts = Parts::open(NAME, options.seed)?;
    let mut outcomes = Vec::new();
    for size in SIZES {
        let label = format!("{runs} microreboots, {}, seed {}", size.name, options.seed);
        let work = || parts.part(&label, || boot(options.seed, runs, size));
        outcomes.push(steps.step(&label, work)?);
    }
    parts.finish()?;
    Ok(judge(options.seed, runs, &outcomes))
}

fn boot(seed: u64, count: u64, size: Size) -> Result<Outcome> {
    let after = 1_000 + WORK_PER_NODE * size.nodes;
    let us = count * GAP_US + after * WORK_US;
    let (kinds, target) = (KINDS.to_vec(), Target::First);
    let plan = Plan { kinds, count, seed, gap_us: GAP_US, after, during: None, target };
    let boot = Boot {
        name: NAME,
        clock: Clock::Virtual,
        cpus: 1,
        seed,
        seconds: us.div_ceil(1_000_000) + QUIET_S,
        clients: 1,
        plan: Some(plan),
    };
    let Size { nodes, per_directory, .. } = size;
    let fill = nodes - OTHER_NODES;
    let options = format!("--fill,{fill},--fill-per-directory,{per_directory}");
    Ok(boot.observe_script(&["rung=2".into()], &options)?.0)
}

/// Turns the outcomes, one for each size, into samples and holds them to the promises.
fn judge(seed: u64, runs: u64, outcomes: &[Outcome]) -> Report {
    let wanted = runs * SIZES.len() as u64;
    let mut report = Report::new(NAME, Clock::Virtual, seed, wanted);
    for (size, outcome) in SIZES.iter().zip(outcomes) {
        let samples = outcome.samples(&format!("{UNIT}/{}", size.name));
        let repaired: Vec<u64> = samples.iter().filter_map(Sample::repair).collect();
        let limit = REPAIRED_NS + PER_NODE_NS * size.nodes.saturating_sub(NODES);
        let name = format!("repaired with {}, ns,", size.name);
        report.promises.push(Promise::worst_of(&name, limit, &repaired));
        report.promises.push(Promise::enough(size.name, runs, repaired.len()));
        // A life that makes too much in one go is taken for a hang, and recovered once more.
        let others = outcome.recoveries.saturating_sub(samples.len() as u64);
        let name = format!("recoveries without a fault, {}", size.name);
        report.promises.push(Promise::at_most(name, 0, Some(others)));
        report.samples.extend(samples.into_iter().map(Some));
        outcome.measure(&mut report, "ours");
    }
    report.note_missing(wanted);
    report
}

#[cfg(test)]
mod tests {
    use super::super::harness::MUST_BE_ZERO;
    use super::*;
    use crate::faults::Fault;

    fn outcome(repaired: u64) -> Outcome {
        let fault = Fault {
            kind: KINDS[0].into(),
            at: 5,
            detected: Some(10),
            repaired: Some(5 + repaired),
            rung: Some(2),
            ..Fault::default()
        };
        let mut totals: Vec<_> = MUST_BE_ZERO.iter().map(|name| ((*name).to_owned(), 0)).collect();
        totals.extend([("requests".into(), 9), ("doomed".into(), 0)]);
        Outcome { faults: vec![fault; 3], recoveries: 3, totals, ..Outcome::default() }
    }

    #[test]
    fn a_large_store_may_take_longer_and_each_flaw_breaks_it() {
        let perfect = || [1_000_000, 2_600_000, 8_200_000, 8_200_000].map(outcome);
        let holds = |spoil: fn(&mut [Outcome; 4])| {
            let mut outcomes = perfect();
            spoil(&mut outcomes);
            judge(1, 3, &outcomes).holds()
        };
        assert!(holds(|_| ()));
        assert!(!holds(|all| all[0] = outcome(1_000_001)), "too long");
        assert!(!holds(|all| all[1] = outcome(2_600_001)), "too long by further nodes");
        assert!(!holds(|all| drop(all[2].faults.pop())), "a fault that never came");
        assert!(!holds(|all| all[3].recoveries = 4), "a hang of its own");
        assert!(!holds(|all| all[3].totals[0].1 = 1), "a wrong answer");
    }
}
