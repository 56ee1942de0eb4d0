//! Making the nodes and watches of a reloaded store when they are needed: the first answers after a
//! crash do not wait for all the others.

use alloc::rc::Rc;
use alloc::vec::Vec;

use fabric::SharedMemory;
use wire::{HEADER_LEN, Header, Operation, text};

use crate::dir::Children;
use crate::node::{Node, child_hash};
use crate::ops::decode_watch;
use crate::path::{self, Special};
use crate::persist::{Damaged, End, Made, Reach, SlotStore, Unloaded};
use crate::pulse;
use crate::server::Server;
use crate::state::State;
use crate::tree::Tree;
use crate::watch::{Sketch, hashes_above, path_hash};

/// Nodes made in one step, but for what the last directory has more: some hundred microseconds,
/// well below the time after which the unit counts as hung.
const STEP_NODES: usize = 128;

/// Finding a directory takes as long as making so many nodes.
const NODES_PER_VISIT: usize = 4;

/// Levels made in one go: nearly all trees are flatter, and each level takes some hundred bytes of
/// the stack.
const STEP_LEVELS: usize = 32;

/// Directories below a removed node that are made at once, each of them with at most a few dozen
/// children in all likelihood: below [`STEP_NODES`].
const FEW_DIRECTORIES: usize = 8;

/// Watches made in one step: as long as its nodes take.
const STEP_WATCHES: usize = 64;

/// What a start leaves for later.
#[derive(Debug)]
pub(crate) struct Later {
    /// Nodes.
    pub nodes: Unloaded,
    /// Watches, accounted already: record number, and what is known of it.
    pub watches: Vec<(u32, Sketch)>,
}

/// What remains to be made.
#[derive(Debug)]
pub(super) struct Loading {
    unloaded: Unloaded,
    /// Directories to look at in the background.
    queue: Vec<Vec<u8>>,
    watches: Vec<(u32, Sketch)>,
}

impl Loading {
    /// Begins with the root.
    pub fn new(later: Later) -> Option<Self> {
        let Later { nodes: unloaded, watches } = later;
        let queue = Vec::from([b"/".to_vec()]);
        Some(Self { unloaded, queue, watches }).filter(|loading| !loading.is_done())
    }

    fn is_done(&self) -> bool {
        self.unloaded.left == 0 && self.watches.is_empty()
    }
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// Makes all nodes that a reload left for later. Nothing changes that can be seen.
    pub fn finish_loading(&mut self) {
        while self.loading.is_some() {
            self.load_step();
            self.slots.pulse.worked(pulse::LONG_STEP);
        }
    }

    /// Makes a bounded piece of what a reload has left for later; false: there was nothing left.
    pub fn load_piece(&mut self) -> bool {
        let is_loading = self.loading.is_some();
        if is_loading {
            self.load_step();
        }
        is_loading
    }

    /// Makes what the request in `request` will look at, or a bounded piece of it: then it answers
    /// false, and wants to be asked again. A large store takes longer than a hang may.
    pub(super) fn is_loaded_for(&mut self, client: u16, header: &Header, len: usize) -> bool {
        if self.loading.is_some() && !self.load_few_for(client, header, len) {
            self.load_step();
            return self.loading.is_none();
        }
        true
    }

    /// Makes all that the request in `request` will look at.
    pub(super) fn load_for(&mut self, client: u16, header: &Header, len: usize) {
        if !self.load_few_for(client, header, len) {
            self.finish_loading();
        }
    }

    /// Makes what the request in `request` will look at, unless that is much.
    fn load_few_for(&mut self, client: u16, header: &Header, len: usize) -> bool {
        use Operation as O;
        if self.loading.is_none() {
            return true;
        }
        match header.operation {
            O::Read
            | O::Directory
            | O::DirectoryPart
            | O::GetPermissions
            | O::Write
            | O::MakeDirectory
            | O::SetPermissions
            | O::Remove
            | O::Watch
            | O::Unwatch => self.load_named(client, header.operation, len),
            // Its end touches what its requests have looked at, and any watch. One that a crash
            // has ended touches nothing.
            O::TransactionEnd => self.has_all_watches() || self.is_lost(client, header),
            O::ResetWatches => self.has_all_watches(),
            O::TransactionStart
            | O::GetDomainPath
            | O::IsDomainIntroduced
            | O::GetFeature
            | O::SetFeature
            | O::GetQuota
            | O::SetQuota
            | O::Resume
            | O::SetTarget => true,
            _ => false,
        }
    }

    /// Makes what a request looks at that names a node, unless that is much. What a transaction
    /// looks at is made in all trees, its own among them.
    fn load_named(&mut self, client: u16, operation: Operation, len: usize) -> bool {
        use Operation as O;
        let domid = self.state.client(client).map_or(0, |client| client.domid);
        let Some((sent, _)) = text::split(&self.request[HEADER_LEN..len]) else {
            return true;
        };
        let mut buffer = path::Buffer::new();
        let name = path::resolve(sent, domid, Special::Allowed, usize::MAX, &mut buffer);
        let Ok(name) = name else { return true };
        if matches!(operation, O::Watch | O::Unwatch) {
            let hash = path_hash(name.path);
            self.make_watches(usize::MAX, |watch| watch.hash == hash);
            return true;
        }
        // Special names are no nodes.
        if name.is_special() {
            return true;
        }
        let path = name.path.to_vec();
        match operation {
            O::Write | O::MakeDirectory | O::SetPermissions => {
                self.make_watches_above(&path);
                self.load_way(&path)
            }
            O::Read | O::GetPermissions => self.load_way(&path),
            O::Remove => {
                let is_made = self.load_below(&path);
                if is_made {
                    self.make_watches_below(&path);
                }
                is_made
            }
            _ => self.load_path(&path, &mut Reach::short()),
        }
    }

    /// Whether the transaction of a request is one that a crash has ended.
    fn is_lost(&self, client: u16, header: &Header) -> bool {
        let client = self.state.client(client);
        let mut open = client.into_iter().flat_map(|client| &client.transactions);
        open.find(|open| open.id == header.transaction).is_none_or(|open| open.lost)
    }

    fn has_all_watches(&self) -> bool {
        self.loading.as_ref().is_none_or(|loading| loading.watches.is_empty())
    }

    /// Makes the watches that a change of this node may fire.
    fn make_watches_above(&mut self, path: &[u8]) {
        if !self.has_all_watches() {
            let mut hashes: Vec<u64> = hashes_above(path).collect();
            hashes.sort_unstable();
            self.make_watches(usize::MAX, |watch| hashes.binary_search(&watch.hash).is_ok());
        }
    }

    /// Makes the watches that the removal of this node may fire: those on it, above it, and on the
    /// nodes below it, which are made.
    fn make_watches_below(&mut self, path: &[u8]) {
        if self.has_all_watches() {
            return;
        }
        let mut hashes: Vec<u64> = hashes_above(path).collect();
        let mut parents = Vec::new();
        parents.extend(self.state.tree.get(path).map(|found| (found.node, found.hash)));
        while let Some((parent, hash)) = parents.pop() {
            for child in Children::new(&parent.children) {
                let hash = child_hash(hash, child.name());
                hashes.push(hash);
                if child.children.is_some() {
                    parents.push((child, hash));
                }
            }
        }
        hashes.sort_unstable();
        self.make_watches(usize::MAX, |watch| hashes.binary_search(&watch.hash).is_ok());
    }

    /// Makes all watches: something may change that is not in any request.
    pub(super) fn make_all_watches(&mut self) {
        if !self.has_all_watches() {
            self.make_watches(usize::MAX, |_| true);
        }
    }

    /// Makes at most `count` of the watches that are wanted.
    fn make_watches(&mut self, count: usize, is_wanted: impl Fn(&Sketch) -> bool) {
        let Some(loading) = &mut self.loading else { return };
        let outer = self.mutating.replace(true);
        let wanted = loading.watches.extract_if(.., |(_, watch)| is_wanted(watch)).take(count);
        let mut content = Vec::new();
        for (record, _) in wanted {
            content.clear();
            let found = self.slots.read_record(record, &mut content);
            match found.and_then(|()| decode_watch(&content, record)) {
                Some(watch) => self.state.register_watch(Rc::new(watch)),
                None => give_up(&mut self.slots, record),
            }
        }
        self.end_loading();
        self.mutating.set(outer);
    }

    /// Makes the nodes on the way to a path, and below the last one what is in `reach`. Answers
    /// false if a directory on the way takes further calls.
    fn load_path(&mut self, path: &[u8], reach: &mut Reach) -> bool {
        if !self.load_way(path) {
            return false;
        }
        let node = self.state.tree.get(path).map(|found| found.node.record);
        node.is_none_or(|record| self.load_directory(path, record, reach))
    }

    /// Makes the nodes on the way to a path. Answers false if a directory takes further calls.
    fn load_way(&mut self, path: &[u8]) -> bool {
        while let Some(loading) = &mut self.loading {
            let found = self.state.tree.seek(path);
            if found.is_whole() {
                return true;
            }
            let (record, len) = (found.node.record, found.path.len());
            self.slots.pulse.worked(pulse::change(path));
            let outer = self.mutating.replace(true);
            let (below, end) = self.slots.load_way(&mut loading.unloaded, record, found.missing);
            if let Some(below) = &below {
                self.state.each_tree(|tree| tree.attach_child(&path[..len], record, below));
            }
            if let Err(Damaged { record }) = end {
                give_up(&mut self.slots, record);
            }
            self.mutating.set(outer);
            match (end, below) {
                (Ok(End::Whole | End::Missing), _) => return true,
                // The directory where it ends is in the tree now.
                (_, Some(_)) => {}
                (_, None) => {
                    if !self.load_directory(&path[..len], record, &mut Reach::short()) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Makes the children of the node at a path, and what is below them in `reach`. Answers false
    /// if that takes further calls.
    fn load_directory(&mut self, path: &[u8], record: u32, reach: &mut Reach) -> bool {
        let Some(loading) = &mut self.loading else { return true };
        let outer = self.mutating.replace(true);
        let made = self.slots.load_children(&mut loading.unloaded, record, reach);
        match &made {
            Ok(Made::All(children)) => {
                self.state.each_tree(|tree| tree.attach(path, record, children));
                self.end_loading();
            }
            Ok(_) => {}
            Err(Damaged { record }) => give_up(&mut self.slots, *record),
        }
        self.mutating.set(outer);
        !matches!(made, Ok(Made::Part))
    }

    /// Makes the nodes on the way to a path and all below it, unless these are many.
    fn load_below(&mut self, path: &[u8]) -> bool {
        let mut queue = Vec::from([path.to_vec()]);
        let mut reach = Reach::of(STEP_NODES, STEP_LEVELS);
        for _ in 0..FEW_DIRECTORIES {
            let Some(at) = queue.pop() else { return true };
            if !self.load_way(&at) {
                return false;
            }
            let Some(record) = self.state.tree.get(&at).map(|found| found.node.record) else {
                continue;
            };
            // Where nothing is made yet, all is made in one go, if it is not too much.
            reach.is_cut = !self.loading.as_ref().is_some_and(|left| left.unloaded.has(record));
            if !self.load_directory(&at, record, &mut reach) {
                return false;
            }
            if reach.is_cut {
                self.directories_in(&at, &mut queue);
            }
        }
        queue.is_empty()
    }

    /// Appends the children of a node that have children of their own.
    fn directories_in(&self, path: &[u8], into: &mut Vec<Vec<u8>>) {
        let Some(loading) = &self.loading else { return };
        let Some(found) = self.state.tree.get(path) else { return };
        let has_children =
            |child: &Node| child.children.is_some() || loading.unloaded.has(child.record);
        for child in Children::new(&found.node.children).filter(|child| has_children(child)) {
            let mut below = path.to_vec();
            path::push(&mut below, child.name());
            into.push(below);
        }
    }

    /// Makes some nodes.
    pub(super) fn load_step(&mut self) {
        if !self.has_all_watches() {
            return self.make_watches(STEP_WATCHES, |_| true);
        }
        let mut reach = Reach::of(STEP_NODES, STEP_LEVELS);
        while reach.nodes > 0 {
            reach.nodes = reach.nodes.saturating_sub(NODES_PER_VISIT);
            let Some(loading) = &mut self.loading else { return };
            let Some(path) = loading.queue.pop() else {
                // Every directory that the root reaches has been looked at.
                self.loading = None;
                return;
            };
            let is_made = self.load_path(&path, &mut reach);
            let Some(loading) = &mut self.loading else { return };
            if !is_made {
                return loading.queue.push(path);
            }
            let mut queue = core::mem::take(&mut loading.queue);
            self.directories_in(&path, &mut queue);
            if let Some(loading) = &mut self.loading {
                loading.queue = queue;
            }
        }
    }

    fn end_loading(&mut self) {
        if self.loading.as_ref().is_some_and(Loading::is_done) {
            self.loading = None;
        }
    }
}

/// Ends this life: the next one reads every slot, and says what is lost.
fn give_up<M: SharedMemory>(slots: &mut SlotStore<M>, record: u32) -> ! {
    slots.distrust_index();
    panic!("the slots of record {record} are damaged");
}

impl State {
    /// Every tree that a reloaded node belongs into: the live one, and those of the transactions. A
    /// node is made once, for all of them, before any of them changes it.
    fn each_tree(&mut self, mut change: impl FnMut(&mut Tree)) {
        change(&mut self.tree);
        let clients = self.clients.iter_mut().flatten();
        for open in clients.flat_map(|client| &mut client.transactions) {
            change(&mut open.base);
            change(&mut open.tree);
        }
    }
}
