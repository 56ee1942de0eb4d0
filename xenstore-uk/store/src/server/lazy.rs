//! Making the nodes of a reloaded store when they are needed: the first answers after a crash do
//! not wait for all the others.

use alloc::vec::Vec;

use fabric::SharedMemory;
use wire::{HEADER_LEN, Header, Operation, text};

use crate::dir::Children;
use crate::node::{Link, Node};
use crate::path::{self, Special};
use crate::persist::{Damaged, Made, Reach, Unloaded};
use crate::server::Server;
use crate::state::State;

/// Nodes made in one step, but for what the last directory has more: some hundred microseconds,
/// well below the time after which the unit counts as hung.
const STEP_NODES: usize = 128;

/// Finding a directory takes as long as making so many nodes.
const NODES_PER_VISIT: usize = 4;

/// Levels made in one go: nearly all trees are flatter, and each level takes some hundred bytes of
/// the stack.
const STEP_LEVELS: usize = 32;

/// What remains to be made.
#[derive(Debug)]
pub(super) struct Loading {
    unloaded: Unloaded,
    /// Directories to look at in the background.
    queue: Vec<Vec<u8>>,
}

impl Loading {
    /// Begins with the root.
    pub fn new(unloaded: Unloaded) -> Option<Self> {
        (unloaded.left > 0).then(|| Self { unloaded, queue: Vec::from([b"/".to_vec()]) })
    }
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// Makes all nodes that a reload left for later. Nothing changes that can be seen.
    pub fn finish_loading(&mut self) {
        while self.loading.is_some() {
            self.load_step();
        }
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
            // What a transaction looks at is made in all trees, its own among them.
            O::Read
            | O::Directory
            | O::DirectoryPart
            | O::GetPermissions
            | O::Write
            | O::MakeDirectory
            | O::SetPermissions => {
                let domid = self.state.client(client).map_or(0, |client| client.domid);
                let Some((sent, _)) = text::split(&self.request[HEADER_LEN..len]) else {
                    return true;
                };
                let mut buffer = path::Buffer::new();
                let name = path::resolve(sent, domid, Special::Allowed, usize::MAX, &mut buffer);
                // Special names are no nodes.
                let Some(name) = name.ok().filter(|name| !name.is_special()) else { return true };
                let path = name.path.to_vec();
                self.load_path(&path, &mut Reach { nodes: 0, levels: 1 })
            }
            // Its end touches what its requests have looked at.
            O::TransactionStart | O::TransactionEnd => true,
            O::Watch
            | O::Unwatch
            | O::ResetWatches
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

    /// Makes the nodes on the way to a path, and below the last one what is in `reach`. Answers
    /// false if a directory on the way takes further calls.
    fn load_path(&mut self, path: &[u8], reach: &mut Reach) -> bool {
        let mut is_made = true;
        self.mutating.set(true);
        while let Some(loading) = &mut self.loading {
            let found = self.state.tree.seek(path);
            let (record, len) = (found.node.record, found.path.len());
            let unloaded = &mut loading.unloaded;
            let children = match self.slots.load_children(unloaded, record, reach) {
                Ok(Made::All(children)) => children,
                Ok(Made::Nothing) => break,
                Ok(Made::Part) => {
                    is_made = false;
                    break;
                }
                Err(Damaged { record }) => {
                    // The next life reads every slot, and says what is lost.
                    self.slots.distrust_index();
                    panic!("the slots of record {record} are damaged");
                }
            };
            self.state.attach(&path[..len], record, &children);
            self.end_loading();
        }
        self.mutating.set(false);
        is_made
    }

    /// Makes some nodes.
    pub(super) fn load_step(&mut self) {
        let mut reach = Reach { nodes: STEP_NODES, levels: STEP_LEVELS };
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
            let Some(found) = self.state.tree.get(&path) else { continue };
            let has_children =
                |child: &Node| child.children.is_some() || loading.unloaded.has(child.record);
            for child in Children::new(&found.node.children).filter(|child| has_children(child)) {
                let mut below = path.clone();
                path::push(&mut below, child.name());
                loading.queue.push(below);
            }
        }
    }

    fn end_loading(&mut self) {
        if self.loading.as_ref().is_some_and(|loading| loading.unloaded.left == 0) {
            self.loading = None;
        }
    }
}

impl State {
    /// Hangs the children of a reloaded node into every tree that has it: the live one, and those
    /// of the transactions. A directory is unloaded in all of them or in none, as nothing changes
    /// below it before it is made.
    fn attach(&mut self, path: &[u8], record: u32, children: &Link) {
        self.tree.attach(path, record, children);
        for client in self.clients.iter_mut().flatten() {
            client.transactions.iter_mut().for_each(|open| open.attach(path, record, children));
        }
    }
}
