//! Which watch events must come: each change on a watched path, at least once, soon.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::client::Event;
use crate::model::is_within;

/// Watches registered at once; a domain may have 128 on a stock server.
pub const WATCHES_MAX: usize = 8;

/// Events expected at once before the script waits for some.
pub const EXPECTED_MAX: usize = 256;

/// What was noticed about events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Events that came.
    pub seen: u64,
    /// Events beyond those expected: allowed.
    pub repeated: u64,
    /// Changes told by fewer events than changes, but told after the last one: allowed.
    pub coalesced: u64,
    /// Changes never told.
    pub lost: u64,
    /// Events for no watch of ours, or for a path that the watch does not cover.
    pub stray: u64,
}

/// Events still expected for one watch and path.
struct Expected {
    count: u64,
    since: Instant,
    seen_since: bool,
}

/// The registered watches and what they must tell.
pub struct Watches {
    /// Token and watched path (below the base).
    active: BTreeMap<String, String>,
    expected: BTreeMap<(String, String), Expected>,
    retired: BTreeMap<String, String>,
    limit: Duration,
    /// What was noticed.
    pub counts: Counts,
}

impl Watches {
    /// No watches; an event is lost when it has not come within `limit`.
    pub fn new(limit: Duration) -> Self {
        Watches {
            active: BTreeMap::new(),
            expected: BTreeMap::new(),
            retired: BTreeMap::new(),
            limit,
            counts: Counts::default(),
        }
    }

    /// The number of watches.
    pub fn len(&self) -> usize {
        self.active.len()
    }

    /// The token and path of the watch with this rank.
    pub fn nth(&self, rank: usize) -> Option<(String, String)> {
        let (token, path) = self.active.iter().nth(rank % self.active.len().max(1))?;
        Some((token.clone(), path.clone()))
    }

    /// A watch was registered; it fires once at once.
    pub fn add(&mut self, token: &str, path: &str, now: Instant) {
        self.active.insert(token.to_owned(), path.to_owned());
        self.expect(token, path, now);
    }

    /// A watch was removed; events already under way may still come.
    pub fn remove(&mut self, token: &str) {
        if let Some(path) = self.active.remove(token) {
            // Old tokens are kept a while only: their late events come soon or never.
            if self.retired.len() == WATCHES_MAX {
                self.retired.pop_first();
            }
            self.retired.insert(token.to_owned(), path);
        }
        self.expected.retain(|(owner, _), _| owner != token);
    }

    /// The node `path` was created or changed.
    pub fn changed(&mut self, path: &str, now: Instant) {
        for token in self.tokens(|watched| is_within(path, watched)) {
            self.expect(&token, path, now);
        }
    }

    /// The nodes `nodes` were removed by removing the first of them.
    pub fn removed(&mut self, nodes: &[String], now: Instant) {
        let Some(root) = nodes.first() else { return };
        self.changed(root, now);
        for node in &nodes[1..] {
            for token in self.tokens(|watched| watched == node) {
                self.expect(&token, node, now);
            }
        }
    }

    /// Whether no more changes may be made before some events have come.
    pub fn is_full(&self) -> bool {
        self.expected.len() >= EXPECTED_MAX
    }

    /// Whether this watch has told everything.
    pub fn is_settled(&self, token: &str) -> bool {
        !self.expected.keys().any(|(owner, _)| owner == token)
    }

    /// Whether every watch has told everything.
    pub fn is_quiet(&self) -> bool {
        self.expected.is_empty()
    }

    /// An event came; `path` is the part of its path below the base. Says whether it belongs here.
    pub fn saw(&mut self, event: &Event, path: Option<&str>) -> bool {
        self.counts.seen += 1;
        let known = self.active.get(&event.token).or_else(|| self.retired.get(&event.token));
        let covered = known.zip(path).is_some_and(|(watched, path)| is_within(path, watched));
        let (Some(path), true) = (path, covered) else {
            self.counts.stray += 1;
            return false;
        };
        let key = (event.token.clone(), path.to_owned());
        let Some(expected) = self.expected.get_mut(&key) else {
            self.counts.repeated += 1;
            return true;
        };
        expected.count -= 1;
        expected.seen_since = true;
        if expected.count == 0 {
            self.expected.remove(&key);
        }
        true
    }

    /// Gives up on events that are overdue.
    pub fn overdue(&mut self, now: Instant) -> Vec<(String, String)> {
        let limit = self.limit;
        let late = |e: &Expected| now.saturating_duration_since(e.since) > limit;
        let mut lost = Vec::new();
        for (key, expected) in &self.expected {
            if late(expected) && expected.seen_since {
                self.counts.coalesced += expected.count;
                println!("xsload: note: {} events fewer than changes, {key:?}", expected.count);
            } else if late(expected) {
                self.counts.lost += expected.count;
                lost.push(key.clone());
            }
        }
        self.expected.retain(|_, expected| !late(expected));
        lost
    }

    fn tokens(&self, covers: impl Fn(&str) -> bool) -> Vec<String> {
        let covering = self.active.iter().filter(|(_, watched)| covers(watched));
        covering.map(|(token, _)| token.clone()).collect()
    }

    fn expect(&mut self, token: &str, path: &str, now: Instant) {
        let fresh = Expected { count: 0, since: now, seen_since: false };
        let key = (token.to_owned(), path.to_owned());
        let expected = self.expected.entry(key).or_insert(fresh);
        expected.count += 1;
        expected.since = now;
        expected.seen_since = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(token: &str, path: &str) -> Event {
        Event { path: path.into(), token: token.into() }
    }

    fn saw(watches: &mut Watches, token: &str, path: &str) {
        watches.saw(&event(token, path), Some(path));
    }

    #[test]
    fn a_change_must_be_told_and_may_be_told_twice() {
        let now = Instant::now();
        let mut w = Watches::new(Duration::from_secs(1));
        w.add("t", "a", now);
        saw(&mut w, "t", "a");
        w.changed("a/b", now);
        w.changed("ab", now);
        assert!(!w.is_quiet());
        saw(&mut w, "t", "a/b");
        assert!(w.is_quiet());
        saw(&mut w, "t", "a/b");
        assert_eq!((w.counts.repeated, w.counts.stray), (1, 0));
        saw(&mut w, "t", "ab");
        saw(&mut w, "u", "a");
        assert_eq!(w.counts.stray, 2);
    }

    #[test]
    fn what_is_never_told_is_lost_and_what_is_told_once_for_two_is_not() {
        let now = Instant::now();
        let later = now + Duration::from_secs(2);
        let mut w = Watches::new(Duration::from_secs(1));
        w.add("t", "a", now);
        saw(&mut w, "t", "a");
        w.changed("a", now);
        w.changed("a", now);
        saw(&mut w, "t", "a");
        assert!(w.overdue(later).is_empty());
        assert_eq!((w.counts.coalesced, w.counts.lost), (1, 0));
        w.changed("a", now);
        w.changed("a", now);
        assert_eq!(w.overdue(later).len(), 1);
        assert_eq!(w.counts.lost, 2);
    }

    #[test]
    fn removal_tells_those_above_and_those_who_watch_exactly_what_is_gone() {
        let now = Instant::now();
        let mut w = Watches::new(Duration::from_secs(1));
        for (token, path) in [("top", ""), ("deep", "a/b"), ("none", "a/x")] {
            w.add(token, path, now);
            saw(&mut w, token, path);
        }
        w.removed(&["a".into(), "a/b".into()], now);
        assert!(w.is_settled("none"));
        saw(&mut w, "top", "a");
        saw(&mut w, "deep", "a/b");
        assert!(w.is_quiet());
    }
}
