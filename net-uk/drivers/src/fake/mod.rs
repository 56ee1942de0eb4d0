//! Fake NICs at register level, for tests and simulations: they execute descriptors as the data
//! sheets say, keep what they would have put on the wire, note every access to memory that was not
//! meant for them, and fail on demand.

mod e1000e;
mod virtio;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use fabric::{HeapMemory, SharedMemory};
use frame::Mac;

use crate::trusted::{BusMap, Format, Layout, PAGE};
use crate::{Registers, RingId, TxOffload, Window};

/// How a device misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Its interrupts get lost.
    pub loses_interrupts: bool,
    /// It does nothing any more, though its registers answer.
    pub is_stuck: bool,
    /// Its registers read as all ones, and it forgets everything: the link to it is down.
    pub is_gone: bool,
    /// Its interrupt is always raised.
    pub has_storm: bool,
    /// What it writes into receive descriptors makes no sense.
    pub talks_nonsense: bool,
}

/// An access of the device to memory that was not meant for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WildAccess {
    /// Bus address.
    pub bus: u64,
    /// Bytes.
    pub length: u32,
    /// Whether it wrote.
    pub is_write: bool,
}

/// What both kinds of device have.
#[derive(Debug)]
pub struct Common {
    arena: HeapMemory,
    layout: Layout,
    pages: BTreeMap<u64, u32>,
    /// How it misbehaves now.
    pub faults: Faults,
    /// What it has put on the wire.
    pub wire: Vec<Vec<u8>>,
    /// What the wire has for it.
    pub inbox: VecDeque<Vec<u8>>,
    /// Its forbidden accesses.
    pub wild: Vec<WildAccess>,
    /// Its address.
    pub address: Mac,
    interrupt: bool,
}

impl Common {
    /// The arena, as the device reaches it.
    pub fn memory(&self) -> HeapMemory {
        self.arena.clone()
    }

    fn locate(&mut self, bus: u64, length: u32, is_write: bool) -> Option<usize> {
        let page = bus & !u64::from(PAGE - 1);
        let within = (bus % u64::from(PAGE)) as u32;
        let found = self.pages.get(&page).copied().filter(|number| {
            let rings = 0..self.layout.rx();
            let zone = if is_write {
                self.layout.rx()..self.layout.tx()
            } else {
                self.layout.tx()..self.layout.pages()
            };
            let fits = within.checked_add(length).is_some_and(|end| end <= PAGE);
            fits && (rings.contains(number) || zone.contains(number))
        });
        if found.is_none() {
            self.wild.push(WildAccess { bus, length, is_write });
        }
        found.map(|number| (number * PAGE + within) as usize)
    }

    fn read<const N: usize>(&mut self, bus: u64) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some(at) = self.locate(bus, N as u32, false) {
            self.arena.read(at, &mut bytes);
        }
        bytes
    }

    fn read_into(&mut self, bus: u64, length: u32, into: &mut Vec<u8>) {
        if let Some(at) = self.locate(bus, length, false) {
            let start = into.len();
            into.resize(start + length as usize, 0);
            self.arena.read(at, &mut into[start..]);
        }
    }

    fn write(&mut self, bus: u64, bytes: &[u8]) {
        if let Some(at) = self.locate(bus, bytes.len() as u32, true) {
            self.arena.write(at, bytes);
        }
    }

    /// Does what a frame's sender left to the device, and puts the result on the wire.
    fn send(&mut self, mut bytes: Vec<u8>, offload: Option<TxOffload>, is_zeroed: bool) {
        let Some(offload) = offload else { return self.wire.push(bytes) };
        let Some(cut) = offload.cut else {
            let mut sum = frame::checksum::Sum::default();
            sum.add(bytes.get(usize::from(offload.start)..).unwrap_or_default());
            if let Some(field) =
                bytes.get_mut(usize::from(offload.field)..).and_then(|at| at.get_mut(..2))
            {
                field.copy_from_slice(&(!sum.fold()).to_be_bytes());
            }
            return self.wire.push(bytes);
        };
        let network = usize::from(offload.network);
        if is_zeroed && !offload.is_v6 {
            assert_eq!(bytes[network + 2..network + 4], [0, 0], "IP length of a frame to cut");
            assert_eq!(bytes[network + 10..network + 12], [0, 0], "IP sum of a frame to cut");
            let length = (bytes.len() - network) as u16;
            bytes[network + 2..network + 4].copy_from_slice(&length.to_be_bytes());
        }
        let kind = if offload.is_v6 { frame::GsoKind::TcpV6 } else { frame::GsoKind::TcpV4 };
        let cut = frame::segment::cut(&bytes, frame::Gso { kind, size: cut.size });
        self.wire.extend(cut.unwrap_or_default());
    }
}

#[derive(Debug)]
enum Kind {
    E1000e(e1000e::State),
    Virtio(virtio::State),
}

impl Kind {
    fn reset(&mut self, common: &mut Common) {
        common.interrupt = false;
        match self {
            Self::E1000e(state) => *state = e1000e::State::default(),
            Self::Virtio(state) => *state = virtio::State::default(),
        }
    }
}

/// A fake NIC; clones are the same device.
#[derive(Clone, Debug)]
pub struct FakeNic {
    inner: Rc<RefCell<(Common, Kind)>>,
}

impl FakeNic {
    /// A device that finds the pages of `arena` at the addresses of [`bus_map`].
    pub fn new(format: Format, arena: HeapMemory, layout: Layout) -> Self {
        let pages = (0..).zip(bus_map(layout)).map(|(page, bus)| (bus, page)).collect();
        let common = Common {
            arena,
            layout,
            pages,
            faults: Faults::default(),
            wire: Vec::new(),
            inbox: VecDeque::new(),
            wild: Vec::new(),
            address: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            interrupt: false,
        };
        let kind = match format {
            Format::E1000e => Kind::E1000e(e1000e::State::default()),
            Format::Virtio => Kind::Virtio(virtio::State::default()),
        };
        Self { inner: Rc::new(RefCell::new((common, kind))) }
    }

    /// Gives access to what both kinds have.
    pub fn with<T>(&self, f: impl FnOnce(&mut Common) -> T) -> T {
        f(&mut self.inner.borrow_mut().0)
    }

    /// Puts the device onto other memory: its domain was built anew.
    pub fn rewire(&self, arena: HeapMemory) {
        self.inner.borrow_mut().0.arena = arena;
    }

    /// Lets the device work: at most `frames` frames in each direction.
    pub fn step(&self, frames: usize) {
        let (common, kind) = &mut *self.inner.borrow_mut();
        if common.faults.is_stuck || common.faults.is_gone {
            return;
        }
        match kind {
            Kind::E1000e(state) => state.step(common, frames),
            Kind::Virtio(state) => state.step(common, frames),
        }
    }

    /// Whether its interrupt line is raised.
    pub fn is_raised(&self) -> bool {
        let (common, _) = &*self.inner.borrow();
        common.faults.has_storm || common.interrupt && !common.faults.loses_interrupts
    }

    fn read(&self, window: Window, offset: u32) -> u32 {
        let (common, kind) = &mut *self.inner.borrow_mut();
        if common.faults.is_gone {
            kind.reset(common);
            return u32::MAX;
        }
        match kind {
            Kind::E1000e(state) => state.read(common, offset),
            Kind::Virtio(state) => state.read(common, window, offset),
        }
    }

    fn write(&self, window: Window, offset: u32, value: u32) {
        let (common, kind) = &mut *self.inner.borrow_mut();
        if common.faults.is_gone {
            return kind.reset(common);
        }
        match kind {
            Kind::E1000e(state) => state.write(common, offset, value),
            Kind::Virtio(state) => state.write(common, window, offset, value),
        }
    }
}

/// Bus addresses for an arena's pages: scattered, as a PV domain's pages are.
pub fn bus_map(layout: Layout) -> BusMap {
    let pages = u64::from(layout.pages());
    let step = if pages.is_multiple_of(7) { 11 } else { 7 };
    (0..pages).map(|page| 0x1_2340_0000 + page * step % pages * 2 * u64::from(PAGE)).collect()
}

impl Registers for FakeNic {
    fn read8(&mut self, window: Window, offset: u32) -> u8 {
        self.read(window, offset) as u8
    }

    fn read16(&mut self, window: Window, offset: u32) -> u16 {
        self.read(window, offset) as u16
    }

    fn read32(&mut self, window: Window, offset: u32) -> u32 {
        self.read(window, offset)
    }

    fn write8(&mut self, window: Window, offset: u32, value: u8) {
        self.write(window, offset, value.into());
    }

    fn write16(&mut self, window: Window, offset: u32, value: u16) {
        self.write(window, offset, value.into());
    }

    fn write32(&mut self, window: Window, offset: u32, value: u32) {
        self.write(window, offset, value);
    }
}

/// A ring of either device by its number.
fn ring_of(number: u32) -> Option<RingId> {
    match number {
        0 => Some(RingId::Rx),
        1 => Some(RingId::Tx),
        _ => None,
    }
}
