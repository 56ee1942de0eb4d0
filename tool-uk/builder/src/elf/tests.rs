//! Reading of good, cut, patched and random files.

use proptest::prelude::*;

use super::*;
use crate::testing::{TestSegment, elf, service_image, xen_note};

fn load(address: u64, len: usize) -> TestSegment {
    TestSegment { kind: 1, flags: 6, address, bytes: vec![1; len], memory_len: len as u64 }
}

#[test]
fn a_good_image_is_read() {
    let file = service_image();
    let image = Image::parse(&file).unwrap();
    assert_eq!(image.notes, XenNotes { entry: Some(0x10_0040), phys32_entry: None });
    let placement = image.header.placement(Address::Virtual, 1 << 24).unwrap();
    assert_eq!((placement.start(), placement.end()), (0x10_0000, 0x10_7000));
    let part = placement.parts()[1];
    assert_eq!(image.part_bytes(&part, part.start, part.file_end()), &[0x22; 100]);
}

#[test]
fn each_fault_is_named() {
    let good = service_image();
    let with = |at: usize, byte: u8| {
        let mut file = good.clone();
        file[at] = byte;
        Image::parse(&file).unwrap_err()
    };
    assert_eq!(with(0, 0), ElfError::NotElf);
    assert_eq!(with(4, 1), ElfError::WrongClass(1, 1));
    assert_eq!(with(18, 3), ElfError::WrongMachine(3));
    assert_eq!(with(16, 3), ElfError::NotExecutable(3));
    assert_eq!(with(54, 32), ElfError::BadProgramHeaders { size: 32, count: 4 });
    assert_eq!(with(56, 0), ElfError::NothingToLoad);
    assert_eq!(with(64 + 40, 0), ElfError::SegmentShrinks { segment: 0 });
    let len = good.len() as u64;
    assert_eq!(
        Image::parse(&good[..good.len() - 1]).unwrap_err(),
        ElfError::Truncated { end: len, len: len - 1 }
    );
    assert_eq!(Image::parse(b"\x7fELF").unwrap_err(), ElfError::Truncated { end: 64, len: 4 });
    let many = vec![load(0x1000, 1); MAX_LOADS + 1];
    assert_eq!(Image::parse(&elf(0, &many)).unwrap_err(), ElfError::TooManySegments);
}

#[test]
fn segments_stay_inside_and_apart() {
    let placed = |segments: &[TestSegment]| {
        let file = elf(0, segments);
        Image::parse(&file).unwrap().header.placement(Address::Physical, 0x10000).map(|_| ())
    };
    assert_eq!(placed(&[load(0x2000, 16), load(0x1000, 0x1000)]), Ok(()));
    assert_eq!(
        placed(&[load(0x2000, 16), load(0x1000, 0x1001)]),
        Err(ElfError::Overlap { first: 1, second: 0 })
    );
    let outside = |start, len| ElfError::SegmentOutside { segment: 0, start, len, limit: 0x10000 };
    assert_eq!(placed(&[load(0xffff, 2)]), Err(outside(0xffff, 2)));
    assert_eq!(placed(&[load(u64::MAX, 2)]), Err(outside(u64::MAX, 2)));
}

#[test]
fn notes_of_both_sizes_and_alignments_are_read() {
    let mut notes = XenNotes::default();
    let four = xen_note(18, &0x100_0000u32.to_le_bytes());
    let mut bytes = [four, xen_note(1, &7u64.to_le_bytes())].concat();
    notes.scan(&bytes, 4).unwrap();
    assert_eq!(notes, XenNotes { entry: Some(7), phys32_entry: Some(0x100_0000) });
    bytes.truncate(bytes.len() - 1);
    assert_eq!(notes.scan(&bytes, 4), Err(ElfError::BadNote));
    assert_eq!(notes.scan(&xen_note(1, b"odd"), 4), Err(ElfError::BadNote));
    assert_eq!(notes.scan(&[0xff; 16], 8), Err(ElfError::BadNote));
}

proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Image::parse(&bytes);
        let _ = XenNotes::default().scan(&bytes, 4);
        let _ = XenNotes::default().scan(&bytes, 8);
    }

    #[test]
    fn a_patched_image_is_refused_or_stays_inside(
        patches in proptest::collection::vec((0usize..288, any::<u8>()), 1..6),
        cut in 0usize..200,
    ) {
        let mut file = service_image();
        for (at, byte) in patches {
            file[at] = byte;
        }
        file.truncate(file.len() - cut);
        let Ok(image) = Image::parse(&file) else { return Ok(()) };
        for address in [Address::Virtual, Address::Physical] {
            let Ok(placement) = image.header.placement(address, 1 << 24) else { continue };
            let mut end = 0;
            for part in placement.parts() {
                prop_assert!(part.start >= end);
                end = part.end();
                let bytes = image.part_bytes(part, part.start, part.file_end());
                prop_assert_eq!(bytes.len() as u64, part.segment.file_len);
            }
            prop_assert!(end <= 1 << 24);
        }
    }
}
