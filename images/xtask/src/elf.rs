//! The little of ELF64 that images need: loadable contents, and the libraries a program wants.

use anyhow::{Result, bail, ensure};

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// Loadable contents keep their offset within a page, so that a loader may map the file.
const PAGE: usize = 4096;

/// Runs of zeros at least this long split a segment: a loader clears what a file does not hold,
/// and shorter runs cost more in headers than they save.
const ZERO_RUN: usize = 64 * 1024;

/// One program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Type (`PT_LOAD` = 1 and so on).
    pub kind: u32,
    /// Access rights (read 4, write 2, execute 1).
    pub flags: u32,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Virtual address.
    pub vaddr: u64,
    /// Physical address.
    pub paddr: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory.
    pub memory_size: u64,
    /// Alignment.
    pub align: u64,
}

/// A checked view of an ELF64 file for x86-64.
pub struct Elf<'a> {
    bytes: &'a [u8],
    /// Every program header, in file order.
    pub segments: Vec<Segment>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

impl Segment {
    fn parse(bytes: &[u8]) -> Option<Segment> {
        Some(Segment {
            kind: u32_at(bytes, 0)?,
            flags: u32_at(bytes, 4)?,
            offset: u64_at(bytes, 8)?,
            vaddr: u64_at(bytes, 16)?,
            paddr: u64_at(bytes, 24)?,
            file_size: u64_at(bytes, 32)?,
            memory_size: u64_at(bytes, 40)?,
            align: u64_at(bytes, 48)?,
        })
    }

    fn emit(&self, out: &mut Vec<u8>) {
        out.extend(self.kind.to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        let words =
            [self.offset, self.vaddr, self.paddr, self.file_size, self.memory_size, self.align];
        words.iter().for_each(|word| out.extend(word.to_le_bytes()));
    }
}

impl<'a> Elf<'a> {
    /// Reads the headers of `bytes`.
    pub fn parse(bytes: &'a [u8]) -> Result<Elf<'a>> {
        ensure!(bytes.len() >= HEADER && bytes.starts_with(b"\x7fELF"), "not an ELF file");
        ensure!(bytes[4] == 2 && bytes[5] == 1, "not a 64-bit little-endian ELF file");
        ensure!(u16_at(bytes, 18) == Some(62), "not an ELF file for x86-64");
        let table = u64_at(bytes, 32).unwrap_or(0) as usize;
        let count = u16_at(bytes, 56).unwrap_or(0) as usize;
        ensure!(u16_at(bytes, 54) == Some(PROGRAM_HEADER as u16), "odd program header size");
        let mut segments = Vec::with_capacity(count);
        for index in 0..count {
            let at = table.saturating_add(index * PROGRAM_HEADER);
            let Some(segment) = bytes.get(at..).and_then(Segment::parse) else {
                bail!("program header {index} lies outside the file");
            };
            let end = segment.offset.checked_add(segment.file_size);
            ensure!(
                end.is_some_and(|end| end <= bytes.len() as u64),
                "segment {index} lies outside the file"
            );
            segments.push(segment);
        }
        Ok(Elf { bytes, segments })
    }

    /// A segment's bytes in the file.
    pub fn contents(&self, segment: &Segment) -> &'a [u8] {
        &self.bytes[segment.offset as usize..(segment.offset + segment.file_size) as usize]
    }

    /// The program interpreter this file asks for.
    pub fn interpreter(&self) -> Option<String> {
        let segment = self.segments.iter().find(|s| s.kind == PT_INTERP)?;
        Some(String::from_utf8_lossy(self.contents(segment)).trim_end_matches('\0').to_owned())
    }

    /// The shared libraries this file asks for (`DT_NEEDED`).
    pub fn needed(&self) -> Vec<String> {
        let Some(segment) = self.segments.iter().find(|s| s.kind == PT_DYNAMIC) else {
            return Vec::new();
        };
        let entries: Vec<(u64, u64)> = self
            .contents(segment)
            .chunks_exact(16)
            .filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)))
            .take_while(|(tag, _)| *tag != 0)
            .collect();
        let Some(strings) = entries
            .iter()
            .find(|(tag, _)| *tag == DT_STRTAB)
            .and_then(|(_, address)| self.at_address(*address))
        else {
            return Vec::new();
        };
        let name = |offset: u64| {
            let rest = strings.get(offset as usize..)?;
            let end = rest.iter().position(|byte| *byte == 0)?;
            Some(String::from_utf8_lossy(&rest[..end]).into_owned())
        };
        entries
            .iter()
            .filter(|(tag, _)| *tag == DT_NEEDED)
            .filter_map(|(_, offset)| name(*offset))
            .collect()
    }

    fn at_address(&self, address: u64) -> Option<&'a [u8]> {
        let segment = self
            .segments
            .iter()
            .find(|s| s.kind == PT_LOAD && address >= s.vaddr && address - s.vaddr < s.file_size)?;
        self.contents(segment).get((address - segment.vaddr) as usize..)
    }

    /// The same program with nothing but what a loader reads: loadable contents without long runs
    /// of zeros, and notes.
    pub fn slimmed(&self) -> Vec<u8> {
        let mut pieces = Vec::new();
        for segment in self.segments.iter().filter(|s| s.kind == PT_LOAD) {
            split_zero_runs(segment, self.contents(segment), &mut pieces);
        }
        let notes: Vec<Segment> =
            self.segments.iter().filter(|s| s.kind == PT_NOTE).copied().collect();
        let count = pieces.len() + notes.len();
        let mut body = HEADER + count * PROGRAM_HEADER;
        let mut placed = Vec::with_capacity(count);
        let mut data: Vec<(usize, &[u8])> = Vec::with_capacity(count);
        for segment in pieces.iter().chain(&notes) {
            let bytes = self.contents(segment);
            let step = if segment.kind == PT_LOAD { PAGE } else { 4 };
            let wanted = segment.vaddr as usize % step;
            body += (wanted + step - body % step) % step;
            placed.push(Segment { offset: body as u64, ..*segment });
            data.push((body, bytes));
            body += bytes.len();
        }
        let mut out = self.bytes[..HEADER].to_vec();
        out[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
        out[40..48].fill(0);
        out[56..58].copy_from_slice(&(count as u16).to_le_bytes());
        out[58..64].fill(0);
        placed.iter().for_each(|segment| segment.emit(&mut out));
        for (at, bytes) in data {
            out.resize(at, 0);
            out.extend_from_slice(bytes);
        }
        out
    }
}

/// Cuts `segment` before and after each long run of zeros in whole pages.
fn split_zero_runs(segment: &Segment, bytes: &[u8], out: &mut Vec<Segment>) {
    let pages: Vec<bool> = bytes.chunks(PAGE).map(|page| page.iter().all(|b| *b == 0)).collect();
    let mut begin = 0;
    let mut page = 0;
    while page < pages.len() {
        let run = pages[page..].iter().take_while(|zero| **zero).count();
        let end_of_file = page + run == pages.len();
        if run * PAGE >= ZERO_RUN || (run > 0 && end_of_file) {
            push_piece(segment, begin, page * PAGE, (page + run) * PAGE, bytes.len(), out);
            begin = (page + run) * PAGE;
        }
        page += run.max(1);
    }
    push_piece(segment, begin, bytes.len(), bytes.len(), bytes.len(), out);
}

/// Adds the piece whose file bytes are `begin..end` and whose memory reaches to `cleared` (to the
/// segment's whole memory size when that is where the file's bytes end).
fn push_piece(
    segment: &Segment,
    begin: usize,
    end: usize,
    cleared: usize,
    length: usize,
    out: &mut Vec<Segment>,
) {
    let memory_end = if cleared >= length { segment.memory_size } else { cleared as u64 }
        - begin.min(length) as u64;
    if begin >= length && (begin > 0 || segment.memory_size == 0) {
        return;
    }
    out.push(Segment {
        offset: segment.offset + begin as u64,
        vaddr: segment.vaddr + begin as u64,
        paddr: segment.paddr + begin as u64,
        file_size: (end - begin) as u64,
        memory_size: memory_end,
        align: PAGE as u64,
        ..*segment
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF with one loadable segment of `contents` and `extra` cleared bytes, and a section
    /// table's worth of junk behind it.
    fn sample(contents: &[u8], extra: u64) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        out[..6].copy_from_slice(b"\x7fELF\x02\x01");
        out[18..20].copy_from_slice(&62u16.to_le_bytes());
        out[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
        out[32..40].copy_from_slice(&64u64.to_le_bytes());
        out[54..56].copy_from_slice(&56u16.to_le_bytes());
        out[56..58].copy_from_slice(&1u16.to_le_bytes());
        let segment = Segment {
            kind: PT_LOAD,
            flags: 7,
            offset: 4096,
            vaddr: 0x10_0000,
            paddr: 0x10_0000,
            file_size: contents.len() as u64,
            memory_size: contents.len() as u64 + extra,
            align: 4096,
        };
        segment.emit(&mut out);
        out.resize(4096, 0);
        out.extend_from_slice(contents);
        out.extend_from_slice(&[0xee; 5000]);
        out
    }

    /// What a loader makes of the file, from the lowest to the highest address.
    fn loaded(bytes: &[u8]) -> Vec<u8> {
        let elf = Elf::parse(bytes).unwrap();
        let loads: Vec<_> = elf.segments.iter().filter(|s| s.kind == PT_LOAD).collect();
        let low = loads.iter().map(|s| s.vaddr).min().unwrap();
        let high = loads.iter().map(|s| s.vaddr + s.memory_size).max().unwrap();
        let mut memory = vec![0xaa; (high - low) as usize];
        for segment in loads {
            let at = (segment.vaddr - low) as usize;
            memory[at..at + segment.memory_size as usize].fill(0);
            let contents = elf.contents(segment);
            memory[at..at + contents.len()].copy_from_slice(contents);
        }
        memory
    }

    #[test]
    fn slimming_keeps_what_is_loaded_and_drops_the_rest() {
        let mut middle = vec![1; 10_000];
        middle.extend(vec![0; 300_000]);
        middle.extend(vec![2; 5_000]);
        let mut tail = vec![3; 9_000];
        tail.extend(vec![0; 20_000]);
        for contents in [vec![5; 100], middle, tail, vec![0; 8192], vec![]] {
            for extra in [0, 100, 70_000] {
                if contents.is_empty() && extra == 0 {
                    continue;
                }
                let full = sample(&contents, extra);
                let slim = Elf::parse(&full).unwrap().slimmed();
                assert_eq!(loaded(&full), loaded(&slim), "{} + {extra}", contents.len());
                assert!(slim.len() < full.len());
                let again = Elf::parse(&slim).unwrap();
                for s in &again.segments {
                    assert_eq!(s.offset % PAGE as u64, s.vaddr % PAGE as u64);
                }
            }
        }
    }

    #[test]
    fn long_runs_of_zeros_do_not_travel() {
        let mut contents = vec![1; 4096];
        contents.extend(vec![0; 1 << 20]);
        contents.extend(vec![2; 4096]);
        let slim = Elf::parse(&sample(&contents, 0)).unwrap().slimmed();
        assert!(slim.len() < 16 * 1024, "{}", slim.len());
    }

    #[test]
    fn garbage_is_refused() {
        assert!(Elf::parse(b"hello").is_err());
        let mut bad = sample(&[1; 10], 0);
        bad[64 + 8..64 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Elf::parse(&bad).is_err());
    }

    #[test]
    fn a_dynamic_program_names_its_libraries() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let elf = Elf::parse(&bytes).unwrap();
        assert!(elf.needed().iter().any(|name| name.starts_with("libc.")), "{:?}", elf.needed());
        assert!(elf.interpreter().is_some_and(|path| path.contains("ld-linux")));
    }
}
