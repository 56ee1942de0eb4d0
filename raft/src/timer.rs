//! Elections by timers, with pre-vote, and the deadlines of repetition.

use fabric::SharedMemory;

use crate::id::MAX_REPLICAS;
use crate::node::Node;
use crate::peer::PRE_VOTE;
use crate::settle::Context;
use crate::types::{Elections, Settings};
use crate::wire::{FLAG_GRANTED, Message};

/// When to act without a message.
#[derive(Clone, Debug)]
pub(crate) struct Timer {
    elections: Elections,
    random: u64,
    /// Next heartbeat of a leader, next campaign of anybody else.
    at: Option<u64>,
    /// Nobody has told the time yet.
    fresh: bool,
    /// When a leader of the present term was last heard.
    heard: Option<u64>,
    /// Term that pre-votes are being gathered for, and from whom they came.
    pre_votes: Option<(u64, [bool; MAX_REPLICAS])>,
}

impl Timer {
    pub fn new(settings: &Settings) -> Self {
        let (timed, seed) = match settings.elections {
            Elections::OnCommand => (false, 0),
            Elections::Timed { seed, .. } => (true, seed),
        };
        Self {
            elections: settings.elections,
            // xorshift must not start from zero.
            random: seed ^ u64::from(settings.boot_epoch) << 32 ^ 0x9e37_79b9_7f4a_7c15 | 1,
            // At once: the first call of `handle_time` tells what time it is.
            at: timed.then_some(0),
            fresh: timed,
            heard: None,
            pre_votes: None,
        }
    }

    /// A number drawn from `0..bound`.
    fn draw(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound.max(1)
    }

    /// Starts the time anew: until the next heartbeat of a leader, the next campaign of others.
    pub fn rearm(&mut self, now_ns: u64, leading: bool) {
        let Elections::Timed { min_ns, max_ns, heartbeat_ns, .. } = self.elections else { return };
        let wait =
            if leading { heartbeat_ns } else { min_ns + self.draw(max_ns.saturating_sub(min_ns)) };
        self.fresh = false;
        self.at = Some(now_ns.saturating_add(wait));
        self.pre_votes = None;
    }

    pub fn note_leader(&mut self, now_ns: u64) {
        self.heard = Some(now_ns);
    }

    /// Whether a leader was heard so lately that nobody should campaign.
    fn has_leader(&self, now_ns: u64) -> bool {
        let Elections::Timed { min_ns, .. } = self.elections else { return false };
        self.heard.is_some_and(|heard| now_ns < heard.saturating_add(min_ns))
    }
}

impl<M: SharedMemory> Node<M> {
    /// When [`Self::handle_time`] is to be called at the latest; `None`: not before something
    /// else happens. A quiet cluster without timers has none.
    pub fn poll_deadline(&self) -> Option<u64> {
        if self.damage.is_some() {
            return None;
        }
        self.peers.iter().filter_map(|peer| peer.retry_at).chain(self.timer.at).min()
    }

    /// Repeats what was not answered in time; with timers, sends heartbeats and campaigns.
    pub fn handle_time(&mut self, now_ns: u64) {
        if self.damage.is_some() {
            return;
        }
        self.flush(now_ns);
        for slot in 0..self.peers.len() {
            if self.peers[slot].retry_at.is_some_and(|at| at <= now_ns) {
                self.repeat(slot);
                let peer = &mut self.peers[slot];
                peer.retry_at = Some(now_ns.saturating_add(peer.backoff_ns));
                peer.backoff_ns = (peer.backoff_ns * 2).min(self.settings.retry_max_ns);
            }
        }
        if self.timer.fresh {
            self.timer.rearm(now_ns, false);
        } else if self.timer.at.is_some_and(|at| at <= now_ns) {
            if self.is_leader() {
                // A leader that cannot serve falls silent, so that another one is elected.
                if self.storage.restoring() {
                    self.timer.rearm(now_ns, true);
                } else {
                    self.core.heartbeat();
                }
                self.settle(now_ns, &Context::default());
            } else {
                self.gather_pre_votes(now_ns);
            }
        }
        self.arm(now_ns);
    }

    fn gather_pre_votes(&mut self, now_ns: u64) {
        self.timer.rearm(now_ns, false);
        if !self.is_voter() || self.storage.restoring() {
            return;
        }
        let mut votes = [false; MAX_REPLICAS];
        votes[self.ident.slot()] = true;
        self.timer.pre_votes = Some((self.core.current_term().get() + 1, votes));
        for peer in self.peers.iter_mut().filter(|peer| peer.member) {
            peer.out.want(PRE_VOTE);
        }
        self.campaign_if_wanted(now_ns);
    }

    pub(crate) fn take_pre_vote(&mut self, now_ns: u64, slot: usize, message: &Message<'_>) {
        let granted = message.term > self.core.current_term().get()
            && message.position >= self.core.log().last_position().into()
            && !self.is_leader()
            && !self.timer.has_leader(now_ns);
        self.peers[slot].out.answer_pre_vote(message.term, granted);
    }

    pub(crate) fn take_pre_vote_reply(&mut self, now_ns: u64, slot: usize, message: &Message<'_>) {
        self.adopt_term(now_ns, message.term);
        let granted = message.flags & FLAG_GRANTED != 0;
        if let Some((term, votes)) = &mut self.timer.pre_votes
            && *term == message.position.index
            && *term > self.core.current_term().get()
            && granted
        {
            votes[slot] = true;
            self.campaign_if_wanted(now_ns);
        }
    }

    /// Campaigns in earnest once majorities of the membership would vote for it.
    fn campaign_if_wanted(&mut self, now_ns: u64) {
        let Some((_, votes)) = self.timer.pre_votes else { return };
        let ours = self.ident;
        let config = self.core.config();
        let won = [&config.voters, &config.new_voters].into_iter().all(|set| {
            let in_favour = set.iter().filter(|id| {
                let slot = if **id == ours.core() { Some(ours.slot()) } else { self.slot_of(**id) };
                slot.is_some_and(|slot| votes[slot])
            });
            set.is_empty() || in_favour.count() > set.len() / 2
        });
        if won {
            self.timer.pre_votes = None;
            // A refusal (no room in the log) leaves the next attempt to the timer.
            let _ = self.campaign(now_ns, 0);
        }
    }
}
