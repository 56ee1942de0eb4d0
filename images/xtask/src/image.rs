//! `cargo xtask image`: a bootable ISO with GRUB, stock Xen, the orchestrator and the archive.
//!
//! The same file starts from BIOS and from UEFI. GRUB loads Xen by its multiboot2 header and hands
//! it two modules, the initial domain and the archive, with the command lines that `run` uses
//! (Xen `docs/misc/grub.cfg` conventions: GRUB passes arguments without the file's name).

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::Tool;
use crate::progress::Steps;
use crate::qemu::machine::CPU;
use crate::qemu::{Clock, Machine, Vm};
use crate::{build, paths, setup};

/// GRUB for both firmwares, and what writes the file systems.
const PACKAGES: [&str; 5] =
    ["grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "xorriso", "mtools"];

/// UEFI for QEMU, which `--check` boots from.
const FIRMWARE_PACKAGE: &str = "ovmf";

/// The firmware's code; it keeps no variables: each boot looks for the image afresh.
const UEFI_CODE: &str = "/usr/share/OVMF/OVMF_CODE.fd";

/// What GRUB is made of: all that the menu uses, so that no module is looked for at boot.
const MODULES: [&str; 13] = [
    "normal",
    "configfile",
    "iso9660",
    "search",
    "search_label",
    "multiboot2",
    "gzio",
    "serial",
    "terminal",
    "echo",
    "minicmd",
    "reboot",
    "halt",
];

/// Modules for one firmware alone: reading the disc, a screen, legacy interrupts.
const BIOS_MODULES: [&str; 2] = ["biosdisk", "vga"];
const UEFI_MODULES: [&str; 3] = ["part_msdos", "part_gpt", "all_video"];

/// The bytes GRUB's MBR needs to start the image from a USB stick, too.
const HYBRID_MBR: &str = "/usr/lib/grub/i386-pc/boot_hybrid.img";

/// The image's name, by which GRUB finds it again after UEFI has started it from the FAT part.
const LABEL: &str = "PPVMM";

/// Size of the FAT file system that UEFI starts from, in KiB: GRUB with its modules is 350 KiB.
const FAT_KIB: u32 = 1440;

/// The date in all file systems, in seconds since 1970, so that the same contents give the same
/// bytes (2026-01-01).
const DATE: &str = "1767225600";

/// Writing the image takes a second where nothing else runs.
const MAKE_LIMIT: Duration = Duration::from_secs(120);

/// From power-on to a guest's userspace: both firmwares need 10-20 s of an emulated CPU, the host
/// as long again, and both several times that on a machine that does other work.
const BOOT_LIMIT: Duration = Duration::from_secs(400);

/// Memory of the machine that `--check` boots, in MiB: UEFI keeps up to 128 of it for itself.
const CHECK_MEMORY_MIB: u32 = 896;

/// How the image is made and tried.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Boot the image from BIOS and from UEFI and wait until a guest is up.
    #[arg(long)]
    pub check: bool,
    /// Words for the orchestrator's command line.
    #[arg(long, value_name = "WORDS")]
    pub append: Vec<String>,
    /// Words for Xen's command line.
    #[arg(long, value_name = "WORDS")]
    pub xen_append: Vec<String>,
    /// Boot this PV kernel as the initial domain instead of the orchestrator.
    #[arg(long, value_name = "FILE", requires = "expect")]
    pub initial_domain: Option<PathBuf>,
    /// With --check, the text of the line to wait for.
    #[arg(long, value_name = "TEXT", default_value = GUEST_UP)]
    pub expect: String,
    /// Use what the last build left, without building.
    #[arg(long)]
    pub no_build: bool,
}

/// What the first guest says once its userspace runs and has found the XenStore: all services are
/// there.
pub const GUEST_UP: &str = "GUEST_READY up=*xenbus=yes";

/// In its last one, when it refuses what it was given.
const REFUSAL: &str = "cannot start";

/// Firmware that starts the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, which QEMU brings.
    Bios,
    /// OVMF.
    Uefi,
}

impl Firmware {
    /// Every firmware.
    pub const ALL: [Firmware; 2] = [Firmware::Bios, Firmware::Uefi];

    fn label(self) -> String {
        format!("boot ISO from {self}")
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Firmware::Bios => "BIOS",
            Firmware::Uefi => "UEFI",
        })
    }
}

/// Makes the image; with `check` boots it from both firmwares.
pub fn run(options: &Options) -> Result<()> {
    if !options.no_build {
        build::run(&build::Options::default())?;
    }
    let steps = Steps::new("image");
    prepare(&steps, &machine(options))?;
    if options.check {
        setup::packages(&steps, &[FIRMWARE_PACKAGE])?;
        for firmware in Firmware::ALL {
            steps.step(&firmware.label(), || check(&paths::iso(), firmware, &options.expect))?;
        }
    }
    Ok(())
}

/// Makes the image of what is built and boots it from `firmware`: one boot of the on-Xen suite.
pub fn boot(steps: &Steps, firmware: Firmware) -> Result<String> {
    prepare(steps, &Machine::host("image", Clock::Real))?;
    setup::packages(steps, &[FIRMWARE_PACKAGE])?;
    steps.step(&firmware.label(), || check(&paths::iso(), firmware, GUEST_UP))
}

fn prepare(steps: &Steps, machine: &Machine) -> Result<()> {
    setup::packages(steps, &PACKAGES)?;
    steps.step("ISO for BIOS and UEFI", || {
        let size = make(machine, &paths::iso())?;
        Ok(format!("{}, {} KiB", paths::iso().display(), size / 1024))
    })?;
    Ok(())
}

/// What `run` boots, with these options.
fn machine(options: &Options) -> Machine {
    let mut machine = Machine::host("image", Clock::Real);
    if !options.check {
        // What QEMU needs is not for real hardware.
        machine.orchestrator_args.clear();
    }
    machine.orchestrator_args.extend(options.append.iter().cloned());
    machine.xen_args.clone_from(&options.xen_append);
    if let Some(kernel) = &options.initial_domain {
        machine.orchestrator = Some(kernel.clone());
    }
    machine
}

/// Writes the image of `machine` to `iso`; gives its size in bytes.
pub fn make(machine: &Machine, iso: &Path) -> Result<u64> {
    let tree = paths::target().join("iso");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    fs::create_dir_all(tree.join("boot/grub"))?;
    let orchestrator = machine.orchestrator.as_deref().context("an image needs an orchestrator")?;
    let archive = machine.archive.as_deref().context("an image needs an archive")?;
    for (from, name) in [(&*machine.xen, XEN), (orchestrator, ORCHESTRATOR), (archive, ARCHIVE)] {
        let to = tree.join(name.trim_start_matches('/'));
        fs::copy(from, to)
            .with_context(|| format!("{} is missing: run cargo xtask build", from.display()))?;
    }
    fs::write(tree.join("boot/grub/grub.cfg"), menu(machine)?)?;
    let work = paths::target().join("iso.work");
    fs::create_dir_all(&work)?;
    bios_loader(&work, &tree.join(BIOS_LOADER))?;
    uefi_part(&work, &tree.join(UEFI_PART))?;
    write_iso(&tree, iso)?;
    Ok(fs::metadata(iso)?.len())
}

/// Paths inside the image.
const BIOS_LOADER: &str = "boot/grub/bios.img";
const UEFI_PART: &str = "boot/grub/uefi.img";

/// GRUB as El Torito's boot image for BIOS.
fn bios_loader(work: &Path, out: &Path) -> Result<()> {
    grub("i386-pc-eltorito", &BIOS_MODULES, work, out)
}

/// A FAT file system with GRUB where UEFI looks for it on removable media.
fn uefi_part(work: &Path, out: &Path) -> Result<()> {
    let loader = work.join("bootx64.efi");
    grub("x86_64-efi", &UEFI_MODULES, work, &loader)?;
    let mtool = |program: &str| Tool::new(program).env("SOURCE_DATE_EPOCH", DATE);
    // A fixed serial number (-N) and a superfloppy of 2 heads, 18 sectors of 512 bytes per track.
    mtool("mformat")
        .args(["-C", "-i"])
        .arg(out)
        .args(["-h", "2", "-s", "18", "-t", &(FAT_KIB / 18).to_string(), "-N", "50505644", "::"])
        .run()?;
    mtool("mmd").arg("-i").arg(out).args(["::/EFI", "::/EFI/BOOT"]).run()?;
    mtool("mcopy").arg("-i").arg(out).arg(&loader).arg("::/EFI/BOOT/BOOTX64.EFI").run()
}

/// GRUB in one file: it looks for the image by its label and reads the menu there.
fn grub(format: &str, modules: &[&str], work: &Path, out: &Path) -> Result<()> {
    let early = work.join("early.cfg");
    fs::write(
        &early,
        format!("search --no-floppy --label {LABEL} --set root\nset prefix=($root)/boot/grub\n"),
    )?;
    Tool::new("grub-mkimage")
        .args(["-O", format, "-p", "/boot/grub", "-c"])
        .arg(&early)
        .arg("-o")
        .arg(out)
        .args(MODULES)
        .args(modules)
        .run()
}

/// The ISO 9660 image with both ways to start, also from a USB stick.
fn write_iso(tree: &Path, iso: &Path) -> Result<()> {
    let fresh = iso.with_extension("new");
    Tool::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-volid", LABEL, "-R", "-o"])
        .arg(&fresh)
        .args(["-b", BIOS_LOADER, "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
        .args(["--grub2-boot-info", "--grub2-mbr", HYBRID_MBR])
        .args(["-eltorito-alt-boot", "-e", UEFI_PART, "-no-emul-boot", "-isohybrid-gpt-basdat"])
        .arg(tree)
        .args(["--set_all_file_dates", &format!("={DATE}")])
        .env("SOURCE_DATE_EPOCH", DATE)
        .limit(MAKE_LIMIT)
        .run()?;
    fs::rename(&fresh, iso)?;
    Ok(())
}

const XEN: &str = "/boot/xen";
const ORCHESTRATOR: &str = "/boot/orchestrator";
const ARCHIVE: &str = "/boot/archive";

/// GRUB's menu: one entry, on the serial port and the screen.
fn menu(machine: &Machine) -> Result<String> {
    let xen_words = machine.xen_command_line();
    let words = machine.orchestrator_args.join(" ");
    for text in [&xen_words, &words] {
        // GRUB's script language gives these a meaning; no option of Xen's or ours needs one.
        if let Some(bad) = text.chars().find(|c| "'\"\\$;&|<>{}#\n".contains(*c)) {
            bail!("the command line {text:?} contains {bad:?}, which GRUB would not pass on");
        }
    }
    Ok(format!(
        "serial --unit=0 --speed=115200\n\
         terminal_input serial console\n\
         terminal_output serial console\n\
         set timeout=1\n\
         menuentry \"PpVMM\" {{\n\
         \x20   multiboot2 {XEN} {xen_words}\n\
         \x20   module2 {ORCHESTRATOR} {words}\n\
         \x20   module2 {ARCHIVE}\n\
         }}\n"
    ))
}

/// QEMU's arguments to start `iso` from `firmware`; nothing but the firmware knows what to load.
pub fn arguments(iso: &Path, firmware: Firmware) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| out.extend(words.iter().map(OsString::from));
    add(&["-accel", "tcg", "-cpu", CPU, "-display", "none", "-no-reboot", "-nodefaults"]);
    add(&["-nic", "none", "-monitor", "none", "-serial", "stdio"]);
    add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
    add(&["-m", &CHECK_MEMORY_MIB.to_string()]);
    if firmware == Firmware::Uefi {
        add(&["-drive", &format!("if=pflash,format=raw,readonly=on,file={UEFI_CODE}")]);
    }
    out.extend(["-cdrom".into(), iso.into()]);
    out
}

/// Boots `iso` until a line with `expect`; gives how long that took.
fn check(iso: &Path, firmware: Firmware, expect: &str) -> Result<String> {
    let log = paths::logs().join(format!("image-{firmware}.log").to_lowercase());
    let mut vm = Vm::launch(arguments(iso, firmware), &log, BOOT_LIMIT)?;
    // Xen says by which way it came to its memory map: the wrong one means that the firmware
    // ended somewhere else than it should.
    let (by_uefi, map) = vm.expect_any(&["Multiboot-e820 RAM map", "EFI RAM map"], BOOT_LIMIT)?;
    ensure!(
        (by_uefi == 1) == (firmware == Firmware::Uefi),
        "started from {firmware}, but Xen says: {}",
        map.text
    );
    vm.expect("Building a PV Dom0", BOOT_LIMIT)?;
    let (refused, found) = vm.expect_any(&[expect, REFUSAL], BOOT_LIMIT)?;
    ensure!(refused == 0, "the initial domain was started from {firmware}: {}", found.text);
    vm.kill()?;
    let [xen, all] = [&map, &found].map(|line| line.at.as_secs_f64());
    Ok(format!("Xen after {xen:.1} s, after {all:.1} s: {}", found.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Machine {
        let mut machine = Machine::host("t", Clock::Real);
        machine.xen_args = vec!["loglvl=all".into()];
        machine.orchestrator_args = vec!["once".into(), "seed=1".into()];
        machine
    }

    #[test]
    fn the_menu_passes_the_same_words_as_run() {
        let machine = sample();
        let text = menu(&machine).unwrap();
        let line = format!("multiboot2 /boot/xen {}\n", machine.xen_command_line());
        assert!(
            text.contains(&line) && line.contains("console=com1") && line.contains("dom0_mem=")
        );
        assert!(text.contains("module2 /boot/orchestrator once seed=1\n"));
        assert!(text.contains("module2 /boot/archive\n"));
    }

    #[test]
    fn words_that_grub_would_change_are_refused() {
        for bad in ["a;b", "$x", "'q'", "x\ny"] {
            let mut machine = sample();
            machine.orchestrator_args.push(bad.into());
            assert!(menu(&machine).unwrap_err().to_string().contains("GRUB"), "{bad}");
        }
    }

    #[test]
    fn only_uefi_gets_other_firmware() {
        let has = |firmware| {
            arguments(Path::new("/x.iso"), firmware)
                .iter()
                .any(|a| a.to_string_lossy().contains("pflash"))
        };
        assert!(has(Firmware::Uefi) && !has(Firmware::Bios));
    }
}
