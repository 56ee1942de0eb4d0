//! What each domain owns, counted while a store is read back.

use alloc::collections::BTreeMap;

/// Owners that are counted without a look at the map. They alternate from node to node, and few
/// hosts have more domains at a time; of two that share a place, the nodes cost a little more.
const PLACES: usize = 64;

/// Nodes and their bytes.
type Count = (u32, u64);

/// Counts nodes by owner.
#[derive(Debug)]
pub(super) struct Owned {
    /// Nodes of all owners.
    pub total: u32,
    places: [(u16, Count); PLACES],
    others: BTreeMap<u16, Count>,
}

impl Owned {
    /// No nodes.
    pub fn new() -> Self {
        Self { total: 0, places: [(0, (0, 0)); PLACES], others: BTreeMap::new() }
    }

    /// One more node of this owner, of so many bytes.
    #[inline(always)]
    pub fn add(&mut self, owner: u16, bytes: u32) {
        let place = &mut self.places[usize::from(owner) % PLACES];
        if place.0 != owner {
            let (other, count) = core::mem::replace(place, (owner, (0, 0)));
            put_aside(&mut self.others, other, count);
        }
        self.total += 1;
        place.1.0 += 1;
        place.1.1 += u64::from(bytes);
    }

    /// Nodes and bytes of each owner.
    pub fn finish(mut self) -> BTreeMap<u16, Count> {
        for (owner, count) in self.places.into_iter().filter(|(_, count)| count.0 > 0) {
            put_aside(&mut self.others, owner, count);
        }
        self.others
    }
}

/// Adds to what the map says.
#[cold]
fn put_aside(others: &mut BTreeMap<u16, Count>, owner: u16, (nodes, bytes): Count) {
    if nodes > 0 {
        let sum = others.entry(owner).or_default();
        *sum = (sum.0 + nodes, sum.1 + bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_that_share_a_place_are_counted_apart() {
        let mut owned = Owned::new();
        for round in 0..10 {
            for owner in [0, 16, PLACES as u16, 16 + PLACES as u16, u16::MAX] {
                owned.add(owner, 100 + round);
            }
        }
        owned.add(5, 7);
        assert_eq!(owned.total, 51);
        let counts: Vec<_> = owned.finish().into_iter().collect();
        let many = (10, 1_045);
        let wanted = [(0, many), (5, (1, 7)), (16, many), (64, many), (80, many), (65_535, many)];
        assert_eq!(counts, wanted);
    }
}
