//! Evidence first: what can still be read of a unit that failed, before anything is done about it.

use abi::{Access, Control, DomId, Frame, PAGE_SIZE, Registers};
use fabric::control::Rung;
use fabric::epitaph::{self, Counters, Epitaph, Epitaphs, Reason};
use fabric::health::{PANIC_TEXT_MAX, Panic};
use fabric::log::LogReader;
use fabric::text::Text;
use fabric::{Part, SharedMemory};

use crate::unit::Unit;

/// Epitaphs kept: a unit that climbs the whole ladder leaves some eight.
pub const KEPT: usize = 16;

/// The epitaphs of this host.
pub type Kept = Epitaphs<KEPT>;

/// What the latest epitaph still lacks; it is kept as it is meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The unit, by its place in the system description.
    pub unit: usize,
    /// Where the unit says that the text of its failure lies in its own memory: address, length.
    pub last_words: Option<(u64, usize)>,
}

/// The epitaph of a unit that was found to have failed at `time_ns` and is fenced, without its last
/// lines: with its `panic`, and the `registers` of its vCPU, if they could be read.
pub fn of<F: SharedMemory + Copy>(
    unit: &Unit<F>,
    time_ns: u64,
    (reason, rung): (Reason, Rung),
    panic: Option<Panic>,
    registers: Option<&Registers>,
) -> Epitaph {
    let mut epitaph = Epitaph::new(unit.config.name, unit.life, time_ns, reason, rung);
    let (taken, progress) = unit.health().map_or((0, 0), |health| (health.taken, health.progress));
    let cpu_time_ns = unit.cpu_time_at_fence_ns().unwrap_or(0);
    epitaph.counters = Counters { handed: unit.handed, taken, progress, cpu_time_ns };
    (epitaph.panic, epitaph.registers) = (panic, registers.map(convert));
    epitaph
}

/// The text at an address of a unit's memory, of which `frames` are the machine frames. The unit
/// chose address and length: what lies outside is not read, what is no text is not shown.
pub fn last_words<C: Control>(
    xen: &C,
    unit: DomId,
    frames: &[Frame],
    (address, len): (u64, usize),
) -> Option<Panic> {
    let mut text = [0; PANIC_TEXT_MAX];
    let text = &mut text[..len.min(PANIC_TEXT_MAX)];
    let mut done = 0;
    while done < text.len() {
        let at = usize::try_from(address).ok()?.checked_add(done)?;
        let frame = *frames.get(at / PAGE_SIZE)?;
        let (start, room) = (at % PAGE_SIZE, PAGE_SIZE - at % PAGE_SIZE);
        let part = room.min(text.len() - done);
        let page = xen.map_foreign(unit, &[frame], Access::ReadOnly).ok()?;
        page.read(start, &mut text[done..done + part]);
        done += part;
    }
    Some(Panic { message: Text::from_bytes(text), ..Panic::default() })
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
