//! `sim`: runs seeds, or one seed with a trace, or the broken variants.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use sim::trace::Trace;
use sim::{Summary, mutants};

/// Deterministic simulator of the replicated store.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    seeds: Seeds,
}

#[derive(Args)]
struct Seeds {
    /// Runs these seeds, for example 0..200.
    #[arg(long, value_parser = range)]
    seeds: Option<Range<u64>>,
    /// Runs this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints everything that happens.
    #[arg(long)]
    trace: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Applies each broken variant to a copy of the tree and shows that it is caught.
    Mutants(mutants::Options),
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("'{text}' is no range of seeds; write for example 0..200");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let range = from.parse().map_err(|_| wrong())?..to.parse().map_err(|_| wrong())?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Verb::Mutants(options)) = &cli.verb {
        return mutants::run(options);
    }
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if let Some((seed, tick)) = sim::running() {
            eprintln!("seed {seed}, tick {tick}: a replica panics");
            eprintln!("see it happen: sim --seed {seed} --trace");
        }
        report(info);
    }));
    let trace = if cli.seeds.trace { Trace::Print } else { Trace::Silent };
    let seeds = match (cli.seeds.seed, cli.seeds.seeds) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(seeds)) => seeds,
        (None, None) => 0..200,
    };
    let mut total = Summary::default();
    let count = seeds.end - seeds.start;
    for seed in seeds.clone() {
        match sim::run(seed, trace) {
            Ok(summary) => total.add(&summary),
            Err(failure) => {
                eprintln!("{failure}");
                return ExitCode::FAILURE;
            }
        }
        if count > 1000 && (seed - seeds.start) % 1000 == 999 {
            println!("{} of {count} seeds clean", seed - seeds.start + 1);
        }
    }
    println!("{count} seeds clean ({}..{}): {total}", seeds.start, seeds.end);
    ExitCode::SUCCESS
}
