//! What a replicated store executes: one command per log entry. Together with the connection and
//! the place in its stream that the entry names, it determines everything that follows from it.
//!
//! ```text
//! 0  u8 kind, then
//! 1  Request    the message
//! 2  Part       bytes of the next End that do not fit its entry
//! 3  End        the rest of an ended transaction (`State::prepare_end`)
//! 4  Restart    u8 1 = the connection is given up
//! 5  Forget     nothing
//! 6  Unlink     u16 domid
//! 7  ShutDown   u16 domid
//! 8  Gone       u16 domid
//! 9  Sweep      u16 domid, the path behind which the step begins
//! ```

use alloc::vec::Vec;

use crate::codec::Reader;

/// A change of the replicated state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    /// A client's request: the whole message.
    Request(&'a [u8]),
    /// Bytes of the next [`Command::End`].
    Part(&'a [u8]),
    /// TRANSACTION_END with its outcome, decided by the leader.
    End(&'a [u8]),
    /// A connection begins a new life.
    Restart {
        /// It is given up after an error in its ring.
        is_dead: bool,
    },
    /// The last request of a connection is forgotten: its streams begin at zero again.
    Forget,
    /// A domain's ring cannot be mapped: it counts as not introduced.
    Unlink(u16),
    /// A domain shut down.
    ShutDown(u16),
    /// A domain is gone.
    Gone(u16),
    /// One step of sweeping after a domain that is gone. It says where it begins, because a replica
    /// that reloaded its state has forgotten how far it was.
    Sweep {
        /// The domain.
        domid: u16,
        /// The path behind which the step begins; empty for the first.
        cursor: &'a [u8],
    },
}

impl<'a> Command<'a> {
    /// The command as the payload of a log entry.
    pub fn encode(&self) -> Vec<u8> {
        let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
        match self {
            Self::Request(message) => with(1, message),
            Self::Part(bytes) => with(2, bytes),
            Self::End(bytes) => with(3, bytes),
            Self::Restart { is_dead } => with(4, &[u8::from(*is_dead)]),
            Self::Forget => with(5, &[]),
            Self::Unlink(domid) => with(6, &domid.to_le_bytes()),
            Self::ShutDown(domid) => with(7, &domid.to_le_bytes()),
            Self::Gone(domid) => with(8, &domid.to_le_bytes()),
            Self::Sweep { domid, cursor } => [&[9], &domid.to_le_bytes()[..], cursor].concat(),
        }
    }

    /// Reads a payload; `None` if no leader of this version wrote it.
    pub fn decode(payload: &'a [u8]) -> Option<Self> {
        let (kind, bytes) = payload.split_first()?;
        let domid = || Reader::new(bytes).u16();
        Some(match kind {
            1 => Self::Request(bytes),
            2 => Self::Part(bytes),
            3 => Self::End(bytes),
            4 => Self::Restart { is_dead: bytes == [1] },
            5 => Self::Forget,
            6 => Self::Unlink(domid()?),
            7 => Self::ShutDown(domid()?),
            8 => Self::Gone(domid()?),
            9 => Self::Sweep { domid: domid()?, cursor: &bytes[2..] },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_back() {
        let commands = [
            Command::Request(b"message"),
            Command::Part(b"part"),
            Command::End(b""),
            Command::Restart { is_dead: true },
            Command::Restart { is_dead: false },
            Command::Forget,
            Command::Unlink(17),
            Command::ShutDown(18),
            Command::Gone(0x1234),
            Command::Sweep { domid: 19, cursor: b"/a/b" },
        ];
        for command in commands {
            assert_eq!(Command::decode(&command.encode()), Some(command));
        }
        assert_eq!(Command::decode(&[]), None);
        assert_eq!(Command::decode(&[6, 1]), None);
        assert_eq!(Command::decode(&[77]), None);
    }
}
