//! What the shell tells a replica, and what a replica tells its shell.

use crate::id::{Ident, Position};
use crate::storage::Damage;

/// Who starts elections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elections {
    /// Only [`crate::Node::campaign`]; nothing is sent while nothing is proposed.
    OnCommand,
    /// Also a timer, after a pre-vote; the leader sends heartbeats.
    Timed {
        /// Shortest time without a leader before a campaign, in nanoseconds.
        min_ns: u64,
        /// Longest such time.
        max_ns: u64,
        /// Time between heartbeats.
        heartbeat_ns: u64,
        /// Seed of the times drawn.
        seed: u64,
    },
}

/// What a replica is told about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This replica, from 1.
    pub replica: u8,
    /// Replicas in all, at most [`crate::MAX_REPLICAS`].
    pub replicas: u8,
    /// This life of the domain, from 1, never used twice for this replica.
    pub boot_epoch: u32,
    /// Who starts elections.
    pub elections: Elections,
    /// Time without an answer after which a message is repeated; doubles up to
    /// `retry_max_ns`.
    pub retry_ns: u64,
    /// Longest time between repetitions.
    pub retry_max_ns: u64,
    /// Time after which followers are told of a commit that no later append has told them of.
    pub commit_notice_ns: u64,
}

impl Settings {
    /// Three replicas, elections on command, times that suit the fabric.
    pub const fn fabric(replica: u8, boot_epoch: u32) -> Self {
        Self {
            replica,
            replicas: 3,
            boot_epoch,
            elections: Elections::OnCommand,
            retry_ns: 1_000_000,
            retry_max_ns: 64_000_000,
            commit_notice_ns: 500_000,
        }
    }
}

/// How a replica without usable storage comes to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    /// With the cluster itself, in boot epoch 1 and never later.
    Founder,
    /// In the place of a member whose storage is lost. It has a new identity, so it votes in no
    /// term and counts for no entry of its former life; a leader restores its state and puts it
    /// in the former member's place by a change of membership.
    Newcomer,
}

/// Why a replica could not be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// A founder after the first life would forget what its former life promised.
    NotFirstLife,
    /// As [`crate::OpenError::Size`].
    Size,
}

/// Why a proposal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// Another replica leads, or nobody does.
    NotLeader,
    /// The log is full until more is committed and applied.
    Full,
    /// The payload is longer than [`crate::MAX_PAYLOAD`].
    TooLong,
}

/// Why a campaign did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CampaignError {
    /// Not a voter.
    NotVoter,
    /// The state machine is not whole.
    Restoring,
    /// No room in the log for a leader's first entry.
    Full,
    /// The storage is damaged.
    Damaged,
}

/// What the shell has to know. Each is reported once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// This replica leads `term`, and everything committed before is applied. The orchestrator
    /// fences the former leader, then calls for [`crate::Node::publish`].
    Won {
        /// The term won.
        term: u64,
    },
    /// This replica no longer leads `term`. What it proposed and did not see applied may or may
    /// not be executed.
    Lost {
        /// The term lost.
        term: u64,
    },
    /// The state machine has been restored from a snapshot at `index`.
    Restored {
        /// Index of the snapshot.
        index: u64,
    },
    /// The storage is damaged. The replica takes part in nothing any more.
    Damaged(Damage),
}

/// A committed request and its reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied<R> {
    /// Index of the entry.
    pub index: u64,
    /// Connection of the request.
    pub connection: u32,
    /// Sequence of the request.
    pub sequence: u64,
    /// What the state machine answered. Only the leader hands it out, after
    /// [`crate::Node::may_reply`].
    pub reply: R,
}

/// What a replica publishes about itself; the orchestrator chooses candidates by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Who it is.
    pub ident: Ident,
    /// Whether it leads its term.
    pub leading: bool,
    /// Its term.
    pub term: u64,
    /// Who has its vote in this term, or leads it.
    pub vote: Option<Ident>,
    /// Its last entry. Among voters that are not restoring, the greatest one wins a campaign.
    pub last: Position,
    /// Commit index.
    pub commit: u64,
    /// Applied index.
    pub applied: u64,
    /// Whether the latest membership it knows lets it vote.
    pub voter: bool,
    /// Whether its state machine waits for a snapshot.
    pub restoring: bool,
    /// What is wrong with its storage.
    pub damage: Option<Damage>,
}
