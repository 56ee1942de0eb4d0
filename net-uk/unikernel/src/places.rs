//! What outlives net-uk in its journal region: first the shadow driver's state, then a place per
//! interface, each a page for its record and a journal per queue.

use abi::PAGE_SIZE;
use fabric::view::RegionKind;
use fabric::{Part, SharedMemory};
use netback::journal::QUEUE_BYTES;
use netback::vif::{QUEUES_MAX, RECORD_BYTES};
use runtime::FabricMemory;
use service::view::View;

/// A part of our view of the fabric.
pub type Fabric = Part<FabricMemory>;

/// Frames that the shadow driver holds: half a descriptor ring; more would wait there instead of
/// in front of it.
pub const SHADOW_FRAMES: usize = 128;
const SHADOW_PAGES: usize = shadow_driver::bytes_needed(SHADOW_FRAMES).div_ceil(PAGE_SIZE);
/// Bytes of an interface's place.
const PLACE_BYTES: usize = PAGE_SIZE + QUEUES_MAX * QUEUE_BYTES;

const _: () = assert!(RECORD_BYTES <= PAGE_SIZE);

/// The region, divided.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    region: Fabric,
}

impl Places {
    /// The journal region of `view`.
    pub fn new(view: &View<FabricMemory>) -> Self {
        Self { region: view.own(RegionKind::Journal) }
    }

    /// How many interfaces there is room for.
    pub fn count(&self) -> usize {
        self.region.len().saturating_sub(SHADOW_PAGES * PAGE_SIZE) / PLACE_BYTES
    }

    /// The shadow driver's state.
    pub fn shadow(&self) -> Part<Fabric> {
        Part::new(self.region, 0, SHADOW_PAGES * PAGE_SIZE)
    }

    /// The record of the interface at `place`.
    pub fn record(&self, place: usize) -> Part<Fabric> {
        Part::new(self.region, Self::start(place), PAGE_SIZE)
    }

    /// The journal of one of its queues.
    pub fn journal(&self, place: usize, queue: usize) -> Part<Fabric> {
        let start = Self::start(place) + PAGE_SIZE + queue * QUEUE_BYTES;
        Part::new(self.region, start, QUEUE_BYTES)
    }

    fn start(place: usize) -> usize {
        SHADOW_PAGES * PAGE_SIZE + place * PLACE_BYTES
    }
}
