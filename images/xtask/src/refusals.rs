//! Hosts that cannot work: each must say what is wrong with it, within seconds, and end with a
//! verdict that is no success.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::archive::{self, Source};
use crate::qemu::{Clock, Machine, Outcome, Vm};
use crate::{build, paths};

/// "Within seconds", on a machine that does other things, too.
const LIMIT: Duration = Duration::from_secs(60);

/// Offset of an archive's second page, where its first entry begins.
const FIRST_ENTRY: usize = 4096;

/// Offset of the first row in an archive's table.
const FIRST_ROW: usize = 64;

/// What is wrong with a host.
pub struct Refusal {
    /// Its name, also of its log.
    pub name: &'static str,
    /// Makes it wrong.
    spoil: fn(&mut Machine) -> Result<()>,
    /// What the console must say.
    says: &'static str,
}

/// Every way in which a host may be unusable.
pub const REFUSALS: [Refusal; 9] = [
    Refusal {
        name: "no-archive",
        spoil: |machine| {
            machine.archive = None;
            Ok(())
        },
        says: "the archive is not usable: it is cut off: 0 bytes",
    },
    Refusal {
        name: "not-an-archive",
        spoil: |machine| damage(machine, |bytes| bytes[0] ^= 0xff),
        says: "the archive is not usable: it is no PpVMM archive",
    },
    Refusal {
        name: "cut-off",
        spoil: |machine| damage(machine, |bytes| bytes.truncate(FIRST_ENTRY + 100)),
        says: "the archive is not usable: it is cut off",
    },
    Refusal {
        name: "table-damaged",
        spoil: |machine| damage(machine, |bytes| bytes[FIRST_ROW + 40] ^= 1),
        says: "the archive is not usable: its table is damaged",
    },
    Refusal {
        name: "entry-damaged",
        spoil: |machine| damage(machine, |bytes| bytes[FIRST_ENTRY + 5000] ^= 1),
        says: "entry `xenstore-uk` is not usable*is damaged: CRC",
    },
    Refusal {
        name: "entry-missing",
        spoil: |machine| repack(machine, |sources| sources.retain(|s| s.name != "xenstore-uk")),
        says: "entry `xenstore-uk` is not usable: it has no entry",
    },
    Refusal {
        name: "garbage-image",
        spoil: |machine| {
            let garbage = paths::image().join("garbage.elf");
            fs::write(&garbage, [0x5a; 8192])?;
            repack(machine, |sources| {
                let unit = sources.iter_mut().find(|s| s.name == "xenstore-uk");
                unit.into_iter().for_each(|source| source.path.clone_from(&garbage));
            })
        },
        says: "the image of xenstore-uk is not usable",
    },
    Refusal {
        name: "wrong-faults",
        spoil: |machine| {
            machine.orchestrator_args.push("inject=unit:1;kinds:nonsense".into());
            repack(machine, |_| ())
        },
        says: "the argument `inject=`",
    },
    Refusal {
        name: "too-little-memory",
        spoil: |machine| {
            // Xen and the initial domain fit, the services do not.
            machine.memory_mib = 44;
            repack(machine, |_| ())
        },
        says: "too little memory",
    },
];

/// Boots the unusable host and holds it to its refusal.
pub fn run(refusal: &Refusal) -> Result<String> {
    let mut machine = Machine::host(&format!("suite-refusal-{}", refusal.name), Clock::Real);
    (refusal.spoil)(&mut machine)?;
    let mut vm = Vm::start(&machine, LIMIT)?;
    let line = vm.expect(refusal.says, LIMIT)?;
    match vm.finish(|_| ())?.0 {
        Outcome::Failed | Outcome::GaveUp => Ok(line.text),
        other => bail!("it said \"{}\", but ended with \"{other}\"", line.text),
    }
}

/// Gives the machine a damaged copy of its archive.
fn damage(machine: &mut Machine, harm: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
    let mut bytes = fs::read(small_archive(|_| ())?)?;
    harm(&mut bytes);
    let out = paths::image().join("archive-refusal.bin");
    fs::write(&out, bytes)?;
    machine.archive = Some(out);
    Ok(())
}

/// Gives the machine an archive of other entries.
fn repack(machine: &mut Machine, change: impl FnOnce(&mut Vec<Source>)) -> Result<()> {
    machine.archive = Some(small_archive(change)?);
    Ok(())
}

/// The archive, with next to nothing for the guest: nothing here lives long enough to start one.
fn small_archive(change: impl FnOnce(&mut Vec<Source>)) -> Result<PathBuf> {
    let filler = paths::image().join("filler");
    fs::write(&filler, [0; 64])?;
    let mut sources = build::sources()?;
    let is_guest = |path: &Path| path == paths::guest_kernel() || path == paths::guest_initramfs();
    for source in sources.iter_mut().filter(|source| is_guest(&source.path)) {
        source.path.clone_from(&filler);
    }
    change(&mut sources);
    let out = paths::image().join("archive-small.bin");
    archive::write(&sources, &out)?;
    Ok(out)
}
