//! Debian packages: downloaded with apt and unpacked below `target/debian/`, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::{Tool, is_on_path, wait_bounded};

/// A package of 70 MB over a slow line.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);

/// Unpacking the kernel package takes seconds.
const UNPACK_LIMIT: Duration = Duration::from_secs(180);

/// The file in an unpacked tree that says it is whole; it holds the package's version.
const COMPLETE: &str = ".complete";

/// A package unpacked (wholly or in part) into its own tree.
pub struct Unpacked {
    /// The tree's root.
    pub tree: PathBuf,
    /// The package's name and version.
    pub version: String,
    /// Whether this call downloaded it.
    pub fresh: bool,
}

/// Makes sure that `package` is unpacked; `members` names the paths wanted (empty: all).
///
/// A whole tree from an earlier call is used again without asking apt, so that a set-up machine
/// works without a network.
pub fn unpack(package: &str, members: &[&str]) -> Result<Unpacked> {
    let tree = paths::debian().join(package);
    if let Ok(version) = fs::read_to_string(tree.join(COMPLETE)) {
        return Ok(Unpacked { tree, version, fresh: false });
    }
    if !is_on_path("apt-get") || !is_on_path("dpkg-deb") {
        bail!("the Debian package {package} is needed, and this machine has no apt-get/dpkg-deb");
    }
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let downloads = paths::debian().join(format!("{package}.download"));
    if downloads.exists() {
        fs::remove_dir_all(&downloads)?;
    }
    fs::create_dir_all(&downloads)?;
    fs::create_dir_all(&tree)?;
    download(package, &downloads)?;
    let archive = only_file(&downloads)?;
    extract(&archive, &tree, members)?;
    let version = field(&archive, "Version")?;
    fs::remove_dir_all(&downloads)?;
    let version = format!("{package} {version}");
    fs::write(tree.join(COMPLETE), &version)?;
    Ok(Unpacked { tree, version, fresh: true })
}

/// The package that the meta-package `package` stands for: its first dependency whose name starts
/// with `prefix`.
pub fn depended_on(package: &str, prefix: &str) -> Result<String> {
    let output = Tool::new("apt-cache").args(["depends", "--important", package]).output()?;
    let text = String::from_utf8_lossy(&output).into_owned();
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .with_context(|| format!("{package} depends on nothing called {prefix}*: run apt update"))
}

/// Whether this process may install packages.
pub fn is_root() -> bool {
    Tool::new("id").arg("-u").output().is_ok_and(|id| id.trim_ascii() == b"0")
}

/// The packages of `wanted` that are not installed.
pub fn missing<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    let installed = |name: &&str| {
        Tool::new("dpkg-query")
            .args(["-W", "-f=${Status}", name])
            .output()
            .is_ok_and(|out| out.ends_with(b"ok installed"))
    };
    wanted.iter().copied().filter(|name| !installed(name)).collect()
}

/// Installs packages; only root can.
pub fn install(packages: &[&str]) -> Result<()> {
    refresh_lists()?;
    Tool::new("apt-get")
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .named("apt-install")
        .limit(DOWNLOAD_LIMIT)
        .run()
}

fn refresh_lists() -> Result<()> {
    Tool::new("apt-get").arg("update").named("apt-update").limit(DOWNLOAD_LIMIT).run()
}

/// Downloads one package; lists too old or absent are refreshed once when we may.
fn download(package: &str, into: &Path) -> Result<()> {
    let attempt = || {
        // The folder may be closed to apt's own user, whose sandbox then only warns: do without.
        Tool::new("apt-get")
            .args(["-o", "APT::Sandbox::User=root", "download", package])
            .dir(into)
            .named(&format!("apt-download-{package}"))
            .limit(DOWNLOAD_LIMIT)
            .run()
    };
    if attempt().is_ok() {
        return Ok(());
    }
    if is_root() {
        refresh_lists()?;
    }
    attempt().with_context(|| {
        format!(
            "{package} could not be downloaded: it is a package of Debian 12 (bookworm); check \
             apt's sources"
        )
    })
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    let files: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    match files.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!("{} should hold one package, it holds {}", dir.display(), files.len()),
    }
}

fn field(archive: &Path, name: &str) -> Result<String> {
    let out = Tool::new("dpkg-deb").arg("-f").arg(archive).arg(name).output()?;
    Ok(String::from_utf8_lossy(&out).trim().to_owned())
}

/// Unpacks the package's files, or only `members` of them, through a pipe: a kernel package's
/// modules are several hundred megabytes that nobody needs.
fn extract(archive: &Path, tree: &Path, members: &[&str]) -> Result<()> {
    let mut source = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let pipe = source.stdout.take().context("dpkg-deb without an output")?;
    let sink = Command::new("tar")
        .args(["-x", "--no-same-owner", "--wildcards", "-C"])
        .arg(tree)
        .args(members)
        .stdin(pipe)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start tar")?;
    let unpacked = wait_bounded(sink, UNPACK_LIMIT)?;
    let read = wait_bounded(source, UNPACK_LIMIT)?;
    // tar leaves early when it has every member it wants; its verdict is the one that counts.
    if !unpacked.is_some_and(|status| status.success()) || read.is_none() {
        bail!("{} could not be unpacked (members {members:?})", archive.display());
    }
    Ok(())
}
