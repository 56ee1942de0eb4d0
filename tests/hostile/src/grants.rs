//! Attacks on the grants of the rings, and on the pages behind them.

use fabric::SharedMemory;
use runtime::guest::{PARAM_CONSOLE_PFN, PARAM_STORE_PFN};

use crate::victim::{Attacker, SEEDED};

/// Entries taken back while they are in use, and given again.
pub fn clear(attacker: &mut Attacker) {
    let grants = attacker.guest.grants();
    while attacker.goes_on() {
        for index in 0..SEEDED {
            grants.store_u64(index * 8, 0);
        }
        attacker.kick();
        attacker.guest.sleep_until(attacker.guest.now_ns() + 1_000_000);
        for (index, entry) in attacker.seeded.iter().enumerate() {
            grants.store_u64(index * 8, *entry);
        }
    }
}

/// Entries that name another domain, and frames of every kind: kernel code, the grant table itself,
/// the tables of ACPI, nothing at all.
pub fn retarget(attacker: &mut Attacker) {
    const FRAMES: [u64; 7] = [0, 1, 0x100, 0xfeff8, 0xfee00, 0xf_ffff, 0xffff_ffff];
    let grants = attacker.guest.grants();
    while attacker.goes_on() {
        for index in 0..SEEDED {
            let frame = FRAMES[attacker.random.below(FRAMES.len() as u64) as usize];
            let domid = attacker.random.below(20);
            grants.store_u64(index * 8, 1 | domid << 16 | frame << 32);
        }
        attacker.kick();
        attacker.guest.sleep_until(attacker.guest.now_ns() + 1_000_000);
    }
}

/// Entries of other types (grant_table.h): read-only, transfer, transitive, with Xen's own bits.
pub fn types(attacker: &mut Attacker) {
    let grants = attacker.guest.grants();
    while attacker.goes_on() {
        for (index, entry) in attacker.seeded.iter().enumerate() {
            let flags = attacker.random.below(1 << 16);
            grants.store_u64(index * 8, entry & !0xffff | flags);
        }
        attacker.kick();
        attacker.guest.sleep_until(attacker.guest.now_ns() + 1_000_000);
    }
}

/// The pages of both rings given back to Xen while they are mapped.
pub fn page_gone(attacker: &mut Attacker) {
    for index in [PARAM_STORE_PFN, PARAM_CONSOLE_PFN] {
        let gfn = attacker.guest.param(index).unwrap_or(0);
        // A refusal would be as good as success for everybody else.
        let _ = attacker.guest.give_up_page(gfn);
    }
    while attacker.goes_on() {
        attacker.kick();
        attacker.guest.sleep_until(attacker.guest.now_ns() + 1_000_000);
    }
}
