//! Seeds that are run each time, and `NETSIM_SEEDS=FROM..TO` for longer runs.

use std::collections::BTreeSet;

use netsim::run;

/// Enough that each broken variant is caught among them.
const ALWAYS: std::ops::Range<u64> = 0..100;

#[test]
fn seeds() {
    let range = std::env::var("NETSIM_SEEDS").ok().and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    let (mut frames, mut restarts, mut drivers, mut redone) = (0, 0, 0, 0);
    for seed in range.unwrap_or(ALWAYS) {
        let report = run(seed);
        if let Some(first) = report.violations.first() {
            let oracles: BTreeSet<_> = report.violations.iter().map(|one| one.oracle).collect();
            panic!("seed {seed}: {oracles:?}: {}", first.what);
        }
        frames += report.frames;
        restarts += report.restarts;
        drivers += report.driver_failures;
        redone += report.redone;
    }
    println!("{frames} frames, {restarts} restarts, {drivers} drivers, {redone} redone");
    assert!(frames > 0 && restarts > 0 && drivers > 0 && redone > 0, "the storm was calm");
}
