//! The guest's initial file system: Debian's busybox and XenStore tools, and our workload.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::debian::{self, Unpacked};
use crate::elf::Elf;
use crate::guest::cpio::Cpio;
use crate::paths;
use crate::process::Tool;

/// Packages whose programs or libraries go into the guest.
const PACKAGES: [&str; 7] = [
    "busybox-static",
    "xenstore-utils",
    "xen-utils-4.17",
    "libxenstore4",
    "libxentoolcore1",
    "libc6",
    "libgcc-s1",
];

/// What a thread of `xenstore-watch` needs to end, and no program names: libc opens it then.
const UNNAMED_LIBRARY: &str = "libgcc_s.so.1";

/// Programs of those packages: path in the package's tree, path in the guest.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("busybox-static", "bin/busybox", "bin/busybox"),
    ("xenstore-utils", "usr/bin/xenstore", "bin/xenstore"),
    ("xen-utils-4.17", "usr/lib/xen-4.17/bin/test-xenstore", "bin/test-xenstore"),
];

/// Names under which the one `xenstore` program acts.
const XENSTORE_NAMES: [&str; 8] = ["chmod", "exists", "list", "ls", "read", "rm", "watch", "write"];

/// Where Debian's packages keep libraries.
const LIBRARY_DIRS: [&str; 4] =
    ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64"];

/// Where `test-xenstore` works, relative to its domain's own directory, and a place of the same
/// length in which a guest may do so, too: only domain 0 may write where the former is.
const TEST_PLACES: [&[u8]; 2] = [b"\0xenstore-test\0", b"\0data/xs-tests\0"];

/// Our scripts: path in the repository, path in the guest. The first is the guest's first program.
pub const SCRIPTS: [(&str, &str); 2] =
    [("images/guest/init", "init"), ("images/guest/xenstore-tools", "bin/xenstore-tools")];

/// What went into the file system.
pub struct Contents {
    /// The archive's bytes.
    pub bytes: Vec<u8>,
    /// Packages and versions.
    pub versions: Vec<String>,
}

/// Where `/init` finds the frontend of network interfaces.
const NETFRONT: &str = "lib/modules/xen-netfront.ko";

/// Unpacks the packages.
pub fn unpack() -> Result<Vec<Unpacked>> {
    PACKAGES.iter().map(|package| debian::unpack(package, &[])).collect()
}

/// Packs the file system around the workload program `workload` and the kernel module `netfront`.
pub fn pack(workload: &Path, netfront: &Path) -> Result<Contents> {
    let (trees, versions): (Vec<_>, _) =
        unpack()?.into_iter().map(|unpacked| (unpacked.tree, unpacked.version)).unzip();
    let mut cpio = Cpio::new();
    for folder in ["proc", "sys", "dev", "tmp", "run", "root", "etc"] {
        cpio.directory(folder);
    }
    // The kernel opens its console before /init can mount anything.
    cpio.device("dev/console", 0o600, 5, 1);
    let mut wanted = BTreeSet::from([UNNAMED_LIBRARY.to_owned()]);
    for (package, from, to) in PROGRAMS {
        let mut bytes = read(&paths::debian().join(package).join(from))?;
        note_needs(&bytes, &mut wanted)?;
        if to.ends_with("test-xenstore") {
            move_tests(&mut bytes)?;
        }
        cpio.file(to, 0o755, &bytes);
    }
    cpio.file("bin/xsload", 0o755, &read(workload)?);
    cpio.directory("lib");
    cpio.directory("lib/modules");
    cpio.file(NETFRONT, 0o644, &read(netfront)?);
    for name in XENSTORE_NAMES {
        cpio.symlink(&format!("bin/xenstore-{name}"), "xenstore");
    }
    for applet in applets()? {
        cpio.symlink(&format!("bin/{applet}"), "busybox");
    }
    add_libraries(&mut cpio, &trees, wanted)?;
    for (from, to) in SCRIPTS {
        cpio.file(to, 0o755, &read(&paths::root().join(from))?);
    }
    Ok(Contents { bytes: cpio.finish(), versions })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Has `test-xenstore` work where a guest may.
fn move_tests(program: &mut [u8]) -> Result<()> {
    let [from, to] = TEST_PLACES;
    let places: Vec<usize> =
        program.windows(from.len()).enumerate().filter(|it| it.1 == from).map(|it| it.0).collect();
    let [at] = places[..] else {
        bail!("test-xenstore names its place {} times, expected was once", places.len());
    };
    program[at..at + to.len()].copy_from_slice(to);
    Ok(())
}

/// The names busybox answers to; it runs here because guest and host are both x86-64 Linux.
fn applets() -> Result<Vec<String>> {
    let busybox = paths::debian().join("busybox-static/bin/busybox");
    let out = Tool::new(busybox).arg("--list").output()?;
    let names = String::from_utf8(out).context("busybox --list")?;
    Ok(names.lines().filter(|name| *name != "busybox").map(str::to_owned).collect())
}

/// Remembers the libraries and the interpreter a program asks for.
fn note_needs(program: &[u8], wanted: &mut BTreeSet<String>) -> Result<()> {
    let elf = Elf::parse(program)?;
    wanted.extend(elf.needed());
    let interpreter = elf.interpreter();
    wanted.extend(interpreter.and_then(|path| path.rsplit('/').next().map(str::to_owned)));
    Ok(())
}

/// Adds every library of `wanted` and those that they want in turn.
fn add_libraries(cpio: &mut Cpio, trees: &[PathBuf], mut wanted: BTreeSet<String>) -> Result<()> {
    let mut done = BTreeSet::new();
    while let Some(name) = wanted.pop_first() {
        if !done.insert(name.clone()) {
            continue;
        }
        let Some(path) = find_library(trees, &name) else {
            bail!("no package of the guest image holds {name}; packages: {PACKAGES:?}");
        };
        let bytes = read(&path)?;
        note_needs(&bytes, &mut wanted)?;
        // The interpreter's path is part of every program; the others are searched in /lib.
        let folder = if name.starts_with("ld-") { "lib64" } else { "lib" };
        cpio.file(&format!("{folder}/{name}"), 0o755, &bytes);
    }
    Ok(())
}

fn find_library(trees: &[PathBuf], name: &str) -> Option<PathBuf> {
    trees
        .iter()
        .flat_map(|tree| LIBRARY_DIRS.iter().map(move |dir| tree.join(dir).join(name)))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_program_is_moved_where_it_names_its_place_once() {
        let mut program = b"%s\0xenstore-test\0%u".to_vec();
        move_tests(&mut program).unwrap();
        assert_eq!(program, b"%s\0data/xs-tests\0%u");
        assert!(move_tests(&mut program).is_err());
    }
}
