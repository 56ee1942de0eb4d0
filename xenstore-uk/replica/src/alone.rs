//! A store without others: what it executes needs nobody's consent.

use fabric::SharedMemory;
use store::Server;

use crate::round::{self, Host, Idle, Relay, Round};
use crate::{Found, Places, Setup};

/// The only store of a host.
#[derive(Debug)]
pub struct Alone<M, A> {
    server: Server<M, A>,
    /// Whether this life has begun to serve.
    serves: bool,
}

impl<M: SharedMemory + Clone, A: SharedMemory> Alone<M, A> {
    /// Reads a former life's state back, or begins a new one. There is nobody else who could have
    /// a better one: of what a former life kept, all is taken.
    pub fn start<L>(setup: &Setup, places: Places<M, A, L>) -> (Self, Found) {
        let Places { slots, index, areas, .. } = places;
        let services = &setup.services;
        let (server, store) = Server::start_alone(&setup.config, slots, areas, index, services);
        (Self { server, serves: false }, Found { store, is_newcomer: false })
    }

    /// Whether no change was interrupted: then a microreset may keep this memory.
    pub fn is_whole(&self) -> bool {
        self.server.is_consistent()
    }

    /// Goes on in memory that a microreset kept.
    pub fn resume(&mut self) {
        self.server.resume();
        self.serves = false;
    }

    /// The server.
    pub fn server(&self) -> &Server<M, A> {
        &self.server
    }

    /// The server, to be told of kicks and domains.
    pub fn server_mut(&mut self) -> &mut Server<M, A> {
        &mut self.server
    }

    /// One round. It serves from the one on in which the relay names it first.
    pub fn round(&mut self, now_ns: u64, relay: Relay, host: &mut impl Host<M, A>) -> Round {
        let mut round = Round::default();
        if !relay.is_ours {
            return round;
        }
        if !core::mem::replace(&mut self.serves, true) {
            host.take_over(&mut self.server);
        }
        round::serve(&mut self.server, now_ns, host, &mut round, &mut false);
        round::act(&mut self.server, host);
        round
    }

    /// A bounded step of what nobody waits for.
    pub fn idle(&mut self, now_ns: u64) -> Idle {
        let fault = self.server.idle_step(now_ns);
        Idle { fault, wake_at_ns: self.server.next_deadline(now_ns) }
    }
}
