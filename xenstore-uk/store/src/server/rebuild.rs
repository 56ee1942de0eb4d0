//! Makes events again that found no room in a connection's queue.
//!
//! The generations of the tree tell what changed since the first lost event: each watch fires for
//! its own path and for each node below it that was changed, or gained or lost children, since.
//! So a client learns of every change, though not of each one apart.

use alloc::rc::Rc;
use alloc::vec::Vec;
use fabric::SharedMemory;

use crate::connection::{Area, Rebuild};
use crate::server::Server;
use crate::server::outbox::Outbox;
use crate::tree::Descend;
use crate::watch::{Match, Watch, concerns_path};

/// Nodes looked at per step: some ten microseconds.
const STEP_NODES: usize = 64;

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// One step for a connection that lost events. Answers whether there is more to do at once.
    pub(super) fn rebuild_step(&mut self, client: u16) -> bool {
        let key = self.slots.key();
        let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) else {
            return false;
        };
        if connection.state.lost_since == 0 || !connection.has_room_for_rebuild() {
            return false;
        }
        if self.loading.is_some() {
            // It looks at whole subtrees. To make them in one go could look like a hang.
            self.load_step();
            return true;
        }
        let since = connection.state.lost_since;
        let mut work = connection.rebuild.take().unwrap_or(Rebuild { since, ..Rebuild::default() });
        let watch = self.state.client(client).and_then(|found| match &work.cursor {
            Some(_) => found.watches.get(&work.watch),
            None => found.watches.range(work.watch + 1..).next().map(|(_, watch)| watch),
        });
        let Some(watch) = watch.cloned() else {
            let is_done = work.cursor.is_none();
            work.cursor = None;
            if is_done {
                connection.state.lost_since = 0;
                connection.save(&Area::new(&self.areas, client, key));
                return connection.has_events();
            }
            connection.rebuild = Some(work);
            return true;
        };
        let fired = self.changed_below(&watch, &mut work);
        if let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) {
            connection.rebuild = Some(work);
        }
        for path in fired {
            self.deliver_again(client, &watch, &path);
        }
        true
    }

    /// Paths that a watch fires for, in the next few nodes of the tree.
    fn changed_below(&self, watch: &Rc<Watch>, work: &mut Rebuild) -> Vec<Vec<u8>> {
        let mut fired = Vec::new();
        let mut cursor = match work.cursor.take() {
            Some(cursor) => cursor,
            None => {
                work.watch = watch.serial;
                fired.push(watch.path.to_vec());
                if watch.path.first() == Some(&b'@') {
                    return fired;
                }
                // The walk begins with the children of the watched node.
                watch.path.to_vec()
            }
        };
        let tree = self.state.tree();
        if tree.get(&watch.path).is_none() {
            return fired;
        }
        tree.walk(&mut cursor, STEP_NODES, &mut |path, node, _| {
            if !is_below(path, &watch.path) {
                return Descend::No;
            }
            let changed = node.generation().max(node.children_generation()) >= work.since;
            if changed && concerns_path(watch, Match::Subtree, path) {
                fired.push(path.to_vec());
            }
            Descend::Yes
        });
        let is_inside = is_below(cursor.strip_suffix(b"~").unwrap_or(&cursor), &watch.path);
        work.cursor = (!cursor.is_empty() && is_inside).then_some(cursor);
        fired
    }

    fn deliver_again(&mut self, client: u16, watch: &Rc<Watch>, path: &[u8]) {
        let mut outbox = Outbox {
            slots: &mut self.slots,
            areas: &self.areas,
            connections: &mut self.connections,
            ready: &mut self.ready,
            actions: &mut self.actions,
            printed: &mut self.printed,
            stats: &mut self.stats,
            // They tell of commits that have happened.
            commit: self.state.committed(),
            term: self.replication.role.term(),
            caller: None,
            scratch: &mut self.scratch,
        };
        self.state.deliver_one(client, watch, path, &mut outbox);
    }
}

/// Whether `path` lies at or below `above`.
fn is_below(path: &[u8], above: &[u8]) -> bool {
    above == b"/"
        || path.strip_prefix(above).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
}
