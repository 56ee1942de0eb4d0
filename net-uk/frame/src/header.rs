//! The Ethernet header (IEEE 802.3, one 802.1Q tag).

use crate::Mac;

/// Bytes of an Ethernet header without a tag.
pub const ETHERNET: usize = 14;
/// Bytes of an 802.1Q tag, which lies after the two addresses.
pub const VLAN_TAG: usize = 4;
/// Ethertype of an 802.1Q tag.
const TAGGED: u16 = 0x8100;
/// Bits of a tag that hold the VLAN number.
const VLAN_BITS: u16 = 0x0fff;

/// What a frame's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// For whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
    /// The VLAN of the frame's tag, if it has one; 0 is a tag that carries a priority only.
    pub vlan: Option<u16>,
    /// What follows (behind the tag).
    pub ethertype: u16,
    /// Where that starts: 14 or 18.
    pub payload: usize,
}

impl Header {
    /// Reads the header from the frame's first bytes; `None` if the frame is too short for one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let fixed: &[u8; ETHERNET] = bytes.first_chunk()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *fixed;
        let (vlan, ethertype, payload) = match u16::from_be_bytes([t0, t1]) {
            TAGGED => {
                let tag: &[u8; VLAN_TAG] = bytes.get(ETHERNET..)?.first_chunk()?;
                let vlan = u16::from_be_bytes([tag[0], tag[1]]) & VLAN_BITS;
                (Some(vlan), u16::from_be_bytes([tag[2], tag[3]]), ETHERNET + VLAN_TAG)
            }
            other => (None, other, ETHERNET),
        };
        Some(Self {
            destination: Mac([d0, d1, d2, d3, d4, d5]),
            source: Mac([s0, s1, s2, s3, s4, s5]),
            vlan,
            ethertype,
            payload,
        })
    }

    /// The four bytes of a tag for `vlan`, priority 0.
    pub const fn tag(vlan: u16) -> [u8; VLAN_TAG] {
        let [high, low] = (vlan & VLAN_BITS).to_be_bytes();
        let [t0, t1] = TAGGED.to_be_bytes();
        [t0, t1, high, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tagged_and_untagged() {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45];
        let plain = Header::parse(&bytes).unwrap();
        assert_eq!((plain.vlan, plain.ethertype, plain.payload), (None, 0x0800, 14));
        bytes.splice(12..12, Header::tag(0x123));
        let tagged = Header::parse(&bytes).unwrap();
        assert_eq!((tagged.vlan, tagged.ethertype, tagged.payload), (Some(0x123), 0x0800, 18));
        assert_eq!(Header::parse(&bytes[..17]), None);
        assert_eq!(Header::parse(&bytes[..13]), None);
    }
}
