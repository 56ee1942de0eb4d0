//! Messages to and from the other replicas.

use alloc::vec::Vec;

use fabric::view::{Party, RegionKind};
use fabric::{Part, SharedMemory};
use raft::Channel;
use runtime::FabricMemory;
use service::view::View;

use crate::Fabric;

/// Half a channel: one of those that a replica's mail is divided into.
type Half = Part<Fabric>;

/// The channels to the other replicas.
#[derive(Debug)]
pub struct Mail {
    channels: Vec<(u8, Channel<Half, Half>)>,
}

impl Mail {
    /// The channels of the replica whose view this is.
    pub fn new(view: &View<FabricMemory>) -> Self {
        let units: Vec<usize> = system::SYSTEM.all_with_role(system::Role::XenStore).collect();
        let ours = view.unit();
        let others = units.iter().zip(1..).filter(|(unit, _)| **unit != ours);
        let channel = |(unit, number): (&usize, u8)| {
            let own = half(view, &units, ours, *unit);
            (number, Channel::new(own, half(view, &units, *unit, ours)))
        };
        Self { channels: others.map(channel).collect() }
    }

    /// Puts the next message into `into`; false: there is none.
    pub fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        self.channels.iter_mut().any(|(_, channel)| channel.receive(into))
    }

    /// Sends a message to a replica; false: there is no room, or no such replica.
    pub fn send(&mut self, to: u8, message: &[u8]) -> bool {
        let channel = self.channels.iter_mut().find(|(number, _)| *number == to);
        channel.is_some_and(|(_, channel)| channel.send(message))
    }
}

/// The half that `writer` writes for `reader`: the mail has one for each other replica, in order.
fn half(view: &View<FabricMemory>, units: &[usize], writer: usize, reader: usize) -> Half {
    let mail = view.of(RegionKind::RaftMail, Party::unit(writer));
    let len = mail.len() / (units.len() - 1);
    let place = units.iter().filter(|unit| **unit != writer).position(|unit| *unit == reader);
    Part::new(mail, place.unwrap_or(0) * len, len)
}
