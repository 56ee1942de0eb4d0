//! What a cluster promises, on a network that does what it is told.

mod cluster;

use cluster::{Cluster, Ledger};
use fabric::SharedMemory;
use raft::{CampaignError, Damage, Event, OpenError, ProposeError, Refusal};

const SECOND: u64 = 1_000_000_000;

fn elected() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.settle();
    cluster.lead(1, 1);
    cluster.pass(SECOND);
    cluster
}

fn assert_same(cluster: &Cluster) {
    let ledgers: Vec<(&Vec<_>, u64)> =
        cluster.replicas.iter().map(|r| (&r.machine.executed, r.machine.applied)).collect();
    assert_eq!(ledgers[0], ledgers[1]);
    assert_eq!(ledgers[0], ledgers[2]);
}

#[test]
fn a_quiet_cluster_is_silent() {
    let mut cluster = elected();
    cluster.trace.clear();
    cluster.propose(1, 16, 1, b"write");
    cluster.pass(SECOND);
    assert_same(&cluster);
    assert_eq!(cluster.replicas[2].machine.executed, [(16, 1, b"write".to_vec())]);
    let nodes = cluster.replicas.iter().map(|replica| replica.node.as_ref().unwrap());
    assert!(nodes.clone().all(|node| node.poll_deadline().is_none()), "no timer is armed");
    cluster.trace.clear();
    cluster.pass(100 * SECOND);
    assert!(cluster.trace.is_empty(), "sent in a quiet cluster: {:#?}", cluster.trace);
}

#[test]
fn proposals_between_two_polls_go_in_one_round() {
    let mut cluster = elected();
    cluster.trace.clear();
    for sequence in 1..=40 {
        cluster.propose(1, 16, sequence, b"0123456789");
    }
    cluster.settle();
    let appends = cluster.trace.iter().filter(|line| line.contains("x40")).count();
    assert_eq!(appends, 2, "{:#?}", cluster.trace);
    assert_eq!(cluster.replicas[0].machine.executed.len(), 40);
}

#[test]
fn nothing_is_served_before_the_fence_or_under_another_epoch() {
    let mut cluster = Cluster::new();
    cluster.settle();
    assert!(!cluster.node(1).publish(1), "not a leader");
    let now = cluster.now;
    cluster.node(1).campaign(now, 0).unwrap();
    cluster.settle();
    assert!(cluster.trace.contains(&"1 won term 1".to_string()));
    assert!(!cluster.node(1).may_reply(1));
    assert!(cluster.node(1).publish(1));
    assert!(cluster.node(1).may_reply(1));
    assert!(!cluster.node(1).may_reply(2), "the relay has turned");
    cluster.lead(2, 2);
    assert!(!cluster.node(1).may_reply(2) && !cluster.node(1).may_reply(1));
    assert!(cluster.node(2).may_reply(2));
    assert_eq!(cluster.node(1).propose(0, 1, 1, b""), Err(ProposeError::NotLeader));
}

#[test]
fn committed_entries_survive_any_one_crash() {
    for victim in 1..=3 {
        let mut cluster = elected();
        cluster.propose(1, 16, 1, b"a");
        cluster.settle();
        cluster.crash(victim);
        let successor = if victim == 2 { 3 } else { 2 };
        cluster.lead(successor, 2);
        cluster.propose(successor, 16, 2, b"b");
        cluster.settle();
        cluster.open(victim).unwrap();
        cluster.pass(SECOND);
        assert_same(&cluster);
        assert_eq!(cluster.replicas[0].machine.executed.len(), 2);
    }
}

#[test]
fn all_three_crash_and_nothing_is_lost() {
    let mut cluster = elected();
    cluster.propose(1, 16, 1, b"a");
    cluster.settle();
    (1..=3).for_each(|number| cluster.crash(number));
    (1..=3).for_each(|number| cluster.open(number).unwrap());
    cluster.settle();
    cluster.lead(3, 2);
    cluster.pass(SECOND);
    assert_same(&cluster);
    assert_eq!(cluster.replicas[2].machine.executed.len(), 1);
}

#[test]
fn what_the_network_loses_is_sent_again() {
    let mut cluster = elected();
    cluster.cut = vec![(1, 2), (1, 3)];
    for sequence in 1..=5 {
        cluster.propose(1, 16, sequence, b"lost at first");
        cluster.settle();
    }
    assert_eq!(cluster.replicas[0].machine.executed.len(), 0);
    cluster.cut.clear();
    cluster.pass(SECOND);
    assert_same(&cluster);
    assert_eq!(cluster.replicas[0].machine.executed.len(), 5);
}

#[test]
fn messages_of_a_former_life_are_refused() {
    let mut cluster = elected();
    cluster.propose(1, 16, 1, b"a");
    cluster.work();
    let late: Vec<_> = cluster.queue.iter().filter(|(_, to, _)| *to == 2).cloned().collect();
    assert!(!late.is_empty());
    cluster.crash(2);
    cluster.open(2).unwrap();
    cluster.settle();
    for (_, _, bytes) in &late {
        let replica = cluster.replica(2);
        let node = replica.node.as_mut().unwrap();
        let outcome = node.handle_message(0, bytes, &mut replica.machine);
        assert_eq!(outcome, Err(Refusal::FormerReceiver));
    }
    assert_eq!(cluster.node(2).refused(Refusal::FormerReceiver), late.len() as u64);
}

#[test]
fn a_replica_far_behind_gets_a_snapshot() {
    let mut cluster = elected();
    cluster.crash(3);
    let now = cluster.now;
    (1..=2).for_each(|number| cluster.node(number).set_peer(now, 3, 1, false));
    for sequence in 1..=300 {
        cluster.propose(1, 16, sequence, &[7; 500]);
        cluster.settle();
    }
    let (used, capacity) = cluster.node(1).log_bytes();
    assert!(used <= capacity / 2, "the log forgets: {used} of {capacity} bytes");
    cluster.open(3).unwrap();
    cluster.pass(SECOND);
    assert!(cluster.trace.iter().any(|line| line.starts_with("3 restored")));
    assert_same(&cluster);
    assert_eq!(cluster.replicas[2].machine.executed.len(), 300);
}

#[test]
fn a_follower_may_crash_while_it_is_restored() {
    let mut cluster = elected();
    cluster.crash(3);
    for sequence in 1..=300 {
        cluster.propose(1, 16, sequence, &[7; 500]);
        cluster.settle();
    }
    cluster.open(3).unwrap();
    while !cluster.trace.iter().any(|line| line.contains("1>3 Chunk")) {
        assert!(cluster.step());
    }
    assert!(!cluster.node(3).status().restoring, "the old state stays until the new one is whole");
    cluster.crash(3);
    cluster.open(3).unwrap();
    cluster.pass(SECOND);
    assert_same(&cluster);
}

#[test]
fn a_state_that_is_lost_while_it_is_restored_is_restored_again() {
    let mut cluster = elected();
    cluster.propose(1, 16, 1, b"a");
    cluster.pass(SECOND);
    cluster.node(3).abandon_machine(0);
    while !cluster.trace.iter().any(|line| line.contains("1>3 Chunk")) {
        assert!(cluster.step());
    }
    cluster.crash(3);
    cluster.replica(3).machine = Ledger::default();
    cluster.open(3).unwrap();
    assert_eq!(cluster.node(3).campaign(0, 0), Err(CampaignError::Restoring));
    cluster.pass(SECOND);
    assert_same(&cluster);
}

#[test]
fn lost_storage_comes_back_as_another_member() {
    let mut cluster = elected();
    for sequence in 1..=5 {
        cluster.propose(1, 16, sequence, b"x");
    }
    cluster.pass(SECOND);
    cluster.crash(2);
    cluster.replica(2).memory.fill(0, 1024, 0xff);
    assert_eq!(cluster.open(2).unwrap_err(), OpenError::Damaged(Damage::Header));
    cluster.rebuild(2);
    assert!(!cluster.node(2).status().voter);
    cluster.pass(SECOND);
    assert_same(&cluster);
    let status = cluster.node(2).status();
    assert!(status.voter && !status.restoring);
    assert_eq!(status.ident.storage_epoch(), 3);
    // The newcomer is a full member: it can be half of a majority, and it can lead.
    cluster.crash(3);
    cluster.lead(2, 2);
    cluster.propose(2, 16, 6, b"y");
    cluster.pass(SECOND);
    assert_eq!(cluster.replicas[0].machine.executed.len(), 6);
}

#[test]
fn a_newcomer_is_no_half_of_a_majority_before_it_is_synchronised() {
    let mut cluster = elected();
    cluster.cut = vec![(1, 3), (3, 1)];
    cluster.propose(1, 16, 1, b"known to 1 and 2");
    cluster.settle();
    assert_eq!(cluster.replicas[0].machine.executed.len(), 1);
    cluster.crash(2);
    cluster.rebuild(2);
    cluster.crash(1);
    // Replica 3 lacks the entry; the newcomer's word must not make it leader.
    cluster.cut.clear();
    let now = cluster.now;
    cluster.node(3).campaign(now, 0).unwrap();
    cluster.pass(SECOND);
    assert!(!cluster.node(3).status().leading);
    cluster.open(1).unwrap();
    cluster.settle();
    cluster.lead(1, 2);
    cluster.pass(SECOND);
    assert_same(&cluster);
    assert_eq!(cluster.replicas[2].machine.executed.len(), 1);
}

#[test]
fn a_damaged_record_ends_the_replicas_part() {
    let mut cluster = elected();
    cluster.cut = vec![(1, 3)];
    cluster.propose(1, 16, 1, b"a");
    cluster.settle();
    cluster.replica(1).memory.write(1024 + 40 + 20, &[0xff]);
    assert!(cluster.node(1).verify_storage().is_err());
    assert_eq!(cluster.node(1).poll_event(), Some(Event::Damaged(Damage::Record(2))));
    assert!(!cluster.node(1).may_reply(1));
    assert_eq!(cluster.node(1).campaign(0, 0), Err(CampaignError::Damaged));
    assert_eq!(cluster.node(1).poll_message(0, &mut Vec::new()), None);
}

#[test]
fn an_abandoned_state_is_restored_without_losing_the_vote() {
    let mut cluster = elected();
    cluster.propose(1, 16, 1, b"a");
    cluster.pass(SECOND);
    cluster.replica(3).machine = Ledger::default();
    let now = cluster.now;
    cluster.node(3).abandon_machine(now);
    cluster.pass(SECOND);
    assert_eq!(cluster.replicas[2].machine.executed.len(), 1, "restored in a quiet cluster");
    cluster.crash(2);
    cluster.propose(1, 16, 2, b"b");
    cluster.pass(SECOND);
    assert_eq!(cluster.replicas[2].machine.executed.len(), 2);
    assert_eq!(cluster.node(3).status().ident.storage_epoch(), 0);
}

#[test]
fn a_full_log_refuses_and_recovers() {
    let mut cluster = elected();
    cluster.cut = vec![(1, 2), (1, 3)];
    let mut taken = 0;
    let refusal = loop {
        match cluster.node(1).propose(0, 16, taken + 1, &[0; 1000]) {
            Ok(_) => taken += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, ProposeError::Full);
    cluster.cut.clear();
    cluster.pass(SECOND);
    assert_same(&cluster);
    assert_eq!(cluster.replicas[0].machine.executed.len() as u64, taken);
    cluster.propose(1, 16, taken + 1, b"room again");
}
