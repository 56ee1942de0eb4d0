//! What the store must hold: the nodes below one base that only this program writes.

use std::collections::BTreeMap;

/// The nodes, by their path below the base (`""` is the base itself).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    nodes: BTreeMap<String, Vec<u8>>,
}

/// What removing a path does.
#[derive(Debug, PartialEq, Eq)]
pub enum Removal {
    /// These nodes go, the named one first.
    Nodes(Vec<String>),
    /// There is nothing to remove, which is no error.
    Nothing,
    /// The parent does not exist: ENOENT.
    NoParent,
}

/// The path of the node above.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

/// Whether `path` is `above` or below it.
pub fn is_within(path: &str, above: &str) -> bool {
    above.is_empty()
        || path == above
        || path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

impl Model {
    /// The base alone, with an empty value.
    pub fn new() -> Self {
        Model { nodes: BTreeMap::from([(String::new(), Vec::new())]) }
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The path of the node with this rank.
    pub fn nth(&self, rank: usize) -> &str {
        self.nodes.keys().nth(rank % self.nodes.len()).map_or("", String::as_str)
    }

    /// A node's value.
    pub fn value(&self, path: &str) -> Option<&[u8]> {
        self.nodes.get(path).map(Vec::as_slice)
    }

    /// Whether the node exists.
    pub fn holds(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// The names of a node's children, sorted.
    pub fn children(&self, path: &str) -> Option<Vec<String>> {
        if !self.holds(path) {
            return None;
        }
        let below = |node: &String| {
            let name = if path.is_empty() {
                node.as_str()
            } else {
                node.strip_prefix(path)?.strip_prefix('/')?
            };
            (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
        };
        Some(self.nodes.keys().filter_map(below).collect())
    }

    /// Writes a value; missing nodes above are created.
    pub fn write(&mut self, path: &str, value: &[u8]) {
        self.create_above(path);
        self.nodes.insert(path.to_owned(), value.to_vec());
    }

    /// Creates a node; says whether it was missing.
    pub fn mkdir(&mut self, path: &str) -> bool {
        if self.holds(path) {
            return false;
        }
        self.write(path, b"");
        true
    }

    /// What removing `path` would do.
    pub fn removal(&self, path: &str) -> Removal {
        if self.holds(path) {
            let nodes = self.nodes.keys().filter(|node| is_within(node, path));
            return Removal::Nodes(nodes.cloned().collect());
        }
        if self.holds(parent(path)) { Removal::Nothing } else { Removal::NoParent }
    }

    /// Removes a node and all below it.
    pub fn remove(&mut self, path: &str) {
        self.nodes.retain(|node, _| !is_within(node, path));
    }

    fn create_above(&mut self, path: &str) {
        let above = parent(path);
        if !path.is_empty() && !self.holds(above) {
            self.create_above(above);
            self.nodes.insert(above.to_owned(), Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_above_are_created_and_children_listed() {
        let mut model = Model::new();
        model.write("a/b/c", b"1");
        model.write("ab", b"2");
        assert_eq!(model.children("").unwrap(), ["a", "ab"]);
        assert_eq!(model.children("a").unwrap(), ["b"]);
        assert_eq!(model.children("x"), None);
        assert!(!model.mkdir("a/b"));
        assert_eq!(
            model.removal("a"),
            Removal::Nodes(vec!["a".into(), "a/b".into(), "a/b/c".into()])
        );
        model.remove("a");
        assert_eq!(model.children("").unwrap(), ["ab"]);
        assert_eq!(model.removal("a"), Removal::Nothing);
        assert_eq!(model.removal("a/b"), Removal::NoParent);
    }
}
