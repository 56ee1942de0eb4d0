//! One round of a replica: what has come is taken, what may be answered is answered, what is to be
//! said is said.

use alloc::vec::Vec;

use fabric::SharedMemory;
use raft::{Damage, Event, ProposeError};
use store::{Action, Fault, Progress, Server};

use crate::Replica;

/// Requests served in one round: then messages and kicks are looked at again. What they change is
/// one entry each, and the entries of a round travel together.
const SERVED_PER_ROUND: usize = 16;
/// Entries executed in one round: then progress is told. A replica that was away finds many of
/// them, which together would look like a hang.
const ENTRIES_PER_ROUND: usize = 16;
/// Time for a campaign before the next one: several times what the messages take. Doubled up to
/// the longest one, which costs nothing while no majority is alive.
pub(crate) const CAMPAIGN_NS: u64 = 1_000_000;
const CAMPAIGN_MAX_NS: u64 = 16_000_000;
/// Messages taken in one round: several for each other replica.
const MESSAGES_PER_ROUND: usize = 8;

/// The orchestrator's word on who serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relay {
    /// Grows with each word; from 1.
    pub epoch: u64,
    /// Whether this replica is meant.
    pub is_ours: bool,
}

/// What a replica needs done outside.
pub trait Host<M, A> {
    /// Puts the next message of another replica into `into`; false: there is none.
    fn receive(&mut self, into: &mut Vec<u8>) -> bool;

    /// Sends a message to replica `to`. It may be lost.
    fn send(&mut self, to: u8, message: &[u8]);

    /// Lets the server serve a connection with its ring, and notifies its client if need be.
    /// `None`: it has no ring.
    fn serve(&mut self, server: &mut Server<M, A>, client: u16, now_ns: u64) -> Option<Progress>;

    /// As [`Host::serve`], with [`Server::finish`] for the entry at `index`.
    fn finish(
        &mut self,
        server: &mut Server<M, A>,
        client: u16,
        index: u64,
        now_ns: u64,
    ) -> Option<Progress>;

    /// This replica serves from now on: every connection is to be attached, and domains that are
    /// gone are to be told.
    fn take_over(&mut self, server: &mut Server<M, A>);

    /// Does what the server wants done.
    fn act(&mut self, server: &mut Server<M, A>, action: Action);
}

/// What a round came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Requests answered, messages taken and entries executed.
    pub completed: u64,
    /// There is more to do at once.
    pub more: bool,
    /// When to come back even if nothing happens.
    pub wake_at_ns: Option<u64>,
    /// This replica has just begun to serve.
    pub has_taken_over: bool,
    /// Memory of the server is damaged: the next life reads it back.
    pub fault: Option<Fault>,
    /// Term, vote or log is damaged: the next life is a new member.
    pub damage: Option<Damage>,
}

/// What a step of background work came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// As [`Round::fault`].
    pub fault: Option<Fault>,
    /// When there is more to do.
    pub wake_at_ns: u64,
}

impl<M, A, L> Replica<M, A, L>
where
    M: SharedMemory + Clone,
    A: SharedMemory,
    L: SharedMemory + Clone,
{
    /// One round.
    pub fn round(&mut self, now_ns: u64, relay: Relay, host: &mut impl Host<M, A>) -> Round {
        let mut round = Round::default();
        self.entries_left = ENTRIES_PER_ROUND;
        self.obey(relay);
        self.take_messages(now_ns, host, &mut round);
        self.campaign(now_ns);
        if self.node.poll_deadline().is_some_and(|at_ns| at_ns <= now_ns) {
            self.busy.set(true);
            self.node.handle_time(now_ns);
            self.busy.set(false);
        }
        self.execute(now_ns, host, &mut round);
        let is_behind = self.is_behind();
        // What a leader says of the log tells others of events that it has queued by then.
        if !(is_behind && self.machine.server.is_leading()) {
            self.serve(now_ns, host, &mut round);
            self.act(host);
            self.has_room = self.propose(now_ns);
            self.say(now_ns, host);
        }
        round.more |= is_behind || self.is_behind();
        let due_ns = [self.node.poll_deadline(), self.campaign_at_ns];
        round.wake_at_ns = due_ns.into_iter().flatten().min();
        round.damage = self.damage;
        round
    }

    /// A bounded step of what nobody waits for, after a round that left nothing to do at once.
    pub fn idle(&mut self, now_ns: u64) -> Idle {
        let server = &mut self.machine.server;
        let fault = server.idle_step(now_ns);
        let mut wake_at_ns = server.next_deadline(now_ns);
        // The next round proposes what was ordered, a step of sweeping for example.
        if self.has_room && self.serves() && self.machine.server.has_orders() {
            wake_at_ns = now_ns;
        }
        Idle { fault, wake_at_ns }
    }

    /// Whether this replica may answer.
    pub fn serves(&self) -> bool {
        self.relay_epoch != 0 && self.node.may_reply(self.relay_epoch)
    }

    fn obey(&mut self, relay: Relay) {
        let epoch = if relay.is_ours { relay.epoch } else { 0 };
        if epoch != self.relay_epoch {
            self.relay_epoch = epoch;
            self.campaign_at_ns = None;
            self.node.publish(epoch);
        }
    }

    /// Campaigns, if this replica is named and does not lead. After the messages: what the former
    /// leader said last is in the other's log by then, which gives a shorter one no vote.
    fn campaign(&mut self, now_ns: u64) {
        if self.relay_epoch == 0 || self.node.status().leading {
            self.campaign_at_ns = None;
            self.campaign_ns = CAMPAIGN_NS;
            return;
        }
        if self.campaign_at_ns.is_some_and(|at_ns| at_ns > now_ns) {
            return;
        }
        // Another one may have the votes of this term, or have deposed this replica although it
        // cannot win: the next term decides. A replica that cannot campaign is passed over at the
        // orchestrator's next word.
        self.busy.set(true);
        let _ = self.node.campaign(now_ns, 0);
        self.campaign_at_ns = Some(now_ns + self.campaign_ns);
        self.campaign_ns = (2 * self.campaign_ns).min(CAMPAIGN_MAX_NS);
        self.note_role();
        self.busy.set(false);
    }

    fn take_messages(&mut self, now_ns: u64, host: &mut impl Host<M, A>, round: &mut Round) {
        for taken in 1..=MESSAGES_PER_ROUND {
            self.busy.set(true);
            let found = host.receive(&mut self.message);
            if found {
                // What is refused needs nothing else done.
                let _ = self.node.handle_message(now_ns, &self.message, &mut self.machine);
                self.note_role();
            }
            self.busy.set(false);
            if !found {
                break;
            }
            round.completed += 1;
            round.more = taken == MESSAGES_PER_ROUND;
            // Before anybody hears how far the log is committed: then its events are queued.
            self.execute(now_ns, host, round);
        }
    }

    /// The server leads as soon as consensus says so: what it executes from then on, it answers
    /// for.
    fn note_role(&mut self) {
        let status = self.node.status();
        if status.leading && self.promoted != status.term {
            self.promoted = status.term;
            self.machine.server.promote(status.term, &self.others);
        } else if !status.leading && self.machine.server.is_leading() {
            self.promoted = 0;
            self.machine.server.demote();
        }
    }

    /// Whether entries are committed that this replica has not executed. One that waits for a
    /// snapshot cannot execute them.
    fn is_behind(&self) -> bool {
        let status = self.node.status();
        status.commit > status.applied && !status.restoring
    }

    /// Whether this round may execute what is committed. An entry may concern any node, so those
    /// that a reload has left for later are made first, a piece in a round.
    fn may_execute(&mut self, round: &mut Round) -> bool {
        if !self.is_behind() {
            return true;
        }
        self.busy.set(true);
        if self.entries_left > 0 && self.machine.server.load_piece() {
            round.completed += 1;
            self.entries_left = 0;
        }
        self.busy.set(false);
        self.entries_left > 0
    }

    /// Executes what is committed, and answers it.
    fn execute(&mut self, now_ns: u64, host: &mut impl Host<M, A>, round: &mut Round) {
        while self.may_execute(round) {
            self.busy.set(true);
            let applied = self.node.work(now_ns, &mut self.machine);
            self.busy.set(false);
            let Some(applied) = applied else { break };
            self.entries_left = self.entries_left.saturating_sub(1);
            round.completed += 1;
            if !self.serves() {
                continue;
            }
            let (server, client) = (&mut self.machine.server, applied.connection as u16);
            if let Some(progress) = host.finish(server, client, applied.index, now_ns) {
                round.fault = round.fault.or(progress.fault);
            }
            self.act(host);
        }
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Won { .. } if self.relay_epoch != 0 => {
                    self.busy.set(true);
                    let serves = self.node.publish(self.relay_epoch);
                    self.busy.set(false);
                    if serves {
                        self.machine.server.settle_in();
                        host.take_over(&mut self.machine.server);
                        self.is_new = true;
                        round.has_taken_over = true;
                        round.more = true;
                    }
                }
                Event::Damaged(damage) => self.damage = Some(damage),
                Event::Won { .. } | Event::Lost { .. } | Event::Restored { .. } => {}
            }
        }
    }

    fn serve(&mut self, now_ns: u64, host: &mut impl Host<M, A>, round: &mut Round) {
        if self.serves() {
            serve(&mut self.machine.server, now_ns, host, round, &mut self.is_new);
        }
    }

    fn act(&mut self, host: &mut impl Host<M, A>) {
        act(&mut self.machine.server, host);
    }

    /// Hands to consensus what the server wants executed. False: the log has no room for it.
    fn propose(&mut self, now_ns: u64) -> bool {
        if !self.serves() {
            return true;
        }
        let mut has_room = true;
        self.busy.set(true);
        loop {
            let status = self.node.status();
            let is_quiet = status.applied == status.last.index;
            let Some(proposal) = self.machine.server.next_proposal(is_quiet) else { break };
            let (client, position) = (u32::from(proposal.client), u64::from(proposal.position));
            match self.node.propose(now_ns, client, position, &proposal.payload) {
                Ok(position) => self.machine.server.proposed(&proposal, position.index),
                Err(ProposeError::Full) => {
                    // When the others have taken more there is room again.
                    self.machine.server.postpone(proposal);
                    has_room = false;
                    break;
                }
                // Another one leads: its clients ask it.
                Err(ProposeError::NotLeader | ProposeError::TooLong) => break,
            }
        }
        self.busy.set(false);
        has_room
    }

    fn say(&mut self, now_ns: u64, host: &mut impl Host<M, A>) {
        self.busy.set(true);
        while let Some(to) = self.node.poll_message(now_ns, &mut self.message) {
            host.send(to, &self.message);
        }
        self.busy.set(false);
    }
}

/// Serves those who have asked. `is_new`: nobody was answered since it took over.
pub(crate) fn serve<M: SharedMemory, A: SharedMemory>(
    server: &mut Server<M, A>,
    now_ns: u64,
    host: &mut impl Host<M, A>,
    round: &mut Round,
    is_new: &mut bool,
) {
    for _ in 0..SERVED_PER_ROUND {
        let Some(client) = server.next_ready(now_ns) else { return };
        let Some(progress) = host.serve(server, client, now_ns) else { continue };
        round.completed += u64::from(progress.executed || progress.notify || progress.advanced);
        if progress.fault.is_some() {
            round.fault = progress.fault;
            return;
        }
        act(server, host);
        if progress.advanced {
            // Several pieces of longer work, each of them a progress, would together look like a
            // hang: it is told after each.
            break;
        }
        if progress.notify && core::mem::take(is_new) {
            // Whoever has waited for the fail-over need not wait for the others' answers, too.
            break;
        }
    }
    round.more = true;
}

/// Has done what the server wants done.
pub(crate) fn act<M: SharedMemory, A: SharedMemory>(
    server: &mut Server<M, A>,
    host: &mut impl Host<M, A>,
) {
    while let Some(action) = server.next_action() {
        host.act(server, action);
    }
}
