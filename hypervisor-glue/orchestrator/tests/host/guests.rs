//! Guests: made by the toolstack's operations, relayed to the services.

use abi::{DomId, Port, ShutdownReason, Xen};
use api::{Failure, GuestId, GuestLimits, Operation, Outcome, Refusal};
use fabric::domains::DomainState;
use orchestrator::host::UNITS;
use service::ids;

use crate::world::{Fake, STORE, Service, TOOL, World, settle};

pub const GUEST: GuestId = GuestId(16);
const LIMITS: GuestLimits = GuestLimits { pages: 64, vcpus: 1, max_port: 1023, grant_frames: 4 };

/// The toolstack asks and waits for the answer.
pub fn ask(
    host: &mut Fake<'_>,
    services: &mut [Service; UNITS],
    operation: Operation<'_>,
    look: impl FnOnce(Outcome<'_>),
) {
    services[TOOL].send(&operation);
    settle(host, services);
    services[TOOL].reply(look);
}

pub fn create(id: GuestId) -> Operation<'static> {
    Operation::Create { guest: id, limits: LIMITS }
}

/// A guest that runs, with its channels connected.
pub fn run_guest(host: &mut Fake<'_>, services: &mut [Service; UNITS], guest: GuestId) {
    let is_done = |outcome: Outcome<'_>| assert_eq!(outcome, Outcome::Done);
    ask(host, services, create(guest), is_done);
    ask(host, services, Operation::ConnectStore { guest }, |outcome| {
        assert_eq!(outcome, Outcome::Port(1));
    });
    ask(host, services, Operation::ConnectConsole { guest }, |outcome| {
        assert_eq!(outcome, Outcome::Port(2));
    });
    ask(host, services, Operation::Unpause { guest }, is_done);
    let xen = host.host.xen.machine().domain(guest.into());
    xen.listen(Port(1));
    xen.listen(Port(2));
    while xen.next_event().is_some() {}
}

/// The guest asks XenStore and hears the answer.
pub fn is_relayed(host: &mut Fake<'_>, services: &mut [Service; UNITS], guest: GuestId) -> bool {
    let xen = host.host.xen.machine().domain(guest.into());
    let slot = host.host.slots.find(guest.into()).expect("it has a slot") as u16;
    let leader = host.host.store;
    services[leader].taken.clear();
    xen.send(Port(1)).unwrap();
    settle(host, services);
    if !services[leader].taken.contains(&slot) {
        return false;
    }
    services[leader].kick(slot);
    settle(host, services);
    std::iter::from_fn(|| xen.next_event()).any(|port| port == Port(1))
}

/// On another CPU a unit pushes a kick while its former one is read, and rings no bell for it.
#[test]
fn a_kick_that_comes_while_others_are_read_is_not_left_behind() {
    let mut world = World::new();
    world.boot(|host, services| {
        run_guest(host, services, GUEST);
        let xen = host.host.xen.machine().domain(GUEST.into());
        let slot = host.host.slots.find(GUEST.into()).expect("it has a slot") as u16;
        services[host.host.store].kick_silently(slot);
        assert!(host.host.has_late_kicks(), "it must not go to sleep");
        settle(host, services);
        assert!(!host.host.has_late_kicks());
        assert_eq!(xen.next_event(), Some(Port(1)));
    });
}

/// Nor does a damaged index, which nobody announces either, keep the orchestrator awake.
#[test]
fn a_wild_kick_ring_costs_one_look_and_no_more() {
    let mut world = World::new();
    world.boot(|host, services| {
        run_guest(host, services, GUEST);
        for wild in [u64::MAX, 1 << 40, 0] {
            services[host.host.store].break_kicks(wild);
            assert!(host.host.has_late_kicks());
            settle(host, services);
            assert!(!host.host.has_late_kicks());
            assert!(is_relayed(host, services, GUEST));
        }
    });
}

#[test]
fn a_guests_request_reaches_the_store_and_the_answer_the_guest() {
    let mut world = World::new();
    world.boot(|host, services| {
        run_guest(host, services, GUEST);
        assert!(is_relayed(host, services, GUEST));
        let slot = host.host.slots.find(GUEST.into()).unwrap();
        assert!(host.host.slots.get(slot).unwrap().asked >= 1);
        // Its console goes to the toolstack and back.
        services[TOOL].taken.clear();
        let xen = host.host.xen.machine().domain(GUEST.into());
        xen.send(Port(2)).unwrap();
        settle(host, services);
        assert!(services[TOOL].taken.contains(&ids::console(slot as u16)));
    });
}

#[test]
fn every_operation_can_be_asked_for_twice() {
    let mut world = World::new();
    let machine = world.machine.clone();
    let (guest, done) = (GUEST, |outcome: Outcome<'_>| assert_eq!(outcome, Outcome::Done));
    let populate = Operation::Populate { guest, before: 0, first_gfn: 0, pages: 40 };
    let zero = Operation::Zero { guest, address: 0, len: 5000 };
    let write = Operation::Write { guest, address: 4090, bytes: b"across pages" };
    let load = Operation::Load { guest, entry: "guest-kernel", offset: 0, address: 8, len: 100 };
    let connect = Operation::ConnectStore { guest };
    world.boot(|host, services| {
        for _ in 0..2 {
            ask(host, services, create(guest), done);
        }
        for operation in [&populate, &zero, &write, &load] {
            for _ in 0..2 {
                ask(host, services, operation.clone(), done);
            }
        }
        for _ in 0..2 {
            ask(host, services, connect.clone(), |outcome| {
                assert_eq!(outcome, Outcome::Port(1));
            });
        }
        let info = abi::Control::domain_info(host.host.xen, guest.into()).unwrap().unwrap();
        assert_eq!(info.pages, 40, "the second time gave nothing more");
        let mut text = [0; 6];
        machine.read_page(guest.into(), abi::Frame(0), 4090, &mut text);
        assert_eq!(&text, b"across");
        machine.read_page(guest.into(), abi::Frame(1), 0, &mut text);
        assert_eq!(&text, b" pages");
        for _ in 0..2 {
            ask(host, services, Operation::Destroy { guest }, done);
        }
        assert_eq!(host.host.slots.used().count(), 0);
    });
    assert!(!machine.exists(guest.into()));
}

#[test]
fn what_tool_may_not_do_is_refused_and_changes_nothing() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        let store = GuestId(1);
        ask(host, services, Operation::Destroy { guest: store }, |outcome| {
            assert!(matches!(outcome, Outcome::Refused(Refusal::NotAGuest(1))), "{outcome:?}");
        });
        ask(host, services, Operation::Unpause { guest: GUEST }, |outcome| {
            assert_eq!(outcome, Outcome::Failed(Failure::NoGuest));
        });
    });
    assert!(machine.exists(DomId(1)));
}

#[test]
fn a_storm_of_events_keeps_no_crash_from_being_seen() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        for number in 0..60 {
            run_guest(host, services, GuestId(GUEST.0 + number));
        }
        machine.shut_down(DomId(1), ShutdownReason::Crash);
        for turn in 0..4 {
            // Every port has an event again, as soon as it is looked at.
            host.host.xen.raise_all();
            host.turn();
            if !host.host.units[STORE].is_running {
                return;
            }
            assert!(turn < 3, "124 ports, 64 a turn: two turns see them all");
        }
    });
}

#[test]
fn a_guests_end_is_told_to_the_services() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        run_guest(host, services, GUEST);
        services.iter_mut().for_each(|service| service.taken.clear());
        machine.shut_down(GUEST.into(), ShutdownReason::Reboot);
        settle(host, services);
        for service in services.iter() {
            assert!(service.taken.contains(&ids::DOMAINS));
        }
    });
    let entry = world.table_entry(1).expect("its slot");
    assert_eq!((entry.state, entry.shutdown_code), (DomainState::Shutdown, 1));
}
