//! Archives whose guest does other work: the same images, with a word for the guest's `/init`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::archive::{self, Source};
use crate::guest::cpio::Cpio;
use crate::{build, paths};

/// Where the guest's `/init` looks for its work when the kernel command line names none.
const WORK_FILE: &str = "etc/ppvmm-work";

/// Makes `target/image/archive-NAME.bin`, whose guests do `work` (see `images/guest/init`).
pub fn archive(name: &str, work: &str) -> Result<PathBuf> {
    archive_with(name, work, Vec::new())
}

/// The same with more entries.
pub fn archive_with(name: &str, work: &str, more: Vec<Source>) -> Result<PathBuf> {
    let base =
        fs::read(paths::guest_initramfs()).context("the guest's file system: build first")?;
    let initramfs = paths::image().join(format!("guest-initramfs-{name}"));
    fs::write(&initramfs, with_work(base, work))?;
    let mut sources = build::sources()?;
    for Source { path, .. } in &mut sources {
        if *path == paths::guest_initramfs() {
            path.clone_from(&initramfs);
        }
    }
    sources.extend(more);
    let out = paths::image().join(format!("archive-{name}.bin"));
    archive::write(&sources, &out)?;
    Ok(out)
}

/// The kernel unpacks archives one behind another; later files win.
fn with_work(mut base: Vec<u8>, work: &str) -> Vec<u8> {
    let mut cpio = Cpio::new();
    cpio.file(WORK_FILE, 0o644, format!("{work}\n").as_bytes());
    base.resize(base.len().next_multiple_of(512), 0);
    base.extend(cpio.finish());
    base
}
