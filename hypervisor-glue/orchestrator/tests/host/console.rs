//! The serial console: whom typed keys reach, and what is printed how often.

use fabric::Part;
use fabric::keys::KeyReader;
use fabric::log::{Level, LogWriter};
use fabric::view::{Party, RegionKind};
use fake_xen::FakeFabric;
use orchestrator::host::UNITS;

use crate::guests::{GUEST, run_guest};
use crate::world::{Fake, STORE, Service, TOOL, World, settle};

/// Types on the serial console; what is printed then.
fn typed(host: &mut Fake<'_>, services: &mut [Service; UNITS], keys: &[u8]) -> String {
    let machine = host.host.xen.machine().clone();
    machine.type_keys(keys);
    settle(host, services);
    machine.take_printed()
}

type Keys = KeyReader<Part<FakeFabric>, Part<FakeFabric>>;

/// tool-uk's end of the operator's keys.
fn keys(world: &World) -> Keys {
    let region = |kind| world.regions.find(kind, Party::unit(TOOL));
    KeyReader::new(region(RegionKind::ConsoleTaken), region(RegionKind::ConsoleIn))
}

/// What has arrived for the guest.
fn arrived(keys: &mut Keys) -> String {
    let mut text = String::new();
    while let Some(key) = keys.peek() {
        assert_eq!(key.domid, GUEST.0);
        text.push(key.byte.into());
        keys.consume();
    }
    text
}

#[test]
fn keys_go_to_the_attached_guest_until_the_escape_key() {
    let mut world = World::new();
    let mut keys = keys(&world);
    world.boot(|host, services| {
        run_guest(host, services, GUEST);
        let said = typed(host, services, b"c99\r");
        assert!(said.contains("there is no guest d99"), "{said}");
        let said = typed(host, services, format!("c{}\rls1", GUEST.0).as_bytes());
        assert!(said.contains("keys go to the console of d"), "{said}");
        assert!(services[TOOL].taken.contains(&service::ids::INPUT));
        // A key that would be a command is none, and after the escape key is one.
        let said = typed(host, services, b"Ry\x1dd1");
        assert!(said.contains("keys are commands again"), "{said}");
        assert!(host.host.power.is_none());
        assert_eq!(host.host.units[STORE].order, 1);
    });
    assert_eq!(arrived(&mut keys), "ls1Ry");
}

#[test]
fn the_attachment_outlives_a_failure_of_the_orchestrator() {
    let mut world = World::new();
    let mut keys = keys(&world);
    world.boot(|host, services| {
        run_guest(host, services, GUEST);
        typed(host, services, format!("c{}\r", GUEST.0).as_bytes());
    });
    world.recover(|host, services| {
        typed(host, services, b"Py");
        assert!(host.host.power.is_none());
    });
    assert_eq!(arrived(&mut keys), "Py");
}

#[test]
fn a_guest_that_is_gone_gives_the_keys_back() {
    let mut world = World::new();
    world.boot(|host, services| {
        run_guest(host, services, GUEST);
        typed(host, services, format!("c{}\r", GUEST.0).as_bytes());
        host.host.xen.machine().shut_down(GUEST.into(), abi::ShutdownReason::PowerOff);
        let said = typed(host, services, b"xs");
        assert!(said.contains("is gone: keys are commands again"), "{said}");
        assert!(said.contains("up "), "the second key is a command: {said}");
    });
}

#[test]
fn what_was_printed_is_not_printed_again_by_the_next_life() {
    let mut world = World::new();
    let region = world.regions.find(RegionKind::ConsoleOut, Party::unit(TOOL));
    let mut log = LogWriter::new(region);
    let machine = world.machine.clone();
    let printed = || machine.take_printed();
    world.boot(|host, services| {
        log.line(1, Level::Information, format_args!("(g16) once"));
        settle(host, services);
    });
    assert!(printed().contains("(g16) once"));
    log.line(2, Level::Information, format_args!("(g16) meanwhile"));
    world.recover(|_, _| ());
    let said = printed();
    assert!(said.contains("(g16) meanwhile") && !said.contains("once"), "{said}");
}
