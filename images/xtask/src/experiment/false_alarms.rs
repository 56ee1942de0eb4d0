//! No recovery without a fault: full load, and a host that is itself short of CPU time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;

use super::Options;
use super::harness::{Boot, Outcome, Parts};
use crate::progress::Steps;
use crate::qemu::Clock;
use crate::report::{Promise, Report};

/// The experiment's name.
pub const NAME: &str = "false-alarms";

/// Connections in the guest: more than the store can serve at once.
const CLIENTS: u64 = 4;

/// Virtual seconds per boot, so that an interrupted run loses little.
const SECONDS_PER_BOOT: u64 = 60;

/// Real seconds on two emulated CPUs while every CPU of this machine is busy.
const REAL_SECONDS: u64 = 60;

/// Runs `seconds` virtual seconds of full load, then a minute on the real clock.
pub fn run(options: &Options, seconds: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut parts = Parts::open(NAME, options.seed)?;
    let mut report = Report::new(NAME, Clock::Virtual, options.seed, seconds);
    let mut left = seconds;
    let mut boots = 0;
    while left > 0 {
        let share = left.min(SECONDS_PER_BOOT);
        let seed = options.seed * 1000 + boots;
        let boot = Boot {
            name: NAME,
            clock: Clock::Virtual,
            cpus: 1,
            seed,
            seconds: share,
            clients: CLIENTS,
            plan: None,
        };
        let label = format!("{share} virtual seconds, seed {seed}");
        let outcome = step(&steps, &mut parts, &label, || boot.run())?;
        note(&mut report, "ours", &outcome);
        (left, boots) = (left - share, boots + 1);
    }
    let boot = Boot {
        name: NAME,
        clock: Clock::Real,
        cpus: 2,
        seed: options.seed,
        seconds: REAL_SECONDS,
        clients: CLIENTS,
        plan: None,
    };
    let label = format!("{REAL_SECONDS} real seconds, two CPUs, this machine busy");
    let outcome = step(&steps, &mut parts, &label, || busy(|| boot.run()))?;
    note(&mut report, "ours-busy", &outcome);
    parts.finish()?;
    report.promises = promises(&report);
    Ok(report)
}

fn step(
    steps: &Steps,
    parts: &mut Parts,
    label: &str,
    work: impl FnOnce() -> Result<Outcome>,
) -> Result<Outcome> {
    let mut found = Outcome::default();
    steps.step(label, || {
        found = parts.part(label, work)?;
        let verdict = if found.is_clean() { "all answers right" } else { "NOT CLEAN" };
        Ok(format!("{} recoveries, {verdict}", found.recoveries))
    })?;
    Ok(found)
}

fn note(report: &mut Report, host: &str, outcome: &Outcome) {
    outcome.measure(report, host);
    report.measure("recoveries", host, outcome.recoveries);
    report.measure("unclean", host, u64::from(!outcome.is_clean()));
}

fn promises(report: &Report) -> Vec<Promise> {
    let mut out = Vec::new();
    for (measure, text) in [("recoveries", "recoveries without a fault"), ("unclean", "not clean")]
    {
        for (host, values) in &report.measures[measure] {
            let name = format!("{host}: {text}");
            out.push(Promise::at_most(name, 0, Some(values.iter().sum())));
        }
    }
    out
}

/// Does `work` while every CPU of this machine has something else to do, too.
fn busy<T>(work: impl FnOnce() -> T) -> T {
    let is_over = Arc::new(AtomicBool::new(false));
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let burners: Vec<_> = (0..cpus)
        .map(|_| {
            let is_over = is_over.clone();
            thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let result = work();
    is_over.store(true, Ordering::Relaxed);
    for burner in burners {
        // A burner cannot fail, and nothing depends on it.
        let _ = burner.join();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::super::harness::MUST_BE_ZERO;
    use super::*;

    #[test]
    fn one_recovery_is_one_too_many() {
        let totals: Vec<_> = MUST_BE_ZERO.iter().map(|name| ((*name).to_owned(), 0)).collect();
        let calm = Outcome { totals, ..Outcome::default() };
        let mut report = Report::new(NAME, Clock::Virtual, 1, 1);
        note(&mut report, "ours", &calm);
        report.promises = promises(&report);
        assert!(report.holds());
        note(&mut report, "ours-busy", &Outcome { recoveries: 1, ..calm });
        report.promises = promises(&report);
        assert!(!report.holds());
    }
}
