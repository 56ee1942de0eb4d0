//! Faults that come only in the middle of longer work.

use abi::Xen;
use api::{GuestId, Operation};
use orchestrator::inject_plan::Plan;
use orchestrator::inject_registers::Gadgets;
use orchestrator::injector::{Damagers, Injector};
use orchestrator::pace::Pace;
use orchestrator::turn::Next;
use service::ids;

use crate::guests::{GUEST, ask, create};
use crate::world::{Fake, STORE, Service, TOOL, World, settle};

/// Time between two turns: work of many turns takes milliseconds, as on a real host.
const TURN_NS: u64 = 100_000;

/// Whom the faults hit needs neither to be awake nor to run its own code.
fn inject(host: &mut Fake<'_>, plan: &str) {
    let plan = Plan::parse(plan).unwrap();
    host.injector = Some(Injector::new(plan, Gadgets::default(), Damagers::new()));
}

fn injected(host: &Fake<'_>) -> u32 {
    host.injector.as_ref().unwrap().progress().0
}

/// Turns, the store at work, services answering; `look` sees the host after each turn in which a
/// fault came.
fn turns(
    host: &mut Fake<'_>,
    services: &mut [Service],
    count: usize,
    mut look: impl FnMut(&Fake<'_>),
) {
    let machine = host.host.xen.machine().clone();
    for _ in 0..count {
        let before = injected(host);
        machine.advance(TURN_NS);
        host.host.hand(STORE, ids::DOMAINS);
        host.turn();
        if injected(host) != before {
            look(host);
        }
        for service in services.iter_mut() {
            service.serve();
        }
    }
}

#[test]
fn faults_during_a_creation_come_at_seeded_instants_between_its_first_step_and_its_last() {
    let instants = |seed: u32| {
        let mut world = World::new();
        let machine = world.machine.clone();
        let mut at = Vec::new();
        world.boot(|host, services| {
            let kinds = "unit:1;kinds:crash-shutdown;count:50;gap_us:220000";
            inject(host, &format!("{kinds};seed:{seed};during:create"));
            turns(host, services, 4_000, |_| panic!("no guest is being created"));
            ask(host, services, create(GUEST), |_| ());
            let began_ns = host.host.xen.now_ns();
            turns(host, services, 12_000, |host| {
                assert!(host.host.slots.has_unfinished());
                at.push(host.host.xen.now_ns() - began_ns);
            });
            settle(host, services);
            ask(host, services, Operation::Unpause { guest: GUEST }, |_| ());
            let before = injected(host);
            turns(host, services, 4_000, |_| panic!("the guest runs"));
            assert_eq!(injected(host), before);
            assert_eq!(host.host.units[STORE].life, before + 1, "each was recovered");
        });
        let printed = machine.take_printed();
        assert!(printed.contains("\"during\":\"create\""), "{printed}");
        at
    };
    let [some, others] = [1, 2].map(instants);
    assert!(some.len() > 3, "several in a long span: {some:?}");
    assert_ne!(some, others);
    assert_eq!(some, instants(1));
}

#[test]
fn faults_during_a_rebuild_come_while_another_unit_is_built_and_never_else() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        let kinds = "unit:1;with:5;kinds:crash-shutdown;count:3;gap_us:220000";
        inject(host, &format!("{kinds};during:rebuild"));
        turns(host, services, 40_000, |host| assert!(host.jobs.builds_another(STORE)));
        assert_eq!(injected(host), 3);
        assert_eq!(host.host.units[STORE].life, 4, "each met the lowest rung");
        let tool = host.host.units[TOOL].life;
        turns(host, services, 10_000, |_| panic!("the plan is done"));
        assert_eq!(host.host.units[TOOL].life, tool, "nobody is ended any more");
    });
    assert!(machine.take_printed().contains("\"during\":\"rebuild\""));
}

#[test]
fn a_plan_whose_span_never_came_says_so_at_the_end() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        inject(host, "unit:1;kinds:crash-shutdown;count:2;gap_us:1;during:create");
        turns(host, services, 100, |_| panic!("no guest is being created"));
        machine.type_keys(b"Py");
        let ends = (0..100).any(|_| host.turn() == Next::Power(api::Power::Off));
        assert!(ends);
    });
    let printed = machine.take_printed();
    let said = "0 of 2 planned faults were injected: they were to come during:create";
    assert!(printed.contains(said), "{printed}");
}

#[test]
fn a_creation_rests_for_a_guest_that_waits_for_the_cpu_and_for_no_other() {
    let other = GuestId(GUEST.0 + 1);
    let populate = |guest| Operation::Populate { guest, before: 0, first_gfn: 0, pages: 64 };
    let rests = |waits: bool| {
        let mut world = World::new();
        let machine = world.machine.clone();
        world.boot(|host, services| {
            crate::guests::run_guest(host, services, GUEST);
            machine.set_scheduled(GUEST.into(), !waits, waits);
            ask(host, services, create(other), |_| ());
            // What was seen before the guest fell asleep is not asked about.
            host.pace = Pace::default();
            // So long does Xen take to give it memory.
            machine.hook(|machine| machine.advance(20 * TURN_NS));
            services[TOOL].send(&populate(other));
            let mut rests = 0;
            for _ in 0..200 {
                machine.advance(TURN_NS);
                host.turn();
                rests += u32::from(host.pace.is_resting(host.host.xen.now_ns()));
            }
            services[TOOL].reply(|outcome| assert_eq!(outcome, api::Outcome::Done));
            rests
        })
    };
    assert_eq!(rests(false), 0);
    assert!(rests(true) > 0);
}
