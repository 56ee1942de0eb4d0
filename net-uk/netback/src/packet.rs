//! From slots to a packet.

use abi::GrantRef;
use frame::{Checksum, Gso, Mac, Offload};

use crate::wire::{Extra, TX_SLOT, TxRequest, tx_flag};
use crate::{EXTRAS_MAX, Fatal, PAGE, SLOTS_FATAL, SLOTS_MAX};

/// A packet's name within its queue: the index of its first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PacketId(pub u32);

/// Bytes of a packet in one page of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The page.
    pub grant: GrantRef,
    /// First byte.
    pub offset: u16,
    /// Bytes; not zero, within the page.
    pub length: u16,
}

/// What a frontend wants changed in its group filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupChange {
    /// Receive this group.
    Add(Mac),
    /// Do not receive it any more.
    Remove(Mac),
}

/// A packet a guest sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its name.
    pub id: PacketId,
    /// Where its bytes are, in order.
    pub pieces: heapless::Vec<Piece, SLOTS_MAX>,
    /// All its bytes.
    pub length: u32,
    /// What is still to be done to it.
    pub offload: Offload,
    /// A request that came with it; such packets carry no data worth sending.
    pub group: Option<GroupChange>,
}

/// Why one packet is not accepted, while its queue goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// More slots than a packet may have.
    Slots,
    /// Shorter than an Ethernet header.
    Short,
    /// A piece without bytes.
    EmptyPiece,
}

/// All slots of one packet, as they were copied.
pub type Slots = heapless::Vec<[u8; TX_SLOT], { SLOTS_FATAL + EXTRAS_MAX }>;

/// What a run of slots is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "lives for one call; a box would be an allocation")]
pub enum Parsed {
    /// The packet's last slot is not there yet.
    Incomplete,
    /// A packet, or one to be refused; its slots are consumed either way.
    Whole(Slots, Result<Packet, Reject>),
}

/// Reads one packet from the slots that start at index `first`, of which `available` are there.
/// `slot` is called once per slot, in order.
pub fn parse(
    first: u32,
    available: u32,
    mut slot: impl FnMut(u32) -> [u8; TX_SLOT],
) -> Result<Parsed, Fatal> {
    let mut slots = Slots::new();
    let mut next = || {
        let number = slots.len() as u32;
        if number >= available {
            return Ok(None);
        }
        let copied = slot(first.wrapping_add(number));
        slots.push(copied).map_err(|_| Fatal::Slots)?;
        Ok(Some(copied))
    };
    let Some(head) = next()? else { return Ok(Parsed::Incomplete) };
    let head = TxRequest::parse(&head);
    let mut extras = Extras::default();
    let mut has_extra = head.flags & tx_flag::EXTRA_INFO != 0;
    while has_extra {
        let Some(slot) = next()? else { return Ok(Parsed::Incomplete) };
        has_extra = extras.add(&slot)?;
    }
    let mut rest = heapless::Vec::<TxRequest, SLOTS_FATAL>::new();
    let mut flags = head.flags;
    while flags & tx_flag::MORE_DATA != 0 {
        let Some(slot) = next()? else { return Ok(Parsed::Incomplete) };
        let request = TxRequest::parse(&slot);
        flags = request.flags;
        rest.push(request).map_err(|_| Fatal::Slots)?;
    }
    if rest.len() + 1 > SLOTS_FATAL {
        return Err(Fatal::Slots);
    }
    let result = assemble(PacketId(first), head, &rest, &extras)?;
    Ok(Parsed::Whole(slots, result))
}

#[derive(Default)]
struct Extras {
    count: usize,
    gso: Option<Gso>,
    group: Option<GroupChange>,
}

impl Extras {
    fn add(&mut self, slot: &[u8; TX_SLOT]) -> Result<bool, Fatal> {
        self.count += 1;
        if self.count > EXTRAS_MAX {
            return Err(Fatal::Extra);
        }
        let (extra, has_more) = Extra::parse(slot);
        match extra.map_err(|_| Fatal::Extra)? {
            Extra::Gso(gso) => self.gso = Some(gso),
            Extra::GroupAdd(mac) => self.group = Some(GroupChange::Add(mac)),
            Extra::GroupRemove(mac) => self.group = Some(GroupChange::Remove(mac)),
            Extra::Hash => {}
        }
        Ok(has_more)
    }
}

fn assemble(
    id: PacketId,
    head: TxRequest,
    rest: &[TxRequest],
    extras: &Extras,
) -> Result<Result<Packet, Reject>, Fatal> {
    let others: u32 = rest.iter().map(|request| u32::from(request.size)).sum();
    let length = u32::from(head.size);
    // The first request holds the whole packet's size (netif.h, "Guest transmit").
    let own = length.checked_sub(others).ok_or(Fatal::Length)?;
    let sizes = core::iter::once(own).chain(rest.iter().map(|request| u32::from(request.size)));
    let mut pieces = heapless::Vec::new();
    let mut reject = None;
    for (request, size) in core::iter::once(&head).chain(rest).zip(sizes) {
        if u32::from(request.offset) + size > PAGE {
            return Err(Fatal::CrossesPage);
        }
        if size == 0 {
            reject = reject.or(Some(Reject::EmptyPiece));
        }
        let piece = Piece { grant: request.grant, offset: request.offset, length: size as u16 };
        if pieces.push(piece).is_err() {
            reject = Some(Reject::Slots);
        }
    }
    if (length as usize) < frame::ETHERNET {
        reject = reject.or(Some(Reject::Short));
    }
    // "Validated" is only the guest's word, and others would rely on it.
    let is_blank = head.flags & tx_flag::CSUM_BLANK != 0 || extras.gso.is_some();
    let checksum = if is_blank { Checksum::Blank } else { Checksum::Unknown };
    let offload = Offload { checksum, gso: extras.gso };
    let packet = Packet { id, pieces, length, offload, group: extras.group };
    Ok(reject.map_or(Ok(packet), Err))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(flags: u16, offset: u16, size: u16) -> [u8; TX_SLOT] {
        TxRequest { grant: GrantRef(9), offset, flags, id: 1, size }.emit()
    }

    fn run(slots: &[[u8; TX_SLOT]]) -> Result<Parsed, Fatal> {
        parse(7, slots.len() as u32, |index| slots[index as usize - 7])
    }

    fn whole(slots: &[[u8; TX_SLOT]]) -> Result<Packet, Reject> {
        match run(slots) {
            Ok(Parsed::Whole(read, result)) => {
                assert_eq!(&read[..], slots);
                result
            }
            other => panic!("{other:?}"),
        }
    }

    const MORE: u16 = tx_flag::MORE_DATA;

    #[test]
    fn one_piece_and_several() {
        let packet = whole(&[request(tx_flag::CSUM_BLANK, 100, 60)]).unwrap();
        assert_eq!((packet.id, packet.length, packet.pieces.len()), (PacketId(7), 60, 1));
        assert_eq!(packet.offload.checksum, Checksum::Blank);
        let packet = whole(&[request(MORE, 0, 5000), request(MORE, 8, 4000), request(0, 0, 900)]);
        let lengths: Vec<u16> = packet.unwrap().pieces.iter().map(|piece| piece.length).collect();
        assert_eq!(lengths, [100, 4000, 900]);
    }

    #[test]
    fn extras() {
        let gso = Gso { kind: frame::GsoKind::TcpV6, size: 1400 };
        let mut extra = [0; TX_SLOT];
        extra[..8].copy_from_slice(&Extra::emit_gso(gso));
        let flags = tx_flag::EXTRA_INFO | MORE;
        let packet = whole(&[request(flags, 0, 3000), extra, request(0, 0, 2900)]).unwrap();
        assert_eq!(packet.offload.gso, Some(gso));
        extra[1] = 1;
        assert_eq!(run(&[request(flags, 0, 3000), extra, [0; 12]]), Err(Fatal::Extra));
        assert_eq!(run(&[request(flags, 0, 3000), extra]), Ok(Parsed::Incomplete));
        let endless = [request(flags, 0, 60), extra, extra, extra, extra, extra];
        assert_eq!(run(&endless), Err(Fatal::Extra));
    }

    #[test]
    fn wrong_packets() {
        assert_eq!(run(&[request(MORE, 0, 60)]), Ok(Parsed::Incomplete));
        assert_eq!(run(&[]), Ok(Parsed::Incomplete));
        assert_eq!(whole(&[request(0, 0, 13)]), Err(Reject::Short));
        assert_eq!(run(&[request(0, 4090, 60)]), Err(Fatal::CrossesPage));
        assert_eq!(run(&[request(MORE, 0, 60), request(0, 0, 61)]), Err(Fatal::Length));
        assert_eq!(whole(&[request(MORE, 0, 60), request(0, 0, 60)]), Err(Reject::EmptyPiece));
        let chain = |count: usize| {
            let mut slots = vec![request(MORE, 0, 10_000); 1];
            slots.extend(vec![request(MORE, 0, 100); count - 2]);
            slots.push(request(0, 0, 100));
            slots[0] = request(MORE, 0, (count * 100) as u16);
            slots
        };
        assert!(whole(&chain(SLOTS_MAX)).is_ok());
        assert_eq!(whole(&chain(SLOTS_MAX + 1)), Err(Reject::Slots));
        assert_eq!(run(&chain(SLOTS_FATAL + 1)), Err(Fatal::Slots));
        assert_eq!(run(&vec![request(MORE, 0, 0); 256]), Err(Fatal::Slots));
    }

    proptest! {
        #[test]
        fn any_slots_give_a_sound_packet_or_none(
            slots in proptest::collection::vec(any::<[u8; 12]>(), 0..40),
            small in any::<bool>(),
        ) {
            let mut slots = slots;
            if small {
                for slot in &mut slots {
                    slot[5] = 0;
                    slot[7] = 0;
                    slot[6] &= 0x0d;
                    slot[11] &= 0x07;
                }
            }
            if let Ok(Parsed::Whole(read, Ok(packet))) = run(&slots) {
                prop_assert!(read.len() <= slots.len());
                let sum: u32 = packet.pieces.iter().map(|piece| u32::from(piece.length)).sum();
                prop_assert_eq!(sum, packet.length);
                for piece in packet.pieces {
                    let end = u32::from(piece.offset) + u32::from(piece.length);
                    prop_assert!(piece.length > 0 && end <= PAGE);
                }
            }
        }
    }
}
