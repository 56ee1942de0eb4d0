//! A bare machine (plain QEMU), where there is only the self-test, and the same entry as a PVH
//! guest of Xen.

use core::arch::asm;

use crate::symbols::UNIKERNEL;
use crate::{console, guest, heap, io, selftest};

/// Called by `entry.s` in 64-bit mode, the first 4 GiB identity-mapped.
#[unsafe(no_mangle)]
extern "C" fn ppvmm_pvh_entry(start_info: u64) -> ! {
    console::use_serial();
    open_traps();
    start_heap(start_info);
    if let Some(main) = UNIKERNEL.guest
        && let Some(guest) = guest::open(start_info)
    {
        main(guest)
    }
    selftest::run()
}

/// A gate of the interrupt descriptor table.
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate([u64; 2]);

fn open_traps() {
    use core::cell::UnsafeCell;

    use crate::cell::OneCpu;
    use crate::symbols::ppvmm_bare_traps;

    const GATES: usize = 32;
    static TABLE: OneCpu<UnsafeCell<[Gate; GATES]>> =
        OneCpu::new(UnsafeCell::new([Gate([0; 2]); GATES]));
    /// Present 64-bit interrupt gate, code segment 8 (see `pvh_gdt`).
    const GATE: u64 = 0x8e00 << 32 | 8 << 16;
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    // SAFETY: One processor, interrupts off. The table is static and holds the stubs of entry.s.
    unsafe {
        for (gate, address) in (*TABLE.get()).iter_mut().zip(ppvmm_bare_traps) {
            let low = address & 0xffff | (address >> 16 & 0xffff) << 48;
            *gate = Gate([low | GATE, address >> 32]);
        }
        let pointer =
            Pointer { limit: size_of::<[Gate; GATES]>() as u16 - 1, base: TABLE.get() as u64 };
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack));
    }
}

/// Gives the heap the memory behind the image.
fn start_heap(start_info: u64) {
    /// `XEN_HVM_START_MAGIC_VALUE`.
    const MAGIC: u32 = 0x336e_c578;
    /// Offsets of `memmap_paddr` and `memmap_entries` (arch-x86/hvm/start_info.h).
    const MAP: u64 = 40;
    const ENTRIES: u64 = 48;
    const RAM: u32 = 1;
    /// The self-test needs little; a scaling test of a unit may need much.
    const MOST_BYTES: u64 = 1 << 30;
    let begin = (&raw const crate::symbols::__image_end as u64).next_multiple_of(4096);
    // SAFETY: The loader passes the address of `hvm_start_info`; it and the memory map lie in
    // identity-mapped memory.
    let end = unsafe {
        let word = |address: u64| (address as *const u32).read_unaligned();
        let long = |address: u64| (address as *const u64).read_unaligned();
        if word(start_info) != MAGIC {
            return;
        }
        let map = long(start_info + MAP);
        (0..u64::from(word(start_info + ENTRIES)))
            .map(|index| map + index * 24)
            .map(|entry| (long(entry), long(entry + 8), word(entry + 16)))
            .find(|(base, size, kind)| *kind == RAM && *base <= begin && begin < base + size)
            .map_or(begin, |(base, size, _)| (base + size).min(1 << 32))
    };
    // QEMU puts what it passes at the low end of memory or behind the image's megabytes: leave
    // the last one alone.
    let end = end.saturating_sub(1 << 20).min(begin + MOST_BYTES);
    if end > begin {
        // SAFETY: Free memory of the machine, identity-mapped; nothing was allocated yet.
        unsafe { heap::start(begin, end) }
    }
}

/// The address that the last page fault was about.
pub(crate) fn fault_address() -> u64 {
    let address: u64;
    // SAFETY: Reading CR2 has no effect; on a bare machine we run at the highest level.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) }
    address
}

/// Ends the machine.
pub(crate) fn exit(code: u8) -> ! {
    guest::crash_if_open();
    // SAFETY: A bare machine's kernel may use all ports.
    unsafe { io::exit_qemu(code) }
    loop {
        // SAFETY: Interrupts are off: this stops for good, without an exit device to end it.
        unsafe { asm!("hlt", options(nomem, nostack)) }
    }
}
