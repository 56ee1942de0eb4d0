//! The Internet checksum (RFC 1071) over frames that lie in pieces.

use crate::Transport;

/// A running sum of 16-bit words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    total: u64,
    is_odd: bool,
}

impl Sum {
    /// Adds the next bytes of the stream, whatever their number.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if self.is_odd
            && let [first, rest @ ..] = bytes
        {
            self.total += u64::from(*first);
            self.is_odd = false;
            bytes = rest;
        }
        let mut chunks = bytes.chunks_exact(4);
        for chunk in &mut chunks {
            // Two words at once: the carries are folded at the end.
            self.total += u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
        }
        match chunks.remainder() {
            [a] => {
                self.total += u64::from(*a) << 8;
                self.is_odd = true;
            }
            [a, b] => self.total += u64::from(u16::from_be_bytes([*a, *b])),
            [a, b, c] => {
                self.total += u64::from(u16::from_be_bytes([*a, *b])) + (u64::from(*c) << 8);
                self.is_odd = true;
            }
            _ => {}
        }
    }

    /// Adds one word.
    pub fn add_word(&mut self, word: u16) {
        self.total += u64::from(word);
    }

    /// The sum, folded to 16 bits.
    pub fn fold(self) -> u16 {
        let mut total = self.total;
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }
}

/// The sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) of the packet in
/// `bytes`, with `length` as the length of transport header and data. What devices that complete a
/// checksum want to find in its field; with `length` 0 what those that cut segments want.
pub fn pseudo_header(bytes: &[u8], transport: &Transport, length: usize) -> Sum {
    let mut sum = Sum::default();
    let addresses = if transport.is_v6 { 8..40 } else { 12..20 };
    let network = bytes.get(transport.network..).unwrap_or_default();
    sum.add(network.get(addresses).unwrap_or_default());
    sum.add_word(u16::from(transport.protocol.number()));
    sum.add(&(length as u32).to_be_bytes());
    sum
}

/// Fills in the transport checksum of a whole frame. Frames without TCP or UDP stay as they are.
pub fn complete(frame: &mut [u8]) {
    let Some(transport) = Transport::find(frame) else { return };
    let end = transport.end.map_or(frame.len(), |end| end.min(frame.len()));
    let field = transport.start + transport.protocol.checksum_offset();
    frame[field..field + 2].fill(0);
    let mut sum = pseudo_header(frame, &transport, end - transport.start);
    sum.add(&frame[transport.start..end]);
    let value = match !sum.fold() {
        // Zero says "no checksum" in UDP; its other form is the same number (RFC 768).
        0 => 0xffff,
        value => value,
    };
    frame[field..field + 2].copy_from_slice(&value.to_be_bytes());
}

/// Whether the transport checksum of a whole frame is right (true for frames without one).
pub fn is_right(frame: &[u8]) -> bool {
    let Some(transport) = Transport::find(frame) else { return true };
    let end = transport.end.map_or(frame.len(), |end| end.min(frame.len()));
    let mut sum = pseudo_header(frame, &transport, end - transport.start);
    sum.add(&frame[transport.start..end]);
    sum.fold() == 0xffff
}

/// Writes `start`, the transport header's first byte, and the checksum's place into a frame's
/// headers so that a device can complete it: the field gets the pseudo header's sum. Returns both
/// offsets; `None` if there is nothing to complete. `length` is the whole frame's.
pub fn prepare(headers: &mut [u8], length: usize, is_cut: bool) -> Option<(u16, u16)> {
    let transport = Transport::find(headers)?;
    let end = transport.end.map_or(length, |end| end.min(length));
    let counted = if is_cut { 0 } else { end.checked_sub(transport.start)? };
    let field = transport.start + transport.protocol.checksum_offset();
    let sum = pseudo_header(headers, &transport, counted).fold();
    headers.get_mut(field..field + 2)?.copy_from_slice(&sum.to_be_bytes());
    Some((u16::try_from(transport.start).ok()?, u16::try_from(field).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::tests::tcp_frame;
    use proptest::prelude::*;

    #[test]
    fn known_sum() {
        // The example of RFC 1071 section 3.
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            cut in 0..300_usize,
            second in 0..300_usize,
        ) {
            let (cut, second) = (cut.min(bytes.len()), second.min(bytes.len()));
            let (a, b) = (cut.min(second), cut.max(second));
            let mut whole = Sum::default();
            whole.add(&bytes);
            let mut pieces = Sum::default();
            pieces.add(&bytes[..a]);
            pieces.add(&bytes[a..b]);
            pieces.add(&bytes[b..]);
            prop_assert_eq!(whole.fold(), pieces.fold());
        }

        #[test]
        fn a_completed_checksum_is_right(
            length in 0..500_usize, is_v6 in any::<bool>(), fill in any::<u8>(),
        ) {
            let mut frame = tcp_frame(is_v6, length, fill);
            complete(&mut frame);
            prop_assert!(is_right(&frame));
            let last = frame.len() - 1;
            frame[last] ^= 1;
            prop_assert!(!is_right(&frame));
        }

        #[test]
        fn a_device_completes_what_was_prepared(length in 0..500_usize, is_v6 in any::<bool>()) {
            let mut frame = tcp_frame(is_v6, length, 7);
            let whole = frame.len();
            let (start, field) = prepare(&mut frame, whole, false).unwrap();
            let mut sum = Sum::default();
            sum.add(&frame[usize::from(start)..]);
            let at = usize::from(field);
            frame[at..at + 2].copy_from_slice(&(!sum.fold()).to_be_bytes());
            prop_assert!(is_right(&frame));
        }
    }
}
