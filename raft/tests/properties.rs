//! Whatever is done to three replicas, what Raft promises holds.

mod cluster;

use std::collections::BTreeMap;

use cluster::Cluster;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Act {
    Campaign(u8),
    Propose(u8, u32),
    Deliver(usize),
    /// Delivers a message out of turn, and keeps it.
    Repeat(usize),
    Lose(usize),
    Crash(u8),
    Open(u8),
    Pass(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let replica = 1..=3_u8;
    prop_oneof![
        2 => replica.clone().prop_map(Act::Campaign),
        6 => (replica.clone(), 16..19_u32).prop_map(|(n, c)| Act::Propose(n, c)),
        10 => (1..30_usize).prop_map(Act::Deliver),
        2 => (0..20_usize).prop_map(Act::Repeat),
        2 => (0..20_usize).prop_map(Act::Lose),
        1 => replica.clone().prop_map(Act::Crash),
        2 => replica.prop_map(Act::Open),
        1 => (1..5_000_000_u64).prop_map(Act::Pass),
    ]
}

struct Judge {
    leaders: BTreeMap<u64, u8>,
    committed: BTreeMap<u64, u64>,
}

impl Judge {
    fn look(&mut self, cluster: &Cluster) {
        for (number, replica) in (1..).zip(&cluster.replicas) {
            let Some(node) = &replica.node else { continue };
            let status = node.status();
            if status.leading {
                let leader = *self.leaders.entry(status.term).or_insert(number);
                assert_eq!(leader, number, "two leaders of term {}", status.term);
            }
            for index in 1..=status.commit {
                if let Some((position, _)) = node.entry(index) {
                    let term = *self.committed.entry(index).or_insert(position.term);
                    assert_eq!(term, position.term, "{number} commits another entry at {index}");
                }
            }
        }
        for (one, other) in [(0, 1), (1, 2), (0, 2)] {
            let (one, other) = (&cluster.replicas[one].machine, &cluster.replicas[other].machine);
            let common = one.executed.len().min(other.executed.len());
            assert_eq!(one.executed[..common], other.executed[..common], "histories differ");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn replicas_agree(acts in prop::collection::vec(act(), 1..120)) {
        let mut cluster = Cluster::new();
        let mut judge = Judge { leaders: BTreeMap::new(), committed: BTreeMap::new() };
        let mut sequence = 0;
        for act in acts {
            let now = cluster.now;
            match act {
                Act::Campaign(number) => {
                    if let Some(node) = &mut cluster.replica(number).node {
                        let _ = node.campaign(now, 0);
                    }
                }
                Act::Propose(number, connection) => {
                    sequence += 1;
                    if let Some(node) = &mut cluster.replica(number).node {
                        let _ = node.propose(now, connection, sequence, b"request");
                    }
                }
                Act::Deliver(count) => {
                    for _ in 0..count {
                        cluster.step();
                    }
                }
                Act::Repeat(at) => {
                    if let Some(message) = cluster.queue.get(at).cloned() {
                        cluster.queue.push_front(message);
                    }
                }
                Act::Lose(at) => drop(cluster.queue.remove(at)),
                Act::Crash(number) => cluster.crash(number),
                Act::Open(number) => {
                    if cluster.replica(number).node.is_none() {
                        cluster.open(number).unwrap();
                    }
                }
                Act::Pass(nanoseconds) => cluster.pass(nanoseconds),
            }
            cluster.work();
            judge.look(&cluster);
        }
    }
}
