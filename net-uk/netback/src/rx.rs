//! What a guest receives.
//!
//! Responses lie in the same slots as their requests and in the same order (netif.h: Linux
//! frontends rely on it), so buffers are taken, filled and answered strictly in turn.

use alloc::vec::Vec;

use abi::GrantRef;
use fabric::SharedMemory;
use frame::{Checksum, Offload};

use crate::journal::{Journal, JournalError};
use crate::ring::{Fatal, Ring};
use crate::wire::{Extra, RX_SLOT, RxRequest, RxResponse, Status, rx_flag};
use crate::{Copy, Direction, PAGE, RING_SIZE};

/// Buffers of one frame on its way to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    first: u32,
    slots: Vec<RxRequest>,
    has_extra: bool,
    length: u32,
    offload: Offload,
}

impl Taken {
    /// The copies that bring the frame, which lies at `pieces` (arena offset, length), into these
    /// buffers.
    pub fn copies(&self, pieces: &[(u32, u32)], copies: &mut Vec<Copy>) {
        let mut done = 0;
        for (offset, length) in pieces.iter().copied() {
            let mut within = 0;
            while within < length && done < self.length {
                let room = PAGE - done % PAGE;
                // Neither side of a copy crosses a page.
                let side = PAGE - (offset + within) % PAGE;
                let part = (length - within).min(room).min(side).min(self.length - done);
                let Some(grant) = self.grant_at(done) else { return };
                copies.push(Copy {
                    direction: Direction::ToGuest,
                    grant,
                    guest_offset: (done % PAGE) as u16,
                    arena_offset: offset + within,
                    length: part as u16,
                });
                within += part;
                done += part;
            }
        }
    }

    fn grant_at(&self, position: u32) -> Option<GrantRef> {
        let number = (position / PAGE) as usize;
        // The extra slot comes second, and its buffer stays unused.
        let number = if self.has_extra && number > 0 { number + 1 } else { number };
        self.slots.get(number).map(|slot| slot.grant)
    }
}

/// Buffers that a frame of `length` bytes needs.
pub fn buffers_needed(length: u32, offload: &Offload) -> u32 {
    length.div_ceil(PAGE).max(1) + u32::from(offload.gso.is_some())
}

/// The receive half of a queue.
#[derive(Clone, Debug)]
pub struct RxQueue<R, J> {
    ring: Ring<R>,
    journal: Journal<J>,
    /// Requests copied into the journal.
    req_cons: u32,
    /// Of those, handed out by [`RxQueue::take`].
    given: u32,
    rsp_prod: u32,
    rsp_private: u32,
    fatal: Option<Fatal>,
}

impl<R: SharedMemory, J: SharedMemory> RxQueue<R, J> {
    /// A new connection.
    pub fn connect(ring: R, journal: J) -> Self {
        let (ring, journal) = (Ring::new(ring, RX_SLOT), Journal::rx(journal));
        let first = ring.published();
        journal.start(first);
        Self::at(ring, journal, first, first)
    }

    fn at(ring: Ring<R>, journal: Journal<J>, req_cons: u32, rsp_prod: u32) -> Self {
        let (given, rsp_private) = (rsp_prod, rsp_prod);
        Self { ring, journal, req_cons, given, rsp_prod, rsp_private, fatal: None }
    }

    /// The queue that a former life left: buffers that were taken and not answered are used next.
    /// Call [`RxQueue::publish`] with an event afterwards.
    pub fn recover(ring: R, journal: J) -> Result<Self, JournalError> {
        let (ring, journal) = (Ring::new(ring, RX_SLOT), Journal::rx(journal));
        let found = journal.indices()?;
        Ok(Self::at(ring, journal, found.req_cons, found.rsp_prod))
    }

    /// What broke the queue, if something did.
    pub fn fatal(&self) -> Option<Fatal> {
        self.fatal
    }

    /// Buffers that can be taken now.
    pub fn available(&mut self) -> u32 {
        if self.fatal.is_some() {
            return 0;
        }
        match self.ring.waiting(self.req_cons, self.rsp_prod) {
            Ok(waiting) => waiting + self.req_cons.wrapping_sub(self.given),
            Err(fatal) => {
                self.fatal = Some(fatal);
                0
            }
        }
    }

    /// Takes the buffers for a frame, and notes them in the journal first. `None`: too few.
    pub fn take(&mut self, length: u32, offload: Offload) -> Option<Taken> {
        let count = buffers_needed(length, &offload);
        if count > RING_SIZE || self.available() < count {
            return None;
        }
        let first = self.given;
        let end = first.wrapping_add(count);
        let mut slots = Vec::with_capacity(count as usize);
        for number in 0..count {
            let index = first.wrapping_add(number);
            slots.push(RxRequest::parse(&self.copied(index)));
        }
        if end.wrapping_sub(self.req_cons) as i32 > 0 {
            self.req_cons = end;
            self.journal.set_consumed(end);
        }
        self.given = end;
        Some(Taken { first, slots, has_extra: offload.gso.is_some(), length, offload })
    }

    /// The request with this index: from the journal if it was copied before, else from the ring.
    fn copied(&self, index: u32) -> [u8; RX_SLOT] {
        if (self.req_cons.wrapping_sub(index) as i32) > 0 {
            // A damaged entry names grant 0 of id 0: the copy fails, the guest gets an error.
            return self.journal.get_rx(index).unwrap_or([0; RX_SLOT]);
        }
        let slot = self.ring.slot(index);
        self.journal.put_rx(index, &slot);
        slot
    }

    /// Asks for an event once `count` buffers are there. `true`: they are already.
    pub fn want(&mut self, count: u32) -> bool {
        let spare = self.req_cons.wrapping_sub(self.given);
        let missing = count.saturating_sub(spare).max(1);
        self.ring.ask(self.req_cons, missing);
        self.available() >= count
    }

    /// Answers the buffers of a frame, in the order in which they were taken. `is_copied`: whether
    /// all its copies worked; else the guest gets an error for each buffer.
    pub fn respond(&mut self, taken: &Taken, is_copied: bool) {
        debug_assert_eq!(taken.first, self.rsp_private, "buffers are answered in turn");
        let count = taken.slots.len();
        let data = count - usize::from(taken.has_extra);
        let mut part = 0;
        for (number, slot) in taken.slots.iter().enumerate() {
            let bytes = if taken.has_extra && number == 1 && is_copied {
                taken.offload.gso.map_or([0; RX_SLOT], Extra::emit_gso)
            } else if is_copied {
                part += 1;
                Self::response(taken, slot.id, part, data).emit()
            } else {
                let status = Status::Error as i16;
                RxResponse { id: slot.id, offset: 0, flags: 0, status }.emit()
            };
            self.ring.fill(self.rsp_private, &bytes);
            self.rsp_private = self.rsp_private.wrapping_add(1);
        }
    }

    fn response(taken: &Taken, id: u16, part: usize, parts: usize) -> RxResponse {
        let mut flags = if part < parts { rx_flag::MORE_DATA } else { 0 };
        if part == 1 {
            flags |= match taken.offload.checksum {
                Checksum::Blank => rx_flag::CSUM_BLANK | rx_flag::DATA_VALIDATED,
                Checksum::Valid => rx_flag::DATA_VALIDATED,
                Checksum::Unknown => 0,
            };
            if taken.has_extra {
                flags |= rx_flag::EXTRA_INFO;
            }
        }
        let before = (part as u32 - 1) * PAGE;
        let status = taken.length.saturating_sub(before).min(PAGE) as i16;
        RxResponse { id, offset: 0, flags, status }
    }

    /// Commits the answers given so far and shows them to the guest. `true`: it wants an event.
    pub fn publish(&mut self) -> bool {
        let old = self.rsp_prod;
        if old != self.rsp_private {
            self.journal.commit(self.rsp_private);
            self.rsp_prod = self.rsp_private;
        }
        self.ring.publish(old, self.rsp_prod)
    }
}

#[cfg(test)]
#[path = "rx_tests.rs"]
mod tests;
