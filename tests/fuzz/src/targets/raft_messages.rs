//! Three replicas whose messages are lost, repeated, changed, or made up, with and without right
//! checksums.

use raft::{MAX_MESSAGE, MESSAGE_HEADER, Node, RECORD_HEADER};

use super::Target;
use crate::Bytes;
use crate::ledger::{Cluster, Ledger};

pub const TARGET: Target = Target { name: "raft_messages", run, seeds, words: &[b"PR\x01"] };

/// Where the checksums of a message lie (raft/FORMAT.md).
const HEADER_CRC: usize = 64;
const BODY_CRC: usize = 68;
const KIND_CHUNK: u8 = 8;

/// Messages that are kept to be sent again.
const KEPT: usize = 64;

fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let mut cluster = Cluster::new();
    let mut kept: Vec<(u8, Vec<u8>)> = Vec::new();
    let mut is_forged = false;
    while !bytes.is_empty() {
        match bytes.u8() % 10 {
            0 | 1 => act(&mut cluster, &mut bytes),
            2 => cluster.pass(u64::from(bytes.u16()) * 10_000),
            3 => cluster.settle(),
            4 | 5 => deliver(&mut cluster, &mut kept, &mut bytes),
            6 => drop(cluster.queue.pop_front()),
            7 => restart(&mut cluster, &mut bytes),
            8 if !kept.is_empty() => {
                // An old message again, as it was.
                let (to, message) = kept[bytes.below(kept.len())].clone();
                hand_over(&mut cluster, to, &message);
            }
            _ => is_forged |= forge(&mut cluster, &kept, &mut bytes),
        }
    }
    if !is_forged {
        // Without forgery the replicas agree, whatever was lost.
        let logs: Vec<&Ledger> = cluster.replicas.iter().map(|replica| &replica.machine).collect();
        for pair in logs.windows(2) {
            let common = pair[0].executed.len().min(pair[1].executed.len());
            assert_eq!(pair[0].executed[..common], pair[1].executed[..common]);
        }
    }
    for number in 1..=3 {
        let replica = cluster.replica(number);
        let before = replica.node.take().map(|node| node.status());
        replica.boot += 1;
        let settings = raft::Settings::fabric(number, replica.boot);
        let opened = Node::open(replica.memory.clone(), settings, replica.machine.applied);
        if let Some(before) = before.filter(|before| before.damage.is_none()) {
            let after = opened.expect("what was promised is stored").status();
            assert_eq!((after.term, after.vote), (before.term, before.vote));
        }
    }
}

fn act(cluster: &mut Cluster, bytes: &mut Bytes<'_>) {
    let (number, now) = (bytes.u8() % 3 + 1, cluster.now);
    let seen = cluster.replicas.iter().filter_map(|replica| replica.node.as_ref());
    let seen = seen.map(|node| node.status().term).max().unwrap_or(0);
    let Some(node) = cluster.replica(number).node.as_mut() else { return };
    // Refusals are answers like any other.
    match bytes.u8() % 4 {
        0 => drop(node.campaign(now, seen)),
        1 => drop(node.publish(u64::from(bytes.u8()))),
        2 => drop(node.propose(now, 1, u64::from(bytes.u8()), bytes.string(100))),
        _ => node.flush(now),
    }
    cluster.work();
}

fn restart(cluster: &mut Cluster, bytes: &mut Bytes<'_>) {
    let number = bytes.u8() % 3 + 1;
    cluster.crash(number);
    if bytes.u8().is_multiple_of(4) || cluster.open(number).is_err() {
        cluster.rebuild(number);
    }
}

/// Takes any message that is on its way.
fn deliver(cluster: &mut Cluster, kept: &mut Vec<(u8, Vec<u8>)>, bytes: &mut Bytes<'_>) {
    if cluster.queue.is_empty() {
        return cluster.work();
    }
    let at = bytes.below(cluster.queue.len());
    let Some((_, to, message)) = cluster.queue.remove(at) else { return };
    hand_over(cluster, to, &message);
    if kept.len() < KEPT {
        kept.push((to, message));
    }
}

fn hand_over(cluster: &mut Cluster, to: u8, message: &[u8]) {
    let now = cluster.now;
    let replica = cluster.replica(to);
    if let Some(node) = replica.node.as_mut() {
        let term = node.status().term;
        // A refusal is an answer like any other.
        let _ = node.handle_message(now, message, &mut replica.machine);
        assert!(node.status().term >= term, "the term goes back");
    }
    cluster.work();
}

/// Changes a kept message, perhaps seals it, and hands it over. Answers whether it was sealed.
fn forge(cluster: &mut Cluster, kept: &[(u8, Vec<u8>)], bytes: &mut Bytes<'_>) -> bool {
    let is_sealed = !bytes.u8().is_multiple_of(4);
    let (to, mut message) = match kept.len() {
        0 => (bytes.u8() % 3 + 1, bytes.string(200).to_vec()),
        count => kept[bytes.below(count)].clone(),
    };
    for _ in 0..=bytes.below(3) {
        let at = bytes.below(message.len().max(1));
        let value = bytes.u8();
        if let Some(byte) = message.get_mut(at) {
            *byte = value;
        }
    }
    if bytes.u8().is_multiple_of(8) {
        message.extend_from_slice(bytes.string(100));
    }
    message.truncate(MAX_MESSAGE);
    if is_sealed {
        seal(&mut message);
    }
    hand_over(cluster, to, &message);
    is_sealed
}

fn seal(message: &mut [u8]) {
    if message.len() < MESSAGE_HEADER {
        return;
    }
    let (head, body) = message.split_at_mut(MESSAGE_HEADER);
    let length = (MESSAGE_HEADER + body.len()) as u16;
    head[4..6].copy_from_slice(&length.to_le_bytes());
    let mut rest = &mut *body;
    while let Some(header) = rest.first_chunk::<RECORD_HEADER>() {
        let payload = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let total = raft::record_len(payload);
        if total > rest.len() {
            break;
        }
        let (record, behind) = rest.split_at_mut(total);
        let crc = crc32fast::hash(&record[4..]);
        if head[3] != KIND_CHUNK {
            record[..4].copy_from_slice(&crc.to_le_bytes());
        }
        rest = behind;
    }
    let crc = if head[3] == KIND_CHUNK { crc32fast::hash(body) } else { 0 };
    head[BODY_CRC..BODY_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32fast::hash(&head[..HEADER_CRC]);
    head[HEADER_CRC..HEADER_CRC + 4].copy_from_slice(&crc.to_le_bytes());
}

fn seeds() -> Vec<Vec<u8>> {
    // Replica 1 campaigns, wins, is published, takes requests; then one thing or another.
    let lead = [0, 0, 0, 3, 0, 0, 1, 9];
    let propose = [0, 0, 2, 1, 3, b'a', b'b', b'c', 4, 0, 4, 0, 4, 0, 4, 0, 3];
    let rebuild = [7, 1, 0, 3, 2, 0xff, 0xff, 4, 0, 4, 0, 4, 0, 2, 0xff, 0xff, 3];
    let fail_over = [7, 0, 1, 0, 1, 0, 3, 0, 1, 1, 8, 3];
    let forge = [9, 1, 0, 0, 40, 2, 1, 9, 1, 2, 1, 72, 1, 73, 9, 1];
    let with = |rest: &[&[u8]]| [&lead[..], &rest.concat()].concat();
    vec![
        with(&[&propose, &propose]),
        with(&[&propose, &rebuild]),
        with(&[&propose, &fail_over, &propose]),
        with(&[&propose, &forge, &propose]),
        with(&[&[4, 0, 4, 0, 8, 1, 8, 0], &propose, &rebuild, &forge]),
    ]
}
