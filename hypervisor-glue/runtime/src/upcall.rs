//! The only two places where an event may interrupt this domain: while it waits, and inside a
//! hypercall that takes long.

use core::arch::asm;
use core::cell::Cell;
use core::sync::atomic::Ordering;

use abi::hypercall::{Call, hypercall};

use crate::cell::OneCpu;
use crate::events::EventWords;
use crate::hypervisor::event_words;
use crate::shared_info;
use crate::symbols::{ppvmm_block, ppvmm_failsafe, ppvmm_upcall};

/// How often `during` runs for one upcall while events are left. Xen announces no event while an
/// earlier one of the same 64 ports is left, but a storm of events must not keep the hypercall
/// from its end either.
const REPEATS: u32 = 8;

/// What the long hypercall under way calls back. The pointee outlives the hypercall.
static DURING: OneCpu<Cell<Option<*mut dyn FnMut()>>> = OneCpu::new(Cell::new(None));
/// A long hypercall is under way.
static BUSY: OneCpu<Cell<bool>> = OneCpu::new(Cell::new(false));

/// Masks upcalls, forgets what a former life was doing, and tells Xen where upcalls go.
pub(crate) fn open() {
    shared_info::upcall_mask().store(1, Ordering::SeqCst);
    DURING.set(None);
    BUSY.set(false);
    let arguments = [ppvmm_upcall as *const () as u64, ppvmm_failsafe as *const () as u64, 0, 0, 0];
    // SAFETY: The handlers keep to Xen's rules (entry.s); upcalls are masked now.
    let result = unsafe { hypercall(Call::SetCallbacks, arguments) };
    assert_eq!(result, 0, "Xen accepts callbacks in this domain's half of the address space");
}

/// Sleeps until an unmasked event is pending.
pub(crate) fn block(words: &EventWords<'_>) {
    shared_info::upcall_pending().store(0, Ordering::SeqCst);
    if words.any() {
        return;
    }
    // SAFETY: The routine saves what Rust expects to be saved; it enables upcalls only while it
    // waits, and their handler touches nothing but the stack it was given.
    unsafe { ppvmm_block() }
}

/// A hypercall with upcalls enabled; `during` runs whenever an event arrives in the middle, and
/// first if one is pending already. Events that it leaves it is called for again, at most
/// [`REPEATS`] times in a row.
///
/// # Safety
/// As for [`hypercall`]; also, `during` must not touch what is passed to Xen.
pub(crate) unsafe fn long(call: Call, arguments: [u64; 5], during: &mut dyn FnMut()) -> i64 {
    assert!(!BUSY.get(), "a long hypercall inside of a long hypercall");
    BUSY.set(true);
    // SAFETY: Only the lifetime changes; the pointer is forgotten before this function returns
    // (or, after a failure, by `open`, before any upcall can come).
    let during: *mut (dyn FnMut() + 'static) = unsafe { core::mem::transmute(during) };
    DURING.set(Some(during));
    if event_words().any() {
        // Xen raises an upcall when a selector bit becomes set: for events that are pending
        // already we ask for it ourselves.
        shared_info::upcall_pending().store(1, Ordering::SeqCst);
    }
    let result: i64;
    // SAFETY: As in `hypercall`; upcalls come between the two stores only. Their handler keeps
    // all registers and runs `during` on this stack, which no option here forbids.
    unsafe {
        asm!(
            "mov byte ptr [{mask}], 0",
            "syscall",
            "mov byte ptr [{mask}], 1",
            mask = in(reg) shared_info::upcall_mask().as_ptr(),
            inout("rax") call as u64 => result,
            inout("rdi") arguments[0] => _,
            inout("rsi") arguments[1] => _,
            inout("rdx") arguments[2] => _,
            inout("r10") arguments[3] => _,
            inout("r8") arguments[4] => _,
            out("rcx") _,
            out("r11") _,
        );
    }
    DURING.set(None);
    BUSY.set(false);
    result
}

/// Called by the upcall handler, upcalls masked, in the middle of a long hypercall.
#[unsafe(no_mangle)]
extern "C" fn ppvmm_during() {
    shared_info::upcall_pending().store(0, Ordering::SeqCst);
    if let Some(during) = DURING.take() {
        let words = event_words();
        for _ in 0..REPEATS {
            // SAFETY: `long` is suspended in its hypercall and holds the only other reference,
            // which it does not use meanwhile; `take` keeps a nested call out.
            unsafe { (*during)() };
            if !words.any() {
                break;
            }
        }
        DURING.set(Some(during));
    }
}
