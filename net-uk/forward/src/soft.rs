//! What devices and frontends cannot do: checksums, cutting, tags.

use alloc::vec::Vec;

use drivers::{Segment, Segments};
use fabric::SharedMemory;
use frame::{Header, Offload, VLAN_TAG, checksum, segment};
use netback::wire::Status;

use crate::RESERVE_PAGES;
use crate::frames::{Frame, FrameKey, Owner, page_offset, slice};
use crate::plane::Plane;

/// What became of a frame that software had to finish.
pub(crate) enum Finished {
    /// These take its place.
    Parts(Vec<FrameKey>),
    /// It was dropped, and counted.
    Dropped,
    /// Nothing was done: the pages for it are in use.
    NoPages,
}

/// Bytes before an 802.1Q tag: the two addresses.
const BEFORE_TAG: u32 = 12;

impl<R, J, S, A> Plane<R, J, S, A>
where
    R: SharedMemory,
    J: SharedMemory + Clone,
    S: SharedMemory,
    A: SharedMemory,
{
    /// Copies a frame's first bytes out; answers how many there are.
    pub(crate) fn read_start(&self, key: FrameKey, into: &mut [u8]) -> usize {
        let Some(frame) = self.frames.get(key) else { return 0 };
        let mut done = 0;
        for segment in &frame.segments {
            let part = (segment.length as usize).min(into.len() - done);
            self.arena.read(segment.offset as usize, &mut into[done..done + part]);
            done += part;
        }
        done
    }

    /// Writes a frame's first bytes back.
    pub(crate) fn write_start(&self, key: FrameKey, bytes: &[u8]) {
        let Some(frame) = self.frames.get(key) else { return };
        let mut rest = bytes;
        for segment in &frame.segments {
            let (part, after) = rest.split_at((segment.length as usize).min(rest.len()));
            self.arena.write(segment.offset as usize, part);
            rest = after;
        }
    }

    /// The frames that `key` becomes when everything left to do is done in software. Takes over the
    /// caller's use of `key`, unless there are not enough pages now.
    pub(crate) fn finished(&mut self, key: FrameKey) -> Finished {
        let Some(frame) = self.frames.get(key) else { return Finished::Dropped };
        let (length, offload) = (frame.length as usize, frame.offload);
        // A frame that would become more than the reserve holds could never be cut.
        let pieces = offload.gso.map_or(1, |gso| length.div_ceil(gso.size.max(1).into()));
        let pages = pieces.max(length.div_ceil(netback::PAGE as usize));
        if pages > RESERVE_PAGES {
            return self.unfit(key);
        }
        if pages > self.frames.free_pages() {
            return Finished::NoPages;
        }
        let mut bytes = alloc::vec![0; length];
        self.read_start(key, &mut bytes);
        let parts = match offload.gso {
            Some(gso) => segment::cut(&bytes, gso),
            None => {
                checksum::complete(&mut bytes);
                Some(alloc::vec![bytes])
            }
        };
        let Some(parts) = parts else { return self.unfit(key) };
        let mut keys = Vec::with_capacity(parts.len());
        for part in &parts {
            let needed = part.len().div_ceil(netback::PAGE as usize);
            let Some(pages) = self.frames.pages(needed) else { break };
            keys.push(self.part(key, part, pages));
        }
        self.release(key);
        Finished::Parts(keys)
    }

    fn unfit(&mut self, key: FrameKey) -> Finished {
        self.counters.unfit += 1;
        self.finish(key, Status::Error);
        Finished::Dropped
    }

    fn part(&mut self, parent: FrameKey, bytes: &[u8], pages: Vec<u32>) -> FrameKey {
        let mut segments = Segments::new();
        for (chunk, page) in bytes.chunks(netback::PAGE as usize).zip(&pages) {
            let offset = page_offset(*page);
            self.arena.write(offset as usize, chunk);
            let pushed = segments.push(Segment { offset, length: chunk.len() as u32 });
            debug_assert!(pushed.is_ok(), "64 KiB are 16 pages");
        }
        let owner = Owner::Frame(parent);
        let length = bytes.len() as u32;
        let offload = Offload::default();
        self.frames.add(Frame { segments, length, offload, owner, pages, users: 0 })
    }

    /// The frame without its tag; takes over the caller's use.
    pub(crate) fn stripped(&mut self, key: FrameKey) -> Option<FrameKey> {
        let frame = self.frames.get(key)?;
        let rest = slice(&frame.segments, BEFORE_TAG + VLAN_TAG as u32, frame.length);
        self.variant(key, slice(&frame.segments, 0, BEFORE_TAG), None, rest)
    }

    /// The frame with a tag; takes over the caller's use.
    pub(crate) fn tagged(&mut self, key: FrameKey, vlan: u16) -> Option<FrameKey> {
        let frame = self.frames.get(key)?;
        let start = slice(&frame.segments, 0, BEFORE_TAG);
        let rest = slice(&frame.segments, BEFORE_TAG, frame.length);
        let Some(pages) = self.frames.pages(1) else {
            self.counters.no_pages += 1;
            self.release(key);
            return None;
        };
        self.arena.write(page_offset(pages[0]) as usize, &Header::tag(vlan));
        self.variant(key, start, Some(pages), rest)
    }

    fn variant(
        &mut self,
        key: FrameKey,
        start: Option<Segments>,
        tag: Option<Vec<u32>>,
        rest: Option<Segments>,
    ) -> Option<FrameKey> {
        let pages = tag.unwrap_or_default();
        let tag = pages
            .first()
            .map(|page| Segment { offset: page_offset(*page), length: VLAN_TAG as u32 });
        let mut segments = Segments::new();
        let all = start.iter().flatten().chain(&tag).chain(rest.iter().flatten());
        let fits = all.copied().all(|segment| segments.push(segment).is_ok());
        let offload = self.frames.get(key)?.offload;
        if !fits || start.is_none() || rest.is_none() {
            self.frames.give_back(pages);
            self.counters.unfit += 1;
            self.release(key);
            return None;
        }
        let length = segments.iter().map(|segment| segment.length).sum();
        let owner = Owner::Frame(key);
        let variant = self.frames.add(Frame { segments, length, offload, owner, pages, users: 0 });
        self.release(key);
        Some(variant)
    }
}
