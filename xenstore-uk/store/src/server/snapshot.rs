//! The whole state as a stream of records, and back.
//!
//! ```text
//! u64 number of commits, then for each record:
//!     u32 length of its content, u32 record, u8 kind (`Kind::raw`), content as in its slots
//! u32 ffff_ffff
//! ```

use alloc::vec::Vec;

use fabric::SharedMemory;

use crate::Config;
use crate::checksum::spread;
use crate::codec::Reader;
use crate::effects::{Action, Effects, Kind};
use crate::persist::SlotStore;
use crate::pulse;
use crate::server::Server;
use crate::server::lazy::Loading;
use crate::state::{NODE_HEAD_LEN, State, node_head};
use crate::tree::{Descend, Tree};

/// Nodes added to a snapshot at a time.
const STEP_NODES: usize = 32;
/// No store ever gets to so many commits: a number beyond is damage.
const COMMITS_MAX: u64 = 1 << 62;
/// In the place of a record's length: there are no more.
const END: u32 = u32::MAX;

/// A snapshot on its way out.
#[derive(Debug)]
pub struct Snapshot {
    tree: Tree,
    cursor: Vec<u8>,
    has_nodes: bool,
    /// Bytes that are made and not taken, and how many of them were taken.
    bytes: Vec<u8>,
    taken: usize,
}

/// The bytes of a snapshot make no state, or not the one that was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreError;

impl Snapshot {
    /// Copies the next bytes to `out`; answers how many, and whether these were the last.
    pub fn read(&mut self, out: &mut [u8]) -> (usize, bool) {
        while self.bytes.len() - self.taken < out.len() && self.has_nodes {
            self.bytes.drain(..self.taken);
            self.taken = 0;
            self.add_nodes();
        }
        let rest = &self.bytes[self.taken..];
        let len = rest.len().min(out.len());
        out[..len].copy_from_slice(&rest[..len]);
        self.taken += len;
        (len, !self.has_nodes && self.taken == self.bytes.len())
    }

    fn add_nodes(&mut self) {
        let bytes = &mut self.bytes;
        self.tree.walk(&mut self.cursor, STEP_NODES, &mut |_, node, _| {
            add_record(bytes, node.record, Kind::Node, &node_head(node), node.body().0);
            Descend::Yes
        });
        if self.cursor.is_empty() {
            self.has_nodes = false;
            self.bytes.extend_from_slice(&END.to_le_bytes());
        }
    }
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// The present state, to be sent to another replica. The tree is shared, not copied.
    pub fn snapshot(&mut self) -> Snapshot {
        self.finish_loading();
        let mut others = Records(self.state.committed().to_le_bytes().to_vec());
        self.state.put_others(&mut others);
        Snapshot {
            tree: self.state.tree().clone(),
            cursor: Vec::new(),
            has_nodes: true,
            bytes: others.0,
            taken: 0,
        }
    }

    /// Puts the state that the bytes of a snapshot make in the place of the present one, as the
    /// state at log index `applied`.
    ///
    /// # Errors
    /// The bytes make no state with this digest; then the present one stays.
    pub fn restore(
        &mut self,
        config: &Config,
        bytes: &[u8],
        applied: u64,
        digest: u64,
    ) -> Result<(), RestoreError>
    where
        M: Clone,
    {
        let (committed, records) = read_records(bytes).ok_or(RestoreError)?;
        let parts = records.iter().map(|record| (record.number, record.kind, record.content));
        if committed > COMMITS_MAX || !self.slots.takes(parts) {
            return Err(RestoreError);
        }
        let nodes = records.iter().filter(|record| record.kind == Kind::Node);
        let count = nodes.clone().count() as u32;
        let sums = nodes.map(|node| node.content.get(..NODE_HEAD_LEN));
        let mut found = sums.map(|head| Reader::new(head?).u64().map(spread));
        let found = found.try_fold(0, |sum: u64, node| Some(sum.wrapping_add(node?)));
        if found != Some(digest) {
            return Err(RestoreError);
        }
        self.mutating.set(true);
        self.demote();
        let index = self.slots.take_index();
        let memory = self.slots.memory().clone();
        let pulse = self.slots.pulse;
        let mut slots = SlotStore::format(memory.clone(), self.slots.key());
        slots.pulse = pulse;
        slots.pulse.worked(pulse::LONG_STEP);
        slots.begin_at(committed.saturating_sub(1), applied);
        for record in records {
            slots.put(record.number, record.kind, record.content, &[]);
        }
        slots.commit(digest, count);
        let opened = SlotStore::open_under_watch(memory, config.owner, slots.pulse);
        let (slots, loaded) = opened.ok_or(RestoreError)?;
        let (state, later) = State::restore(config, loaded, slots.committed());
        (self.slots, self.state) = (slots, state);
        self.loading = Loading::new(later);
        index.into_iter().for_each(|index| self.slots.keep_index(index));
        self.mutating.set(false);
        if self.state.digest() == digest { Ok(()) } else { Err(RestoreError) }
    }
}

/// A record of a snapshot.
struct Record<'a> {
    number: u32,
    kind: Kind,
    content: &'a [u8],
}

fn read_records(bytes: &[u8]) -> Option<(u64, Vec<Record<'_>>)> {
    let (committed, mut rest) = bytes.split_first_chunk::<8>()?;
    let mut records = Vec::new();
    loop {
        let mut reader = Reader::new(rest);
        let len = reader.u32()?;
        if len == END {
            return (rest.len() == 4).then_some((u64::from_le_bytes(*committed), records));
        }
        let number = reader.u32()?;
        let kind = Kind::from_raw(reader.u8()?)?;
        let (content, behind) = rest[9..].split_at_checked(len as usize)?;
        records.push(Record { number, kind, content });
        rest = behind;
    }
}

fn add_record(bytes: &mut Vec<u8>, record: u32, kind: Kind, head: &[u8], body: &[u8]) {
    let len = (head.len() + body.len()) as u32;
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&record.to_le_bytes());
    bytes.push(kind.raw());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(body);
}

/// Gathers records instead of keeping them.
struct Records(Vec<u8>);

impl Effects for Records {
    fn has_room(&self, _: usize, _: usize) -> bool {
        true
    }

    fn has_reserve(&self, _: usize) -> bool {
        true
    }

    fn put(&mut self, record: u32, kind: Kind, head: &[u8], body: &[u8]) {
        add_record(&mut self.0, record, kind, head, body);
    }

    fn delete(&mut self, _: u32) {}

    fn worked(&mut self, _: u32) {}

    fn forget(&mut self, _: u32) {}

    fn connect(&mut self, _: u16, _: u64) {}

    fn disconnect(&mut self, _: u16) {}

    fn event(&mut self, _: u16, _: &[u8], _: &[u8]) {}

    fn event_after_reply(&mut self, _: u16, _: &[u8], _: &[u8]) {}

    fn act(&mut self, _: Action) {}

    fn print(&mut self, _: &[u8]) {}
}

impl State {
    /// Gives every record but those of nodes to `fx`.
    fn put_others(&mut self, fx: &mut dyn Effects) {
        self.put_settings(fx);
        let kept = self.domains.iter().filter(|(_, domain)| domain.record != 0);
        let domains: Vec<u16> = kept.map(|(domid, _)| *domid).collect();
        domains.into_iter().for_each(|domid| self.put_domain(domid, fx));
        let clients: Vec<u16> = self.clients().map(|(number, _)| number).collect();
        clients.into_iter().for_each(|number| self.put_client(number, fx));
        self.put_watches(fx);
        for sweep in &self.sweeps {
            fx.put(sweep.record, Kind::Sweep, &sweep.domid.to_le_bytes(), &[]);
        }
    }
}
