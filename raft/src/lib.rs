//! Consensus for replicated services: what the crate `noraft` leaves open around its core.
//!
//! A [`Node`] is one replica of a state machine. It is pure: messages and times come in by
//! `handle_*`, messages and events go out by `poll_*`, committed entries reach the
//! [`StateMachine`] in [`Node::work`]; what it must not forget lies in fabric memory
//! ([`fabric::SharedMemory`]) that outlives its domain.
//!
//! What is particular here:
//! - **Quiet.** With [`Elections::OnCommand`] there is no heartbeat and no election timer: the
//!   orchestrator detects failures and calls for a campaign ([`Node::campaign`]). Safety does not
//!   rest on it; [`Elections::Timed`] runs the same code with timers and pre-vote.
//! - **Fenced.** A winner serves nothing until the orchestrator has stopped the former leader and
//!   published a relay epoch ([`Node::publish`]), and asks before each reply
//!   ([`Node::may_reply`]). So the leader reads from its own state, linearizably.
//! - **Former lives are refused.** Every message names the boot epochs of both ends.
//! - **Lost storage is a lost member.** A replica whose vote or log is damaged comes back under a
//!   new identity ([`Birth::Newcomer`]): it can neither vote twice nor be counted for entries it
//!   has forgotten. The leader restores it and changes the membership.
//! - **Group commit.** Proposals between two polls are stored and sent in one round.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod handle;
mod id;
mod machine;
mod membership;
mod node;
mod peer;
mod record;
mod send;
mod settle;
mod storage;
mod timer;
mod transfer;
mod types;
mod wire;

pub use id::{Ident, MAX_REPLICAS, Position};
pub use machine::{Chunk, Request, RestoreError, StateMachine};
pub use node::Node;
pub use record::{Kind, MAX_PAYLOAD, MAX_RECORD, RECORD_HEADER, Record, RecordError, record_len};
pub use storage::{Damage, MIN_STORAGE, OpenError};
pub use types::{
    Applied, Birth, CampaignError, CreateError, Elections, Event, ProposeError, Settings, Status,
};
pub use wire::{
    FLAG_GAP, FLAG_GRANTED, FLAG_LAST, FLAG_NEEDS_SNAPSHOT, MAX_BODY, MAX_MESSAGE, MESSAGE_HEADER,
    Message, MessageKind, Refusal,
};
