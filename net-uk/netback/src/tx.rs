//! What a guest sends.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use fabric::SharedMemory;

use crate::journal::{Found, Journal, JournalError};
use crate::packet::{Packet, PacketId, Parsed, Slots, parse};
use crate::ring::{Fatal, Ring};
use crate::wire::{Extra, Status, TX_SLOT, TxRequest, tx_flag, tx_response};
use crate::{EXTRAS_MAX, RING_SIZE, SLOTS_FATAL};

/// What [`TxQueue::consume`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consumed {
    /// No whole packet is there.
    Nothing,
    /// A packet; it stays open until it is answered.
    Packet(Packet),
    /// A packet that was answered with an error.
    Rejected,
}

/// What a former life left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Packets that were consumed and not answered, in the order they were sent.
    pub open: Vec<Packet>,
    /// Requests whose entries in the journal are damaged: they get no answer.
    pub damaged: u32,
}

/// The transmit half of a queue. `R` is the ring's page, `J` the queue's journal.
#[derive(Clone, Debug)]
pub struct TxQueue<R, J> {
    ring: Ring<R>,
    journal: Journal<J>,
    req_cons: u32,
    /// As committed and published.
    rsp_prod: u32,
    /// With the answers given since.
    rsp_private: u32,
    open: BTreeMap<u32, Open>,
    /// Free places of the journal.
    free: Vec<u16>,
    /// Places whose requests were answered and not yet published.
    answered: Vec<u16>,
    fatal: Option<Fatal>,
}

#[derive(Clone, Debug)]
struct Open {
    slots: Slots,
    places: heapless::Vec<u16, { SLOTS_FATAL + EXTRAS_MAX }>,
}

impl<R: SharedMemory, J: SharedMemory> TxQueue<R, J> {
    /// A new connection. The frontend's ring starts where its responses stand (`BACK_RING_ATTACH`,
    /// ring.h).
    pub fn connect(ring: R, journal: J) -> Self {
        let (ring, journal) = (Ring::new(ring, TX_SLOT), Journal::tx(journal));
        let first = ring.published();
        journal.start_tx(first);
        let free = (0..RING_SIZE as u16).rev().collect();
        Self::at(ring, journal, first, first, free)
    }

    fn at(
        ring: Ring<R>,
        journal: Journal<J>,
        req_cons: u32,
        rsp_prod: u32,
        free: Vec<u16>,
    ) -> Self {
        Self {
            ring,
            journal,
            req_cons,
            rsp_prod,
            rsp_private: rsp_prod,
            open: BTreeMap::new(),
            free,
            answered: Vec::new(),
            fatal: None,
        }
    }

    /// The queue that a former life left in `journal`. Nothing is read from the ring. Call
    /// [`TxQueue::publish`] with an event to the frontend afterwards, whatever it answers: the
    /// former life may have died before it sent one.
    pub fn recover(ring: R, journal: J) -> Result<(Self, Recovered), JournalError> {
        let (ring, journal) = (Ring::new(ring, TX_SLOT), Journal::tx(journal));
        let indices = journal.indices()?;
        let (mut free, mut requests, mut damaged) = (Vec::new(), Vec::new(), 0);
        for place in 0..RING_SIZE as u16 {
            match journal.get_tx(place, indices) {
                Found::Open(index, slot) => {
                    // An answer that was noted and not committed counts no more.
                    journal.reopen(place);
                    requests.push((indices.req_cons.wrapping_sub(index), place, slot));
                }
                found => {
                    damaged += u32::from(found == Found::Damaged);
                    journal.free(place);
                    free.push(place);
                }
            }
        }
        // Oldest first: the one furthest behind what was consumed.
        requests.sort_by_key(|(behind, ..)| core::cmp::Reverse(*behind));
        let mut queue = Self::at(ring, journal, indices.req_cons, indices.rsp_prod, free);
        let mut recovered = Recovered { open: Vec::new(), damaged };
        let mut rest = &requests[..];
        while !rest.is_empty() {
            let taken = queue.reopen(rest, &mut recovered);
            rest = &rest[taken..];
        }
        Ok((queue, recovered))
    }

    /// Takes the first packet of these requests back into the books; answers how many it has.
    fn reopen(
        &mut self,
        requests: &[(u32, u16, [u8; TX_SLOT])],
        recovered: &mut Recovered,
    ) -> usize {
        let (first_behind, first_place, _) = requests[0];
        let first = self.req_cons.wrapping_sub(first_behind);
        let in_turn = (0..).zip(requests);
        let is_next = |number: u32, behind: u32| first_behind.checked_sub(number) == Some(behind);
        let intact = in_turn.take_while(|(number, (behind, ..))| is_next(*number, *behind)).count();
        let slot = |index: u32| requests[index.wrapping_sub(first) as usize].2;
        let Ok(Parsed::Whole(slots, result)) = parse(first, intact as u32, slot) else {
            // Another entry of the packet is damaged: nobody can say what it was.
            recovered.damaged += 1;
            self.journal.free(first_place);
            self.free.push(first_place);
            return 1;
        };
        let count = slots.len();
        let places = requests[..count].iter().map(|(_, place, _)| *place).collect();
        self.open.insert(first, Open { slots, places });
        match result {
            Ok(packet) => recovered.open.push(packet),
            Err(_) => self.answer(PacketId(first), Status::Error),
        }
        count
    }

    /// Packets that wait for their answer.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// What broke the queue, if something did.
    pub fn fatal(&self) -> Option<Fatal> {
        self.fatal
    }

    /// Takes the next packet from the ring, and notes it in the journal first.
    pub fn consume(&mut self) -> Result<Consumed, Fatal> {
        if let Some(fatal) = self.fatal {
            return Err(fatal);
        }
        let result = self.consume_checked();
        if let Err(fatal) = result {
            self.fatal = Some(fatal);
        }
        result
    }

    fn consume_checked(&mut self) -> Result<Consumed, Fatal> {
        // Against what was published: then there are as many free places as requests.
        let waiting = self.ring.waiting(self.req_cons, self.rsp_prod)?;
        let parsed = parse(self.req_cons, waiting, |index| self.ring.slot(index))?;
        let Parsed::Whole(slots, result) = parsed else { return Ok(Consumed::Nothing) };
        if self.free.len() < slots.len() {
            return Ok(Consumed::Nothing);
        }
        let first = self.req_cons;
        let places: heapless::Vec<u16, _> =
            self.free.drain(self.free.len() - slots.len()..).collect();
        for ((number, slot), place) in (0..).zip(&slots).zip(&places) {
            self.journal.put_tx(*place, first.wrapping_add(number), slot);
        }
        self.req_cons = first.wrapping_add(slots.len() as u32);
        self.journal.set_consumed(self.req_cons);
        self.open.insert(first, Open { slots, places });
        match result {
            Ok(packet) => Ok(Consumed::Packet(packet)),
            Err(_) => {
                self.answer(PacketId(first), Status::Error);
                Ok(Consumed::Rejected)
            }
        }
    }

    /// Answers a packet: one response per slot, extra slots with [`Status::Null`]. The guest sees
    /// it after [`TxQueue::publish`]. A packet that is not open is not answered again.
    pub fn answer(&mut self, id: PacketId, status: Status) {
        let Some(Open { slots, places }) = self.open.remove(&id.0) else { return };
        let mut is_extra = false;
        for ((number, slot), place) in (0_u32..).zip(&slots).zip(&places) {
            let request = TxRequest::parse(slot);
            let response = match is_extra {
                true => tx_response(0, Status::Null),
                false => tx_response(request.id, status),
            };
            self.journal.answer(*place, self.rsp_private);
            self.ring.fill(self.rsp_private, &response);
            self.rsp_private = self.rsp_private.wrapping_add(1);
            is_extra = match (number, is_extra) {
                (0, _) => request.flags & tx_flag::EXTRA_INFO != 0,
                (_, true) => Extra::parse(slot).1,
                _ => false,
            };
        }
        self.answered.extend(places);
    }

    /// Commits the answers given so far and shows them to the guest. `true`: it wants an event.
    pub fn publish(&mut self) -> bool {
        let old = self.rsp_prod;
        if old != self.rsp_private {
            self.journal.commit(self.rsp_private);
            self.rsp_prod = self.rsp_private;
        }
        let wants_event = self.ring.publish(old, self.rsp_prod);
        for place in self.answered.drain(..) {
            self.journal.free(place);
            self.free.push(place);
        }
        wants_event
    }

    /// Before going to sleep: asks for an event with the next request that could complete a packet.
    /// `true`: look again instead.
    pub fn rest(&mut self) -> bool {
        let waiting = match self.ring.waiting(self.req_cons, self.rsp_prod) {
            Ok(waiting) if self.fatal.is_none() => waiting,
            _ => return self.fatal.is_none(),
        };
        let parsed = parse(self.req_cons, waiting, |index| self.ring.slot(index));
        if !matches!(parsed, Ok(Parsed::Incomplete)) {
            return true;
        }
        self.ring.ask(self.req_cons, waiting + 1);
        self.ring.waiting(self.req_cons, self.rsp_prod) != Ok(waiting)
    }
}

#[cfg(test)]
#[path = "tx_tests.rs"]
mod tests;
