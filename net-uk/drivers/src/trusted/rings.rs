//! The descriptor rings and who may put what into them.

use alloc::vec;
use alloc::vec::Vec;

use fabric::SharedMemory;

use super::{BusMap, Format, Layout, PAGE, RING_PAGES, Refused, Stop, e1000e, virtio};
use crate::virtio::flag;
use crate::{Command, Descriptor, Machine, RING_SIZE, Registers, RingId, Segment, Window};

/// A received frame found in a ring whose driver died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salvaged {
    /// The buffer as it was proposed.
    pub buffer: Segment,
    /// First byte of the frame within it.
    pub offset: u32,
    /// Bytes of the frame; at most what the buffer holds.
    pub length: u32,
}

#[derive(Clone, Debug)]
struct Ring {
    is_set_up: bool,
    placed: Vec<Option<Segment>>,
    /// Placed and not yet published: where its chain goes on, if it does.
    ready: Vec<Option<Option<u16>>>,
    /// 82574: the tail. virtio: chains offered so far.
    published: u16,
    /// virtio: where to notify.
    notify: u16,
    /// virtio: for each chain the number of chains returned when it was offered: what was returned
    /// before is about a former use of its place.
    since: Vec<u16>,
}

/// The descriptor rings of one NIC.
#[derive(Clone, Debug)]
pub struct Rings<M> {
    format: Format,
    arena: M,
    layout: Layout,
    bus: BusMap,
    rings: [Ring; 2],
    /// Pages of the receive zone that were handed to the driver and not yet placed.
    lent: Vec<bool>,
    /// For each of those pages the receive descriptor that names it.
    placed_at: Vec<Option<u16>>,
    notify_unit: u32,
}

impl<M: SharedMemory> Rings<M> {
    /// Rings in the first pages of `arena`, whose pages the device finds at the addresses in `bus`.
    /// `notify_unit` is virtio's distance between notification registers, in bytes. Panics if
    /// arena, layout and addresses do not fit together.
    pub fn new(format: Format, arena: M, layout: Layout, bus: BusMap, notify_unit: u32) -> Self {
        assert!(arena.len() >= (layout.pages() * PAGE) as usize, "the arena is too small");
        assert!(bus.len() >= layout.pages() as usize, "an arena page has no bus address");
        let ring = || Ring {
            is_set_up: false,
            placed: vec![None; usize::from(RING_SIZE)],
            ready: vec![None; usize::from(RING_SIZE)],
            published: 0,
            notify: 0,
            since: vec![0; usize::from(RING_SIZE)],
        };
        let lent = vec![false; layout.rx_pages as usize];
        let placed_at = vec![None; layout.rx_pages as usize];
        Self { format, arena, layout, bus, rings: [ring(), ring()], lent, placed_at, notify_unit }
    }

    /// Notes what a batch of commands hands to the driver. Each receive buffer can then be placed
    /// once: the device never writes into a page that was given on.
    pub fn lend(&mut self, commands: &[Command]) {
        for command in commands {
            if let Command::Post(buffer) = command
                && let Some(lent) = self.rx_page(buffer.segment)
            {
                *lent = true;
            }
        }
    }

    fn rx_page(&mut self, segment: Segment) -> Option<&mut bool> {
        let page = (segment.offset / PAGE).checked_sub(self.layout.rx())?;
        self.lent.get_mut(page as usize)
    }

    /// A page that is placed anew is no longer what its former descriptor is about: what lies there
    /// was reported, or the page would not have been lent again.
    fn forget_former_place(&mut self, segment: Segment, index: u16) {
        let page = (segment.offset / PAGE - self.layout.rx()) as usize;
        if let Some(former) = self.placed_at[page].replace(index) {
            let place = &mut self.rings[RingId::Rx as usize].placed[usize::from(former)];
            if place.is_some_and(|other| other.offset / PAGE == segment.offset / PAGE) {
                *place = None;
            }
        }
    }

    /// The device's kind.
    pub fn format(&self) -> Format {
        self.format
    }

    fn ring_offset(&self, ring: RingId) -> usize {
        (self.layout.ring(ring) * PAGE) as usize
    }

    /// Clears a ring and tells the device where it is.
    pub fn set_up(&mut self, ring: RingId, registers: &mut impl Registers) -> u16 {
        let offset = self.ring_offset(ring);
        self.arena.fill(offset, (RING_PAGES * PAGE) as usize, 0);
        let first = self.layout.ring(ring) as usize;
        let pages = [self.bus[first], self.bus[first + 1], self.bus[first + 2]];
        let state = &mut self.rings[ring as usize];
        state.placed.fill(None);
        state.ready.fill(None);
        state.published = 0;
        state.is_set_up = true;
        match self.format {
            Format::E1000e => e1000e::set_up(registers, ring, pages[0]),
            Format::Virtio => state.notify = virtio::set_up(registers, ring, pages),
        }
        RING_SIZE
    }

    /// Checks a proposal and writes the descriptor.
    pub fn place(&mut self, ring: RingId, index: u16, new: Descriptor) -> Result<(), Refused> {
        if !self.rings[ring as usize].is_set_up {
            return Err(Refused::Ring(ring));
        }
        if index >= RING_SIZE {
            return Err(Refused::Index(index));
        }
        let (raw, segment) = self.checked(ring, index, new)?;
        let state = &mut self.rings[ring as usize];
        let next = match new {
            Descriptor::Bytes { bits, .. } | Descriptor::Scratch { bits, .. } => {
                (bits & u32::from(flag::NEXT) != 0).then_some((bits >> 16) as u16)
            }
            Descriptor::Context(_) => None,
        };
        state.placed[usize::from(index)] = segment;
        state.ready[usize::from(index)] = Some(next);
        self.arena.write(self.ring_offset(ring) + usize::from(index) * 16, &raw);
        Ok(())
    }

    fn checked(
        &mut self,
        ring: RingId,
        index: u16,
        new: Descriptor,
    ) -> Result<([u8; 16], Option<Segment>), Refused> {
        Ok(match new {
            Descriptor::Bytes { segment, bits } => {
                self.layout.check(ring, segment)?;
                let raw = self.bytes(ring, segment, bits)?;
                if ring == RingId::Rx {
                    let lent = self.rx_page(segment).map(core::mem::take);
                    lent.filter(|lent| *lent).ok_or(Refused::Zone(segment))?;
                    self.forget_former_place(segment, index);
                }
                (raw, Some(segment))
            }
            Descriptor::Scratch { length, bits } => {
                let offset = self.layout.scratch(ring) * PAGE + u32::from(index) * 16;
                let segment = Segment { offset, length };
                if length == 0 || length > 16 {
                    return Err(Refused::Zone(segment));
                }
                (self.bytes(ring, segment, bits)?, None)
            }
            Descriptor::Context(raw) if self.format == Format::E1000e => {
                (e1000e::context(ring, raw)?, None)
            }
            Descriptor::Context(_) => return Err(Refused::Bits(0)),
        })
    }

    fn bytes(&self, ring: RingId, segment: Segment, bits: u32) -> Result<[u8; 16], Refused> {
        let page = self.bus[(segment.offset / PAGE) as usize];
        let bus = page + u64::from(segment.offset % PAGE);
        match self.format {
            Format::E1000e => Ok(e1000e::bytes(ring, bus, segment.length, bits)),
            Format::Virtio => virtio::bytes(ring, bus, segment.length, bits),
        }
    }

    /// Fills a scratch record.
    pub fn scratch(&mut self, ring: RingId, index: u16, bytes: [u8; 16]) -> Result<(), Refused> {
        if index >= RING_SIZE {
            return Err(Refused::Index(index));
        }
        let offset = self.layout.scratch(ring) * PAGE + u32::from(index) * 16;
        self.arena.write(offset as usize, &bytes);
        Ok(())
    }

    /// Notes what the device may take next. Every descriptor on the way must have been placed
    /// since the device had it last.
    pub fn publish(&mut self, ring: RingId, value: u16) -> Result<(), Refused> {
        let offset = self.ring_offset(ring);
        let state = &mut self.rings[ring as usize];
        if !state.is_set_up {
            return Err(Refused::Ring(ring));
        }
        if value >= RING_SIZE {
            return Err(Refused::Index(value));
        }
        match self.format {
            Format::E1000e => {
                while state.published != value {
                    let index = state.published;
                    state.ready[usize::from(index)].take().ok_or(Refused::Index(index))?;
                    state.published = (index + 1) % RING_SIZE;
                }
            }
            Format::Virtio => {
                let mut next = Some(value);
                while let Some(index) = next {
                    next = state.ready[usize::from(index)].take().ok_or(Refused::Index(index))?;
                }
                state.since[usize::from(value)] = virtio::returned(&self.arena, offset);
                virtio::offer(&self.arena, offset, state.published, value);
                state.published = state.published.wrapping_add(1);
            }
        }
        Ok(())
    }

    /// Makes the device look at what was published.
    pub fn doorbell(
        &mut self,
        ring: RingId,
        registers: &mut impl Registers,
    ) -> Result<(), Refused> {
        let offset = self.ring_offset(ring);
        let state = &self.rings[ring as usize];
        if !state.is_set_up {
            return Err(Refused::Ring(ring));
        }
        match self.format {
            Format::E1000e => e1000e::doorbell(registers, ring, state.published),
            Format::Virtio => {
                virtio::show(&self.arena, offset, state.published);
                let at = u32::from(state.notify) * self.notify_unit;
                registers.write16(Window::Notify, at, ring as u16);
            }
        }
        Ok(())
    }

    /// Copies bytes of a ring; beyond its end they are zero.
    pub fn read(&self, ring: RingId, offset: u32, into: &mut [u8]) {
        let end = (RING_PAGES * PAGE) as usize;
        let (start, length) = (offset as usize, into.len());
        into.fill(0);
        if let Some(room) = end.checked_sub(start) {
            self.arena.read(self.ring_offset(ring) + start, &mut into[..length.min(room)]);
        }
    }

    /// Ends all DMA. Call until quiet; then the rings are the trusted part's alone, and stay so
    /// until the next driver sets them up.
    pub fn stop(&mut self, registers: &mut impl Registers) -> Stop {
        let stop = self.format.stop(registers);
        if stop == Stop::Quiet {
            self.rings.iter_mut().for_each(|ring| ring.is_set_up = false);
            self.lent.fill(false);
        }
        stop
    }

    /// Received frames that lie in the ring of a stopped device, in the order they came, whether
    /// the dead driver reported them or not: the caller knows which buffers it still misses.
    pub fn salvage(&self) -> Vec<Salvaged> {
        let ring = &self.rings[RingId::Rx as usize];
        let offset = self.ring_offset(RingId::Rx);
        let filled: Vec<(u16, u32, u32)> = match self.format {
            Format::E1000e => {
                // The order of the ring, from the tail on: what was posted longest ago comes first.
                let places = (0..RING_SIZE).map(|n| (ring.published + n) % RING_SIZE);
                places.filter_map(|at| self.filled(offset, at)).collect()
            }
            Format::Virtio => {
                let end = virtio::returned(&self.arena, offset);
                let numbers = (1..=RING_SIZE).rev().map(|back| end.wrapping_sub(back));
                numbers.filter_map(|number| self.returned(offset, number, end)).collect()
            }
        };
        let salvaged = filled.into_iter().filter_map(|(index, offset, length)| {
            let buffer = (*ring.placed.get(usize::from(index))?)?;
            let fits = length > 0 && offset.checked_add(length)? <= buffer.length;
            fits.then_some(Salvaged { buffer, offset, length })
        });
        salvaged.collect()
    }

    fn returned(&self, ring: usize, number: u16, end: u16) -> Option<(u16, u32, u32)> {
        let (head, length) = virtio::returned_at(&self.arena, ring, number);
        let head = u16::try_from(head).ok()?;
        let since = *self.rings[RingId::Rx as usize].since.get(usize::from(head))?;
        let is_latest = end.wrapping_sub(number) <= end.wrapping_sub(since);
        let header = crate::virtio::HEADER;
        is_latest.then_some((head, header, length.checked_sub(header)?))
    }

    fn filled(&self, ring: usize, index: u16) -> Option<(u16, u32, u32)> {
        let mut raw = [0; 16];
        self.arena.read(ring + usize::from(index) * 16, &mut raw);
        Some((index, 0, e1000e::received(raw)?))
    }
}

/// Driver and trusted part in one place, without a wall between: what tests use, and the build
/// that measures the price of isolation. The first refusal is kept.
#[derive(Debug)]
pub struct LocalMachine<G, M> {
    /// The device.
    pub registers: G,
    /// The rings.
    pub rings: Rings<M>,
    /// The driver's first forbidden proposal.
    pub refused: Option<Refused>,
}

impl<G: Registers, M: SharedMemory> LocalMachine<G, M> {
    /// A machine with this device and these rings.
    pub fn new(registers: G, rings: Rings<M>) -> Self {
        Self { registers, rings, refused: None }
    }

    fn note(&mut self, result: Result<(), Refused>) {
        if let Err(refused) = result {
            self.refused.get_or_insert(refused);
        }
    }

    fn allow(&mut self, window: Window, offset: u32, value: u32) -> bool {
        let allowed = self.rings.format.may_write(window, offset, value);
        if !allowed {
            self.note(Err(Refused::Register(window, offset)));
        }
        allowed
    }
}

impl<G: Registers, M: SharedMemory> Registers for LocalMachine<G, M> {
    fn read8(&mut self, window: Window, offset: u32) -> u8 {
        self.registers.read8(window, offset)
    }

    fn read16(&mut self, window: Window, offset: u32) -> u16 {
        self.registers.read16(window, offset)
    }

    fn read32(&mut self, window: Window, offset: u32) -> u32 {
        self.registers.read32(window, offset)
    }

    fn write8(&mut self, window: Window, offset: u32, value: u8) {
        if self.allow(window, offset, value.into()) {
            self.registers.write8(window, offset, value);
        }
    }

    fn write16(&mut self, window: Window, offset: u32, value: u16) {
        if self.allow(window, offset, value.into()) {
            self.registers.write16(window, offset, value);
        }
    }

    fn write32(&mut self, window: Window, offset: u32, value: u32) {
        if self.allow(window, offset, value) {
            self.registers.write32(window, offset, value);
        }
    }
}

impl<G: Registers, M: SharedMemory> Machine for LocalMachine<G, M> {
    fn set_up(&mut self, ring: RingId) -> u16 {
        self.rings.set_up(ring, &mut self.registers)
    }

    fn place(&mut self, ring: RingId, index: u16, descriptor: Descriptor) {
        let result = self.rings.place(ring, index, descriptor);
        self.note(result);
    }

    fn scratch(&mut self, ring: RingId, index: u16, bytes: [u8; 16]) {
        let result = self.rings.scratch(ring, index, bytes);
        self.note(result);
    }

    fn publish(&mut self, ring: RingId, value: u16) {
        let result = self.rings.publish(ring, value);
        self.note(result);
    }

    fn doorbell(&mut self, ring: RingId) {
        // After a refusal nothing more reaches the device: its rings may hold half a frame.
        if self.refused.is_none() {
            let result = self.rings.doorbell(ring, &mut self.registers);
            self.note(result);
        }
    }

    fn ring_read(&mut self, ring: RingId, offset: u32, into: &mut [u8]) {
        self.rings.read(ring, offset, into);
    }
}
