//! The store of a host: one of several replicas, or the only one.

use alloc::boxed::Box;

use fabric::{Epoch, SharedMemory};
use raft::Status;
use store::Server;

use crate::alone::Alone;
use crate::{Found, Host, Idle, Places, Relay, Replica, Round, Setup};

/// A store, alone or one of several.
#[derive(Debug)]
pub enum Member<M, A, L> {
    /// The only one.
    Alone(Box<Alone<M, A>>),
    /// One of several.
    Replica(Box<Replica<M, A, L>>),
}

impl<M, A, L> Member<M, A, L>
where
    M: SharedMemory + Clone,
    A: SharedMemory + Clone,
    L: SharedMemory + Clone,
{
    /// Reads a former life's state back, or begins a new one.
    pub fn start(setup: Setup, places: Places<M, A, L>, now_ns: u64) -> (Self, Found) {
        if setup.replicas == 1 {
            let (alone, found) = Alone::start(&setup, places);
            return (Self::Alone(Box::new(alone)), found);
        }
        let (replica, found) = Replica::start(setup, places, now_ns);
        (Self::Replica(Box::new(replica)), found)
    }

    /// Whether no change was interrupted: then a microreset may keep this memory.
    pub fn is_whole(&self) -> bool {
        match self {
            Self::Alone(alone) => alone.is_whole(),
            Self::Replica(replica) => replica.is_whole(),
        }
    }

    /// Goes on as life `epoch` in memory that a microreset kept.
    pub fn resume(&mut self, epoch: Epoch, now_ns: u64) {
        match self {
            Self::Alone(alone) => alone.resume(),
            Self::Replica(replica) => replica.resume(epoch, now_ns),
        }
    }

    /// The server.
    pub fn server(&self) -> &Server<M, A> {
        match self {
            Self::Alone(alone) => alone.server(),
            Self::Replica(replica) => replica.server(),
        }
    }

    /// The server, to be told of kicks and domains.
    pub fn server_mut(&mut self) -> &mut Server<M, A> {
        match self {
            Self::Alone(alone) => alone.server_mut(),
            Self::Replica(replica) => replica.server_mut(),
        }
    }

    /// As [`Replica::digest`]; one that is alone is compared with nobody.
    pub fn digest(&self) -> Option<(u64, u64)> {
        match self {
            Self::Alone(_) => None,
            Self::Replica(replica) => replica.digest(),
        }
    }

    /// As [`Replica::rank`].
    pub fn rank(&self) -> u64 {
        match self {
            Self::Alone(_) => 1,
            Self::Replica(replica) => replica.rank(),
        }
    }

    /// What consensus says of itself; there is none where it is alone.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Alone(_) => None,
            Self::Replica(replica) => Some(replica.status()),
        }
    }

    /// One round.
    pub fn round(&mut self, now_ns: u64, relay: Relay, host: &mut impl Host<M, A>) -> Round {
        match self {
            Self::Alone(alone) => alone.round(now_ns, relay, host),
            Self::Replica(replica) => replica.round(now_ns, relay, host),
        }
    }

    /// A bounded step of what nobody waits for, after a round that left nothing to do at once.
    pub fn idle(&mut self, now_ns: u64) -> Idle {
        match self {
            Self::Alone(alone) => alone.idle(now_ns),
            Self::Replica(replica) => replica.idle(now_ns),
        }
    }
}
