//! The loop on a fake Xen.

use abi::{Control, CreateDomain};
use fabric::HeapMemory;
use fabric::control::ControlWriter;
use fabric::health::HealthReader;
use fake_xen::{FakeXen, Machine};

use super::*;

/// Time between two turns of a service's own work.
const TURN_NS: u64 = 1_000_000;

/// A service that nobody asks for anything, with work of its own.
struct Alone;

impl<M: SharedMemory + Copy> Work<M> for Alone {
    fn kick(&mut self, _: Option<u16>, _: u64, _: &mut Outbox<M>) {}

    fn step(&mut self, _: u64, _: &mut Outbox<M>) -> Step {
        Step::default()
    }

    fn idle(&mut self, now_ns: u64) -> Option<u64> {
        Some(now_ns + TURN_NS)
    }

    fn dump(&self, _: u64) {}
}

fn unit(machine: &Machine) -> FakeXen {
    let what = CreateDomain {
        pvh: false,
        vcpus: 1,
        max_memory_kib: 64,
        max_port: 1023,
        grant_frames: 1,
        maptrack_frames: 1,
    };
    let orchestrator = machine.domain(DomId::ORCHESTRATOR);
    orchestrator.create_domain(DomId(1), &what).unwrap();
    orchestrator.alloc_port_for(DomId(1), DomId::ORCHESTRATOR).unwrap();
    machine.domain(DomId(1))
}

#[test]
fn each_turn_of_a_services_own_work_is_progress() {
    let machine = Machine::new();
    let xen = unit(&machine);
    let page = || HeapMemory::new(4096);
    let (health, control, kicks) = (page(), page(), page());
    let writer = ControlWriter::new(&control);
    writer.initialise(7);
    writer.set_life(1, Rung::First, false);
    let regions = Regions { health: &health, control: &control, kicks: &kicks };
    let mut service = Service::start(&xen, regions).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        service.round(&mut Alone);
        seen.push(HealthReader::new(&health).read().unwrap().progress);
    }
    assert_eq!(seen, [1, 2, 3]);
    assert_eq!(xen.now_ns(), 3 * TURN_NS);
}
