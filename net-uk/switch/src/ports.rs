//! Sets of ports.

use crate::MAX_PORTS;

/// A port of the switch, below [`MAX_PORTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u8);

/// A set of ports, as large whatever it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortSet([u64; MAX_PORTS / 64]);

impl PortSet {
    /// No port.
    pub const EMPTY: Self = Self([0; MAX_PORTS / 64]);

    const fn place(port: PortId) -> (usize, u64) {
        (port.0 as usize / 64, 1 << (port.0 % 64))
    }

    /// Adds a port.
    pub fn insert(&mut self, port: PortId) {
        let (word, bit) = Self::place(port);
        self.0[word] |= bit;
    }

    /// Takes a port out.
    pub fn remove(&mut self, port: PortId) {
        let (word, bit) = Self::place(port);
        self.0[word] &= !bit;
    }

    /// Whether it holds a port.
    pub fn contains(&self, port: PortId) -> bool {
        let (word, bit) = Self::place(port);
        self.0[word] & bit != 0
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// How many it holds.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Its ports, in order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = PortId> {
        let mut words = self.0;
        core::iter::from_fn(move || {
            let word = words.iter().position(|word| *word != 0)?;
            let bit = words[word].trailing_zeros() as usize;
            words[word] &= words[word] - 1;
            Some(PortId((word * 64 + bit) as u8))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(ports in proptest::collection::btree_set(any::<u8>(), 0..300)) {
            let mut set = PortSet::EMPTY;
            for port in &ports {
                set.insert(PortId(*port));
            }
            prop_assert_eq!(set.len(), ports.len());
            prop_assert_eq!(set.iter().map(|port| port.0).collect::<BTreeSet<_>>(), ports.clone());
            for port in &ports {
                prop_assert!(set.contains(PortId(*port)));
                set.remove(PortId(*port));
            }
            prop_assert!(set.is_empty());
        }
    }
}
