//! Tests of the archive: what is added comes back, and each kind of damage has its name.

use super::*;
use proptest::prelude::*;

fn sample() -> Vec<u8> {
    let mut builder = ArchiveBuilder::new();
    builder.add("xenstore-uk", b"first image").unwrap();
    builder.add("empty", b"").unwrap();
    builder.add("guest-kernel", &[7; 5000]).unwrap();
    builder.build()
}

fn with(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = sample();
    change(&mut bytes);
    let table = HEADER + 3 * ROW;
    let crc = table_crc(&bytes[..table]);
    bytes[CHECKED..CHECKED + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn name(text: &str) -> Name {
    Name::from_bytes(text.as_bytes())
}

#[test]
fn entries_come_back_in_place() {
    let bytes = sample();
    let archive = Archive::open(&bytes).unwrap();
    let entry = archive.entry("guest-kernel").unwrap();
    assert_eq!((entry.bytes(), entry.verify()), ([7; 5000].as_slice(), Ok(())));
    let offset = entry.bytes().as_ptr() as usize - bytes.as_ptr() as usize;
    assert_eq!(offset, 2 * PAGE_SIZE);
    let names: Vec<_> = archive.entries().map(|entry| entry.name().to_string()).collect();
    assert_eq!(names, ["xenstore-uk", "empty", "guest-kernel"]);
    let missing = ArchiveError::Missing { name: name("net-uk") };
    assert_eq!(archive.entry("net-uk").err(), Some(missing));
    assert_eq!(missing.to_string(), "it has no entry \"net-uk\"");
    assert!(archive.entry(&"x".repeat(33)).is_err());
}

#[test]
fn golden() {
    let mut builder = ArchiveBuilder::new();
    builder.add("a", b"123456789").unwrap();
    let bytes = builder.build();
    assert_eq!(bytes.len(), 2 * PAGE_SIZE);
    assert_eq!(&bytes[..24], b"PpVMMarc\x01\0\0\0\x01\0\0\0\0\x20\0\0\0\0\0\0");
    assert_eq!(&bytes[64..66], b"a\0");
    assert_eq!(&bytes[96..112], b"\0\x10\0\0\0\0\0\0\x09\0\0\0\0\0\0\0");
    // The CRC-32 check value of "123456789" (IEEE 802.3).
    assert_eq!(bytes[112..116], 0xcbf4_3926_u32.to_le_bytes());
}

#[test]
fn each_damage_has_its_name() {
    use ArchiveError as E;
    let open = |bytes: &[u8]| Archive::open(bytes).expect_err("damaged");
    assert_eq!(open(&[]), E::Truncated { found: 0, needed: 64 });
    let whole = sample();
    let cut = E::Truncated { found: 4096, needed: 16384 };
    assert_eq!(open(&whole[..4096]), cut);
    assert_eq!(cut.to_string(), "it is cut off: 4096 bytes, needs 16384");
    assert_eq!(open(&whole[..70]), E::Truncated { found: 70, needed: 256 });
    assert!(matches!(open(&[0x7f; 4096]), E::Magic { found } if found == [0x7f; 8]));
    assert_eq!(open(&with(|b| b[8] = 9)), E::Version { found: 9 });
    assert_eq!(open(&with(|b| b[12] = 64)), E::Count { found: 64 });
    let mut flipped = sample();
    flipped[100] ^= 1;
    assert!(matches!(open(&flipped), E::TableCrc { .. }));
    let unaligned = E::Alignment { name: name("xenstore-uk"), offset: 0x1001 };
    assert_eq!(open(&with(|b| b[96] = 1)), unaligned);
    let (offset, length) = (0x1000, 0xff00_0000_0000_000b);
    let beyond = E::Bounds { name: name("xenstore-uk"), offset, length, archive: 16384 };
    assert_eq!(open(&with(|b| b[111] = 0xff)), beyond);
    // The kernel moved to the page of the first image: the entries would share it.
    let moved = with(|b| b[HEADER + 2 * ROW + 33] = 0x10);
    let overlap = E::Overlap { name: name("guest-kernel"), other: name("empty") };
    assert_eq!(open(&moved), overlap);
    let twice = with(|b| b.copy_within(HEADER..HEADER + NAME_MAX, HEADER + ROW));
    assert_eq!(open(&twice), E::Name { name: name("xenstore-uk") });
}

#[test]
fn a_damaged_entry_names_both_checksums() {
    let mut bytes = sample();
    bytes[PAGE_SIZE] ^= 1;
    let archive = Archive::open(&bytes).expect("the table is whole");
    let error = archive.entry("xenstore-uk").unwrap().verify().unwrap_err();
    let ArchiveError::Crc { stored, computed, .. } = error else { panic!("{error}") };
    assert_eq!(stored, crc32fast::hash(b"first image"));
    assert_ne!(stored, computed);
    assert!(error.to_string().contains("entry \"xenstore-uk\" is damaged: CRC 0x"));
    assert_eq!(archive.entry("guest-kernel").unwrap().verify(), Ok(()));
}

#[test]
fn bad_names_are_not_added() {
    let mut builder = ArchiveBuilder::new();
    assert_eq!(builder.add("", b""), Err(BuildError::Name));
    assert_eq!(builder.add("two words", b""), Err(BuildError::Name));
    assert_eq!(builder.add(&"x".repeat(33), b""), Err(BuildError::Name));
    for index in 0..ENTRIES_MAX {
        assert_eq!(builder.add(&format!("entry-{index}"), b"x"), Ok(()));
    }
    assert_eq!(builder.add("entry-5", b""), Err(BuildError::Name));
    assert_eq!(builder.add("more", b""), Err(BuildError::Full));
    let bytes = builder.build();
    assert_eq!(Archive::open(&bytes).unwrap().entries().count(), ENTRIES_MAX);
}

proptest! {
    /// No archive, however damaged, makes the reader panic, also with a table that passes its CRC.
    #[test]
    fn garbage_is_refused(at in 12_usize..256, value: u8, repair: bool) {
        let bytes = if repair && at >= CHECKED {
            with(|b| b[at] = value)
        } else {
            let mut bytes = sample();
            bytes[at] = value;
            bytes
        };
        if let Ok(archive) = Archive::open(&bytes) {
            for entry in archive.entries() {
                let _ = entry.verify();
            }
        }
    }
}
