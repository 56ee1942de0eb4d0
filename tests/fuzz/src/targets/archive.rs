//! Archives: what a damaged or wrongly made module can be.

use fabric::archive::{Archive, ArchiveBuilder};

use super::Target;
use crate::Bytes;

pub const TARGET: Target = Target { name: "archive", run, seeds, words: &[b"PpVMMarc"] };

/// Where the table's checksum lies, and what it covers (docs/FORMATS.md, "Archive").
const CRC_AT: usize = 24;
const TABLE_AT: usize = 64;
const ROW: usize = 64;

/// The first byte says whether the table is sealed with a right checksum.
fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let is_sealed = bytes.u8() % 2 == 1;
    let mut image = bytes.rest().to_vec();
    if is_sealed {
        seal(&mut image);
    }
    let Ok(archive) = Archive::open(&image) else { return };
    assert!(archive.len() <= image.len());
    let mut end = 0;
    for entry in archive.entries() {
        // Verifying reads every byte; a wrong checksum is an answer like any other.
        let is_whole = entry.verify().is_ok();
        assert_eq!(is_whole, crc32fast::hash(entry.bytes()) == entry.crc());
        let start = entry.bytes().as_ptr() as usize - image.as_ptr() as usize;
        assert!(start >= end && start + entry.bytes().len() <= archive.len());
        end = start + entry.bytes().len();
    }
    for name in ["", "xenstore-uk", "a name that is much too long for any entry of an archive"] {
        let found = archive.entry(name).map(|entry| entry.name());
        assert!(found.is_err() || found.is_ok_and(|found| found.as_str() == name));
    }
}

fn seal(image: &mut [u8]) {
    if image.len() < TABLE_AT {
        return;
    }
    let count = u32::from_le_bytes([image[12], image[13], image[14], image[15]]) as usize;
    let end = (TABLE_AT + count.min(63) * ROW).min(image.len());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&image[..CRC_AT]);
    crc.update(&image[TABLE_AT..end]);
    image[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.finalize().to_le_bytes());
}

fn seeds() -> Vec<Vec<u8>> {
    let mut builder = ArchiveBuilder::new();
    let empty = builder.build();
    for (name, content) in [("xenstore-uk", &b"\x7fELF"[..]), ("config", b"x"), ("empty", b"")] {
        builder.add(name, content).expect("names and contents fit");
    }
    let full = builder.build();
    vec![[&[1], &empty[..]].concat(), [&[1], &full[..]].concat(), [&[0], &full[..]].concat()]
}
