//! `cargo xtask setup`: Debian packages, the Rust target, stock Xen.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{Tool, is_on_path};
use crate::progress::Steps;
use crate::{debian, guest, paths};

/// The target all unikernels are built for.
pub const TARGET: &str = "x86_64-unknown-none";

/// A command that puts the target beside the active toolchain, where rustup cannot fetch it.
pub const TARGET_INSTALL: &str = "PPVMM_TARGET_INSTALL";

/// Debian packages whose programs the verbs use, and one program of each that shows it is there.
const PACKAGES: [(&str, &str); 7] = [
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("xz-utils", "xz"),
    ("zstd", "zstd"),
    ("lz4", "lz4"),
    ("gzip", "gzip"),
    ("tar", "tar"),
    ("util-linux", "setpriv"),
];

/// The Debian 12 package that holds stock Xen, and where in it.
const XEN_PACKAGE: &str = "xen-hypervisor-4.17-amd64";
const XEN_MEMBER: &str = "boot/xen-4.17-amd64.gz";

/// Fetching the Rust target: 15 MB.
const TARGET_LIMIT: Duration = Duration::from_secs(300);

/// Makes the machine ready for every other verb.
pub fn run() -> Result<()> {
    let steps = Steps::new("setup");
    tools(&steps)?;
    target(&steps)?;
    xen(&steps)?;
    guest::build(&steps)
}

/// Debian packages with programs that must be installed.
pub fn tools(steps: &Steps) -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, program)| !is_on_path(program))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        steps.note("programs: all there");
        return Ok(());
    }
    let line = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !debian::is_root() || !is_on_path("apt-get") {
        bail!("programs are missing; as root, run:\n    {line}");
    }
    steps.step(&format!("install {}", missing.join(" ")), || {
        debian::install(&missing)?;
        Ok("done")
    })?;
    Ok(())
}

/// Debian packages that only one verb needs: installed when we may, else the line to type.
pub fn packages(steps: &Steps, wanted: &[&str]) -> Result<()> {
    let missing = debian::missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    if !debian::is_root() || !is_on_path("apt-get") {
        let line = format!("apt-get install --no-install-recommends {}", missing.join(" "));
        bail!("packages are missing; as root, run:\n    {line}");
    }
    steps.step(&format!("install {}", missing.join(" ")), || {
        debian::install(&missing)?;
        Ok("done")
    })?;
    Ok(())
}

/// The Rust target of the unikernels.
pub fn target(steps: &Steps) -> Result<()> {
    if is_target_installed()? {
        steps.note(format!("Rust target {TARGET}: installed"));
        return Ok(());
    }
    steps.step(&format!("Rust target {TARGET}"), || {
        let by_rustup = Tool::new("rustup")
            .args(["target", "add", TARGET])
            .named("rustup-target-add")
            .limit(TARGET_LIMIT)
            .run();
        if by_rustup.is_ok() && is_target_installed()? {
            return Ok("added by rustup");
        }
        let Some(command) = std::env::var_os(TARGET_INSTALL) else {
            bail!(
                "rustup could not add it ({}); where its server cannot be reached, set \
                 {TARGET_INSTALL} to a command that installs it into {}",
                by_rustup.err().map_or_else(|| "no error given".into(), |e| e.to_string()),
                target_libraries()?.display(),
            );
        };
        Tool::new(command).named("target-install").limit(TARGET_LIMIT).run()?;
        if !is_target_installed()? {
            bail!("the command in {TARGET_INSTALL} ran, but {TARGET} is still not there");
        }
        Ok("added by the command given")
    })?;
    Ok(())
}

fn target_libraries() -> Result<PathBuf> {
    let out = Tool::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output()?;
    Ok(PathBuf::from(String::from_utf8(out)?.trim()))
}

/// The target is usable when its libraries lie beside the compiler, however they came there.
fn is_target_installed() -> Result<bool> {
    let Ok(mut files) = fs::read_dir(target_libraries()?) else { return Ok(false) };
    Ok(files.any(|file| {
        file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
    }))
}

/// Stock Xen, unpacked under `target/`.
pub fn xen(steps: &Steps) -> Result<()> {
    steps.step("stock Xen", || {
        let unpacked = debian::unpack(XEN_PACKAGE, &[&format!("./{XEN_MEMBER}")])?;
        let packed = unpacked.tree.join(XEN_MEMBER);
        fs::create_dir_all(paths::image())?;
        if !guest::is_newer(&paths::xen(), std::slice::from_ref(&packed)) {
            let file = fs::File::open(&packed)
                .with_context(|| format!("{XEN_PACKAGE} holds no {XEN_MEMBER}"))?;
            let fresh = paths::xen().with_extension("new");
            Tool::new("gzip").arg("-dc").input(file).named("gunzip-xen").output_to(&fresh)?;
            fs::rename(&fresh, paths::xen())?;
        }
        Ok(unpacked.version)
    })?;
    Ok(())
}
