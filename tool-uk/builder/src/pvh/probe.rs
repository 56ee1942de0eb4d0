//! Learning what a kernel needs from the first bytes and the notes of its file, read piece by
//! piece: tool-uk has no room for a whole kernel, and need not have.

use core::fmt;

use crate::elf::{ElfError, Header, XenNotes};

/// Bytes of one note range that are read: Linux's has about 500.
const MAX_NOTE_BYTES: usize = 4096;

/// Why a kernel cannot be started. The blame lies on whoever chose the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// The file is not usable.
    Elf(ElfError),
    /// Its notes are larger than what is looked at.
    NotesTooLong(u64),
    /// The archive gave no bytes where the file must have some.
    Short,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => error.fmt(f),
            Self::NotesTooLong(len) => {
                write!(f, "ELF notes of {len} bytes, {MAX_NOTE_BYTES} at most")
            }
            Self::Short => f.write_str("the archive's entry ended early"),
        }
    }
}

impl core::error::Error for ProbeError {}

/// What a probe wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Bytes of the file.
    Bytes {
        /// Where they start.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Nothing: [`Probe::found`] has everything.
    Nothing,
}

/// Reads a kernel's headers and notes.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    header: Option<Header>,
    notes: XenNotes,
    /// The note range being read.
    range: usize,
    /// What has been read of it.
    bytes: heapless::Vec<u8, MAX_NOTE_BYTES>,
}

impl Probe {
    /// A probe that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// What to read next, at most [`api::MAX_BYTES`] at once.
    ///
    /// # Errors
    /// [`ProbeError::NotesTooLong`].
    pub fn wanted(&self) -> Result<Wanted, ProbeError> {
        let most = api::MAX_BYTES as u32;
        let Some(header) = &self.header else {
            return Ok(Wanted::Bytes { offset: 0, len: most });
        };
        let Some(range) = header.notes().get(self.range) else {
            return Ok(Wanted::Nothing);
        };
        if range.len > MAX_NOTE_BYTES as u64 {
            return Err(ProbeError::NotesTooLong(range.len));
        }
        let missing = range.len as u32 - self.bytes.len() as u32;
        let offset = range.offset + self.bytes.len() as u64;
        // Archive entries are shorter than 4 GiB, and the range lies inside of the file.
        let offset = u32::try_from(offset).map_err(|_| ProbeError::Short)?;
        Ok(Wanted::Bytes { offset, len: missing.min(most) })
    }

    /// Takes the bytes that were wanted, of a file of `file_len` bytes.
    ///
    /// # Errors
    /// Every [`ProbeError`].
    pub fn feed(&mut self, bytes: &[u8], file_len: u32) -> Result<(), ProbeError> {
        let Some(header) = &self.header else {
            self.header = Some(Header::parse(bytes, u64::from(file_len)).map_err(ProbeError::Elf)?);
            self.skip_empty();
            return Ok(());
        };
        let Some(range) = header.notes().get(self.range).copied() else {
            return Ok(());
        };
        if bytes.is_empty() {
            return Err(ProbeError::Short);
        }
        self.bytes.extend_from_slice(bytes).map_err(|_| ProbeError::Short)?;
        if self.bytes.len() as u64 >= range.len {
            self.notes.scan(&self.bytes, range.align).map_err(ProbeError::Elf)?;
            self.bytes.clear();
            self.range += 1;
            self.skip_empty();
        }
        Ok(())
    }

    /// What the probe has found; complete when it wants nothing more.
    pub fn found(&self) -> Option<(Header, XenNotes)> {
        Some((self.header?, self.notes))
    }

    fn skip_empty(&mut self) {
        while self
            .header
            .is_some_and(|header| header.notes().get(self.range).is_some_and(|note| note.len == 0))
        {
            self.range += 1;
        }
    }
}
