//! Where things lie: everything `xtask` makes is under the workspace's `target/`.

use std::path::PathBuf;

/// The workspace's root folder.
pub fn root() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).expect("images/xtask lies two folders below the root").to_path_buf()
}

/// The folder that holds everything made (`target/`).
pub fn target() -> PathBuf {
    root().join("target")
}

/// Logs of every child process (`target/logs/`).
pub fn logs() -> PathBuf {
    target().join("logs")
}

/// Trees unpacked from Debian packages, never installed (`target/debian/`).
pub fn debian() -> PathBuf {
    target().join("debian")
}

/// Images ready to boot (`target/image/`).
pub fn image() -> PathBuf {
    target().join("image")
}

/// Stock Xen as the multiboot ELF that `qemu -kernel` starts.
pub fn xen() -> PathBuf {
    image().join("xen")
}

/// The guest's Linux kernel as an ELF with its loadable contents only.
pub fn guest_kernel() -> PathBuf {
    image().join("guest-vmlinux")
}

/// The guest's initial file system (newc cpio).
pub fn guest_initramfs() -> PathBuf {
    image().join("guest-initramfs")
}

/// The initial domain's single module: services, guest kernel and initramfs.
pub fn archive() -> PathBuf {
    image().join("archive.bin")
}

/// A stripped unikernel, by its binary's name.
pub fn unikernel(name: &str) -> PathBuf {
    image().join(format!("{name}.elf"))
}

/// The bootable image (ISO 9660, for BIOS and UEFI).
pub fn iso() -> PathBuf {
    image().join("ppvmm.iso")
}
