//! The orchestrator's own failures: its next life finds everything again.

use abi::{DomId, ShutdownReason};
use api::{GuestId, Operation, Outcome};
use fabric::SharedMemory;
use fabric::domains::DomainState;
use fabric::view::{Party, RegionKind};
use fake_xen::Call;
use orchestrator::host::UNITS;

use crate::guests::{GUEST, ask, create, is_relayed, run_guest};
use crate::world::{NONCE, STORE, TOOL, World, settle_until};

const OTHER: GuestId = GuestId(17);

/// A world with two guests whose orchestrator has just failed.
fn with_guests() -> World {
    let mut world = World::new();
    world.boot(|host, services| {
        run_guest(host, services, GUEST);
        run_guest(host, services, OTHER);
    });
    world
}

#[test]
fn nothing_happens_to_services_and_guests() {
    let mut world = with_guests();
    let tables = [1, 2].map(|slot| world.table_entry(slot));
    for _ in 0..3 {
        world.recover(|host, services| {
            assert!((0..UNITS).all(|unit| host.host.supervisor.is_serving(unit)));
            assert_eq!(services.each_ref().map(|service| service.life), [1; UNITS]);
            for guest in [GUEST, OTHER] {
                assert!(is_relayed(host, services, guest), "{guest}");
            }
        });
    }
    assert_eq!([1, 2].map(|slot| world.table_entry(slot)), tables);
    assert_eq!(world.machine.calls(Call::CreateDomain), UNITS as u32 + 2);
    assert_eq!(world.machine.calls(Call::EnterPv), UNITS as u32);
}

#[test]
fn a_request_that_was_not_answered_is_executed_by_the_next_life() {
    let mut world = with_guests();
    world.services[TOOL].send(&create(GuestId(18)));
    world.recover(|_, services| {
        services[TOOL].reply(|outcome| assert_eq!(outcome, Outcome::Done));
    });
    assert!(world.machine.exists(DomId(18)));
}

#[test]
fn who_died_meanwhile_is_recovered() {
    let mut world = with_guests();
    world.machine.shut_down(DomId(1), ShutdownReason::Crash);
    world.machine.shut_down(GUEST.into(), ShutdownReason::PowerOff);
    world.recover(|host, services| {
        assert!(host.host.supervisor.is_serving(STORE));
        assert_eq!((services[STORE].life, services[TOOL].life), (2, 1));
        assert!(is_relayed(host, services, OTHER));
    });
    assert_eq!(world.table_entry(1).map(|entry| entry.state), Some(DomainState::Shutdown));
}

#[test]
fn a_job_that_was_interrupted_anywhere_is_done_again() {
    // After this many turns of the rebuild the orchestrator fails.
    for turns in [1, 2, 5, 20, 60] {
        let mut world = with_guests();
        let machine = world.machine.clone();
        world.recover(|host, services| {
            host.host.restart_by_operator(STORE);
            let left = std::cell::Cell::new(turns);
            settle_until(host, services, |_| left.replace(left.get() - 1) == 1);
        });
        world.recover(|host, services| {
            assert!(host.host.supervisor.is_serving(STORE), "after {turns} turns");
            assert_eq!(services[TOOL].life, 1, "the other one is not touched");
            assert!(is_relayed(host, services, GUEST), "after {turns} turns");
        });
        assert!(machine.exists(DomId(1)));
    }
}

#[test]
fn a_guest_that_was_being_made_is_finished_by_asking_again() {
    let mut world = World::new();
    let populate = Operation::Populate { guest: GUEST, before: 0, first_gfn: 0, pages: 60 };
    world.boot(|host, services| {
        ask(host, services, create(GUEST), |outcome| assert_eq!(outcome, Outcome::Done));
        services[TOOL].send(&populate);
        let calls = host.host.xen.machine().calls(Call::Populate);
        settle_until(host, services, |host| host.host.xen.machine().calls(Call::Populate) > calls);
    });
    world.recover(|host, services| {
        services[TOOL].reply(|outcome| assert_eq!(outcome, Outcome::Done));
        let info = abi::Control::domain_info(host.host.xen, GUEST.into()).unwrap().unwrap();
        assert_eq!(info.pages, 60);
    });
}

#[test]
fn a_flipped_bit_in_a_control_page_costs_at_most_a_life_and_never_the_mark_of_the_boot() {
    // The words before the kick ring: life, work, pings, orders, mark.
    for bit in (0..64 * 8).step_by(5) {
        let mut world = with_guests();
        let page = world.regions.unit(STORE).control;
        let mut byte = [0];
        page.read(bit / 8, &mut byte);
        page.write(bit / 8, &[byte[0] ^ 1 << (bit % 8)]);
        world.recover(|host, services| {
            assert!(host.host.supervisor.is_serving(STORE), "bit {bit}");
            assert!(is_relayed(host, services, GUEST), "bit {bit}");
            assert_eq!(services[TOOL].life, 1, "bit {bit}");
        });
        assert_eq!(world.nonce_of(STORE), Some(NONCE), "bit {bit}");
    }
}

#[test]
fn a_flipped_bit_in_the_domain_table_is_repaired() {
    // The generation, and both words of the first guest's entry.
    for bit in (0..64).chain(80 * 8..96 * 8) {
        let mut world = with_guests();
        let before = world.table_entry(1).unwrap();
        let table = world.regions.find(RegionKind::Domains, Party::ORCHESTRATOR);
        let mut byte = [0];
        table.read(bit / 8, &mut byte);
        table.write(bit / 8, &[byte[0] ^ 1 << (bit % 8)]);
        world.recover(|host, services| {
            for guest in [GUEST, OTHER] {
                assert!(is_relayed(host, services, guest), "{guest}, bit {bit}");
            }
        });
        let after = world.table_entry(1).unwrap();
        assert_eq!((after.domid, after.state), (before.domid, before.state), "bit {bit}");
        if bit < 88 * 8 {
            assert_eq!(after.life, before.life, "bit {bit}: it is the same guest");
        }
    }
}
