//! Tests that run inside of the unikernel.

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::cell::UnsafeCell;

use abi::{Access, DomId, GrantRef, PAGE_SIZE, PortStatus, Virq, Xen, XenError};
use fabric::SharedMemory;

use crate::cell::OneCpu;
use crate::selftest::{self, Test};
use crate::span::Span;
use crate::{Hypervisor, clock, grants, heap, paging, traps};

/// Tests that need no hypervisor.
pub(crate) const EVERYWHERE: &[Test] = &[
    ("the image's data is as it was linked", image_data),
    ("copies of every length and alignment", copies),
    ("the heap gives, grows and takes back", heap_blocks),
    ("the heap refuses what it does not have", heap_limit),
    ("the time-stamp counter only grows", ticks_grow),
];
/// Tests of what Xen does for us.
pub(crate) const ON_XEN: &[Test] = &[
    ("system time only grows", time_grows),
    ("the timer wakes a blocked domain", timer_wakes),
    ("events loop back, each port once", events_loop_back),
    ("a masked storm is one event", events_coalesce),
    ("a page granted to ourselves is mapped and unmapped", grant_loops_back),
    ("a missing grant is refused, and nothing stays mapped", grant_refused),
];

/// Fails with the reason unless the condition holds.
fn check(holds: bool, reason: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(reason) }
}

fn image_data() -> Result<(), &'static str> {
    static INITIALISED: OneCpu<UnsafeCell<[u64; 3]>> = OneCpu::new(UnsafeCell::new([1, 2, 3]));
    static ZERO: OneCpu<UnsafeCell<[u64; 512]>> = OneCpu::new(UnsafeCell::new([0; 512]));
    // SAFETY: One vCPU, and nobody else refers to these statics.
    let (initialised, zero) = unsafe { (INITIALISED.get().read_volatile(), &*ZERO.get()) };
    check(initialised == [1, 2, 3], "initialised data differs")?;
    check(zero.iter().all(|word| *word == 0), "uninitialised data is not zero")
}

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; PAGE_SIZE]>);

/// A page for tests, reached by spans only.
static PAGE: OneCpu<Page> = OneCpu::new(Page(UnsafeCell::new([0; PAGE_SIZE])));

fn page() -> Span {
    // SAFETY: 1. A static. 2. Its cell is never borrowed. 3. Page-aligned.
    unsafe { Span::new(PAGE.0.get().cast(), PAGE_SIZE) }
}

fn copies() -> Result<(), &'static str> {
    let (page, mut back) = (page(), [0; 64]);
    let pattern: [u8; 64] = core::array::from_fn(|index| index as u8 + 1);
    for offset in 0..9 {
        for len in 0..=50 {
            page.fill(0, 128, 0xee);
            page.write(offset, &pattern[..len]);
            page.read(offset, &mut back[..len]);
            check(back[..len] == pattern[..len], "what was written is not what is read")?;
            page.read(offset + len, &mut back[..8]);
            check(back[..8] == [0xee; 8], "a write went too far")?;
        }
    }
    page.store_u64(8, 0x0102_0304_0506_0708);
    check(page.load_u32(12) == 0x0102_0304, "words are not little endian")
}

fn heap_blocks() -> Result<(), &'static str> {
    let before = heap::free_bytes();
    let mut blocks: Vec<Box<[u8]>> = Vec::new();
    for index in 0..200usize {
        blocks.push(alloc::vec![index as u8; 1 + index * 7].into_boxed_slice());
        if index % 3 == 0 {
            blocks.swap_remove(index / 2 % blocks.len());
        }
    }
    let whole = blocks.iter().all(|block| block.iter().all(|byte| *byte == block[0]));
    check(whole, "blocks overlap")?;
    let mut grown: Vec<u64> = Vec::new();
    grown.extend(0..10_000);
    check(grown.iter().copied().eq(0..10_000), "a grown block lost its content")?;
    drop((blocks, grown));
    check(heap::free_bytes() == before, "memory was lost")
}

fn heap_limit() -> Result<(), &'static str> {
    let mut huge: Vec<u8> = Vec::new();
    let refused = huge.try_reserve_exact(heap::size_bytes() + 1).is_err();
    check(refused, "more than all memory was given")
}

fn ticks_grow() -> Result<(), &'static str> {
    let mut last = clock::tsc();
    for _ in 0..10_000 {
        let now = clock::tsc();
        check(now >= last, "it went backwards")?;
        last = now;
    }
    Ok(())
}

fn time_grows() -> Result<(), &'static str> {
    let xen = Hypervisor::new();
    let first = xen.now_ns();
    let mut last = first;
    for _ in 0..10_000 {
        let now = xen.now_ns();
        check(now >= last, "it went backwards")?;
        last = now;
    }
    check(last > first, "it stands still")
}

fn timer_wakes() -> Result<(), &'static str> {
    const DELAY_NS: u64 = 2_000_000;
    let xen = Hypervisor::new();
    let timer = xen.bind_virq(Virq::Timer).map_err(|_| "no timer")?;
    let due_ns = xen.now_ns() + DELAY_NS;
    xen.set_timer(Some(due_ns));
    xen.block();
    check(xen.now_ns() >= due_ns, "woken too early")?;
    check(xen.next_event() == Some(timer), "woken by something else")?;
    check(xen.next_event().is_none(), "woken twice")?;
    xen.set_timer(Some(1));
    xen.block();
    check(xen.next_event() == Some(timer), "a time that has passed does not fire")?;
    xen.close(timer).map_err(|_| "the port does not close")
}

/// Two connected ports of this domain.
fn loopback(xen: &Hypervisor) -> Result<(abi::Port, abi::Port), &'static str> {
    let ours = xen.alloc_unbound(DomId::SELF).map_err(|_| "no port")?;
    let theirs = xen.bind_interdomain(DomId::SELF, ours).map_err(|_| "not bound to itself")?;
    check(xen.next_event() == Some(theirs), "a new port is not pending")?;
    Ok((ours, theirs))
}

fn events_loop_back() -> Result<(), &'static str> {
    const PAIRS: usize = 40;
    let xen = Hypervisor::new();
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        pairs.push(loopback(&xen)?);
    }
    for (ours, theirs) in &pairs {
        let status = xen.port_status(DomId::SELF, *ours).map_err(|_| "no status")?;
        let PortStatus::Interdomain(_, other) = status else { return Err("not connected") };
        check(other == *theirs, "connected to another port")?;
        xen.send(*ours).map_err(|_| "not sent")?;
    }
    let mut seen = [0u8; 4096];
    while let Some(port) = xen.next_event() {
        seen[port.0 as usize % 4096] += 1;
    }
    for (ours, theirs) in pairs {
        check(seen[theirs.0 as usize] == 1, "an event came not once")?;
        check(seen[ours.0 as usize] == 0, "an event came to its sender")?;
        xen.close(ours).map_err(|_| "not closed")?;
        xen.close(theirs).map_err(|_| "not closed")?;
    }
    Ok(())
}

fn events_coalesce() -> Result<(), &'static str> {
    let xen = Hypervisor::new();
    let (ours, theirs) = loopback(&xen)?;
    for _ in 0..1000 {
        xen.send(ours).map_err(|_| "not sent")?;
    }
    xen.block();
    check(xen.next_event() == Some(theirs), "not woken")?;
    check(xen.next_event().is_none(), "more than one event")?;
    xen.close(ours).map_err(|_| "not closed")?;
    xen.send(theirs).map_err(|_| "a send to a dead end fails")?;
    xen.close(theirs).map_err(|_| "not closed")
}

/// This domain's number, which only its channels to itself tell.
fn own_id(xen: &Hypervisor) -> Result<DomId, &'static str> {
    let (ours, theirs) = loopback(xen)?;
    let status = xen.port_status(DomId::SELF, ours).map_err(|_| "no status")?;
    for port in [ours, theirs] {
        xen.close(port).map_err(|_| "not closed")?;
    }
    match status {
        PortStatus::Interdomain(me, _) => Ok(me),
        _ => Err("not connected"),
    }
}

fn grant_loops_back() -> Result<(), &'static str> {
    const REFERENCE: GrantRef = GrantRef(600);
    const ROUNDS: u64 = 100;
    let xen = Hypervisor::new();
    let page = page();
    let frame = paging::machine_frame(page.address() as u64);
    let me = own_id(&xen)?;
    grants::grant(REFERENCE, me, frame, Access::ReadWrite).map_err(|_| "no grant table")?;
    for round in 0..ROUNDS {
        let references = [REFERENCE; 3];
        let mapping =
            xen.map_grants(me, &references, Access::ReadWrite).map_err(|_| "not mapped")?;
        mapping.store_u64(PAGE_SIZE + 16, round);
        check(page.load_u64(16) == round, "a write did not arrive")?;
        page.store_u64(24, round + 1);
        check(mapping.load_u64(2 * PAGE_SIZE + 24) == round + 1, "a read is stale")?;
    }
    Ok(())
}

fn grant_refused() -> Result<(), &'static str> {
    /// `GNTST_general_error`: what Xen says of an entry that permits nothing.
    const REFUSED: i16 = -1;
    let xen = Hypervisor::new();
    let references = [GrantRef(600), GrantRef(601)];
    let me = own_id(&xen)?;
    for _ in 0..50 {
        match xen.map_grants(me, &references, Access::ReadOnly) {
            Err(XenError::Grant(REFUSED)) => {}
            Err(_) => return Err("refused with another error"),
            Ok(_) => return Err("mapped"),
        }
    }
    Ok(())
}

/// What provokes a trap, and which one it must be.
const TRAPS: [(&str, u64, fn()); 4] = [
    ("a breakpoint traps", 3, breakpoint),
    ("an invalid instruction traps", 6, invalid_instruction),
    ("a division by zero traps", 0, division),
    ("a wild write traps", 14, wild_write),
];

fn breakpoint() {
    // SAFETY: The trap handler goes on in `after_trap`; nothing of this stack is used again.
    unsafe { asm!("int3") }
}

fn invalid_instruction() {
    // SAFETY: As above.
    unsafe { asm!("ud2") }
}

fn division() {
    // SAFETY: As above.
    unsafe { asm!("div {zero:e}", zero = in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _) }
}

fn wild_write() {
    /// In the lower half of the address space, where nothing is ever mapped.
    const NOWHERE: u64 = 0x5555_0000_0000;
    // SAFETY: As above.
    unsafe { asm!("mov byte ptr [{}], 1", in(reg) NOWHERE) }
}

/// Provokes the trap `index` and goes on behind it; after the last one the self-test ends.
pub(crate) fn provoke_trap(index: usize) -> ! {
    let Some((name, vector, provoke)) = TRAPS.get(index) else { selftest::finish() };
    traps::expect((*vector, after_trap));
    provoke();
    selftest::report(name, Err("it does not"));
    provoke_trap(index + 1)
}

/// On a fresh stack, after the right trap.
extern "C" fn after_trap(vector: u64) -> ! {
    let index = TRAPS.iter().position(|(_, wanted, _)| *wanted == vector).unwrap_or(0);
    selftest::report(TRAPS[index].0, Ok(()));
    provoke_trap(index + 1)
}
