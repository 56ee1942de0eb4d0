//! A hostile guest: attacks its host's services with everything that a guest's kernel may write.
//!
//! Its first module names what it does, in words: `seed=N`, `ms=N` for the length of each attack,
//! `attacks=NAME,NAME,…`. Before and after each it prints one machine-readable line.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod attack;
mod channels;
mod grants;
mod protocol;
mod random;
mod rings;
mod victim;

use runtime::guest::Guest;

use crate::attack::ATTACKS;
use crate::victim::Attacker;

runtime::guest!(main);

/// Length of an attack unless the plan says otherwise.
const DEFAULT_MS: u64 = 500;
/// Pause before, between and after attacks, so that their effects can be told apart.
const PAUSE_NS: u64 = 30_000_000;

fn main(guest: Guest) -> ! {
    let text = core::str::from_utf8(guest.module()).unwrap_or("");
    let word = |name: &str| {
        let words = guest.command_line().split_ascii_whitespace().chain(text.split_whitespace());
        let mut values = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        values.next_back()
    };
    let number = |name: &str, default| word(name).and_then(|n| n.parse().ok()).unwrap_or(default);
    let length_ns = number("ms", DEFAULT_MS) * 1_000_000;
    let mut attacker = Attacker::new(guest, number("seed", 1));
    let (served, at_ns) = (attacker.recover(), guest.now_ns());
    guest.print(format_args!(
        "@{{\"event\":\"attacker-begins\",\"at\":{at_ns},\"served\":{served}}}"
    ));
    // An ordinary guest boots meanwhile; nothing is measured before it works.
    guest.sleep_until(guest.now_ns() + number("wait_ms", 0) * 1_000_000);
    for name in word("attacks").unwrap_or("").split(',') {
        let Some(attack) = ATTACKS.iter().find(|attack| attack.name == name) else {
            guest.print(format_args!("@{{\"event\":\"attack-unknown\",\"name\":\"{name}\"}}"));
            continue;
        };
        let begin_ns = guest.now_ns();
        say(guest, name, "begin", begin_ns, "");
        attacker.begin(begin_ns + length_ns);
        (attack.run)(&mut attacker);
        let rounds = attacker.rounds();
        let end_ns = guest.now_ns();
        let more = alloc::format!(",\"rounds\":{rounds}");
        say(guest, name, "end", end_ns, &more);
        let served = attacker.recover();
        let more = alloc::format!(",\"served\":{served}");
        say(guest, name, "after", guest.now_ns(), &more);
        guest.sleep_until(guest.now_ns() + PAUSE_NS);
    }
    guest.print(format_args!("@{{\"event\":\"attacks-done\"}}"));
    loop {
        guest.sleep_until(guest.now_ns() + 1_000_000_000);
    }
}

fn say(guest: Guest, name: &str, phase: &str, at_ns: u64, more: &str) {
    guest.print(format_args!(
        "@{{\"event\":\"attack\",\"name\":\"{name}\",\"phase\":\"{phase}\",\"at\":{at_ns}{more}}}"
    ));
}
