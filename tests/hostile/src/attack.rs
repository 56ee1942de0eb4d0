//! The list of attacks.

use abi::ShutdownReason;

use crate::victim::Attacker;
use crate::{channels, grants, protocol, rings};

/// An attack: runs until the attacker's time is over.
pub struct Attack {
    /// Its name in plans.
    pub name: &'static str,
    /// Its code.
    pub run: fn(&mut Attacker),
}

const fn attack(name: &'static str, run: fn(&mut Attacker)) -> Attack {
    Attack { name, run }
}

/// Every attack. `idle` and `spin` are none: what others feel under the others is compared with
/// them.
pub const ATTACKS: [Attack; 27] = [
    attack("idle", idle),
    attack("spin", spin),
    attack("ring-indices", rings::indices),
    attack("ring-lengths", rings::lengths),
    attack("ring-garbage", rings::garbage),
    attack("ring-half", rings::half),
    attack("ring-unread", rings::unread),
    attack("ring-flood", rings::flood),
    attack("ring-reconnect", rings::reconnect),
    attack("grants-clear", grants::clear),
    attack("grants-retarget", grants::retarget),
    attack("grants-types", grants::types),
    attack("page-gone", grants::page_gone),
    attack("events-store", channels::store_storm),
    attack("events-both", channels::both_storm),
    attack("console-flood", channels::console_flood),
    attack("console-indices", channels::console_indices),
    attack("ports", channels::ports),
    attack("watches", protocol::watches),
    attack("transactions", protocol::transactions),
    attack("values", protocol::values),
    attack("give-away", protocol::give_away),
    attack("paths", protocol::paths),
    attack("deep", protocol::deep),
    attack("crash", |attacker| end(attacker, ShutdownReason::Crash)),
    attack("reboot", |attacker| end(attacker, ShutdownReason::Reboot)),
    attack("suspend", |attacker| end(attacker, ShutdownReason::Suspend)),
];

fn idle(attacker: &mut Attacker) {
    while attacker.goes_on() {
        attacker.guest.sleep_until(attacker.guest.now_ns() + 10_000_000);
    }
}

fn spin(attacker: &mut Attacker) {
    while attacker.goes_on() {}
}

/// Ends the guest, with a request half sent; the toolstack starts it again, and it does it again.
fn end(attacker: &mut Attacker, reason: ShutdownReason) {
    attacker.push(b"half");
    attacker.kick();
    // Nothing is left to do when it is refused.
    let _ = attacker.guest.shutdown(reason);
}
