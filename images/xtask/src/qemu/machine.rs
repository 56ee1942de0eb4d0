//! What is booted: the emulated machine, Xen's command line, the initial domain and its module.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::paths;

/// Which clock the machine runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Emulated CPUs run on host threads as fast as they can.
    Real,
    /// One guest instruction is one nanosecond, idle time is skipped, everything repeats exactly.
    Virtual,
}

/// A Linux guest dies on this emulation with SMAP (as PV) or RDTSCP (as PVH).
pub const CPU: &str = "max,-smap,-rdtscp";

/// Each of several CPUs; [`emulation`] says why it is another one.
const CPU_OF_SEVERAL: &str = "max,-smap,-rdtscp,-xsave";

/// Memory that a host with two Linux guests needs.
const DEFAULT_MEMORY_MIB: u32 = 768;

/// What the initial domain needs beside its image and its module: page tables, start-up pages and
/// the boot stack, with room to spare.
const DOM0_EXTRA_MIB: u64 = 16;

/// What Xen is told.
///
/// - `timer_slop=1000` (ns): timers closer than the default 50 µs are not postponed.
/// - `sched_credit2_migrate_resist=0`: any idle CPU takes a guest that has used up its credit. With
///   the default (Xen 4.17) the CPU that was woken for it may leave it to the one where it was
///   preempted, which had left it to the former: it stays in the queue of an idle machine.
/// - the initial domain has one vCPU on one CPU, so its clock is one CPU's clock.
const XEN_ARGS: &str = "console=com1 no-real-mode dom0_max_vcpus=1 dom0_vcpus_pin \
                        timer_slop=1000 sched_credit2_migrate_resist=0 \
                        loglvl=info guest_loglvl=warning";

/// On the clock that measures: below this level Xen prints a register dump of each domain that it
/// ends, and says only 0.19 ms later that the domain is dead.
const QUIET_XEN: &str = "loglvl=error guest_loglvl=error";

/// On the real clock the machine below takes CPU away that Xen counts as received by a unit, and
/// the clocks of emulated CPUs drift apart by as much: 400 ms in one piece were seen with seven
/// busy processes per core, so limits of 0.5 ms are stretched to 2 s.
const REAL_PATIENCE: &str = "patience=4000";

/// The same run each time: fixed date, fixed seed, one nanosecond per instruction, no sleeping.
pub const VIRTUAL_ARGS: [&str; 6] =
    ["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01T00:00:00,clock=vm", "-seed", "1"];

/// What every machine has: a console on standard input and output, an exit port.
const COMMON_ARGS: [&str; 12] = [
    "-display",
    "none",
    "-no-reboot",
    "-nodefaults",
    "-nic",
    "none",
    "-monitor",
    "none",
    "-serial",
    "stdio",
    "-device",
    "isa-debug-exit,iobase=0xf4,iosize=1",
];

/// How the CPUs are emulated: several run at once, each on a thread, and have no XSAVE. QEMU 7.2
/// breaks guests on several CPUs otherwise, with or without a fault of ours:
///
/// - One thread for all is told every 100 ms to turn to the next CPU. If that comes while Xen
///   injects an interrupt into a guest, it is delivered twice: `helper_vmrun` leaves the vector in
///   `exception_index`, from where `cpu_exec` takes it again. The guest is interrupted at the
///   first instruction of its handler, with interrupts disabled, and crashes or hangs. One CPU is
///   not told to turn, and what else stops it is an interrupt, which is taken first.
/// - With XSAVE, seven of eleven guests that computed for 45 s had a program end by a corrupted
///   heap or a wild pointer; without it none of eight. Which instruction errs is not known.
///
/// The virtual clock knows only one thread.
fn emulation(cpus: u32, clock: Clock) -> [&'static str; 4] {
    let threads = match clock {
        Clock::Real if cpus > 1 => "tcg,thread=multi",
        Clock::Real | Clock::Virtual => "tcg,thread=single",
    };
    ["-accel", threads, "-cpu", if cpus > 1 { CPU_OF_SEVERAL } else { CPU }]
}

/// Where a server outside sends everything back.
pub const ECHO: &str = "10.0.2.100:7";
/// Who answers pings there.
pub const GATEWAY: &str = "10.0.2.2";

/// The NIC of a machine; behind it QEMU answers for a network of its own (10.0.2.0/24, gateway
/// 10.0.2.2), from which nothing leads to anywhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Nic {
    /// Intel 82574L.
    #[value(name = "e1000e")]
    E1000e,
    /// A modern virtio-net device.
    #[value(name = "virtio-net")]
    VirtioNet,
    /// None.
    #[value(name = "none")]
    None,
}

impl Nic {
    /// QEMU's words for it; with an echo server at [`ECHO`] behind it, if wanted.
    fn arguments(self, has_echo: bool) -> Vec<String> {
        let device = match self {
            Self::E1000e => "e1000e",
            Self::VirtioNet => "virtio-net-pci,disable-legacy=on",
            Self::None => return Vec::new(),
        };
        let echo = if has_echo { format!(",guestfwd=tcp:{ECHO}-cmd:cat") } else { String::new() };
        let network = format!("user,id=outside,restrict=on{echo}");
        let device = format!("{device},netdev=outside");
        vec!["-netdev".into(), network, "-device".into(), device]
    }
}

/// A machine to be booted.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Xen, as a multiboot ELF.
    pub xen: PathBuf,
    /// The initial domain's image; none boots Xen alone (which then panics).
    pub orchestrator: Option<PathBuf>,
    /// The initial domain's command line.
    pub orchestrator_args: Vec<String>,
    /// The initial domain's module.
    pub archive: Option<PathBuf>,
    /// More words for Xen's command line; later words win.
    pub xen_args: Vec<String>,
    /// Emulated memory in MiB.
    pub memory_mib: u32,
    /// Emulated CPUs.
    pub cpus: u32,
    /// The clock.
    pub clock: Clock,
    /// The NIC.
    pub nic: Nic,
    /// Whether a server behind the NIC sends everything back.
    pub has_echo: bool,
    /// A TCP port on the loopback interface where a debugger may attach.
    pub gdb_port: Option<u16>,
    /// More words for QEMU's command line.
    pub qemu_args: Vec<String>,
    /// The file that receives the whole console.
    pub log: PathBuf,
}

impl Machine {
    /// The host as `build` left it in `target/image`, its console also in `target/logs/NAME.log`.
    pub fn host(name: &str, clock: Clock) -> Machine {
        Machine {
            xen: paths::xen(),
            orchestrator: Some(paths::unikernel("orchestrator")),
            orchestrator_args: match clock {
                Clock::Virtual => Vec::new(),
                Clock::Real => vec![REAL_PATIENCE.into()],
            },
            archive: Some(paths::archive()),
            xen_args: Vec::new(),
            memory_mib: DEFAULT_MEMORY_MIB,
            cpus: 1,
            clock,
            nic: Nic::E1000e,
            has_echo: false,
            gdb_port: None,
            qemu_args: Vec::new(),
            log: paths::logs().join(format!("{name}.log")),
        }
    }

    /// QEMU's command line, without the program's name.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut out: Vec<OsString> = COMMON_ARGS.iter().map(OsString::from).collect();
        let mut add = |words: &[&str]| out.extend(words.iter().map(OsString::from));
        add(&emulation(self.cpus, self.clock));
        add(&["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()]);
        if self.clock == Clock::Virtual {
            add(&VIRTUAL_ARGS);
        }
        if let Some(port) = self.gdb_port {
            add(&["-gdb", &format!("tcp:127.0.0.1:{port}")]);
        }
        for word in self.nic.arguments(self.has_echo) {
            add(&[&word]);
        }
        add(&["-append", &self.xen_command_line()]);
        out.extend(["-kernel".into(), self.xen.clone().into()]);
        if let Some(modules) = self.modules() {
            out.extend(["-initrd".into(), modules]);
        }
        out.extend(self.qemu_args.iter().map(OsString::from));
        out
    }

    /// The words that Xen is started with.
    pub fn xen_command_line(&self) -> String {
        let mut words = vec![XEN_ARGS.to_owned(), format!("dom0_mem={}M", self.dom0_mib())];
        if self.clock == Clock::Virtual {
            words.push(QUIET_XEN.to_owned());
        }
        words.extend(self.xen_args.iter().cloned());
        words.join(" ")
    }

    /// The initial domain's memory: its module's pages count inside it.
    fn dom0_mib(&self) -> u64 {
        let size = |path: &Option<PathBuf>| {
            path.as_deref().and_then(|p| std::fs::metadata(p).ok()).map_or(0, |m| m.len())
        };
        let image = self.orchestrator.as_deref().map_or(0, memory_size);
        (image + size(&self.archive)).div_ceil(1 << 20) + DOM0_EXTRA_MIB
    }

    /// `IMAGE ARGUMENTS,ARCHIVE`; QEMU writes a comma inside a name as two.
    fn modules(&self) -> Option<OsString> {
        let escape = |text: &str| text.replace(',', ",,");
        let image = self.orchestrator.as_ref()?;
        let mut out = escape(&image.to_string_lossy());
        for word in &self.orchestrator_args {
            out.push(' ');
            out.push_str(&escape(word));
        }
        if let Some(archive) = &self.archive {
            out.push(',');
            out.push_str(&escape(&archive.to_string_lossy()));
        }
        Some(out.into())
    }
}

/// Memory of a bare machine: a service's own is at most 16 MiB.
const BARE_MEMORY_MIB: &str = "128";

/// QEMU's arguments for a unikernel on a bare machine, without Xen: it then tests itself.
pub fn bare_arguments(unikernel: &Path) -> Vec<OsString> {
    let mut out: Vec<OsString> = COMMON_ARGS.iter().map(OsString::from).collect();
    out.extend(emulation(1, Clock::Real).map(OsString::from));
    out.extend(["-m".into(), BARE_MEMORY_MIB.into(), "-kernel".into(), unikernel.into()]);
    out
}

/// Bytes of memory from an image's lowest to its highest address.
fn memory_size(image: &Path) -> u64 {
    let Ok(bytes) = std::fs::read(image) else { return 0 };
    let Ok(elf) = crate::elf::Elf::parse(&bytes) else { return 0 };
    elf.segments.iter().filter(|s| s.kind == 1).map(|s| s.vaddr + s.memory_size).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(machine: &Machine) -> String {
        let words: Vec<_> =
            machine.arguments().iter().map(|a| a.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }

    #[test]
    fn the_virtual_clock_and_the_modules_reach_the_command_line() {
        let mut machine = Machine::host("t", Clock::Real);
        machine.orchestrator = Some("/x/o.elf".into());
        machine.orchestrator_args = vec!["once".into(), "fault=a,b".into()];
        machine.archive = Some("/x/a.bin".into());
        assert!(!text(&machine).contains("icount"));
        assert!(text(&machine).contains("-initrd /x/o.elf once fault=a,,b,/x/a.bin"));
        machine.cpus = 2;
        assert!(text(&machine).contains("thread=multi"));
        machine.clock = Clock::Virtual;
        assert!(text(&machine).contains("shift=0,sleep=off"));
        assert!(text(&machine).contains("thread=single"));
        machine.orchestrator = None;
        assert!(!text(&machine).contains("-initrd"));
    }
}
