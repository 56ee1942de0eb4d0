//! The operations of the protocol.

/// What a message asks or answers (`enum xsd_sockmsg_type`, and the operations 23-26 of the
/// current specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Commands to the store itself; DEBUG is its old name.
    Control,
    /// Names of a node's children.
    Directory,
    /// Value of a node.
    Read,
    /// Permissions of a node.
    GetPermissions,
    /// Register a watch.
    Watch,
    /// Remove a watch.
    Unwatch,
    /// Open a transaction.
    TransactionStart,
    /// Commit or drop a transaction.
    TransactionEnd,
    /// Tell the store of a domain and its ring.
    Introduce,
    /// Forget a domain.
    Release,
    /// Base path of a domain.
    GetDomainPath,
    /// Set the value of a node.
    Write,
    /// Make sure a node exists.
    MakeDirectory,
    /// Remove a node and all below it.
    Remove,
    /// Set the permissions of a node.
    SetPermissions,
    /// A watch fired (from the store only).
    WatchEvent,
    /// A request was refused (from the store only).
    Error,
    /// Whether the store knows a domain.
    IsDomainIntroduced,
    /// A suspended domain runs again.
    Resume,
    /// One domain serves another and gets its rights.
    SetTarget,
    /// Drop all watches and transactions of the caller.
    ResetWatches,
    /// A part of the names of a node's children.
    DirectoryPart,
    /// Features offered to a domain.
    GetFeature,
    /// Choose the features offered to a domain.
    SetFeature,
    /// Read a quota.
    GetQuota,
    /// Set a quota.
    SetQuota,
    /// A number without a meaning, RESTRICT (20) among them.
    Unknown(u32),
}

impl Operation {
    /// Every operation with a meaning, in the order of the numbers.
    pub const ALL: [Self; 26] = [
        Self::Control,
        Self::Directory,
        Self::Read,
        Self::GetPermissions,
        Self::Watch,
        Self::Unwatch,
        Self::TransactionStart,
        Self::TransactionEnd,
        Self::Introduce,
        Self::Release,
        Self::GetDomainPath,
        Self::Write,
        Self::MakeDirectory,
        Self::Remove,
        Self::SetPermissions,
        Self::WatchEvent,
        Self::Error,
        Self::IsDomainIntroduced,
        Self::Resume,
        Self::SetTarget,
        Self::ResetWatches,
        Self::DirectoryPart,
        Self::GetFeature,
        Self::SetFeature,
        Self::GetQuota,
        Self::SetQuota,
    ];

    /// The operation with this number.
    pub fn from_raw(raw: u32) -> Self {
        match raw {
            0..=19 => Self::ALL[raw as usize],
            21..=26 => Self::ALL[raw as usize - 1],
            _ => Self::Unknown(raw),
        }
    }

    /// The operation's number.
    pub fn raw(self) -> u32 {
        match self {
            Self::Control => 0,
            Self::Directory => 1,
            Self::Read => 2,
            Self::GetPermissions => 3,
            Self::Watch => 4,
            Self::Unwatch => 5,
            Self::TransactionStart => 6,
            Self::TransactionEnd => 7,
            Self::Introduce => 8,
            Self::Release => 9,
            Self::GetDomainPath => 10,
            Self::Write => 11,
            Self::MakeDirectory => 12,
            Self::Remove => 13,
            Self::SetPermissions => 14,
            Self::WatchEvent => 15,
            Self::Error => 16,
            Self::IsDomainIntroduced => 17,
            Self::Resume => 18,
            Self::SetTarget => 19,
            Self::ResetWatches => 21,
            Self::DirectoryPart => 22,
            Self::GetFeature => 23,
            Self::SetFeature => 24,
            Self::GetQuota => 25,
            Self::SetQuota => 26,
            Self::Unknown(raw) => raw,
        }
    }

    /// The name in the specification; "UNKNOWN" for a number without a meaning.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "CONTROL",
            Self::Directory => "DIRECTORY",
            Self::Read => "READ",
            Self::GetPermissions => "GET_PERMS",
            Self::Watch => "WATCH",
            Self::Unwatch => "UNWATCH",
            Self::TransactionStart => "TRANSACTION_START",
            Self::TransactionEnd => "TRANSACTION_END",
            Self::Introduce => "INTRODUCE",
            Self::Release => "RELEASE",
            Self::GetDomainPath => "GET_DOMAIN_PATH",
            Self::Write => "WRITE",
            Self::MakeDirectory => "MKDIR",
            Self::Remove => "RM",
            Self::SetPermissions => "SET_PERMS",
            Self::WatchEvent => "WATCH_EVENT",
            Self::Error => "ERROR",
            Self::IsDomainIntroduced => "IS_DOMAIN_INTRODUCED",
            Self::Resume => "RESUME",
            Self::SetTarget => "SET_TARGET",
            Self::ResetWatches => "RESET_WATCHES",
            Self::DirectoryPart => "DIRECTORY_PART",
            Self::GetFeature => "GET_FEATURE",
            Self::SetFeature => "SET_FEATURE",
            Self::GetQuota => "GET_QUOTA",
            Self::SetQuota => "SET_QUOTA",
            Self::Unknown(_) => "UNKNOWN",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for raw in (0..300).chain([0xffff, u32::MAX]) {
            assert_eq!(Operation::from_raw(raw).raw(), raw);
        }
        for operation in Operation::ALL {
            assert_eq!(Operation::from_raw(operation.raw()), operation);
        }
        assert_eq!(Operation::from_raw(20), Operation::Unknown(20));
        assert_eq!(Operation::from_raw(27), Operation::Unknown(27));
    }
}
