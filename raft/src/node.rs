//! One replica: how it is born, what its shell may ask of it, what it reports.

use alloc::vec::Vec;

use fabric::SharedMemory;
use noraft::{ClusterConfig, LogEntries, LogEntry, LogIndex, Role};

use crate::id::{Ident, MAX_REPLICAS, Position};
use crate::machine::{Request, StateMachine};
use crate::peer::{HELLO, Peer, Transfer};
use crate::record::{Kind, MAX_PAYLOAD, Record, parse_config, record_len};
use crate::settle::Context;
use crate::storage::{Damage, OpenError, Storage};
use crate::timer::Timer;
use crate::transfer::Incoming;
use crate::types::{
    Applied, Birth, CampaignError, CreateError, Event, ProposeError, Settings, Status,
};
use crate::wire::{MAX_BODY, REFUSALS, Refusal};

/// Bytes of the ring that proposals leave free: a new leader's first entry and two changes of
/// membership must always find room.
const RESERVE: usize = 2048;

/// Least free bytes of the ring with which a replica may campaign.
const CAMPAIGN_ROOM: usize = 512;

/// One replica. Feed it with `handle_*`, then drain `poll_*` and [`Node::work`].
#[derive(Debug)]
pub struct Node<M> {
    pub(crate) settings: Settings,
    pub(crate) ident: Ident,
    pub(crate) core: noraft::Node,
    pub(crate) storage: Storage<M>,
    pub(crate) peers: [Peer; MAX_REPLICAS],
    /// Records proposed and not yet in the log's storage.
    pub(crate) staged: Batch,
    /// The records stored last, still at hand for the messages that carry them.
    pub(crate) recent: Batch,
    /// The records stored before those: a follower learns a batch later what is committed.
    pub(crate) older: Batch,
    pub(crate) timer: Timer,
    pub(crate) incoming: Option<Incoming>,
    pub(crate) scratch: Vec<u8>,
    pub(crate) applied: u64,
    /// Term that this replica leads, and index of its first entry in it.
    pub(crate) leads: Option<(u64, u64)>,
    pub(crate) config_index: u64,
    /// Some replica's newest identity does not vote yet.
    pub(crate) change_wanted: bool,
    /// A snapshot is wanted or on its way.
    pub(crate) transferring: bool,
    pub(crate) published: Option<u64>,
    pub(crate) transfers: u32,
    /// Snapshots to let go of when the state machine is at hand.
    pub(crate) to_close: [bool; MAX_REPLICAS],
    pub(crate) damage: Option<Damage>,
    pub(crate) reports: Reports,
    pub(crate) refused: [u64; REFUSALS],
    pub(crate) next_out: usize,
}

/// Encoded records with consecutive indices from `first`.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub first: u64,
    pub count: u64,
    pub bytes: Vec<u8>,
    /// Records before the one found last, and where that one begins.
    cursor: (u64, usize),
}

impl Batch {
    /// The record at `index`, if it is here. Its bytes were checked, or made, when they came.
    fn find(&mut self, index: u64) -> Option<Record<'_>> {
        let ahead = index.checked_sub(self.first + self.cursor.0)?;
        if index >= self.first + self.count {
            return None;
        }
        for _ in 0..ahead {
            let header = self.bytes[self.cursor.1..].first_chunk().expect("whole records");
            self.cursor.1 += Record::peek_len(header).expect("valid records");
            self.cursor.0 += 1;
        }
        Some(Record::unchecked(&self.bytes[self.cursor.1..]))
    }

    pub fn clear(&mut self) {
        self.count = 0;
        self.cursor = (0, 0);
        self.bytes.clear();
    }
}

/// Events not yet polled; each kind at most once, newest first to matter.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    pub lost: Option<u64>,
    pub won: Option<u64>,
    pub restored: Option<u64>,
    pub damaged: bool,
}

impl<M: SharedMemory> Node<M> {
    /// Formats `memory` and starts a replica whose state machine is empty.
    ///
    /// # Errors
    /// As [`CreateError`] says.
    pub fn create(memory: M, settings: Settings, birth: Birth) -> Result<Self, CreateError> {
        let mut config = ClusterConfig::new();
        let ident = match birth {
            Birth::Founder if settings.boot_epoch != 1 => return Err(CreateError::NotFirstLife),
            Birth::Founder => {
                let founders = (1..=settings.replicas).map(|replica| Ident::new(replica, 0));
                config.voters.extend(founders.map(Ident::core));
                Ident::new(settings.replica, 0)
            }
            Birth::Newcomer => Ident::new(settings.replica, settings.boot_epoch),
        };
        let restoring = birth == Birth::Newcomer;
        let storage = Storage::format(memory, ident, settings.boot_epoch, config, restoring)
            .map_err(|_| CreateError::Size)?;
        Ok(Self::start(settings, storage, LogEntries::new(Position::default().core()), 0))
    }

    /// Opens the replica that an earlier life left in `memory`; `applied` is what its state
    /// machine has kept ([`StateMachine::applied`]).
    ///
    /// # Errors
    /// As [`OpenError`] says; the replica may then only come back as [`Birth::Newcomer`].
    pub fn open(memory: M, settings: Settings, applied: u64) -> Result<Self, OpenError> {
        let mut entries = Vec::new();
        let mut readable = true;
        let (replica, epoch) = (settings.replica, settings.boot_epoch);
        let mut storage = Storage::open(memory, replica, epoch, |record| {
            let entry = entry_of(record);
            readable &= entry.is_some();
            entries.extend(entry);
        })?;
        if !readable || (applied > storage.last_index() && !storage.restoring()) {
            return Err(OpenError::Damaged(Damage::Log));
        }
        if applied < storage.start().index && !storage.restoring() {
            storage.set_restoring(true);
        }
        // A state under restoration counts for nothing, also if its last piece was taken already.
        let applied = if storage.restoring() { 0 } else { applied };
        let entries = LogEntries::from_iter(storage.start().core(), entries);
        Ok(Self::start(settings, storage, entries, applied))
    }

    fn start(settings: Settings, storage: Storage<M>, entries: LogEntries, applied: u64) -> Self {
        assert!(
            (1..=settings.replicas).contains(&settings.replica)
                && usize::from(settings.replicas) <= MAX_REPLICAS
                && settings.boot_epoch != 0,
            "{settings:?} describe no replica"
        );
        let ident = storage.ident();
        let (term, vote) = storage.vote();
        let log = noraft::Log::new(storage.config().clone(), entries);
        let vote = vote.map(Ident::core);
        let core = noraft::Node::restart(ident.core(), noraft::Term::new(term), vote, log);
        let mut peers: [Peer; MAX_REPLICAS] = core::array::from_fn(|_| Peer::default());
        for (slot, peer) in peers[..usize::from(settings.replicas)].iter_mut().enumerate() {
            peer.up = true;
            peer.out.want(if slot == ident.slot() { 0 } else { HELLO });
            peer.backoff_ns = settings.retry_ns;
        }
        let mut node = Self {
            ident,
            core,
            storage,
            peers,
            staged: Batch::default(),
            recent: Batch::default(),
            older: Batch::default(),
            timer: Timer::new(&settings),
            settings,
            incoming: None,
            scratch: Vec::new(),
            applied,
            leads: None,
            config_index: 0,
            change_wanted: false,
            transferring: false,
            published: None,
            transfers: 0,
            to_close: [false; MAX_REPLICAS],
            damage: None,
            reports: Reports::default(),
            refused: [0; REFUSALS],
            next_out: 0,
        };
        node.refresh_members();
        node
    }

    /// Proposes a request. Proposals are gathered until [`Self::poll_message`] or any `handle_*`
    /// is called: they are stored and sent in one round.
    ///
    /// # Errors
    /// As [`ProposeError`] says; the request was not taken.
    pub fn propose(
        &mut self,
        now_ns: u64,
        connection: u32,
        sequence: u64,
        payload: &[u8],
    ) -> Result<Position, ProposeError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(ProposeError::TooLong);
        }
        let Some((term, _)) =
            self.leads.filter(|_| self.damage.is_none() && !self.storage.restoring())
        else {
            return Err(ProposeError::NotLeader);
        };
        let len = record_len(payload.len());
        if self.staged.bytes.len() + len > MAX_BODY {
            self.flush(now_ns);
        }
        let room = self.storage.room_after(self.storage.last_index());
        if self.staged.bytes.len() + len + RESERVE > room {
            return Err(ProposeError::Full);
        }
        let position = Position::from(self.core.propose_command());
        let (index, epoch) = (position.index, self.settings.boot_epoch);
        let kind = Kind::Command;
        let record = Record { index, term, kind, epoch, connection, sequence, payload };
        if self.staged.count == 0 {
            self.staged.first = index;
        }
        record.encode(&mut self.staged.bytes);
        self.staged.count += 1;
        Ok(position)
    }

    /// Stores what was proposed; [`Self::poll_message`] does it as well.
    pub fn flush(&mut self, now_ns: u64) {
        if self.staged.count != 0 {
            self.settle(now_ns, &Context::default());
        }
    }

    /// Starts an election, on the orchestrator's word, in a term above `seen_term`: the highest
    /// that any replica has published, so that one round is enough. Does nothing when this
    /// replica leads.
    ///
    /// # Errors
    /// As [`CampaignError`] says.
    pub fn campaign(&mut self, now_ns: u64, seen_term: u64) -> Result<(), CampaignError> {
        if self.damage.is_some() {
            return Err(CampaignError::Damaged);
        }
        if self.storage.restoring() {
            return Err(CampaignError::Restoring);
        }
        if !self.is_voter() {
            return Err(CampaignError::NotVoter);
        }
        if self.storage.room_after(self.storage.last_index()) < CAMPAIGN_ROOM {
            return Err(CampaignError::Full);
        }
        if self.leads.is_none() {
            self.adopt_term(now_ns, seen_term);
            self.core.handle_election_timeout();
            self.settle(now_ns, &Context::default());
        }
        Ok(())
    }

    /// The orchestrator has fenced every former leader and published `relay_epoch`: from now on
    /// this replica, the winner, may serve. Returns whether it still leads.
    pub fn publish(&mut self, relay_epoch: u64) -> bool {
        let ready = self.has_settled_in();
        if ready {
            self.published = Some(relay_epoch);
        }
        ready
    }

    /// Whether this replica may answer, and read its state machine for an answer, while
    /// `relay_epoch` is what the orchestrator's page says at this moment. To be asked before each
    /// reply: the answer is linearizable only under it.
    pub fn may_reply(&self, relay_epoch: u64) -> bool {
        self.published == Some(relay_epoch) && self.has_settled_in()
    }

    /// Whether this replica leads and its first entry of the term is applied.
    fn has_settled_in(&self) -> bool {
        let settled = self.leads.is_some_and(|(_, first)| self.applied >= first);
        settled && self.damage.is_none() && !self.storage.restoring()
    }

    /// The state machine's state is lost or wrong: no entry is applied and nothing is served until
    /// a leader has sent a snapshot. Vote and log are not touched, so the replica goes on voting.
    pub fn abandon_machine(&mut self, now_ns: u64) {
        if self.damage.is_none() && !self.storage.restoring() {
            self.storage.set_restoring(true);
            self.published = None;
            // In a quiet cluster nobody would ask how this replica is.
            let ours = self.ident.slot();
            let peers = self.peers[..self.settings.replicas.into()].iter_mut().enumerate();
            peers.filter(|(slot, _)| *slot != ours).for_each(|(_, peer)| peer.out.want(HELLO));
            self.arm(now_ns);
        }
    }

    /// The orchestrator's word on another replica: its boot epoch (0 when unknown) and whether it
    /// runs. One that does not run is not waited for.
    pub fn set_peer(&mut self, now_ns: u64, replica: u8, boot_epoch: u32, up: bool) {
        let ours = self.settings.replica;
        if replica == 0 || replica > self.settings.replicas || replica == ours {
            return;
        }
        let slot = usize::from(replica) - 1;
        let peer = &mut self.peers[slot];
        peer.up = up;
        if boot_epoch > peer.boot {
            peer.boot = boot_epoch;
            peer.forget();
            peer.out.want(HELLO);
            if self.leads.is_some() {
                peer.out.probe_at(self.core.log().last_position().into());
            }
            self.drop_transfer(slot);
        }
        if !up {
            self.peers[slot].retry_at = None;
            self.drop_transfer(slot);
        }
        self.arm(now_ns);
    }

    /// What the shell has not been told yet.
    pub fn poll_event(&mut self) -> Option<Event> {
        if core::mem::take(&mut self.reports.damaged) {
            return self.damage.map(Event::Damaged);
        }
        if let Some(term) = self.reports.lost.take() {
            return Some(Event::Lost { term });
        }
        if let Some(index) = self.reports.restored.take() {
            return Some(Event::Restored { index });
        }
        if self.has_settled_in() {
            return self.reports.won.take().map(|term| Event::Won { term });
        }
        None
    }

    /// What this replica publishes about itself.
    pub fn status(&self) -> Status {
        Status {
            ident: self.ident,
            leading: self.leads.is_some(),
            term: self.core.current_term().get(),
            vote: self.core.voted_for().and_then(|id| Ident::from_raw(id.get())),
            last: self.core.log().last_position().into(),
            commit: self.core.commit_index().get().max(self.applied),
            applied: self.applied,
            voter: self.is_voter(),
            restoring: self.storage.restoring(),
            damage: self.damage,
        }
    }

    /// Compares the storage with what was written there; damage ends this replica's part.
    ///
    /// # Errors
    /// The damage found.
    pub fn verify_storage(&mut self) -> Result<(), Damage> {
        let found = self.damage.map_or_else(|| self.storage.verify(), Err);
        if let Err(damage) = found {
            self.fail(damage);
        }
        found
    }

    /// How many messages were refused for which reason.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refused[refusal as usize]
    }

    /// The place and kind of the entry at `index`, when the log still has it.
    pub fn entry(&self, index: u64) -> Option<(Position, Kind)> {
        let entries = self.core.log().entries();
        let kind = match entries.get_entry(LogIndex::new(index))? {
            LogEntry::Term(_) => Kind::Term,
            LogEntry::ClusterConfig(_) => Kind::Config,
            LogEntry::Command => Kind::Command,
        };
        let term = entries.get_term(LogIndex::new(index))?.get();
        Some((Position { term, index }, kind))
    }

    /// Copies the entry at `index` to `bytes`, checked; `None` when the log does not hold it.
    pub fn read_entry<'b>(
        &self,
        index: u64,
        bytes: &'b mut Vec<u8>,
    ) -> Option<Result<Record<'b>, Damage>> {
        let last = self.core.log().last_position().index.get().min(self.storage.last_index());
        let inside = index > self.storage.start().index && index <= last;
        inside.then(|| self.storage.read(index, bytes))
    }

    /// Bytes of this replica's own memory that grow and shrink with what it does: buffers,
    /// snapshots under way, the place of each record.
    pub fn footprint(&self) -> usize {
        let batches = [&self.staged, &self.recent, &self.older].map(|batch| batch.bytes.capacity());
        let transfers = self.peers.iter().filter_map(|peer| match &peer.transfer {
            Some(Transfer::Open(open)) => Some(open.data.capacity()),
            _ => None,
        });
        batches.iter().sum::<usize>()
            + transfers.sum::<usize>()
            + self.scratch.capacity()
            + self.storage.footprint()
    }

    /// Snapshots that the state machine holds for transfers under way.
    pub fn snapshots(&self) -> usize {
        let open = self.peers.iter().filter(|peer| peer.transferring().is_some()).count();
        open + self.to_close.iter().filter(|slot| **slot).count()
    }

    /// Bytes of log records kept, and the most that may be.
    pub fn log_bytes(&self) -> (usize, usize) {
        (self.storage.used(), self.storage.capacity())
    }

    pub(crate) fn is_voter(&self) -> bool {
        let (config, id) = (self.core.config(), self.ident.core());
        config.voters.contains(&id) || config.new_voters.contains(&id)
    }

    /// Notes damage: from here on nothing is sent, taken or served.
    pub(crate) fn fail(&mut self, damage: Damage) {
        if self.damage.is_none() {
            self.damage = Some(damage);
            self.reports.damaged = true;
            self.published = None;
            self.leads = None;
            self.reports.won = None;
        }
    }

    /// Does one piece of work that needs the state machine: applies the next committed entry and
    /// returns it, or prepares the next piece of a snapshot, or lets the log forget. To be called
    /// until it returns `None`, after every `handle_*`.
    pub fn work<S: StateMachine>(
        &mut self,
        now_ns: u64,
        machine: &mut S,
    ) -> Option<Applied<S::Reply>> {
        if self.damage.is_some() {
            return None;
        }
        self.flush(now_ns);
        if !self.storage.restoring()
            && let Some(applied) = self.apply_next(machine)
        {
            return Some(applied);
        }
        self.serve_transfers(now_ns, machine);
        if !self.storage.restoring() {
            self.compact(machine.applied());
        }
        None
    }

    fn apply_next<S: StateMachine>(&mut self, machine: &mut S) -> Option<Applied<S::Reply>> {
        while self.applied < self.core.commit_index().get() {
            let index = self.applied + 1;
            let entry = self.core.log().entries().get_entry(LogIndex::new(index));
            if entry != Some(LogEntry::Command) {
                machine.advance(index);
                self.applied = index;
                continue;
            }
            let at_hand = self.older.find(index).or_else(|| self.recent.find(index));
            let read = match at_hand {
                Some(record) => Ok(record),
                None => self.storage.read(index, &mut self.scratch),
            };
            let Record { connection, sequence, payload, .. } = match read {
                Ok(record) => record,
                Err(damage) => {
                    self.fail(damage);
                    return None;
                }
            };
            let reply = machine.apply(index, Request { connection, sequence, payload });
            self.applied = index;
            return Some(Applied { index, connection, sequence, reply });
        }
        None
    }

    /// Index of the oldest snapshot that is on its way.
    pub(crate) fn oldest_transfer(&self) -> Option<u64> {
        self.peers.iter().filter_map(Peer::transferring).min()
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.core.role() == Role::Leader
    }
}

/// The core's view of a record; `None` when a membership cannot be read.
pub(crate) fn entry_of(record: &Record<'_>) -> Option<LogEntry> {
    Some(match record.kind {
        Kind::Command => LogEntry::Command,
        Kind::Term => LogEntry::Term(noraft::Term::new(record.term)),
        Kind::Config => LogEntry::ClusterConfig(parse_config(record.payload)?.0),
    })
}
