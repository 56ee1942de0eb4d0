//! `cargo xtask peer`: the classic Xen host (Debian Linux as dom0, xl, C xenstored) that PpVMM is
//! compared with, and our unikernels as ordinary guests on it.

pub mod differential;
pub mod drive;
pub mod guest;
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
    /// Boot the host and run a Linux guest of this kind with the work that --work names.
    #[arg(long, value_name = "KIND", conflicts_with_all = ["xl", "run"])]
    pub guest: Option<guest::Kind>,
    /// What the guest does (see images/guest/init); it may be given again, for one guest each.
    #[arg(long, value_name = "WORK", default_value = "run:xsload,bench")]
    pub work: Vec<String>,
    /// Give this many requests of a seeded stream to the host's XenStore, by dom0 and two guests,
    /// and to ours; compare every answer and event.
    #[arg(long, value_name = "REQUESTS", conflicts_with_all = ["xl", "run", "guest"])]
    pub differential: Option<u64>,
    /// Seed of the stream.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// The XenStore that the host runs.
    #[arg(long, value_name = "STORE", default_value = "c")]
    pub store: drive::Store,
    /// Words for Xen's command line.
    #[arg(long, value_name = "WORDS")]
    pub xen_append: Vec<String>,
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
    let mut setup = drive::Setup::new("run", clock);
    setup.store = options.store;
    setup.xen_args.clone_from(&options.xen_append);
    if let Some(requests) = options.differential {
        return differential::run(&steps, &host, setup, options.seed, requests);
    }
    if let Some(kind) = options.guest {
        return guests(&steps, &host, setup, kind, &options.work);
    }
    if options.run.is_empty() {
        return Ok(());
    }
    commands(&host, &setup, &options.run)
}

/// Runs one guest for each work, and shows what it wrote.
fn guests(
    steps: &Steps,
    host: &host::Host,
    setup: drive::Setup,
    kind: guest::Kind,
    works: &[String],
) -> Result<()> {
    crate::guest::build(steps)?;
    let guests: Vec<guest::Guest> = works
        .iter()
        .enumerate()
        .map(|(index, work)| guest::Guest::new(&format!("g{index}"), kind, work))
        .collect();
    let limit = COMMAND_LIMIT.saturating_mul(u32::try_from(guests.len())?.saturating_add(1));
    guest::run(host, setup, &guests, limit, |line| println!("{line}")).map(drop)
}

/// Runs each command in dom0's shell, and shows what it wrote.
fn commands(host: &host::Host, setup: &drive::Setup, commands: &[String]) -> Result<()> {
    let count = u32::try_from(commands.len())?;
    let limit = COMMAND_LIMIT.saturating_mul(count.saturating_add(1));
    let mut peer = drive::Peer::boot(host, setup, limit)?;
    println!("{}", peer.ready().text);
    let mut failed = 0;
    for command in commands {
        let reply = peer.shell(command, COMMAND_LIMIT)?;
        println!("# {command}");
        reply.lines.iter().for_each(|line| println!("{line}"));
        println!("# exit code {}, {:.1} s", reply.code, reply.took.as_secs_f64());
        failed += u32::from(reply.code != 0);
    }
    peer.stop()?;
    if failed > 0 {
        bail!("{failed} of {count} commands failed");
    }
    Ok(())
}
