//! Errors, which travel as names because the numbers differ between systems.

/// Why a request was refused: the sixteen names that `xs_wire.h` allows, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// Malformed request: bad path, bad number of arguments, bad number.
    Invalid,
    /// The caller may not do this to the node.
    Access,
    /// It exists already (a watch).
    Exists,
    /// It is a directory.
    IsDirectory,
    /// No such node, watch, transaction or domain.
    NotFound,
    /// No memory left for this, or the caller's share of it is used up.
    NoMemory,
    /// A quota of the caller is used up.
    NoSpace,
    /// The store could not do it (it crashed several times on this request).
    Io,
    /// It has children.
    NotEmpty,
    /// No such operation.
    NotSupported,
    /// The store is read-only.
    ReadOnly,
    /// Not possible in this state (a nested transaction, a feature after introduction).
    Busy,
    /// The transaction met a conflict: begin again.
    Again,
    /// The domain is connected already.
    IsConnected,
    /// The answer does not fit a message.
    TooBig,
    /// Only a privileged caller may do this.
    NotPermitted,
}

impl Errno {
    /// Every error, in the order of the header's table.
    pub const ALL: [Self; 16] = [
        Self::Invalid,
        Self::Access,
        Self::Exists,
        Self::IsDirectory,
        Self::NotFound,
        Self::NoMemory,
        Self::NoSpace,
        Self::Io,
        Self::NotEmpty,
        Self::NotSupported,
        Self::ReadOnly,
        Self::Busy,
        Self::Again,
        Self::IsConnected,
        Self::TooBig,
        Self::NotPermitted,
    ];

    /// The name that stands in an ERROR reply, without its final NUL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "EINVAL",
            Self::Access => "EACCES",
            Self::Exists => "EEXIST",
            Self::IsDirectory => "EISDIR",
            Self::NotFound => "ENOENT",
            Self::NoMemory => "ENOMEM",
            Self::NoSpace => "ENOSPC",
            Self::Io => "EIO",
            Self::NotEmpty => "ENOTEMPTY",
            Self::NotSupported => "ENOSYS",
            Self::ReadOnly => "EROFS",
            Self::Busy => "EBUSY",
            Self::Again => "EAGAIN",
            Self::IsConnected => "EISCONN",
            Self::TooBig => "E2BIG",
            Self::NotPermitted => "EPERM",
        }
    }

    /// The payload of the ERROR reply: the name with its final NUL.
    pub fn payload(self) -> &'static [u8] {
        match self {
            Self::Invalid => b"EINVAL\0",
            Self::Access => b"EACCES\0",
            Self::Exists => b"EEXIST\0",
            Self::IsDirectory => b"EISDIR\0",
            Self::NotFound => b"ENOENT\0",
            Self::NoMemory => b"ENOMEM\0",
            Self::NoSpace => b"ENOSPC\0",
            Self::Io => b"EIO\0",
            Self::NotEmpty => b"ENOTEMPTY\0",
            Self::NotSupported => b"ENOSYS\0",
            Self::ReadOnly => b"EROFS\0",
            Self::Busy => b"EBUSY\0",
            Self::Again => b"EAGAIN\0",
            Self::IsConnected => b"EISCONN\0",
            Self::TooBig => b"E2BIG\0",
            Self::NotPermitted => b"EPERM\0",
        }
    }

    /// The error with this name (without NUL), if the table has it.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|error| error.name().as_bytes() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_payloads_agree() {
        for error in Errno::ALL {
            assert_eq!(error.payload().split_last(), Some((&0, error.name().as_bytes())));
            assert_eq!(Errno::from_name(error.name().as_bytes()), Some(error));
        }
        assert_eq!(Errno::from_name(b"EDOM"), None);
    }
}
