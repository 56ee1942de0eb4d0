//! Epitaphs: what is kept of each failure before anything is done about it.
//!
//! They live in the orchestrator's memory, have a fixed size, and are printed for a person.

use core::fmt;

use crate::control::Rung;
use crate::health::Panic;
use crate::log::Line;
use crate::text::Text;
use crate::{Epoch, checked};

/// Last log lines that an epitaph keeps: what fits a screen beside the registers.
pub const LINES: usize = 8;
/// Longest name of a unit that is kept, in bytes.
pub const NAME_MAX: usize = 32;

/// Why a unit is recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its panic handler ran.
    Panic,
    /// It shut down with this code (Xen's `SHUTDOWN_*`) unasked; 3 = crash.
    Exit(u8),
    /// Its domain no longer exists.
    Gone,
    /// It received CPU time with work outstanding and made no progress.
    Hang,
    /// It slept with work outstanding, and still did after the doorbell rang once more.
    Asleep,
    /// Somebody else than the orchestrator paused it.
    Paused,
    /// It used up its CPU time for a start without serving.
    Start,
    /// Its pages, or what it reported of itself, hold what no correct unit writes.
    Corrupt,
    /// Its state differs from that of the others that do the same.
    Diverged,
    /// The recovery itself failed.
    Recovery,
    /// A unit it depends on was rebuilt together with it.
    Global,
    /// The operator asked for it.
    Operator,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Panic => "panicked",
            Self::Exit(3) => "crashed",
            Self::Exit(code) => return write!(f, "shut down with code {code}"),
            Self::Gone => "its domain is gone",
            Self::Hang => "hung: used its CPU time without progress",
            Self::Asleep => "slept with work outstanding",
            Self::Paused => "was paused behind the orchestrator's back",
            Self::Start => "did not start in its CPU time",
            Self::Corrupt => "corrupted: its pages are invalid",
            Self::Diverged => "diverged: its state differs from that of the others",
            Self::Recovery => "its recovery failed",
            Self::Global => "restarted with all services",
            Self::Operator => "restarted by the operator",
        };
        f.write_str(text)
    }
}

/// The registers of a virtual CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15.
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Address of the last page fault.
    pub cr2: u64,
    /// Page-table root.
    pub cr3: u64,
}

const GENERAL_NAMES: [&str; 16] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { general, rip, rflags, cr2, cr3 } = self;
        writeln!(f, "  rip {rip:016x}  rflags {rflags:08x}  cr2 {cr2:016x}  cr3 {cr3:x}")?;
        for (index, (name, value)) in GENERAL_NAMES.iter().zip(general).enumerate() {
            write!(f, "  {name:>3} {value:016x}")?;
            if index % 4 == 3 {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// How the work stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Work handed over.
    pub handed: u64,
    /// Work taken.
    pub taken: u64,
    /// Work items completed in that life.
    pub progress: u64,
    /// CPU time that the domain had received, in ns.
    pub cpu_time_ns: u64,
}

/// What is kept of one failure.
#[derive(Clone, Copy, Debug)]
pub struct Epitaph {
    /// The unit's name.
    pub unit: Text<NAME_MAX>,
    /// The life that failed.
    pub epoch: Epoch,
    /// When it was noticed, in ns of Xen's system time.
    pub time_ns: u64,
    /// What was noticed.
    pub reason: Reason,
    /// What is done about it.
    pub rung: Rung,
    /// The registers, if they could be read.
    pub registers: Option<Registers>,
    /// The panic, if there was one.
    pub panic: Option<Panic>,
    /// How the work stood.
    pub counters: Counters,
    /// The last log lines, oldest first.
    pub lines: [Line; LINES],
    /// How many lines there are.
    pub line_count: usize,
}

impl Epitaph {
    /// The epitaph of `unit`, to be completed with what can still be read.
    pub fn new(unit: &str, epoch: Epoch, time_ns: u64, reason: Reason, rung: Rung) -> Self {
        Self {
            unit: Text::from_bytes(unit.as_bytes()),
            epoch,
            time_ns,
            reason,
            rung,
            registers: None,
            panic: None,
            counters: Counters::default(),
            lines: [Line::EMPTY; LINES],
            line_count: 0,
        }
    }
}

/// A time in ns as seconds with microseconds, as in log lines.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000_000, self.0 / 1_000 % 1_000_000)
    }
}

impl fmt::Display for Epitaph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, epoch, reason, rung, counters, .. } = self;
        let time = Seconds(self.time_ns);
        writeln!(f, "{unit} (life {epoch}) {reason} at {time} s; next: {}", rung_name(*rung))?;
        if let Some(panic) = &self.panic {
            writeln!(f, "  panic: {panic}")?;
        }
        let outstanding = checked::distance(counters.handed, counters.taken);
        let micros = counters.cpu_time_ns / 1_000;
        writeln!(
            f,
            "  handed {} taken {} outstanding {outstanding} progress {} cpu {micros} us",
            counters.handed, counters.taken, counters.progress
        )?;
        if let Some(registers) = &self.registers {
            write!(f, "{registers}")?;
        }
        for line in self.lines.iter().take(self.line_count) {
            writeln!(f, "  | {} {}", Seconds(line.time_ns), line.text)?;
        }
        Ok(())
    }
}

/// A rung's name for a person.
pub const fn rung_name(rung: Rung) -> &'static str {
    match rung {
        Rung::First => "first start",
        Rung::Microreset => "microreset",
        Rung::Microreboot => "microreboot",
        Rung::Rebuild => "rebuild",
        Rung::Global => "global restart",
    }
}

/// The last `N` epitaphs.
#[derive(Clone, Copy, Debug)]
pub struct Epitaphs<const N: usize> {
    kept: [Option<Epitaph>; N],
    total: u64,
}

impl<const N: usize> Epitaphs<N> {
    /// None yet.
    pub const fn new() -> Self {
        assert!(N > 0);
        Self { kept: [None; N], total: 0 }
    }

    /// Keeps `epitaph`, in place of the oldest if there are `N`.
    pub fn keep(&mut self, epitaph: Epitaph) {
        self.kept[(self.total % N as u64) as usize] = Some(epitaph);
        self.total += 1;
    }

    /// The latest one, to be completed.
    pub fn latest_mut(&mut self) -> Option<&mut Epitaph> {
        let latest = self.total.checked_sub(1)? % N as u64;
        self.kept[latest as usize].as_mut()
    }

    /// Failures so far, also those no longer kept.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The kept ones, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Epitaph> {
        let oldest = (self.total % N as u64) as usize;
        self.kept[oldest..].iter().chain(&self.kept[..oldest]).flatten()
    }
}

impl<const N: usize> Default for Epitaphs<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Level;

    #[test]
    fn an_epitaph_reads_well() {
        let mut epitaph =
            Epitaph::new("xenstore-uk", 4, 12_003_456_789, Reason::Hang, Rung::Microreset);
        epitaph.panic = Some(Panic::new(format_args!("no slot left"), "src/slots.rs", 31));
        epitaph.counters = Counters { handed: 17, taken: 15, progress: 9, cpu_time_ns: 5_000_000 };
        epitaph.registers = Some(Registers { rip: 0x10_2030, cr2: 8, ..Registers::default() });
        let text = Text::from_bytes(b"ready");
        epitaph.lines[0] =
            Line { number: 1, time_ns: 1_000, level: Level::Information, goes_on: false, text };
        epitaph.line_count = 1;
        let printed = epitaph.to_string();
        let mut lines = printed.lines();
        let first = "xenstore-uk (life 4) hung: used its CPU time without progress at 12.003456 s; \
                     next: microreset";
        assert_eq!(lines.next(), Some(first));
        assert_eq!(lines.next(), Some("  panic: no slot left at src/slots.rs:31"));
        let work = "  handed 17 taken 15 outstanding 2 progress 9 cpu 5000 us";
        assert_eq!(lines.next(), Some(work));
        assert!(lines.next().unwrap().starts_with("  rip 0000000000102030  rflags 00000000"));
        assert_eq!(printed.lines().last(), Some("  | 0.000001 ready"));
        assert!(printed.lines().all(|line| line.len() <= 100), "{printed}");
    }

    #[test]
    fn the_newest_epitaphs_are_kept() {
        let mut epitaphs = Epitaphs::<3>::new();
        for epoch in 1..=5 {
            epitaphs.keep(Epitaph::new("u", epoch, 0, Reason::Exit(3), Rung::Rebuild));
        }
        let epochs: Vec<Epoch> = epitaphs.iter().map(|epitaph| epitaph.epoch).collect();
        assert_eq!((epochs, epitaphs.total()), (vec![3, 4, 5], 5));
        assert_eq!(epitaphs.latest_mut().map(|latest| latest.epoch), Some(5));
        assert!(Epitaphs::<3>::new().latest_mut().is_none());
    }
}
