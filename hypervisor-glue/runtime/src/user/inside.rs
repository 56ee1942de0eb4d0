//! The program's side of user mode.

use core::arch::asm;
use core::fmt::{self, Write};
use core::{ptr, slice};

use abi::PAGE_SIZE;

use super::{HEADER, OUTPUT_WORDS, call, places};
use crate::failure::FailureText;
use crate::{DeviceRegisters, DmaMemory};

/// A program that runs in user mode. It is never dropped.
pub trait Program: Sized + 'static {
    /// A fresh one.
    fn begin() -> Self;

    /// Serves a batch.
    fn serve(&mut self, inside: &mut Inside);
}

/// What a program has while it serves a batch.
#[derive(Debug)]
pub struct Inside {
    registers_pages: usize,
    view_pages: usize,
    input: &'static [u32],
    count: usize,
}

impl Inside {
    /// What the kernel part finds at the start of the state: a program was made.
    const IS_MADE: u64 = 1;

    /// Looks around, at the start of a batch.
    ///
    /// # Safety
    /// In user mode alone.
    unsafe fn look() -> Self {
        let at = ptr::with_exposed_provenance::<u32>(places::INPUT.address());
        // SAFETY: In user mode the input is mapped there, longer than its header says; the kernel
        // part writes it only while user mode does not run.
        unsafe {
            let header: [u32; HEADER] = at.cast::<[u32; HEADER]>().read();
            let [count, registers_pages, view_pages] = header.map(|word| word as usize);
            let input = slice::from_raw_parts(at.add(HEADER), count);
            Self { registers_pages, view_pages, input, count: 0 }
        }
    }

    /// The batch.
    pub fn input(&self) -> &'static [u32] {
        self.input
    }

    /// The device's registers. Writing one traps.
    pub fn registers(&self) -> DeviceRegisters {
        let base = ptr::with_exposed_provenance_mut(places::REGISTERS.address());
        DeviceRegisters::at_base(base, self.registers_pages * PAGE_SIZE)
    }

    /// The memory to look at. Writing to it traps.
    pub fn view(&self) -> DmaMemory {
        let base = ptr::with_exposed_provenance_mut(places::VIEW.address());
        // SAFETY: Mapped as long as the program lives; the kernel part has no references into it.
        unsafe { DmaMemory::new(base, self.view_pages * PAGE_SIZE) }
    }

    /// Puts words out, all of them at once if they are fewer than a thousand. The kernel part sees
    /// them at the next [`Inside::flush`], or at the end of the batch.
    pub fn put(&mut self, words: &[u32]) {
        for part in words.chunks(OUTPUT_WORDS) {
            if self.count + part.len() > OUTPUT_WORDS {
                self.flush();
            }
            let at = output(1 + self.count);
            // SAFETY: There is room for the part (checked), in memory that is the program's own.
            unsafe { at.copy_from_nonoverlapping(part.as_ptr(), part.len()) }
            self.count += part.len();
        }
    }

    /// Shows the kernel part what was put out; it acts on it before this returns.
    pub fn flush(&mut self) {
        self.leave(call::FLUSH);
        self.count = 0;
    }

    fn leave(&self, number: u64) {
        // SAFETY: The first word of the output, which is the program's own.
        unsafe { output(0).write_volatile(self.count as u32) }
        leave(number);
    }
}

/// The address of a word of the output.
fn output(word: usize) -> *mut u32 {
    ptr::with_exposed_provenance_mut(places::OUTPUT.address() + 4 * word)
}

/// Leaves user mode with a number, and comes back if the kernel part wants that.
fn leave(number: u64) {
    // SAFETY: In user mode the instruction goes to the kernel part, which changes no register but
    // those named here.
    unsafe {
        asm!("syscall", in("rax") number, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
}

/// Where user mode starts with each batch, on an empty stack.
pub(super) extern "C" fn begin<P: Program>() -> ! {
    const { assert!(size_of::<P>() + 64 <= places::STATE.len() && align_of::<P>() <= 64) }
    let state = places::STATE.address();
    let is_made = ptr::with_exposed_provenance_mut::<u64>(state);
    let program = ptr::with_exposed_provenance_mut::<P>(state + 64);
    // SAFETY: The state is mapped, the program's own, and zero before it is made. Nothing else
    // refers to it: each batch has these references for itself.
    let inside = unsafe {
        if is_made.read_volatile() != Inside::IS_MADE {
            program.write(P::begin());
            is_made.write_volatile(Inside::IS_MADE);
        }
        let mut inside = Inside::look();
        (*program).serve(&mut inside);
        inside
    };
    inside.leave(call::DONE);
    panic!("entered behind the end of a batch")
}

/// Whether this code runs in user mode: the kernel part's stack never lies there.
pub(crate) fn is_inside() -> bool {
    let stack: usize;
    // SAFETY: Only looks at a register.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) }
    (places::START..places::START + places::PAGES * PAGE_SIZE).contains(&stack)
}

/// Tells the kernel part of a panic in user mode.
pub(crate) fn panicked(reason: fmt::Arguments<'_>) -> ! {
    let mut text = FailureText::new();
    let _ = text.write_fmt(reason);
    let bytes = text.as_str().as_bytes();
    // SAFETY: The output is the program's own, and longer than any text.
    unsafe {
        output(0).write_volatile(bytes.len() as u32);
        output(1).cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
    }
    loop {
        leave(call::PANICKED);
    }
}
