//! What happens when a unikernel panics or traps.

use core::arch::asm;
use core::cell::Cell;
use core::fmt::{self, Write};

use abi::hypercall::Call;
use abi::{Registers, ShutdownReason};
use fabric::control::Rung;

use crate::boot::Boot;
use crate::cell::OneCpu;
use crate::console::{self, Console};
use crate::mapping::FabricMemory;
use crate::symbols::{ppvmm_begin_again, ppvmm_fresh_stack};
use crate::{Hypervisor, boot, clock, facts, place, user};

/// Bytes kept of a failure's message: a panic's place and text.
const TEXT_BYTES: usize = 240;
/// A life of the orchestrator that ends sooner than this has achieved nothing: it takes less than a
/// tenth of it to find everything again…
const SHORT_LIFE_NS: u64 = 5_000_000;
/// …and after so many of them in a row the failure is one that comes back at once: the machine ends
/// rather than being busy with failing. A failure that comes later than that is recovered from
/// every time, as the host is watched in between.
const SHORT_LIVES: u32 = 8;
/// Exit code (before QEMU's `v << 1 | 1`) of an orchestrator that gives up.
pub(crate) const EXIT_FAILED: u8 = 0x7f;

/// The text of a failure, cut off where it does not fit.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FailureText {
    bytes: [u8; TEXT_BYTES],
    len: usize,
}

impl FailureText {
    /// No text.
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; TEXT_BYTES], len: 0 }
    }

    /// Bytes of the longest text.
    pub(crate) const BYTES: usize = TEXT_BYTES;

    /// The text in the first `len` bytes, as far as there are so many.
    pub(crate) fn of_bytes(bytes: [u8; TEXT_BYTES], len: usize) -> Self {
        Self { bytes, len: len.min(TEXT_BYTES) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("(text cut inside a character)")
    }
}

impl Write for FailureText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut room = (TEXT_BYTES - self.len).min(text.len());
        while !text.is_char_boundary(room) {
            room -= 1;
        }
        self.bytes[self.len..self.len + room].copy_from_slice(&text.as_bytes()[..room]);
        self.len += room;
        Ok(())
    }
}

/// Writes a failure's text where it outlives the domain.
type LastWords = (FabricMemory, fn(&FabricMemory, &str));

static LAST_WORDS: OneCpu<Cell<Option<LastWords>>> = OneCpu::new(Cell::new(None));
/// Where a life starts.
type Entry = fn(Boot) -> !;

static RECOVERY: OneCpu<Cell<Option<Entry>>> = OneCpu::new(Cell::new(None));
static FAILING: OneCpu<Cell<bool>> = OneCpu::new(Cell::new(false));
static TEXT: OneCpu<Cell<FailureText>> = OneCpu::new(Cell::new(FailureText::new()));
/// Short lives in a row.
static SHORT: OneCpu<Cell<u32>> = OneCpu::new(Cell::new(0));
/// When this life began; the first one with Xen.
static BEGAN_NS: OneCpu<Cell<u64>> = OneCpu::new(Cell::new(0));

/// A life begins: nothing is registered.
pub(crate) fn reset() {
    place::begin_life();
    LAST_WORDS.set(None);
    FAILING.set(false);
}

pub(crate) fn set_last_words(memory: FabricMemory, write: fn(&FabricMemory, &str)) {
    LAST_WORDS.set(Some((memory, write)));
}

pub(crate) fn set_recovery(entry: Entry) {
    RECOVERY.set(Some(entry));
}

/// Ends this life, with the reason; in user mode, that of the program.
pub(crate) fn fail(reason: fmt::Arguments<'_>) -> ! {
    if user::is_inside() {
        user::panicked(reason)
    }
    if FAILING.replace(true) {
        // The report itself failed.
        give_up();
    }
    let mut text = FailureText::new();
    let _ = text.write_fmt(reason);
    TEXT.set(text);
    if !console::is_silent() {
        let _ = writeln!(Console, "\n{}", text.as_str());
    }
    if let Some((memory, write)) = LAST_WORDS.get() {
        write(&memory, text.as_str());
    }
    if facts::get().initial && RECOVERY.get().is_some() && may_recover() {
        // SAFETY: This life ends here: nothing on the old stack is used again.
        unsafe { ppvmm_fresh_stack(recover, 0) }
    }
    give_up()
}

fn may_recover() -> bool {
    let now_ns = clock::now_ns();
    let lived_ns = now_ns.saturating_sub(BEGAN_NS.replace(now_ns));
    SHORT.set(short_lives(SHORT.get(), lived_ns));
    SHORT.get() <= SHORT_LIVES
}

/// Short lives in a row after one that lasted `lived_ns`, and `before` it.
fn short_lives(before: u32, lived_ns: u64) -> u32 {
    if lived_ns < SHORT_LIFE_NS { before + 1 } else { 0 }
}

extern "C" fn recover(_: u64) -> ! {
    let text = TEXT.get();
    let boot = boot::again(text);
    let entry = RECOVERY.get().expect("checked by `fail`");
    entry(boot)
}

fn give_up() -> ! {
    if console::is_bare() {
        crate::pvh::exit(EXIT_FAILED);
    }
    let hypervisor = Hypervisor::new();
    if facts::get().initial {
        hypervisor.machine_exit(EXIT_FAILED);
    }
    crash()
}

/// Crashes this domain, with the place of the text in registers: a service may fail before it has
/// said where to leave it. One that has done so is resumed for its next life, which begins by rung
/// 1: to set its vCPU anew would take the orchestrator longer than all else that it does.
fn crash() -> ! {
    /// `SCHEDOP_shutdown`.
    const SHUTDOWN: u64 = 2;
    let reason = u32::from(ShutdownReason::Crash.code());
    loop {
        // SAFETY: Xen reads one word, and returns when the domain is resumed; the registers that it
        // changes are named.
        unsafe {
            asm!(
                "syscall",
                inout("rax") Call::SchedOp as u64 => _,
                in("rdi") SHUTDOWN,
                in("rsi") &raw const reason,
                in("r12") Registers::LAST_WORDS,
                in("r13") TEXT.as_ptr(),
                in("r14") TEXT.get().len,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        if LAST_WORDS.get().is_some() {
            // SAFETY: This life has ended: nothing on its stack is used again.
            unsafe { ppvmm_begin_again(Rung::Microreset as u64) }
        }
    }
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => fail(format_args!("panic at {}:{}: {}", at.file(), at.line(), info.message())),
        None => fail(format_args!("panic: {}", info.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_that_come_back_at_once_add_up() {
        let often = (0..1000).fold(0, |before, _| short_lives(before, SHORT_LIFE_NS));
        assert_eq!(often, 0);
        let at_once = (0..=SHORT_LIVES).fold(0, |before, _| short_lives(before, 100_000));
        assert!(at_once > SHORT_LIVES);
        assert_eq!(short_lives(at_once, 2 * SHORT_LIFE_NS), 0);
    }
}
