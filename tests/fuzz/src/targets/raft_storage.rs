//! A replica's storage after damage: it opens as it was, or says that it is lost.

use std::sync::OnceLock;

use fabric::{HeapMemory, SharedMemory};
use raft::{Birth, Chunk, MIN_STORAGE, Node, Request, RestoreError, Settings, StateMachine};

use super::Target;
use crate::Bytes;

pub const TARGET: Target = Target { name: "raft_storage", run, seeds, words: &[b"PvRh", b"PvRb"] };

/// Where both copies of the header and of the base lie, and where the header's checksum does
/// (raft/FORMAT.md).
const HEADERS: [usize; 2] = [0, 128];
const HEADER_CRC: usize = 64;

/// A machine that counts.
#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    type Reply = ();

    fn apply(&mut self, index: u64, _: Request<'_>) {
        self.0 = index;
    }
    fn advance(&mut self, index: u64) {
        self.0 = index;
    }
    fn applied(&self) -> u64 {
        self.0
    }
    fn digest(&self) -> u64 {
        self.0
    }
    fn snapshot_open(&mut self, _: usize) {}
    fn snapshot_chunk(&mut self, _: usize, _: &mut [u8]) -> Chunk {
        Chunk { len: 0, last: true }
    }
    fn snapshot_close(&mut self, _: usize) {}
    fn restore_open(&mut self) {}
    fn restore_chunk(&mut self, _: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
    fn restore_close(&mut self, index: u64, _: u64) -> Result<(), RestoreError> {
        self.0 = index;
        Ok(())
    }
}

fn alone(boot_epoch: u32) -> Settings {
    Settings { replicas: 1, ..Settings::fabric(1, boot_epoch) }
}

/// The storage of a replica that led and took ten requests.
fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let memory = HeapMemory::new(MIN_STORAGE);
        let mut node = Node::create(memory.clone(), alone(1), Birth::Founder).expect("it fits");
        let mut machine = Counter::default();
        node.campaign(0, 0).expect("the only voter");
        while node.work(0, &mut machine).is_some() {}
        assert!(node.publish(1));
        for sequence in 1..=10u64 {
            node.propose(0, 3, sequence, &vec![7; 30 * sequence as usize]).expect("it leads");
            node.flush(0);
        }
        while node.work(0, &mut machine).is_some() {}
        assert_eq!(node.status().last.index, 11);
        let mut image = vec![0; MIN_STORAGE];
        memory.read(0, &mut image);
        image
    })
}

/// The first byte says whether the headers are sealed with right checksums after the damage: what
/// only a writer with a bug would leave.
fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let (is_sealed, applied) = (bytes.u8() % 2 == 1, u64::from(bytes.u8() % 16));
    let memory = HeapMemory::new(MIN_STORAGE);
    memory.write(0, image());
    let is_whole = bytes.is_empty();
    while !bytes.is_empty() {
        bytes.damage(&memory);
    }
    if is_sealed {
        HEADERS.iter().for_each(|at| seal(&memory, *at));
    }
    let opened = Node::open(memory.clone(), alone(2), applied);
    let mut node = match opened {
        Ok(node) => node,
        Err(why) => {
            assert!(!is_whole || applied > 11, "whole storage is refused: {why:?}");
            let reborn = Node::create(memory, alone(2), Birth::Newcomer);
            return assert!(reborn.is_ok(), "a lost replica comes back as a newcomer");
        }
    };
    let status = node.status();
    if !is_sealed {
        assert_eq!((status.last.index, status.term), (11, 1), "opened, but not as it was");
    }
    let mut machine = Counter(applied);
    // Damage of what is read later is found then.
    let _ = node.campaign(0, status.term);
    for _ in 0..64 {
        if node.work(0, &mut machine).is_none() {
            break;
        }
    }
    drop(node);
    assert!(Node::open(memory, alone(3), machine.0).is_ok() || !is_whole);
}

fn seal(memory: &HeapMemory, at: usize) {
    let mut header = [0; HEADER_CRC];
    memory.read(at, &mut header);
    memory.store_u32(at + HEADER_CRC, crc32fast::hash(&header));
}

fn seeds() -> Vec<Vec<u8>> {
    // Flips in a header, a base, a record; a sealed change of a header's last index.
    let flip = |at: u16| [&[0, 11][..], &at.to_le_bytes(), &[1]].concat();
    let sealed = |at: u16| [&[1, 3][..], &at.to_le_bytes(), &[4, 9]].concat();
    let mut seeds = vec![vec![], vec![0, 11], vec![1, 3]];
    seeds.extend([20, 148, 300, 600, 1100].map(flip));
    seeds.extend([8, 16, 32, 40, 48, 52].map(sealed));
    seeds
}
