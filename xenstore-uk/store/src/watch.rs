//! Watches, found by path: a change costs the depth of its path and the watches that match.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::node::{ROOT_HASH, child_hash};
use crate::path::components;

/// A watch.
#[derive(Debug, PartialEq, Eq)]
pub struct Watch {
    /// Order of registration.
    pub serial: u64,
    /// The connection that hears of it.
    pub client: u16,
    /// Absolute path or special name.
    pub path: Box<[u8]>,
    /// Length of the part of the path that the client did not spell out.
    pub implicit: u16,
    /// The client's word for it.
    pub token: Box<[u8]>,
    /// How many levels below the path it sees; `None` for all.
    pub depth: Option<u32>,
    /// Durable record.
    pub record: u32,
}

impl Watch {
    /// What the client calls `path`, which lies at or below the watched one.
    pub fn shown<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        path.get(usize::from(self.implicit)..).unwrap_or(path)
    }

    /// Bytes it is accounted with.
    pub fn memory(&self) -> usize {
        memory(&self.path, &self.token)
    }
}

/// What a watch is accounted with beside path and token, in bytes: about what its record and its
/// places in two indices take.
const WATCH_OVERHEAD: usize = 128;

/// Bytes that a watch on this path with this token is accounted with.
pub(crate) fn memory(path: &[u8], token: &[u8]) -> usize {
    WATCH_OVERHEAD + path.len() + token.len()
}

/// The hashes of a path and of all paths above it, or of a special name.
pub(crate) fn hashes_above(path: &[u8]) -> impl Iterator<Item = u64> {
    let root = root_hash(path);
    let below = components(path).scan(root, |hash, name| {
        *hash = child_hash(*hash, name);
        Some(*hash)
    });
    core::iter::once(root).chain(below)
}

/// What an index needs to know of a watch, so that it need not be made before it may fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sketch {
    /// The connection that hears of it.
    pub client: u16,
    /// Hash of its path.
    pub hash: u64,
    /// Bytes it is accounted with.
    pub memory: u32,
}

impl Sketch {
    /// That of a watch on this path with this token.
    pub fn new(client: u16, path: &[u8], token: &[u8]) -> Self {
        Self { client, hash: path_hash(path), memory: memory(path, token) as u32 }
    }
}

/// Which watches an event concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Those on the path and above it, as deep as they see.
    Subtree,
    /// Those on the very path: a node that went with its parent.
    Exact,
    /// Special event without a domain: watches on the name without a depth.
    Plain,
    /// Special event with a domain: on the full name, or on the name with a depth.
    Numbered,
}

/// All watches, by the hash of their paths: flat, because a guest may watch a path of a thousand
/// components and nothing here may use stack for each.
#[derive(Debug, Default)]
pub struct WatchIndex {
    by_path: BTreeMap<u64, Vec<Rc<Watch>>>,
    count: usize,
}

/// Where the hashes of special names begin, so that they meet no path's.
const SPECIAL_HASH: u64 = 0x0a7_5161;

fn root_hash(path: &[u8]) -> u64 {
    if path.first() == Some(&b'@') { SPECIAL_HASH } else { ROOT_HASH }
}

/// The hash of a path or special name, as the tree computes it.
pub(crate) fn path_hash(path: &[u8]) -> u64 {
    components(path).fold(root_hash(path), child_hash)
}

impl WatchIndex {
    /// Number of watches.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds a watch.
    pub fn add(&mut self, watch: Rc<Watch>) {
        self.by_path.entry(path_hash(&watch.path)).or_default().push(watch);
        self.count += 1;
    }

    /// The watch of a client on exactly this path with this token.
    pub fn find(&self, client: u16, path: &[u8], token: &[u8]) -> Option<&Rc<Watch>> {
        self.by_path
            .get(&path_hash(path))?
            .iter()
            .find(|watch| watch.client == client && *watch.path == *path && *watch.token == *token)
    }

    /// Removes a watch.
    pub fn remove(&mut self, watch: &Watch) {
        let hash = path_hash(&watch.path);
        if let Some(here) = self.by_path.get_mut(&hash) {
            here.retain(|other| other.serial != watch.serial);
            if here.is_empty() {
                self.by_path.remove(&hash);
            }
            self.count -= 1;
        }
    }

    /// Collects the watches that an event at `path` concerns, in the order of clients and of
    /// registration.
    pub fn matching(&self, path: &[u8], kind: Match, into: &mut Vec<Rc<Watch>>) {
        if self.count == 0 {
            return;
        }
        let mut hash = root_hash(path);
        let mut rest = components(path);
        let mut prefix: &[u8] = &path[..1];
        loop {
            let left = rest.rest();
            if (kind != Match::Exact || left.is_empty())
                && let Some(here) = self.by_path.get(&hash)
            {
                let found = here
                    .iter()
                    .filter(|w| *w.path == *prefix && concerns(w, kind, left.is_empty(), left));
                into.extend(found.cloned());
            }
            let Some(name) = rest.next() else { break };
            hash = child_hash(hash, name);
            let until = path.len() - rest.rest().len() - usize::from(!rest.rest().is_empty());
            prefix = &path[..until];
        }
        if into.len() > 1 {
            into.sort_by_key(|watch| (watch.client, watch.serial));
        }
    }

    /// Collects the watches on exactly the path with this hash, for a node that goes with its
    /// parent.
    pub fn exact(&self, path: &[u8], hash: u64, into: &mut Vec<Rc<Watch>>) {
        if let Some(here) = self.by_path.get(&hash) {
            into.extend(here.iter().filter(|watch| *watch.path == *path).cloned());
            into.sort_by_key(|watch| (watch.client, watch.serial));
        }
    }
}

/// Whether an event at `path`, at or below the watch's path, concerns the watch.
pub fn concerns_path(watch: &Watch, kind: Match, path: &[u8]) -> bool {
    let left = path.get(watch.path.len()..).unwrap_or(b"");
    let left = if watch.path.len() == 1 { path } else { left };
    let left = left.strip_prefix(b"/").unwrap_or(left);
    concerns(watch, kind, left.is_empty(), left)
}

/// Whether an event `left` levels below a watch's path concerns it.
fn concerns(watch: &Watch, kind: Match, here: bool, left: &[u8]) -> bool {
    match kind {
        Match::Exact => here,
        Match::Plain => here && watch.depth.is_none(),
        Match::Numbered => here || watch.depth.is_some_and(|depth| depth > 0),
        Match::Subtree => match watch.depth {
            None => true,
            Some(_) if here => true,
            Some(depth) => components(left).count() <= depth as usize,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn watch(serial: u64, path: &str, depth: Option<u32>) -> Rc<Watch> {
        Rc::new(Watch {
            serial,
            client: (serial % 3) as u16,
            path: path.as_bytes().into(),
            implicit: 0,
            token: b"t"[..].into(),
            depth,
            record: 0,
        })
    }

    /// `xenstore.txt`, "Watches": a path matches if it is a child of the watched one.
    fn model(watch: &Watch, path: &str, kind: Match) -> bool {
        let watched = core::str::from_utf8(&watch.path).expect("ASCII");
        let same = watched == path;
        let inside = same
            || watched == "/"
            || path.strip_prefix(watched).is_some_and(|rest| rest.starts_with('/'));
        let depth = |path: &str| path.split('/').filter(|name| !name.is_empty()).count();
        let levels = depth(path).saturating_sub(depth(watched));
        match kind {
            Match::Exact => same,
            _ => inside && watch.depth.is_none_or(|depth| levels <= depth as usize),
        }
    }

    fn path_strategy() -> impl Strategy<Value = String> {
        prop::collection::vec("[ab]{1,2}", 0..4).prop_map(|parts| match parts.is_empty() {
            true => "/".to_string(),
            false => parts.iter().map(|part| format!("/{part}")).collect(),
        })
    }

    proptest! {
        #[test]
        fn like_looking_at_all(
            watches in prop::collection::vec((path_strategy(), prop::option::of(0u32..3)), 0..20),
            gone in prop::collection::vec(0usize..20, 0..10),
            path in path_strategy(),
        ) {
            let mut index = WatchIndex::default();
            let mut all: Vec<_> = watches
                .iter()
                .enumerate()
                .map(|(serial, (path, depth))| watch(serial as u64, path, *depth))
                .collect();
            all.iter().for_each(|watch| index.add(watch.clone()));
            for serial in gone {
                if let Some(at) = all.iter().position(|watch| watch.serial == serial as u64) {
                    index.remove(&all.remove(at));
                }
            }
            prop_assert_eq!(index.count(), all.len());
            for kind in [Match::Subtree, Match::Exact] {
                let mut found = Vec::new();
                index.matching(path.as_bytes(), kind, &mut found);
                let mut expected: Vec<_> = all
                    .iter()
                    .filter(|watch| {
                        let deeper = watch.path.len() > path.len();
                        !deeper && model(watch, &path, kind)
                    })
                    .cloned()
                    .collect();
                expected.sort_by_key(|watch| (watch.client, watch.serial));
                prop_assert_eq!(found, expected);
            }
        }
    }
}
