//! The tree of nodes, with a checksum per node and a digest of the whole.
//!
//! A clone is a snapshot in O(1). A change costs O(depth) steps and touches the digest by the
//! difference of the changed nodes' sums.

use alloc::rc::Rc;
use alloc::vec::Vec;
use wire::Permission;

use crate::checksum::spread;
use crate::dir::{self, Children};
use crate::node::{Link, Node, ROOT_HASH, child_hash, keyed_hash, name_key};
use crate::path::{self, components};

/// Durable record of the root.
pub const ROOT_RECORD: u32 = 1;

/// The tree.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Rc<Node>,
    digest: u64,
    nodes: u32,
    seed: u64,
}

/// The deepest existing node on the way to a path.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The node.
    pub node: &'a Node,
    /// Its parent, but for the root.
    pub parent: Option<&'a Node>,
    /// Hash of its path, for [`Node::is_intact`].
    pub hash: u64,
    /// Components that do not exist below it, with slashes between them; empty if the path exists.
    pub missing: &'a [u8],
    /// The path of the node.
    pub path: &'a [u8],
}

impl Found<'_> {
    /// Whether the path itself exists.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }

    /// Whether the node is what was written, and what is missing below it truly is: damage to a
    /// node beside the way must not hide the one that was asked for.
    pub fn is_intact(&self) -> bool {
        let misses = |name| dir::misses(&self.node.children, name, name_key(name), self.hash);
        self.node.is_intact(self.hash) && components(self.missing).next().is_none_or(misses)
    }
}

impl Tree {
    /// A tree with a root alone. `seed` keys the order inside directories; it changes nothing that
    /// can be seen from outside.
    pub fn new(permissions: &[Permission], seed: u64) -> Self {
        let mut root = Node::new(b"", permissions, b"", seed);
        root.record = ROOT_RECORD;
        root.sum = root.compute_sum(ROOT_HASH);
        let digest = spread(root.sum);
        Self { root: Rc::new(root), digest, nodes: 1, seed }
    }

    /// A tree from linked nodes whose sums are known.
    pub fn from_root(root: Rc<Node>, digest: u64, nodes: u32, seed: u64) -> Self {
        Self { root, digest, nodes, seed }
    }

    /// The root.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// Sum over all nodes' spread checksums: equal trees have equal digests.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Number of nodes, the root among them.
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// The key of the order inside directories.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Follows a path as far as it exists.
    pub fn seek<'a>(&'a self, path: &'a [u8]) -> Found<'a> {
        let mut rest = components(path);
        let mut found =
            Found { node: &self.root, parent: None, hash: ROOT_HASH, missing: &[], path: b"/" };
        loop {
            let missing = rest.rest();
            let Some(name) = rest.next() else { break };
            let key = name_key(name);
            let Some(child) = dir::find_keyed(&found.node.children, name, key) else {
                found.missing = missing;
                break;
            };
            found.parent = Some(found.node);
            found.hash = keyed_hash(found.hash, name, key);
            found.node = child;
            found.path = &path[..path.len() - rest.rest().len()];
        }
        if found.path.len() > 1 {
            found.path = found.path.strip_suffix(b"/").unwrap_or(found.path);
        }
        found
    }

    /// The node at a path.
    pub fn get<'a>(&'a self, path: &'a [u8]) -> Option<Found<'a>> {
        Some(self.seek(path)).filter(Found::is_whole)
    }

    /// Changes a node that exists and answers it.
    pub fn modify(&mut self, path: &[u8], change: impl FnOnce(&mut Node)) -> Option<&Node> {
        let mut node = Rc::make_mut(&mut self.root);
        let mut hash = ROOT_HASH;
        for name in components(path) {
            let key = name_key(name);
            node = dir::find_mut_keyed(&mut node.children, name, key)?;
            hash = keyed_hash(hash, name, key);
        }
        let old = spread(node.sum);
        change(node);
        node.sum = node.compute_sum(hash);
        self.digest = self.digest.wrapping_sub(old).wrapping_add(spread(node.sum));
        Some(node)
    }

    /// Hangs children below the node of this record, beside those that it has already. They are
    /// part of the tree as far as count and digest are concerned. Where the path leads elsewhere,
    /// this tree has lost the node.
    pub(crate) fn attach(&mut self, path: &[u8], record: u32, children: &Link) {
        let Some(node) = self.node_of(path, record) else { return };
        let former = core::mem::replace(&mut node.children, children.clone());
        for child in Children::new(&former) {
            // Of damage that no checksum saw, one of two with the same name remains.
            let _ = dir::insert(&mut node.children, Rc::new(child.alone()));
        }
    }

    /// As [`Self::attach`], with one child.
    pub(crate) fn attach_child(&mut self, path: &[u8], record: u32, child: &Rc<Node>) {
        if let Some(node) = self.node_of(path, record) {
            let _ = dir::insert(&mut node.children, child.clone());
        }
    }

    /// The node of this record, to be changed, if the path leads to it.
    fn node_of(&mut self, path: &[u8], record: u32) -> Option<&mut Node> {
        self.get(path).filter(|found| found.node.record == record)?;
        let mut node = Rc::make_mut(&mut self.root);
        for name in components(path) {
            node = dir::find_mut_keyed(&mut node.children, name, name_key(name))?;
        }
        Some(node)
    }

    /// Changes a node as damage to memory would: nothing else learns of it.
    #[cfg(test)]
    pub(crate) fn damage(&mut self, path: &[u8], damage: impl FnOnce(&mut Node)) {
        let mut node = Rc::make_mut(&mut self.root);
        for name in components(path) {
            node = dir::find_mut_keyed(&mut node.children, name, name_key(name)).expect("a node");
        }
        damage(node);
    }

    /// Adds a node without children below `parent`, which exists, and answers both records'
    /// nodes: (parent, child). `None` where the name is taken or the parent missing.
    pub fn add(&mut self, parent: &[u8], mut child: Node, generation: u64) -> Option<()> {
        let mut added = 0u64;
        let mut done = false;
        let name_hash = {
            let found = self.get(parent)?;
            child.parent = found.node.record;
            child_hash(found.hash, child.name())
        };
        child.sum = child.compute_sum(name_hash);
        added = added.wrapping_add(spread(child.sum));
        let child = Rc::new(child);
        self.modify(parent, |node| {
            done = dir::insert(&mut node.children, child);
            if done {
                node.children_generation = generation;
            }
        })?;
        if !done {
            return None;
        }
        self.digest = self.digest.wrapping_add(added);
        self.nodes += 1;
        Some(())
    }

    /// Takes a node and all below it out of its parent, and calls `each` for every one that goes.
    /// `None` for the root or a missing node. The digest is that of the remaining tree.
    pub fn remove(&mut self, path: &[u8], generation: u64, each: impl FnMut()) -> Option<Rc<Node>> {
        self.get(path)?;
        let name = components(path).last()?;
        let mut taken = None;
        self.modify(path::parent(path), |node| {
            taken = dir::remove(&mut node.children, name);
            node.children_generation = generation;
        })?;
        let taken = taken?;
        self.subtract(&taken, each);
        Some(taken)
    }

    /// Removes a detached subtree's nodes from digest and count.
    fn subtract(&mut self, root: &Node, mut each: impl FnMut()) {
        let mut waiting: Vec<&Node> = Vec::new();
        waiting.push(root);
        while let Some(node) = waiting.pop() {
            each();
            self.digest = self.digest.wrapping_sub(spread(node.sum));
            self.nodes -= 1;
            waiting.extend(Children::new(&node.children));
        }
    }

    /// Visits at most `budget` nodes in depth-first order, beginning behind `cursor` (a path, or
    /// empty for the start), and leaves in `cursor` the last one visited; an empty cursor means
    /// that the walk is done. `visit` gets path, node and hash, and says whether to descend.
    pub fn walk(
        &self,
        cursor: &mut Vec<u8>,
        budget: usize,
        visit: &mut dyn FnMut(&[u8], &Node, u64) -> Descend,
    ) {
        let mut stack: Vec<(Children<'_>, u64)> = Vec::new();
        let mut path = Vec::with_capacity(64);
        let mut left = budget;
        if cursor.is_empty() {
            path.push(b'/');
            left = left.saturating_sub(1);
            if visit(&path, &self.root, ROOT_HASH) == Descend::No {
                return;
            }
            stack.push((Children::new(&self.root.children), ROOT_HASH));
        } else {
            self.resume(cursor, &mut path, &mut stack);
        }
        while let Some((children, hash)) = stack.last_mut() {
            let Some(child) = children.next() else {
                stack.pop();
                path::pop(&mut path);
                continue;
            };
            let hash = child_hash(*hash, child.name());
            path::push(&mut path, child.name());
            let descend = visit(&path, child, hash);
            left = left.saturating_sub(1);
            if left == 0 {
                cursor.clear();
                cursor.extend_from_slice(&path);
                if descend == Descend::No {
                    // What lies below the cursor is skipped by a name that no child can have.
                    cursor.extend_from_slice(SKIP);
                }
                return;
            }
            match descend {
                Descend::Yes => stack.push((Children::new(&child.children), hash)),
                Descend::No => path::pop(&mut path),
            }
        }
        cursor.clear();
    }

    /// Paths of the first `count` nodes at and below `top`, each after all that are below it.
    pub fn bottom_up(&self, top: &[u8], count: usize) -> Vec<Vec<u8>> {
        let (mut found, mut path) = (Vec::new(), top.to_vec());
        let mut stack: Vec<Children<'_>> = Vec::new();
        stack.extend(self.get(top).map(|top| Children::new(&top.node.children)));
        while found.len() < count
            && let Some(children) = stack.last_mut()
        {
            if let Some(child) = children.next() {
                path::push(&mut path, child.name());
                stack.push(Children::new(&child.children));
            } else {
                stack.pop();
                found.push(path.clone());
                path::pop(&mut path);
            }
        }
        found
    }

    /// Rebuilds the stack of a walk that stopped at `cursor`, which may be gone since.
    fn resume<'a>(
        &'a self,
        cursor: &[u8],
        path: &mut Vec<u8>,
        stack: &mut Vec<(Children<'a>, u64)>,
    ) {
        let (cursor, skip) = match cursor.strip_suffix(SKIP) {
            Some(cursor) => (cursor, true),
            None => (cursor, false),
        };
        let mut node: &Node = &self.root;
        let mut hash = ROOT_HASH;
        path.push(b'/');
        for name in components(cursor) {
            stack.push((Children::after(&node.children, name), hash));
            let Some(child) = dir::find(&node.children, name) else { return };
            path::push(path, name);
            hash = child_hash(hash, name);
            node = child;
        }
        if skip {
            path::pop(path);
        } else {
            stack.push((Children::new(&node.children), hash));
        }
    }
}

/// Ends a cursor whose children are not to be visited; `~` cannot be part of a path.
const SKIP: &[u8] = b"~";

/// Whether a walk goes on below a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descend {
    /// Into its children.
    Yes,
    /// Not into them.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use proptest::prelude::*;
    use wire::Access;

    fn tree(paths: &[String]) -> Tree {
        let permissions = [Permission::new(0, Access::NONE)];
        let mut tree = Tree::new(&permissions, 3);
        for path in paths {
            let found = tree.seek(path.as_bytes());
            let mut above = found.path.to_vec();
            let missing = found.missing.len();
            for name in components(&path.as_bytes()[path.len() - missing..]) {
                tree.add(&above, Node::new(name, &permissions, b"", 3), 1).expect("it is missing");
                path::push(&mut above, name);
            }
        }
        tree
    }

    fn paths() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("(/[abc]){1,4}", 0..30)
    }

    proptest! {
        /// In steps of any size, with changes between them: what was there all the time is seen
        /// once, what was skipped is not.
        #[test]
        fn a_walk_in_steps(all in paths(), gone in paths(), step in 1usize..5, skip: u8) {
            let mut tree = tree(&all);
            let mut whole = Vec::new();
            let skip = [b'a' + skip % 4];
            let visit = |seen: &mut Vec<Vec<u8>>, path: &[u8]| {
                seen.push(path.to_vec());
                if components(path).last() == Some(&skip) { Descend::No } else { Descend::Yes }
            };
            tree.walk(&mut Vec::new(), usize::MAX, &mut |path, node, hash| {
                assert!(node.is_intact(hash));
                visit(&mut whole, path)
            });
            let in_order = whole.is_sorted_by(|a, b| components(a).lt(components(b)));
            prop_assert!(in_order);
            let mut seen = Vec::new();
            let mut cursor = Vec::new();
            let mut gone = gone.iter();
            let mut removed: Vec<&String> = Vec::new();
            loop {
                tree.walk(&mut cursor, step, &mut |path, _, _| visit(&mut seen, path));
                if cursor.is_empty() {
                    break;
                }
                if let Some(path) = gone.next() {
                    tree.remove(path.as_bytes(), 2, || ());
                    removed.push(path);
                }
            }
            let is_gone = |path: &Vec<u8>| {
                removed.iter().any(|gone| path.starts_with(gone.as_bytes()))
            };
            let in_order = seen.is_sorted_by(|a, b| components(a).lt(components(b)));
            prop_assert!(in_order);
            for path in &whole {
                prop_assert!(seen.contains(path) || is_gone(path), "{:?}", path.escape_ascii());
            }
            prop_assert!(seen.iter().all(|path| whole.contains(path)));
        }

        /// The digest depends on the content alone, not on the way there.
        #[test]
        fn the_digest(mut all in paths(), gone in paths()) {
            let mut one = tree(&all);
            let empty = tree(&[]).digest();
            for path in &gone {
                one.remove(path.as_bytes(), 2, || ());
                all.retain(|other| {
                    !(other == path || other.starts_with(&alloc::format!("{path}/")))
                });
            }
            let mut names = Vec::new();
            one.walk(&mut Vec::new(), usize::MAX, &mut |path, _, _| {
                names.push(String::from_utf8_lossy(path).into_owned());
                Descend::Yes
            });
            let other = tree(&names[1..]);
            prop_assert_eq!(one.digest(), other.digest());
            prop_assert_eq!(one.nodes(), other.nodes());
            prop_assert_eq!(one.digest() == empty, names.len() == 1);
        }
    }
}
