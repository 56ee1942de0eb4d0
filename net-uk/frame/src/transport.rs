//! Where a frame's TCP or UDP header lies.

use crate::{GsoKind, Header};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Extension headers that are skipped before giving up; real packets carry one or two.
const EXTENSIONS: usize = 6;

/// A transport protocol with a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// Where the checksum lies in the protocol's header.
    pub const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    /// Its number in IP headers.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

/// The parts of a TCP or UDP packet, as offsets from the frame's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Start of the IP header.
    pub network: usize,
    /// Whether it is IPv6.
    pub is_v6: bool,
    /// Start of the TCP or UDP header.
    pub start: usize,
    /// Which of them.
    pub protocol: Protocol,
    /// Start of the data behind it.
    pub payload: usize,
    /// End of the IP packet by its own length field; a frame may be longer (padding). For IPv6 and
    /// IPv4 packets with length 0 (large segments) it is `None`: the frame's end counts.
    pub end: Option<usize>,
}

impl Transport {
    /// Finds them in the frame's first bytes. `None` for anything else: another protocol, a
    /// fragment, or headers that are cut off or contradict themselves.
    pub fn find(bytes: &[u8]) -> Option<Self> {
        let header = Header::parse(bytes)?;
        match header.ethertype {
            IPV4 => Self::find_v4(bytes, header.payload),
            IPV6 => Self::find_v6(bytes, header.payload),
            _ => None,
        }
    }

    /// Whether a frame with this packet can be cut as `kind`.
    pub fn suits(&self, kind: GsoKind) -> bool {
        self.protocol == Protocol::Tcp && self.is_v6 == (kind == GsoKind::TcpV6)
    }

    fn find_v4(bytes: &[u8], network: usize) -> Option<Self> {
        let ip: &[u8; 20] = bytes.get(network..)?.first_chunk()?;
        let length = usize::from(ip[0] & 0x0f) * 4;
        let is_fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
        if ip[0] >> 4 != 4 || length < 20 || is_fragment {
            return None;
        }
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let end = (total != 0).then_some(network + total);
        Self::finish(bytes, network, false, ip[9], network + length, end)
    }

    fn find_v6(bytes: &[u8], network: usize) -> Option<Self> {
        let ip: &[u8; 40] = bytes.get(network..)?.first_chunk()?;
        if ip[0] >> 4 != 6 {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
        let end = (length != 0).then_some(network + 40 + length);
        let (mut next, mut at) = (ip[6], network + 40);
        for _ in 0..EXTENSIONS {
            // Hop-by-hop, routing and destination options (RFC 8200 section 4).
            if !matches!(next, 0 | 43 | 60) {
                return Self::finish(bytes, network, true, next, at, end);
            }
            let extension: &[u8; 8] = bytes.get(at..)?.first_chunk()?;
            next = extension[0];
            at += 8 * (usize::from(extension[1]) + 1);
        }
        None
    }

    fn finish(
        bytes: &[u8],
        network: usize,
        is_v6: bool,
        number: u8,
        start: usize,
        end: Option<usize>,
    ) -> Option<Self> {
        let (protocol, length) = match number {
            TCP => {
                let tcp: &[u8; 20] = bytes.get(start..)?.first_chunk()?;
                let length = usize::from(tcp[12] >> 4) * 4;
                (Protocol::Tcp, (length >= 20).then_some(length)?)
            }
            UDP => (Protocol::Udp, 8),
            _ => return None,
        };
        let payload = start + length;
        if payload > bytes.len() || end.is_some_and(|end| end < payload) {
            return None;
        }
        Some(Self { network, is_v6, start, protocol, payload, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 0..3_u8,
        ) {
            if bytes.len() > 60 {
                bytes[12..14].copy_from_slice(&if kind == 0 { IPV6 } else { IPV4 }.to_be_bytes());
                bytes[14] = if kind == 0 { 0x60 } else { 0x45 };
                bytes[20] = 6;
                bytes[23] = 6;
            }
            if let Some(found) = Transport::find(&bytes) {
                prop_assert!(found.network < found.start);
                prop_assert!(found.start + 8 <= found.payload && found.payload <= bytes.len());
            }
        }
    }
}
