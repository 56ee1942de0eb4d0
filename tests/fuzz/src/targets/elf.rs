//! ELF images of unikernels and guest kernels, whole and piece by piece, and the plans made of
//! them.

use builder::elf::{Address, Header, Image};
use builder::pvh::{Probe, Wanted};
use builder::{pv, pvh};

use super::Target;
use crate::Bytes;

pub const TARGET: Target =
    Target { name: "elf", run, seeds, words: &[b"\x7fELF\x02\x01\x01", b"Xen\0", b"\x3e\x00"] };

/// No plan takes more pieces of a kernel than its notes have bytes.
const PIECES_MAX: usize = 8192;

/// Memory of a planned guest in KiB, and its limit of addresses.
const MEMORY_KIB: u32 = 64 << 10;
const LIMIT: u64 = (MEMORY_KIB as u64) << 10;

fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let pages = u32::from(bytes.u16());
    let file = bytes.rest();
    probe(file);
    // A plan reads the image itself.
    if let Ok(plan) = pv::Plan::new(file, pages, b"console") {
        let (filled, image) = (plan.filled_pages(), plan.image_pages());
        assert!(filled.start == image.start && image.end <= filled.end && filled.end <= pages);
    }
    let Ok(image) = Image::parse(file) else { return };
    for address in [Address::Virtual, Address::Physical] {
        placement(&image, address);
    }
}

fn placement(image: &Image<'_>, address: Address) {
    let Ok(placement) = image.header.placement(address, LIMIT) else { return };
    let mut end = 0;
    for part in placement.parts() {
        assert!(part.start >= end && part.end() <= LIMIT && part.file_end() <= part.end());
        let bytes = image.part_bytes(part, part.start, part.file_end());
        assert_eq!(bytes.len() as u64, part.segment.file_len);
        end = part.end();
    }
    assert_eq!((placement.start(), placement.end()), (placement.parts()[0].start, end));
}

/// Reads the file as tool-uk does, and plans a guest of it.
fn probe(file: &[u8]) {
    let mut probe = Probe::new();
    for _ in 0..PIECES_MAX {
        match probe.wanted() {
            Err(_) => return,
            Ok(Wanted::Nothing) => {
                let (header, notes) = probe.found().expect("it wants nothing more");
                return plan(file, header, notes);
            }
            Ok(Wanted::Bytes { offset, len }) => {
                let rest = file.get(offset as usize..).unwrap_or_default();
                let piece = &rest[..rest.len().min(len as usize)];
                if probe.feed(piece, file.len() as u32).is_err() {
                    return;
                }
            }
        }
    }
    panic!("the probe never ends");
}

fn plan(file: &[u8], header: Header, notes: builder::elf::XenNotes) {
    let image = Image::parse(file).expect("the probe has accepted it");
    assert_eq!((image.header, image.notes), (header, notes));
    let config = pvh::Config {
        guest: api::GuestId(16),
        memory_kib: MEMORY_KIB,
        vcpus: 1,
        kernel: "kernel",
        header,
        notes,
        ramdisk: Some(pvh::Ramdisk { entry: "ramdisk", len: 12345 }),
        command_line: "console=hvc0",
    };
    let Ok(plan) = pvh::Plan::new(config) else { return };
    let mut step = pvh::Step::Create;
    for _ in 0..PIECES_MAX {
        let Some(operation) = plan.operation(step) else { return };
        api::validate(&operation, &api::Limits::default()).expect("a plan asks what is allowed");
        let outcome = match operation {
            api::Operation::ConnectStore { .. } | api::Operation::ConnectConsole { .. } => {
                api::Outcome::Port(1)
            }
            _ => api::Outcome::Done,
        };
        let Ok(next) = plan.after(step, &outcome) else { return };
        step = next;
    }
    panic!("the plan never ends");
}

/// A program header: kind, flags, address, bytes, and length in memory.
type Segment<'a> = (u32, u32, u64, &'a [u8], u64);

fn file(segments: &[Segment<'_>]) -> Vec<u8> {
    let mut file = vec![0; 64 + 56 * segments.len()];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
    for (index, (kind, flags, address, bytes, memory)) in segments.iter().enumerate() {
        let (at, offset, len) = (64 + 56 * index, file.len() as u64, bytes.len() as u64);
        let words = [offset, *address, *address, len, *memory, 4];
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        file[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
        for (word, to) in words.iter().zip(file[at + 8..at + 56].chunks_exact_mut(8)) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(bytes);
    }
    file
}

fn note(kind: u32, value: &[u8]) -> Vec<u8> {
    let words = [4, value.len() as u32, kind].map(u32::to_le_bytes).concat();
    [&words[..], b"Xen\0", value].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let notes = [note(1, &0x10_0040u64.to_le_bytes()), note(18, &0x10_0010u32.to_le_bytes())];
    let notes = notes.concat();
    let code: Segment<'_> = (1, 5, 0x10_0000, &[0x11; 200], 200);
    let data: Segment<'_> = (1, 6, 0x10_3000, &[0x33; 40], 3 * 4096);
    let described: Segment<'_> = (4, 4, 0, &notes, 0);
    let with = |segments: &[Segment<'_>]| [&2048u16.to_le_bytes()[..], &file(segments)].concat();
    vec![with(&[code, data, described]), with(&[code, described]), with(&[data, code])]
}
