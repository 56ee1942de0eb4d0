//! What each domain owns, counted while a store is read back.

use alloc::collections::BTreeMap;

/// Owners that are counted without a look at the map. They alternate from node to node, and few
/// hosts have more domains at a time; of two that share a place, the nodes cost a little more.
const PLACES: usize = 32;

/// Nodes and their bytes.
type Count = (u32, u64);

/// Counts nodes by owner.
#[derive(Debug)]
pub(super) struct Owned {
    places: [Place; PLACES],
    others: BTreeMap<u16, Count>,
}

/// The nodes of one owner.
#[derive(Clone, Copy, Debug)]
struct Place {
    bytes: u64,
    nodes: u32,
    owner: u16,
}

impl Owned {
    /// No nodes.
    pub fn new() -> Self {
        let empty = Place { bytes: 0, nodes: 0, owner: 0 };
        Self { places: [empty; PLACES], others: BTreeMap::new() }
    }

    /// One more node of this owner, of so many bytes.
    #[inline(always)]
    pub fn add(&mut self, owner: u16, bytes: u32) {
        let place = &mut self.places[usize::from(owner) % PLACES];
        if place.owner != owner {
            let other = core::mem::replace(place, Place { bytes: 0, nodes: 0, owner });
            put_aside(&mut self.others, other);
        }
        place.nodes += 1;
        place.bytes += u64::from(bytes);
    }

    /// Nodes and bytes of each owner.
    pub fn finish(mut self) -> BTreeMap<u16, Count> {
        let used = self.places.into_iter().filter(|place| place.nodes > 0);
        used.for_each(|place| put_aside(&mut self.others, place));
        self.others
    }
}

/// Adds to what the map says.
#[cold]
fn put_aside(others: &mut BTreeMap<u16, Count>, Place { bytes, nodes, owner }: Place) {
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
        let (a, b) = (PLACES as u16, 16 + PLACES as u16);
        for round in 0..10 {
            for owner in [0, 16, a, b, u16::MAX] {
                owned.add(owner, 100 + round);
            }
        }
        owned.add(5, 7);
        let counts: Vec<_> = owned.finish().into_iter().collect();
        let many = (10, 1_045);
        let wanted = [(0, many), (5, (1, 7)), (16, many), (a, many), (b, many), (65_535, many)];
        assert_eq!(counts, wanted);
    }
}
