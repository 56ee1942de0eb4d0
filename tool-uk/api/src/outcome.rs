//! What comes of an operation.

use core::fmt;

use abi::XenError;
use serde::{Deserialize, Serialize};

use crate::{GuestId, MAX_STATUSES, Refusal};

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestState {
    /// It may run, or waits for an event.
    Running,
    /// It is paused by us.
    Paused,
    /// It shut down or crashed, with this `SHUTDOWN_*` code (sched.h).
    Shutdown(u8),
    /// It is being destroyed, or somebody still maps one of its pages.
    Dying,
}

/// What Xen knows of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// The guest.
    pub guest: GuestId,
    /// Its state.
    pub state: GuestState,
    /// Pages it has.
    pub pages: u32,
    /// CPU time it has received, in nanoseconds.
    pub cpu_time_ns: u64,
}

/// The states of several guests.
pub type Statuses = heapless::Vec<GuestStatus, MAX_STATUSES>;

/// Why a valid operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// No guest of that number.
    NoGuest,
    /// The number is taken.
    Exists,
    /// The machine has no memory left.
    NoMemory,
    /// All connection slots are in use.
    NoSlot,
    /// The archive has no entry of that name.
    NoEntry,
    /// The archive's entry ends before the bytes asked for.
    EntryEnds {
        /// Its length.
        len: u32,
    },
    /// A service still maps a page of the guest: try again.
    StillMapped,
    /// The guest's state does not allow it, such as a populate with a wrong page count.
    WrongState,
    /// Xen refused for another reason: its error number.
    Xen(i32),
}

impl From<XenError> for Failure {
    fn from(error: XenError) -> Self {
        match error {
            XenError::NotFound => Self::NoGuest,
            XenError::Exists => Self::Exists,
            XenError::NoMemory => Self::NoMemory,
            XenError::NotPermitted => Self::Xen(1),
            XenError::BadAddress => Self::Xen(14),
            XenError::Busy => Self::Xen(16),
            XenError::Invalid => Self::Xen(22),
            XenError::NoSpace => Self::Xen(28),
            XenError::Unsupported => Self::Xen(38),
            XenError::WrongVersion => Self::Xen(13),
            XenError::Grant(status) => Self::Xen(i32::from(status)),
            XenError::WindowFull => Self::Xen(12),
            XenError::Other(errno) => Self::Xen(errno),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGuest => f.write_str("there is no such guest"),
            Self::Exists => f.write_str("a domain of that number exists already"),
            Self::NoMemory => f.write_str("the machine has no memory left"),
            Self::NoSlot => f.write_str("all connection slots are in use, destroy a guest first"),
            Self::NoEntry => f.write_str("the archive has no entry of that name"),
            Self::EntryEnds { len } => {
                write!(f, "the archive's entry ends after {len} bytes")
            }
            Self::StillMapped => f.write_str("a service still maps its memory, try again"),
            Self::WrongState => f.write_str("the guest's state does not allow it"),
            Self::Xen(errno) => write!(f, "Xen refused with error {errno}"),
        }
    }
}

impl core::error::Error for Failure {}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome<'a> {
    /// It is done, or was already.
    Done,
    /// The guest's event channel port.
    Port(u32),
    /// Bytes of an archive entry.
    Bytes {
        /// Length of the whole entry.
        entry_len: u32,
        /// The bytes asked for, fewer at its end.
        #[serde(borrow)]
        bytes: &'a [u8],
    },
    /// A guest's state.
    Guest(GuestStatus),
    /// Guests by rising number.
    Guests {
        /// Their states.
        guests: Statuses,
        /// Whether there are more behind the last one.
        more: bool,
    },
    /// The operation is not allowed; nothing was done.
    Refused(Refusal),
    /// The operation failed; it may have been done in part.
    Failed(Failure),
}
