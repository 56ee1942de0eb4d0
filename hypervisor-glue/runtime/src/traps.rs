//! Exceptions of this domain's own code: each ends the life it happens in.

use core::arch::asm;
use core::cell::{Cell, UnsafeCell};
use core::fmt::Write;

use abi::hypercall::{Call, hypercall};
use abi::layout::{FLAT_KERNEL_CS, TrapInfo};

use crate::cell::OneCpu;
use crate::console::{self, Console};
use crate::symbols::{ppvmm_beginning, ppvmm_fresh_stack, ppvmm_pv_traps};
use crate::{failure, shared_info};

/// What `entry.s` leaves on the stack.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rax: u64,
    pub(crate) r8: u64,
    pub(crate) r9: u64,
    pub(crate) r10: u64,
    pub(crate) r11: u64,
    pub(crate) rbx: u64,
    pub(crate) rbp: u64,
    pub(crate) r12: u64,
    pub(crate) r13: u64,
    pub(crate) r14: u64,
    pub(crate) r15: u64,
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

const VECTORS: usize = 32;
pub(crate) const PAGE_FAULT: u64 = 14;
/// Also clear the event enable flag, as for an interrupt gate.
const MASK_EVENTS: u8 = 4;
/// `int3` and `into` may be raised by an instruction.
const ANY_LEVEL: u8 = 3;

static TABLE: OneCpu<UnsafeCell<[TrapInfo; VECTORS + 1]>> =
    OneCpu::new(UnsafeCell::new([EMPTY; VECTORS + 1]));
const EMPTY: TrapInfo = TrapInfo { vector: 0, flags: 0, cs: 0, address: 0 };

/// The trap that the self-test provokes, and where it goes on with a fresh stack.
pub(crate) type Expected = (u64, extern "C" fn(u64) -> !);
static EXPECTED: OneCpu<Cell<Option<Expected>>> = OneCpu::new(Cell::new(None));

/// Tells Xen the handlers of all vectors, unless this life has done so before it began again
/// ([`flush`]): that costs a tenth of its start.
pub(crate) fn open() {
    /// The entry has begun again.
    const AGAIN: u64 = 2;
    // SAFETY: One vCPU; entry.s writes the word at the entry and in the handler.
    if unsafe { (&raw const ppvmm_beginning).read_volatile() } == AGAIN {
        return;
    }
    // SAFETY: One vCPU: nobody else looks at the table; Xen copies it during the call, up to the
    // entry with address 0.
    unsafe {
        let table = &mut *TABLE.get();
        for (vector, info) in table[..VECTORS].iter_mut().enumerate() {
            let level = if vector == 3 || vector == 4 { ANY_LEVEL } else { 0 };
            *info = TrapInfo {
                vector: vector as u8,
                flags: MASK_EVENTS | level,
                cs: FLAT_KERNEL_CS,
                address: ppvmm_pv_traps[vector],
            };
        }
        let result = hypercall(Call::SetTrapTable, [TABLE.get() as u64, 0, 0, 0, 0]);
        assert_eq!(result, 0, "Xen accepts a table of handlers in our half of the address space");
    }
}

/// Provokes a trap at the beginning of a later life, so that one which Xen could not deliver to the
/// former life (its stack was unusable) does not come later and look like ours: the entry begins
/// again after it, once.
pub(crate) fn flush() {
    /// The entry waits for a trap of the former life.
    const WAITING: u64 = 1;
    // SAFETY: One vCPU; entry.s handles the breakpoint by beginning again, as if nothing had been.
    unsafe {
        if (&raw const ppvmm_beginning).read_volatile() == WAITING {
            asm!("int3");
        }
    }
}

/// From now on every trap is this life's own.
pub(crate) fn own() {
    // SAFETY: One vCPU.
    unsafe { (&raw mut ppvmm_beginning).write_volatile(0) }
}

/// The next trap with this vector is wanted.
pub(crate) fn expect(trap: Expected) {
    EXPECTED.set(Some(trap));
}

pub(crate) fn name(vector: u64) -> &'static str {
    match vector {
        0 => "division by zero",
        1 => "debug exception",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        6 => "invalid instruction",
        8 => "double fault",
        12 => "stack fault",
        13 => "general protection fault",
        14 => "page fault",
        16 | 19 => "floating-point error",
        17 => "unaligned access",
        18 => "machine check",
        _ => "exception",
    }
}

fn fault_address(vector: u64) -> u64 {
    if vector != PAGE_FAULT {
        0
    } else if console::is_bare() {
        crate::pvh::fault_address()
    } else {
        shared_info::fault_address()
    }
}

/// Called by every trap stub, on the stack of the code that trapped.
#[unsafe(no_mangle)]
extern "C" fn ppvmm_trap(frame: &Frame) -> ! {
    if let Some((vector, resume)) = EXPECTED.take()
        && vector == frame.vector
    {
        // SAFETY: The test that provoked the trap does not go on; nothing of its stack is used.
        unsafe { ppvmm_fresh_stack(resume, vector) }
    }
    let address = fault_address(frame.vector);
    dump(frame, address);
    failure::fail(format_args!(
        "trap {} ({}) at rip {:#x}, error {:#x}, address {address:#x}, rsp {:#x}",
        frame.vector,
        name(frame.vector),
        frame.rip,
        frame.error,
        frame.rsp
    ))
}

fn dump(frame: &Frame, address: u64) {
    if console::is_silent() {
        return;
    }
    let Frame { rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, .. } = frame;
    let Frame { r8, r9, r10, r11, r12, r13, r14, r15, .. } = frame;
    let Frame { rip, cs, rflags, ss, vector, error, .. } = frame;
    let _ = write!(
        Console,
        "\ntrap {vector} ({}) error {error:#x} address {address:#x}\n\
         rip {rip:016x} cs {:04x} rflags {rflags:08x} rsp {rsp:016x} ss {ss:04x}\n\
         rax {rax:016x} rbx {rbx:016x} rcx {rcx:016x} rdx {rdx:016x}\n\
         rsi {rsi:016x} rdi {rdi:016x} rbp {rbp:016x} r8  {r8:016x}\n\
         r9  {r9:016x} r10 {r10:016x} r11 {r11:016x} r12 {r12:016x}\n\
         r13 {r13:016x} r14 {r14:016x} r15 {r15:016x}\n",
        name(*vector),
        cs & 0xffff,
    );
}
