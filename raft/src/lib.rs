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
//!
//! # How a shell drives it
//!
//! ```text
//! start     let node = match Node::open(storage, settings, store.applied()) {
//!               Ok(node) => node,
//!               Err(_) if boot_epoch == 1 => Node::create(storage, settings, Birth::Founder),
//!               Err(_) => { empty the store; Node::create(storage, settings, Birth::Newcomer) }
//!           };
//!           for each peer in the domain table: node.set_peer(now, replica, boot_epoch, up)
//! loop      for each message:      node.handle_message(now, &bytes, &mut store)
//!           for each ready request: a read, if node.may_reply(epoch): answer from the store
//!                                   else node.propose(now, connection, sequence, &bytes)
//!           orchestrator's word:   node.campaign(now, seen_term); node.publish(epoch);
//!                                  node.set_peer(…) when the domain table changes
//!           deadline has come:     node.handle_time(now)
//!           while let Some(applied) = node.work(now, &mut store) {
//!               keep applied.reply in the connection's area, if node.may_reply(epoch)
//!           }
//!           while let Some(event) = node.poll_event() { tell the orchestrator }
//!           while let Some(to) = node.poll_message(now, &mut buffer) {
//!               channel[to].send(&buffer); notify to's event channel once at the end
//!           }
//!           publish node.status(), store.digest(); wait, at most until node.poll_deadline()
//! ```
//!
//! After [`Event::Won`] and [`Node::publish`] the shell looks at every connection's area: requests
//! that wait there are proposed, also those that the former leader had proposed. The store
//! recognises what it has executed by connection and sequence.
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
mod transport;
mod types;
mod wire;

pub use id::{Ident, MAX_REPLICAS, Position};
pub use machine::{Chunk, Request, RestoreError, StateMachine};
pub use node::Node;
pub use record::{Kind, MAX_PAYLOAD, MAX_RECORD, RECORD_HEADER, Record, RecordError, record_len};
pub use storage::{Damage, MIN_STORAGE, OpenError};
pub use transport::{Channel, MIN_HALF};
pub use types::{
    Applied, Birth, CampaignError, CreateError, Elections, Event, ProposeError, Settings, Status,
};
pub use wire::{
    FLAG_GAP, FLAG_GRANTED, FLAG_LAST, FLAG_NEEDS_SNAPSHOT, MAX_BODY, MAX_MESSAGE, MESSAGE_HEADER,
    Message, MessageKind, Refusal,
};
