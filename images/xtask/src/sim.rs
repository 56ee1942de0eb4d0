//! `cargo xtask sim`: the simulator of the replicated store, built for speed.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;

use crate::paths;
use crate::process::Tool;

/// Compiling the simulator.
const COMPILE_LIMIT: Duration = Duration::from_secs(600);

/// Ten thousand seeds on a slow machine.
const RUN_LIMIT: Duration = Duration::from_secs(4 * 3600);

/// What the simulator is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Arguments of the simulator, such as `--seeds 0..200`, `--seed 7 --trace`, `mutants`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    pub arguments: Vec<OsString>,
}

/// Builds the simulator and runs it.
pub fn run(options: &Options) -> Result<()> {
    Tool::new("cargo")
        .args(["build", "--release", "--package", "sim", "--bin", "sim"])
        .named("build-sim")
        .limit(COMPILE_LIMIT)
        .run()?;
    let program = paths::target().join("release/sim");
    Tool::new(program).args(&options.arguments).limit(RUN_LIMIT).shown().run()
}
