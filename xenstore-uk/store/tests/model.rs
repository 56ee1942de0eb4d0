//! Random requests against a slow and simple model: every reply, every watch event, the final
//! tree, also across restarts. Transactions must be serialisable: one that commits would have got
//! the same replies had all its requests come at the moment of its commit.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::{Host, TOOL};
use proptest::prelude::*;
use wire::Operation as O;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    /// Domain and letter; the owner first.
    permissions: Vec<(u16, char)>,
    value: String,
}

/// The tree as a sorted map of whole paths.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    nodes: BTreeMap<String, Node>,
}

fn parent(path: &str) -> String {
    match path.rfind('/') {
        Some(0) | None => "/".to_string(),
        Some(end) => path[..end].to_string(),
    }
}

fn is_at_or_below(path: &str, above: &str) -> bool {
    path == above || above == "/" || path.starts_with(&format!("{above}/"))
}

impl Model {
    fn new() -> Self {
        let node = || Node { permissions: vec![(0, 'n')], value: String::new() };
        let paths = ["/", "/tool", "/tool/xenstored"];
        Self { nodes: paths.into_iter().map(|path| (path.to_string(), node())).collect() }
    }

    fn letter(&self, path: &str, domid: u16) -> char {
        let entries = &self.nodes[path].permissions;
        if domid == TOOL || entries[0].0 == domid {
            return 'b';
        }
        entries[1..].iter().find(|entry| entry.0 == domid).map_or(entries[0].1, |entry| entry.1)
    }

    fn allows(&self, path: &str, domid: u16, wanted: char) -> bool {
        let letter = self.letter(path, domid);
        letter == 'b' || letter == wanted
    }

    /// ENOENT is told to those alone who might create the node.
    fn missing(&self, path: &str, domid: u16, wanted: char) -> String {
        let mut above = parent(path);
        while !self.nodes.contains_key(&above) {
            above = parent(&above);
        }
        if self.allows(&above, domid, wanted) { "ENOENT|" } else { "EACCES|" }.to_string()
    }

    fn check(&self, path: &str, domid: u16, wanted: char) -> Result<(), String> {
        match self.nodes.contains_key(path) {
            false => Err(self.missing(path, domid, wanted)),
            true if !self.allows(path, domid, wanted) => Err("EACCES|".to_string()),
            true => Ok(()),
        }
    }

    fn create(&mut self, path: &str, domid: u16, value: &str) {
        let above = parent(path);
        if !self.nodes.contains_key(&above) {
            self.create(&above, domid, "");
        }
        let mut permissions = self.nodes[&above].permissions.clone();
        if domid != TOOL {
            permissions[0].0 = domid;
        }
        self.nodes.insert(path.to_string(), Node { permissions, value: value.to_string() });
    }

    fn children(&self, path: &str) -> Vec<String> {
        let inside = self.nodes.keys().filter(|other| *other != "/" && parent(other) == path);
        inside.map(|other| other[other.rfind('/').expect("absolute") + 1..].to_string()).collect()
    }

    /// Executes a request, answers the reply's text.
    fn execute(&mut self, domid: u16, act: &Act) -> String {
        self.try_execute(domid, act).unwrap_or_else(|error| error)
    }

    fn try_execute(&mut self, domid: u16, act: &Act) -> Result<String, String> {
        let ok = Ok("OK|".to_string());
        match act {
            Act::Read(path) => {
                self.check(path, domid, 'r')?;
                Ok(self.nodes[path].value.clone())
            }
            Act::List(path) => {
                self.check(path, domid, 'r')?;
                Ok(self.children(path).iter().map(|name| format!("{name}|")).collect())
            }
            Act::Permissions(path) => {
                self.check(path, domid, 'r')?;
                let entries = &self.nodes[path].permissions;
                Ok(entries.iter().map(|(domid, letter)| format!("{letter}{domid}|")).collect())
            }
            Act::Write(path, value) => {
                match self.check(path, domid, 'w') {
                    Ok(()) => {
                        self.nodes.get_mut(path).expect("checked").value = value.clone();
                    }
                    Err(error) if error == "ENOENT|" => self.create(path, domid, value),
                    Err(error) => return Err(error),
                }
                ok
            }
            Act::Make(path) => {
                match self.check(path, domid, 'w') {
                    Ok(()) => {}
                    Err(error) if error == "ENOENT|" => self.create(path, domid, ""),
                    Err(error) => return Err(error),
                }
                ok
            }
            Act::Remove(path) => {
                match self.check(path, domid, 'w') {
                    Ok(()) if path == "/" => return Err("EINVAL|".to_string()),
                    Ok(()) => self.nodes.retain(|other, _| !is_at_or_below(other, path)),
                    Err(error) if error == "ENOENT|" => {
                        if !self.nodes.contains_key(&parent(path)) {
                            return Err(error);
                        }
                    }
                    Err(error) => return Err(error),
                }
                ok
            }
            Act::Allow(path, owner, letter) => {
                self.check(path, domid, 'w')?;
                let now = self.nodes[path].permissions[0].0;
                if domid != TOOL && domid != now {
                    return Err("EACCES|".to_string());
                }
                if domid != TOOL && *owner != now {
                    return Err("EPERM|".to_string());
                }
                let permissions = vec![(*owner, *letter), (16, 'r')];
                self.nodes.get_mut(path).expect("checked").permissions = permissions;
                ok
            }
        }
    }
}

/// A request about nodes.
#[derive(Clone, Debug)]
enum Act {
    Read(String),
    List(String),
    Permissions(String),
    Write(String, String),
    Make(String),
    Remove(String),
    Allow(String, u16, char),
}

impl Act {
    fn send(&self, host: &mut Host, domid: u16, transaction: u32) -> String {
        let (operation, payload) = match self {
            Self::Read(path) => (O::Read, format!("{path}\0")),
            Self::List(path) => (O::Directory, format!("{path}\0")),
            Self::Permissions(path) => (O::GetPermissions, format!("{path}\0")),
            Self::Write(path, value) => (O::Write, format!("{path}\0{value}")),
            Self::Make(path) => (O::MakeDirectory, format!("{path}\0")),
            Self::Remove(path) => (O::Remove, format!("{path}\0")),
            Self::Allow(path, owner, letter) => {
                (O::SetPermissions, format!("{path}\0{letter}{owner}\0r16\0"))
            }
        };
        host.request(domid, operation, transaction, payload.as_bytes()).text()
    }

    fn changes(&self) -> bool {
        !matches!(self, Self::Read(_) | Self::List(_) | Self::Permissions(_))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Act(u16, bool, Act),
    Begin(u16),
    End(u16, bool),
    Restart,
}

fn path() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec!["a", "b", "longer-name", "longer-name-2"]);
    (
        prop::sample::select(vec!["", "/tool", "/local", "/local/x"]),
        prop::collection::vec(leaf, 0..3),
    )
        .prop_map(|(base, leaves)| {
            let leaves: String = leaves.iter().map(|leaf| format!("/{leaf}")).collect();
            let path = format!("{base}{leaves}");
            if path.is_empty() { "/".to_string() } else { path }
        })
}

fn act() -> impl Strategy<Value = Act> {
    let value = prop::sample::select(vec![
        "",
        "1",
        "some longer value than fits a slot by far and \
        then some more so that the record needs two or three slots in the store of slots, really",
    ]);
    prop_oneof![
        2 => path().prop_map(Act::Read),
        1 => path().prop_map(Act::List),
        1 => path().prop_map(Act::Permissions),
        4 => (path(), value).prop_map(|(path, value)| Act::Write(path, value.to_string())),
        1 => path().prop_map(Act::Make),
        1 => path().prop_map(Act::Remove),
        2 => (path(), prop::sample::select(vec![0u16, 16, 17]),
              prop::sample::select(vec!['n', 'r', 'w', 'b']))
            .prop_map(|(path, owner, letter)| Act::Allow(path, owner, letter)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let domid = || prop::sample::select(vec![TOOL, TOOL, 16, 17]);
    prop_oneof![
        20 => (domid(), any::<bool>(), act())
            .prop_map(|(d, inside, act)| Step::Act(d, inside, act)),
        3 => domid().prop_map(Step::Begin),
        3 => (domid(), prop::bool::weighted(0.8)).prop_map(|(d, commit)| Step::End(d, commit)),
        1 => Just(Step::Restart),
    ]
}

/// A transaction as its client remembers it.
struct Open {
    id: u32,
    /// What it sees.
    copy: Model,
    done: Vec<(Act, String)>,
    /// Whether it changed anything.
    changes: bool,
    /// Changes of others since it began.
    disturbed: bool,
    lost: bool,
}

struct Run {
    host: Host,
    model: Model,
    open: BTreeMap<u16, Open>,
}

impl Run {
    fn disturb(&mut self) {
        self.open.values_mut().for_each(|open| open.disturbed = true);
    }

    fn act(&mut self, domid: u16, inside: bool, act: &Act) {
        match self.open.get_mut(&domid).filter(|_| inside) {
            Some(open) => {
                let reply = act.send(&mut self.host, domid, open.id);
                // Removing what is not there, or making what is, changes nothing.
                let before = open.copy.clone();
                if !open.lost {
                    assert_eq!(reply, open.copy.execute(domid, act), "{act:?} inside");
                }
                let idle = matches!(act, Act::Remove(_) | Act::Make(_)) && before == open.copy;
                open.changes |= act.changes() && reply == "OK|" && !idle;
                open.done.push((act.clone(), reply));
            }
            None => {
                let before = self.model.clone();
                let reply = act.send(&mut self.host, domid, 0);
                assert_eq!(reply, self.model.execute(domid, act), "{domid} {act:?}");
                if act.changes() && reply == "OK|" {
                    self.disturb();
                }
                self.check_events(&before, act, &reply);
            }
        }
    }

    /// The tool watches everything: it hears of each change, and of nothing else.
    fn check_events(&mut self, before: &Model, act: &Act, reply: &str) {
        let mut expected = Vec::new();
        match act {
            Act::Write(path, _) | Act::Allow(path, ..) if reply == "OK|" => {
                expected.push(format!("{path}|all|"));
            }
            Act::Make(path) if !before.nodes.contains_key(path) && reply == "OK|" => {
                expected.push(format!("{path}|all|"));
            }
            Act::Remove(path) if before.nodes.contains_key(path) && reply == "OK|" => {
                expected.push(format!("{path}|all|"));
            }
            _ => {}
        }
        assert_eq!(self.host.events(TOOL), expected, "{act:?}");
    }

    fn end(&mut self, domid: u16, commit: bool) {
        let Some(open) = self.open.remove(&domid) else { return };
        let word = if commit { "T" } else { "F" };
        let reply = self.host.call_in(domid, O::TransactionEnd, open.id, &[word]);
        match reply.as_str() {
            "OK|" if commit && open.changes => {
                assert!(!open.lost);
                for (act, reply) in &open.done {
                    assert_eq!(*reply, self.model.execute(domid, act), "not serialisable: {act:?}");
                }
                self.disturb();
            }
            "OK|" => assert!(!(commit && open.lost)),
            "EAGAIN|" => assert!(commit && (open.disturbed || open.lost), "a needless conflict"),
            other => panic!("{other}"),
        }
        self.host.events(TOOL);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Act(domid, inside, act) => self.act(*domid, *inside, act),
            Step::Begin(domid) if !self.open.contains_key(domid) => {
                let id = self.host.begin(*domid);
                let copy = self.model.clone();
                let open = Open {
                    id,
                    copy,
                    done: Vec::new(),
                    disturbed: false,
                    changes: false,
                    lost: false,
                };
                self.open.insert(*domid, open);
            }
            Step::Begin(_) => {}
            Step::End(domid, commit) => self.end(*domid, *commit),
            Step::Restart => {
                let digest = self.host.server.state().digest();
                let report = self.host.restart();
                assert_eq!((report.load.missing_slots, report.load.uncommitted), (0, 0));
                assert_eq!(self.host.server.state().digest(), digest);
                self.open.values_mut().for_each(|open| open.lost = true);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..Default::default()
    })]
    #[test]
    fn like_the_model(steps in prop::collection::vec(step(), 1..80)) {
        let mut host = Host::with_slots(
            store::Config::new(3, &[TOOL], 4),
            256 + 128 * 1024,
        );
        host.introduce(16);
        host.introduce(17);
        assert_eq!(host.call(TOOL, O::Watch, &["/", "all"]), "OK|");
        host.events(TOOL);
        let mut run = Run { host, model: Model::new(), open: BTreeMap::new() };
        for step in &steps {
            run.step(step);
        }
        for (path, node) in run.model.nodes.clone() {
            prop_assert_eq!(run.host.read(TOOL, &path), node.value);
        }
        let state = run.host.server.state();
        prop_assert_eq!(state.tree().nodes() as usize, run.model.nodes.len());
        for domid in [16, 17] {
            let owned = run.model.nodes.values().filter(|n| n.permissions[0].0 == domid).count();
            let used = state.domain(domid).map_or(0, |d| d.used(store::Quota::Nodes));
            prop_assert_eq!(used as usize, owned);
        }
    }
}
