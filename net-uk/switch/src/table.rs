//! Learned addresses.

use alloc::collections::BTreeMap;

use frame::Mac;

use crate::{AGE_NS, MAX_LEARNED, MAX_LEARNED_MEMBER, PortId};

/// A full table is searched for old addresses this often at most: 1 s, so that a flood of new
/// addresses does not make each frame cost a search.
const SWEEP_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Learned {
    port: PortId,
    seen_ns: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    learned: BTreeMap<(u16, Mac), Learned>,
    per_port: BTreeMap<PortId, usize>,
    swept_ns: u64,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.learned.len()
    }

    pub(crate) fn find(&self, now_ns: u64, vlan: u16, mac: Mac) -> Option<PortId> {
        let learned = self.learned.get(&(vlan, mac))?;
        (now_ns.saturating_sub(learned.seen_ns) < AGE_NS).then_some(learned.port)
    }

    /// Notes where an address was seen. `false` if there is no room.
    pub(crate) fn learn(
        &mut self,
        now_ns: u64,
        vlan: u16,
        mac: Mac,
        port: PortId,
        is_member: bool,
    ) -> bool {
        if let Some(learned) = self.learned.get_mut(&(vlan, mac)) {
            learned.seen_ns = now_ns;
            if learned.port == port {
                return true;
            }
            self.remove(vlan, mac);
        }
        let limit = if is_member { MAX_LEARNED_MEMBER } else { MAX_LEARNED };
        if self.is_full(port, limit) {
            self.sweep(now_ns);
            if self.is_full(port, limit) {
                return false;
            }
        }
        self.learned.insert((vlan, mac), Learned { port, seen_ns: now_ns });
        *self.per_port.entry(port).or_default() += 1;
        true
    }

    fn is_full(&self, port: PortId, limit: usize) -> bool {
        self.learned.len() >= MAX_LEARNED
            || self.per_port.get(&port).is_some_and(|count| *count >= limit)
    }

    fn remove(&mut self, vlan: u16, mac: Mac) {
        if let Some(learned) = self.learned.remove(&(vlan, mac))
            && let Some(count) = self.per_port.get_mut(&learned.port)
        {
            *count -= 1;
        }
    }

    fn sweep(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.swept_ns) < SWEEP_NS {
            return;
        }
        self.swept_ns = now_ns;
        self.retain(|learned| now_ns.saturating_sub(learned.seen_ns) < AGE_NS);
    }

    pub(crate) fn forget_port(&mut self, port: PortId) {
        self.retain(|learned| learned.port != port);
        self.per_port.remove(&port);
    }

    /// Forgets an address in every VLAN: it became some member's own.
    pub(crate) fn forget_address(&mut self, mac: Mac) {
        let found: alloc::vec::Vec<u16> =
            self.learned.keys().filter(|(_, known)| *known == mac).map(|(vlan, _)| *vlan).collect();
        for vlan in found {
            self.remove(vlan, mac);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Learned) -> bool) {
        let per_port = &mut self.per_port;
        self.learned.retain(|_, learned| {
            let keeps = keep(learned);
            if !keeps && let Some(count) = per_port.get_mut(&learned.port) {
                *count -= 1;
            }
            keeps
        });
    }
}
