//! Transactions: a snapshot, what was read of it, what was changed in it.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use wire::Permission;

use crate::effects::Effects;
use crate::pulse;
use crate::tree::Tree;
use crate::watch::Match;

/// What a transaction saw of one path when it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Generation of value and permissions; `None` if there was no node.
    pub generation: Option<u64>,
    /// Generation of the list of children, if the transaction depends on it.
    pub children: Option<u64>,
}

/// A path that the transaction changed.
#[derive(Clone, Debug)]
pub struct Change {
    /// Place in the order of first changes, for the order of events.
    pub order: u32,
    /// Which watches hear of it, if any.
    pub fires: Option<Match>,
    /// Permissions before, for watchers that lost their right to see it; `None` if it is new.
    pub before: Option<Box<[Permission]>>,
}

/// A transaction.
#[derive(Debug)]
pub struct Transaction {
    /// Its number on its connection.
    pub id: u32,
    /// What the caller sees and changes.
    pub tree: Tree,
    /// The tree when it began.
    pub(crate) base: Tree,
    /// What it depends on.
    pub marks: BTreeMap<Box<[u8]>, Mark>,
    /// What it changed.
    pub changes: BTreeMap<Box<[u8]>, Change>,
    /// Nodes more or fewer per owner.
    pub nodes: BTreeMap<u16, i64>,
    /// Whether it can only end in EAGAIN: its snapshot was lost with the server's memory.
    pub lost: bool,
    /// Whether a quota was hit in the middle of a change.
    pub failed: bool,
    /// Generation for the next change inside.
    generation: u64,
    touched: u32,
    bytes: usize,
}

impl Transaction {
    /// Begins on a snapshot of `tree`.
    pub fn new(id: u32, tree: &Tree, generation: u64, lost: bool) -> Self {
        Self {
            id,
            tree: tree.clone(),
            base: tree.clone(),
            marks: BTreeMap::new(),
            changes: BTreeMap::new(),
            nodes: BTreeMap::new(),
            lost,
            failed: false,
            generation,
            touched: 0,
            bytes: 0,
        }
    }

    /// Notes that the outcome depends on a path's value and permissions, or on its absence: then
    /// also on how far the path exists, because that decides which error is told to whom.
    pub fn depend(&mut self, path: &[u8]) {
        self.mark(path, false);
        let found = self.tree.seek(path);
        if !found.is_whole() {
            let existing = found.path.len();
            let missing = path.len() - found.missing.len();
            let first = found.missing.iter().position(|byte| *byte == b'/');
            let until = first.map_or(path.len(), |len| missing + len);
            self.mark(&path[..existing], false);
            self.mark(&path[..until], false);
        }
    }

    /// Notes that the outcome depends on a path's children, too.
    pub fn depend_on_children(&mut self, path: &[u8]) {
        self.depend(path);
        self.mark(path, true);
    }

    fn mark(&mut self, path: &[u8], children: bool) {
        if let Some(mark) = self.marks.get(path)
            && (mark.children.is_some() || !children)
        {
            return;
        }
        let base = self.base.get(path);
        let mark = Mark {
            generation: base.map(|found| found.node.generation()),
            children: base.filter(|_| children).map(|found| found.node.children_generation()),
        };
        if self.marks.insert(path.into(), mark).is_none() {
            self.bytes += PATH_OVERHEAD + path.len();
            self.touched += u32::from(!self.changes.contains_key(path));
        }
    }

    /// Number of paths it has touched: what the quota `transaction-nodes` limits.
    pub fn touched(&self) -> u32 {
        self.touched
    }

    /// Bytes of memory that it takes beside the live tree: what it is accounted with.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts bytes of values written and overwritten.
    pub fn count_bytes(&mut self, more: usize, fewer: usize) {
        self.bytes = (self.bytes + more).saturating_sub(fewer);
    }

    /// Notes a change to a path. A change that concerns a subtree outlives one that does not.
    pub fn change(&mut self, path: &[u8], fires: Option<Match>, before: Option<&[Permission]>) {
        let order = self.changes.len() as u32;
        match self.changes.get_mut(path) {
            Some(change) => {
                if change.fires.is_none() || fires == Some(Match::Subtree) {
                    change.fires = fires.or(change.fires);
                }
            }
            None => {
                let before = before.map(Box::from);
                self.changes.insert(path.into(), Change { order, fires, before });
                self.bytes += PATH_OVERHEAD + path.len();
                self.touched += u32::from(!self.marks.contains_key(path));
            }
        }
    }

    /// A generation for a change inside the transaction.
    pub fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Counts nodes of an owner.
    pub fn count(&mut self, owner: u16, nodes: i64) {
        *self.nodes.entry(owner).or_default() += nodes;
    }

    /// The change in the number of an owner's nodes.
    pub fn counted(&self, owner: u16) -> i64 {
        self.nodes.get(&owner).copied().unwrap_or(0)
    }

    /// The path that changed since the transaction began, if one that it depends on did.
    pub(crate) fn conflict(&self, now: &Tree, fx: &mut dyn Effects) -> Option<&[u8]> {
        let conflicting = self.marks.iter().find(|(path, mark)| {
            fx.worked(pulse::look(path));
            let found = now.get(path);
            let generation = found.map(|found| found.node.generation());
            let children = found.map(|found| found.node.children_generation());
            generation != mark.generation || (mark.children.is_some() && children != mark.children)
        });
        conflicting.map(|(path, _)| &**path)
    }

    /// Its changes alone; the snapshots go.
    pub fn into_changes(self) -> BTreeMap<Box<[u8]>, Change> {
        self.changes
    }
}

/// What a touched path is accounted with beside its bytes.
const PATH_OVERHEAD: usize = 64;
