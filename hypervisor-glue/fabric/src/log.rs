//! The log of a unit: lines of text, the newest of which survive it.
//!
//! The region is an array of cells of 128 bytes. Cell 0 is the header:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | number of cells written so far, checked word |
//!
//! The others are a ring; cell number `n` (from 1) lies at `128 × (1 + (n − 1) mod cells)`:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | number `n` |
//! | 8 | 8 | time in ns (Xen's system time) |
//! | 16 | 4 | CRC-32 over the bytes 0..16 and 20..128 |
//! | 20 | 1 | level: 1 error, 2 warning, 3 information, 4 detail |
//! | 21 | 1 | bytes of text in this cell |
//! | 22 | 1 | 1 if the line goes on in the next cell |
//! | 23 | 1 | zero |
//! | 24 | 104 | text |
//!
//! The writer never waits: a reader that is late loses the oldest lines and learns how many. What
//! the reader hands out is printable ASCII, whatever the unit wrote.

use crate::text::Text;
use crate::{SharedMemory, checked};

/// Bytes of text in one cell.
pub const CELL_TEXT: usize = 104;
/// Cells that one line takes at most; longer lines are cut.
pub const CELLS_PER_LINE: usize = 4;

const CELL: usize = 128;
const WRITTEN: usize = 0;
const WRITTEN_SALT: u16 = 0x4c57;

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something is not as it should be.
    Warning = 2,
    /// What an operator wants to know.
    Information = 3,
    /// What a developer wants to know.
    Detail = 4,
}

/// One cell of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of the cell, from 1.
    pub number: u64,
    /// When it was written, in ns of Xen's system time.
    pub time_ns: u64,
    /// How important it is.
    pub level: Level,
    /// Whether the next cell goes on with the same line.
    pub goes_on: bool,
    /// The text.
    pub text: Text<CELL_TEXT>,
}

impl Line {
    /// A line without text, to fill buffers with.
    pub const EMPTY: Self =
        Self { number: 0, time_ns: 0, level: Level::Detail, goes_on: false, text: Text::new() };
}

fn cells(len: usize) -> u64 {
    assert!(len >= 2 * CELL, "a log has at least two cells");
    (len / CELL - 1) as u64
}

fn offset(number: u64, cells: u64) -> usize {
    CELL * (1 + (number.wrapping_sub(1) % cells) as usize)
}

fn crc(cell: &[u8; CELL]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&cell[..16]);
    crc.update(&cell[20..]);
    crc.finalize()
}

fn read_cell<M: SharedMemory>(memory: &M, number: u64, cells: u64) -> Option<Line> {
    let mut cell = [0; CELL];
    memory.read(offset(number, cells), &mut cell);
    let u64_at = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&cell[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let stored = u64_at(16) as u32;
    let length = usize::from(cell[21]);
    if u64_at(0) != number || length > CELL_TEXT || stored != crc(&cell) {
        return None;
    }
    let level = match cell[20] {
        1 => Level::Error,
        2 => Level::Warning,
        3 => Level::Information,
        4 => Level::Detail,
        _ => return None,
    };
    let text = Text::from_bytes(&cell[24..24 + length]);
    Some(Line { number, time_ns: u64_at(8), level, goes_on: cell[22] != 0, text })
}

/// The newest cell's number: the header's word, or if that is damaged, the highest valid cell.
fn newest<M: SharedMemory>(memory: &M, cells: u64) -> u64 {
    if let Some(written) = checked::load(memory, WRITTEN, WRITTEN_SALT) {
        return written;
    }
    let numbers = (0..cells).map(|cell| memory.load_u64(CELL * (1 + cell as usize)));
    let is_valid = |number: &u64| *number != 0 && read_cell(memory, *number, cells).is_some();
    numbers.filter(is_valid).max().unwrap_or(0)
}

/// The unit's side.
#[derive(Debug)]
pub struct LogWriter<M> {
    memory: M,
    cells: u64,
    written: u64,
}

impl<M: SharedMemory> LogWriter<M> {
    /// The writer of the log in `memory` (at least 256 bytes); goes on behind the newest line.
    pub fn new(memory: M) -> Self {
        let cells = cells(memory.len());
        let written = newest(&memory, cells);
        let writer = Self { memory, cells, written };
        checked::store(&writer.memory, WRITTEN, written, WRITTEN_SALT);
        writer
    }

    /// Writes one line; it takes a cell for each 104 bytes, and is cut after four.
    pub fn line(&mut self, time_ns: u64, level: Level, text: core::fmt::Arguments<'_>) {
        let mut line = Text::<{ CELL_TEXT * CELLS_PER_LINE }>::new();
        // Writing to a `Text` never fails; a failing `Display` leaves what came before.
        let _ = core::fmt::Write::write_fmt(&mut line, text);
        let bytes = line.as_bytes();
        let mut parts = bytes.chunks(CELL_TEXT).peekable();
        if bytes.is_empty() {
            self.cell(time_ns, level, &[], false);
        }
        while let Some(part) = parts.next() {
            self.cell(time_ns, level, part, parts.peek().is_some());
        }
    }

    fn cell(&mut self, time_ns: u64, level: Level, text: &[u8], goes_on: bool) {
        let number = self.written + 1;
        let mut cell = [0; CELL];
        cell[..8].copy_from_slice(&number.to_le_bytes());
        cell[8..16].copy_from_slice(&time_ns.to_le_bytes());
        cell[20] = level as u8;
        cell[21] = text.len() as u8;
        cell[22] = u8::from(goes_on);
        cell[24..24 + text.len()].copy_from_slice(text);
        let crc = crc(&cell);
        cell[16..20].copy_from_slice(&crc.to_le_bytes());
        self.memory.write(offset(number, self.cells), &cell);
        self.written = number;
        checked::store(&self.memory, WRITTEN, number, WRITTEN_SALT);
    }
}

/// The orchestrator's side.
#[derive(Debug)]
pub struct LogReader<M> {
    memory: M,
    cells: u64,
    read: u64,
    lost: u64,
}

impl<M: SharedMemory> LogReader<M> {
    /// The reader of the log in `memory`; begins with the oldest line that is there.
    pub fn new(memory: M) -> Self {
        let cells = cells(memory.len());
        Self { memory, cells, read: 0, lost: 0 }
    }

    /// As [`LogReader::new`], but goes on behind cell number `read`.
    pub fn resume(memory: M, read: u64) -> Self {
        Self { read, ..Self::new(memory) }
    }

    /// Number of the last cell that was read, or passed over.
    pub fn position(&self) -> u64 {
        self.read
    }

    /// The next cell, if there is one. Looks at no more cells than the log has; a caller that
    /// prints takes a bounded number per round.
    pub fn next_line(&mut self) -> Option<Line> {
        let written = checked::load(&self.memory, WRITTEN, WRITTEN_SALT)?;
        if written < self.read {
            // The count went back: a wild store, or a log that began anew.
            self.read = written;
        }
        let oldest = written.saturating_sub(self.cells);
        if self.read < oldest {
            self.lost = self.lost.saturating_add(oldest - self.read);
            self.read = oldest;
        }
        while self.read < written {
            self.read += 1;
            if let Some(line) = read_cell(&self.memory, self.read, self.cells) {
                return Some(line);
            }
            self.lost = self.lost.saturating_add(1);
        }
        None
    }

    /// Cells that were overwritten before they were read, or were damaged.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The newest cells, oldest first, whether read before or not: a unit's last words. Returns how
    /// many were copied to the start of `into`.
    pub fn latest(&self, into: &mut [Line]) -> usize {
        let newest = newest(&self.memory, self.cells);
        let wanted = self.cells.min(into.len() as u64).min(newest);
        let mut count = 0;
        for number in newest - wanted..newest {
            if let Some(line) = read_cell(&self.memory, number + 1, self.cells) {
                into[count] = line;
                count += 1;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HeapMemory, TornMemory};
    use proptest::prelude::*;

    const LEN: usize = CELL * 5;

    fn texts(reader: &mut LogReader<HeapMemory>) -> Vec<String> {
        std::iter::from_fn(|| reader.next_line()).map(|line| line.text.to_string()).collect()
    }

    #[test]
    fn lines_come_in_order_and_old_ones_go() {
        let memory = HeapMemory::new(LEN);
        let mut reader = LogReader::new(memory.clone());
        assert_eq!(reader.next_line(), None);
        let mut writer = LogWriter::new(memory);
        writer.line(5, Level::Warning, format_args!("one\x1b[0m"));
        let line = reader.next_line().unwrap();
        assert_eq!((line.number, line.time_ns, line.level), (1, 5, Level::Warning));
        assert_eq!(line.text.as_str(), "one?[0m");
        for number in 2..=8 {
            writer.line(5, Level::Detail, format_args!("line {number}"));
        }
        assert_eq!(texts(&mut reader), ["line 5", "line 6", "line 7", "line 8"]);
        assert_eq!(reader.lost(), 3);
        let mut last = [Line::EMPTY; 2];
        assert_eq!(reader.latest(&mut last), 2);
        assert_eq!(last.map(|line| line.text.to_string()), ["line 7", "line 8"]);
    }

    #[test]
    fn golden() {
        let memory = HeapMemory::new(LEN);
        LogWriter::new(memory.clone()).line(0x0102, Level::Information, format_args!("hi"));
        assert_eq!(memory.load_u64(0), 0x4c56_0000_0000_0001);
        let mut cell = [0; 28];
        memory.read(128, &mut cell);
        assert_eq!(cell[..16], [1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(cell[20..], *b"\x03\x02\0\0hi\0\0");
    }

    #[test]
    fn a_long_line_takes_several_cells() {
        let memory = HeapMemory::new(CELL * 10);
        let mut writer = LogWriter::new(memory.clone());
        writer.line(0, Level::Error, format_args!("{}", "x".repeat(150)));
        writer.line(0, Level::Error, format_args!(""));
        writer.line(0, Level::Error, format_args!("{}", "y".repeat(1000)));
        let mut reader = LogReader::new(memory);
        let lines: Vec<Line> = std::iter::from_fn(|| reader.next_line()).collect();
        let lengths: Vec<usize> = lines.iter().map(|line| line.text.as_bytes().len()).collect();
        assert_eq!(lengths, [104, 46, 0, 104, 104, 104, 104]);
        let goes_on: Vec<bool> = lines.iter().map(|line| line.goes_on).collect();
        assert_eq!(goes_on, [true, false, false, true, true, true, false]);
    }

    #[test]
    fn the_next_life_goes_on_behind_the_last_whole_line() {
        for stores in 0..=CELL as u64 + 1 {
            let memory = HeapMemory::new(LEN);
            LogWriter::new(memory.clone()).line(1, Level::Error, format_args!("first"));
            let torn = TornMemory::new(memory.clone(), stores);
            LogWriter::new(torn).line(2, Level::Error, format_args!("torn"));
            LogWriter::new(memory.clone()).line(3, Level::Error, format_args!("next"));
            let seen = texts(&mut LogReader::new(memory));
            assert!(seen == ["first", "next"] || seen == ["first", "torn", "next"], "{seen:?}");
        }
    }

    #[test]
    fn a_damaged_count_does_not_hide_the_last_words() {
        let memory = HeapMemory::new(LEN);
        let mut writer = LogWriter::new(memory.clone());
        for number in 1..=6 {
            writer.line(5, Level::Detail, format_args!("line {number}"));
        }
        memory.store_u64(WRITTEN, 77);
        let mut reader = LogReader::new(memory.clone());
        assert_eq!(reader.next_line(), None);
        let mut last = [Line::EMPTY; 3];
        assert_eq!(reader.latest(&mut last), 3);
        assert_eq!(last[2].text.as_str(), "line 6");
        LogWriter::new(memory).line(6, Level::Detail, format_args!("line 7"));
        assert_eq!(texts(&mut reader), ["line 4", "line 5", "line 6", "line 7"]);
    }

    proptest! {
        #[test]
        fn garbage_is_read_without_harm(
            bytes in prop::collection::vec(any::<u8>(), LEN),
            written in 0..=checked::VALUE_MAX,
        ) {
            let memory = HeapMemory::new(LEN);
            memory.write(0, &bytes);
            checked::store(&memory, WRITTEN, written, WRITTEN_SALT);
            let mut reader = LogReader::new(memory);
            prop_assert_eq!(reader.next_line(), None);
            prop_assert_eq!(reader.latest(&mut [Line::EMPTY; 8]), 0);
        }
    }
}
