//! Hosts that cannot work: each must say what is wrong with it, within seconds, and end with a
//! verdict that is no success.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::archive::{self, Source};
use crate::process::Tool;
use crate::qemu::{Clock, Machine, Outcome, Vm};
use crate::{build, paths};

/// "Within seconds", on a machine that does other things, too.
const LIMIT: Duration = Duration::from_secs(60);

/// A build that is refused has next to nothing to compile, but may have to wait for its turn.
const BUILD_LIMIT: Duration = Duration::from_secs(300);

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

/// What `cargo xtask build` must refuse: a line of the host's description, what stands there
/// instead, and what is said of it behind the file's name.
const WRONG_DESCRIPTIONS: [(&str, &str, &str); 2] = [
    ("slots = 64", "slots = 65", "limits.slots = 65 is wrong: allowed is 2 to 64"),
    (
        "slots = 64",
        "slots = \"many\"",
        "invalid type: string \"many\", expected u32\n  in `limits.slots`",
    ),
];

/// Gives `cargo xtask build` wrong descriptions: each must end it with an exit code other than 0
/// and a message that names file, field and value.
pub fn wrong_descriptions() -> Result<String> {
    let right = fs::read_to_string(paths::root().join("images/system/ppvmm.toml"))?;
    let file = paths::image().join("wrong.toml");
    for (line, wrong, says) in WRONG_DESCRIPTIONS {
        ensure!(right.contains(line), "the host's description has no {line:?}");
        fs::write(&file, right.replacen(line, wrong, 1))?;
        // By cargo: what it has built since may have replaced the program that runs here.
        let built = Tool::new("cargo")
            .args(["run", "--quiet", "--package", "xtask", "--", "build", "--system"])
            .arg(&file)
            .dir(paths::root())
            .named("build-wrong-description")
            .limit(BUILD_LIMIT)
            .run();
        let Err(refused) = built else { bail!("{wrong:?} is taken for right") };
        let text = refused.to_string();
        let place = text.split_once(&format!("{}: ", file.display())).map(|(_, behind)| behind);
        let is_named = place.is_some_and(|behind| behind.contains(says));
        ensure!(is_named, "{wrong:?} is refused without {says:?} behind the file's name:\n{text}");
    }
    Ok(format!("{} refused", WRONG_DESCRIPTIONS.len()))
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
