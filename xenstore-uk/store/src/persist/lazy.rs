//! Nodes that a reload has found and not yet made: their records are counted and known to hang
//! together; the nodes themselves are made when they are needed, or when there is time.

use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::vec::Vec;
use fabric::SharedMemory;

use crate::dir;
use crate::node::{Link, Node, NodeParts};
use crate::path::components;
use crate::persist::index::tag;
use crate::persist::reload::{half, quarter, word};
use crate::persist::slots::{NONE, SlotStore, slot_at, slot_sum};
use crate::persist::{CONTENT_AT, CONTENT_LEN, SLOT_LEN};
use crate::state::NODE_HEAD_LEN;

/// The directories whose children have not been made.
#[derive(Debug)]
pub(crate) struct Unloaded {
    /// What is known of each node, by its record.
    kin: Vec<Kin>,
    /// Whether the names' tags are.
    is_tagged: bool,
    /// Nodes that were made although their parent's other children were not.
    made: BTreeSet<u32>,
    /// Directories left.
    pub left: u32,
    /// The commit that was the last one at the reload.
    pub since: u64,
    /// Wide directories that were begun.
    pub wide: Vec<Wide>,
}

/// Where a node hangs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kin {
    /// Its first child; [`NONE`] once they are made.
    pub first: u32,
    /// The next child of the same parent.
    pub next: u32,
    /// Tells most names of a directory apart.
    pub tag: u8,
}

impl Kin {
    /// That of a record that is no node.
    pub const NONE: Self = Self { first: NONE, next: NONE, tag: 0 };
}

/// A directory of many children, some of which are made.
#[derive(Debug)]
pub(crate) struct Wide {
    record: u32,
    /// The next child to be made.
    next: u32,
    children: Link,
}

/// Children up to which a directory is made in one go. More would take longer than a hang may.
const WIDE: usize = 256;

/// Children of a wide directory made in one go: below a hundred microseconds.
const PIECE: usize = 128;

/// What came of making a directory.
#[derive(Debug)]
pub(crate) enum Made {
    /// Its children were made before, or there are none.
    Nothing,
    /// Some children; the others take further calls.
    Part,
    /// All its children.
    All(Link),
}

/// Why a way of names ends where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It is made to its end.
    Whole,
    /// There is no further node that is not made.
    Missing,
    /// That cannot be told before all children of the last node are made.
    Unknown,
}

/// What came of looking for a child.
#[derive(Debug)]
enum Sought {
    /// Its node, which is made from now on.
    Found(Rc<Node>),
    /// There is none of this name that is not made.
    Nothing,
    /// That cannot be told before all children are made.
    Unknown,
}

impl Unloaded {
    /// Nothing is made, and the names' tags are not known.
    pub fn new(kin: Vec<Kin>, left: u32, since: u64) -> Self {
        let (is_tagged, made, wide) = (false, BTreeSet::new(), Vec::new());
        Self { kin, is_tagged, made, left, since, wide }
    }

    /// As [`Self::new`], and the names' tags are known.
    pub fn tagged(kin: Vec<Kin>, left: u32, since: u64) -> Self {
        Self { is_tagged: true, ..Self::new(kin, left, since) }
    }

    fn of(&self, record: u32) -> Kin {
        self.kin.get(record as usize).copied().unwrap_or(Kin::NONE)
    }

    /// Whether the children of a node have not been made.
    pub fn has(&self, record: u32) -> bool {
        self.of(record).first != NONE
    }

    /// The node `first` and those after it that have the same parent.
    fn siblings(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        let following = |record: &u32| Some(self.of(*record).next);
        core::iter::successors(Some(first), following).take_while(|record| *record != NONE)
    }

    /// Whether a node has so many children that they are made piece by piece.
    fn is_wide(&self, record: u32) -> bool {
        self.siblings(self.of(record).first).nth(WIDE).is_some()
    }

    /// Notes that the children of a node are made from now on.
    fn take(&mut self, record: u32) {
        self.kin[record as usize].first = NONE;
        self.left -= 1;
    }
}

/// How much is made in one go.
#[derive(Debug)]
pub(crate) struct Reach {
    /// Nodes still to be made; the last directory may take more.
    pub nodes: usize,
    /// Levels that may still be descended.
    pub levels: usize,
    /// Something below was left out: it was too much, or some of it was there already.
    pub is_cut: bool,
}

impl Reach {
    /// The children of one node, and nothing below them.
    pub fn short() -> Self {
        Self::of(0, 1)
    }

    /// So many nodes, as many levels deep.
    pub fn of(nodes: usize, levels: usize) -> Self {
        Self { nodes, levels, is_cut: false }
    }
}

impl<M: SharedMemory> SlotStore<M> {
    /// Makes the children of a node, and what is below them as far as `reach` allows. What is not
    /// reached stays unloaded.
    ///
    /// # Errors
    /// A record whose slots are damaged.
    pub(crate) fn load_children(
        &self,
        unloaded: &mut Unloaded,
        record: u32,
        reach: &mut Reach,
    ) -> Result<Made, Damaged> {
        let first = unloaded.of(record).first;
        if first == NONE {
            return Ok(Made::Nothing);
        }
        if unloaded.is_wide(record) {
            reach.nodes = reach.nodes.saturating_sub(PIECE);
            return self.load_piece(unloaded, record, first);
        }
        unloaded.take(record);
        let missing = |record: &u32| !unloaded.made.contains(record);
        let count = unloaded.siblings(first).filter(missing).count();
        reach.nodes = reach.nodes.saturating_sub(count);
        reach.levels -= 1;
        let mut nodes: Vec<Rc<Node>> = Vec::with_capacity(count);
        let mut child = first;
        while child != NONE {
            let record = child;
            child = unloaded.of(child).next;
            if unloaded.made.contains(&record) {
                reach.is_cut = true;
                continue;
            }
            let mut node = self.load_node(record, unloaded.since).ok_or(Damaged { record })?;
            if reach.nodes == 0 || reach.levels == 0 {
                reach.is_cut |= unloaded.has(record);
            } else {
                match self.load_children(unloaded, record, reach)? {
                    Made::All(below) => {
                        Rc::get_mut(&mut node).expect("nobody shares it").children = below;
                    }
                    Made::Part => reach.is_cut = true,
                    Made::Nothing => {}
                }
            }
            nodes.push(node);
        }
        reach.levels += 1;
        nodes.sort_unstable_by(|a, b| a.compare_names(b));
        let (treap, _) = dir::build(nodes.into_iter(), &mut Vec::new());
        Ok(Made::All(treap))
    }

    /// Makes the child of this name, and no other one.
    ///
    /// # Errors
    /// A record whose slots are damaged.
    fn load_child(
        &self,
        unloaded: &mut Unloaded,
        parent: u32,
        name: &[u8],
    ) -> Result<Sought, Damaged> {
        let first = unloaded.of(parent).first;
        if first == NONE {
            return Ok(Sought::Nothing);
        }
        // Of one that is being made piece by piece nobody knows which pieces there are.
        if !unloaded.is_tagged || unloaded.wide.iter().any(|wide| wide.record == parent) {
            return Ok(Sought::Unknown);
        }
        let tag = tag(name);
        let may_be =
            |record: &u32| unloaded.of(*record).tag == tag && !unloaded.made.contains(record);
        let found = unloaded.siblings(first).filter(may_be).find_map(|record| {
            let node = self.load_node(record, unloaded.since).ok_or(Damaged { record });
            node.map(|node| (node.name() == name).then_some((record, node))).transpose()
        });
        let Some((record, node)) = found.transpose()? else { return Ok(Sought::Nothing) };
        unloaded.made.insert(record);
        Ok(Sought::Found(node))
    }

    /// Makes the nodes below a record that these names lead to, as far as that can be told: the
    /// first of them, with the next one below it and so on, and why the way ends there.
    pub(crate) fn load_way(
        &mut self,
        unloaded: &mut Unloaded,
        record: u32,
        names: &[u8],
    ) -> (Link, Result<End, Damaged>) {
        let mut way: Vec<Rc<Node>> = Vec::new();
        let mut at = record;
        let mut end = Ok(End::Whole);
        for name in components(names) {
            self.pulse.worked(1);
            match self.load_child(unloaded, at, name) {
                Ok(Sought::Found(child)) => {
                    at = child.record;
                    way.push(child);
                    continue;
                }
                Ok(Sought::Nothing) => end = Ok(End::Missing),
                Ok(Sought::Unknown) => end = Ok(End::Unknown),
                Err(damaged) => end = Err(damaged),
            }
            break;
        }
        let below = way.into_iter().rev().reduce(|below, mut node| {
            Rc::get_mut(&mut node).expect("nobody shares it").children = Some(below);
            node
        });
        (below, end)
    }

    /// Makes some children of a wide directory.
    fn load_piece(
        &self,
        unloaded: &mut Unloaded,
        record: u32,
        first: u32,
    ) -> Result<Made, Damaged> {
        let begun = unloaded.wide.iter().position(|wide| wide.record == record);
        let mut wide = match begun {
            Some(place) => unloaded.wide.swap_remove(place),
            None => Wide { record, next: first, children: None },
        };
        for _ in 0..PIECE {
            if wide.next == NONE {
                break;
            }
            let record = wide.next;
            wide.next = unloaded.of(record).next;
            if unloaded.made.contains(&record) {
                continue;
            }
            let node = self.load_node(record, unloaded.since).ok_or(Damaged { record })?;
            // No two children have one name; of damage that no checksum saw, one of them remains.
            let _ = dir::insert(&mut wide.children, node);
        }
        if wide.next != NONE {
            unloaded.wide.push(wide);
            return Ok(Made::Part);
        }
        unloaded.take(record);
        Ok(Made::All(wide.children))
    }

    /// Makes the node of a record; `None` if its slots are damaged.
    pub(super) fn load_node(&self, record: u32, since: u64) -> Link {
        let first = self.chains.get(record as usize)?.first;
        let mut bytes = [0; SLOT_LEN];
        if first != NONE && self.next[first as usize] == NONE {
            let (len, parts) = self.read_slot(first, record, 0, &mut bytes)?;
            let content = &bytes[CONTENT_AT..CONTENT_AT + len];
            return node(record, content, since).filter(|_| parts == 1);
        }
        let mut content = Vec::new();
        self.read_record(record, &mut content)?;
        node(record, &content, since)
    }

    /// Reads the content of a record; `None` if a slot of it is damaged or none of its.
    pub(crate) fn read_record(&self, record: u32, content: &mut Vec<u8>) -> Option<()> {
        let mut slot = self.chains.get(record as usize)?.first;
        let mut bytes = [0; SLOT_LEN];
        let (mut part, mut parts) = (0, 0);
        // As a slot is the part that its number says, a chain that turns in a circle ends.
        while slot != NONE {
            let (len, wanted) = self.read_slot(slot, record, part, &mut bytes)?;
            content.extend_from_slice(&bytes[CONTENT_AT..CONTENT_AT + len]);
            (part, parts) = (part + 1, wanted);
            slot = self.next[slot as usize];
        }
        (part > 0 && part == parts).then_some(())
    }

    /// Reads the slot that holds this part of a record: bytes of content, and parts in all. `None`
    /// if it is damaged, or holds something else.
    fn read_slot(
        &self,
        slot: u32,
        record: u32,
        part: u16,
        bytes: &mut [u8; SLOT_LEN],
    ) -> Option<(usize, u16)> {
        self.memory.read(slot_at(slot), bytes);
        let is_intact = word(bytes, 0) == slot_sum(self.key, bytes);
        let is_it = (half(bytes, 16), quarter(bytes, 20)) == (record, part);
        let len = usize::from(quarter(bytes, 26)).min(CONTENT_LEN);
        (is_intact && is_it && word(bytes, 8) <= self.committed).then(|| (len, quarter(bytes, 22)))
    }
}

/// A record whose slots are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged {
    /// Its number.
    pub record: u32,
}

/// A node from the content of its record.
#[inline]
fn node(record: u32, content: &[u8], since: u64) -> Link {
    let (head, body) = content.split_first_chunk::<NODE_HEAD_LEN>()?;
    let parts = NodeParts {
        body,
        name_len: quarter(head, 20),
        permissions: quarter(head, 22),
        sum: word(head, 0),
        generation: word(head, 8),
        // The list of children is not kept: it counts as changed by the last commit.
        children_generation: since,
        record,
        parent: half(head, 16),
        priority: half(head, 24),
    };
    Some(Rc::new(Node::from_parts(&parts)?))
}
