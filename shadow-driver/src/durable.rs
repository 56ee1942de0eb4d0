//! The records that outlive the domain.
//!
//! | offset | holds |
//! |---|---|
//! | 0 | the configuration: a `fabric::record::Record` of kind `PVsc` |
//! | [`CONFIG_BYTES`] | slots of [`FRAME_BYTES`], one per frame: single records of kind `PVsf` |
//!
//! The first word of a free slot is 0. Payload of a configuration: has an address (1), address (6),
//! promiscuous (1), MTU (2), number of groups (1), groups (6 each). Payload of a frame: sequence
//! (8), token (8), number of segments (1), kind of offload (1; bit 0: has one, 1: IPv6, 2: TCP, 3:
//! cut), network, start, field, cut size, cut headers (2 each), segments (offset 4, length 4).
//! All little endian.

use drivers::{Config, Cut, GROUPS_MAX, SEGMENTS_MAX, Segment, Segments, TxOffload};
use fabric::record::{Kind, Record, read_once, size_once, write_once};
use fabric::{Epoch, Part, SharedMemory};
use frame::Mac;

use crate::transmit::Token;

const CONFIG: Kind = Kind { magic: *b"PVsc", version: 1 };
const FRAME: Kind = Kind { magic: *b"PVsf", version: 1 };
const CONFIG_MAX: usize = 11 + 6 * GROUPS_MAX;
const FRAME_FIXED: usize = 28;
const FRAME_MAX: usize = FRAME_FIXED + 8 * SEGMENTS_MAX;

/// Bytes of the configuration's record.
pub const CONFIG_BYTES: usize = 2 * size_once(CONFIG_MAX);
/// Bytes of one frame's slot.
pub const FRAME_BYTES: usize = size_once(FRAME_MAX);

/// Bytes of memory for a shadow that holds up to `frames` frames.
pub const fn bytes_needed(frames: usize) -> usize {
    CONFIG_BYTES + frames * FRAME_BYTES
}

/// A frame as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FrameRecord {
    pub sequence: u64,
    pub token: Token,
    pub segments: Segments,
    pub offload: Option<TxOffload>,
}

fn place(slot: usize) -> usize {
    CONFIG_BYTES + slot * FRAME_BYTES
}

fn config_record<S: SharedMemory>(state: &S) -> Record<Part<&S>> {
    Record::new(Part::new(state, 0, CONFIG_BYTES), CONFIG, CONFIG_MAX)
}

pub(crate) fn write_config<S: SharedMemory>(state: &S, epoch: Epoch, config: &Config) {
    let mut bytes = [0; CONFIG_MAX];
    if let Some(mac) = config.address {
        bytes[0] = 1;
        bytes[1..7].copy_from_slice(&mac.0);
    }
    bytes[7] = config.is_promiscuous.into();
    bytes[8..10].copy_from_slice(&config.mtu.to_le_bytes());
    bytes[10] = config.groups.len() as u8;
    for (group, place) in config.groups.iter().zip(bytes[11..].chunks_exact_mut(6)) {
        place.copy_from_slice(&group.0);
    }
    config_record(state).write(epoch, &bytes, &mut [0; CONFIG_MAX]);
}

pub(crate) fn read_config<S: SharedMemory>(state: &S) -> Option<Config> {
    let mut bytes = [0; CONFIG_MAX];
    config_record(state).read(&mut bytes).ok()?;
    let mac = |at: usize| bytes.get(at..)?.first_chunk().copied().map(Mac);
    let count = usize::from(bytes[10]).min(GROUPS_MAX);
    Some(Config {
        address: if bytes[0] == 1 { mac(1) } else { None },
        is_promiscuous: bytes[7] == 1,
        mtu: u16::from_le_bytes([bytes[8], bytes[9]]),
        groups: (0..count).filter_map(|number| mac(11 + 6 * number)).collect(),
    })
}

pub(crate) fn write_frame<S: SharedMemory>(
    state: &S,
    slot: usize,
    epoch: Epoch,
    frame: &FrameRecord,
) {
    let mut bytes = [0; FRAME_MAX];
    bytes[..8].copy_from_slice(&frame.sequence.to_le_bytes());
    bytes[8..16].copy_from_slice(&frame.token.0.to_le_bytes());
    bytes[16] = frame.segments.len() as u8;
    if let Some(offload) = &frame.offload {
        let bits = [true, offload.is_v6, offload.is_tcp, offload.cut.is_some()];
        bytes[17] = (0..).zip(bits).map(|(bit, is_set)| u8::from(is_set) << bit).sum();
        let cut = offload.cut.unwrap_or(Cut { size: 0, headers: 0 });
        let words = [offload.network, offload.start, offload.field, cut.size, cut.headers];
        for (word, place) in words.iter().zip(bytes[18..28].chunks_exact_mut(2)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
    for (segment, place) in frame.segments.iter().zip(bytes[FRAME_FIXED..].chunks_exact_mut(8)) {
        place[..4].copy_from_slice(&segment.offset.to_le_bytes());
        place[4..].copy_from_slice(&segment.length.to_le_bytes());
    }
    let length = FRAME_FIXED + 8 * frame.segments.len();
    write_once(state, place(slot), FRAME, epoch, &bytes[..length]);
}

pub(crate) fn clear_frame<S: SharedMemory>(state: &S, slot: usize) {
    state.store_u32(place(slot), 0);
}

pub(crate) fn read_frame<S: SharedMemory>(state: &S, slot: usize) -> Option<FrameRecord> {
    let mut bytes = [0; FRAME_MAX];
    let found = read_once(state, place(slot), FRAME, &mut bytes).ok()?;
    let double = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
    let word = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes);
    let count = usize::from(bytes[16]);
    if count == 0 || found.length != FRAME_FIXED + 8 * count {
        return None;
    }
    let mut segments = Segments::new();
    for number in 0..count {
        let raw = double(FRAME_FIXED + 8 * number)?;
        let segment = Segment { offset: raw as u32, length: (raw >> 32) as u32 };
        segments.push(segment).ok()?;
    }
    let kind = bytes[17];
    let cut = Cut { size: word(24)?, headers: word(26)? };
    let offload = TxOffload {
        network: word(18)?,
        is_v6: kind & 2 != 0,
        start: word(20)?,
        field: word(22)?,
        is_tcp: kind & 4 != 0,
        cut: (kind & 8 != 0).then_some(cut),
    };
    Some(FrameRecord {
        sequence: double(0)?,
        token: Token(double(8)?),
        segments,
        offload: (kind & 1 != 0).then_some(offload),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{bytes_of, compare};
    use fabric::{HeapMemory, TornMemory};

    fn frame(token: u64) -> FrameRecord {
        let segments = [Segment { offset: 4096, length: 60 }, Segment { offset: 9000, length: 7 }];
        let offload = TxOffload {
            network: 14,
            is_v6: true,
            start: 54,
            field: 70,
            is_tcp: true,
            cut: Some(Cut { size: 1448, headers: 74 }),
        };
        let segments = segments.into_iter().collect();
        FrameRecord { sequence: 9, token: Token(token), segments, offload: Some(offload) }
    }

    fn config() -> Config {
        Config {
            address: Some(Mac([2, 1, 2, 3, 4, 5])),
            mtu: 9000,
            is_promiscuous: false,
            groups: [Mac([1; 6]), Mac([3; 6])].into_iter().collect(),
        }
    }

    #[test]
    fn records_come_back() {
        let memory = HeapMemory::new(bytes_needed(2));
        assert_eq!(read_config(&memory), None);
        write_config(&memory, 3, &config());
        assert_eq!(read_config(&memory), Some(config()));
        assert_eq!(read_frame(&memory, 1), None);
        write_frame(&memory, 1, 3, &frame(77));
        assert_eq!(read_frame(&memory, 1), Some(frame(77)));
        let plain = FrameRecord { offload: None, ..frame(78) };
        write_frame(&memory, 0, 3, &plain);
        assert_eq!(read_frame(&memory, 0), Some(plain));
        clear_frame(&memory, 1);
        assert_eq!(read_frame(&memory, 1), None);
    }

    #[test]
    fn the_golden_vectors_are_what_is_written() {
        let memory = HeapMemory::new(bytes_needed(1));
        write_config(&memory, 3, &config());
        write_frame(&memory, 0, 3, &frame(77));
        let bytes = bytes_of(&memory);
        compare("shadow-configuration", &bytes[..CONFIG_BYTES]);
        compare("shadow-frame", &bytes[CONFIG_BYTES..]);
    }

    #[test]
    fn a_torn_frame_is_no_frame() {
        for stores in 0.. {
            let memory = HeapMemory::new(bytes_needed(1));
            write_frame(&memory, 0, 1, &frame(1));
            clear_frame(&memory, 0);
            let torn = TornMemory::new(memory.clone(), stores);
            write_frame(&torn, 0, 2, &frame(2));
            let found = read_frame(&memory, 0);
            assert!(found.is_none() || found == Some(frame(2)));
            if torn.stores() < stores {
                assert!(found.is_some());
                break;
            }
        }
    }
}
