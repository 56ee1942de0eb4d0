//! The archive: everything the orchestrator starts others from, in the one module that Xen passes
//! to the initial domain.
//!
//! A header (magic, version, count), a table of {name, offset, length, CRC-32} and the entries,
//! each beginning on a page so that it can be used where it lies.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

const MAGIC: &[u8; 8] = b"PPVMMARC";
const VERSION: u32 = 1;
const HEADER: usize = 16;
const NAME: usize = 32;
const ROW: usize = NAME + 8 + 8 + 4 + 4;
const PAGE: usize = 4096;

/// One entry to be packed.
pub struct Source {
    /// The name by which the orchestrator asks for it.
    pub name: String,
    /// The file with its contents.
    pub path: PathBuf,
}

/// One entry as the archive's table has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Bytes from the archive's begin.
    pub offset: usize,
    /// Bytes.
    pub length: usize,
    /// CRC-32 of the contents.
    pub crc: u32,
}

/// Packs `sources` into `out`, reads it back and gives its table.
pub fn write(sources: &[Source], out: &Path) -> Result<Vec<Entry>> {
    let mut contents = Vec::with_capacity(sources.len());
    for source in sources {
        let bytes = fs::read(&source.path)
            .with_context(|| format!("archive entry {}: {}", source.name, source.path.display()))?;
        contents.push((source.name.as_str(), bytes));
    }
    let bytes = pack(&contents)?;
    fs::write(out, &bytes).with_context(|| format!("write {}", out.display()))?;
    let table = read(&fs::read(out)?)?;
    ensure!(table.len() == sources.len(), "the archive read back has another number of entries");
    Ok(table)
}

/// The archive of these entries.
pub fn pack(entries: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((entries.len() as u32).to_le_bytes());
    let mut offset = (HEADER + entries.len() * ROW).next_multiple_of(PAGE);
    for (name, bytes) in entries {
        ensure!(!name.is_empty() && name.len() <= NAME, "entry name {name:?} is not 1-32 bytes");
        let mut field = [0; NAME];
        field[..name.len()].copy_from_slice(name.as_bytes());
        out.extend(field);
        out.extend((offset as u64).to_le_bytes());
        out.extend((bytes.len() as u64).to_le_bytes());
        out.extend(crc32fast::hash(bytes).to_le_bytes());
        out.extend([0; 4]);
        offset = (offset + bytes.len()).next_multiple_of(PAGE);
    }
    for (_, bytes) in entries {
        out.resize(out.len().next_multiple_of(PAGE), 0);
        out.extend(bytes);
    }
    out.resize(out.len().next_multiple_of(PAGE), 0);
    Ok(out)
}

/// Reads an archive's table and checks every entry.
pub fn read(bytes: &[u8]) -> Result<Vec<Entry>> {
    let word = |at: usize| -> Result<u32> {
        let bytes = bytes.get(at..at + 4).context("the archive is cut off")?;
        Ok(u32::from_le_bytes(bytes.try_into()?))
    };
    ensure!(bytes.starts_with(MAGIC), "not an archive of ours (wrong magic)");
    ensure!(word(8)? == VERSION, "archive version {} is not {VERSION}", word(8)?);
    let mut entries = Vec::new();
    for index in 0..word(12)? as usize {
        let at = HEADER + index * ROW;
        let row = bytes.get(at..at + ROW).context("the archive's table is cut off")?;
        let end = row[..NAME].iter().position(|byte| *byte == 0).unwrap_or(NAME);
        let name = String::from_utf8_lossy(&row[..end]).into_owned();
        let offset = u64::from_le_bytes(row[32..40].try_into()?) as usize;
        let length = u64::from_le_bytes(row[40..48].try_into()?) as usize;
        let crc = word(at + 48)?;
        let contents = offset.checked_add(length).and_then(|end| bytes.get(offset..end));
        match contents.map(crc32fast::hash) {
            Some(found) if found == crc && offset.is_multiple_of(PAGE) => {}
            _ => bail!("archive entry {name} is damaged"),
        }
        entries.push(Entry { name, offset, length, crc });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_read_back_and_damage_is_found() {
        let mut bytes =
            pack(&[("one", vec![1; 5000]), ("two", vec![]), ("three", vec![3])]).unwrap();
        let table = read(&bytes).unwrap();
        let names: Vec<_> = table.iter().map(|e| (e.name.as_str(), e.length)).collect();
        assert_eq!(names, [("one", 5000), ("two", 0), ("three", 1)]);
        assert_eq!(bytes.len() % PAGE, 0);
        bytes[table[0].offset + 77] ^= 4;
        assert!(read(&bytes).unwrap_err().to_string().contains("one"));
        assert!(read(&bytes[..100]).is_err());
        assert!(pack(&[(&"x".repeat(33), vec![])]).is_err());
    }
}
