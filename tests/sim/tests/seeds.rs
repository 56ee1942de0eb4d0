//! The fixed set of seeds that every build must survive.

use sim::Summary;
use sim::trace::Trace;

/// Seeds of the set. `docs/ORACLES.md` records longer runs.
const SEEDS: u64 = 400;

#[test]
fn the_fixed_seeds_are_clean() {
    let mut total = Summary::default();
    for seed in 0..SEEDS {
        match sim::run(seed, Trace::Silent) {
            Ok(summary) => total.add(&summary),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{SEEDS} seeds clean: {total}");
    // A set without these would show little.
    assert!(total.lost >= 20 && total.restored >= 50 && total.leaders >= 500, "{total}");
}

#[test]
fn one_seed_is_one_run() {
    for seed in [3, 17, 40] {
        assert_eq!(sim::run(seed, Trace::Silent), sim::run(seed, Trace::Silent));
    }
}
