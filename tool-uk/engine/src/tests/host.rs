//! A small host: an orchestrator that executes operations, and a XenStore that keeps nodes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use api::{
    Failure, GuestId, GuestState, GuestStatus, MAX_MESSAGE, Operation, Outcome, Reply, Request,
};
use fabric::domains::{Domain, DomainKind, DomainState};
use wire::{HEADER_LEN, Header, Operation as StoreOperation};

use store_client::{Framer, StoreMessage};

use crate::{Action, Engine, MAX_JOURNAL, Options, Spec};

const MIB: usize = 1 << 20;

/// A guest of the host.
#[derive(Clone, Debug)]
pub struct Guest {
    pub state: GuestState,
    pub pages: u32,
    slot: u16,
    has_run: bool,
}

/// A node: its value and its permissions.
#[derive(Clone, Debug, Default)]
struct Node {
    value: Vec<u8>,
    rights: String,
}

#[derive(Default)]
pub struct Host {
    pub now_ns: u64,
    pub domains: BTreeMap<u16, Guest>,
    pub strangers: BTreeSet<u16>,
    pub introduced: BTreeMap<u16, (u64, u32)>,
    pub attached: BTreeSet<u16>,
    /// Guests that some service keeps mapped.
    pub held: BTreeSet<u16>,
    pub journal: Option<Vec<u8>>,
    pub lose_replies: u32,
    pub conflicts: u32,
    pub archive: BTreeMap<&'static str, Vec<u8>>,
    nodes: BTreeMap<String, Node>,
    transactions: BTreeMap<u32, BTreeMap<String, Node>>,
    last_transaction: u32,
}

/// A kernel of one segment at 16 MiB with a PVH note.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; 64 + 2 * 56];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[32] = 64;
    (file[54], file[56]) = (56, 2);
    let (code, note) = (vec![0x90; 5000], {
        let words = [4u32, 4, 18].map(u32::to_le_bytes).concat();
        [words, b"Xen\0".to_vec(), (16 * MIB as u32).to_le_bytes().to_vec()].concat()
    });
    for (index, (kind, address, bytes)) in
        [(1u32, 16 * MIB as u64, &code), (4, 0, &note)].into_iter().enumerate()
    {
        let at = 64 + 56 * index;
        let offset = file.len() as u64;
        let len = bytes.len() as u64;
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        for (slot, word) in [offset, address, address, len, len, 4].into_iter().enumerate() {
            file[at + 8 + 8 * slot..at + 16 + 8 * slot].copy_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(bytes);
    }
    file
}

impl Host {
    pub fn new() -> Self {
        let archive = BTreeMap::from([("vmlinux", kernel()), ("initrd", vec![7; 3 * MIB])]);
        Self { archive, ..Self::default() }
    }

    pub fn running(&self) -> Vec<u16> {
        let runs = |guest: &Guest| guest.state == GuestState::Running;
        self.domains.iter().filter(|(_, guest)| runs(guest)).map(|(domid, _)| *domid).collect()
    }

    /// The guest stops by itself.
    pub fn stop(&mut self, domid: u16, code: u8) {
        self.domains.get_mut(&domid).expect("a guest").state = GuestState::Shutdown(code);
    }

    pub fn value(&self, path: &str) -> String {
        let node = self.nodes.get(path).unwrap_or_else(|| panic!("no node {path}"));
        String::from_utf8(node.value.clone()).unwrap()
    }

    pub fn rights(&self, path: &str) -> String {
        self.nodes[path].rights.clone()
    }

    /// Every node in whose path the guest's number stands where a number of a domain does.
    pub fn nodes_of(&self, domid: u16) -> Vec<&String> {
        let number = domid.to_string();
        let is_about = |path: &&String| match path.split('/').collect::<Vec<_>>()[..] {
            ["", "local", "domain", _, "backend", _, guest, ..]
            | ["", "local", "domain", guest, ..]
            | ["", "libxl", guest, ..] => guest == number,
            _ => false,
        };
        self.nodes.keys().filter(is_about).collect()
    }

    pub fn transactions_open(&self) -> usize {
        self.transactions.len()
    }

    pub fn reset_connection(&mut self) {
        self.transactions.clear();
    }

    /// tool-uk dies: its connection and its mappings are gone.
    pub fn die(&mut self) {
        self.reset_connection();
        self.attached.clear();
    }

    /// Nothing is left of guests that do not exist.
    pub fn assert_clean(&self) {
        for domid in 16..30 {
            let lives = self.domains.contains_key(&domid);
            assert_eq!(!self.nodes_of(domid).is_empty(), lives, "nodes of d{domid}");
            assert_eq!(self.introduced.contains_key(&domid), lives, "ring of d{domid}");
            assert_eq!(self.attached.contains(&domid), lives, "console of d{domid}");
        }
        let vms = self.nodes.keys().filter(|path| path.starts_with("/vm/"));
        let vms = vms.filter(|path| path.matches('/').count() == 2).count();
        assert_eq!(vms, self.domains.len());
    }

    fn table(&self) -> Vec<(u16, Domain)> {
        let entry = |(domid, guest): (&u16, &Guest)| {
            let (state, shutdown_code) = match guest.state {
                GuestState::Shutdown(code) => (DomainState::Shutdown, code),
                GuestState::Dying => (DomainState::Dying, 0),
                _ if guest.has_run => (DomainState::Alive, 0),
                _ => (DomainState::Building, 0),
            };
            let kind = DomainKind::Guest;
            (guest.slot, Domain { domid: *domid, kind, state, shutdown_code, life: 1 })
        };
        self.domains.iter().map(entry).collect()
    }

    fn guest(&mut self, guest: GuestId) -> Result<&mut Guest, Failure> {
        self.domains.get_mut(&guest.0).ok_or(Failure::NoGuest)
    }

    fn operate(&mut self, operation: &Operation<'_>) -> Outcome<'_> {
        if let Err(refusal) = api::validate(operation, &api::Limits::default()) {
            return Outcome::Refused(refusal);
        }
        self.execute(operation).unwrap_or_else(Outcome::Failed)
    }

    fn execute(&mut self, operation: &Operation<'_>) -> Result<Outcome<'_>, Failure> {
        match *operation {
            Operation::Create { guest, .. } => {
                if self.strangers.contains(&guest.0) {
                    return Err(Failure::Exists);
                }
                let slot = (1..64)
                    .find(|slot| self.domains.values().all(|guest| guest.slot != *slot))
                    .ok_or(Failure::NoSlot)?;
                let new = Guest { state: GuestState::Paused, pages: 0, slot, has_run: false };
                let old = self.domains.entry(guest.0).or_insert(new);
                if old.pages > 0 {
                    return Err(Failure::Exists);
                }
            }
            Operation::Populate { guest, before, pages, .. } => {
                let guest = self.guest(guest)?;
                if guest.pages != before && guest.pages != before + pages {
                    return Err(Failure::WrongState);
                }
                guest.pages = before + pages;
            }
            Operation::ReadArchive { entry, offset, len } => {
                let content = self.archive.get(entry).ok_or(Failure::NoEntry)?;
                let start = (offset as usize).min(content.len());
                let end = (start + len as usize).min(content.len());
                let entry_len = content.len() as u32;
                return Ok(Outcome::Bytes { entry_len, bytes: &content[start..end] });
            }
            Operation::ConnectStore { guest } => {
                self.guest(guest)?;
                return Ok(Outcome::Port(1));
            }
            Operation::ConnectConsole { guest } => {
                self.guest(guest)?;
                return Ok(Outcome::Port(2));
            }
            Operation::Pause { guest } => {
                let guest = self.guest(guest)?;
                if guest.state == GuestState::Running {
                    guest.state = GuestState::Paused;
                }
            }
            Operation::Unpause { guest } => {
                let guest = self.guest(guest)?;
                assert!(guest.pages > 0 && guest.state == GuestState::Paused);
                guest.state = GuestState::Running;
                guest.has_run = true;
            }
            Operation::Destroy { guest } => self.destroy(guest)?,
            Operation::List { from } => return Ok(self.list(from)),
            ref other => {
                self.guest(other.guest().expect("about a guest"))?;
            }
        }
        Ok(Outcome::Done)
    }

    fn destroy(&mut self, guest: GuestId) -> Result<(), Failure> {
        let mapped = self.introduced.contains_key(&guest.0)
            || self.attached.contains(&guest.0)
            || self.held.contains(&guest.0);
        if let Some(dying) = self.domains.get_mut(&guest.0) {
            dying.state = GuestState::Dying;
            if mapped {
                return Err(Failure::StillMapped);
            }
            self.domains.remove(&guest.0);
        }
        Ok(())
    }

    /// Guests from a number on, one at a time, so that going on is tried, too.
    fn list(&self, from: GuestId) -> Outcome<'_> {
        let status = |(domid, guest): (&u16, &Guest)| GuestStatus {
            guest: GuestId(*domid),
            state: guest.state,
            pages: guest.pages,
            cpu_time_ns: 0,
        };
        let mut all = self.domains.range(from.0..).map(status);
        let guests = all.by_ref().take(1).collect();
        let more = all.next().is_some();
        Outcome::Guests { guests, more }
    }

    fn store(&mut self, message: &[u8]) -> Vec<u8> {
        let header = Header::parse(message.first_chunk::<HEADER_LEN>().unwrap());
        let payload = &message[HEADER_LEN..];
        assert_eq!(header.len as usize, payload.len());
        let (operation, answer) = match self.serve(&header, payload) {
            Ok(answer) => (header.operation, answer),
            Err(name) => (StoreOperation::Error, [name.as_bytes(), b"\0"].concat()),
        };
        let reply = Header { operation, len: answer.len() as u32, ..header };
        [reply.emit().to_vec(), answer].concat()
    }

    fn serve(&mut self, header: &Header, payload: &[u8]) -> Result<Vec<u8>, &'static str> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let strings: Vec<_> = wire::text::strings(payload).map(text).collect();
        let done = Ok(b"OK\0".to_vec());
        match header.operation {
            StoreOperation::TransactionStart => {
                self.last_transaction += 1;
                self.transactions.insert(self.last_transaction, self.nodes.clone());
                return Ok(format!("{}\0", self.last_transaction).into_bytes());
            }
            StoreOperation::TransactionEnd => {
                let nodes = self.transactions.remove(&header.transaction).ok_or("ENOENT")?;
                if self.conflicts > 0 {
                    self.conflicts -= 1;
                    return Err("EAGAIN");
                }
                if strings[0] == "T" {
                    self.nodes = nodes;
                }
                return done;
            }
            StoreOperation::Introduce => {
                let number = |index: usize| strings[index].parse::<u64>().unwrap();
                let domid = number(0) as u16;
                assert_eq!(self.domains[&domid].state, GuestState::Paused, "introduced first");
                self.introduced.insert(domid, (number(1), number(2) as u32));
                return done;
            }
            StoreOperation::SetQuota => {
                let domid: u16 = strings[0].parse().unwrap();
                assert!(self.introduced.contains_key(&domid), "XenStore must know it");
                assert_eq!(strings[1..], ["nodes", "5000"]);
                return done;
            }
            StoreOperation::Release => {
                let domid: u16 = strings[0].parse().unwrap();
                return self.introduced.remove(&domid).map(|_| b"OK\0".to_vec()).ok_or("ENOENT");
            }
            _ => {}
        }
        let nodes = match header.transaction {
            0 => &mut self.nodes,
            id => self.transactions.get_mut(&id).ok_or("ENOENT")?,
        };
        let (path, rest) = wire::text::split(payload).ok_or("EINVAL")?;
        change(nodes, header.operation, &text(path), rest, &strings)
    }
}

fn change(
    nodes: &mut BTreeMap<String, Node>,
    operation: StoreOperation,
    path: &str,
    rest: &[u8],
    strings: &[String],
) -> Result<Vec<u8>, &'static str> {
    match operation {
        StoreOperation::Read => {
            return nodes.get(path).map(|node| node.value.clone()).ok_or("ENOENT");
        }
        StoreOperation::Write | StoreOperation::MakeDirectory => {
            for (at, _) in path.match_indices('/').skip(1) {
                nodes.entry(path[..at].into()).or_default();
            }
            let node = nodes.entry(path.into()).or_default();
            if operation == StoreOperation::Write {
                node.value = rest.to_vec();
            }
        }
        StoreOperation::Remove => {
            let below = format!("{path}/");
            let (parent, _) = path.rsplit_once('/').ok_or("EINVAL")?;
            if !nodes.contains_key(path) && !nodes.contains_key(parent) {
                return Err("ENOENT");
            }
            nodes.retain(|other, _| other != path && !other.starts_with(&below));
        }
        StoreOperation::SetPermissions => {
            nodes.get_mut(path).ok_or("ENOENT")?.rights = strings[1..].join(" ");
        }
        other => panic!("{other:?} is not asked by the toolstack"),
    }
    Ok(b"OK\0".to_vec())
}

/// One life of tool-uk.
pub struct Life<'a> {
    engine: Engine<'a>,
    lines: Vec<String>,
    /// Messages of XenStore that have not been delivered.
    store: VecDeque<StoreMessage>,
}

impl<'a> Life<'a> {
    pub fn new(specs: &[Spec<'a>], options: Options, host: &Host) -> Self {
        let engine = Engine::new(specs, options, host.journal.as_deref());
        Self { engine, lines: Vec::new(), store: VecDeque::new() }
    }

    pub fn saw(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }

    pub fn store_restarted(&mut self) {
        self.store.clear();
        self.engine.store_restarted();
    }

    fn look(&mut self, host: &Host) {
        let table = host.table();
        for slot in 0..64 {
            let domain = table.iter().find(|(used, _)| *used == slot).map(|(_, domain)| *domain);
            self.engine.domain(slot, domain);
        }
    }

    /// Does one action; false: there is none.
    fn step(&mut self, host: &mut Host) -> bool {
        self.look(host);
        if let Some(message) = self.store.pop_front() {
            self.engine.store_said(&message, host.now_ns);
            return true;
        }
        let Some(action) = self.engine.poll(host.now_ns) else { return false };
        host.now_ns += 10_000;
        match action {
            Action::Operate { message, .. } => self.operate(host, &message),
            Action::Store(message) => {
                let mut framer = Framer::new();
                framer.feed(&host.store(&message));
                self.store.push_back(framer.next_message().unwrap().expect("a whole message"));
            }
            Action::Journal(journal) => {
                assert!(journal.len() <= MAX_JOURNAL);
                host.journal = Some(journal);
            }
            Action::Attach { domid, slot } => {
                assert_eq!(host.domains[&domid].slot, slot);
                assert!(host.attached.insert(domid));
            }
            Action::Detach { domid } => {
                host.attached.remove(&domid);
            }
            Action::Adopted => {}
            Action::Log(_, line) => self.lines.push(line),
        }
        true
    }

    fn operate(&mut self, host: &mut Host, message: &[u8]) {
        let request = Request::decode(message).unwrap();
        let now_ns = host.now_ns;
        let lose = host.lose_replies > 0;
        host.lose_replies = host.lose_replies.saturating_sub(1);
        let outcome = host.operate(&request.operation);
        let reply = Reply { epoch: request.epoch, sequence: request.sequence, outcome };
        let mut bytes = [0; MAX_MESSAGE];
        let len = reply.encode(&mut bytes).unwrap();
        if !lose {
            // Answers to a former life and second answers change nothing.
            let stale = Reply { epoch: request.epoch + 1, ..reply.clone() };
            self.engine.replied(&stale, now_ns);
            self.engine.replied(&Reply::decode(&bytes[..len]).unwrap(), now_ns);
            self.engine.replied(&reply, now_ns);
        }
    }

    /// Does at most `count` actions; returns how many there were.
    pub fn steps(&mut self, host: &mut Host, count: usize) -> usize {
        (0..count).take_while(|_| self.step_or_wait(host, u64::MAX)).count()
    }

    /// Does everything there is to do, and waits as long as the engine waits.
    pub fn settle(&mut self, host: &mut Host) {
        let count = self.steps(host, 100_000);
        assert!(count < 100_000, "no end: {:?}", self.engine.describe().collect::<Vec<_>>());
    }

    /// Runs for a time.
    pub fn run(&mut self, host: &mut Host, time_ns: u64) {
        let end_ns = host.now_ns + time_ns;
        while host.now_ns < end_ns && self.step_or_wait(host, end_ns) {}
    }

    fn step_or_wait(&mut self, host: &mut Host, end_ns: u64) -> bool {
        if self.step(host) {
            return true;
        }
        let Some(at_ns) = self.engine.wake_at() else { return false };
        assert!(at_ns > host.now_ns, "work is due and not done");
        host.now_ns = at_ns.min(end_ns);
        true
    }
}
