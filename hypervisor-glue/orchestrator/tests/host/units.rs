//! Services: built, watched, recovered.

use std::cell::Cell;
use std::rc::Rc;

use abi::{DomId, Registers, ShutdownReason, Xen};
use fabric::control::Rung;
use fabric::epitaph::Reason;
use fabric::health::Digest;
use fake_xen::{Call, Fault, Machine};
use service::ids;

use orchestrator::host::UNITS;

use crate::world::{Fake, STORE, Service, TOOL, World, settle, settle_until, wait};

const STORE_DOMAIN: DomId = DomId(1);
const TOOL_DOMAIN: DomId = DomId(5);

fn crash(machine: &Machine, id: DomId) {
    machine.shut_down(id, ShutdownReason::Crash);
}

fn lives(host: &Fake<'_>) -> [u32; 2] {
    [host.host.units[STORE].life, host.host.units[TOOL].life]
}

fn all_serve(host: &Fake<'_>, services: &[Service; UNITS]) -> bool {
    (0..UNITS).all(|unit| host.host.supervisor.is_serving(unit))
        && services.iter().all(Service::runs)
}

fn rungs(host: &Fake<'_>) -> Vec<Rung> {
    host.host.epitaphs.iter().map(|epitaph| epitaph.rung).collect()
}

#[test]
fn both_services_are_built_and_serve_and_the_watchdog_is_armed() {
    let mut world = World::new();
    world.boot(|host, services| {
        assert!(all_serve(host, services));
        assert_eq!(lives(host), [1, 1]);
    });
    assert_eq!(world.machine.watchdog(), Some(orchestrator::watchdog::PERIOD_S));
    let weight = world.machine.cpu_weight(abi::DomId::ORCHESTRATOR);
    assert_eq!(weight, Some(orchestrator::host::CPU_WEIGHT));
    assert_eq!(world.machine.rate_limit_us(), 0, "nobody waits");
    let weight = world.machine.cpu_weight(abi::DomId(1));
    assert_eq!(weight, Some(orchestrator::host::UNIT_CPU_WEIGHT));
    let printed = world.machine.take_printed();
    assert!(printed.contains("xenstore-uk (d1) serves"), "{printed}");
    assert!(printed.contains("tool-uk (d5) serves"), "{printed}");
}

#[test]
fn a_crash_leaves_an_epitaph_and_costs_one_microreset() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        crash(&machine, STORE_DOMAIN);
        settle(host, services);
        assert!(all_serve(host, services));
        assert_eq!(lives(host), [2, 1], "the other one goes on");
        // The epitaph is finished when nothing more urgent is to be done.
        wait(host, services, 1_000_000_000);
        let epitaph = host.host.epitaphs.iter().next().unwrap();
        assert_eq!(epitaph.unit.as_str(), "xenstore-uk");
        assert_eq!(epitaph.reason, Reason::Exit(ShutdownReason::Crash.code()));
        assert_eq!(epitaph.rung, Rung::Microreset);
        assert!(epitaph.registers.is_some());
    });
    assert_eq!(machine.calls(Call::CreateDomain), UNITS as u32, "nothing was built again");
}

#[test]
fn a_unit_that_waits_at_its_end_is_resumed_as_it_is() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        let entries = machine.calls(Call::EnterPv);
        services[STORE].panic("no such node");
        settle(host, services);
        assert!(all_serve(host, services), "{:?}", rungs(host));
        assert_eq!(lives(host), [2, 1]);
        assert_eq!(machine.calls(Call::EnterPv), entries);
        // The next one ends without a word: its vCPU is set anew.
        crash(&machine, STORE_DOMAIN);
        for _ in 0..20 {
            wait(host, services, 1_000_000);
        }
        assert!(all_serve(host, services), "{:?}", rungs(host));
        assert_eq!(lives(host), [3, 1]);
        assert_eq!(machine.calls(Call::EnterPv), entries + 1);
        let reasons: Vec<_> = host.host.epitaphs.iter().map(|epitaph| epitaph.reason).collect();
        let silent = Reason::Exit(ShutdownReason::Crash.code());
        assert_eq!(reasons, [Reason::Panic, silent]);
    });
}

#[test]
fn what_a_unit_left_in_its_own_memory_is_kept_even_when_it_is_built_again() {
    let mut world = World::new();
    let machine = world.machine.clone();
    let text = b"panic at main.rs:7: no fabric";
    world.boot(|host, services| {
        let frames = host.jobs.frames(STORE).to_vec();
        // It lies across the border of two pages.
        let (before, behind) = text.split_at(5);
        machine.write_page(STORE_DOMAIN, frames[2], 4096 - before.len(), before);
        machine.write_page(STORE_DOMAIN, frames[3], 0, behind);
        let mut registers = Registers { r12: Registers::LAST_WORDS, ..Registers::default() };
        (registers.r13, registers.r14) = (3 * 4096 - before.len() as u64, text.len() as u64);
        let mut fail = |registers| {
            machine.run_to(STORE_DOMAIN, registers);
            crash(&machine, STORE_DOMAIN);
            for _ in 0..40 {
                // The back-off between failures in a row.
                wait(host, services, 1_000_000);
            }
            let latest = host.host.epitaphs.iter().last().unwrap();
            (latest.rung, latest.panic.map(|panic| panic.to_string()))
        };
        let said = Some("panic at main.rs:7: no fabric".to_owned());
        // Nobody reads where there is no memory.
        let astray = Registers { r13: u64::MAX - 3, ..registers };
        assert_eq!(fail(astray), (Rung::Microreset, None));
        let climb = [(); 4].map(|()| fail(registers));
        assert_eq!(climb[0], (Rung::Microreset, said.clone()));
        assert_eq!(climb[3], (Rung::Rebuild, said));
    });
}

#[test]
fn an_epitaph_survives_a_failure_of_the_orchestrator() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        crash(&machine, STORE_DOMAIN);
        settle_until(host, services, |host| host.host.unfinished.is_some());
    });
    world.recover(|host, services| {
        wait(host, services, 1_000_000_000);
        assert_eq!(host.host.unfinished, None);
        let epitaphs: Vec<_> = host.host.epitaphs.iter().collect();
        assert_eq!(epitaphs.len(), 1);
        assert_eq!(epitaphs[0].unit.as_str(), "xenstore-uk");
        // What was decided before is done: the others are not touched, and this one is not rebuilt.
        assert!(all_serve(host, services));
        assert_eq!(services.each_ref().map(|service| service.life), [2, 1, 1, 1, 1]);
        assert_eq!((host.host.store, services[STORE + 1].relay), (STORE + 1, 2));
    });
    assert_eq!(machine.calls(Call::CreateDomain), UNITS as u32, "nothing was built again");
}

#[test]
fn crashes_in_a_row_climb_the_ladder_and_end_in_service_under_the_same_domid() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        for _ in 0..5 {
            crash(&machine, STORE_DOMAIN);
            for _ in 0..40 {
                // The back-off between failures in a row.
                wait(host, services, 1_000_000);
            }
            assert!(host.host.supervisor.is_serving(STORE), "{:?}", rungs(host));
        }
        let climbed = rungs(host);
        assert!(climbed.is_sorted_by_key(|rung| *rung as u8), "{climbed:?}");
        assert_eq!(climbed.first(), Some(&Rung::Microreset));
        assert_eq!(climbed.last(), Some(&Rung::Rebuild));
        assert!(all_serve(host, services));
        assert_eq!(services[STORE].life, 6);
    });
    assert_eq!(machine.calls(Call::DestroyDomain), 1);
    assert!(machine.exists(STORE_DOMAIN));
}

#[test]
fn a_failed_reset_makes_the_next_rung_do() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        let error = abi::XenError::NoMemory;
        for _ in 0..2 {
            machine.fail(Fault { call: Call::EnterPv, after: 0, error });
        }
        crash(&machine, STORE_DOMAIN);
        for _ in 0..20 {
            wait(host, services, 1_000_000);
        }
        assert!(all_serve(host, services), "{:?}", rungs(host));
    });
}

#[test]
fn a_service_that_dies_while_another_is_rebuilt_is_reset_in_the_middle_of_it() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        let died = Rc::new(Cell::new(false));
        let has_died = died.clone();
        machine.hook(move |machine| {
            if !has_died.replace(true) {
                crash(machine, TOOL_DOMAIN);
            }
        });
        let entries = machine.calls(Call::EnterPv);
        host.host.restart_by_operator(STORE);
        settle_until(host, services, |_| died.get());
        // The long call is over, the rebuild is not, and the tool lives its next life already.
        assert_eq!(machine.calls(Call::EnterPv), entries + 1);
        assert_eq!(host.host.units[TOOL].life, 2);
        assert!(!host.host.supervisor.is_serving(STORE));
        settle(host, services);
        assert!(all_serve(host, services));
        assert_eq!(lives(host), [2, 2]);
    });
}

/// A former leader's recovery waits for the next one's answer at most so long.
const ELECTION_NS: u64 = 2_000_000;

#[test]
fn the_relay_turns_to_a_living_replica_and_not_back() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        assert_eq!((host.host.store, services[STORE].relay), (STORE, 1));
        crash(&machine, STORE_DOMAIN);
        settle(host, services);
        let next = STORE + 1;
        assert_eq!((host.host.store, services[next].relay), (next, 2));
        assert_eq!(services[STORE].relay, 0, "it follows in its next life");
        assert!(all_serve(host, services));
        // What it has to say to the third replica passes by; what it has for guests does not.
        services[STORE].kick(ids::peer(3));
        settle(host, services);
        assert!(services[STORE + 2].taken.contains(&ids::peer(1)));
        crash(&machine, STORE_DOMAIN);
        settle(host, services);
        assert_eq!((host.host.store, services[next].relay), (next, 2), "a follower died");
    });
}

#[test]
fn a_failed_leader_comes_back_when_the_next_one_has_answered_or_has_had_its_time() {
    for answers in [true, false] {
        let mut world = World::new();
        let machine = world.machine.clone();
        world.services[STORE + 1].is_awaited = false;
        world.boot(|host, services| {
            crash(&machine, STORE_DOMAIN);
            settle(host, services);
            assert_eq!((host.host.store, services[STORE + 1].relay), (STORE + 1, 2));
            assert_eq!(lives(host), [1, 1], "the CPU belongs to the next leader");
            if answers {
                services[STORE + 1].answer();
                settle(host, services);
            } else {
                wait(host, services, ELECTION_NS);
            }
            assert!(all_serve(host, services));
            assert_eq!(lives(host), [2, 1]);
        });
    }
}

#[test]
fn a_replica_that_turns_out_to_be_better_is_named_at_once() {
    let mut world = World::new();
    let machine = world.machine.clone();
    let (second, third) = (STORE + 1, STORE + 2);
    world.services[second].is_electable = false;
    world.boot(|host, services| {
        crash(&machine, STORE_DOMAIN);
        settle(host, services);
        assert_eq!((host.host.store, services[second].relay), (second, 2));
        assert_eq!(lives(host), [1, 1], "the former leader waits");
        let improved_ns = host.host.xen.now_ns();
        // It has taken what the former leader said last, and elects nobody who has not.
        let rank = services[STORE].rank + 1;
        services[third].improve(rank);
        settle(host, services);
        assert_eq!((host.host.store, services[third].relay), (third, 3));
        assert_eq!(services[second].relay, 0, "it was stopped before");
        assert_eq!(services[second].life, 2);
        assert!(all_serve(host, services));
        let taken_ns = host.host.xen.now_ns() - improved_ns;
        assert!(taken_ns < ELECTION_NS, "{taken_ns} ns");
    });
}

#[test]
fn a_replica_that_differs_from_the_others_is_found_in_time_and_told_to_begin_anew() {
    /// From the write (docs/SPECIFICATION.md).
    const LIMIT_NS: u64 = 5_000_000;
    const STEP_NS: u64 = 250_000;
    let replicas = STORE..STORE + 3;
    for odd in replicas.clone() {
        let mut world = World::new();
        let machine = world.machine.clone();
        world.boot(|host, services| {
            let publish = |services: &[Service; UNITS], index, odd_sum| {
                for unit in replicas.clone() {
                    let sum = if unit == odd { odd_sum } else { 7 };
                    services[unit].publish(Digest::new(index, sum));
                }
            };
            publish(services, 40, 7);
            wait(host, services, LIMIT_NS);
            assert_eq!(host.host.epitaphs.total(), 0, "they agree");
            let written_ns = host.host.xen.now_ns();
            publish(services, 41, 8);
            for _ in 0..LIMIT_NS / STEP_NS {
                wait(host, services, STEP_NS);
            }
            let found = host.host.epitaphs.iter().next().expect("an epitaph");
            let (name, reason) = (found.unit.as_str(), found.reason);
            assert_eq!((name, reason), (system::SYSTEM.units[odd].name, Reason::Diverged));
            assert_eq!(found.rung, Rung::Microreboot);
            assert!(found.time_ns - written_ns <= LIMIT_NS, "{found}");
            for unit in replicas.clone() {
                let service = &services[unit];
                assert_eq!(
                    (service.life, service.is_distrusted),
                    if unit == odd { (2, true) } else { (1, false) }
                );
            }
            assert!(all_serve(host, services));
            crash(&machine, DomId(system::SYSTEM.units[odd].domid));
            for _ in 0..LIMIT_NS / STEP_NS {
                wait(host, services, STEP_NS);
            }
            assert_eq!((services[odd].life, services[odd].is_distrusted), (3, false));
            assert_eq!(host.host.epitaphs.total(), 2, "what its former life said counts no more");
        });
    }
}

#[test]
fn nobody_is_named_before_a_majority_lives_and_then_the_best() {
    let mut world = World::new();
    let machine = world.machine.clone();
    for (service, rank) in world.services.iter_mut().zip([5, 7, 6]) {
        service.rank = rank;
    }
    world.boot(|host, services| {
        let is_named = |service: &Service| service.relay > 0;
        assert_eq!(services.each_ref().map(is_named)[..3], [false, true, false]);
        crash(&machine, DomId(2));
        crash(&machine, DomId(3));
        settle(host, services);
        for _ in 0..20 {
            wait(host, services, 1_000_000);
        }
        assert!(all_serve(host, services));
        // Whichever of the two came back first had a better log than the one that lived on.
        let named: Vec<usize> = (0..UNITS).filter(|unit| is_named(&services[*unit])).collect();
        assert_eq!(named, [host.host.store]);
        assert!(services[named[0]].rank > services[STORE].rank);
    });
}

#[test]
fn both_crash_at_once_and_xen_says_it_once() {
    let mut world = World::new();
    let machine = world.machine.clone();
    world.boot(|host, services| {
        crash(&machine, STORE_DOMAIN);
        crash(&machine, TOOL_DOMAIN);
        settle(host, services);
        assert!(all_serve(host, services));
        assert_eq!(lives(host), [2, 2]);
    });
}
