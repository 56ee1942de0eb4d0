//! The checker checked: an honest server passes, and each way of being wrong is noticed.
//!
//! The server here is as small as the script allows: one domain, one connection at a time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

/// One way of being wrong. The numbered ones act at the n-th occasion.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    ForgetsWrite(u32),
    ServesOldValue(u32),
    LosesEvent(u32),
    InventsEvent(u32),
    CommitsSpoilt,
    CommitsAborted,
    EndsTwice(u32),
    WatchesTwice(u32),
    AnswersTwice(u32),
    NeverAnswers(u32),
    ListsRemoved,
    WrongError,
}

type Nodes = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
struct Transaction {
    nodes: Nodes,
    read: BTreeMap<String, u64>,
    changed: BTreeSet<String>,
}

struct Server {
    fault: Fault,
    nodes: Nodes,
    generations: BTreeMap<String, u64>,
    generation: u64,
    watches: Vec<(String, String)>,
    transactions: BTreeMap<u32, Transaction>,
    next_transaction: u32,
    occasions: u32,
    removed: BTreeSet<String>,
    out: Vec<u8>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

fn is_within(path: &str, above: &str) -> bool {
    path == above || path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

fn create(nodes: &mut Nodes, path: &str, value: Vec<u8>) {
    let above = parent(path);
    if !above.is_empty() && !nodes.contains_key(above) {
        create(nodes, above, Vec::new());
    }
    nodes.insert(path.to_owned(), value);
}

impl Server {
    fn new(fault: Fault) -> Server {
        Server {
            fault,
            nodes: Nodes::new(),
            generations: BTreeMap::new(),
            generation: 0,
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            next_transaction: 1,
            occasions: 0,
            removed: BTreeSet::new(),
            out: Vec::new(),
        }
    }

    /// Whether the fault acts now; `wrap` makes the numbered fault of this occasion.
    fn acts(&mut self, wrap: impl Fn(u32) -> Fault) -> bool {
        let same =
            |fault: Fault| std::mem::discriminant(&fault) == std::mem::discriminant(&self.fault);
        if !same(wrap(0)) {
            return false;
        }
        self.occasions += 1;
        wrap(self.occasions) == self.fault
    }

    fn fire(&mut self, path: &str, exact: bool) {
        for (watched, token) in self.watches.clone() {
            let covers = if exact { path == watched } else { is_within(path, &watched) };
            if !covers || self.acts(Fault::LosesEvent) {
                continue;
            }
            let text = format!("{path}\0{token}\0");
            self.send(15, 0, text.as_bytes());
        }
        if self.acts(Fault::InventsEvent) {
            self.send(15, 0, b"elsewhere\0nobody\0");
        }
    }

    fn touch(&mut self, path: &str) {
        self.generation += 1;
        self.generations.insert(path.to_owned(), self.generation);
    }

    fn send(&mut self, kind: u32, request: u32, payload: &[u8]) {
        for word in [kind, request, 0, payload.len() as u32] {
            self.out.extend(word.to_le_bytes());
        }
        self.out.extend(payload);
    }

    fn view(&self, transaction: u32) -> &Nodes {
        self.transactions.get(&transaction).map_or(&self.nodes, |t| &t.nodes)
    }

    fn note_read(&mut self, transaction: u32, path: &str) {
        let generation = self.generations.get(path).copied().unwrap_or(0);
        if let Some(t) = self.transactions.get_mut(&transaction) {
            t.read.entry(path.to_owned()).or_insert(generation);
        }
    }

    fn change(&mut self, transaction: u32, path: &str, value: Option<Vec<u8>>) {
        if let Some(t) = self.transactions.get_mut(&transaction) {
            t.changed.insert(path.to_owned());
            match value {
                Some(value) => create(&mut t.nodes, path, value),
                None => drop(t.nodes.remove(path)),
            }
            return;
        }
        self.touch(path);
        match value {
            Some(value) => create(&mut self.nodes, path, value),
            None => {
                let gone: Vec<String> =
                    self.nodes.keys().filter(|node| is_within(node, path)).cloned().collect();
                gone.iter().skip(1).for_each(|node| self.fire(node, true));
                self.nodes.retain(|node, _| !is_within(node, path));
                self.removed.extend(gone);
            }
        }
        self.fire(path, false);
    }

    fn end(&mut self, id: u32, commit: bool) -> Result<Vec<u8>, &'static str> {
        let Some(t) = self.transactions.remove(&id) else { return Err("ENOENT") };
        if !commit && self.fault != Fault::CommitsAborted {
            return Ok(b"OK\0".to_vec());
        }
        let now = |path: &String| self.generations.get(path).copied().unwrap_or(0);
        let is_spoilt = t.read.iter().any(|(path, seen)| now(path) != *seen);
        if is_spoilt && self.fault != Fault::CommitsSpoilt {
            return Err("EAGAIN");
        }
        for path in &t.changed {
            match t.nodes.get(path) {
                Some(value) => create(&mut self.nodes, path, value.clone()),
                None => drop(self.nodes.remove(path)),
            }
            self.touch(path);
            self.fire(path, false);
        }
        if self.acts(Fault::EndsTwice) {
            return self.end(id, commit);
        }
        Ok(b"OK\0".to_vec())
    }

    fn execute(&mut self, op: u32, id: u32, payload: &[u8]) -> Result<Vec<u8>, &'static str> {
        let cut = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
        let path = String::from_utf8_lossy(&payload[..cut]).into_owned();
        let rest = payload.get(cut + 1..).unwrap_or_default();
        let token = String::from_utf8_lossy(rest).trim_end_matches('\0').to_owned();
        let is_bad = path.contains("//") || path.ends_with('/') || path.contains('&');
        if is_bad && ![6, 7].contains(&op) {
            return Err(if self.fault == Fault::WrongError { "ENOENT" } else { "EINVAL" });
        }
        let done = Ok(b"OK\0".to_vec());
        match op {
            1 => {
                self.note_read(id, &path);
                self.children(id, &path)
            }
            2 => {
                self.note_read(id, &path);
                let value = self.view(id).get(&path).cloned().ok_or("ENOENT");
                if value.as_ref().is_ok_and(|v| !v.is_empty()) && self.acts(Fault::ServesOldValue) {
                    return Ok(b"old".to_vec());
                }
                value
            }
            3 => self.view(id).contains_key(&path).then(|| b"n1\0".to_vec()).ok_or("ENOENT"),
            4 if self.watches.contains(&(path.clone(), token.clone())) => Err("EEXIST"),
            4 => {
                self.watches.push((path.clone(), token.clone()));
                let text = format!("{path}\0{token}\0");
                self.send(15, 0, text.as_bytes());
                if self.acts(Fault::WatchesTwice) { self.execute(op, id, payload) } else { done }
            }
            5 => {
                let before = self.watches.len();
                self.watches.retain(|watch| *watch != (path.clone(), token.clone()));
                if self.watches.len() < before { done } else { Err("ENOENT") }
            }
            6 => {
                let nodes = self.nodes.clone();
                let id = self.next_transaction;
                self.next_transaction += 1;
                self.transactions.insert(id, Transaction { nodes, ..Transaction::default() });
                Ok(format!("{id}\0").into_bytes())
            }
            7 => self.end(id, path == "T"),
            11 => {
                if !self.acts(Fault::ForgetsWrite) {
                    self.change(id, &path, Some(rest.to_vec()));
                }
                done
            }
            12 => {
                if !self.view(id).contains_key(&path) {
                    self.change(id, &path, Some(Vec::new()));
                }
                done
            }
            13 if self.view(id).contains_key(&path) => {
                self.change(id, &path, None);
                done
            }
            13 if self.view(id).contains_key(parent(&path)) => done,
            13 => Err("ENOENT"),
            _ => Err("ENOSYS"),
        }
    }

    fn children(&self, id: u32, path: &str) -> Result<Vec<u8>, &'static str> {
        let nodes = self.view(id);
        if !nodes.contains_key(path) {
            return Err("ENOENT");
        }
        let mut all: BTreeSet<&String> = nodes.keys().collect();
        if self.fault == Fault::ListsRemoved {
            all.extend(&self.removed);
        }
        let below = all.into_iter().filter(|node| parent(node) == path && !node.is_empty());
        let names = below.filter_map(|node| node.rsplit('/').next());
        Ok(names.flat_map(|name| format!("{name}\0").into_bytes()).collect())
    }

    fn serve(&mut self, mut stream: UnixStream) -> std::io::Result<()> {
        loop {
            let mut header = [0; 16];
            stream.read_exact(&mut header)?;
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            let (op, request, id) = (word(0), word(4), word(8));
            let mut payload = vec![0; word(12) as usize];
            stream.read_exact(&mut payload)?;
            if self.acts(Fault::NeverAnswers) {
                continue;
            }
            let answer = self.execute(op, id, &payload);
            let repeats = if self.acts(Fault::AnswersTwice) { 2 } else { 1 };
            for _ in 0..repeats {
                match &answer {
                    Ok(payload) => self.send(op, request, payload),
                    Err(name) => self.send(16, request, format!("{name}\0").as_bytes()),
                }
            }
            stream.write_all(&std::mem::take(&mut self.out))?;
        }
    }
}

/// Runs the script against a server with this fault: its last line, and whether it was content.
fn run(fault: Fault, seed: u64) -> (String, bool) {
    let name = format!("xsload-{}-{seed}-{:?}", std::process::id(), thread::current().id());
    let path: PathBuf = std::env::temp_dir().join(name);
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut server = Server::new(fault);
        server.nodes.insert("data".into(), Vec::new());
        // The script hangs up when it is done.
        let _ = server.serve(stream);
    });
    let out = Command::new(env!("CARGO_BIN_EXE_xsload"))
        .args(["script", "--requests", "3000", "--event-limit-s", "1", "--reply-limit-s", "2"])
        .args(["--seed", &seed.to_string(), "--socket"])
        .arg(&path)
        .output()
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let last = text.lines().last().unwrap_or_default().to_owned();
    (last, out.status.success())
}

fn assert_caught(fault: Fault, field: &str) {
    let (line, is_content) = run(fault, 1);
    assert!(!is_content, "not noticed: {line}");
    let is_zero = line.contains(&format!("\"{field}\":0"));
    assert!(line.contains(field) && !is_zero, "{field} should count it: {line}");
}

#[test]
fn an_honest_server_passes_with_every_seed() {
    for seed in 1..=8 {
        let (line, is_content) = run(Fault::None, seed);
        assert!(is_content, "seed {seed}: {line}");
        assert!(line.contains("\"needless_conflicts\":0"), "seed {seed}: {line}");
    }
}

#[test]
fn wrong_answers_are_noticed() {
    assert_caught(Fault::ForgetsWrite(40), "wrong");
    assert_caught(Fault::ServesOldValue(41), "wrong");
    assert_caught(Fault::ServesOldValue(40), "doomed");
    assert_caught(Fault::CommitsSpoilt, "wrong");
    assert_caught(Fault::CommitsAborted, "wrong");
    assert_caught(Fault::ListsRemoved, "wrong");
    assert_caught(Fault::WrongError, "wrong");
}

#[test]
fn requests_executed_or_answered_twice_are_noticed() {
    assert_caught(Fault::EndsTwice(5), "repeated");
    assert_caught(Fault::WatchesTwice(5), "repeated");
    assert_caught(Fault::AnswersTwice(50), "repeated");
}

#[test]
fn lost_requests_are_noticed() {
    assert_caught(Fault::NeverAnswers(100), "lost");
}

#[test]
fn lost_and_invented_watch_events_are_noticed() {
    assert_caught(Fault::LosesEvent(5), "events_lost");
    assert_caught(Fault::InventsEvent(5), "events_stray");
}
