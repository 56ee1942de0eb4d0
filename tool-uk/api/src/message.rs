//! Requests, replies and their encoding.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{MAX_GRANTS, Outcome};

/// Version of the encoding, the first byte of every message.
pub const VERSION: u8 = 1;

/// Longest encoded request or reply.
pub const MAX_MESSAGE: usize = 2000;

/// The number of a guest: a domid outside of the services' range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GuestId(pub u16);

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.0)
    }
}

impl From<GuestId> for abi::DomId {
    fn from(guest: GuestId) -> Self {
        Self(guest.0)
    }
}

/// What a guest gets when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestLimits {
    /// Pages it may have, special pages included.
    pub pages: u32,
    /// Its vCPUs.
    pub vcpus: u8,
    /// Highest event channel port.
    pub max_port: u32,
    /// Grant table frames.
    pub grant_frames: u32,
}

/// A parameter of a PVH guest that tool-uk sets (`HVM_PARAM_*`, hvm/params.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Param {
    /// Guest frame of the XenStore ring.
    StorePfn,
    /// The guest's event channel port for XenStore.
    StorePort,
    /// Guest frame of the console ring.
    ConsolePfn,
    /// The guest's event channel port for its console.
    ConsolePort,
}

impl From<Param> for abi::HvmParam {
    fn from(param: Param) -> Self {
        match param {
            Param::StorePfn => Self::StorePfn,
            Param::StorePort => Self::StoreEvtchn,
            Param::ConsolePfn => Self::ConsolePfn,
            Param::ConsolePort => Self::ConsoleEvtchn,
        }
    }
}

/// An entry of a guest's grant table that is filled before the guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Its reference: one of the reserved entries.
    pub reference: u32,
    /// Domid of the service that may map the page.
    pub to: u16,
    /// The page.
    pub gfn: u32,
}

/// What happens to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// It is switched off.
    Off,
    /// It starts again.
    Reboot,
}

/// What tool-uk asks for.
///
/// Bytes and frames are those of the guest's physical address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation<'a> {
    /// Creates a PVH guest without memory, paused. Done already when the guest exists with no
    /// page yet; [`crate::Failure::Exists`] when it has some.
    Create {
        /// Its number.
        guest: GuestId,
        /// Its limits.
        limits: GuestLimits,
    },
    /// Gives the guest pages `first_gfn..first_gfn + pages`.
    ///
    /// `before` is how many pages it has: what an interrupted execution has done is the
    /// difference to what Xen counts, so the next one goes on there.
    Populate {
        /// The guest.
        guest: GuestId,
        /// Pages it has before.
        before: u32,
        /// First frame.
        first_gfn: u32,
        /// Number of pages.
        pages: u32,
    },
    /// Copies bytes of an archive entry into the guest's memory.
    Load {
        /// The guest.
        guest: GuestId,
        /// Name of the archive entry.
        #[serde(borrow)]
        entry: &'a str,
        /// Where to start in the entry.
        offset: u32,
        /// Where to write.
        address: u32,
        /// How many bytes.
        len: u32,
    },
    /// Sets bytes of the guest's memory to 0.
    Zero {
        /// The guest.
        guest: GuestId,
        /// Where to start.
        address: u32,
        /// How many bytes.
        len: u32,
    },
    /// Writes bytes into the guest's memory.
    Write {
        /// The guest.
        guest: GuestId,
        /// Where to write.
        address: u32,
        /// The bytes.
        #[serde(borrow)]
        bytes: &'a [u8],
    },
    /// Reads bytes of an archive entry.
    ReadArchive {
        /// Name of the archive entry.
        #[serde(borrow)]
        entry: &'a str,
        /// Where to start in the entry.
        offset: u32,
        /// How many bytes at most.
        len: u32,
    },
    /// Sets a parameter.
    SetParam {
        /// The guest.
        guest: GuestId,
        /// Which one.
        param: Param,
        /// Its value: a frame or a port.
        value: u32,
    },
    /// Makes the guest's event channel for XenStore and relays it. The outcome is the guest's
    /// port; asked again, the same port.
    ConnectStore {
        /// The guest.
        guest: GuestId,
    },
    /// Makes the guest's event channel for its console and relays it to tool-uk. The outcome is
    /// the guest's port; asked again, the same port.
    ConnectConsole {
        /// The guest.
        guest: GuestId,
    },
    /// Fills reserved entries of the guest's grant table.
    SeedGrants {
        /// The guest.
        guest: GuestId,
        /// The entries.
        grants: heapless::Vec<Grant, MAX_GRANTS>,
    },
    /// Sets the first vCPU to its entry (PVH: 32-bit protected mode).
    SetEntry {
        /// The guest.
        guest: GuestId,
        /// First instruction.
        rip: u32,
        /// Address of `hvm_start_info`.
        start_info: u32,
    },
    /// Stops the guest's vCPUs. Does not nest: paused already is done.
    Pause {
        /// The guest.
        guest: GuestId,
    },
    /// Lets the guest's vCPUs run. Not paused is done.
    Unpause {
        /// The guest.
        guest: GuestId,
    },
    /// Ends the guest and gives its memory back. No such guest is done. A service that still
    /// maps one of its pages delays this: [`crate::Failure::StillMapped`] says try again.
    Destroy {
        /// The guest.
        guest: GuestId,
    },
    /// Asks for a guest's state.
    Query {
        /// The guest.
        guest: GuestId,
    },
    /// Asks for the states of the guests from this number on.
    List {
        /// The first number.
        from: GuestId,
    },
    /// Switches the machine off, or starts it again.
    Host {
        /// What happens.
        power: Power,
    },
}

impl Operation<'_> {
    /// The guest that the operation is about.
    pub fn guest(&self) -> Option<GuestId> {
        match *self {
            Self::Create { guest, .. }
            | Self::Populate { guest, .. }
            | Self::Load { guest, .. }
            | Self::Zero { guest, .. }
            | Self::Write { guest, .. }
            | Self::SetParam { guest, .. }
            | Self::ConnectStore { guest }
            | Self::ConnectConsole { guest }
            | Self::SeedGrants { guest, .. }
            | Self::SetEntry { guest, .. }
            | Self::Pause { guest }
            | Self::Unpause { guest }
            | Self::Destroy { guest }
            | Self::Query { guest }
            | Self::List { from: guest } => Some(guest),
            Self::ReadArchive { .. } | Self::Host { .. } => None,
        }
    }

    /// What is being done, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create the guest",
            Self::Populate { .. } => "give it memory",
            Self::Load { .. } => "load from the archive",
            Self::Zero { .. } => "clear its memory",
            Self::Write { .. } => "write its memory",
            Self::ReadArchive { .. } => "read the archive",
            Self::SetParam { .. } => "set a parameter",
            Self::ConnectStore { .. } => "connect it to XenStore",
            Self::ConnectConsole { .. } => "connect its console",
            Self::SeedGrants { .. } => "fill its grant table",
            Self::SetEntry { .. } => "set its vCPU",
            Self::Pause { .. } => "pause it",
            Self::Unpause { .. } => "let it run",
            Self::Destroy { .. } => "destroy it",
            Self::Query { .. } => "ask for its state",
            Self::List { .. } => "list the guests",
            Self::Host { .. } => "switch the machine off",
        }
    }
}

/// One operation asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request<'a> {
    /// The asking life of tool-uk.
    pub epoch: u32,
    /// Grows by 1 with each request of this life.
    pub sequence: u64,
    /// What is asked for.
    #[serde(borrow)]
    pub operation: Operation<'a>,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply<'a> {
    /// The epoch of the request.
    pub epoch: u32,
    /// The sequence number of the request.
    pub sequence: u64,
    /// What came of it.
    #[serde(borrow)]
    pub outcome: Outcome<'a>,
}

/// Why bytes are not a message. The blame lies on the writer, or on memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// Another version than [`VERSION`].
    Version(u8),
    /// Too short, too long, or not an encoding of anything.
    Malformed,
    /// The message does not fit into the buffer given.
    TooLong,
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "message of version {version}, need {VERSION}"),
            Self::Malformed => f.write_str("malformed message"),
            Self::TooLong => write!(f, "message longer than {MAX_MESSAGE} bytes"),
        }
    }
}

impl core::error::Error for CodecError {}

fn encode<T: Serialize>(message: &T, into: &mut [u8]) -> Result<usize, CodecError> {
    let (version, body) = into.split_first_mut().ok_or(CodecError::TooLong)?;
    *version = VERSION;
    let len = postcard::to_slice(message, body).map_err(|_| CodecError::TooLong)?.len();
    Ok(len + 1)
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    match bytes {
        [VERSION, body @ ..] => match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(message),
            _ => Err(CodecError::Malformed),
        },
        [version, ..] => Err(CodecError::Version(*version)),
        [] => Err(CodecError::Malformed),
    }
}

impl<'a> Request<'a> {
    /// Encodes into the start of `into`; returns the length. A valid request fits into
    /// [`MAX_MESSAGE`] bytes.
    ///
    /// # Errors
    /// [`CodecError::TooLong`].
    pub fn encode(&self, into: &mut [u8]) -> Result<usize, CodecError> {
        encode(self, into)
    }

    /// Decodes a whole request.
    ///
    /// # Errors
    /// [`CodecError::Version`], [`CodecError::Malformed`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, CodecError> {
        decode(bytes)
    }
}

impl<'a> Reply<'a> {
    /// Encodes into the start of `into`; returns the length. A reply with at most
    /// [`crate::MAX_BYTES`] bytes fits into [`MAX_MESSAGE`] bytes.
    ///
    /// # Errors
    /// [`CodecError::TooLong`].
    pub fn encode(&self, into: &mut [u8]) -> Result<usize, CodecError> {
        encode(self, into)
    }

    /// Decodes a whole reply.
    ///
    /// # Errors
    /// [`CodecError::Version`], [`CodecError::Malformed`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, CodecError> {
        decode(bytes)
    }
}
