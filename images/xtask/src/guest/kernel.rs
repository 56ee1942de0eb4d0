//! The guest's kernel: the ELF inside Debian's compressed `bzImage`.
//!
//! Layout of a `bzImage`: Linux `Documentation/arch/x86/boot.rst` (`setup_sects`,
//! `payload_offset`, `payload_length`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::debian;
use crate::elf::Elf;
use crate::process::Tool;

/// Debian's name for "the current kernel of this release".
const META_PACKAGE: &str = "linux-image-amd64";

/// Decompressing tens of megabytes takes seconds.
const DECOMPRESS_LIMIT: Duration = Duration::from_secs(120);

/// How a payload says by which program it was compressed; all but gzip have the uncompressed
/// size appended as four bytes that the program does not know.
const COMPRESSIONS: [(&[u8], &str, &[&str], usize); 5] = [
    (b"\xfd7zXZ\0", "xz", &["-dc", "--single-stream"], 4),
    (b"\x28\xb5\x2f\xfd", "zstd", &["-dc"], 4),
    (b"\x02\x21\x4c\x18", "lz4", &["-dc"], 4),
    (b"\x1f\x8b", "gzip", &["-dc"], 0),
    (b"BZh", "bzip2", &["-dc"], 4),
];

/// The boot protocol's magic, "HdrS", at 0x202.
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");

/// The module with the frontend of network interfaces; it needs no other.
const NETFRONT: &str = "kernel/drivers/net/xen-netfront.ko";

/// Debian's kernel, unpacked: its `bzImage`, a module, and the package's name and version.
pub struct Kernel {
    /// The `bzImage`.
    pub image: PathBuf,
    /// The frontend of network interfaces.
    pub netfront: PathBuf,
    /// Package and version.
    pub version: String,
}

/// Makes sure that Debian's kernel package is unpacked.
pub fn fetch() -> Result<Kernel> {
    let name_file = crate::paths::debian().join("kernel-package");
    let package = match fs::read_to_string(&name_file) {
        Ok(name) => name,
        Err(_) => debian::depended_on(META_PACKAGE, "linux-image-")?,
    };
    let members = ["./boot/vmlinuz-*", &format!("./lib/modules/*/{NETFRONT}")];
    let tree = crate::paths::debian().join(&package);
    // A tree of an earlier version of this program may hold the kernel alone.
    if tree.is_dir() && netfront(&tree).is_none() {
        fs::remove_dir_all(&tree)?;
    }
    let unpacked = debian::unpack(&package, &members)?;
    fs::write(&name_file, &package)?;
    let netfront =
        netfront(&unpacked.tree).with_context(|| format!("{package} holds no {NETFRONT}"))?;
    let boot = unpacked.tree.join("boot");
    let image = fs::read_dir(&boot)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz")))
        .with_context(|| format!("{} holds no vmlinuz", boot.display()))?;
    Ok(Kernel { image, netfront, version: unpacked.version })
}

/// The module in the package's tree.
fn netfront(tree: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(tree.join("lib/modules")).ok()?;
    let modules = versions.filter_map(|entry| Some(entry.ok()?.path().join(NETFRONT)));
    modules.into_iter().find(|path| path.is_file())
}

/// Writes the kernel's ELF, reduced to its loadable contents, to `out`; gives its size in bytes.
pub fn extract(image: &Path, out: &Path) -> Result<u64> {
    let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let payload = payload(&bytes)?;
    let Some((_, program, args, appended)) =
        COMPRESSIONS.iter().find(|(magic, ..)| payload.starts_with(magic))
    else {
        bail!("the kernel's payload is compressed in a way not known here");
    };
    let packed = out.with_extension("packed");
    let full = out.with_extension("full");
    fs::write(&packed, &payload[..payload.len() - appended])?;
    Tool::new(program)
        .args(*args)
        .input(File::open(&packed)?)
        .named("guest-kernel")
        .limit(DECOMPRESS_LIMIT)
        .output_to(&full)?;
    let elf = fs::read(&full)?;
    let slim = Elf::parse(&elf).context("the kernel's payload")?.slimmed();
    fs::write(out, &slim)?;
    fs::remove_file(&packed)?;
    fs::remove_file(&full)?;
    Ok(slim.len() as u64)
}

/// The compressed kernel inside a `bzImage`.
fn payload(image: &[u8]) -> Result<&[u8]> {
    ensure!(image.get(MAGIC.0..MAGIC.0 + 4) == Some(MAGIC.1), "not a Linux bzImage");
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("a bzImage cut off in its header")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    // Zero means four, from before the field existed.
    let sectors = match image[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let begin = (sectors + 1) * 512 + word(0x248)?;
    let length = word(0x24c)?;
    ensure!(length > 8, "a bzImage without a payload");
    image.get(begin..begin + length).context("a bzImage whose payload is cut off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_found_and_a_short_file_refused() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 3;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&100u32.to_le_bytes());
        image[4 * 512 + 16] = 0x77;
        let found = payload(&image).unwrap();
        assert_eq!((found.len(), found[0]), (100, 0x77));
        image[0x24c..0x250].copy_from_slice(&100_000u32.to_le_bytes());
        assert!(payload(&image).is_err());
        assert!(payload(&image[..100]).is_err());
    }
}
