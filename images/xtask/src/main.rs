//! `cargo xtask`: the one entry to set up, build, boot, check and measure PpVMM.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{build, check, experiment, fuzz, image, peer, run as host, setup, sim, spec, test};

/// Sets up, builds, boots, checks and measures PpVMM.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Get the packages, the Rust target, stock Xen and the guest image ready.
    Setup,
    /// Build the unikernels and the archive that stock Xen boots.
    Build(build::Options),
    /// Make the bootable ISO image, for BIOS and UEFI.
    Image(image::Options),
    /// Make a classic Debian dom0 host to compare with; run our unikernels on it by stock xl.
    Peer(peer::Options),
    /// Boot the host in QEMU and show what it does.
    Run(host::Options),
    /// Check formatting, lints, documentation and the rules of the tidy test.
    Check,
    /// Run the tests of the host, then the suite on Xen; print totals.
    Test(test::Options),
    /// Simulate three replicas of the store: one seed is one run.
    Sim(sim::Options),
    /// Fuzz every reader of foreign bytes, guided by coverage.
    Fuzz(fuzz::Options),
    /// Run an experiment, print its tables, hold it to what is promised.
    Experiment(experiment::Options),
    /// Print every promise of docs/SPECIFICATION.md with its last value and verdict.
    Spec(spec::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup => setup::run(),
        Verb::Build(options) => build::run(&options),
        Verb::Image(options) => image::run(&options),
        Verb::Peer(options) => peer::run(&options),
        Verb::Run(options) => host::run(&options),
        Verb::Check => check::run(),
        Verb::Test(options) => test::run(&options),
        Verb::Sim(options) => sim::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Experiment(options) => experiment::run(&options),
        Verb::Spec(options) => spec::run(&options, &is_command),
    }
}

/// Whether these words, after `cargo xtask`, are a command.
fn is_command(words: &[&str]) -> Result<()> {
    Cli::try_parse_from([&["cargo xtask"], words].concat())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_promise_has_a_command() {
        assert!(is_command(&["no-such-verb"]).is_err());
        spec::run(&spec::Options { results: Vec::new() }, &is_command).expect("they have");
    }
}
