//! `cargo xtask build`: the unikernels, their sizes and limits, and the archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use system::SYSTEM;

use crate::archive::{self, Source};
use crate::elf::Elf;
use crate::process::Tool;
use crate::progress::Steps;
use crate::setup::TARGET;
use crate::{guest, packages, paths, setup};

/// Building all unikernels from nothing on a slow machine.
const BUILD_LIMIT: Duration = Duration::from_secs(900);

const KIB: u64 = 1024;

/// Names of the guest's two archive entries in the system description.
const GUEST_KERNEL: &str = "guest-kernel";
const GUEST_INITRAMFS: &str = "guest-initramfs";

/// A unikernel.
pub struct Unikernel {
    /// Its package.
    pub package: &'static str,
    /// Its binary, and its name in the archive.
    pub name: &'static str,
    /// The largest stripped size in bytes, where one is promised.
    pub limit: Option<u64>,
    /// What it is for.
    pub part: Part,
}

/// What a unikernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Xen loads it as its initial domain.
    Initial,
    /// It travels in the archive.
    Archive,
    /// Only tests boot it.
    Test,
    /// A guest's kernel that only experiments put into their archives.
    Guest,
}

const fn unikernel(package: &'static str, name: &'static str, part: Part) -> Unikernel {
    Unikernel { package, name, limit: None, part }
}

/// Every unikernel.
pub const UNIKERNELS: [Unikernel; 7] = [
    // docs/SPECIFICATION.md: the orchestrator stays small enough to be read.
    Unikernel {
        limit: Some(512 * KIB),
        ..unikernel("orchestrator", "orchestrator", Part::Initial)
    },
    unikernel("xenstore-uk", "xenstore-uk", Part::Archive),
    unikernel("tool-uk", "tool-uk", Part::Archive),
    unikernel("net-uk", "net-uk", Part::Archive),
    unikernel("glue-test", "glue-orchestrator", Part::Test),
    unikernel("glue-test", "glue-service", Part::Test),
    unikernel("hostile", "hostile", Part::Guest),
];

/// What a build is made with.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Options {
    /// Cargo features, as PACKAGE/FEATURE: fault-injecting builds of a unit.
    #[arg(long, value_name = "FEATURE")]
    pub features: Vec<String>,
    /// Another system description than images/system/ppvmm.toml.
    #[arg(long, value_name = "FILE")]
    pub system: Option<PathBuf>,
}

/// The system description of this name.
pub fn description(name: &str) -> PathBuf {
    paths::root().join(format!("images/system/{name}.toml"))
}

/// Makes everything that the host of the system description of this name boots.
pub fn run_system(name: &str) -> Result<()> {
    run(&Options { system: Some(description(name)), ..Options::default() })
}

/// Makes everything that `run` boots.
pub fn run(options: &Options) -> Result<()> {
    let steps = Steps::new("build");
    setup::tools(&steps)?;
    setup::target(&steps)?;
    setup::xen(&steps)?;
    guest::build(&steps)?;
    unikernels(&steps, options)?;
    pack(&steps)
}

/// Unikernels whose packages the workspace has.
pub fn present() -> Result<Vec<&'static Unikernel>> {
    let names = packages::names()?;
    Ok(UNIKERNELS.iter().filter(|unit| names.contains(unit.package)).collect())
}

fn unikernels(steps: &Steps, options: &Options) -> Result<()> {
    let units = present()?;
    if units.is_empty() {
        steps.note("unikernels: none in this workspace");
        return Ok(());
    }
    steps.step("compile unikernels", || {
        let mut cargo = Tool::new("cargo")
            .args(["build", "--release", "--target", TARGET])
            .named("build-unikernels")
            .limit(BUILD_LIMIT);
        for unit in &units {
            cargo = cargo.args(["--package", unit.package, "--bin", unit.name]);
        }
        if !options.features.is_empty() {
            cargo = cargo.args(["--features", &options.features.join(",")]);
        }
        if let Some(system) = &options.system {
            // The description is read in another folder than this one.
            cargo = cargo.env("PPVMM_SYSTEM", std::path::absolute(system)?);
        }
        cargo.run()?;
        Ok(format!("{} of {}", units.len(), UNIKERNELS.len()))
    })?;
    for unit in units {
        let size = strip(unit.name)?;
        let limit = unit.limit.map_or(String::new(), |l| format!(" (limit {} KiB)", l / KIB));
        steps.note(format!("{}: {} KiB stripped{limit}", unit.name, size.div_ceil(KIB)));
        ensure!(
            unit.limit.is_none_or(|limit| size <= limit),
            "{} is {size} bytes stripped, more than its limit of {}",
            unit.name,
            unit.limit.unwrap_or(0)
        );
    }
    Ok(())
}

/// Keeps what a loader reads of a unikernel; gives its size in bytes.
fn strip(name: &str) -> Result<u64> {
    let built = paths::target().join(TARGET).join("release").join(name);
    let slim = Elf::parse(&fs::read(&built)?)?.slimmed();
    write_if_changed(&paths::unikernel(name), &slim)?;
    Ok(slim.len() as u64)
}

fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        fs::write(path, bytes)?;
    }
    Ok(())
}

/// What the archive is made of.
pub fn sources() -> Result<Vec<Source>> {
    let mut sources: Vec<Source> = present()?
        .iter()
        .filter(|unit| unit.part == Part::Archive)
        .map(|unit| Source { name: unit.name.into(), path: paths::unikernel(unit.name) })
        .collect();
    sources.push(Source { name: GUEST_KERNEL.into(), path: paths::guest_kernel() });
    sources.push(Source { name: GUEST_INITRAMFS.into(), path: paths::guest_initramfs() });
    Ok(sources)
}

fn pack(steps: &Steps) -> Result<()> {
    let sources = sources()?;
    steps.step("archive", || {
        let table = archive::write(&sources, &paths::archive())?;
        let size = fs::metadata(paths::archive())?.len();
        let limit = u64::from(SYSTEM.limits.archive_mib) * KIB * KIB;
        ensure!(size <= limit, "the archive has {size} bytes, the description allows {limit}");
        for name in wanted_entries() {
            let is_there = table.iter().any(|(entry, _)| entry == name);
            if !is_there && !is_unbuilt(name)? {
                bail!("images/system/ppvmm.toml asks for the archive entry {name}, unknown here");
            }
        }
        let rows: Vec<String> = table
            .iter()
            .map(|(name, length)| format!("{name} {} KiB", (*length as u64).div_ceil(KIB)))
            .collect();
        Ok(format!("{} KiB: {}", size / KIB, rows.join(", ")))
    })?;
    Ok(())
}

/// Every archive entry that the system description names.
fn wanted_entries() -> Vec<&'static str> {
    let units = SYSTEM.units.iter().map(|unit| unit.entry);
    let guests = SYSTEM.guests.iter().flat_map(|guest| [guest.kernel, guest.ramdisk]);
    units.chain(guests).collect()
}

/// Whether this is a unikernel whose package the workspace does not have yet.
fn is_unbuilt(name: &str) -> Result<bool> {
    let is_known = UNIKERNELS.iter().any(|unit| unit.name == name);
    Ok(is_known && !present()?.iter().any(|unit| unit.name == name))
}
