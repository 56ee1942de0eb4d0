use super::*;
use crate::{AGE_NS, MAX_LEARNED, MAX_LEARNED_MEMBER};
use proptest::prelude::*;

const NIC: PortId = PortId(0);
const A: PortId = PortId(1);
const B: PortId = PortId(2);
const TOOL: PortId = PortId(9);

fn mac(last: u8) -> Mac {
    Mac([0, 0x16, 0x3e, 0, 0, last])
}

fn guest(last: u8, vlan: u16) -> PortConfig {
    PortConfig {
        role: Role::Member,
        address: Some(mac(last)),
        vlan: Vlan::Access(vlan),
        rate: None,
    }
}

fn uplink() -> PortConfig {
    PortConfig { role: Role::Uplink, address: None, vlan: Vlan::Trunk, rate: None }
}

fn tool() -> PortConfig {
    PortConfig { role: Role::Member, address: None, vlan: Vlan::Access(0), rate: None }
}

fn header(source: Mac, destination: Mac, vlan: Option<u16>) -> Header {
    Header { destination, source, vlan, ethertype: 0x0800, payload: 14 }
}

fn host() -> Switch {
    let mut switch = Switch::new();
    switch.add(0, NIC, uplink()).unwrap();
    switch.add(0, A, guest(1, 0)).unwrap();
    switch.add(0, B, guest(2, 0)).unwrap();
    switch.add(0, TOOL, tool()).unwrap();
    switch
}

fn ports(targets: Targets) -> Vec<u8> {
    targets.ports.iter().map(|port| port.0).collect()
}

#[test]
fn guest_to_guest_stays_off_the_nic() {
    let mut switch = host();
    let targets = switch.forward(0, A, &header(mac(1), mac(2), None), 60).unwrap();
    assert_eq!(ports(targets), [B.0]);
    assert_eq!(switch.counters(NIC).unwrap().to_frames, 0);
    assert_eq!(switch.counters(B).unwrap().to_bytes, 60);
}

#[test]
fn unknown_addresses_go_to_ports_that_may_hide_them() {
    let mut switch = host();
    let outside = Mac([8, 0, 0, 0, 0, 1]);
    let targets = switch.forward(0, A, &header(mac(1), outside, None), 60).unwrap();
    assert_eq!(ports(targets), [NIC.0, TOOL.0]);
    let broadcast = switch.forward(0, A, &header(mac(1), Mac::BROADCAST, None), 60).unwrap();
    assert_eq!(ports(broadcast), [NIC.0, B.0, TOOL.0]);
    // Once it has spoken, it is found; after a while it is forgotten.
    switch.forward(5, NIC, &header(outside, mac(1), None), 60).unwrap();
    let known = switch.forward(6, A, &header(mac(1), outside, None), 60).unwrap();
    assert_eq!(ports(known), [NIC.0]);
    let later = switch.forward(5 + AGE_NS, A, &header(mac(1), outside, None), 60).unwrap();
    assert_eq!(ports(later), [NIC.0, TOOL.0]);
}

#[test]
fn addresses_cannot_be_taken() {
    let mut switch = host();
    let spoofed = switch.forward(0, A, &header(mac(2), Mac::BROADCAST, None), 60);
    assert_eq!(spoofed, Err(Refusal::Spoofed));
    let group = switch.forward(0, TOOL, &header(Mac::BROADCAST, mac(1), None), 60);
    assert_eq!(group, Err(Refusal::Spoofed));
    let reflected = switch.forward(0, NIC, &header(mac(1), mac(2), None), 60);
    assert_eq!(reflected, Err(Refusal::Reflected));
    assert_eq!(switch.counters(A).unwrap().dropped[Refusal::Spoofed as usize], 1);
    assert_eq!(switch.add(0, PortId(3), guest(1, 0)), Err(PortError::Address(A)));
    assert_eq!(switch.add(0, A, guest(7, 0)), Err(PortError::InUse(A)));
    assert_eq!(switch.learned(), 0);
}

#[test]
fn a_new_guest_takes_its_address_back_from_the_table() {
    let mut switch = host();
    switch.forward(0, NIC, &header(mac(3), mac(1), None), 60).unwrap();
    assert_eq!(switch.learned(), 1);
    switch.add(1, PortId(3), guest(3, 0)).unwrap();
    assert_eq!(switch.learned(), 0);
    let targets = switch.forward(2, A, &header(mac(1), mac(3), None), 60).unwrap();
    assert_eq!(ports(targets), [3]);
}

#[test]
fn vlans_are_apart() {
    let mut switch = host();
    switch.add(0, PortId(3), guest(3, 7)).unwrap();
    switch.add(0, PortId(4), guest(4, 7)).unwrap();
    let own = switch.forward(0, PortId(3), &header(mac(3), mac(4), None), 60).unwrap();
    assert_eq!((ports(own), own.access), (vec![4], TagChange::Keep));
    let other = switch.forward(0, PortId(3), &header(mac(3), mac(1), None), 60).unwrap();
    assert_eq!((ports(other), other.trunk), (vec![NIC.0], TagChange::Insert(7)));
    let inbound = header(Mac([8; 6]), mac(3), Some(7));
    let inbound = switch.forward(0, NIC, &inbound, 60).unwrap();
    assert_eq!((ports(inbound), inbound.access), (vec![3], TagChange::Strip));
    let untagged = switch.forward(0, NIC, &header(Mac([8; 6]), mac(3), None), 60).unwrap();
    assert_eq!(ports(untagged), [TOOL.0], "flooded in VLAN 0 only");
    let hop = switch.forward(0, A, &header(mac(1), mac(3), Some(7)), 60);
    assert_eq!(hop, Err(Refusal::Tagged));
}

#[test]
fn neighbours_talk_is_not_passed_on() {
    let mut switch = host();
    let pause = Mac([0x01, 0x80, 0xc2, 0, 0, 1]);
    assert_eq!(switch.forward(0, A, &header(mac(1), pause, None), 60), Err(Refusal::LinkLocal));
}

#[test]
fn tables_are_bounded() {
    let mut switch = host();
    let address = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        Mac([2, 1, a, b, c, d])
    };
    for number in 0..2 * MAX_LEARNED as u32 {
        switch.forward(0, TOOL, &header(address(number), mac(1), None), 60).unwrap();
    }
    assert_eq!(switch.learned(), MAX_LEARNED_MEMBER);
    for number in 0..2 * MAX_LEARNED as u32 {
        let from = header(address(1 << 20 | number), mac(1), None);
        switch.forward(0, NIC, &from, 60).unwrap();
    }
    assert_eq!(switch.learned(), MAX_LEARNED);
    assert!(switch.counters(NIC).unwrap().unlearned > 0);
    switch.forward(AGE_NS * 2, NIC, &header(address(7 << 20), mac(1), None), 60).unwrap();
    assert_eq!(switch.learned(), 1, "old addresses made room");
    switch.remove(NIC).unwrap();
    assert_eq!(switch.learned(), 0);
}

#[test]
fn a_limited_port_waits() {
    let mut switch = host();
    let rate = Some(Rate { bytes_per_s: 1_000_000, burst_bytes: 1_000 });
    switch.add(0, PortId(3), PortConfig { rate, ..guest(3, 0) }).unwrap();
    assert_eq!(switch.may_send(0, PortId(3)), Ok(()));
    switch.forward(0, PortId(3), &header(mac(3), mac(1), None), 1_500).unwrap();
    assert_eq!(switch.may_send(0, PortId(3)), Err(501_000));
    assert_eq!(switch.may_send(501_000, PortId(3)), Ok(()));
    assert_eq!(switch.may_send(0, A), Ok(()));
}

proptest! {
    #[test]
    fn no_frame_comes_back_or_leaves_its_vlan(
        frames in proptest::collection::vec((0..5_u8, 0..8_u8, 0..9_u8, 0..3_u16), 1..100),
    ) {
        let mut switch = host();
        switch.add(0, PortId(3), guest(3, 1)).unwrap();
        let vlans = [None, Some(0), Some(0), Some(1), Some(0)];
        for (port, source, destination, tag) in frames {
            let from = [NIC, A, B, PortId(3), TOOL][usize::from(port)];
            let destination = if destination == 8 { Mac::BROADCAST } else { mac(destination) };
            let header = header(mac(source), destination, (tag > 0).then(|| tag - 1));
            let Ok(targets) = switch.forward(0, from, &header, 60) else { continue };
            prop_assert!(!targets.ports.contains(from));
            prop_assert!(!targets.ports.is_empty());
            let vlan = vlans[usize::from(port)].unwrap_or(header.vlan.unwrap_or(0));
            for to in targets.ports.iter() {
                let own = match to { PortId(3) => Some(1), NIC => None, _ => Some(0) };
                prop_assert!(own.is_none_or(|own| own == vlan), "{from:?} to {to:?} in {vlan}");
            }
        }
    }
}
