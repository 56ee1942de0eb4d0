//! Three replicas of the XenStore with their real engine, connections, areas and consensus; clients
//! at their rings; an orchestrator that fences and names the leader. Replicas die between any two
//! stores, with or without their memory, and lose their log; messages are lost. Every client checks
//! every answer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod cluster;
mod memory;

use cluster::{Cluster, Fault};

/// Runs of the fixed set.
const SEEDS: u64 = 200;
/// Faults in one run.
const FAULTS: u32 = 12;

fn run(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(seed);
    cluster.start();
    for _ in 0..FAULTS {
        let rounds = 5 + cluster.random(120);
        cluster.run(rounds);
        let fault = match cluster.random(6) {
            0 => Fault::Microreset,
            1 => Fault::LostLog,
            2 => Fault::Together,
            _ => Fault::Stores(cluster.random(400)),
        };
        cluster.inject(fault);
    }
    cluster.heal();
    cluster
}

#[test]
fn nothing_is_lost_repeated_or_wrong() {
    let (mut fail_overs, mut restored, mut indexed, mut commits) = (0, 0, 0, 0);
    for seed in 0..SEEDS {
        let cluster = run(seed);
        fail_overs += cluster.epoch;
        restored += cluster.restored;
        indexed += cluster.indexed;
        commits += cluster.committed();
    }
    assert!(fail_overs > 5 * SEEDS, "{fail_overs} fail-overs");
    assert!(restored > SEEDS / 10, "{restored} replicas restored");
    assert!(indexed > SEEDS, "{indexed} replicas back by their index");
    assert!(commits > 100 * SEEDS, "{commits} commits");
}

#[test]
fn a_lone_replica_serves() {
    let mut cluster = Cluster::with_replicas(1, 7);
    cluster.start();
    cluster.run(400);
    cluster.inject(Fault::Stores(100));
    cluster.run(400);
    cluster.inject(Fault::Microreset);
    cluster.heal();
}

#[test]
fn an_idle_cluster_is_quiet() {
    let mut cluster = Cluster::new(1);
    cluster.start();
    cluster.run(200);
    cluster.heal();
    cluster.pass_quietly();
}

#[test]
fn the_first_that_is_named_wins_whatever_the_former_leader_had_still_said() {
    let mut cluster = Cluster::new(5);
    cluster.start();
    cluster.loses_messages = false;
    for fail_over in 0..100 {
        let rounds = 40 + cluster.random(7);
        cluster.run(rounds);
        assert!(cluster.is_served(), "{fail_over}");
        let before = cluster.epoch;
        // Every other time it is back at once, and may be the one that is named.
        cluster.end_the_leader(if fail_over % 2 == 0 { 30 } else { 1 });
        cluster.run(40);
        assert!(cluster.is_served(), "{fail_over}");
        assert_eq!(cluster.epoch, before + 1, "{fail_over}");
    }
    cluster.heal();
}

#[test]
fn a_replica_that_diverged_says_so_and_gets_the_state_of_the_others_when_it_is_told() {
    let mut cluster = Cluster::new(3);
    cluster.start();
    cluster.run(300);
    assert!(cluster.has_converged());
    let odd = cluster.diverge();
    let is_odd = |cluster: &Cluster| {
        let digests = cluster.digests();
        let [mine, first, second] = [odd, (odd + 1) % 3, (odd + 2) % 3].map(|at| digests[at]);
        assert_eq!(first, second, "the others agree");
        let (mine, others) = (mine.unwrap(), first.unwrap());
        assert_eq!(mine.0, others.0, "they have come equally far");
        mine.1 != others.1
    };
    assert!(is_odd(&cluster));
    cluster.restart(odd, false);
    cluster.run(100);
    assert!(cluster.has_converged());
    assert!(is_odd(&cluster), "it reads back what it has written");
    cluster.restart(odd, true);
    cluster.run(100);
    assert!(cluster.has_converged());
    assert!(!is_odd(&cluster));
    cluster.heal();
}
