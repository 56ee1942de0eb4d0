//! Raw ranges of memory that others may change: every access is a volatile copy.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use fabric::SharedMemory;

/// A mapped range of bytes. Whoever makes one vouches that it stays mapped as long as the value
/// and its copies are used, and that Rust owns nothing in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    base: *mut u8,
    len: usize,
}

impl Span {
    /// The `len` bytes at `base`.
    ///
    /// # Safety
    /// 1. The range must stay mapped (writable if written) while the value and its copies live.
    /// 2. No Rust reference may ever point into it.
    /// 3. `base` must be aligned to 8 bytes.
    pub(crate) const unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }

    /// Where it starts.
    pub(crate) fn address(&self) -> usize {
        self.base as usize
    }

    /// The `len` bytes from `offset`, a multiple of 8.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Self {
        assert!(offset.is_multiple_of(8), "part at unaligned offset {offset}");
        Self { base: self.at(offset, len), len }
    }

    /// The address of `offset`, with `len` bytes of the range behind it.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        if len > self.len || offset > self.len - len {
            out_of_range(offset, len);
        }
        self.base.wrapping_add(offset)
    }

    #[inline(always)]
    fn word(&self, offset: usize, len: usize) -> *mut u8 {
        if !offset.is_multiple_of(len) {
            unaligned(offset);
        }
        self.at(offset, len)
    }
}

/// Apart, as are all messages of such checks: what it takes to make them would cost each access.
#[cold]
#[inline(never)]
fn out_of_range(offset: usize, len: usize) -> ! {
    panic!("{len} bytes at {offset}: out of range")
}

#[cold]
#[inline(never)]
fn unaligned(offset: usize) -> ! {
    panic!("word at unaligned offset {offset}")
}

/// Copies by string instructions: to the compiler an opaque access, as volatile as it must be,
/// and with the fewest instructions per byte that need no vector registers.
///
/// # Safety
/// Both ranges must be mapped and, by Rust's rules, `to` writable and `from` readable.
#[inline]
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: The direction flag is clear (ABI); the rest is the caller's duty.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            tail = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Sets bytes by string instructions.
///
/// # Safety
/// The range must be mapped and, by Rust's rules, writable.
#[inline]
pub(crate) unsafe fn fill(to: *mut u8, len: usize, value: u8) {
    // SAFETY: As for `copy`.
    unsafe {
        asm!(
            "rep stosq",
            "mov rcx, {tail}",
            "rep stosb",
            tail = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            in("rax") u64::from_ne_bytes([value; 8]),
            options(nostack, preserves_flags),
        );
    }
}

impl SharedMemory for Span {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: `from` has `into.len()` mapped bytes (checked; `new`, condition 1), which no
        // Rust object overlaps (condition 2).
        unsafe { copy(into.as_mut_ptr(), from, into.len()) }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: As in `read`.
        unsafe { copy(to, from.as_ptr(), from.len()) }
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        let to = self.at(offset, len);
        // SAFETY: As in `read`.
        unsafe { fill(to, len, value) }
    }

    fn load_u32(&self, offset: usize) -> u32 {
        let word = self.word(offset, 4).cast();
        // SAFETY: Mapped and in range as in `read`, aligned (`word`; `new`, condition 3), and
        // accessed by other domains only, for which an atomic load is well defined.
        unsafe { AtomicU32::from_ptr(word) }.load(Ordering::Acquire)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        let word = self.word(offset, 4).cast();
        // SAFETY: As in `load_u32`.
        unsafe { AtomicU32::from_ptr(word) }.store(value, Ordering::Release);
    }

    fn load_u64(&self, offset: usize) -> u64 {
        let word = self.word(offset, 8).cast();
        // SAFETY: As in `load_u32`.
        unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Acquire)
    }

    fn store_u64(&self, offset: usize, value: u64) {
        let word = self.word(offset, 8).cast();
        // SAFETY: As in `load_u32`.
        unsafe { AtomicU64::from_ptr(word) }.store(value, Ordering::Release);
    }
}

/// Implements [`SharedMemory`] for a type by its field `span`.
macro_rules! shared_by_span {
    ($type:ty) => {
        impl fabric::SharedMemory for $type {
            fn len(&self) -> usize {
                self.span.len()
            }
            fn read(&self, offset: usize, into: &mut [u8]) {
                self.span.read(offset, into);
            }
            fn write(&self, offset: usize, from: &[u8]) {
                self.span.write(offset, from);
            }
            fn fill(&self, offset: usize, len: usize, value: u8) {
                self.span.fill(offset, len, value);
            }
            fn load_u32(&self, offset: usize) -> u32 {
                self.span.load_u32(offset)
            }
            fn store_u32(&self, offset: usize, value: u32) {
                self.span.store_u32(offset, value);
            }
            fn load_u64(&self, offset: usize) -> u64 {
                self.span.load_u64(offset)
            }
            fn store_u64(&self, offset: usize, value: u64) {
                self.span.store_u64(offset, value);
            }
        }
    };
}
pub(crate) use shared_by_span;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_every_length() {
        let mut store = [0u64; 8];
        // SAFETY: `store` outlives the span and is touched through it alone.
        let span = unsafe { Span::new(store.as_mut_ptr().cast(), 64) };
        for len in 0..=40 {
            span.fill(0, 64, 0xee);
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            span.write(16, &bytes);
            let mut back = vec![0; len];
            span.read(16, &mut back);
            assert_eq!(back, bytes);
            let mut rest = vec![0; 48 - len];
            span.read(16 + len, &mut rest);
            assert!(rest.iter().all(|byte| *byte == 0xee), "nothing beyond {len} bytes");
        }
        span.store_u64(8, 0x0102_0304_0506_0708);
        assert_eq!(span.load_u32(12), 0x0102_0304);
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn stays_in_range() {
        let mut store = [0u64; 2];
        // SAFETY: As above.
        let span = unsafe { Span::new(store.as_mut_ptr().cast(), 16) };
        span.write(9, &[0; 8]);
    }
}
