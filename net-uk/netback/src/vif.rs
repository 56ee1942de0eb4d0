//! What a frontend and we agreed on, and its record in memory that outlives the domain.

use abi::{DomId, GrantRef, Port};
use fabric::record::{Kind, Record, RecordError, size_once};
use fabric::{Epoch, Part, SharedMemory};
use frame::{Checksum, GsoKind, Mac, Offload};

/// Queues of one vif: more than the two processors of the hosts this runs on would not help.
pub const QUEUES_MAX: usize = 4;

const KIND: Kind = Kind { magic: *b"PVnv", version: 1 };
const FIXED: usize = 16;
const QUEUE: usize = 16;
const PAYLOAD: usize = FIXED + QUEUE * QUEUES_MAX;

/// Bytes of a vif's record.
pub const RECORD_BYTES: usize = 2 * size_once(PAYLOAD);

/// One queue as the frontend described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRefs {
    /// Grant of the transmit ring's page.
    pub tx_ring: GrantRef,
    /// Grant of the receive ring's page.
    pub rx_ring: GrantRef,
    /// The guest's port for the transmit ring.
    pub tx_port: Port,
    /// The guest's port for the receive ring; the same one without split event channels.
    pub rx_port: Port,
}

/// What a frontend can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Frames in several buffers.
    pub has_sg: bool,
    /// Large TCP frames over IPv4.
    pub has_gso_v4: bool,
    /// Large TCP frames over IPv6.
    pub has_gso_v6: bool,
    /// Blank checksums over IPv4.
    pub has_checksum_v4: bool,
    /// Blank checksums over IPv6.
    pub has_checksum_v6: bool,
}

impl Abilities {
    /// Whether the frontend takes a large frame of this kind whole.
    pub fn takes_gso(&self, kind: GsoKind) -> bool {
        self.has_sg
            && match kind {
                GsoKind::TcpV4 => self.has_gso_v4,
                GsoKind::TcpV6 => self.has_gso_v6,
            }
    }

    /// Whether a frame can be delivered with this much left to do.
    pub fn takes(&self, offload: &Offload, is_v6: bool) -> bool {
        let takes_blank = if is_v6 { self.has_checksum_v6 } else { self.has_checksum_v4 };
        offload.gso.is_none_or(|gso| self.takes_gso(gso.kind))
            && (offload.checksum != Checksum::Blank || takes_blank)
    }

    fn bits(self) -> u8 {
        let all = [
            self.has_sg,
            self.has_gso_v4,
            self.has_gso_v6,
            self.has_checksum_v4,
            self.has_checksum_v6,
        ];
        (0..).zip(all).map(|(bit, is_set)| u8::from(is_set) << bit).sum()
    }

    fn from_bits(bits: u8) -> Self {
        let bit = |number: u8| bits >> number & 1 != 0;
        Self {
            has_sg: bit(0),
            has_gso_v4: bit(1),
            has_gso_v6: bit(2),
            has_checksum_v4: bit(3),
            has_checksum_v6: bit(4),
        }
    }
}

/// A connected vif: all that is needed to go on with it without asking XenStore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The guest.
    pub guest: DomId,
    /// The vif's number within the guest.
    pub handle: u16,
    /// The guest's address.
    pub address: Mac,
    /// What its frontend takes.
    pub abilities: Abilities,
    /// Its queues, at least one.
    pub queues: heapless::Vec<QueueRefs, QUEUES_MAX>,
}

/// Writes the record of a connected vif, or (`None`) that there is none. `memory` has at least
/// [`RECORD_BYTES`].
pub fn write<S: SharedMemory>(memory: &S, epoch: Epoch, connection: Option<&Connection>) {
    let mut bytes = [0; PAYLOAD];
    if let Some(connection) = connection {
        bytes[0] = 1;
        bytes[1] = connection.queues.len() as u8;
        bytes[2..4].copy_from_slice(&connection.guest.0.to_le_bytes());
        bytes[4..6].copy_from_slice(&connection.handle.to_le_bytes());
        bytes[6..12].copy_from_slice(&connection.address.0);
        bytes[12] = connection.abilities.bits();
        for (queue, place) in connection.queues.iter().zip(bytes[FIXED..].chunks_exact_mut(QUEUE)) {
            let words = [queue.tx_ring.0, queue.rx_ring.0, queue.tx_port.0, queue.rx_port.0];
            for (word, place) in words.iter().zip(place.chunks_exact_mut(4)) {
                place.copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    let part = Part::new(memory, 0, RECORD_BYTES);
    Record::new(part, KIND, PAYLOAD).write(epoch, &bytes, &mut [0; PAYLOAD]);
}

/// The connection that a former life recorded; `Ok(None)`: it recorded that there is none.
pub fn read<S: SharedMemory>(memory: &S) -> Result<Option<Connection>, RecordError> {
    let mut bytes = [0; PAYLOAD];
    let part = Part::new(memory, 0, RECORD_BYTES);
    Record::new(part, KIND, PAYLOAD).read(&mut bytes)?;
    if bytes[0] != 1 {
        return Ok(None);
    }
    let count = usize::from(bytes[1]).min(QUEUES_MAX);
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let double =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let queue = |number: usize| {
        let at = FIXED + QUEUE * number;
        QueueRefs {
            tx_ring: GrantRef(double(at)),
            rx_ring: GrantRef(double(at + 4)),
            tx_port: Port(double(at + 8)),
            rx_port: Port(double(at + 12)),
        }
    };
    Ok(Some(Connection {
        guest: DomId(word(2)),
        handle: word(4),
        address: Mac([bytes[6], bytes[7], bytes[8], bytes[9], bytes[10], bytes[11]]),
        abilities: Abilities::from_bits(bytes[12]),
        queues: (0..count).map(queue).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{bytes_of, compare};
    use fabric::{HeapMemory, TornMemory};

    fn connection(queues: u32) -> Connection {
        let queue = |number: u32| QueueRefs {
            tx_ring: GrantRef(8 + number),
            rx_ring: GrantRef(80 + number),
            tx_port: Port(5 + number),
            rx_port: Port(50 + number),
        };
        Connection {
            guest: DomId(17),
            handle: 1,
            address: Mac([0, 0x16, 0x3e, 1, 2, 3]),
            abilities: Abilities { has_sg: true, has_checksum_v6: true, ..Abilities::default() },
            queues: (0..queues).map(queue).collect(),
        }
    }

    #[test]
    fn the_golden_vector_is_what_is_written() {
        let memory = HeapMemory::new(RECORD_BYTES);
        write(&memory, 3, Some(&connection(2)));
        compare("vif", &bytes_of(&memory));
    }

    #[test]
    fn the_record_survives_any_store() {
        let memory = HeapMemory::new(RECORD_BYTES);
        assert_eq!(read(&memory), Err(RecordError::Empty));
        write(&memory, 1, None);
        assert_eq!(read(&memory), Ok(None));
        write(&memory, 1, Some(&connection(4)));
        assert_eq!(read(&memory), Ok(Some(connection(4))));
        for stores in 0..400 {
            let torn = TornMemory::new(memory.clone(), stores);
            write(&torn, 2, Some(&connection(2)));
            let found = read(&memory).unwrap().unwrap();
            assert!(found == connection(4) || found == connection(2), "after {stores} stores");
            write(&memory, 3, Some(&connection(4)));
        }
    }

    #[test]
    fn abilities() {
        let none = Abilities::default();
        let blank = Offload { checksum: Checksum::Blank, gso: None };
        assert!(none.takes(&Offload::default(), false) && !none.takes(&blank, false));
        let v4 = Abilities { has_checksum_v4: true, has_gso_v4: true, ..none };
        assert!(v4.takes(&blank, false) && !v4.takes(&blank, true));
        assert!(!v4.takes_gso(GsoKind::TcpV4), "large frames need several buffers");
        assert!(Abilities { has_sg: true, ..v4 }.takes_gso(GsoKind::TcpV4));
    }
}
