//! A node of the tree: its record and its place among its siblings.
//!
//! Nodes are shared between the live tree and snapshots by reference counts. A change goes through
//! [`Rc::make_mut`]: a node that no snapshot sees is changed in place, any other is copied, which
//! copies pointers but neither children nor content.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cmp::Ordering;

use wire::{Access, Permission};

use crate::body::Body;
use crate::checksum::{Checksum, checksum, first_word};

/// A shared node or nothing.
pub type Link = Option<Rc<Node>>;

/// Bytes of one permission entry in a node's content: domain id, access, zero.
pub const ENTRY_LEN: usize = 4;

/// A node.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Siblings with smaller names (treap, see `dir`).
    pub(crate) left: Link,
    /// Siblings with greater names.
    pub(crate) right: Link,
    /// Root of the treap of children.
    pub(crate) children: Link,
    /// Permissions, name and value, one after the other.
    body: Body,
    /// The first bytes of the name, for comparisons.
    key: u64,
    /// The commit that last changed value or permissions.
    pub(crate) generation: u64,
    /// The commit that last added or removed a child; after a reload, the last commit of all.
    pub(crate) children_generation: u64,
    /// Checksum of path, content and generation.
    pub(crate) sum: u64,
    /// Durable record; 0 for a node that exists in a transaction only.
    pub(crate) record: u32,
    /// Durable record of the parent; 0 for the root.
    pub(crate) parent: u32,
    /// Heap order of the treap.
    pub(crate) priority: u32,
    /// Bytes that the names in this treap subtree take in a DIRECTORY reply.
    pub(crate) listing: u32,
    name_len: u16,
    permissions: u16,
}

/// What a node's durable record holds.
pub(crate) struct NodeParts<'a> {
    pub body: &'a [u8],
    pub name_len: u16,
    pub permissions: u16,
    pub sum: u64,
    pub generation: u64,
    pub children_generation: u64,
    pub record: u32,
    pub parent: u32,
    pub priority: u32,
}

/// The hash of a child's path from that of its parent.
pub fn child_hash(parent: u64, name: &[u8]) -> u64 {
    keyed_hash(parent, name, name_key(name))
}

/// As [`child_hash`] with the name's key at hand.
pub(crate) fn keyed_hash(parent: u64, name: &[u8], key: u64) -> u64 {
    match name.len() {
        // The key is the whole name.
        len @ ..=8 => Checksum::new(parent).word(key).word(len as u64).raw(),
        _ => checksum(parent, name),
    }
}

/// The hash of the root's path.
pub const ROOT_HASH: u64 = 0x5eed;

impl Node {
    /// A node without children. `seed` keys the treap order, so that a guest cannot choose names
    /// that degrade it. Name and permissions must be at most 65,535 bytes or entries.
    pub fn new(name: &[u8], permissions: &[Permission], value: &[u8], seed: u64) -> Self {
        let mut node = Self::default();
        node.priority = priority(seed, name);
        node.set_content(name, permissions, value);
        node.listing = node.own_listing();
        node
    }

    /// A node from its durable record's parts; `None` where the lengths do not fit.
    #[inline(always)]
    pub(crate) fn from_parts(parts: &NodeParts<'_>) -> Option<Self> {
        let name_at = usize::from(parts.permissions) * ENTRY_LEN;
        let name = parts.body.get(name_at..name_at + usize::from(parts.name_len))?;
        if parts.permissions == 0 {
            return None;
        }
        Some(Self {
            left: None,
            right: None,
            children: None,
            body: Body::join(&[parts.body]),
            key: name_key(name),
            generation: parts.generation,
            children_generation: parts.children_generation,
            sum: parts.sum,
            record: parts.record,
            parent: parts.parent,
            priority: parts.priority,
            listing: u32::from(parts.name_len) + 1,
            name_len: parts.name_len,
            permissions: parts.permissions,
        })
    }

    /// Takes what hangs on it.
    fn take_links(&mut self) -> impl Iterator<Item = Rc<Node>> + use<> {
        [self.left.take(), self.right.take(), self.children.take()].into_iter().flatten()
    }

    /// The node with what is below it, and without siblings.
    pub(crate) fn alone(&self) -> Self {
        let mut node = self.clone();
        (node.left, node.right) = (None, None);
        node.listing = node.own_listing();
        node
    }

    fn set_content(&mut self, name: &[u8], permissions: &[Permission], value: &[u8]) {
        self.name_len = u16::try_from(name.len()).expect("a name is shorter than a path");
        self.permissions = u16::try_from(permissions.len()).expect("entries fit a message");
        self.key = name_key(name);
        self.body = match permissions {
            [entry] => Body::join(&[&pack(*entry), name, value]),
            [first, second] => Body::join(&[&pack(*first), &pack(*second), name, value]),
            _ => {
                let entries: Vec<u8> = permissions.iter().flat_map(|entry| pack(*entry)).collect();
                Body::join(&[&entries, name, value])
            }
        };
    }

    /// Replaces the value.
    pub fn set_value(&mut self, value: &[u8]) {
        self.body = Body::join(&[&self.body[..self.value_at()], value]);
    }

    /// Replaces the permissions.
    pub fn set_permissions(&mut self, permissions: &[Permission]) {
        let old = self.body.clone();
        let (name, value) = old[self.name_at()..].split_at(usize::from(self.name_len));
        self.set_content(name, permissions, value);
    }

    fn name_at(&self) -> usize {
        usize::from(self.permissions) * ENTRY_LEN
    }

    fn value_at(&self) -> usize {
        self.name_at() + usize::from(self.name_len)
    }

    /// The last component of its path; empty for the root.
    pub fn name(&self) -> &[u8] {
        &self.body[self.name_at()..self.value_at()]
    }

    /// The beginning of its name, for comparisons.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// Compares `name`, whose [`name_key`] is `key`, with the node's name.
    pub(crate) fn compare(&self, name: &[u8], key: u64) -> Ordering {
        match key.cmp(&self.key) {
            Ordering::Equal if name.len() > 8 || self.name_len > 8 => name.cmp(self.name()),
            order => order,
        }
    }

    /// Compares the names of two nodes.
    pub(crate) fn compare_names(&self, other: &Self) -> Ordering {
        other.compare(self.name(), self.key)
    }

    /// Its value.
    pub fn value(&self) -> &[u8] {
        &self.body[self.value_at()..]
    }

    /// Its permission entries, the owner's first.
    pub fn permissions(&self) -> impl Iterator<Item = Permission> + '_ {
        self.body[..self.name_at()].chunks_exact(ENTRY_LEN).map(unpack)
    }

    /// The domain that owns it.
    pub fn owner(&self) -> u16 {
        self.body.first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes))
    }

    /// Permissions, name and value as the durable record keeps them, with both lengths.
    pub fn body(&self) -> (&[u8], u16, u16) {
        (&self.body, self.name_len, self.permissions)
    }

    /// Generation of value and permissions.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Generation of the list of children.
    pub fn children_generation(&self) -> u64 {
        self.children_generation
    }

    /// Bytes of a DIRECTORY reply for this node.
    pub fn children_listing(&self) -> usize {
        self.children.as_ref().map_or(0, |root| root.listing as usize)
    }

    /// Bytes that its own name takes in a DIRECTORY reply.
    pub(crate) fn own_listing(&self) -> u32 {
        u32::from(self.name_len) + 1
    }

    /// Memory that the node is accounted with: content and a constant for the rest.
    pub fn memory(&self) -> usize {
        NODE_OVERHEAD + self.body.len()
    }

    /// The checksum over path, content and generation.
    pub fn compute_sum(&self, path_hash: u64) -> u64 {
        Checksum::new(path_hash)
            .word(self.generation)
            .word(u64::from(self.name_len) << 16 | u64::from(self.permissions))
            .bytes(&self.body)
            .finish()
    }

    /// Flips a bit of the first byte of the name as it is compared.
    #[cfg(test)]
    pub(crate) fn damage_name(&mut self) {
        self.key ^= 1 << 60;
    }

    /// Whether it is still what was written, and found by its name.
    pub fn is_intact(&self, path_hash: u64) -> bool {
        self.compute_sum(path_hash) == self.sum && self.key == name_key(self.name())
    }
}

/// What a node is accounted with beside its content, in bytes: about what its record, its links
/// and two allocations take.
pub const NODE_OVERHEAD: usize = 128;

/// The first eight bytes of a name as a number of the same order: names have no zero bytes.
pub(crate) fn name_key(name: &[u8]) -> u64 {
    first_word(name).swap_bytes()
}

fn priority(seed: u64, name: &[u8]) -> u32 {
    (checksum(seed, name) >> 32) as u32
}

fn pack(entry: Permission) -> [u8; ENTRY_LEN] {
    let [low, high] = entry.domid.to_le_bytes();
    [low, high, entry.access.letter(), 0]
}

fn unpack(bytes: &[u8]) -> Permission {
    let access = Access::from_letter(bytes[2]).unwrap_or(Access::NONE);
    Permission::new(u16::from_le_bytes([bytes[0], bytes[1]]), access)
}

/// Drops what hangs below a link, node by node, and says so for each that nobody else holds.
pub(crate) fn dismantle(root: Rc<Node>, mut each: impl FnMut()) {
    let mut waiting = Vec::from([root]);
    while let Some(link) = waiting.pop() {
        if let Some(mut node) = Rc::into_inner(link) {
            each();
            waiting.extend(node.take_links());
        }
    }
}

/// Dropping a long chain must not use stack: a path may have a thousand components.
impl Drop for Node {
    fn drop(&mut self) {
        self.take_links().for_each(|link| dismantle(link, || ()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content() {
        let entries = [Permission::new(3, Access::NONE), Permission::new(4, Access::READ)];
        let mut node = Node::new(b"name", &entries, b"value", 1);
        assert_eq!((node.name(), node.value(), node.owner()), (&b"name"[..], &b"value"[..], 3));
        node.set_value(b"other");
        assert_eq!(node.value(), b"other");
        node.set_value(b"");
        node.set_permissions(&entries[1..]);
        assert_eq!(node.permissions().collect::<Vec<_>>(), &entries[1..]);
        assert_eq!((node.name(), node.value(), node.owner()), (&b"name"[..], &b""[..], 4));
    }

    #[test]
    fn a_change_in_a_copy_leaves_the_original() {
        let node = Node::new(b"n", &[Permission::new(0, Access::NONE)], b"old", 1);
        let mut copy = node.clone();
        copy.set_value(b"new");
        assert_eq!((node.value(), copy.value()), (&b"old"[..], &b"new"[..]));
    }

    #[test]
    fn lengths_that_do_not_fit() {
        let parts = |body: &'static [u8], name_len, permissions| NodeParts {
            body,
            name_len,
            permissions,
            sum: 0,
            generation: 0,
            children_generation: 0,
            record: 0,
            parent: 0,
            priority: 0,
        };
        assert!(Node::from_parts(&parts(b"12", 0, 1)).is_none());
        assert!(Node::from_parts(&parts(b"1234", 1, 1)).is_none());
        assert!(Node::from_parts(&parts(b"name", 4, 0)).is_none());
        assert!(Node::from_parts(&parts(b"1234n", 1, 1)).is_some());
    }

    #[test]
    fn a_deep_chain_is_dropped_without_recursion() {
        let mut link: Link = None;
        for _ in 0..200_000 {
            let mut node = Node::new(b"n", &[Permission::new(0, Access::NONE)], b"", 1);
            node.children = link.take();
            link = Some(Rc::new(node));
        }
        drop(link);
    }
}
