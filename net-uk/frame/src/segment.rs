//! Cutting a large TCP frame in software, for links and frontends that cannot take it whole.

use alloc::vec::Vec;

use crate::checksum::{self, Sum};
use crate::{Gso, Transport};

/// TCP flags that belong to the last segment only: FIN and PSH.
const LAST_ONLY: u8 = 0x01 | 0x08;
/// TCP flag that belongs to the first segment only: CWR (RFC 3168).
const FIRST_ONLY: u8 = 0x80;

/// Cuts `frame` into frames with at most `gso.size` bytes of payload each, with all lengths,
/// sequence numbers, flags and checksums filled in. `None` if it is not what `gso` says.
pub fn cut(frame: &[u8], gso: Gso) -> Option<Vec<Vec<u8>>> {
    let transport = Transport::find(frame)?;
    if !transport.suits(gso.kind) || gso.size == 0 {
        return None;
    }
    let end = transport.end.map_or(frame.len(), |end| end.min(frame.len()));
    let (headers, payload) = frame.get(..end)?.split_at_checked(transport.payload)?;
    let pieces = payload.chunks(usize::from(gso.size));
    let count = pieces.len().max(1);
    let mut cut = Vec::with_capacity(count);
    if payload.is_empty() {
        cut.push(piece(headers, &[], &transport, Place { number: 0, before: 0, count }));
    }
    for (number, data) in pieces.enumerate() {
        let before = number * usize::from(gso.size);
        cut.push(piece(headers, data, &transport, Place { number, before, count }));
    }
    Some(cut)
}

/// Where a piece lies in the frame that is cut.
struct Place {
    number: usize,
    before: usize,
    count: usize,
}

fn piece(headers: &[u8], data: &[u8], transport: &Transport, place: Place) -> Vec<u8> {
    let mut frame = Vec::with_capacity(headers.len() + data.len());
    frame.extend_from_slice(headers);
    frame.extend_from_slice(data);
    let (ip, tcp) = (transport.network, transport.start);
    if transport.is_v6 {
        let length = (frame.len() - ip - 40) as u16;
        frame[ip + 4..ip + 6].copy_from_slice(&length.to_be_bytes());
    } else {
        let length = (frame.len() - ip) as u16;
        frame[ip + 2..ip + 4].copy_from_slice(&length.to_be_bytes());
        let id = u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]);
        let id = id.wrapping_add(place.number as u16);
        frame[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
        frame[ip + 10..ip + 12].fill(0);
        let mut sum = Sum::default();
        sum.add(&frame[ip..tcp]);
        let sum = !sum.fold();
        frame[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let sequence =
        u32::from_be_bytes([frame[tcp + 4], frame[tcp + 5], frame[tcp + 6], frame[tcp + 7]]);
    let sequence = sequence.wrapping_add(place.before as u32);
    frame[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
    if place.number + 1 < place.count {
        frame[tcp + 13] &= !LAST_ONLY;
    }
    if place.number > 0 {
        frame[tcp + 13] &= !FIRST_ONLY;
    }
    checksum::complete(&mut frame);
    frame
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::GsoKind;
    use proptest::prelude::*;

    /// A TCP frame with `length` bytes of payload and no checksums.
    pub(crate) fn tcp_frame(is_v6: bool, length: usize, fill: u8) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if is_v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(((20 + length) as u16).to_be_bytes());
            frame.extend([6, 64]);
            frame.extend([0x20; 32]);
        } else {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend(((40 + length) as u16).to_be_bytes());
            frame.extend([0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        frame.extend([0, 80, 0x80, 0, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0, 0x50, 0x99, 1, 0]);
        frame.extend([0, 0, 0, 0]);
        frame.extend((0..length).map(|at| (at as u8).wrapping_add(fill)));
        frame
    }

    proptest! {
        #[test]
        fn the_pieces_carry_the_whole(
            length in 0..9000_usize, size in 1..3000_u16, is_v6 in any::<bool>(),
        ) {
            let frame = tcp_frame(is_v6, length, 3);
            let kind = if is_v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
            let cut = cut(&frame, Gso { kind, size }).unwrap();
            let mut data = Vec::new();
            let first = Transport::find(&frame).unwrap();
            for (number, piece) in cut.iter().enumerate() {
                prop_assert!(checksum::is_right(piece));
                let found = Transport::find(piece).unwrap();
                prop_assert_eq!(found.end, Some(piece.len()));
                let at = found.start;
                let sequence = u32::from_be_bytes(piece[at + 4..at + 8].try_into().unwrap());
                prop_assert_eq!(sequence, 0xffff_fff0_u32.wrapping_add(data.len() as u32));
                prop_assert_eq!(piece[at + 13] & LAST_ONLY != 0, number + 1 == cut.len());
                prop_assert_eq!(piece[at + 13] & FIRST_ONLY != 0, number == 0);
                prop_assert!(piece.len() - found.payload <= usize::from(size));
                data.extend_from_slice(&piece[found.payload..]);
            }
            prop_assert_eq!(&data[..], &frame[first.payload..]);
        }

        #[test]
        fn any_bytes_are_cut_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let cut = cut(&bytes, Gso { kind: GsoKind::TcpV4, size: 10 });
            prop_assert!(cut.is_none_or(|cut| !cut.is_empty()));
        }
    }
}
