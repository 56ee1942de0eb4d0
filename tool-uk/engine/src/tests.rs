//! Whole lives of guests against a small host, with tool-uk dying at every step.

mod host;

use api::GuestState;
use host::{Host, Life};

use crate::spec::{OnStop, Options, Spec};

const SECOND: u64 = 1_000_000_000;

fn spec(name: &'static str) -> Spec<'static> {
    Spec {
        name,
        memory_kib: 64 << 10,
        vcpus: 1,
        vifs: 2,
        store_nodes: 5_000,
        kernel: "vmlinux",
        ramdisk: "initrd",
        command_line: "console=hvc0",
        on_crash: OnStop::Restart,
        on_reboot: OnStop::Restart,
        on_poweroff: OnStop::Destroy,
    }
}

fn options(epoch: u32) -> Options {
    Options { epoch, nonce: 7, first_guest: 16, last_guest: 0x7fef, net: Some(4) }
}

#[test]
fn guests_of_the_description_run_with_their_nodes_and_consoles() {
    let mut host = Host::new();
    let specs = [spec("demo-1"), spec("demo-2")];
    let mut life = Life::new(&specs, options(1), &host);
    life.settle(&mut host);
    for (domid, name) in [(16, "demo-1"), (17, "demo-2")] {
        assert_eq!(host.domains[&domid].state, GuestState::Running);
        assert_eq!(host.introduced[&domid], (0xfeffc, 1));
        assert!(host.attached.contains(&domid));
        let value = |path: &str| host.value(&format!("/local/domain/{domid}/{path}"));
        assert_eq!(value("name"), name);
        assert_eq!(value("domid"), domid.to_string());
        assert_eq!((value("store/port"), value("store/ring-ref")), ("1".into(), "1044476".into()));
        assert_eq!(value("console/port"), "2");
        assert_eq!(value("memory/static-max"), "65536");
        assert_eq!(value("cpu/0/availability"), "online");
        let rights = |path: &str| host.rights(&format!("/local/domain/{domid}{path}"));
        assert_eq!(rights(""), format!("n0 r{domid}"));
        assert_eq!(rights("/data"), format!("n{domid}"));
        assert_eq!(rights("/control/shutdown"), format!("n{domid}"));
        let vm = value("vm");
        assert_eq!(host.value(&format!("{vm}/name")), name);
        assert_eq!(host.value(&format!("/libxl/{domid}/type")), "pvh");
        for device in ["console/0", "vif/0", "vif/1"] {
            let copy = format!("/libxl/{domid}/device/{device}");
            let (front, back) =
                ["frontend", "backend"].map(|end| host.value(&format!("{copy}/{end}"))).into();
            assert_eq!(host.value(&format!("{front}/backend")), back);
            assert_eq!(host.value(&format!("{back}/frontend")), front);
        }
    }
    assert!(life.saw("guest demo-2 is d17, running after"));
    assert!(life.saw("@{\"event\":\"created\",\"guest\":\"demo-2\",\"domid\":17,\"began\":"));
    assert_eq!(host.transactions_open(), 0);
}

#[test]
fn what_a_guest_does_decides_what_becomes_of_it() {
    let mut host = Host::new();
    let specs = [spec("a"), spec("b"), spec("c")];
    let mut life = Life::new(&specs, options(1), &host);
    life.settle(&mut host);
    host.now_ns += 100 * SECOND;
    host.stop(16, 0);
    host.stop(17, 1);
    host.stop(18, 3);
    life.settle(&mut host);
    assert_eq!(host.running(), [19, 20], "one is gone, two have new numbers");
    assert_eq!(host.value("/local/domain/19/name"), "b");
    assert_eq!(host.value("/local/domain/20/name"), "c");
    for domid in 16..19 {
        assert!(!host.domains.contains_key(&domid) && !host.introduced.contains_key(&domid));
        assert!(!host.attached.contains(&domid));
        assert!(host.nodes_of(domid).is_empty());
    }
}

#[test]
fn a_guest_that_crashes_at_once_is_given_up_after_five_restarts() {
    let mut host = Host::new();
    let specs = [spec("bad")];
    let mut life = Life::new(&specs, options(1), &host);
    let mut births = Vec::new();
    for _ in 0..20 {
        life.settle(&mut host);
        let Some(domid) = host.running().first().copied() else { break };
        births.push(host.now_ns);
        host.stop(domid, 3);
    }
    assert_eq!(births.len(), 6);
    assert!(life.saw("given up"));
    assert!(births[5] - births[4] >= 800_000_000, "the delay grows");
    assert!(host.domains.is_empty());
}

#[test]
fn a_preserved_guest_stays() {
    let mut host = Host::new();
    let mut kept = spec("kept");
    kept.on_crash = OnStop::Preserve;
    let specs = [kept];
    let mut life = Life::new(&specs, options(1), &host);
    life.settle(&mut host);
    host.stop(16, 3);
    life.settle(&mut host);
    assert_eq!(host.domains[&16].state, GuestState::Shutdown(3));
    let mut next = Life::new(&specs, options(2), &host);
    next.settle(&mut host);
    assert_eq!(host.domains.len(), 1);
}

#[test]
fn a_guest_that_cannot_be_built_leaves_nothing() {
    let mut host = Host::new();
    let mut broken = spec("broken");
    broken.kernel = "missing";
    let mut small = spec("small");
    small.memory_kib = 8 << 10;
    let specs = [broken, small, spec("good")];
    let mut life = Life::new(&specs, options(1), &host);
    life.settle(&mut host);
    assert!(life.saw("broken (d16) is not created: cannot read the kernel: the archive has no"));
    assert!(life.saw("small (d17) is not created: ELF segment"));
    assert_eq!(host.running(), [18]);
    assert_eq!(host.domains.len(), 1);
}

#[test]
fn memory_that_is_still_mapped_delays_only_its_own_guest() {
    let mut host = Host::new();
    let specs = [spec("a"), spec("b")];
    let mut life = Life::new(&specs, options(1), &host);
    life.settle(&mut host);
    host.now_ns += 100 * SECOND;
    host.held.insert(16);
    host.stop(16, 1);
    host.stop(17, 1);
    life.run(&mut host, 3 * SECOND);
    assert_eq!(host.running(), [18], "b is back");
    assert_eq!(host.value("/local/domain/18/name"), "b");
    host.held.clear();
    life.settle(&mut host);
    assert_eq!(host.running(), [18, 19]);
}

#[test]
fn a_taken_number_is_passed_over() {
    let mut host = Host::new();
    let specs = [spec("a")];
    let mut life = Life::new(&specs, options(1), &host);
    host.strangers.insert(16);
    life.settle(&mut host);
    assert_eq!(host.running(), [17]);
    assert!(host.strangers.contains(&16));
}

#[test]
fn a_lost_answer_is_asked_for_again_and_a_conflict_is_tried_again() {
    let mut host = Host::new();
    host.lose_replies = 3;
    host.conflicts = 2;
    let specs = [spec("a")];
    let mut life = Life::new(&specs, options(1), &host);
    life.settle(&mut host);
    assert_eq!(host.running(), [16]);
    assert_eq!(host.domains[&16].pages, 16 * 1024 + 3);
}

#[test]
fn a_new_connection_to_xenstore_begins_transactions_again() {
    let specs = [spec("a")];
    for after in 0.. {
        let mut host = Host::new();
        let mut life = Life::new(&specs, options(1), &host);
        let finished = life.steps(&mut host, after) < after;
        host.reset_connection();
        life.store_restarted();
        life.settle(&mut host);
        assert_eq!(host.running(), [16], "after {after} steps");
        assert_eq!(host.value("/local/domain/16/name"), "a");
        if finished {
            return;
        }
    }
}

#[test]
fn a_store_that_forgot_the_transaction_is_told_everything_again() {
    let specs = [spec("a")];
    for after in 0.. {
        let mut host = Host::new();
        let mut life = Life::new(&specs, options(1), &host);
        let finished = life.steps(&mut host, after) < after;
        host.reset_connection();
        life.settle(&mut host);
        assert_eq!(host.running(), [16], "after {after} steps");
        host.assert_clean();
        if finished {
            return;
        }
    }
}

/// The promise of the journal: whenever tool-uk dies, its next life ends in the same state, a guest
/// that runs is never touched, and nothing is left over.
#[test]
fn a_death_at_any_step_of_a_creation_ends_in_running_guests() {
    let specs = [spec("a"), spec("b")];
    for after in 0.. {
        let mut host = Host::new();
        let mut life = Life::new(&specs, options(1), &host);
        let finished = life.steps(&mut host, after) < after;
        let ran = host.running();
        host.die();
        let mut next = Life::new(&specs, options(2), &host);
        next.settle(&mut host);
        let running = host.running();
        assert_eq!(running.len(), 2, "after {after} steps");
        assert!(ran.iter().all(|domid| running.contains(domid)), "a running guest was touched");
        host.assert_clean();
        let mut names: Vec<_> =
            running.iter().map(|id| host.value(&format!("/local/domain/{id}/name"))).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        if finished {
            assert!(after > 100, "{after} steps");
            return;
        }
    }
}

#[test]
fn a_death_at_any_step_of_a_restart_ends_in_one_new_guest() {
    let specs = [spec("a")];
    for after in 0.. {
        let mut host = Host::new();
        let mut life = Life::new(&specs, options(1), &host);
        life.settle(&mut host);
        host.now_ns += 100 * SECOND;
        host.stop(16, 1);
        let finished = life.steps(&mut host, after) < after;
        host.die();
        // The second life dies, too, early.
        let mut second = Life::new(&specs, options(2), &host);
        second.steps(&mut host, 7);
        host.die();
        let mut next = Life::new(&specs, options(3), &host);
        next.settle(&mut host);
        assert_eq!(host.running().len(), 1, "after {after} steps");
        assert!(!host.domains.contains_key(&16), "after {after} steps");
        host.assert_clean();
        if finished {
            return;
        }
    }
}

#[test]
fn a_lost_journal_is_made_up_by_names() {
    let specs = [spec("a"), spec("b")];
    let mut host = Host::new();
    let mut life = Life::new(&specs, options(1), &host);
    life.settle(&mut host);
    host.die();
    host.journal = Some(vec![0xff; 40]);
    let mut next = Life::new(&specs, options(2), &host);
    next.settle(&mut host);
    assert_eq!(host.running(), [16, 17]);
    assert!(host.attached.contains(&16) && host.attached.contains(&17));
    assert!(next.saw("guest b (d17) is adopted"));
}

#[test]
fn a_guest_that_stopped_while_nobody_looked_is_seen_by_the_next_life() {
    let specs = [spec("a")];
    let mut host = Host::new();
    Life::new(&specs, options(1), &host).settle(&mut host);
    host.die();
    host.stop(16, 0);
    let mut next = Life::new(&specs, options(2), &host);
    next.settle(&mut host);
    assert!(host.domains.is_empty());
    let mut third = Life::new(&specs, options(3), &host);
    third.settle(&mut host);
    assert!(host.domains.is_empty(), "it is not created again");
}

#[test]
fn a_kernel_that_is_none_fails_its_guest_and_no_other() {
    for garbage in [vec![0x5a; 8192], vec![0; 64], Vec::new()] {
        let mut host = Host::new();
        host.archive.insert("garbage", garbage);
        let specs = [Spec { kernel: "garbage", ..spec("bad") }, spec("good")];
        let mut life = Life::new(&specs, options(1), &host);
        life.settle(&mut host);
        assert_eq!(host.running(), [17]);
        assert!(life.saw("guest bad (d16) is not created: kernel: "));
        // The next life leaves it at that.
        host.die();
        let mut life = Life::new(&specs, options(2), &host);
        life.settle(&mut host);
        assert_eq!(host.running(), [17]);
        assert!(!life.saw("not created"));
    }
}
