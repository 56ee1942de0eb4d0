//! The Linux guest: Debian's stock kernel and a small file system, made from packages.

pub mod cpio;
pub mod initramfs;
pub mod kernel;
pub mod variant;

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::paths;
use crate::process::Tool;
use crate::progress::Steps;

/// Compiling the workload from nothing.
const COMPILE_LIMIT: Duration = Duration::from_secs(300);

/// The workload is linked statically: the guest's libraries are Debian's, not the host's.
const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static -C strip=symbols";

/// The host's triple; naming it keeps the flags above away from build scripts.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Makes the guest's kernel and file system, unless they are newer than all they are made from.
pub fn build(steps: &Steps) -> Result<()> {
    fs::create_dir_all(paths::image())?;
    let kernel = kernel::fetch()?;
    steps.step("guest kernel", || {
        let out = paths::guest_kernel();
        let size = if is_newer(&out, std::slice::from_ref(&kernel.image)) {
            fs::metadata(&out)?.len()
        } else {
            kernel::extract(&kernel.image, &out)?
        };
        Ok(format!("{}, {} KiB", kernel.version, size / 1024))
    })?;
    let workload = steps.step("guest workload", || {
        let path = compile_workload()?;
        Ok(path.display().to_string())
    })?;
    steps.step("guest file system", || {
        let out = paths::guest_initramfs();
        let scripts = initramfs::SCRIPTS.map(|(path, _)| paths::root().join(path));
        let sources = [&[workload.clone().into()], &scripts[..]].concat();
        if is_newer(&out, &sources) && is_newer(&out, &[std::env::current_exe()?]) {
            return Ok(format!("{} KiB, up to date", fs::metadata(&out)?.len() / 1024));
        }
        let contents = initramfs::pack(workload.as_ref(), &kernel.netfront)?;
        fs::write(&out, &contents.bytes)?;
        Ok(format!("{} KiB; {}", contents.bytes.len() / 1024, contents.versions.join(", ")))
    })?;
    Ok(())
}

/// Builds `tests/workloads` for the guest and gives the program's path.
fn compile_workload() -> Result<std::path::PathBuf> {
    Tool::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["build", "--release", "--package", "workloads", "--target", HOST])
        .env("RUSTFLAGS", STATIC)
        .named("build-workloads")
        .limit(COMPILE_LIMIT)
        .run()?;
    let built = paths::target().join(HOST).join("release/xsload");
    let out = paths::image().join("xsload");
    // The copy is only touched when it changes, so that what is made of it stays up to date.
    let bytes = fs::read(&built)?;
    if fs::read(&out).ok().as_deref() != Some(&bytes) {
        fs::write(&out, &bytes)?;
    }
    Ok(out)
}

/// Whether `out` exists and is newer than each of `sources`.
pub fn is_newer(out: &std::path::Path, sources: &[std::path::PathBuf]) -> bool {
    let time =
        |path: &std::path::Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    let Some(made) = time(out) else { return false };
    sources.iter().all(|source| time(source).is_some_and(|changed| changed < made))
}
