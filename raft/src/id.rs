//! Who speaks: a replica, the life of its storage, the life of its domain.

/// Most replicas of one cluster. Three are used; five would still fit every bounded table.
pub const MAX_REPLICAS: usize = 5;

/// A member of the cluster in the sense of Raft: a replica together with the life of its storage.
///
/// A replica whose storage was lost comes back as a *different* member. It can therefore neither
/// vote twice in a term nor be counted for entries that it once acknowledged and has forgotten;
/// the ordinary change of membership puts it in the place of the member that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ident(u64);

impl Ident {
    /// The member that replica `replica` (1-based) is since its storage was formatted in the boot
    /// epoch `storage_epoch`; founders of the cluster have storage epoch 0.
    pub const fn new(replica: u8, storage_epoch: u32) -> Self {
        Self(replica as u64 | (storage_epoch as u64) << 8)
    }

    /// Reads an identity from its packed form; `None` when no replica has it.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        let replica = (raw & 0xff) as usize;
        if replica == 0 || replica > MAX_REPLICAS || raw >> 40 != 0 {
            None
        } else {
            Some(Self(raw))
        }
    }

    /// The packed form: replica in the low byte, storage epoch in the four bytes above.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The replica's number, from 1.
    pub const fn replica(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// The boot epoch in which the storage was formatted; 0 for a founder.
    pub const fn storage_epoch(self) -> u32 {
        (self.0 >> 8) as u32
    }

    /// Place of this replica in a table of [`MAX_REPLICAS`].
    pub(crate) const fn slot(self) -> usize {
        self.replica() as usize - 1
    }

    pub(crate) const fn core(self) -> noraft::NodeId {
        noraft::NodeId::new(self.0)
    }
}

/// A place in the log: `index` counts entries from 1, `term` is that of the entry there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Term of the entry.
    pub term: u64,
    /// Index of the entry; 0 is the place before the first.
    pub index: u64,
}

impl Position {
    pub(crate) const fn core(self) -> noraft::LogPosition {
        noraft::LogPosition::new(noraft::Term::new(self.term), noraft::LogIndex::new(self.index))
    }
}

impl From<noraft::LogPosition> for Position {
    fn from(position: noraft::LogPosition) -> Self {
        Self { term: position.term.get(), index: position.index.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_pack_and_unpack() {
        let ident = Ident::new(3, 0xdead_beef);
        assert_eq!(ident.raw(), 0xde_adbe_ef03);
        assert_eq!((ident.replica(), ident.storage_epoch()), (3, 0xdead_beef));
        assert_eq!(Ident::from_raw(ident.raw()), Some(ident));
    }

    #[test]
    fn no_replica_has_number_zero_or_one_beyond_the_bound() {
        for raw in [0, 0x100, 6, 0xff, 1 << 40 | 1, u64::MAX] {
            assert_eq!(Ident::from_raw(raw), None, "{raw:#x}");
        }
    }
}
