//! Carries out what the core decides: first everything durable, then everything that is sent.

use fabric::SharedMemory;
use noraft::{LogEntries, LogEntry, Message};

use crate::id::{Ident, Position};
use crate::node::Node;
use crate::peer::{APPEND, CHUNK, HELLO, OpenTransfer, Transfer, VOTE};
use crate::record::{Kind, Record, encode_config};

/// The message that the core is answering.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Context<'a> {
    /// Its records, valid and consecutive, the first with index `first`.
    pub records: &'a [u8],
    /// Index of the first record.
    pub first: u64,
    /// Whether a membership is among them.
    pub membership: bool,
    /// Its number, if it is an append or the answer to one.
    pub number: u32,
    /// Its entries found no place.
    pub gap: bool,
}

impl<M: SharedMemory> Node<M> {
    /// Carries out the core's actions until none is left.
    pub(crate) fn settle(&mut self, now_ns: u64, context: &Context<'_>) {
        loop {
            if self.change_wanted {
                self.drive_membership();
            }
            if self.core.actions().is_empty() {
                break;
            }
            self.persist(context);
            self.note_role();
            if core::mem::take(&mut self.core.actions_mut().set_election_timeout) {
                self.timer.rearm(now_ns, self.is_leader());
            }
            self.route(context);
        }
        self.arm(now_ns);
    }

    /// Stores term, vote and entries. Messages are made later, so none can overtake this.
    fn persist(&mut self, context: &Context<'_>) {
        let actions = self.core.actions_mut();
        let term = core::mem::take(&mut actions.save_current_term);
        let vote = core::mem::take(&mut actions.save_voted_for);
        let entries = actions.append_log_entries.take();
        if let Some(entries) = &entries {
            // A leader's entries are its own, also while it looks at a former leader's message.
            if context.records.is_empty() || self.is_leader() {
                self.store_own(entries);
            } else {
                self.store_received(entries, context);
            }
        }
        if term || vote || entries.is_some() {
            let vote = self.core.voted_for().and_then(|id| Ident::from_raw(id.get()));
            self.storage.set_vote(self.core.current_term().get(), vote);
            self.storage.save();
        }
    }

    fn store_received(&mut self, entries: &LogEntries, context: &Context<'_>) {
        let prev = entries.prev_position().index.get();
        let mut bytes = context.records;
        for _ in context.first..=prev {
            let header = bytes.first_chunk().expect("the core appends what the message holds");
            bytes = &bytes[Record::peek_len(header).expect("checked before")..];
        }
        let truncated = prev < self.storage.last_index();
        self.storage.append(prev, bytes);
        self.next_batch();
        self.recent.first = prev + 1;
        self.recent.count = entries.len() as u64;
        self.recent.bytes.extend_from_slice(bytes);
        if truncated {
            self.older.clear();
        }
        if truncated || context.membership {
            self.refresh_members();
        }
    }

    /// Makes room for the batch that is stored next; the one before stays at hand.
    fn next_batch(&mut self) {
        core::mem::swap(&mut self.older, &mut self.recent);
        self.recent.clear();
    }

    fn store_own(&mut self, entries: &LogEntries) {
        let first = entries.prev_position().index.get() + 1;
        self.next_batch();
        core::mem::swap(&mut self.staged, &mut self.recent);
        if self.recent.count == 0 {
            // Not proposals: a new leader's first entry, or a change of membership.
            self.recent.first = first;
            for (position, entry) in entries.iter_with_positions() {
                self.encode_own(position.into(), &entry);
            }
        }
        assert_eq!((self.recent.first, self.recent.count), (first, entries.len() as u64));
        if first <= self.storage.last_index() {
            self.older.clear();
        }
        self.storage.append(first - 1, &self.recent.bytes);
        if self.config_index >= first {
            self.refresh_members();
        }
    }

    fn encode_own(&mut self, position: Position, entry: &LogEntry) {
        self.scratch.clear();
        let kind = match entry {
            LogEntry::Term(_) => Kind::Term,
            LogEntry::ClusterConfig(config) => {
                encode_config(config, &mut self.scratch);
                self.config_index = position.index;
                Kind::Config
            }
            LogEntry::Command => unreachable!("commands are staged by propose"),
        };
        let Position { term, index } = position;
        let (epoch, payload) = (self.settings.boot_epoch, &self.scratch[..]);
        let record = Record { index, term, kind, epoch, connection: 0, sequence: 0, payload };
        record.encode(&mut self.recent.bytes);
        self.recent.count += 1;
    }

    /// Notes that this replica has begun or ceased to lead.
    fn note_role(&mut self) {
        let term = self.core.current_term().get();
        let leads = self.leads.map(|(led, _)| led);
        if self.is_leader() && leads != Some(term) {
            let first = self.core.log().last_position().index.get();
            self.leads = Some((term, first));
            self.config_index = first;
            self.published = None;
            self.reports.won = Some(term);
            self.refresh_members();
            for slot in 0..self.peers.len() {
                self.drop_transfer(slot);
                let peer = &mut self.peers[slot];
                peer.next = first;
                peer.matched = 0;
                peer.commit = 0;
                peer.needs_snapshot = false;
                peer.rewound_at = peer.number.wrapping_add(1);
                peer.retry_at = None;
                peer.backoff_ns = self.settings.retry_ns;
            }
        } else if !self.is_leader()
            && let Some(term) = leads
        {
            self.leads = None;
            self.published = None;
            self.reports.won = None;
            self.reports.lost = Some(term);
            for slot in 0..self.peers.len() {
                self.drop_transfer(slot);
                self.peers[slot].retry_at = None;
            }
        }
    }

    /// Notes what is to be sent to whom.
    fn route(&mut self, context: &Context<'_>) {
        if let Some(message) = self.core.actions_mut().broadcast_message.take() {
            let vote = matches!(message, Message::RequestVoteCall { .. });
            for peer in self.peers.iter_mut().filter(|peer| peer.member) {
                peer.out.want(if vote { VOTE } else { APPEND });
            }
        }
        let actions = self.core.actions();
        if actions.send_messages.is_empty() && actions.install_snapshots.is_empty() {
            return;
        }
        while let Some((to, message)) = self.core.actions_mut().send_messages.pop_first() {
            let Some(slot) = self.slot_of(to) else { continue };
            let out = &mut self.peers[slot].out;
            match message {
                Message::RequestVoteCall { .. } => out.want(VOTE),
                Message::RequestVoteReply { term, vote_granted, .. } => {
                    out.answer_vote(term.get(), vote_granted);
                }
                Message::AppendEntriesReply { .. } => {
                    out.answer_append(context.number, context.gap);
                }
                Message::AppendEntriesCall { entries, .. } => self.resend(slot, &entries, context),
            }
        }
        while let Some(to) = self.core.actions_mut().install_snapshots.pop_first() {
            if let Some(slot) = self.slot_of(to) {
                self.want_transfer(slot);
            }
        }
    }

    /// The core wants `entries` sent again, in answer to what a follower reported. It does not
    /// know what is already on its way; this replica does.
    fn resend(&mut self, slot: usize, entries: &LogEntries, context: &Context<'_>) {
        let last = self.core.log().last_position().index.get();
        let prev = Position::from(entries.prev_position());
        let peer = &mut self.peers[slot];
        if entries.is_empty() {
            peer.out.probe_at(prev);
        } else if context.gap {
            let news = context.number.wrapping_sub(peer.rewound_at).cast_signed() >= 0;
            if news {
                peer.next = prev.index + 1;
                peer.rewound_at = peer.number.wrapping_add(1);
                peer.out.want(APPEND);
            }
        } else {
            peer.next = peer.next.max(prev.index + 1);
            if peer.next <= last {
                peer.out.want(APPEND);
            }
        }
    }

    /// The slot of a member, if no newer identity of its replica is known.
    pub(crate) fn slot_of(&self, member: noraft::NodeId) -> Option<usize> {
        let ident = Ident::from_raw(member.get())?;
        (self.peers[ident.slot()].ident == Some(ident)).then_some(ident.slot())
    }

    /// Takes over what the latest membership says about each replica.
    pub(crate) fn refresh_members(&mut self) {
        for member in self.core.peers() {
            let Some(ident) = Ident::from_raw(member.get()) else { continue };
            let peer = &mut self.peers[ident.slot()];
            if peer.ident.is_none_or(|known| known < ident) {
                peer.ident = Some(ident);
            }
        }
        let config = self.core.config();
        let ours = self.ident.slot();
        self.change_wanted = config.is_joint_consensus();
        for (slot, peer) in self.peers.iter_mut().enumerate().filter(|(slot, _)| *slot != ours) {
            let Some(id) = peer.ident.map(Ident::core) else { continue };
            peer.member = config.contains(id);
            self.change_wanted |= slot != ours && !config.voters.contains(&id);
        }
    }

    /// Sets or clears each peer's time of repetition: there is one as long as a running peer has
    /// something to answer, and none in a quiet cluster.
    pub(crate) fn arm(&mut self, now_ns: u64) {
        let leading = self.leads.is_some();
        let asking = self.core.role().is_candidate() || self.storage.restoring();
        let last = self.core.log().last_position().index.get();
        let commit = self.core.commit_index().get();
        let (ours, retry_ns) = (self.ident.slot(), self.settings.retry_ns);
        for (slot, peer) in self.peers[..self.settings.replicas.into()].iter_mut().enumerate() {
            let lagging = peer.transfer.is_some() || peer.matched < last;
            let waits = if leading {
                peer.member && (lagging || peer.commit < commit)
            } else {
                asking && slot != ours
            };
            if !waits || !peer.up {
                peer.retry_at = None;
                peer.backoff_ns = retry_ns;
            } else if peer.retry_at.is_none() {
                let notice = leading && !lagging;
                let wait = if notice { self.settings.commit_notice_ns } else { peer.backoff_ns };
                peer.retry_at = Some(now_ns.saturating_add(wait));
            }
        }
    }

    /// The peer in `slot` has answered: what it has not yet is to be waited for anew.
    pub(crate) fn note_progress(&mut self, slot: usize) {
        let peer = &mut self.peers[slot];
        peer.retry_at = None;
        peer.backoff_ns = self.settings.retry_ns;
    }

    /// Repeats to the peer in `slot` what it should have answered.
    pub(crate) fn repeat(&mut self, slot: usize) {
        let last = Position::from(self.core.log().last_position());
        let (leading, candidate) = (self.leads.is_some(), self.core.role().is_candidate());
        let peer = &mut self.peers[slot];
        if leading && peer.member {
            peer.out.probe_at(last);
            let open = matches!(
                &peer.transfer,
                Some(Transfer::Open(OpenTransfer { acknowledged: false, .. }))
            );
            peer.out.want(if open { CHUNK } else { 0 });
        } else {
            peer.out.want(if candidate && peer.member { VOTE } else { HELLO });
        }
    }
}
