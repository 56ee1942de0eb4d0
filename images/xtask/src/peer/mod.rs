//! `cargo xtask peer`: the classic Xen host (Debian Linux as dom0, xl, C xenstored) that PpVMM is
//! compared with, and our unikernels as ordinary guests on it.

pub mod drive;
pub mod host;
mod pick;
pub mod xl;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::build;
use crate::progress::Steps;
use crate::qemu::Clock;

/// How long a command given with `--run` may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);

/// How the classic host is made and used.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Start each ELF by stock `xl create` as a PV guest, where it must pass its self-test; then
    /// broken copies that must not. Without a name: every unikernel of the host.
    #[arg(long, value_name = "ELF", num_args = 0..)]
    pub xl: Option<Vec<PathBuf>>,
    /// Boot the host and run this command in dom0's shell (may be given again).
    #[arg(long, value_name = "COMMAND", conflicts_with = "xl")]
    pub run: Vec<String>,
    /// Run on the virtual clock: one instruction is one nanosecond.
    #[arg(long = "virtual")]
    pub virtual_clock: bool,
    /// With --xl, use what the last build left, without building.
    #[arg(long)]
    pub no_build: bool,
    /// With --xl, show what every guest wrote.
    #[arg(long)]
    pub verbose: bool,
}

/// For the on-Xen suite: what the last build left, as guests of the classic host; gives how many
/// went well and how many did not.
pub fn suite(steps: &Steps) -> Result<(usize, usize)> {
    let host = host::build(steps)?;
    xl::run(&host, &xl::built(), Clock::Real, false)
}

/// Makes the host; with `--xl` or `--run` also boots it.
pub fn run(options: &Options) -> Result<()> {
    let clock = if options.virtual_clock { Clock::Virtual } else { Clock::Real };
    let steps = Steps::new("peer");
    let host = host::build(&steps)?;
    steps.note(format!("the host is in {}", host::folder().display()));
    if let Some(given) = &options.xl {
        if given.is_empty() && !options.no_build {
            build::run(&build::Options::default())?;
        }
        let elfs = if given.is_empty() { xl::built() } else { given.clone() };
        let (passed, failed) = xl::run(&host, &elfs, clock, options.verbose)?;
        println!("peer: under stock xl: {passed} as they must be, {failed} not");
        if failed > 0 {
            bail!("not every unikernel did as it must under stock xl");
        }
        return Ok(());
    }
    if options.run.is_empty() {
        return Ok(());
    }
    let setup = drive::Setup::new("run", clock);
    let commands = u32::try_from(options.run.len())?;
    let limit = COMMAND_LIMIT.saturating_mul(commands.saturating_add(1));
    let mut peer = drive::Peer::boot(&host, &setup, limit)?;
    println!("{}", peer.ready().text);
    let mut failed = 0;
    for command in &options.run {
        let reply = peer.shell(command, COMMAND_LIMIT)?;
        println!("# {command}");
        reply.lines.iter().for_each(|line| println!("{line}"));
        println!("# exit code {}, {:.1} s", reply.code, reply.took.as_secs_f64());
        failed += u32::from(reply.code != 0);
    }
    peer.stop()?;
    if failed > 0 {
        bail!("{failed} of {commands} commands failed");
    }
    Ok(())
}
