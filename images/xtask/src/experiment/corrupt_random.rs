//! Random bit flips in the store's memory: a measurement of what they come to.

use anyhow::Result;

use super::Options;
use super::harness::{Boot, Outcome, Parts, UNIT};
use crate::faults::{Plan, Target};
use crate::progress::Steps;
use crate::qemu::Clock;
use crate::report::{Promise, Report, Sample};

/// The experiment's name.
pub const NAME: &str = "corrupt-random";

/// Flips per boot: few, since one that stays hidden may harm the next one's sample.
const FLIPS_PER_BOOT: u64 = 10;

/// Mean time between flips.
const GAP_US: u64 = 150_000;

/// Work handed to the store before the first flip.
const AFTER: u64 = 1_000;

/// Virtual time for a flip to show after the last.
const QUIET_S: u64 = 3;

/// What a flip came to.
const MASKED: &str = "masked";
const RECOVERED: &str = "detected and recovered";
const WRONG: &str = "wrong answer";
const LOST: &str = "lost";

/// Flips `runs` bits, in boots of a few.
pub fn run(options: &Options, runs: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut parts = Parts::open(NAME, options.seed)?;
    let mut report = Report::new(NAME, Clock::Virtual, options.seed, runs);
    let (mut flipped, mut boots) = (0, 0);
    // Boots that end early flip fewer bits; the bound ends a host that cannot be flipped at all.
    while flipped < runs && boots < runs {
        let count = (runs - flipped).min(FLIPS_PER_BOOT);
        let seed = options.seed * 1000 + boots;
        let label = format!("{count} flips, seed {seed}");
        let mut found = Outcome::default();
        steps.step(&label, || {
            found = parts.part(&label, || boot(seed, count).run())?;
            Ok(classify(&found).join(", "))
        })?;
        flipped += found.faults.len() as u64;
        boots += 1;
        note(&mut report, &found);
    }
    parts.finish()?;
    // It is a measurement: what is promised is that it was made.
    let samples = report.samples.iter().flatten().count();
    report.promises.push(Promise::enough("flips", runs, samples));
    Ok(report)
}

fn boot(seed: u64, count: u64) -> Boot<'static> {
    let seconds = (count * GAP_US).div_ceil(1_000_000) + QUIET_S;
    let plan = Plan {
        kinds: vec!["flip-page"],
        count,
        seed,
        gap_us: GAP_US,
        after: AFTER,
        during: None,
        target: Target::Leader,
    };
    let (clock, plan) = (Clock::Virtual, Some(plan));
    Boot { name: NAME, clock, cpus: 1, seed, seconds, clients: 1, plan }
}

fn note(report: &mut Report, outcome: &Outcome) {
    for (mut sample, class) in outcome.samples(UNIT).into_iter().zip(classify(outcome)) {
        sample.ok = true;
        report.samples.push(Some(Sample { kind: "flip-page".into(), ..sample }));
        for name in [MASKED, RECOVERED, WRONG, LOST] {
            report.measure(name, "ours", u64::from(name == class));
        }
    }
}

/// What each flip of a boot came to. The script cannot say which flip harmed it: the last one that
/// was not recovered answers.
fn classify(outcome: &Outcome) -> Vec<&'static str> {
    let is_recovered = |repaired: Option<u64>| if repaired.is_some() { RECOVERED } else { MASKED };
    let mut out: Vec<&str> = outcome.faults.iter().map(|f| is_recovered(f.repaired)).collect();
    if outcome.is_clean() {
        return out;
    }
    let is_wrong = outcome.total("wrong").is_some_and(|count| count > 0);
    let harmful = out.iter().rposition(|class| *class == MASKED).or(out.len().checked_sub(1));
    if let Some(index) = harmful {
        out[index] = if is_wrong { WRONG } else { LOST };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::harness::MUST_BE_ZERO;
    use super::*;
    use crate::faults::Fault;

    #[test]
    fn harm_is_put_on_the_last_hidden_flip() {
        let fault = |repaired: Option<u64>| Fault {
            kind: "flip-page".into(),
            at: 1,
            detected: repaired,
            repaired,
            rung: None,
            ..Fault::default()
        };
        let mut totals: Vec<_> = MUST_BE_ZERO.iter().map(|name| ((*name).to_owned(), 0)).collect();
        let faults = vec![fault(None), fault(Some(3))];
        let clean = Outcome { faults, totals: totals.clone(), ..Outcome::default() };
        assert_eq!(classify(&clean), [MASKED, RECOVERED]);
        totals[0].1 = 1;
        let wrong = Outcome { totals, ..clean.clone() };
        assert_eq!(classify(&wrong), [WRONG, RECOVERED]);
        let dead = Outcome { totals: Vec::new(), ..clean };
        assert_eq!(classify(&dead), [LOST, RECOVERED]);
    }
}
