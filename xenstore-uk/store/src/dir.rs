//! The children of a directory: a treap that lives in the nodes themselves.
//!
//! Ordered by name, heap-ordered by a keyed hash of the name, so its shape depends on its content
//! alone, its depth is logarithmic whatever names a guest picks, and a child costs no allocation
//! beside its node. Each node knows how many bytes the names below it take in a reply, so that
//! DIRECTORY_PART finds its offset in logarithmic time.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cmp::Ordering;

use crate::node::{Link, Node, child_hash, name_key};

/// The child with this name.
pub fn find<'a>(root: &'a Link, name: &[u8]) -> Option<&'a Node> {
    find_keyed(root, name, name_key(name))
}

/// As [`find`] with the name's key at hand.
pub fn find_keyed<'a>(root: &'a Link, name: &[u8], key: u64) -> Option<&'a Node> {
    let mut link = root;
    while let Some(node) = link {
        // Most steps are decided by the key alone.
        let own = node.key();
        if key < own {
            link = &node.left;
        } else if key > own {
            link = &node.right;
        } else {
            match node.compare(name, key) {
                Ordering::Less => link = &node.left,
                Ordering::Greater => link = &node.right,
                Ordering::Equal => return Some(node),
            }
        }
    }
    None
}

/// Whether it can be believed that there is no child of this name, whose key is `key`: every node
/// that the search for it passed is what was written, with the names below it that it counts.
/// `hash` is that of the directory's path.
pub fn misses(root: &Link, name: &[u8], key: u64, hash: u64) -> bool {
    let mut link = root;
    while let Some(node) = link {
        let names = node.own_listing() + listing(&node.left) + listing(&node.right);
        if !node.is_intact(child_hash(hash, node.name())) || node.listing != names {
            return false;
        }
        link = if node.compare(name, key).is_lt() { &node.left } else { &node.right };
    }
    true
}

/// The child with this name, whose key is `key`, to be changed: copies what snapshots share on
/// the way to it.
pub fn find_mut_keyed<'a>(root: &'a mut Link, name: &[u8], key: u64) -> Option<&'a mut Node> {
    let mut link = root;
    while let Some(shared) = link {
        let order = shared.compare(name, key);
        let node = Rc::make_mut(shared);
        link = match order {
            Ordering::Less => &mut node.left,
            Ordering::Greater => &mut node.right,
            Ordering::Equal => return Some(node),
        };
    }
    None
}

/// Adds a child whose name is not there yet, and which nobody shares. Answers `false`, and adds
/// nothing, where a child of that name turns up.
pub fn insert(root: &mut Link, mut new: Rc<Node>) -> bool {
    if find(root, new.name()).is_some() {
        return false;
    }
    let added = new.own_listing();
    let mut link = root;
    while link.as_ref().is_some_and(|node| node.priority >= new.priority) {
        let node = Rc::make_mut(link.as_mut().expect("the condition saw it"));
        node.listing += added;
        link = if new.compare_names(node).is_lt() { &mut node.left } else { &mut node.right };
    }
    let (left, right) = split(link.take(), new.name());
    let node = Rc::make_mut(&mut new);
    node.listing = added + listing(&left) + listing(&right);
    node.left = left;
    node.right = right;
    *link = Some(new);
    true
}

/// Takes the child with this name out, alone (its own children stay with it).
pub fn remove(root: &mut Link, name: &[u8]) -> Option<Rc<Node>> {
    let removed = find(root, name)?.own_listing();
    let key = name_key(name);
    let mut link = root;
    while link.as_ref().is_some_and(|node| node.compare(name, key).is_ne()) {
        let node = Rc::make_mut(link.as_mut().expect("the condition saw it"));
        node.listing -= removed;
        link = if node.compare(name, key).is_lt() { &mut node.left } else { &mut node.right };
    }
    let mut taken = link.take()?;
    let node = Rc::make_mut(&mut taken);
    *link = merge(node.left.take(), node.right.take());
    node.listing = node.own_listing();
    Some(taken)
}

/// Builds the treap of nodes in ascending order of their names, which nobody shares. Answers
/// those whose name was there already.
pub fn build(sorted: impl Iterator<Item = Rc<Node>>, spine: &mut Vec<Rc<Node>>) -> (Link, usize) {
    /// Ends the lowest node of the right spine: `below` is what hangs right of it.
    fn end(mut lowest: Rc<Node>, below: Link) -> Rc<Node> {
        let node = Rc::get_mut(&mut lowest).expect("nobody shares it");
        node.listing = node.own_listing() + listing(&node.left) + listing(&below);
        node.right = below;
        lowest
    }
    let mut repeated = 0;
    spine.clear();
    for mut next in sorted {
        if spine.last().is_some_and(|last| last.compare_names(&next).is_eq()) {
            repeated += 1;
            continue;
        }
        let mut below: Link = None;
        while let Some(last) = spine.pop() {
            if last.priority >= next.priority {
                spine.push(last);
                break;
            }
            below = Some(end(last, below));
        }
        if below.is_some() {
            Rc::get_mut(&mut next).expect("nobody shares it").left = below;
        }
        spine.push(next);
    }
    let mut root: Link = None;
    while let Some(last) = spine.pop() {
        root = Some(end(last, root));
    }
    (root, repeated)
}

fn listing(link: &Link) -> u32 {
    link.as_ref().map_or(0, |node| node.listing)
}

/// Splits a treap into the names before `name` and those after it. Its depth bounds the stack:
/// logarithmic, see the module.
fn split(link: Link, name: &[u8]) -> (Link, Link) {
    let Some(mut shared) = link else { return (None, None) };
    let before = shared.name() < name;
    let node = Rc::make_mut(&mut shared);
    if before {
        let (middle, after) = split(node.right.take(), name);
        node.right = middle;
        node.listing = node.own_listing() + listing(&node.left) + listing(&node.right);
        (Some(shared), after)
    } else {
        let (before, middle) = split(node.left.take(), name);
        node.left = middle;
        node.listing = node.own_listing() + listing(&node.left) + listing(&node.right);
        (before, Some(shared))
    }
}

/// Joins two treaps, all names of the first before all of the second.
fn merge(first: Link, second: Link) -> Link {
    let (mut a, mut b) = match (first, second) {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return a.or(b),
    };
    if a.priority >= b.priority {
        let node = Rc::make_mut(&mut a);
        node.listing += b.listing;
        node.right = merge(node.right.take(), Some(b));
        Some(a)
    } else {
        let node = Rc::make_mut(&mut b);
        node.listing += a.listing;
        node.left = merge(Some(a), node.left.take());
        Some(b)
    }
}

/// The children in the order of their names.
#[derive(Debug)]
pub struct Children<'a> {
    /// Nodes whose left side is done; the next one on top.
    waiting: Vec<&'a Node>,
}

impl<'a> Children<'a> {
    /// All children.
    pub fn new(root: &'a Link) -> Self {
        let mut children = Self { waiting: Vec::new() };
        children.descend(root);
        children
    }

    /// The children from the one that holds byte `offset` of the DIRECTORY reply; and how many
    /// bytes of that child's entry lie before it.
    pub fn from_offset(root: &'a Link, offset: usize) -> (Self, usize) {
        let mut children = Self { waiting: Vec::new() };
        let mut rest = offset;
        let mut link = root;
        while let Some(node) = link {
            let before = listing(&node.left) as usize;
            let own = node.own_listing() as usize;
            if rest < before {
                children.waiting.push(node);
                link = &node.left;
            } else if rest < before + own {
                children.waiting.push(node);
                return (children, rest - before);
            } else {
                rest -= before + own;
                link = &node.right;
            }
        }
        (children, 0)
    }

    /// The children after the one with this name, whether that exists or not.
    pub fn after(root: &'a Link, name: &[u8]) -> Self {
        let mut children = Self { waiting: Vec::new() };
        let mut link = root;
        while let Some(node) = link {
            if name < node.name() {
                children.waiting.push(node);
                link = &node.left;
            } else {
                link = &node.right;
            }
        }
        children
    }

    fn descend(&mut self, mut link: &'a Link) {
        while let Some(node) = link {
            self.waiting.push(node);
            link = &node.left;
        }
    }
}

impl<'a> Iterator for Children<'a> {
    type Item = &'a Node;

    fn next(&mut self) -> Option<&'a Node> {
        let node = self.waiting.pop()?;
        self.descend(&node.right);
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;
    use wire::{Access, Permission};

    fn node(name: &[u8]) -> Rc<Node> {
        Rc::new(Node::new(name, &[Permission::new(0, Access::NONE)], b"", 42))
    }

    fn names(root: &Link) -> Vec<Vec<u8>> {
        Children::new(root).map(|child| child.name().to_vec()).collect()
    }

    fn depth(link: &Link) -> usize {
        link.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    fn check(link: &Link) -> u32 {
        let Some(node) = link else { return 0 };
        let both = check(&node.left) + check(&node.right);
        for side in [&node.left, &node.right].into_iter().flatten() {
            assert!(side.priority <= node.priority);
        }
        assert_eq!(node.listing, both + node.own_listing());
        node.listing
    }

    proptest! {
        /// Against a sorted set; a snapshot taken half-way never changes.
        #[test]
        fn like_a_sorted_set(steps: Vec<(bool, u8)>, more: Vec<(bool, u8)>) {
            let mut root: Link = None;
            let mut model = BTreeSet::new();
            let apply = |root: &mut Link, model: &mut BTreeSet<Vec<u8>>, step: &(bool, u8)| {
                let name = format!("{}", step.1 % 40).into_bytes();
                if step.0 {
                    assert_eq!(insert(root, node(&name)), model.insert(name));
                } else {
                    assert_eq!(remove(root, &name).is_some(), model.remove(&name));
                }
                check(root);
            };
            steps.iter().for_each(|step| apply(&mut root, &mut model, step));
            let snapshot = root.clone();
            let then: Vec<_> = model.iter().cloned().collect();
            more.iter().for_each(|step| apply(&mut root, &mut model, step));
            prop_assert_eq!(names(&root), model.iter().cloned().collect::<Vec<_>>());
            prop_assert_eq!(&names(&snapshot), &then);
            let listing: Vec<u8> =
                then.iter().flat_map(|name| [name, &b"\0"[..]].concat()).collect();
            for offset in 0..=listing.len() {
                let (rest, skipped) = Children::from_offset(&snapshot, offset);
                let bytes: Vec<u8> =
                    rest.flat_map(|child| [child.name(), &b"\0"[..]].concat()).collect();
                prop_assert_eq!(&bytes[skipped.min(bytes.len())..], &listing[offset..]);
            }
            for name in then.iter().chain([&b"15x".to_vec()]) {
                let rest: Vec<_> =
                    Children::after(&snapshot, name).map(|c| c.name().to_vec()).collect();
                let expected: Vec<_> = then.iter().filter(|n| *n > name).cloned().collect();
                prop_assert_eq!(rest, expected);
            }
        }
    }

    /// Built at once or name by name: the same treap.
    #[test]
    fn built_at_once() {
        for count in 0..60 {
            let name = |number: usize| format!("n{:03}", number * 7 % 61).into_bytes();
            let mut one_by_one: Link = None;
            (0..count).for_each(|number| assert!(insert(&mut one_by_one, node(&name(number)))));
            let mut sorted: Vec<_> = (0..count).map(name).collect();
            sorted.sort();
            let nodes = sorted.iter().map(|name| node(name));
            let (at_once, repeated) = build(nodes, &mut Vec::new());
            assert_eq!(repeated, 0);
            check(&at_once);
            assert_eq!(format!("{at_once:?}"), format!("{one_by_one:?}"));
            let twice = sorted.iter().flat_map(|name| [node(name), node(name)]);
            let (again, repeated) = build(twice, &mut Vec::new());
            assert_eq!(repeated, sorted.len());
            assert_eq!(format!("{again:?}"), format!("{at_once:?}"));
        }
    }

    #[test]
    fn shallow_for_sorted_names() {
        let mut root: Link = None;
        for number in 0..10_000 {
            assert!(insert(&mut root, node(format!("{number:05}").as_bytes())));
        }
        assert!(depth(&root) < 50, "{}", depth(&root));
    }
}
