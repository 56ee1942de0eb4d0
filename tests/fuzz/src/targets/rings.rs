//! Kick rings and message rings whose other side is honest or not.

use std::collections::{BTreeSet, VecDeque};

use fabric::kick::{Kick, KickReader, KickWriter, Pushed};
use fabric::message::{MESSAGE_MAX, MessageId, MessageReader, MessageWriter};
use fabric::{HeapMemory, SharedMemory};

use super::Target;
use crate::Bytes;

pub const TARGET: Target = Target { name: "rings", run, seeds, words: &[] };

/// Connections that are kicked.
const IDS: usize = 8;

/// Bytes of a half of the kick rings, and of the message rings: room for few, so that they fill.
const KICK_HALF: usize = 256;
const MESSAGE_HALF: usize = 6000;

/// The first byte chooses the ring (bit 0), and whether one side's memory is damaged (bit 1).
fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let choice = bytes.u8();
    let is_honest = choice & 2 == 0;
    if choice & 1 == 0 { kicks(is_honest, &mut bytes) } else { messages(is_honest, &mut bytes) }
}

fn kicks(is_honest: bool, bytes: &mut Bytes<'_>) {
    let (ours, theirs) = (HeapMemory::new(KICK_HALF), HeapMemory::new(KICK_HALF));
    let mut writer: KickWriter<_, _, IDS> = KickWriter::new(ours.clone(), theirs.clone());
    let mut reader = KickReader::new(theirs.clone(), ours.clone(), IDS as u16);
    let mut waiting = BTreeSet::new();
    while !bytes.is_empty() {
        match bytes.u8() % 6 {
            0 | 1 => {
                let id = bytes.below(IDS) as u16;
                let was_empty = waiting.is_empty();
                let pushed = writer.push(id);
                let is_new = waiting.insert(id);
                if is_honest {
                    assert_eq!(pushed == Pushed::Pending, !is_new);
                    assert_eq!(pushed == Pushed::Ring, was_empty);
                }
            }
            2 | 3 => match reader.pop() {
                Some(Kick::Id(id)) => assert!(waiting.remove(&id) || !is_honest),
                Some(Kick::ScanAll) => {
                    assert!(!is_honest);
                    waiting.clear();
                }
                None => assert!(waiting.is_empty() || !is_honest, "a kick is lost"),
            },
            4 => {
                // The reader's next life looks at every connection.
                reader = KickReader::new(theirs.clone(), ours.clone(), IDS as u16);
                writer.restart();
                waiting.clear();
            }
            _ if is_honest => {}
            _ => {
                let half = if bytes.u8().is_multiple_of(2) { &ours } else { &theirs };
                bytes.damage(half);
            }
        }
        assert!(reader.ready() <= fabric::kick::capacity(KICK_HALF));
        assert!(!is_honest || writer.wild() + reader.wild() == 0);
    }
}

fn messages(is_honest: bool, bytes: &mut Bytes<'_>) {
    let (ours, theirs) = (HeapMemory::new(MESSAGE_HALF), HeapMemory::new(MESSAGE_HALF));
    // Positions run freely, and never reach the end of 64 bits.
    let start = u64::from(bytes.u32()) << 24 & !7;
    ours.store_u64(64, start);
    theirs.store_u64(0, start);
    let mut writer = MessageWriter::new(ours.clone(), theirs.clone());
    let mut reader = MessageReader::new(theirs.clone(), ours.clone());
    let mut waiting: VecDeque<(MessageId, Vec<u8>)> = VecDeque::new();
    let mut into = [0; MESSAGE_MAX];
    let mut sequence = 0;
    while !bytes.is_empty() {
        match bytes.u8() % 6 {
            0 | 1 => {
                sequence += 1;
                let id = MessageId { epoch: 3, sequence };
                let mut payload = bytes.string(100).to_vec();
                payload.resize(payload.len() * bytes.below(64), 0x5a);
                let is_long = payload.len() > MESSAGE_MAX;
                let sent = writer.send(id, &payload);
                assert!(sent.is_err() || !is_long);
                if sent.is_ok() {
                    waiting.push_back((id, payload));
                }
            }
            2 | 3 => {
                let read = reader.peek(&mut into);
                if is_honest {
                    let read = read
                        .expect("nothing is damaged")
                        .map(|message| (message.id, into[..message.length].to_vec()));
                    assert_eq!(read.as_ref(), waiting.front());
                }
                if !bytes.u8().is_multiple_of(4) {
                    reader.consume();
                    waiting.pop_front();
                }
            }
            4 => reader = MessageReader::new(theirs.clone(), ours.clone()),
            _ if is_honest => {}
            _ => {
                let half = if bytes.u8().is_multiple_of(2) { &ours } else { &theirs };
                bytes.damage(half);
            }
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let kicks = [0, 3, 0, 5, 0, 3, 2, 0, 1, 2, 2, 2, 4, 0, 7, 2];
    let messages = [1, 2, 3, 4, 0, 5, 1, 2, 3, 4, 5, 3, 2, 1, 0, 1, 9, 63, 2, 1, 2, 1];
    let with = |choice: u8, rest: &[u8]| [&[choice][..], rest].concat();
    vec![with(0, &kicks), with(2, &kicks), with(1, &messages), with(3, &messages)]
}
