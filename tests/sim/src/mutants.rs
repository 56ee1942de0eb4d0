//! Broken variants.
use std::process::ExitCode;

/// Options.
#[derive(clap::Args)]
pub struct Options {}

/// Runs them.
pub fn run(_: &Options) -> ExitCode {
    ExitCode::SUCCESS
}
