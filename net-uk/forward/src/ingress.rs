//! Frames from guests.

use alloc::vec::Vec;

use drivers::{Segment, Segments};
use fabric::SharedMemory;
use frame::{HEADERS, Header};
use netback::packet::Packet;
use netback::tx::Consumed;
use netback::wire::Status;
use netback::{Copy, Direction};
use switch::{PortId, TagChange};

use crate::frames::{Frame, FrameKey, Owner, page_offset};
use crate::plane::{Job, JobKind, Plane};
use crate::{BUDGET, NIC, RESERVE_PAGES};

impl<R, J, S, A> Plane<R, J, S, A>
where
    R: SharedMemory,
    J: SharedMemory + Clone,
    S: SharedMemory,
    A: SharedMemory,
{
    /// Fills in the copies to be made now, and to which frame they belong. The shell executes them
    /// in order and calls [`Plane::copied`] with the same jobs.
    pub fn collect(&mut self, now_ns: u64, copies: &mut Vec<Copy>, jobs: &mut Vec<Job>) {
        self.has_released = false;
        self.collect_deliveries(now_ns, copies, jobs);
        let ports: Vec<PortId> = self.vifs.keys().copied().collect();
        // Each vif may hold its share of the pages, so that none keeps the others waiting.
        let usable = self.frames.total_pages().saturating_sub(RESERVE_PAGES);
        let share = (usable / ports.len().max(1)).max(netback::SLOTS_MAX);
        for port in ports {
            let count = self.vifs.get(&port).map_or(0, |vif| vif.queues.len());
            for queue in 0..count {
                for _ in 0..BUDGET {
                    if !self.collect_packet(now_ns, port, queue, share, copies, jobs) {
                        break;
                    }
                }
            }
        }
    }

    fn collect_packet(
        &mut self,
        now_ns: u64,
        port: PortId,
        queue: usize,
        share: usize,
        copies: &mut Vec<Copy>,
        jobs: &mut Vec<Job>,
    ) -> bool {
        let rate = self.switch.may_send(now_ns, port);
        let needed = netback::SLOTS_MAX;
        let Some(vif) = self.vifs.get_mut(&port) else { return false };
        let has_room = self.frames.free_pages() >= needed + RESERVE_PAGES;
        let state = &mut vif.queues[queue];
        state.blocked_until_ns = match rate {
            Err(until_ns) => Some(until_ns),
            Ok(()) if !has_room || vif.pages + needed > share => Some(0),
            Ok(()) => None,
        };
        if state.blocked_until_ns.is_some() {
            return false;
        }
        let packet = match state.redo.pop_front() {
            Some(packet) => packet,
            None => match state.tx.consume() {
                Ok(Consumed::Packet(packet)) => packet,
                Ok(Consumed::Rejected) => {
                    state.is_dirty = true;
                    return true;
                }
                Ok(Consumed::Nothing) | Err(_) => return false,
            },
        };
        if packet.group.is_some() {
            // The group filter is not offered.
            state.tx.answer(packet.id, Status::Error);
            state.is_dirty = true;
            return true;
        }
        let Some(pages) = self.frames.pages(packet.pieces.len()) else { return false };
        vif.pages += pages.len();
        for (piece, page) in packet.pieces.iter().zip(&pages) {
            copies.push(Copy {
                direction: Direction::FromGuest,
                grant: piece.grant,
                guest_offset: piece.offset,
                arena_offset: page_offset(*page),
                length: piece.length,
            });
        }
        let count = packet.pieces.len();
        jobs.push(Job { port, copies: count, kind: JobKind::Ingress { queue, packet, pages } });
        true
    }

    /// What became of the copies: `worked` has one entry per copy.
    pub fn copied(&mut self, now_ns: u64, jobs: Vec<Job>, worked: &[bool]) {
        let mut at = 0;
        for job in jobs {
            let all = worked.get(at..at + job.copies).unwrap_or_default();
            at += job.copies;
            let is_copied = all.len() == job.copies && all.iter().all(|worked| *worked);
            self.counters.bad_grants += u64::from(!is_copied);
            match job.kind {
                JobKind::Ingress { queue, packet, pages } => {
                    self.arrived(now_ns, job.port, queue, packet, pages, is_copied);
                }
                JobKind::Deliver { queue, delivery } => {
                    self.delivered(job.port, queue, &delivery, is_copied);
                }
            }
        }
    }

    fn arrived(
        &mut self,
        now_ns: u64,
        port: PortId,
        queue: usize,
        packet: Packet,
        pages: Vec<u32>,
        is_copied: bool,
    ) {
        let piece = |(piece, page): (&netback::packet::Piece, &u32)| Segment {
            offset: page_offset(*page),
            length: piece.length.into(),
        };
        let segments: Segments = packet.pieces.iter().zip(&pages).map(piece).collect();
        let generation = self.vifs.get(&port).map_or(0, |vif| vif.generation);
        let owner = Owner::Guest { port, generation, queue, packet: packet.id };
        let (length, offload) = (packet.length, packet.offload);
        let key = self.frames.add(Frame { segments, length, offload, owner, pages, users: 0 });
        if is_copied {
            self.counters.from_guests += 1;
            self.route(now_ns, port, key);
        } else {
            self.finish(key, Status::Error);
        }
    }

    /// Sends a frame, of which the caller is a user, to wherever the switch says.
    pub(crate) fn route(&mut self, now_ns: u64, from: PortId, key: FrameKey) {
        let mut bytes = [0; HEADERS];
        let read = self.read_start(key, &mut bytes);
        let length = self.frames.get(key).map_or(0, |frame| frame.length);
        let header = Header::parse(&bytes[..read]);
        let decided = header.and_then(|header| {
            self.switch.forward(now_ns, from, &header, length).ok().map(|targets| (header, targets))
        });
        let Some((_, targets)) = decided else {
            self.counters.nowhere += 1;
            return self.release(key);
        };
        // The NIC comes last: its headers are prepared in place.
        for port in targets.ports.iter().filter(|port| *port != NIC) {
            self.frames.keep(key);
            if let Some(frame) = self.changed(key, targets.access) {
                self.queue_for(now_ns, port, frame, &bytes[..read]);
            }
        }
        if targets.ports.contains(NIC) {
            self.frames.keep(key);
            let frame = self.changed(key, targets.trunk);
            self.for_nic.extend(frame);
        }
        // This use ends first: who is the frame's only user may prepare it in place.
        self.release(key);
        self.feed_nic();
    }

    /// The frame with its tag changed; takes over the caller's use of `key`.
    fn changed(&mut self, key: FrameKey, change: TagChange) -> Option<FrameKey> {
        match change {
            TagChange::Keep => Some(key),
            TagChange::Strip => self.stripped(key),
            TagChange::Insert(vlan) => self.tagged(key, vlan),
        }
    }
}
