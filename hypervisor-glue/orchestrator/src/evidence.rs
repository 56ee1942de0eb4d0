//! Evidence first: what can still be read of a unit that failed, before anything is done about it.

use abi::{Control, DomainInfo, Registers};
use fabric::control::Rung;
use fabric::epitaph::{self, Counters, Epitaph, Epitaphs, Reason};
use fabric::log::LogReader;
use fabric::{Part, SharedMemory};

use crate::unit::Unit;

/// Epitaphs kept: a unit that climbs the whole ladder leaves some eight.
pub const KEPT: usize = 16;

/// The epitaphs of this host.
pub type Kept = Epitaphs<KEPT>;

/// The epitaph of a unit that failed, without its last lines. `info` is what Xen knows of its
/// domain, if there is one.
pub fn of<C: Control, F: SharedMemory + Copy>(
    xen: &C,
    unit: &Unit<F>,
    info: Option<&DomainInfo>,
    reason: Reason,
    rung: Rung,
) -> Epitaph {
    let mut epitaph = Epitaph::new(unit.config.name, unit.life, xen.now_ns(), reason, rung);
    epitaph.panic = unit.panic();
    epitaph.counters = Counters {
        handed: unit.handed,
        taken: 0,
        progress: 0,
        cpu_time_ns: info.map_or(0, |info| info.cpu_time_ns),
    };
    if let Ok(health) = unit.health() {
        epitaph.counters.taken = health.taken;
        epitaph.counters.progress = health.progress;
    }
    if info.is_some() {
        // A domain that cannot be read any more leaves an epitaph without registers.
        epitaph.registers = xen.registers(unit.domid).ok().map(|registers| convert(&registers));
    }
    epitaph
}

/// Adds the unit's last lines, as far as its next life has left them. That can wait until the unit
/// runs again: its log is in the fabric.
pub fn add_lines<F: SharedMemory + Copy>(epitaph: &mut Epitaph, unit: &Unit<F>) {
    let log: LogReader<Part<F>> = LogReader::new(unit.log);
    epitaph.line_count = log.latest(&mut epitaph.lines);
}

fn convert(registers: &Registers) -> epitaph::Registers {
    let r = registers;
    epitaph::Registers {
        general: [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ],
        rip: r.rip,
        rflags: r.rflags,
        cr2: 0,
        cr3: 0,
    }
}
