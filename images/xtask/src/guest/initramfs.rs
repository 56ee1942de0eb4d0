//! The guest's initial file system: Debian's busybox and XenStore tools, and our workload.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::debian;
use crate::elf::Elf;
use crate::guest::cpio::Cpio;
use crate::paths;
use crate::process::Tool;

/// Packages whose programs or libraries go into the guest.
const PACKAGES: [&str; 6] = [
    "busybox-static",
    "xenstore-utils",
    "xen-utils-4.17",
    "libxenstore4",
    "libxentoolcore1",
    "libc6",
];

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

/// The guest's first program.
const INIT: &str = "images/guest/init";

/// What went into the file system.
pub struct Contents {
    /// The archive's bytes.
    pub bytes: Vec<u8>,
    /// Packages and versions.
    pub versions: Vec<String>,
}

/// Where `/init` finds the frontend of network interfaces.
const NETFRONT: &str = "lib/modules/xen-netfront.ko";

/// Packs the file system around the workload program `workload` and the kernel module `netfront`.
pub fn pack(workload: &Path, netfront: &Path) -> Result<Contents> {
    let mut trees = Vec::new();
    let mut versions = Vec::new();
    for package in PACKAGES {
        let unpacked = debian::unpack(package, &[])?;
        versions.push(unpacked.version);
        trees.push(unpacked.tree);
    }
    let mut cpio = Cpio::new();
    for folder in ["proc", "sys", "dev", "tmp", "run", "root", "etc"] {
        cpio.directory(folder);
    }
    // The kernel opens its console before /init can mount anything.
    cpio.device("dev/console", 0o600, 5, 1);
    let mut wanted = BTreeSet::new();
    for (package, from, to) in PROGRAMS {
        let bytes = read(&paths::debian().join(package).join(from))?;
        note_needs(&bytes, &mut wanted)?;
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
    cpio.file("init", 0o755, &read(&paths::root().join(INIT))?);
    Ok(Contents { bytes: cpio.finish(), versions })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
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
