//! A seeded script of requests whose every answer is known beforehand.
//!
//! The script owns the nodes below one base, so its model knows what each answer must be. What a
//! request executed twice would show (a transaction that has already ended, a watch that already
//! exists or is already gone) is counted apart from other wrong answers.

use std::io;
use std::time::{Duration, Instant};

use crate::client::{Answer, Client};
use crate::latency::Histogram;
use crate::model::{Model, Removal, parent};
use crate::random::Random;
use crate::tally::Tally;
use crate::watches::{WATCHES_MAX, Watches};
use crate::wire::{Op, strings};

/// Nodes kept at once: well below a stock server's 1,000 per domain, transactions included.
const NODES_MAX: usize = 120;

/// Levels below the base.
const DEPTH_MAX: usize = 4;

/// Names per level: few, so that requests meet the same nodes again.
const NAMES: usize = 7;

/// A value is usually short; one in sixteen is up to this long (a stock server takes 2,048).
const LONG_VALUE: usize = 1500;

/// How long the script waits between looks for events that are under way.
const SETTLE_PAUSE: Duration = Duration::from_millis(2);

/// What a script is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seed of the whole script.
    pub seed: u64,
    /// Path of the nodes it owns.
    pub base: String,
    /// How long a watch event may take.
    pub event_limit: Duration,
    /// Whether faults are injected: see [`Tally::doomed`].
    pub forgives_doomed: bool,
    /// Whether a kernel answers WATCH and UNWATCH on its own, always with success.
    pub behind_kernel: bool,
}

/// Where a request was made, for complaints.
fn within(transaction: u32) -> &'static str {
    if transaction == 0 { "" } else { " in a transaction" }
}

/// A running script.
pub struct Script {
    pub(crate) client: Client,
    pub(crate) model: Model,
    pub(crate) watches: Watches,
    pub(crate) random: Random,
    pub(crate) settings: Settings,
    pub(crate) tally: Tally,
    /// Wrong answers inside the transaction under way, until its end says what they are.
    pub(crate) suspects: Option<Vec<String>>,
    permissions: Vec<String>,
    tokens: u64,
    /// Latencies of all requests.
    pub latency: Histogram,
}

impl Script {
    /// Clears the base and creates it anew.
    pub fn new(client: Client, settings: Settings) -> io::Result<Script> {
        let mut script = Script {
            client,
            model: Model::new(),
            watches: Watches::new(settings.event_limit),
            random: Random::new(settings.seed),
            tally: Tally { forgives_doomed: settings.forgives_doomed, ..Tally::default() },
            settings,
            suspects: None,
            permissions: Vec::new(),
            tokens: 0,
            latency: Histogram::new(),
        };
        // A former run may have left nodes; that there are none is no error either.
        let _ = script.call(Op::Rm, 0, "", b"")?;
        let answer = script.call(Op::Write, 0, "", b"")?;
        script.check_done(&answer, "write base");
        if let Ok(list) = script.call(Op::GetPerms, 0, "", b"")? {
            script.permissions = strings(&list);
        }
        Ok(script)
    }

    /// What has been counted.
    pub fn tally(&self) -> Tally {
        let mut tally = self.tally;
        tally.events = self.watches.counts;
        tally.repeated += self.client.repeated;
        tally
    }

    /// Makes one step: one request, or a transaction of several.
    pub fn step(&mut self) -> io::Result<()> {
        match self.random.below(100) {
            0..=29 => self.write()?,
            30..=54 => self.read(0, None)?,
            55..=64 => self.directory(0, None)?,
            65..=69 => self.mkdir()?,
            70..=76 => self.remove()?,
            77..=79 => self.permissions()?,
            80..=89 => self.transaction()?,
            90..=93 => self.watch()?,
            94..=96 => self.unwatch()?,
            _ => self.refused()?,
        }
        self.note_events();
        if self.watches.is_full() {
            self.settle(|watches| !watches.is_full())?;
        }
        Ok(())
    }

    /// Waits for every event that is still under way and checks the whole tree once.
    pub fn finish(&mut self) -> io::Result<()> {
        self.settle(Watches::is_quiet)?;
        for rank in 0..self.model.len() {
            let path = self.model.nth(rank).to_owned();
            self.read_path(0, None, &path)?;
            self.directory_path(0, None, &path)?;
        }
        while self.watches.len() > 0 {
            self.unwatch()?;
        }
        let answer = self.call(Op::Rm, 0, "", b"")?;
        self.check_done(&answer, "rm base");
        Ok(())
    }

    /// One request on `path` below the base, `rest` following the path's zero byte.
    pub(crate) fn call(
        &mut self,
        op: Op,
        transaction: u32,
        path: &str,
        rest: &[u8],
    ) -> io::Result<Answer> {
        let mut payload = self.full(path).into_bytes();
        payload.push(0);
        payload.extend_from_slice(rest);
        self.raw(op, transaction, &payload)
    }

    pub(crate) fn raw(&mut self, op: Op, transaction: u32, payload: &[u8]) -> io::Result<Answer> {
        let answer = self.client.call(op, transaction, payload)?;
        self.tally.requests += 1;
        self.latency.add(self.client.latency.as_nanos() as u64);
        Ok(answer)
    }

    fn full(&self, path: &str) -> String {
        if path.is_empty() {
            return self.settings.base.clone();
        }
        format!("{}/{path}", self.settings.base)
    }

    /// A path that exists in three of four cases.
    pub(crate) fn some_path(&mut self) -> String {
        if self.random.chance(75) {
            let rank = self.random.below(self.model.len());
            return self.model.nth(rank).to_owned();
        }
        self.new_path()
    }

    /// A path that may or may not exist, never the base.
    pub(crate) fn new_path(&mut self) -> String {
        let depth = 1 + self.random.below(DEPTH_MAX);
        let names: Vec<String> =
            (0..depth).map(|_| format!("n{}", self.random.below(NAMES))).collect();
        names.join("/")
    }

    /// A path to write to: an existing one when there are enough nodes.
    pub(crate) fn write_path(&mut self) -> String {
        if self.model.len() >= NODES_MAX { self.existing_path() } else { self.new_path() }
    }

    pub(crate) fn existing_path(&mut self) -> String {
        let rank = self.random.below(self.model.len());
        self.model.nth(rank).to_owned()
    }

    pub(crate) fn some_value(&mut self) -> Vec<u8> {
        let bound = if self.random.chance(6) { LONG_VALUE } else { 40 };
        let length = self.random.below(bound);
        (0..length).map(|_| self.random.next() as u8).collect()
    }

    fn write(&mut self) -> io::Result<()> {
        let (path, value) = (self.write_path(), self.some_value());
        let answer = self.call(Op::Write, 0, &path, &value)?;
        if self.check_done(&answer, &format!("write {path}")) {
            self.model.write(&path, &value);
            self.watches.changed(&path, Instant::now());
        }
        Ok(())
    }

    fn read(&mut self, transaction: u32, view: Option<&Model>) -> io::Result<()> {
        let path = self.some_path();
        self.read_path(transaction, view, &path)
    }

    pub(crate) fn read_path(
        &mut self,
        transaction: u32,
        view: Option<&Model>,
        path: &str,
    ) -> io::Result<()> {
        let answer = self.call(Op::Read, transaction, path, b"")?;
        let wanted = view.unwrap_or(&self.model).value(path).map(<[u8]>::to_vec);
        self.check(
            &answer,
            &wanted.ok_or("ENOENT"),
            &format!("read {path}{}", within(transaction)),
        );
        Ok(())
    }

    fn directory(&mut self, transaction: u32, view: Option<&Model>) -> io::Result<()> {
        let path = self.some_path();
        self.directory_path(transaction, view, &path)
    }

    pub(crate) fn directory_path(
        &mut self,
        transaction: u32,
        view: Option<&Model>,
        path: &str,
    ) -> io::Result<()> {
        let answer = self.call(Op::Directory, transaction, path, b"")?;
        let wanted = view.unwrap_or(&self.model).children(path).ok_or("ENOENT");
        let found = answer.map(|list| {
            let mut names = strings(&list);
            names.sort();
            names
        });
        self.check(&found, &wanted, &format!("directory {path}{}", within(transaction)));
        Ok(())
    }

    fn mkdir(&mut self) -> io::Result<()> {
        let path = self.write_path();
        let answer = self.call(Op::Mkdir, 0, &path, b"")?;
        if self.check_done(&answer, &format!("mkdir {path}")) && self.model.mkdir(&path) {
            self.watches.changed(&path, Instant::now());
        }
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        let path = self.some_path();
        if path.is_empty() {
            return Ok(());
        }
        let answer = self.call(Op::Rm, 0, &path, b"")?;
        let what = format!("rm {path}");
        match self.model.removal(&path) {
            Removal::NoParent => self.check(&answer, &Err("ENOENT"), &what),
            Removal::Nothing => self.check_done(&answer, &what),
            Removal::Nodes(nodes) => {
                let done = self.check_done(&answer, &what);
                if done {
                    self.model.remove(&path);
                    self.watches.removed(&nodes, Instant::now());
                }
                done
            }
        };
        Ok(())
    }

    fn permissions(&mut self) -> io::Result<()> {
        let path = self.existing_path();
        let answer = self.call(Op::GetPerms, 0, &path, b"")?.map(|list| strings(&list));
        let wanted = self.permissions.clone();
        self.check(&answer, &Ok(wanted), &format!("get-perms {path}"));
        Ok(())
    }

    fn watch(&mut self) -> io::Result<()> {
        if self.watches.len() >= WATCHES_MAX {
            return self.unwatch();
        }
        let path = self.some_path();
        self.tokens += 1;
        let token = format!("s{}-{:08}", self.settings.seed, self.tokens);
        let request = format!("{token}\0");
        let answer = self.call(Op::Watch, 0, &path, request.as_bytes())?;
        if answer.as_ref().is_err_and(|name| name == "EEXIST") {
            self.tally.repeated += 1;
        } else if !self.check_done(&answer, &format!("watch {path}")) {
            return Ok(());
        }
        self.watches.add(&token, &path, Instant::now());
        if !self.settings.behind_kernel {
            let again = self.call(Op::Watch, 0, &path, request.as_bytes())?;
            self.check(&again, &Err("EEXIST"), &format!("watch {path} again"));
        }
        Ok(())
    }

    fn unwatch(&mut self) -> io::Result<()> {
        let rank = self.random.below(WATCHES_MAX);
        let Some((token, path)) = self.watches.nth(rank) else { return Ok(()) };
        // A server may drop what it has not sent when the watch goes: first see it all.
        self.settle(|watches| watches.is_settled(&token))?;
        let request = format!("{token}\0");
        let answer = self.call(Op::Unwatch, 0, &path, request.as_bytes())?;
        if answer.as_ref().is_err_and(|name| name == "ENOENT") {
            self.tally.repeated += 1;
        } else if !self.check_done(&answer, &format!("unwatch {path}")) {
            return Ok(());
        }
        self.watches.remove(&token);
        if !self.settings.behind_kernel {
            let again = self.call(Op::Unwatch, 0, &path, request.as_bytes())?;
            self.check(&again, &Err("ENOENT"), &format!("unwatch {path} again"));
        }
        Ok(())
    }

    /// Requests that must be refused.
    fn refused(&mut self) -> io::Result<()> {
        let (path, wanted) = match self.random.below(3) {
            0 => ("n0//n1", "EINVAL"),
            1 => ("n0/", "EINVAL"),
            _ => ("n0/b&d", "EINVAL"),
        };
        let answer = self.call(Op::Read, 0, path, b"")?;
        self.check(&answer, &Err(wanted), &format!("read {path}"));
        Ok(())
    }

    pub(crate) fn note_events(&mut self) {
        while let Some(event) = self.client.take_event() {
            let below = event.path.strip_prefix(&self.settings.base);
            let path = below.map(|rest| rest.strip_prefix('/').unwrap_or(rest).to_owned());
            if !self.watches.saw(&event, path.as_deref()) {
                let text = format!("event {event:?} belongs to no watch of this script");
                self.tally.complain(&text);
            }
        }
        for (token, path) in self.watches.overdue(Instant::now()) {
            self.tally.complain(&format!("no event for watch {token} on {path}"));
        }
    }

    /// Goes on asking for the base, so that events can arrive, until `done` or they are overdue.
    fn settle(&mut self, done: impl Fn(&Watches) -> bool) -> io::Result<()> {
        self.note_events();
        while !done(&self.watches) {
            self.read_path(0, None, "")?;
            self.note_events();
            std::thread::sleep(SETTLE_PAUSE);
        }
        Ok(())
    }

    /// Checks that a request was accepted; says whether it was.
    pub(crate) fn check_done(&mut self, answer: &Answer, what: &str) -> bool {
        let found = answer.as_deref().map(|text| text.strip_suffix(b"\0").unwrap_or(text) == b"OK");
        self.check(&found.map_err(Clone::clone), &Ok(true), what)
    }

    /// Counts wrong answers and tells them.
    pub(crate) fn accuse(&mut self, texts: &[String]) {
        self.tally.wrong += texts.len() as u64;
        texts.iter().for_each(|text| self.tally.complain(text));
    }

    /// Compares an answer with the model's.
    pub(crate) fn check<T: PartialEq + std::fmt::Debug>(
        &mut self,
        found: &Result<T, String>,
        wanted: &Result<T, &str>,
        what: &str,
    ) -> bool {
        let same = match (found, wanted) {
            (Ok(found), Ok(wanted)) => found == wanted,
            (Err(found), Err(wanted)) => found == wanted,
            _ => false,
        };
        if !same {
            let text = format!("{what}: wanted {wanted:?}, got {found:?}");
            match &mut self.suspects {
                Some(suspects) => suspects.push(text),
                None => self.accuse(&[text]),
            }
        }
        same
    }

    /// A node whose parent certainly exists, so that removing it never fails.
    pub(crate) fn is_leaf(&self, path: &str) -> bool {
        !path.is_empty()
            && self.model.holds(parent(path))
            && self.model.children(path).is_some_and(|children| children.is_empty())
    }
}
