//! Ordinary traps on purpose, for those who inject faults into their own unikernel.

use core::arch::asm;
use core::cell::Cell;

use abi::hypercall::{Call, hypercall};

use crate::cell::OneCpu;
use crate::paging::MACHINE_TO_PHYSICAL;
use crate::symbols::_start_pv;
use crate::user;

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

/// Jumps to where nothing is.
pub fn wild_jump() -> ! {
    // SAFETY: Nothing is mapped there, so the jump traps before anything is executed.
    unsafe { asm!("jmp {at}", at = in(reg) NOWHERE, options(noreturn)) }
}

/// Divides by zero, by the processor's instruction.
pub fn division_by_zero() -> ! {
    // SAFETY: The instruction traps before it changes anything.
    unsafe { asm!("xor ecx, ecx", "div ecx", out("ecx") _, out("eax") _, out("edx") _) };
    panic!("a division by zero did not trap");
}

/// Uses up the stack.
pub fn stack_overflow() -> ! {
    // SAFETY: The page below the stack is not mapped, so that this traps there at the latest; what
    // lies below the stack pointer is nobody's, as there is no red zone.
    unsafe { asm!("2:", "push rax", "jmp 2b", options(noreturn)) }
}

/// Computes nothing, without end.
pub fn endless_loop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// A word of the kernel part.
static KERNEL_WORD: OneCpu<Cell<u64>> = OneCpu::new(Cell::new(KERNEL_VALUE));
/// What it holds as long as user mode has no power over it.
const KERNEL_VALUE: u64 = 0x6b65_726e_656c_2021;

/// Whether a word of the kernel part is as it was at first; and its address.
pub fn kernel_word() -> (bool, u64) {
    (KERNEL_WORD.get() == KERNEL_VALUE, KERNEL_WORD.as_ptr() as u64)
}

/// Reads a word of the kernel part in user mode.
pub fn read_kernel() -> ! {
    assert!(user::is_inside(), "this is for programs in user mode");
    panic!("the kernel part says {:#x}", KERNEL_WORD.get());
}

/// Writes a word of the kernel part in user mode.
pub fn write_kernel() -> ! {
    assert!(user::is_inside(), "this is for programs in user mode");
    KERNEL_WORD.set(0);
    panic!("the kernel part can be written");
}

/// Reads Xen's list of machine frames in user mode.
pub fn read_machine_frames() -> ! {
    assert!(user::is_inside(), "this is for programs in user mode");
    let at = core::ptr::with_exposed_provenance::<u64>(MACHINE_TO_PHYSICAL as usize);
    // SAFETY: Xen's list, which nobody writes while it is read, or nothing: then this traps.
    panic!("the first machine frame is {:#x}", unsafe { at.read_volatile() });
}

/// Asks Xen in user mode to end this domain.
pub fn hypercall_in_user_mode() -> ! {
    /// `SCHEDOP_shutdown`.
    const SHUTDOWN: u64 = 2;
    assert!(user::is_inside(), "this is for programs in user mode");
    let crash = 3u32;
    let arguments = [SHUTDOWN, &raw const crash as u64, 0, 0, 0];
    // SAFETY: Xen reads one word, if this is a hypercall at all.
    let result = unsafe { hypercall(Call::SchedOp, arguments) };
    panic!("Xen answers {result}");
}

/// Jumps in user mode to where the image is entered.
pub fn jump_to_entry() -> ! {
    assert!(user::is_inside(), "this is for programs in user mode");
    // SAFETY: In user mode the first instruction traps: it writes to the kernel part's memory.
    unsafe { asm!("jmp {at}", at = in(reg) _start_pv as *const () as u64, options(noreturn)) }
}
