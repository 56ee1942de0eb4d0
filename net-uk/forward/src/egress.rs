//! Frames to guests.

use alloc::vec::Vec;

use fabric::SharedMemory;
use frame::{Checksum, Transport};
use netback::Copy;
use netback::rx::{Taken, buffers_needed};
use netback::wire::Status;
use switch::PortId;

use crate::frames::FrameKey;
use crate::plane::{Job, JobKind, Plane};
use crate::soft::Finished;
use crate::{BUDGET, HOLD_NS, QUEUED_MAX, RESERVE_PAGES, STALE_NS};

/// A frame with the guest's buffers it goes into.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub key: FrameKey,
    pub taken: Taken,
}

impl<R, J, S, A> Plane<R, J, S, A>
where
    R: SharedMemory,
    J: SharedMemory + Clone,
    S: SharedMemory,
    A: SharedMemory,
{
    /// Puts a frame, of which the caller gives up its use, into the queue of a guest.
    pub(crate) fn queue_for(&mut self, now_ns: u64, port: PortId, key: FrameKey, start: &[u8]) {
        let (Some(vif), Some(frame)) = (self.vifs.get(&port), self.frames.get(key)) else {
            return self.release(key);
        };
        let abilities = vif.connection.abilities;
        let is_v6 = Transport::find(start).is_some_and(|transport| transport.is_v6);
        let queue = flow_hash(start) as usize % vif.queues.len().max(1);
        if abilities.takes(&frame.offload, is_v6) {
            return self.push(now_ns, port, queue, key);
        }
        match self.finished(key) {
            Finished::Parts(parts) => {
                parts.into_iter().for_each(|part| self.push(now_ns, port, queue, part));
            }
            Finished::Dropped => {}
            Finished::NoPages => {
                self.counters.no_pages += 1;
                self.release(key);
            }
        }
    }

    fn push(&mut self, now_ns: u64, port: PortId, queue: usize, key: FrameKey) {
        let length = self.frames.get(key).map_or(0, |frame| frame.length);
        let Some(vif) = self.vifs.get_mut(&port) else { return self.release(key) };
        if length > netback::PAGE && !vif.connection.abilities.has_sg {
            self.counters.unfit += 1;
            return self.release(key);
        }
        let waiting = &mut vif.queues[queue].waiting;
        if waiting.len() >= QUEUED_MAX {
            self.counters.queue_full += 1;
            return self.release(key);
        }
        waiting.push_back((key, now_ns));
    }

    pub(crate) fn collect_deliveries(
        &mut self,
        now_ns: u64,
        copies: &mut Vec<Copy>,
        jobs: &mut Vec<Job>,
    ) {
        let ports: Vec<PortId> = self.vifs.keys().copied().collect();
        for port in ports {
            let count = self.vifs.get(&port).map_or(0, |vif| vif.queues.len());
            for queue in 0..count {
                self.drop_stale(now_ns, port, queue);
                for _ in 0..BUDGET {
                    if !self.collect_delivery(port, queue, copies, jobs) {
                        break;
                    }
                }
            }
        }
    }

    fn drop_stale(&mut self, now_ns: u64, port: PortId, queue: usize) {
        let is_broken =
            self.queues(port).get(queue).is_some_and(|state| state.rx.fatal().is_some());
        let is_stale = |since: u64| is_broken || now_ns.saturating_sub(since) >= STALE_NS;
        while let Some(vif) = self.vifs.get_mut(&port)
            && let Some((key, _)) =
                vif.queues[queue].waiting.pop_front_if(|(_, since)| is_stale(*since))
        {
            vif.queues[queue].held_over = vif.queues[queue].held_over.saturating_sub(1);
            self.counters.stale += 1;
            self.release(key);
        }
        self.hold_over(now_ns, port, queue);
    }

    /// A receiver that takes nothing must not keep the senders' requests: they are answered, and
    /// the frames wait on, as long as pages are not scarce. Once it has stalled, later frames are
    /// treated so at once, until it takes one again.
    fn hold_over(&mut self, now_ns: u64, port: PortId, queue: usize) {
        while let Some(vif) = self.vifs.get_mut(&port)
            && let held_over = vif.queues[queue].held_over
            && let Some((key, since)) = vif.queues[queue].waiting.get(held_over).copied()
            && (vif.queues[queue].is_stalled || now_ns.saturating_sub(since) >= HOLD_NS)
        {
            vif.queues[queue].is_stalled = true;
            if let Some((owner, pages)) = self.frames.disown(key) {
                self.counters.held_over += 1;
                self.answer(owner, pages, Status::Okay);
            }
            // Three quarters of what guests may use are kept for traffic that flows.
            let usable = self.frames.total_pages().saturating_sub(RESERVE_PAGES);
            let is_scarce = self.frames.free_pages() < RESERVE_PAGES + usable * 3 / 4;
            let Some(vif) = self.vifs.get_mut(&port) else { return };
            if is_scarce {
                vif.queues[queue].waiting.remove(held_over);
                self.counters.stale += 1;
                self.release(key);
            } else {
                vif.queues[queue].held_over += 1;
            }
        }
    }

    fn collect_delivery(
        &mut self,
        port: PortId,
        queue: usize,
        copies: &mut Vec<Copy>,
        jobs: &mut Vec<Job>,
    ) -> bool {
        let Some(vif) = self.vifs.get_mut(&port) else { return false };
        let state = &mut vif.queues[queue];
        let Some((key, _)) = state.waiting.front().copied() else { return false };
        let Some(frame) = self.frames.get(key) else { return false };
        let needed = buffers_needed(frame.length, &frame.offload);
        let taken = match state.rx.take(frame.length, frame.offload) {
            Some(taken) => taken,
            // Asks for an event; what came meanwhile is seen in the next round.
            None => return state.rx.want(needed) && state.rx.available() >= needed,
        };
        state.waiting.pop_front();
        state.held_over = state.held_over.saturating_sub(1);
        state.is_stalled = false;
        let before = copies.len();
        let pieces: Vec<(u32, u32)> =
            frame.segments.iter().map(|segment| (segment.offset, segment.length)).collect();
        taken.copies(&pieces, copies);
        let delivery = Delivery { key, taken };
        let kind = JobKind::Deliver { queue, delivery };
        jobs.push(Job { port, copies: copies.len() - before, kind });
        true
    }

    pub(crate) fn delivered(
        &mut self,
        port: PortId,
        queue: usize,
        delivery: &Delivery,
        is_copied: bool,
    ) {
        if let Some(vif) = self.vifs.get_mut(&port) {
            let queue = &mut vif.queues[queue];
            queue.rx.respond(&delivery.taken, is_copied);
            queue.is_dirty = true;
            self.counters.to_guests += u64::from(is_copied);
        }
        self.release(delivery.key);
    }

    /// Marks a frame whose checksum was completed.
    pub(crate) fn mark_complete(&mut self, key: FrameKey) {
        if let Some(frame) = self.frames.get_mut(key) {
            frame.offload.checksum = Checksum::Unknown;
        }
    }
}

/// A number that is the same for all frames of a flow: addresses and the first bytes behind the IP
/// header, which for TCP and UDP are the ports.
fn flow_hash(start: &[u8]) -> u32 {
    let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = start.iter().take(12).fold(0x811c_9dc5, mix);
    match Transport::find(start) {
        Some(transport) => {
            let ports = start.get(transport.start..transport.start + 4).unwrap_or_default();
            ports.iter().fold(hash, mix)
        }
        None => hash,
    }
}
