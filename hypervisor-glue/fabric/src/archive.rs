//! The archive: images of units and guests in the one module that Xen hands to its initial domain.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `PpVMMarc` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | number of entries, at most 63 |
//! | 16 | 8 | length of the whole archive in bytes, a multiple of the page size |
//! | 24 | 4 | CRC-32 over the bytes 0..24 and the table |
//! | 28 | 36 | zero |
//! | 64 | 64 × n | table, one row per entry |
//!
//! A row: name (32 bytes, zero-padded ASCII), offset u64 (a multiple of the page size), length u64,
//! CRC-32 of the entry's bytes, 12 zero bytes. Entries follow the table's page in the order of the
//! table, each at the start of a page, so that they are used in place.
//!
//! [`Archive::open`] checks the table; [`Entry::verify`] reads every byte of an entry, which costs
//! 2.3 instructions per byte (0.1 s for 40 MiB at 1 GIPS), so its caller decides when.

use alloc::vec::Vec;

use crate::PAGE_SIZE;
use crate::text::Text;

/// First bytes of an archive.
pub const MAGIC: [u8; 8] = *b"PpVMMarc";
/// Version of this format.
pub const VERSION: u32 = 1;
/// Entries in an archive, at most: header and table share the first page.
pub const ENTRIES_MAX: usize = (PAGE_SIZE - HEADER) / ROW;
/// Longest name of an entry in bytes.
pub const NAME_MAX: usize = 32;

const HEADER: usize = 64;
const ROW: usize = 64;
const CHECKED: usize = 24;

/// An entry's name, as far as it is printable.
pub type Name = Text<NAME_MAX>;

/// Why an archive, or one of its entries, cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// No archive was given, or it is smaller than its header.
    Truncated {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be, as far as is known.
        needed: u64,
    },
    /// It does not begin as an archive does.
    Magic {
        /// The first bytes.
        found: [u8; 8],
    },
    /// Made by another version of the image tool.
    Version {
        /// Its version.
        found: u32,
    },
    /// More entries than an archive holds.
    Count {
        /// The number found.
        found: u32,
    },
    /// Header or table are not those that were written.
    TableCrc {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of header and table.
        computed: u32,
    },
    /// An entry does not lie in the archive, behind its table.
    Bounds {
        /// The entry.
        name: Name,
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u64,
        /// Bytes of the archive.
        archive: u64,
    },
    /// An entry does not begin at a page.
    Alignment {
        /// The entry.
        name: Name,
        /// Its offset.
        offset: u64,
    },
    /// An entry begins before the one in front of it ends.
    Overlap {
        /// The entry.
        name: Name,
        /// The entry in front of it.
        other: Name,
    },
    /// Two entries have one name, or one has none.
    Name {
        /// The name.
        name: Name,
    },
    /// There is no entry of this name.
    Missing {
        /// The name asked for.
        name: Name,
    },
    /// An entry's bytes are not those that were written.
    Crc {
        /// The entry.
        name: Name,
        /// The checksum in the table.
        stored: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
}

impl core::fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated { found, needed } => {
                write!(f, "it is cut off: {found} bytes, needs {needed}")
            }
            Self::Magic { found } => write!(
                f,
                "it is no PpVMM archive: it begins with {found:02x?}, not with \"PpVMMarc\"; pass \
                 the archive as the one module after the orchestrator"
            ),
            Self::Version { found } => {
                write!(f, "its version is {found}, this orchestrator reads {VERSION}; make it anew")
            }
            Self::Count { found } => {
                write!(f, "its table claims {found} entries, at most {ENTRIES_MAX} are allowed")
            }
            Self::TableCrc { stored, computed } => write!(
                f,
                "its table is damaged: CRC {stored:#010x} stored, {computed:#010x} computed"
            ),
            Self::Bounds { name, offset, length, archive } => write!(
                f,
                "entry \"{name}\" (offset {offset:#x}, {length} bytes) lies outside of the \
                 archive's {archive} bytes"
            ),
            Self::Alignment { name, offset } => {
                write!(f, "entry \"{name}\" begins at {offset:#x}, not at a page")
            }
            Self::Overlap { name, other } => {
                write!(f, "entry \"{name}\" begins before \"{other}\" ends")
            }
            Self::Name { name } => write!(f, "entry name \"{name}\" is empty or not the only one"),
            Self::Missing { name } => write!(f, "it has no entry \"{name}\""),
            Self::Crc { name, stored, computed } => write!(
                f,
                "entry \"{name}\" is damaged: CRC {stored:#010x} stored, {computed:#010x} computed"
            ),
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy)]
struct Row {
    name: [u8; NAME_MAX],
    offset: u64,
    length: u64,
    crc: u32,
}

impl Row {
    fn parse(bytes: &[u8]) -> Self {
        let mut name = [0; NAME_MAX];
        name.copy_from_slice(&bytes[..NAME_MAX]);
        let (offset, length) = (read_u64(bytes, 32), read_u64(bytes, 40));
        Self { name, offset, length, crc: read_u32(bytes, 48) }
    }

    fn emit(&self, bytes: &mut [u8]) {
        bytes[..NAME_MAX].copy_from_slice(&self.name);
        bytes[32..40].copy_from_slice(&self.offset.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.length.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.crc.to_le_bytes());
    }

    fn name(&self) -> Name {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_MAX);
        Name::from_bytes(&self.name[..end])
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(read_u32(bytes, at)) | u64::from(read_u32(bytes, at + 4)) << 32
}

/// An archive whose table has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Archive<'a> {
    /// Checks header and table (not the entries' bytes). `bytes` may be longer than the archive.
    pub fn open(bytes: &'a [u8]) -> Result<Self, ArchiveError> {
        let found = bytes.len() as u64;
        let too_short = |needed| ArchiveError::Truncated { found, needed };
        if bytes.len() < HEADER {
            return Err(too_short(HEADER as u64));
        }
        if bytes[..8] != MAGIC {
            let mut found = [0; 8];
            found.copy_from_slice(&bytes[..8]);
            return Err(ArchiveError::Magic { found });
        }
        if read_u32(bytes, 8) != VERSION {
            return Err(ArchiveError::Version { found: read_u32(bytes, 8) });
        }
        let count = read_u32(bytes, 12) as usize;
        if count > ENTRIES_MAX {
            return Err(ArchiveError::Count { found: read_u32(bytes, 12) });
        }
        let table = HEADER + count * ROW;
        if bytes.len() < table {
            return Err(too_short(table as u64));
        }
        let (stored, computed) = (read_u32(bytes, CHECKED), table_crc(&bytes[..table]));
        if stored != computed {
            return Err(ArchiveError::TableCrc { stored, computed });
        }
        let length = read_u64(bytes, 16);
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= bytes.len())
            .ok_or(too_short(length))?;
        if length < table {
            return Err(ArchiveError::Truncated { found: length as u64, needed: table as u64 });
        }
        let archive = Self { bytes: &bytes[..length], count };
        archive.check_rows(table)?;
        Ok(archive)
    }

    fn check_rows(&self, table: usize) -> Result<(), ArchiveError> {
        let archive = self.bytes.len() as u64;
        let mut end = table as u64;
        let mut other = Name::new();
        for (index, row) in self.rows().enumerate() {
            let (name, Row { offset, length, .. }) = (row.name(), row);
            if name.is_empty() || self.rows().take(index).any(|earlier| earlier.name == row.name) {
                return Err(ArchiveError::Name { name });
            }
            if !offset.is_multiple_of(PAGE_SIZE as u64) {
                return Err(ArchiveError::Alignment { name, offset });
            }
            let row_end = offset.checked_add(length).filter(|row_end| *row_end <= archive);
            let Some(row_end) = row_end.filter(|_| offset >= table as u64) else {
                return Err(ArchiveError::Bounds { name, offset, length, archive });
            };
            if offset < end {
                return Err(ArchiveError::Overlap { name, other });
            }
            (end, other) = (row_end, name);
        }
        Ok(())
    }

    fn rows(&self) -> impl Iterator<Item = Row> + use<'a> {
        self.bytes[HEADER..].chunks_exact(ROW).take(self.count).map(Row::parse)
    }

    /// The entries, in the order of the table.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let archive = *self;
        self.rows().map(move |row| archive.slice(&row))
    }

    /// The entry called `name`; its bytes are not checked yet ([`Entry::verify`]).
    pub fn entry(&self, name: &str) -> Result<Entry<'a>, ArchiveError> {
        let missing = ArchiveError::Missing { name: Name::from_bytes(name.as_bytes()) };
        let padded = pad(name).ok_or(missing)?;
        let row = self.rows().find(|row| row.name == padded).ok_or(missing)?;
        Ok(self.slice(&row))
    }

    fn slice(&self, row: &Row) -> Entry<'a> {
        let (start, length) = (row.offset as usize, row.length as usize);
        Entry { name: row.name(), bytes: &self.bytes[start..start + length], crc: row.crc }
    }

    /// Bytes of the archive.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the archive has no entry.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// One entry, used in place.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    name: Name,
    bytes: &'a [u8],
    crc: u32,
}

impl<'a> Entry<'a> {
    /// Its name.
    pub fn name(&self) -> Name {
        self.name
    }

    /// Its bytes, checked or not; they begin at a page of the archive.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The checksum that the table names.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// Reads every byte and compares the checksum.
    pub fn verify(&self) -> Result<(), ArchiveError> {
        let (stored, computed) = (self.crc, crc32fast::hash(self.bytes));
        if stored == computed {
            return Ok(());
        }
        Err(ArchiveError::Crc { name: self.name, stored, computed })
    }
}

fn table_crc(table: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&table[..CHECKED]);
    crc.update(&table[HEADER..]);
    crc.finalize()
}

fn pad(name: &str) -> Option<[u8; NAME_MAX]> {
    let mut padded = [0; NAME_MAX];
    padded.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    Some(padded)
}

/// Why an entry cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The name is empty, longer than [`NAME_MAX`], not printable ASCII, or already there.
    Name,
    /// There are [`ENTRIES_MAX`] entries.
    Full,
}

impl core::fmt::Display for BuildError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Name => write!(
                f,
                "an archive entry's name has 1 to {NAME_MAX} printable ASCII bytes and is unique"
            ),
            Self::Full => write!(f, "an archive holds at most {ENTRIES_MAX} entries"),
        }
    }
}

/// Makes archives: the image tool's side.
#[derive(Clone, Debug, Default)]
pub struct ArchiveBuilder {
    rows: Vec<Row>,
    bytes: Vec<u8>,
}

impl core::fmt::Debug for Row {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?} at {:#x}+{}", self.name(), self.offset, self.length)
    }
}

impl ArchiveBuilder {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry behind those already there.
    pub fn add(&mut self, name: &str, content: &[u8]) -> Result<(), BuildError> {
        let is_printable = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        let padded = pad(name).filter(|_| is_printable).ok_or(BuildError::Name)?;
        if self.rows.iter().any(|row| row.name == padded) {
            return Err(BuildError::Name);
        }
        if self.rows.len() == ENTRIES_MAX {
            return Err(BuildError::Full);
        }
        self.rows.push(Row {
            name: padded,
            offset: (PAGE_SIZE + self.bytes.len()) as u64,
            length: content.len() as u64,
            crc: crc32fast::hash(content),
        });
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(PAGE_SIZE), 0);
        Ok(())
    }

    /// The archive's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut archive = Vec::with_capacity(PAGE_SIZE + self.bytes.len());
        archive.resize(PAGE_SIZE, 0);
        for (row, bytes) in self.rows.iter().zip(archive[HEADER..].chunks_exact_mut(ROW)) {
            row.emit(bytes);
        }
        let count = self.rows.len() as u32;
        let length = (PAGE_SIZE + self.bytes.len()) as u64;
        archive[..8].copy_from_slice(&MAGIC);
        archive[8..12].copy_from_slice(&VERSION.to_le_bytes());
        archive[12..16].copy_from_slice(&count.to_le_bytes());
        archive[16..24].copy_from_slice(&length.to_le_bytes());
        let crc = table_crc(&archive[..HEADER + self.rows.len() * ROW]);
        archive[CHECKED..CHECKED + 4].copy_from_slice(&crc.to_le_bytes());
        archive.extend_from_slice(&self.bytes);
        archive
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
