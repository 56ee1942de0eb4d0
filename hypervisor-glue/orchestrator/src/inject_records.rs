//! Damage to the records that a XenStore service keeps, done from outside: to those in the fabric,
//! and to the nodes in the service's own memory.
//!
//! A node in memory is found by its checksum, a random-looking number that its durable record
//! names, too: wherever it lies beside the node's generation there is a copy of the node.

use abi::{Access, Control, DomId, Frame, PAGE_SIZE, XenError};
use fabric::view::{Party, RegionKind};
use fabric::{Part, SharedMemory};

use crate::regions::Regions;

/// Copies of one node that are damaged at most: snapshots of transactions hold some of them, and
/// what was freed is still there.
const COPIES_MAX: usize = 32;
/// How far the parts of a node lie from its checksum at most: the node itself is no larger.
const NODE_LEN: usize = 136;
/// Longest content searched for: a longer one does not lie in the node itself.
const INLINE_MAX: usize = 54;

/// The durable store's layout (`store::persist`): headers, then slots of this size.
const SLOT_LEN: usize = 128;
const SLOTS_AT: usize = 2 * SLOT_LEN;
const HEADER_LEN: usize = 48;
const HEADER_COMMITS: usize = 24;
const HEADER_USED: usize = 40;
const SLOT_COMMIT: usize = 8;
const SLOT_PART: usize = 20;
const SLOT_KIND: usize = 24;
const SLOT_CONTENT_LEN: usize = 26;
const SLOT_CONTENT: usize = 32;
const KIND_NODE: u8 = 1;
/// In a node's content: its checksum, its generation, and where its body begins.
const NODE_SUM: usize = 0;
const NODE_GENERATION: usize = 8;
const NODE_BODY: usize = 28;

/// An area (`store::connection`): two copies of the connection's state lie at its beginning.
const AREA_LEN: usize = 4 * PAGE_SIZE;
const STATE_COPY: usize = 128;
const STATE_LEN: usize = 96;

/// Words of the control page, and of the health page, that are read again and again.
const CONTROL_LEN: usize = 56;
const HEALTH_LEN: usize = 32;

/// A kind of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A node of the store in the service's own memory.
    Node,
    /// A slot of the durable store.
    Slot,
    /// A copy of the durable store's commit header.
    Header,
    /// A copy of a connection's state.
    Area,
    /// What the orchestrator tells the service.
    Control,
    /// What the service says of itself.
    Health,
}

/// Regions of the fabric that hold the records of one service.
#[derive(Clone, Copy, Debug)]
pub struct Places<F> {
    slots: F,
    areas: F,
    control: F,
    health: F,
}

impl<F: SharedMemory + Copy> Places<Part<F>> {
    /// Those of the unit at `index`, which is a XenStore.
    pub fn of(regions: &Regions<F>, index: usize) -> Self {
        let find = |kind| regions.find(kind, Party::unit(index));
        Self {
            slots: find(RegionKind::Slots),
            areas: find(RegionKind::Areas),
            control: find(RegionKind::Control),
            health: find(RegionKind::Health),
        }
    }
}

/// A node that is looked for in a service's memory.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    sum: u64,
    generation: u64,
    body: [u8; INLINE_MAX],
    /// 0 for a body that does not lie in the node.
    body_len: usize,
    /// The random choice of the bit.
    choice: u64,
}

/// A byte of a service's memory, and the bit of it to flip.
#[derive(Clone, Copy, Debug)]
struct Target {
    page: usize,
    at: usize,
    mask: u8,
}

/// What tells whether the damage is still there.
#[derive(Clone, Copy, Debug)]
enum Trace<F> {
    /// A word of the fabric, with the damaged value.
    Word { memory: F, at: usize, value: u64 },
    /// A word of a slot: a free one holds nothing.
    Slot { slot_at: usize, at: usize, value: u64 },
    /// A node of the store, as long as its durable record says so.
    Node { slot_at: usize, sum: u64 },
}

/// Damages the records of one service.
#[derive(Debug)]
pub struct Damager<F> {
    places: Places<F>,
    last: Option<Trace<F>>,
}

impl<F: SharedMemory + Copy> Damager<F> {
    /// Nothing is damaged yet.
    pub fn new(places: Places<F>) -> Self {
        Self { places, last: None }
    }

    /// Flips one bit of a record of this kind, all chosen by `random`, which gives a number below
    /// its argument. `None`: there is none now; ask again.
    ///
    /// # Errors
    /// What Xen says to a look into the unit's memory.
    pub fn damage<C: Control>(
        &mut self,
        xen: &C,
        unit: DomId,
        frames: &[Frame],
        record: Record,
        random: &mut dyn FnMut(u64) -> u64,
    ) -> Result<Option<u64>, XenError> {
        let Places { slots, areas, control, health } = self.places;
        let mut below = |len: usize| random(len as u64) as usize;
        match record {
            Record::Node => {
                let (target, choice) = (below(usize::MAX >> 1), below(usize::MAX >> 1) as u64);
                return self.damage_node(xen, unit, frames, target, choice);
            }
            Record::Slot => {
                let first = below(self.slots_used().max(1));
                let Some(slot_at) = self.slot_from(first, false) else { return Ok(None) };
                let len = SLOT_CONTENT + self.content_len(slot_at);
                let (at, value) = flip(&slots, slot_at, below(8 * len));
                self.last = Some(Trace::Slot { slot_at, at, value });
            }
            Record::Header => {
                let at = SLOT_LEN * below(2);
                self.flip(slots, at, below(8 * HEADER_LEN));
            }
            Record::Area => {
                let count = areas.len() / AREA_LEN;
                let first = below(count);
                let area = (first..first + count).map(|area| area % count * AREA_LEN);
                // A connection that nobody has served has no state.
                let area = area.into_iter().find(|at| areas.load_u64(*at) != 0);
                let Some(area) = area else { return Ok(None) };
                let at = area + STATE_COPY * below(2);
                self.flip(areas, at, below(8 * STATE_LEN));
            }
            Record::Control => self.flip(control, 0, below(8 * CONTROL_LEN)),
            Record::Health => self.flip(health, 0, below(8 * HEALTH_LEN)),
        }
        Ok(Some(xen.now_ns()))
    }

    /// Whether what was damaged last is still there as it was left; otherwise its writer has
    /// written or dropped it.
    pub fn is_left(&self) -> bool {
        let slots = &self.places.slots;
        match self.last {
            None => false,
            Some(Trace::Word { memory, at, value }) => memory.load_u64(at) == value,
            Some(Trace::Slot { slot_at, at, value }) => {
                slots.load_u64(slot_at) != 0 && slots.load_u64(at) == value
            }
            Some(Trace::Node { slot_at, sum }) => {
                let kept = slots.load_u64(slot_at + SLOT_CONTENT + NODE_SUM);
                slots.load_u64(slot_at) != 0 && kept == sum
            }
        }
    }

    fn flip(&mut self, memory: F, from: usize, bit: usize) {
        let (at, value) = flip(&memory, from, bit);
        self.last = Some(Trace::Word { memory, at, value });
    }

    /// Looks through the whole memory in one go, some twenty milliseconds, in which nobody is
    /// served: a node that moved meanwhile would leave a copy behind that nobody reads.
    fn damage_node<C: Control>(
        &mut self,
        xen: &C,
        unit: DomId,
        frames: &[Frame],
        target: usize,
        choice: u64,
    ) -> Result<Option<u64>, XenError> {
        let first = target % self.slots_used().max(1);
        let Some(slot_at) = self.slot_from(first, true) else { return Ok(None) };
        let wanted = self.wanted(slot_at, choice);
        let mut found = heapless::Vec::new();
        for (page, frame) in frames.iter().enumerate() {
            let memory = xen.map_foreign(unit, &[*frame], Access::ReadOnly)?;
            wanted.find_in(&memory, page, &mut found);
        }
        for copy in &found {
            let memory = xen.map_foreign(unit, &[frames[copy.page]], Access::ReadWrite)?;
            let mut byte = [0];
            memory.read(copy.at, &mut byte);
            memory.write(copy.at, &[byte[0] ^ copy.mask]);
        }
        self.last = Some(Trace::Node { slot_at, sum: wanted.sum });
        Ok((!found.is_empty()).then(|| xen.now_ns()))
    }

    fn wanted(&self, slot_at: usize, choice: u64) -> Wanted {
        let slots = &self.places.slots;
        let content = slot_at + SLOT_CONTENT;
        let len = self.content_len(slot_at).saturating_sub(NODE_BODY);
        let body_len = if len <= INLINE_MAX { len } else { 0 };
        let mut body = [0; INLINE_MAX];
        slots.read(content + NODE_BODY, &mut body[..body_len]);
        let sum = slots.load_u64(content + NODE_SUM);
        let generation = slots.load_u64(content + NODE_GENERATION);
        Wanted { sum, generation, body, body_len, choice }
    }

    /// The first slot from number `first` on that holds something, or the beginning of a node.
    fn slot_from(&self, first: usize, is_node: bool) -> Option<usize> {
        let slots = &self.places.slots;
        let (used, committed) = (self.slots_used(), slots.load_u64(HEADER_COMMITS));
        let all = (first..first + used).map(|slot| SLOTS_AT + slot % used * SLOT_LEN);
        all.into_iter().find(|at| {
            let mut head = [0; SLOT_CONTENT];
            slots.read(*at, &mut head);
            let is_beginning = head[SLOT_PART..SLOT_PART + 2] == [0, 0];
            let is_wanted = !is_node
                || head[SLOT_KIND] == KIND_NODE
                    && is_beginning
                    && self.content_len(*at) > NODE_BODY;
            let is_committed = slots.load_u64(at + SLOT_COMMIT) <= committed;
            slots.load_u64(*at) != 0 && is_committed && is_wanted
        })
    }

    /// Slots ever used, as the commit header says.
    fn slots_used(&self) -> usize {
        let slots = &self.places.slots;
        let room = slots.len().saturating_sub(SLOTS_AT) / SLOT_LEN;
        (slots.load_u32(HEADER_USED) as usize).min(room)
    }

    fn content_len(&self, slot_at: usize) -> usize {
        let mut len = [0; 2];
        self.places.slots.read(slot_at + SLOT_CONTENT_LEN, &mut len);
        usize::from(u16::from_le_bytes(len)).min(SLOT_LEN - SLOT_CONTENT)
    }
}

impl Wanted {
    /// Finds the copies of the node that lie in a page of the service.
    fn find_in<M: SharedMemory>(
        &self,
        memory: &M,
        page: usize,
        found: &mut heapless::Vec<Target, COPIES_MAX>,
    ) {
        for sum_at in (0..PAGE_SIZE).step_by(8) {
            if memory.load_u64(sum_at) != self.sum {
                continue;
            }
            let target = self.target(memory, page, sum_at);
            let Some(target) = target else { continue };
            // More copies than that are of no use to anybody.
            let _ = found.push(target);
        }
    }

    /// What is to be flipped of the node whose checksum lies there; `None` if there is no node.
    fn target<M: SharedMemory>(&self, memory: &M, page: usize, sum_at: usize) -> Option<Target> {
        let bit = |begin: usize, len: usize| {
            let bit = self.choice as usize % (8 * len);
            Target { page, at: begin + bit / 8, mask: 1 << (bit % 8) }
        };
        let (from, until) = (sum_at.checked_sub(NODE_LEN), sum_at + NODE_LEN);
        let Some(from) = from.filter(|_| until <= PAGE_SIZE) else {
            // Its other parts may lie in the next page: it counts, and the checksum takes the hit.
            return Some(bit(sum_at, 8));
        };
        let is_generation = |at: usize| memory.load_u64(at) == self.generation;
        if !(from..until).step_by(8).any(is_generation) {
            return None;
        }
        let is_body = |at: &usize| {
            let mut bytes = [0; INLINE_MAX];
            memory.read(*at, &mut bytes[..self.body_len]);
            bytes[..self.body_len] == self.body[..self.body_len]
        };
        let mut bodies = (from..=until - self.body_len).filter(is_body);
        match (bodies.next(), bodies.next()) {
            (Some(at), None) if self.body_len > 0 => Some(bit(at, self.body_len)),
            // A body of its own, or that of a neighbour.
            _ => Some(bit(sum_at, 8)),
        }
    }
}

/// Flips a bit, counted from `from`; gives the word's place and what it holds now.
fn flip<M: SharedMemory>(memory: &M, from: usize, bit: usize) -> (usize, u64) {
    let at = from + bit / 64 * 8;
    let value = memory.load_u64(at) ^ 1 << (bit % 64);
    memory.store_u64(at, value);
    (at, value)
}

#[cfg(test)]
mod tests {
    use fabric::HeapMemory;
    use fake_xen::{FakeXen, Machine, SMALL_DOMAIN};

    use super::*;

    const UNIT: DomId = DomId(1);
    const SUM: u64 = 0x1234_5678_9abc_def1;
    const GENERATION: u64 = 77;
    const BODY: [u8; 10] = *b"\x05\0n\0nameva";
    /// Where the node lies in the second page of the unit.
    const NODE_AT: usize = 1024;

    struct Bench {
        slots: HeapMemory,
        areas: HeapMemory,
        control: HeapMemory,
        health: HeapMemory,
        xen: FakeXen,
        frames: [Frame; 2],
    }

    /// A store of one node in its third slot, one connection, and a unit that holds the node.
    fn bench() -> Bench {
        let memory = HeapMemory::new;
        let slots = memory(SLOTS_AT + 4 * SLOT_LEN);
        slots.store_u64(HEADER_COMMITS, 5);
        slots.store_u32(HEADER_USED, 4);
        let at = SLOTS_AT + 2 * SLOT_LEN;
        slots.store_u64(at, 99);
        slots.store_u64(at + SLOT_COMMIT, 5);
        slots.write(at + SLOT_KIND, &[KIND_NODE, 0, (NODE_BODY + BODY.len()) as u8]);
        slots.store_u64(at + SLOT_CONTENT + NODE_SUM, SUM);
        slots.store_u64(at + SLOT_CONTENT + NODE_GENERATION, GENERATION);
        slots.write(at + SLOT_CONTENT + NODE_BODY, &BODY);
        let areas = memory(2 * AREA_LEN);
        areas.store_u64(AREA_LEN, 3);
        let xen = Machine::new().domain(DomId::ORCHESTRATOR);
        xen.create_domain(UNIT, &SMALL_DOMAIN).unwrap();
        let mut frames = [Frame(0); 2];
        xen.populate(UNIT, 0, &mut frames, &mut || ()).unwrap();
        let bench =
            Bench { slots, areas, control: memory(4096), health: memory(4096), xen, frames };
        let page = bench.page();
        page.store_u64(NODE_AT, GENERATION);
        page.store_u64(NODE_AT + 16, SUM);
        page.write(NODE_AT + 26, &BODY);
        // The sum alone, as a list of sums holds it, is no node.
        page.store_u64(3000, SUM);
        drop(page);
        bench
    }

    impl Bench {
        fn page(&self) -> <FakeXen as abi::Xen>::Mapping {
            self.xen.map_foreign(UNIT, &self.frames[1..], Access::ReadWrite).unwrap()
        }

        fn damager(&self) -> Damager<&HeapMemory> {
            let Self { slots, areas, control, health, .. } = self;
            Damager::new(Places { slots, areas, control, health })
        }

        fn damage(&self, damager: &mut Damager<&HeapMemory>, record: Record, seed: u64) {
            let mut random = |bound| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8) % bound;
            let damaged = damager.damage(&self.xen, UNIT, &self.frames, record, &mut random);
            assert!(damaged.unwrap().is_some(), "{record:?} with {seed}");
        }

        /// Everything that may be damaged.
        fn bytes(&self) -> Vec<u8> {
            let mut all = Vec::new();
            let mut add = |memory: &dyn SharedMemory| {
                let mut bytes = vec![0; memory.len()];
                memory.read(0, &mut bytes);
                all.extend(bytes);
            };
            add(&self.slots);
            add(&self.areas);
            add(&self.control);
            add(&self.health);
            add(&self.page());
            all
        }
    }

    #[test]
    fn each_kind_flips_one_bit_of_its_record() {
        let slots = SLOTS_AT + 2 * SLOT_LEN;
        let areas = SLOTS_AT + 4 * SLOT_LEN;
        let control = areas + 2 * AREA_LEN;
        let node = control + 2 * 4096 + NODE_AT;
        let kinds = [
            (Record::Slot, slots..slots + SLOT_CONTENT + NODE_BODY + BODY.len()),
            (Record::Header, 0..SLOT_LEN + HEADER_LEN),
            (Record::Area, areas + AREA_LEN..areas + AREA_LEN + STATE_COPY + STATE_LEN),
            (Record::Control, control..control + CONTROL_LEN),
            (Record::Health, control + 4096..control + 4096 + HEALTH_LEN),
            (Record::Node, node + 26..node + 26 + BODY.len()),
        ];
        for (record, range) in kinds {
            for seed in 1..40 {
                let bench = bench();
                let before = bench.bytes();
                let mut damager = bench.damager();
                bench.damage(&mut damager, record, seed);
                let after = bench.bytes();
                let changed = (0..before.len()).filter(|at| before[*at] != after[*at]);
                let changed: Vec<usize> = changed.collect();
                let [at] = changed[..] else { panic!("{record:?}: {changed:?}") };
                assert!(range.contains(&at), "{record:?}: {at} is not in {range:?}");
                assert_eq!((before[at] ^ after[at]).count_ones(), 1);
            }
        }
    }

    #[test]
    fn damage_is_left_until_its_writer_comes() {
        let bench = bench();
        let mut damager = bench.damager();
        assert!(!damager.is_left());
        bench.damage(&mut damager, Record::Health, 3);
        assert!(damager.is_left());
        bench.health.fill(0, HEALTH_LEN, 1);
        assert!(!damager.is_left());
        for record in [Record::Slot, Record::Node] {
            let bench = self::bench();
            let mut damager = bench.damager();
            bench.damage(&mut damager, record, 4);
            assert!(damager.is_left(), "{record:?}");
            bench.slots.store_u64(SLOTS_AT + 2 * SLOT_LEN, 0);
            assert!(!damager.is_left(), "{record:?}");
        }
    }

    #[test]
    fn a_node_that_is_not_in_memory_is_not_damaged() {
        let bench = bench();
        bench.page().fill(0, 4096, 0);
        let mut damager = bench.damager();
        let before = bench.bytes();
        let found = damager.damage(&bench.xen, UNIT, &bench.frames, Record::Node, &mut |_| 0);
        assert_eq!(found, Ok(None));
        assert_eq!(bench.bytes(), before);
    }
}
