//! Operations that change nodes.

use alloc::vec::Vec;
use wire::{Access, DOMID_ANY, DOMID_FIRST_RESERVED, Errno, Permission, text};

use crate::dir::Children;
use crate::effects::{Effects, Kind};
use crate::node::{ENTRY_LEN, NODE_OVERHEAD, Node, child_hash, dismantle};
use crate::ops::{Open, entries};
use crate::path::{self, Special, components};
use crate::pulse;
use crate::quota::Quota;
use crate::request::Reply;
use crate::state::{Call, NODE_HEAD_LEN, State, node_head};
use crate::watch::Match;

impl State {
    /// WRITE: sets a value, creates the node and its parents where they are missing.
    pub(crate) fn op_write(
        &mut self,
        call: &Call<'_>,
        open: Open<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let (sent, value) = text::split(call.payload).ok_or(Errno::Invalid)?;
        self.with_name(call, sent, Special::Refused, |state, name| {
            let tree = open.as_ref().map_or(&state.tree, |open| &open.tree);
            match Self::find(tree, &mut state.fault, call, name.path, Access::WRITE) {
                Ok(found) => {
                    let old = Old::of(found.node);
                    state.replace_value(call, open, name.path, old, value, fx)
                }
                Err(Errno::NotFound) => state.create(call, open, name.path, value, fx),
                Err(error) => depend(open, name.path, error),
            }
        })?;
        out.acknowledge();
        Ok(())
    }

    /// MKDIR: creates the node and its parents where they are missing.
    pub(crate) fn op_make_directory(
        &mut self,
        call: &Call<'_>,
        mut open: Open<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let sent = text::only(call.payload).ok_or(Errno::Invalid)?;
        self.with_name(call, sent, Special::Refused, |state, name| {
            if let Some(open) = open.as_deref_mut() {
                open.depend(name.path);
            }
            let tree = open.as_ref().map_or(&state.tree, |open| &open.tree);
            match Self::find(tree, &mut state.fault, call, name.path, Access::WRITE) {
                Ok(_) => Ok(()),
                Err(Errno::NotFound) => state.create(call, open, name.path, b"", fx),
                Err(error) => Err(error),
            }
        })?;
        out.acknowledge();
        Ok(())
    }

    /// RM: removes a node and all below it.
    pub(crate) fn op_remove(
        &mut self,
        call: &Call<'_>,
        mut open: Open<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let sent = text::only(call.payload).ok_or(Errno::Invalid)?;
        self.with_name(call, sent, Special::Refused, |state, name| {
            if let Some(open) = open.as_deref_mut() {
                open.depend(name.path);
            }
            let tree = open.as_ref().map_or(&state.tree, |open| &open.tree);
            match Self::find(tree, &mut state.fault, call, name.path, Access::WRITE) {
                Ok(found) if found.parent.is_none() => Err(Errno::Invalid),
                Ok(_) => {
                    match open {
                        Some(open) => open.remove(name.path, fx),
                        None => state.remove_live(name.path, fx),
                    }
                    Ok(())
                }
                // It need not exist, but its parent must.
                Err(Errno::NotFound) if tree.get(path::parent(name.path)).is_some() => Ok(()),
                Err(error) => Err(error),
            }
        })?;
        out.acknowledge();
        Ok(())
    }

    /// SET_PERMS: replaces the permissions of a node or of a special name.
    pub(crate) fn op_set_permissions(
        &mut self,
        call: &Call<'_>,
        open: Open<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let mut strings = text::strings(call.payload);
        let sent = strings.next().ok_or(Errno::Invalid)?;
        let mut permissions: Vec<Permission> = Vec::new();
        for string in strings {
            permissions.push(Permission::parse(string).ok_or(Errno::Invalid)?);
        }
        let owner = permissions.first().ok_or(Errno::Invalid)?.domid;
        if owner >= DOMID_FIRST_RESERVED && owner != DOMID_ANY {
            return Err(Errno::NotFound);
        }
        self.check_quota(call.domid, Quota::Permissions, permissions.len() as u64, fx)?;
        self.with_name(call, sent, Special::Allowed, |state, name| {
            if name.is_special() {
                return state.set_special(call, name.path, permissions, fx);
            }
            let tree = open.as_ref().map_or(&state.tree, |open| &open.tree);
            let found = Self::find(tree, &mut state.fault, call, name.path, Access::WRITE);
            let found = match found {
                Ok(found) => found,
                Err(error) => return depend(open, name.path, error),
            };
            if !call.owns(found.node.permissions()) {
                return Err(Errno::Access);
            }
            if !call.privileged && owner != found.node.owner() {
                return Err(Errno::NotPermitted);
            }
            state.replace_permissions(open, name.path, &permissions, fx)
        })?;
        out.acknowledge();
        Ok(())
    }

    fn set_special(
        &mut self,
        call: &Call<'_>,
        name: &[u8],
        permissions: Vec<Permission>,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let index = Self::special_index(name).ok_or(Errno::NotFound)?;
        if !call.owns(self.special[index].iter().copied()) {
            return Err(Errno::Access);
        }
        self.special[index] = permissions;
        self.put_settings(fx);
        Ok(())
    }

    fn replace_permissions(
        &mut self,
        open: Open<'_>,
        path: &[u8],
        permissions: &[Permission],
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        if let Some(open) = open {
            open.depend(path);
            open.put(path, permissions, None);
            return Ok(());
        }
        if !fx.has_room(2, permissions.len() * ENTRY_LEN + wire::MESSAGE_MAX) {
            return Err(Errno::NoSpace);
        }
        let Some(old) = self.tree.get(path).map(|found| entries(found.node)) else {
            return Err(Errno::NotFound);
        };
        self.put_live(path, Some(permissions), None, fx);
        self.fire(path, Match::Subtree, Some(&old), fx);
        Ok(())
    }

    fn replace_value(
        &mut self,
        call: &Call<'_>,
        open: Open<'_>,
        path: &[u8],
        old: Old,
        value: &[u8],
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let growth = value.len().saturating_sub(old.value_len);
        let size = old.entries_len + value.len();
        self.check_quota(call.domid, Quota::NodeSize, size as u64, fx)?;
        if let Some(open) = open {
            open.depend(path);
            let permissions = open.tree.get(path).map(|found| entries(found.node));
            open.put(path, &permissions.unwrap_or_default(), Some(value));
            return Ok(());
        }
        if growth > 0 && !call.privileged {
            self.check_memory(old.owner, growth, fx)?;
        }
        if !fx.has_room(2, value.len() + wire::MESSAGE_MAX) {
            return Err(Errno::NoSpace);
        }
        self.put_live(path, None, Some(value), fx);
        self.fire(path, Match::Subtree, None, fx);
        Ok(())
    }

    fn check_memory(
        &mut self,
        owner: u16,
        growth: usize,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let used = self.domain_entry(owner).used(Quota::Memory);
        self.check_quota(owner, Quota::Memory, u64::from(used) + growth as u64, fx)
    }

    /// Creates a node and the missing ones above it.
    fn create(
        &mut self,
        call: &Call<'_>,
        mut open: Open<'_>,
        path: &[u8],
        value: &[u8],
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let tree = open.as_ref().map_or(&self.tree, |open| &open.tree);
        let found = tree.seek(path);
        let mut permissions: Vec<Permission> = found.node.permissions().collect();
        if let Some(owner) = permissions.first_mut().filter(|_| !call.privileged) {
            owner.domid = call.domid;
        }
        let owner = permissions.first().map_or(call.domid, |entry| entry.domid);
        let (above, missing) =
            (&path[..found.path.len()], &path[path.len() - found.missing.len()..]);
        let count = components(missing).count();
        let content = missing.len() + value.len() + count * permissions.len() * ENTRY_LEN;
        if let Some(open) = open.as_deref_mut() {
            open.depend(path);
        }
        let inside = open.as_ref().map_or(0, |open| open.counted(owner));
        let nodes = i64::from(self.domain_entry(owner).used(Quota::Nodes)) + inside;
        let nodes = nodes.max(0) as u64;
        let size = (permissions.len() * ENTRY_LEN + value.len()) as u64;
        self.check_quota(call.domid, Quota::NodeSize, size, fx)?;
        if !call.privileged {
            self.check_quota(owner, Quota::Nodes, nodes + count as u64, fx)?;
            self.check_memory(owner, content + count * NODE_OVERHEAD, fx)?;
        }
        let kept = content + count * NODE_HEAD_LEN + wire::MESSAGE_MAX;
        if open.is_none() && !fx.has_room(count + 1, kept) {
            return Err(Errno::NoSpace);
        }
        let mut at = above.to_vec();
        let mut rest = components(missing);
        while let Some(name) = rest.next() {
            let value = if rest.rest().is_empty() { value } else { b"" };
            match open.as_deref_mut() {
                Some(open) => open.add(&at, name, &permissions, value),
                None => {
                    let generation = self.committed + 1;
                    self.add_node(&at, name, &permissions, value, generation, fx);
                }
            }
            path::push(&mut at, name);
            fx.worked(pulse::change(&at));
        }
        match open {
            Some(open) => open.change(path, Some(Match::Subtree), None),
            None => self.fire(path, Match::Subtree, None, fx),
        }
        Ok(())
    }

    /// Adds a node to the live tree; its parent exists.
    pub(crate) fn add_node(
        &mut self,
        parent: &[u8],
        name: &[u8],
        permissions: &[Permission],
        value: &[u8],
        generation: u64,
        fx: &mut dyn Effects,
    ) {
        let mut node = Node::new(name, permissions, value, self.tree.seed());
        node.generation = generation;
        node.record = self.records.take();
        let (owner, memory) = (node.owner(), node.memory());
        if self.tree.add(parent, node, generation).is_none() {
            return;
        }
        let mut path = parent.to_vec();
        path::push(&mut path, name);
        if let Some(found) = self.tree.get(&path) {
            let node = found.node;
            fx.put(node.record, Kind::Node, &node_head(node), node.body().0);
        }
        self.charge(owner, Quota::Nodes, 1);
        self.charge(owner, Quota::Memory, memory as i64);
    }

    /// Changes a node of the live tree.
    pub(crate) fn put_live(
        &mut self,
        path: &[u8],
        permissions: Option<&[Permission]>,
        value: Option<&[u8]>,
        fx: &mut dyn Effects,
    ) {
        let generation = self.committed + 1;
        let mut before = (0, 0);
        let changed = self.tree.modify(path, |node| {
            before = (node.owner(), node.memory());
            node.generation = generation;
            if let Some(permissions) = permissions {
                node.set_permissions(permissions);
            }
            if let Some(value) = value {
                node.set_value(value);
            }
        });
        let Some(node) = changed else { return };
        fx.put(node.record, Kind::Node, &node_head(node), node.body().0);
        let after = (node.owner(), node.memory());
        if before.0 == after.0 {
            if before.1 != after.1 {
                self.charge(after.0, Quota::Memory, after.1 as i64 - before.1 as i64);
            }
            return;
        }
        for ((owner, memory), sign) in [(before, -1), (after, 1)] {
            self.charge(owner, Quota::Nodes, sign);
            self.charge(owner, Quota::Memory, sign * memory as i64);
        }
    }

    /// Removes a subtree of the live tree and fires what watches it.
    pub(crate) fn remove_live(&mut self, path: &[u8], fx: &mut dyn Effects) {
        let Some(found) = self.tree.get(path) else { return };
        let (hash, before) = (found.hash, entries(found.node));
        // Watchers below are told while the nodes can still be seen.
        if self.watches.count() > 0 {
            self.fire_removed(path, hash, fx);
            self.fire(path, Match::Subtree, Some(&before), fx);
        }
        self.take_out(path, fx);
    }

    /// Removes a node of the live tree that has no children, and whose parent goes soon: who
    /// watches one of those above is told then.
    pub(crate) fn remove_leaf(&mut self, path: &[u8], fx: &mut dyn Effects) {
        let Some(found) = self.tree.get(path) else { return };
        let mut watches = Vec::new();
        self.watches.exact(path, found.hash, &mut watches);
        self.deliver(&watches, path, None, fx);
        fx.worked(pulse::change(path));
        self.take_out(path, fx);
    }

    fn take_out(&mut self, path: &[u8], fx: &mut dyn Effects) {
        let generation = self.committed + 1;
        let Some(root) = self.tree.remove(path, generation, || fx.worked(1)) else { return };
        let mut gone = Vec::from([&*root]);
        // Most subtrees have one owner.
        let (mut owner, mut nodes, mut memory) = (root.owner(), 0, 0);
        fx.delete(root.record);
        while let Some(node) = gone.pop() {
            if node.owner() != owner {
                self.refund(owner, nodes, memory);
                (owner, nodes, memory) = (node.owner(), 0, 0);
            }
            nodes += 1;
            memory += node.memory() as i64;
            self.records.give(node.record);
            for child in Children::new(&node.children) {
                fx.forget(child.record);
                gone.push(child);
            }
        }
        self.refund(owner, nodes, memory);
        dismantle(root, || fx.worked(1));
    }

    /// Accounts for the owner's nodes that are gone, and the memory that they took.
    fn refund(&mut self, owner: u16, nodes: i64, memory: i64) {
        self.charge(owner, Quota::Nodes, -nodes);
        self.charge(owner, Quota::Memory, -memory);
    }

    /// Fires the watches on nodes strictly below a path that is about to go, deepest first as
    /// they are removed.
    fn fire_removed(&mut self, path: &[u8], hash: u64, fx: &mut dyn Effects) {
        let Some(found) = self.tree.get(path) else { return };
        let mut at = path.to_vec();
        let mut stack = Vec::from([(Children::new(&found.node.children), hash)]);
        let mut watches = Vec::new();
        while let Some((children, hash)) = stack.last_mut() {
            match children.next() {
                Some(child) => {
                    let hash = child_hash(*hash, child.name());
                    path::push(&mut at, child.name());
                    stack.push((Children::new(&child.children), hash));
                }
                None => {
                    fx.worked(1);
                    let hash = *hash;
                    stack.pop();
                    if !stack.is_empty() {
                        watches.clear();
                        self.watches.exact(&at, hash, &mut watches);
                        self.deliver(&watches, &at, None, fx);
                        path::pop(&mut at);
                    }
                }
            }
        }
    }
}

/// What a write has to know of the node that it changes.
#[derive(Clone, Copy)]
struct Old {
    owner: u16,
    value_len: usize,
    entries_len: usize,
}

impl Old {
    fn of(node: &Node) -> Self {
        let (_, _, entries) = node.body();
        Self {
            owner: node.owner(),
            value_len: node.value().len(),
            entries_len: usize::from(entries) * ENTRY_LEN,
        }
    }
}

/// A refusal inside a transaction depends on the node as much as a success does.
fn depend(open: Open<'_>, path: &[u8], error: Errno) -> Result<(), Errno> {
    if let Some(open) = open {
        open.depend(path);
    }
    Err(error)
}

impl crate::transaction::Transaction {
    /// Changes a node inside the transaction.
    fn put(&mut self, path: &[u8], permissions: &[Permission], value: Option<&[u8]>) {
        let generation = self.next_generation();
        let mut before = None;
        let mut lens = (0, 0);
        self.tree.modify(path, |node| {
            before = Some(entries(node));
            lens.1 = node.value().len();
            node.generation = generation;
            node.set_permissions(permissions);
            if let Some(value) = value {
                node.set_value(value);
            }
            lens.0 = node.value().len();
        });
        let Some(before) = before else { return };
        if let (Some(old), Some(new)) = (before.first(), permissions.first())
            && old.domid != new.domid
        {
            self.count(old.domid, -1);
            self.count(new.domid, 1);
        }
        self.change(path, Some(Match::Subtree), Some(&before));
        self.count_bytes(lens.0, lens.1);
    }

    /// Adds a node inside the transaction.
    fn add(&mut self, parent: &[u8], name: &[u8], permissions: &[Permission], value: &[u8]) {
        let generation = self.next_generation();
        let mut node = Node::new(name, permissions, value, self.tree.seed());
        node.generation = generation;
        let (owner, memory) = (node.owner(), node.memory());
        if self.tree.add(parent, node, generation).is_some() {
            let mut path = parent.to_vec();
            path::push(&mut path, name);
            self.change(&path, None, None);
            self.count(owner, 1);
            self.count_bytes(memory, 0);
        }
    }

    /// Removes a subtree inside the transaction.
    fn remove(&mut self, path: &[u8], fx: &mut dyn Effects) {
        let generation = self.next_generation();
        let Some(root) = self.tree.remove(path, generation, || fx.worked(1)) else { return };
        let mut at = path.to_vec();
        let mut stack = Vec::from([(Children::new(&root.children), &*root)]);
        while let Some((children, node)) = stack.last_mut() {
            if let Some(child) = children.next() {
                path::push(&mut at, child.name());
                stack.push((Children::new(&child.children), child));
                continue;
            }
            let node = *node;
            stack.pop();
            let fires = if stack.is_empty() { Match::Subtree } else { Match::Exact };
            fx.worked(pulse::note(&at));
            self.depend_on_children(&at);
            self.change(&at, Some(fires), Some(&entries(node)));
            self.count(node.owner(), -1);
            path::pop(&mut at);
        }
    }
}
