//! Frontends: an honest one that checks everything it sees, and a hostile one.

use std::collections::BTreeMap;

use abi::GrantRef;
use fabric::{HeapMemory, SharedMemory};
use frame::{Gso, GsoKind};
use netback::wire::{Extra, RX_SLOT, RxRequest, RxResponse, TX_SLOT, TxRequest, rx_flag, tx_flag};

use crate::content::{self, Content, mac};
use crate::oracle::{Oracle, Oracles, Place};
use crate::random::Random;

const RING: u32 = netback::RING_SIZE;
const PAGE: usize = 4096;
/// What fresh receive pages hold, so that a byte too many is seen.
const UNTOUCHED: u8 = 0xee;

#[derive(Clone, Debug)]
struct Grant {
    page: HeapMemory,
    is_writable: bool,
}

/// A guest's granted pages, as the hypervisor sees them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grants {
    entries: BTreeMap<u32, Grant>,
    next: u32,
}

impl Grants {
    fn give(&mut self, page: &HeapMemory, is_writable: bool) -> GrantRef {
        self.next += 1;
        self.entries.insert(self.next, Grant { page: page.clone(), is_writable });
        GrantRef(self.next)
    }

    pub(crate) fn find(&self, grant: GrantRef, writes: bool) -> Option<HeapMemory> {
        let found = self.entries.get(&grant.0)?;
        (found.is_writable || !writes).then(|| found.page.clone())
    }
}

/// One queue of an honest frontend.
#[derive(Debug)]
pub(crate) struct Front {
    pub tx_ring: HeapMemory,
    pub rx_ring: HeapMemory,
    tx_prod: u32,
    tx_cons: u32,
    tx_ids: Vec<u16>,
    /// For each request of the ring by id: its grants, or an extra slot's none.
    tx_open: BTreeMap<u16, GrantRef>,
    tx_extras: u32,
    rx_prod: u32,
    rx_cons: u32,
    rx_posted: BTreeMap<u32, (u16, GrantRef, HeapMemory, u32)>,
    /// The life of net-uk.
    pub epoch: u32,
    partial: Vec<(RxResponse, Vec<u8>)>,
    partial_gso: Option<Gso>,
    is_extra_next: bool,
}

impl Front {
    pub(crate) fn new() -> Self {
        let ring = || {
            let page = HeapMemory::new(PAGE);
            page.store_u32(4, 1);
            page.store_u32(12, 1);
            page
        };
        Self {
            tx_ring: ring(),
            rx_ring: ring(),
            tx_prod: 0,
            tx_cons: 0,
            tx_ids: (0..RING as u16).rev().collect(),
            tx_open: BTreeMap::new(),
            tx_extras: 0,
            rx_prod: 0,
            rx_cons: 0,
            rx_posted: BTreeMap::new(),
            epoch: 0,
            partial: Vec::new(),
            partial_gso: None,
            is_extra_next: false,
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.tx_open.len()
    }

    /// Free slots of the transmit ring.
    pub(crate) fn room(&self) -> usize {
        let used = self.tx_prod.wrapping_sub(self.tx_cons);
        self.tx_ids.len().min((RING - used) as usize)
    }

    /// Sends a frame in pieces. `true`: the backend wants an event.
    pub(crate) fn send(
        &mut self,
        grants: &mut Grants,
        random: &mut Random,
        frame: &Content,
    ) -> bool {
        let mut pieces = Vec::new();
        let mut rest = &frame.bytes[..];
        while !rest.is_empty() {
            let offset = random.below(200) as usize;
            let mut length = rest.len().min(PAGE - offset);
            // Leave enough slots for the remainder: at most 17 further pages.
            if rest.len() < 8000 && rest.len() > 100 && random.one_in(3) {
                length = length.min(60 + random.below(rest.len() as u64 - 60) as usize);
            }
            let page = HeapMemory::new(PAGE);
            page.write(offset, &rest[..length]);
            pieces.push((grants.give(&page, false), offset as u16, length as u16));
            rest = &rest[length..];
        }
        let old = self.tx_prod;
        let count = pieces.len();
        for (number, (grant, offset, length)) in pieces.into_iter().enumerate() {
            let id = self.tx_ids.pop().expect("the caller asked for room");
            let mut flags = if number + 1 < count { tx_flag::MORE_DATA } else { 0 };
            let mut size = length;
            if number == 0 {
                size = frame.bytes.len() as u16;
                flags |=
                    if frame.is_blank { tx_flag::CSUM_BLANK | tx_flag::DATA_VALIDATED } else { 0 };
                flags |= if frame.gso.is_some() { tx_flag::EXTRA_INFO } else { 0 };
            }
            self.put(TxRequest { grant, offset, flags, id, size }.emit());
            self.tx_open.insert(id, grant);
            if let Some(gso) = frame.gso.filter(|_| number == 0) {
                let mut slot = [0; TX_SLOT];
                slot[..8].copy_from_slice(&Extra::emit_gso(gso));
                self.put(slot);
                self.tx_extras += 1;
            }
        }
        self.tx_ring.store_u32(0, self.tx_prod);
        let event = self.tx_ring.load_u32(4);
        self.tx_prod.wrapping_sub(event) < self.tx_prod.wrapping_sub(old)
    }

    fn put(&mut self, slot: [u8; TX_SLOT]) {
        self.tx_ring.write(64 + (self.tx_prod % RING) as usize * TX_SLOT, &slot);
        self.tx_prod = self.tx_prod.wrapping_add(1);
    }

    /// Posts receive buffers. `true`: the backend wants an event.
    pub(crate) fn post(&mut self, grants: &mut Grants, count: u32) -> bool {
        let old = self.rx_prod;
        for _ in 0..count.min(RING - self.rx_prod.wrapping_sub(self.rx_cons)) {
            let page = HeapMemory::new(PAGE);
            page.fill(0, PAGE, UNTOUCHED);
            let grant = grants.give(&page, true);
            let id = (self.rx_prod % RING) as u16;
            let place = 64 + (self.rx_prod % RING) as usize * RX_SLOT;
            self.rx_ring.write(place, &RxRequest { id, grant }.emit());
            self.rx_posted.insert(self.rx_prod, (id, grant, page, self.epoch));
            self.rx_prod = self.rx_prod.wrapping_add(1);
        }
        self.rx_ring.store_u32(0, self.rx_prod);
        let event = self.rx_ring.load_u32(4);
        self.rx_prod.wrapping_sub(event) < self.rx_prod.wrapping_sub(old)
    }

    /// Takes what the backend has published, and checks all of it.
    pub(crate) fn collect(&mut self, station: u8, grants: &mut Grants, oracles: &mut Oracles) {
        self.collect_tx(station, grants, oracles);
        self.collect_rx(station, grants, oracles);
    }

    fn collect_tx(&mut self, station: u8, grants: &mut Grants, oracles: &mut Oracles) {
        let end = self.tx_ring.load_u32(8);
        let is_sound = end.wrapping_sub(self.tx_cons) <= self.tx_prod.wrapping_sub(self.tx_cons);
        oracles.check(Oracle::Connected, is_sound, || {
            format!("guest {station}: transmit responses {} to {end}", self.tx_cons)
        });
        while is_sound && self.tx_cons != end {
            let mut slot = [0; 4];
            self.tx_ring.read(64 + (self.tx_cons % RING) as usize * TX_SLOT, &mut slot);
            let (id, status) =
                (u16::from_le_bytes([slot[0], slot[1]]), i16::from_le_bytes([slot[2], slot[3]]));
            self.tx_cons = self.tx_cons.wrapping_add(1);
            if status == 1 {
                oracles.check(Oracle::Grants, self.tx_extras > 0, || {
                    format!("guest {station}: an answer to an extra slot that was not sent")
                });
                self.tx_extras = self.tx_extras.saturating_sub(1);
                continue;
            }
            let Some(grant) = self.tx_open.remove(&id) else {
                oracles.fail(Oracle::Grants, format!("guest {station}: answer to {id} again"));
                continue;
            };
            grants.entries.remove(&grant.0);
            self.tx_ids.push(id);
            oracles.check(Oracle::Answers, status == 0, || {
                format!("guest {station}: request {id} failed with {status}")
            });
        }
        self.tx_ring.store_u32(12, self.tx_cons.wrapping_add(1));
    }

    fn collect_rx(&mut self, station: u8, grants: &mut Grants, oracles: &mut Oracles) {
        let end = self.rx_ring.load_u32(8);
        let is_sound = end.wrapping_sub(self.rx_cons) <= self.rx_prod.wrapping_sub(self.rx_cons);
        oracles.check(Oracle::Connected, is_sound, || {
            format!("guest {station}: receive responses {} to {end}", self.rx_cons)
        });
        while is_sound && self.rx_cons != end {
            let mut slot = [0; RX_SLOT];
            self.rx_ring.read(64 + (self.rx_cons % RING) as usize * RX_SLOT, &mut slot);
            let posted = self.rx_posted.remove(&self.rx_cons);
            self.rx_cons = self.rx_cons.wrapping_add(1);
            let Some((id, grant, page, epoch)) = posted else { continue };
            grants.entries.remove(&grant.0);
            // A former life may have copied another frame of ours in and died before it said so.
            let is_fresh = epoch == self.epoch;
            self.response(station, slot, id, (&page, is_fresh), oracles);
        }
        self.rx_ring.store_u32(12, self.rx_cons.wrapping_add(1));
    }

    fn response(
        &mut self,
        station: u8,
        slot: [u8; RX_SLOT],
        id: u16,
        (page, is_fresh): (&HeapMemory, bool),
        oracles: &mut Oracles,
    ) {
        let mut bytes = vec![0; PAGE];
        page.read(0, &mut bytes);
        if std::mem::take(&mut self.is_extra_next) {
            match Extra::parse(&slot) {
                (Ok(Extra::Gso(gso)), false) => self.partial_gso = Some(gso),
                other => oracles.fail(Oracle::Grants, format!("guest {station}: {other:?}")),
            }
            let has_more = |(first, _): &(RxResponse, _)| first.flags & rx_flag::MORE_DATA != 0;
            if !self.partial.first().is_some_and(has_more) {
                self.whole(station, oracles);
            }
            return;
        }
        let response = RxResponse::parse(&slot);
        if response.status < 0 {
            return oracles.fail(Oracle::Answers, format!("guest {station}: {response:?}"));
        }
        let length = response.status as usize;
        let is_sound = response.id == id && response.offset == 0 && length <= PAGE;
        oracles.check(Oracle::Grants, is_sound, || format!("guest {station}: {response:?}"));
        let is_clean = !is_fresh || bytes.iter().skip(length).all(|byte| *byte == UNTOUCHED);
        oracles.check(Oracle::Privacy, is_clean, || {
            format!("guest {station}: bytes beyond a frame's end")
        });
        bytes.truncate(length);
        self.is_extra_next = response.flags & rx_flag::EXTRA_INFO != 0;
        let has_more = response.flags & rx_flag::MORE_DATA != 0;
        self.partial.push((response, bytes));
        if !has_more && !self.is_extra_next {
            self.whole(station, oracles);
        }
    }

    fn whole(&mut self, station: u8, oracles: &mut Oracles) {
        let parts = std::mem::take(&mut self.partial);
        let gso = self.partial_gso.take();
        let flags = parts.first().map_or(0, |(response, _)| response.flags);
        let bytes: Vec<u8> = parts.into_iter().flat_map(|(_, bytes)| bytes).collect();
        let is_blank = flags & rx_flag::CSUM_BLANK != 0;
        let is_right = is_blank || frame::checksum::is_right(&bytes);
        oracles.check(Oracle::Privacy, is_right, || format!("guest {station}: wrong checksum"));
        match content::read(&bytes, gso) {
            Some(units) => {
                for unit in units {
                    let is_mine = unit.to == station || unit.to == 255;
                    oracles.check(Oracle::Privacy, is_mine, || {
                        format!("guest {station} found {unit:?}")
                    });
                    oracles.saw(Place::Guest(station), unit);
                }
            }
            None if bytes.get(6..12) == Some(&mac(HOSTILE).0[..]) => {}
            None => oracles.fail(
                Oracle::Privacy,
                format!("guest {station}: damaged frame of {} bytes", bytes.len()),
            ),
        }
    }
}

/// The station of the hostile guest.
pub(crate) const HOSTILE: u8 = 66;

/// One hostile deed.
pub(crate) fn attack(front: &mut Front, grants: &mut Grants, random: &mut Random) {
    match random.below(8) {
        0 => front.tx_ring.store_u32(0, random.draw() as u32),
        1 => front.rx_ring.store_u32(0, random.draw() as u32),
        2 => front.tx_ring.store_u32(8, random.draw() as u32),
        3 => {
            let gone = grants.entries.keys().next().copied();
            gone.map(|grant| grants.entries.remove(&grant));
        }
        _ => {
            for _ in 0..random.below(30) {
                let page = HeapMemory::new(PAGE);
                page.write(0, &forged(random));
                let grant = if random.one_in(4) {
                    GrantRef(random.below(40) as u32)
                } else {
                    grants.give(&page, true)
                };
                let flags = if random.one_in(2) { 0 } else { random.below(16) as u16 };
                let size = [60, 60, 1514, 4096, 13, 0xffff][random.below(6) as usize];
                let offset = if random.one_in(5) { random.below(5000) as u16 } else { 0 };
                let id = random.below(300) as u16;
                let mut slot = TxRequest { grant, offset, flags, id, size }.emit();
                if random.one_in(6) {
                    let size = 1 + random.below(1500) as u16;
                    let kind = GsoKind::TcpV4;
                    slot[..8].copy_from_slice(&Extra::emit_gso(Gso { kind, size }));
                }
                front.put(slot);
            }
            front.tx_ring.store_u32(0, front.tx_prod);
            front.post(grants, random.below(20) as u32);
        }
    }
}

/// A frame with the hostile guest's own address or another's, and any content.
fn forged(random: &mut Random) -> Vec<u8> {
    let from = if random.one_in(3) { 1 } else { HOSTILE };
    let to = [1, 2, 200, 255][random.below(4) as usize];
    let mut bytes = [&mac(to).0[..], &mac(from).0, &[8, 0]].concat();
    bytes.extend((0..2000).map(|_| random.draw() as u8));
    bytes
}
