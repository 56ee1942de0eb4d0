//! What frames carry, so that an oracle knows each one when it sees it.

use frame::{Gso, GsoKind, Mac};

/// Bytes of a tag: magic, sender, receiver, flow, number, part.
const TAG: usize = 16;
const MAGIC: [u8; 4] = *b"PVMM";

/// One frame, or one segment of a frame that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Unit {
    pub from: u8,
    pub to: u8,
    pub flow: u16,
    pub number: u32,
    pub part: u32,
}

/// A frame as its sender made it.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub bytes: Vec<u8>,
    pub gso: Option<Gso>,
    pub is_blank: bool,
    pub unit: Unit,
}

/// The address of a station: guests from 1 on, the world outside is 200, everybody is 255.
pub(crate) fn mac(station: u8) -> Mac {
    if station == 255 { Mac::BROADCAST } else { Mac([2, 0, 0, 0, 0, station]) }
}

fn ethernet(unit: Unit, kind: u16) -> Vec<u8> {
    [&mac(unit.to).0[..], &mac(unit.from).0, &kind.to_be_bytes()].concat()
}

fn payload(unit: Unit, length: usize) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend([unit.from, unit.to]);
    bytes.extend(unit.flow.to_le_bytes());
    bytes.extend(unit.number.to_le_bytes());
    bytes.extend(unit.part.to_le_bytes());
    let seed = unit.number.wrapping_mul(31).wrapping_add(unit.part * 7) as u8;
    bytes.extend((TAG..length.max(TAG)).map(|at| (at as u8).wrapping_mul(13) ^ seed ^ unit.from));
    bytes
}

/// A frame of a kind of its own, with `length` bytes behind the header.
pub(crate) fn plain(unit: Unit, length: usize) -> Content {
    let mut bytes = ethernet(unit, 0x88b5);
    bytes.extend(payload(unit, length));
    Content { bytes, gso: None, is_blank: false, unit }
}

/// A TCP frame with a blank checksum: `parts` segments of `size` bytes each.
pub(crate) fn tcp(unit: Unit, size: usize, parts: u32) -> Content {
    let mut bytes = ethernet(unit, 0x0800);
    let data: Vec<u8> = (0..parts).flat_map(|part| payload(Unit { part, ..unit }, size)).collect();
    let length = (40 + data.len()) as u16;
    bytes.extend([0x45, 0]);
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, unit.from, 10, 0, 0, unit.to]);
    let mut sum = frame::checksum::Sum::default();
    sum.add(&bytes[14..34]);
    let sum = !sum.fold();
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(unit.flow.to_be_bytes());
    bytes.extend([0, 80]);
    bytes.extend(unit.number.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    bytes.extend(data);
    let gso = (parts > 1).then_some(Gso { kind: GsoKind::TcpV4, size: size as u16 });
    Content { bytes, gso, is_blank: true, unit }
}

/// What a frame says it is: the units in it, if each byte is what its sender wrote. `size` is the
/// segment size if the frame was not cut. `None`: not one of ours, or damaged.
pub(crate) fn read(bytes: &[u8], gso: Option<Gso>) -> Option<Vec<Unit>> {
    let kind = u16::from_be_bytes([*bytes.get(12)?, *bytes.get(13)?]);
    let start = if kind == 0x88b5 { 14 } else { 54 };
    let data = bytes.get(start..)?;
    let size = gso.map_or(data.len(), |gso| usize::from(gso.size));
    let mut units = Vec::new();
    for chunk in data.chunks(size.max(1)) {
        let unit = tag(chunk)?;
        if chunk != payload(unit, chunk.len()) {
            return None;
        }
        if bytes[..6] != mac(unit.to).0 || bytes[6..12] != mac(unit.from).0 {
            return None;
        }
        units.push(unit);
    }
    Some(units)
}

fn tag(chunk: &[u8]) -> Option<Unit> {
    let tag: &[u8; TAG] = chunk.first_chunk()?;
    let word = |at: usize| u32::from_le_bytes([tag[at], tag[at + 1], tag[at + 2], tag[at + 3]]);
    let flow = u16::from_le_bytes([tag[6], tag[7]]);
    let unit = Unit { from: tag[4], to: tag[5], flow, number: word(8), part: word(12) };
    (tag[..4] == MAGIC).then_some(unit)
}
