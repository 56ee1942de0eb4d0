//! Packs the archive that Xen hands to the initial domain; its format is `fabric::archive`'s.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use fabric::archive::{Archive, ArchiveBuilder};

/// One entry to be packed.
pub struct Source {
    /// The name by which the orchestrator asks for it.
    pub name: String,
    /// The file with its contents.
    pub path: PathBuf,
}

/// Packs `sources` into `out`, reads it back whole and gives each entry's name and length in bytes.
pub fn write(sources: &[Source], out: &Path) -> Result<Vec<(String, usize)>> {
    let mut builder = ArchiveBuilder::new();
    for Source { name, path } in sources {
        let bytes = fs::read(path)
            .with_context(|| format!("archive entry {name} from {}", path.display()))?;
        builder.add(name, &bytes).map_err(|error| anyhow!("archive entry {name}: {error}"))?;
    }
    fs::write(out, builder.build()).with_context(|| format!("write {}", out.display()))?;
    let table = check(&fs::read(out)?)?;
    ensure!(table.len() == sources.len(), "the archive read back has {} entries", table.len());
    Ok(table)
}

/// Opens an archive and reads every byte of it.
pub fn check(bytes: &[u8]) -> Result<Vec<(String, usize)>> {
    let wrong = |error| anyhow!("the archive cannot be used: {error}");
    let archive = Archive::open(bytes).map_err(wrong)?;
    archive
        .entries()
        .map(|entry| {
            entry.verify().map_err(wrong)?;
            Ok((entry.name().to_string(), entry.bytes().len()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    #[test]
    fn what_is_packed_is_read_back_and_damage_is_named() {
        fs::create_dir_all(paths::logs()).unwrap();
        let file = paths::logs().join("t-archive-entry");
        let out = paths::logs().join("t-archive");
        fs::write(&file, [7; 5000]).unwrap();
        let source = |name: &str| Source { name: name.into(), path: file.clone() };
        let table = write(&[source("one"), source("two")], &out).unwrap();
        assert_eq!(table, [("one".to_owned(), 5000), ("two".to_owned(), 5000)]);
        let mut bytes = fs::read(&out).unwrap();
        bytes[4096 + 4097] ^= 4;
        assert!(check(&bytes).unwrap_err().to_string().contains("one"));
        assert!(write(&[source("same"), source("same")], &out).is_err());
        fs::remove_file(file).unwrap();
        fs::remove_file(out).unwrap();
    }
}
