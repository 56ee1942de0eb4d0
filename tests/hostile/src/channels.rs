//! Attacks on event channels and on the console.

use abi::{DomId, Port};
use fabric::SharedMemory;

use crate::victim::Attacker;

/// Offsets in the console ring (`xencons_interface`, io/console.h).
const OUTPUT: usize = 1024;
const OUTPUT_LEN: u32 = 2048;
const INDICES: [usize; 4] = [3072, 3076, 3080, 3084];
const OUT_CONS: usize = 3080;
const OUT_PROD: usize = 3084;

/// Ports of the orchestrator that are tried: it holds few.
const FOREIGN_PORTS: u32 = 256;
/// Ports allocated and closed again in one round.
const PORTS: usize = 64;

/// Events without work behind them.
pub fn store_storm(attacker: &mut Attacker) {
    while attacker.goes_on() {
        attacker.kick();
    }
}

/// The same on both channels.
pub fn both_storm(attacker: &mut Attacker) {
    while attacker.goes_on() {
        attacker.kick();
        // A refusal is part of the attack.
        let _ = attacker.guest.send(attacker.console_port);
    }
}

/// Text without end, some of it made to look like the host's own records.
pub fn console_flood(attacker: &mut Attacker) {
    const LINES: [&[u8]; 4] = [
        b"@{\"event\":\"recovered\",\"unit\":\"xenstore-uk\",\"detected\":1,\"repaired\":2}\n",
        b"\x1b[2J\x1b]0;title\x07\xff\xfe\x00\r\n",
        b"(xenstore-uk) everything is lost\n",
        &[b'y'; 500],
    ];
    while attacker.goes_on() {
        let line = LINES[attacker.random.below(4) as usize];
        let page = attacker.console;
        let produced = page.load_u32(OUT_PROD);
        let used = produced.wrapping_sub(page.load_u32(OUT_CONS));
        let room = OUTPUT_LEN.saturating_sub(used) as usize;
        let count = line.len().min(room);
        for (index, byte) in line[..count].iter().enumerate() {
            let at = produced.wrapping_add(index as u32) % OUTPUT_LEN;
            page.write(OUTPUT + at as usize, &[*byte]);
        }
        page.store_u32(OUT_PROD, produced.wrapping_add(count as u32));
        // A refusal is part of the attack.
        let _ = attacker.guest.send(attacker.console_port);
    }
}

/// Console indices out of range.
pub fn console_indices(attacker: &mut Attacker) {
    while attacker.goes_on() {
        let at = INDICES[attacker.random.below(4) as usize];
        let value = attacker.random.edge();
        attacker.console.store_u32(at, value);
        // A refusal is part of the attack.
        let _ = attacker.guest.send(attacker.console_port);
    }
    for at in INDICES {
        attacker.console.store_u32(at, 0);
    }
}

/// Closes both channels, allocates ports towards every service, binds whatever the orchestrator
/// leaves open, and finds its channels again crosswise: the console's end on the lower number.
pub fn ports(attacker: &mut Attacker) {
    let guest = attacker.guest;
    while attacker.goes_on() {
        for port in [attacker.store_port, attacker.console_port] {
            // Closed twice is an error that shall do no harm.
            let _ = guest.close(port);
        }
        let mut own = [None; PORTS];
        for slot in &mut own {
            *slot = guest.alloc_unbound(DomId(attacker.random.below(20) as u16)).ok();
        }
        for port in own.into_iter().flatten() {
            let _ = guest.send(port);
            let _ = guest.close(port);
        }
        let mut bound = [None; 2];
        let mut found = bound.iter_mut();
        for foreign in (1..FOREIGN_PORTS).rev() {
            if let Ok(port) = guest.bind(DomId::ORCHESTRATOR, Port(foreign))
                && let Some(place) = found.next()
            {
                *place = Some(port);
            }
        }
        if let [Some(console), Some(store)] = bound {
            (attacker.console_port, attacker.store_port) = (console, store);
        }
        attacker.kick();
        let _ = guest.send(attacker.console_port);
    }
}
