//! Ordinary traps on purpose, for those who inject faults into their own unikernel.

use core::arch::asm;

/// An address in our half of the address space where nothing is ever mapped.
const NOWHERE: u64 = 0x5bad_0000_0000;

/// Executes an undefined instruction.
pub fn undefined_instruction() -> ! {
    // SAFETY: The instruction traps, always, and changes nothing.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Reads where nothing is.
pub fn wild_read() -> ! {
    // SAFETY: Nothing is mapped there, so the read traps; if it did not, it would change nothing.
    unsafe { asm!("mov {word}, [{at}]", at = in(reg) NOWHERE, word = out(reg) _) };
    panic!("a wild read did not trap");
}

/// Writes where nothing is.
pub fn wild_write() -> ! {
    // SAFETY: Nothing is mapped there, so the write traps before it changes anything.
    unsafe { asm!("mov [{at}], {at}", at = in(reg) NOWHERE) };
    panic!("a wild write did not trap");
}
