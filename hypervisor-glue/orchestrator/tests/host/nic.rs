//! The NIC of a unit: found, given away, silenced before anything happens to its domain's memory.

use abi::{DomId, Frame, PciAddress, ShutdownReason};
use orchestrator::nic::{self, NicError};
use system::NicModel;

use crate::world::{NET, World, settle, wait};

const NET_DOMAIN: DomId = DomId(4);
const AT: PciAddress = PciAddress { bus: 0, device: 3, function: 0 };
const BASE: u32 = 0xfebc_0000;
const LINE: u32 = 11;
const COMMAND: u8 = 4;
const BUS_MASTER: u32 = 1 << 2;
const RESET: (u64, u32) = (BASE as u64, 1 << 26);

/// Configuration space of an 82574 as the firmware leaves it.
fn intel() -> [u32; 64] {
    let mut words = [0; 64];
    words[0] = 0x10d3_8086;
    words[1] = 7;
    words[4] = BASE;
    words[15] = LINE;
    words
}

/// Configuration space of a modern virtio-net device behind a 64-bit range.
fn virtio() -> [u32; 64] {
    let mut words = [0; 64];
    words[0] = 0x1041_1af4;
    words[1] = 1 << 20;
    (words[8], words[9]) = (0x4000_000c, 0x38);
    words[13] = 0x40;
    words[15] = LINE;
    // Common, interrupt status, device, notification: kind, range 4, offset, length.
    for (number, (kind, offset)) in
        [(1, 0), (3, 0x1000), (4, 0x2000), (2, 0x3000)].iter().enumerate()
    {
        let at = 16 + 5 * number;
        let next = if number < 3 { (at as u32 + 5) * 4 } else { 0 };
        words[at] = kind << 24 | next << 8 | 9;
        (words[at + 1], words[at + 2], words[at + 3]) = (4, *offset, 0x1000);
        words[at + 4] = if *kind == 2 { 4 } else { 0 };
        // Capabilities begin at multiples of four bytes: 20 bytes each.
    }
    words
}

#[test]
fn it_is_given_to_its_unit_and_may_master_the_bus_when_it_is_reset() {
    let mut world = World::new();
    let machine = world.machine.clone();
    machine.add_pci(AT, intel());
    world.boot(|host, _| {
        assert!(host.host.units[NET].nic.is_some());
        assert_eq!(machine.device_memory_of(NET_DOMAIN), [(Frame(u64::from(BASE) >> 12), 32)]);
        assert_eq!(machine.lines_of(NET_DOMAIN), [LINE]);
        assert_eq!(machine.written_registers(), [RESET], "the firmware's work ends first");
        assert_ne!(machine.pci_word(AT, COMMAND).unwrap() & BUS_MASTER, 0);
    });
    let printed = world.machine.take_printed();
    assert!(printed.contains("net-uk drives e1000e at 00:03.0, line 11; DMA protection: none"));
}

#[test]
fn it_is_silent_while_its_unit_is_away_on_every_rung() {
    let mut world = World::new();
    let machine = world.machine.clone();
    machine.add_pci(AT, intel());
    world.boot(|host, services| {
        for failures in 1..=5 {
            machine.shut_down(NET_DOMAIN, ShutdownReason::Crash);
            host.host.poll();
            assert!(machine.written_registers().len() > failures, "it is reset by each failure");
            settle(host, services);
            // Recoveries in a row wait longer and longer.
            for _ in 0..30 {
                if !host.host.supervisor.is_serving(NET) {
                    wait(host, services, 50_000_000);
                }
            }
            assert!(host.host.supervisor.is_serving(NET));
            assert_ne!(machine.pci_word(AT, COMMAND).unwrap() & BUS_MASTER, 0);
            assert_eq!(machine.lines_of(NET_DOMAIN), [LINE], "a domain built again has it, too");
        }
    });
}

#[test]
fn a_host_without_a_nic_serves() {
    let mut world = World::new();
    world.boot(|host, _| {
        assert!(host.host.units[NET].nic.is_none() && host.host.supervisor.is_serving(NET));
    });
}

#[test]
fn windows_of_virtio_are_found_and_told() {
    let machine = World::new().machine;
    machine.add_pci(AT, virtio());
    let xen = machine.domain(DomId::ORCHESTRATOR);
    let models = [NicModel::E1000e, NicModel::VirtioNet];
    let nic = nic::find(&xen, &models).unwrap().unwrap();
    let mut line = String::new();
    nic.tell(&mut line).unwrap();
    assert_eq!(line, " nic=virtio-net,3840000,4,b,0,1000,2000,3000,4");
    nic.silence(&xen).unwrap();
    assert_eq!(machine.written_registers(), [(0x38_4000_0014, 0)]);
    assert_eq!(machine.pci_word(AT, COMMAND).unwrap() & BUS_MASTER, 0);
}

#[test]
fn what_cannot_be_used_is_named() {
    let find = |words: [u32; 64], model| {
        let machine = World::new().machine;
        machine.add_pci(AT, words);
        nic::find(&machine.domain(DomId::ORCHESTRATOR), &[model])
    };
    let mut words = intel();
    words[4] = 0;
    assert_eq!(find(words, NicModel::E1000e), Err(NicError::NoAddress(AT)));
    assert_eq!(find(words, NicModel::VirtioNet), Ok(None));
    let mut words = virtio();
    words[17] = 2;
    assert_eq!(find(words, NicModel::VirtioNet), Err(NicError::NoWindows(AT)));
    words[1] = 0;
    assert_eq!(find(words, NicModel::VirtioNet), Err(NicError::NoWindows(AT)));
}

#[test]
fn it_is_found_behind_a_bridge() {
    let machine = World::new().machine;
    let behind = PciAddress { bus: 2, device: 5, function: 0 };
    let mut bridge = [0; 64];
    (bridge[0], bridge[3], bridge[6]) = (0x1234_8086, 1 << 16, 2 << 8);
    machine.add_pci(AT, bridge);
    machine.add_pci(behind, intel());
    let xen = machine.domain(DomId::ORCHESTRATOR);
    let nic = nic::find(&xen, &[NicModel::E1000e]).unwrap().unwrap();
    assert_eq!(nic.at, behind);
}
