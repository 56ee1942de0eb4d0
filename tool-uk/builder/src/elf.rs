//! ELF64 images for x86-64, read from bytes that nobody has checked (System V ABI, "Object Files";
//! Xen's notes: elfnote.h).
//!
//! [`Header::parse`] checks everything it keeps, so code that uses its values adds and slices
//! without further checks. Nothing here panics, whatever the bytes are.

use core::fmt;

/// Most loadable segments an image may have: Linux has 5, our unikernels 3.
pub const MAX_LOADS: usize = 16;
/// Most note segments an image may have: Linux has 1 or 2.
pub const MAX_NOTES: usize = 4;
/// Most program headers that are looked at.
pub const MAX_PROGRAM_HEADERS: usize = 64;

/// Bytes of the ELF64 file header.
const FILE_HEADER_LEN: usize = 64;
/// Bytes of one ELF64 program header.
const PROGRAM_HEADER_LEN: usize = 56;
/// `EM_X86_64`.
const MACHINE_X86_64: u16 = 62;
/// `ET_EXEC`, the only kind with fixed addresses.
const TYPE_EXECUTABLE: u16 = 2;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
/// `XEN_ELFNOTE_ENTRY`: where a PV kernel starts.
const NOTE_ENTRY: u32 = 1;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: where a PVH kernel starts.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// What is wrong with an image. The blame lies on whoever made the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// The file does not begin with the ELF magic.
    NotElf,
    /// Not 64-bit little-endian: the class and data bytes of its identification.
    WrongClass(u8, u8),
    /// For another machine than x86-64: its `e_machine`.
    WrongMachine(u16),
    /// Not a linked program with fixed addresses: its `e_type`.
    NotExecutable(u16),
    /// Program headers of an unexpected size or number.
    BadProgramHeaders {
        /// `e_phentsize`.
        size: u16,
        /// `e_phnum`.
        count: u16,
    },
    /// The file ends before something that its headers promise.
    Truncated {
        /// Where the promised bytes end, in the file.
        end: u64,
        /// How long the file is.
        len: u64,
    },
    /// There is nothing to load.
    NothingToLoad,
    /// More loadable or note segments than [`MAX_LOADS`] or [`MAX_NOTES`].
    TooManySegments,
    /// A segment holds more bytes in the file than in memory.
    SegmentShrinks {
        /// Index of its program header.
        segment: u16,
    },
    /// A segment does not lie inside of the memory given.
    SegmentOutside {
        /// Index of its program header.
        segment: u16,
        /// Its first address.
        start: u64,
        /// Its size in memory.
        len: u64,
        /// The end of the memory given.
        limit: u64,
    },
    /// Two segments share an address.
    Overlap {
        /// Index of the lower one's program header.
        first: u16,
        /// Index of the upper one's program header.
        second: u16,
    },
    /// A note is longer than its segment, or a Xen note has a size it cannot have.
    BadNote,
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => f.write_str("not an ELF file (wrong magic)"),
            Self::WrongClass(class, data) => {
                write!(f, "not a 64-bit little-endian ELF file (class {class}, data {data})")
            }
            Self::WrongMachine(machine) => {
                write!(f, "ELF file for machine {machine}, need x86-64 ({MACHINE_X86_64})")
            }
            Self::NotExecutable(kind) => {
                write!(f, "ELF type {kind}, need a program at fixed addresses ({TYPE_EXECUTABLE})")
            }
            Self::BadProgramHeaders { size, count } => {
                write!(f, "ELF file with {count} program headers of {size} bytes")
            }
            Self::Truncated { end, len } => {
                write!(f, "ELF file cut short: {len} bytes, its headers need {end}")
            }
            Self::NothingToLoad => f.write_str("ELF file without a loadable segment"),
            Self::TooManySegments => {
                write!(f, "ELF file with more than {MAX_LOADS} loadable or {MAX_NOTES} notes parts")
            }
            Self::SegmentShrinks { segment } => {
                write!(f, "ELF segment {segment} is larger in the file than in memory")
            }
            Self::SegmentOutside { segment, start, len, limit } => write!(
                f,
                "ELF segment {segment} at {start:#x}, {len:#x} bytes, \
                 does not lie inside of the memory that ends at {limit:#x}"
            ),
            Self::Overlap { first, second } => {
                write!(f, "ELF segments {first} and {second} overlap")
            }
            Self::BadNote => f.write_str("ELF note of an impossible size"),
        }
    }
}

impl core::error::Error for ElfError {}

/// One loadable segment. Its file bytes lie inside of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Index of its program header, for messages.
    pub index: u16,
    /// Where its bytes start in the file.
    pub offset: u64,
    /// How many bytes come from the file; the rest is zero.
    pub file_len: u64,
    /// How many bytes it has in memory, at least `file_len`.
    pub memory_len: u64,
    /// Its virtual address.
    pub virt: u64,
    /// Its physical address.
    pub phys: u64,
    /// Whether the program writes to it.
    pub writable: bool,
    /// Whether it holds code.
    pub executable: bool,
}

/// A range of the file that holds notes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoteRange {
    /// Where it starts in the file.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u64,
    /// What its entries are aligned to: 4, or 8.
    pub align: u64,
}

/// What Xen's notes say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenNotes {
    /// Virtual address of the PV entry.
    pub entry: Option<u64>,
    /// Physical address of the PVH entry.
    pub phys32_entry: Option<u64>,
}

/// The checked headers of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `e_entry`.
    pub entry: u64,
    loads: [Segment; MAX_LOADS],
    load_count: usize,
    notes: [NoteRange; MAX_NOTES],
    note_count: usize,
}

/// Which of a segment's two addresses counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// `p_vaddr`: our PV services.
    Virtual,
    /// `p_paddr`: PVH kernels, entered without paging.
    Physical,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Header {
    /// Reads the headers of a file of `file_len` bytes that starts with `head`.
    ///
    /// # Errors
    /// Every [`ElfError`] but those of [`Header::placement`]; [`ElfError::Truncated`] also when
    /// `head` ends before the program headers do.
    pub fn parse(head: &[u8], file_len: u64) -> Result<Self, ElfError> {
        let (entry, table_at, count) = parse_file_header(head)?;
        let table_end = table_at.saturating_add((count * PROGRAM_HEADER_LEN) as u64);
        let table = usize::try_from(table_at)
            .ok()
            .and_then(|at| head.get(at..)?.get(..count * PROGRAM_HEADER_LEN))
            .ok_or(ElfError::Truncated { end: table_end, len: head.len() as u64 })?;
        let mut header = Self {
            entry,
            loads: [Segment::default(); MAX_LOADS],
            load_count: 0,
            notes: [NoteRange::default(); MAX_NOTES],
            note_count: 0,
        };
        for (index, raw) in table.chunks_exact(PROGRAM_HEADER_LEN).enumerate() {
            header.take(index as u16, raw, file_len)?;
        }
        if header.load_count == 0 {
            return Err(ElfError::NothingToLoad);
        }
        Ok(header)
    }

    fn take(&mut self, index: u16, raw: &[u8], file_len: u64) -> Result<(), ElfError> {
        let kind = u32_at(raw, 0).ok_or(ElfError::NotElf)?;
        if kind != PT_LOAD && kind != PT_NOTE {
            return Ok(());
        }
        let flags = u32_at(raw, 4).ok_or(ElfError::NotElf)?;
        let field = |at| u64_at(raw, at).ok_or(ElfError::NotElf);
        let (offset, bytes_in_file) = (field(8)?, field(32)?);
        let end = offset.saturating_add(bytes_in_file);
        if end > file_len {
            return Err(ElfError::Truncated { end, len: file_len });
        }
        if kind == PT_NOTE {
            let slot = self.notes.get_mut(self.note_count).ok_or(ElfError::TooManySegments)?;
            let align = if field(48)? == 8 { 8 } else { 4 };
            *slot = NoteRange { offset, len: bytes_in_file, align };
            self.note_count += 1;
            return Ok(());
        }
        let memory_len = field(40)?;
        if memory_len < bytes_in_file {
            return Err(ElfError::SegmentShrinks { segment: index });
        }
        if memory_len == 0 {
            return Ok(());
        }
        let slot = self.loads.get_mut(self.load_count).ok_or(ElfError::TooManySegments)?;
        *slot = Segment {
            index,
            offset,
            file_len: bytes_in_file,
            memory_len,
            virt: field(16)?,
            phys: field(24)?,
            writable: flags & PF_W != 0,
            executable: flags & PF_X != 0,
        };
        self.load_count += 1;
        Ok(())
    }

    /// The loadable segments, in the order of the file.
    pub fn loads(&self) -> &[Segment] {
        &self.loads[..self.load_count]
    }

    /// The ranges of the file that hold notes.
    pub fn notes(&self) -> &[NoteRange] {
        &self.notes[..self.note_count]
    }

    /// The loadable segments by rising address, none outside of `[0, limit)`, no two overlapping.
    ///
    /// # Errors
    /// [`ElfError::SegmentOutside`], [`ElfError::Overlap`].
    pub fn placement(&self, address: Address, limit: u64) -> Result<Placement, ElfError> {
        let mut placement =
            Placement { parts: [Part::default(); MAX_LOADS], count: self.load_count };
        for (part, segment) in placement.parts.iter_mut().zip(self.loads()) {
            let start = match address {
                Address::Virtual => segment.virt,
                Address::Physical => segment.phys,
            };
            if start.checked_add(segment.memory_len).is_none_or(|end| end > limit) {
                return Err(ElfError::SegmentOutside {
                    segment: segment.index,
                    start,
                    len: segment.memory_len,
                    limit,
                });
            }
            *part = Part { start, segment: *segment };
        }
        let parts = &mut placement.parts[..placement.count];
        parts.sort_unstable_by_key(|part| part.start);
        for pair in parts.windows(2) {
            if pair[0].end() > pair[1].start {
                return Err(ElfError::Overlap {
                    first: pair[0].segment.index,
                    second: pair[1].segment.index,
                });
            }
        }
        Ok(placement)
    }
}

/// The entry address, where the program headers start, and how many there are.
fn parse_file_header(head: &[u8]) -> Result<(u64, u64, usize), ElfError> {
    if !head.starts_with(b"\x7fELF") {
        return Err(ElfError::NotElf);
    }
    let short = ElfError::Truncated { end: FILE_HEADER_LEN as u64, len: head.len() as u64 };
    if head.len() < FILE_HEADER_LEN {
        return Err(short);
    }
    let (class, data) = (head[4], head[5]);
    if (class, data) != (2, 1) {
        return Err(ElfError::WrongClass(class, data));
    }
    let half = |at| u16_at(head, at).ok_or(short);
    let machine = half(18)?;
    if machine != MACHINE_X86_64 {
        return Err(ElfError::WrongMachine(machine));
    }
    let kind = half(16)?;
    if kind != TYPE_EXECUTABLE {
        return Err(ElfError::NotExecutable(kind));
    }
    let (size, count) = (half(54)?, half(56)?);
    if usize::from(size) != PROGRAM_HEADER_LEN || usize::from(count) > MAX_PROGRAM_HEADERS {
        return Err(ElfError::BadProgramHeaders { size, count });
    }
    let entry = u64_at(head, 24).ok_or(short)?;
    let table_at = u64_at(head, 32).ok_or(short)?;
    Ok((entry, table_at, usize::from(count)))
}

/// A segment and the address it goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Its first address.
    pub start: u64,
    /// The segment.
    pub segment: Segment,
}

impl Part {
    /// The address after its last byte in memory.
    pub fn end(&self) -> u64 {
        self.start + self.segment.memory_len
    }

    /// The address after its last byte that comes from the file.
    pub fn file_end(&self) -> u64 {
        self.start + self.segment.file_len
    }
}

/// Where an image's segments go: sorted, disjoint, inside of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    parts: [Part; MAX_LOADS],
    count: usize,
}

impl Placement {
    /// The parts by rising address; at least one.
    pub fn parts(&self) -> &[Part] {
        &self.parts[..self.count]
    }

    /// The lowest address.
    pub fn start(&self) -> u64 {
        self.parts[0].start
    }

    /// The address after the highest byte.
    pub fn end(&self) -> u64 {
        self.parts[self.count - 1].end()
    }
}

impl XenNotes {
    /// Takes over what one range of notes says.
    ///
    /// # Errors
    /// [`ElfError::BadNote`].
    pub fn scan(&mut self, mut bytes: &[u8], align: u64) -> Result<(), ElfError> {
        let align = align as usize;
        while !bytes.is_empty() {
            let word = |at| u32_at(bytes, at).ok_or(ElfError::BadNote);
            let (name_len, value_len, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
            let value_at = name_len
                .checked_add(12)
                .and_then(|end| end.checked_next_multiple_of(align))
                .ok_or(ElfError::BadNote)?;
            let name = bytes.get(12..).and_then(|rest| rest.get(..name_len));
            let value = bytes.get(value_at..).and_then(|rest| rest.get(..value_len));
            let (name, value) = name.zip(value).ok_or(ElfError::BadNote)?;
            if name == b"Xen\0" && (kind == NOTE_ENTRY || kind == NOTE_PHYS32_ENTRY) {
                let address = match value.len() {
                    4 => u32_at(value, 0).map(u64::from),
                    8 => u64_at(value, 0),
                    _ => None,
                };
                let address = address.ok_or(ElfError::BadNote)?;
                match kind {
                    NOTE_ENTRY => self.entry = Some(address),
                    _ => self.phys32_entry = Some(address),
                }
            }
            // The padding after the last note may be missing.
            let next = (value_at + value_len).next_multiple_of(align);
            bytes = bytes.get(next..).unwrap_or_default();
        }
        Ok(())
    }
}

/// A whole image in memory: its headers, its notes, its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Checked headers.
    pub header: Header,
    /// What Xen's notes say.
    pub notes: XenNotes,
    bytes: &'a [u8],
}

impl<'a> Image<'a> {
    /// Reads a whole file.
    ///
    /// # Errors
    /// Every [`ElfError`] but those of [`Header::placement`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        let header = Header::parse(bytes, bytes.len() as u64)?;
        let mut notes = XenNotes::default();
        for range in header.notes() {
            // The header check put the range inside of the file, whose length is a usize.
            let start = range.offset as usize;
            notes.scan(&bytes[start..start + range.len as usize], range.align)?;
        }
        Ok(Self { header, notes, bytes })
    }

    /// The bytes of the file that go to addresses `[from, to)` of `part`; the range must lie
    /// inside of the part's file bytes.
    pub fn part_bytes(&self, part: &Part, from: u64, to: u64) -> &'a [u8] {
        let offset = part.segment.offset;
        &self.bytes[(offset + (from - part.start)) as usize..(offset + (to - part.start)) as usize]
    }
}

#[cfg(test)]
mod tests;
