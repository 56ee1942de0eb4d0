//! Slots of the rings, byte for byte (netif.h, "Guest transmit", "Guest receive", "Extra Info").

use abi::GrantRef;
use frame::{Gso, GsoKind, Mac};

/// Bytes of a transmit slot.
pub const TX_SLOT: usize = 12;
/// Bytes of a receive slot.
pub const RX_SLOT: usize = 8;

/// Flags of a transmit request (`NETTXF_*`).
pub mod tx_flag {
    /// The transport checksum is not filled in.
    pub const CSUM_BLANK: u16 = 1;
    /// The data was checked.
    pub const DATA_VALIDATED: u16 = 1 << 1;
    /// The packet goes on in the next request.
    pub const MORE_DATA: u16 = 1 << 2;
    /// An extra slot follows.
    pub const EXTRA_INFO: u16 = 1 << 3;
}

/// Flags of a receive response (`NETRXF_*`); not the same bits.
pub mod rx_flag {
    /// The data was checked.
    pub const DATA_VALIDATED: u16 = 1;
    /// The transport checksum is not filled in.
    pub const CSUM_BLANK: u16 = 1 << 1;
    /// The packet goes on in the next response.
    pub const MORE_DATA: u16 = 1 << 2;
    /// An extra slot follows.
    pub const EXTRA_INFO: u16 = 1 << 3;
}

/// `NETIF_RSP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum Status {
    /// Not sent, and not the frontend's fault.
    Dropped = -2,
    /// Not sent: the request is wrong.
    Error = -1,
    /// Sent.
    Okay = 0,
    /// Answer to an extra slot.
    Null = 1,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn double(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A transmit request (`netif_tx_request_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxRequest {
    /// The page with the bytes.
    pub grant: GrantRef,
    /// First byte in it.
    pub offset: u16,
    /// [`tx_flag`].
    pub flags: u16,
    /// Name, for the response.
    pub id: u16,
    /// In a packet's first request the whole packet's bytes, else this piece's.
    pub size: u16,
}

impl TxRequest {
    /// Reads a slot.
    pub fn parse(slot: &[u8; TX_SLOT]) -> Self {
        Self {
            grant: GrantRef(double(slot, 0)),
            offset: word(slot, 4),
            flags: word(slot, 6),
            id: word(slot, 8),
            size: word(slot, 10),
        }
    }

    /// Writes a slot.
    pub fn emit(&self) -> [u8; TX_SLOT] {
        let mut slot = [0; TX_SLOT];
        slot[..4].copy_from_slice(&self.grant.0.to_le_bytes());
        for (value, place) in
            [self.offset, self.flags, self.id, self.size].iter().zip(slot[4..].chunks_exact_mut(2))
        {
            place.copy_from_slice(&value.to_le_bytes());
        }
        slot
    }
}

/// The part of a transmit slot that a response fills (`netif_tx_response_t`).
pub fn tx_response(id: u16, status: Status) -> [u8; 4] {
    let ([a, b], [c, d]) = (id.to_le_bytes(), (status as i16).to_le_bytes());
    [a, b, c, d]
}

/// A receive request (`netif_rx_request_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxRequest {
    /// Name, for the response.
    pub id: u16,
    /// The page to fill.
    pub grant: GrantRef,
}

impl RxRequest {
    /// Reads a slot.
    pub fn parse(slot: &[u8; RX_SLOT]) -> Self {
        Self { id: word(slot, 0), grant: GrantRef(double(slot, 4)) }
    }

    /// Writes a slot.
    pub fn emit(&self) -> [u8; RX_SLOT] {
        let [a, b] = self.id.to_le_bytes();
        let [c, d, e, f] = self.grant.0.to_le_bytes();
        [a, b, 0, 0, c, d, e, f]
    }
}

/// A receive response (`netif_rx_response_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxResponse {
    /// The request's name.
    pub id: u16,
    /// First byte in the page.
    pub offset: u16,
    /// [`rx_flag`].
    pub flags: u16,
    /// Bytes in this page, or a negative [`Status`].
    pub status: i16,
}

impl RxResponse {
    /// Reads a slot.
    pub fn parse(slot: &[u8; RX_SLOT]) -> Self {
        Self {
            id: word(slot, 0),
            offset: word(slot, 2),
            flags: word(slot, 4),
            status: word(slot, 6) as i16,
        }
    }

    /// Writes a slot.
    pub fn emit(&self) -> [u8; RX_SLOT] {
        let mut slot = [0; RX_SLOT];
        for (value, place) in [self.id, self.offset, self.flags, self.status as u16]
            .iter()
            .zip(slot.chunks_exact_mut(2))
        {
            place.copy_from_slice(&value.to_le_bytes());
        }
        slot
    }
}

/// An extra slot (`netif_extra_info_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// The packet has to be cut.
    Gso(Gso),
    /// Add an address to the frontend's group filter.
    GroupAdd(Mac),
    /// Take one out.
    GroupRemove(Mac),
    /// A hash of the packet, which nobody here needs.
    Hash,
}

/// An extra slot that no frontend may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadExtra;

/// `XEN_NETIF_EXTRA_FLAG_MORE`.
const EXTRA_MORE: u8 = 1;

impl Extra {
    /// Reads a slot; `true`: another extra slot follows.
    pub fn parse(slot: &[u8]) -> (Result<Self, BadExtra>, bool) {
        let mac = || Mac([slot[2], slot[3], slot[4], slot[5], slot[6], slot[7]]);
        let extra = match slot[0] {
            1 => {
                let size = word(slot, 2);
                match slot[4] {
                    1 if size > 0 => Ok(Self::Gso(Gso { kind: GsoKind::TcpV4, size })),
                    2 if size > 0 => Ok(Self::Gso(Gso { kind: GsoKind::TcpV6, size })),
                    _ => Err(BadExtra),
                }
            }
            2 => Ok(Self::GroupAdd(mac())),
            3 => Ok(Self::GroupRemove(mac())),
            4 => Ok(Self::Hash),
            _ => Err(BadExtra),
        };
        (extra, slot[1] & EXTRA_MORE != 0)
    }

    /// The slot of a packet that has to be cut, with none following.
    pub fn emit_gso(gso: Gso) -> [u8; RX_SLOT] {
        let [low, high] = gso.size.to_le_bytes();
        let kind = match gso.kind {
            GsoKind::TcpV4 => 1,
            GsoKind::TcpV6 => 2,
        };
        [1, 0, low, high, kind, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slots_come_back(slot in any::<[u8; 12]>(), small in any::<[u8; 8]>()) {
            prop_assert_eq!(TxRequest::parse(&slot).emit(), slot);
            prop_assert_eq!(RxResponse::parse(&small).emit(), small);
            let [a, b, _, _, rest @ ..] = small;
            let [c, d, e, f] = rest;
            prop_assert_eq!(RxRequest::parse(&small).emit(), [a, b, 0, 0, c, d, e, f]);
            let (extra, _) = Extra::parse(&slot);
            if let Ok(Extra::Gso(gso)) = extra {
                let again = Extra::emit_gso(gso);
                prop_assert_eq!(Extra::parse(&again), (Ok(Extra::Gso(gso)), false));
            }
        }
    }

    #[test]
    fn golden() {
        let request = TxRequest { grant: GrantRef(0x1234), offset: 2, flags: 9, id: 7, size: 1514 };
        assert_eq!(request.emit(), [0x34, 0x12, 0, 0, 2, 0, 9, 0, 7, 0, 0xea, 5]);
        assert_eq!(tx_response(7, Status::Error), [7, 0, 0xff, 0xff]);
        let gso = Gso { kind: GsoKind::TcpV4, size: 1448 };
        assert_eq!(Extra::emit_gso(gso), [1, 0, 0xa8, 5, 1, 0, 0, 0]);
    }
}
