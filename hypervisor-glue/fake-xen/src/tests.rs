//! The rules of Xen that PpVMM relies on.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use abi::{
    Access, Control, CreateDomain, DomId, DomainState, Frame, GrantRef, HvmEntry, PortStatus,
    PvEntry, Registers, ShutdownReason, Virq, Xen, XenError,
};
use fabric::SharedMemory;

use crate::{Call, DomainEnded, FakeXen, Fault, GARBAGE, Machine, POISON, VcpuState};

const SERVICE: DomId = DomId(1);
const GUEST: DomId = DomId(16);

fn what(pvh: bool) -> CreateDomain {
    CreateDomain {
        pvh,
        vcpus: 1,
        max_memory_kib: 64,
        max_port: 7,
        grant_frames: 1,
        maptrack_frames: 1,
    }
}

fn host() -> (Machine, FakeXen) {
    let machine = Machine::with_fabric(4);
    let xen = machine.domain(DomId::ORCHESTRATOR);
    xen.create_domain(SERVICE, &what(false)).unwrap();
    xen.create_domain(GUEST, &what(true)).unwrap();
    (machine, xen)
}

fn populated(xen: &FakeXen, id: DomId) -> Vec<Frame> {
    let mut frames: Vec<Frame> = (0..8).map(Frame).collect();
    xen.populate(id, 0, &mut frames, &mut || ()).unwrap();
    frames
}

#[test]
fn a_mapping_is_the_page_itself() {
    let (machine, xen) = host();
    let frames = populated(&xen, SERVICE);
    let mapping = xen.map_foreign(SERVICE, &[frames[3], frames[1]], Access::ReadWrite).unwrap();
    assert_eq!(mapping.load_u32(0), u32::from_le_bytes([GARBAGE; 4]));
    mapping.write(4094, b"abcd");
    let mut seen = [0; 2];
    machine.read_page(SERVICE, frames[1], 0, &mut seen);
    assert_eq!(&seen, b"cd");
    machine.write_page(SERVICE, frames[3], 8, &7u64.to_le_bytes());
    assert_eq!(mapping.load_u64(8), 7);
    let bad = xen.map_foreign(SERVICE, &[Frame(1)], Access::ReadOnly);
    assert_eq!(bad.err(), Some(XenError::Invalid));
}

#[test]
fn a_mapped_page_keeps_a_zombie_and_its_domid() {
    let (machine, xen) = host();
    let frames = populated(&xen, SERVICE);
    let mapping = xen.map_foreign(SERVICE, &frames[..2], Access::ReadOnly).unwrap();
    xen.destroy_domain(SERVICE, &mut || ()).unwrap();
    assert_eq!(mapping.load_u32(0), u32::from_le_bytes([POISON; 4]));
    assert_eq!(xen.domain_info(SERVICE).unwrap().unwrap().state, DomainState::Dying);
    assert_eq!(xen.create_domain(SERVICE, &what(false)), Err(XenError::Exists));
    assert_eq!(machine.mapped_pages_of(SERVICE), 2);
    drop(mapping);
    assert_eq!(xen.domain_info(SERVICE), Ok(None));
    xen.create_domain(SERVICE, &what(false)).unwrap();
}

#[test]
fn grants_are_checked_and_survive_their_entry() {
    let (machine, xen) = host();
    let service = machine.domain(SERVICE);
    populated(&xen, GUEST);
    machine.write_page(GUEST, Frame(2), 0, &9u64.to_le_bytes());
    let reference = [GrantRef(5)];
    machine.grant(GUEST, reference[0], SERVICE, Frame(2), Access::ReadOnly);
    let denied = service.map_grants(GUEST, &reference, Access::ReadWrite);
    assert_eq!(denied.err(), Some(XenError::Grant(-1)));
    let mapping = service.map_grants(GUEST, &reference, Access::ReadOnly).unwrap();
    assert_eq!(mapping.load_u64(0), 9);
    let table = xen.map_grant_table(GUEST).unwrap();
    table.fill(0, 4096, 0);
    drop(table);
    assert_eq!(mapping.load_u64(0), 9, "a mapping outlives the entry");
    let gone = service.map_grants(GUEST, &reference, Access::ReadOnly);
    assert_eq!(gone.err(), Some(XenError::Grant(-1)));
    xen.destroy_domain(GUEST, &mut || ()).unwrap();
    assert!(machine.exists(GUEST), "a zombie");
    xen.destroy_domain(SERVICE, &mut || ()).unwrap();
    assert!(!machine.exists(GUEST), "the mapper's death frees it");
    drop(mapping);
    xen.create_domain(SERVICE, &what(false)).unwrap();
    let nobody = service.map_grants(DomId(99), &reference, Access::ReadOnly);
    assert_eq!(nobody.err(), Some(XenError::Grant(-2)));
}

#[test]
fn the_fabric_has_one_writer_per_page() {
    let (machine, xen) = host();
    let service = machine.domain(SERVICE);
    xen.grant_fabric(GrantRef(100), SERVICE, 2, Access::ReadWrite);
    xen.grant_fabric(GrantRef(101), SERVICE, 0, Access::ReadOnly);
    let only_first = |page| if page == 0 { Access::ReadWrite } else { Access::ReadOnly };
    let view = service.map_fabric(GrantRef(100), 2, only_first).unwrap();
    view.store_u64(8, 1);
    assert_eq!(xen.fabric().load_u64(2 * 4096 + 8), 1);
    xen.fabric().store_u32(0, 5);
    assert_eq!(view.load_u32(4096), 5);
    assert!(catch_unwind(AssertUnwindSafe(|| view.store_u32(4096, 6))).is_err());
    let greedy = service.map_fabric(GrantRef(100), 2, |_| Access::ReadWrite);
    assert_eq!(greedy.err(), Some(XenError::Grant(-1)));
}

#[test]
fn a_port_falls_back_to_unbound_when_its_other_end_dies() {
    let (machine, xen) = host();
    let service = machine.domain(SERVICE);
    let port = xen.alloc_unbound(SERVICE).unwrap();
    let theirs = service.bind_interdomain(DomId(0), port).unwrap();
    assert_eq!(service.next_event(), Some(theirs), "bound pending");
    xen.send(port).unwrap();
    xen.send(port).unwrap();
    assert_eq!(service.next_event(), Some(theirs));
    assert_eq!(service.next_event(), None, "events coalesce");
    xen.destroy_domain(SERVICE, &mut || ()).unwrap();
    assert_eq!(xen.port_status(DomId::SELF, port), Ok(PortStatus::Unbound(SERVICE)));
    xen.send(port).unwrap();
    xen.create_domain(SERVICE, &what(false)).unwrap();
    machine.domain(SERVICE).bind_interdomain(DomId(0), port).unwrap();
    assert_eq!(machine.domain(GUEST).bind_virq(Virq::DomExc), Err(XenError::NotPermitted));
}

#[test]
fn deaths_are_announced_and_coalesce() {
    let (machine, xen) = host();
    let port = xen.bind_virq(Virq::DomExc).unwrap();
    let ended =
        catch_unwind(AssertUnwindSafe(|| machine.domain(SERVICE).shutdown(ShutdownReason::Crash)));
    let ended = ended.unwrap_err().downcast::<DomainEnded>().unwrap();
    assert_eq!(*ended, DomainEnded { id: SERVICE, reason: ShutdownReason::Crash });
    machine.shut_down(GUEST, ShutdownReason::PowerOff);
    assert_eq!(xen.next_event(), Some(port));
    assert_eq!(xen.next_event(), None);
    let state = xen.domain_info(SERVICE).unwrap().unwrap().state;
    assert_eq!(state, DomainState::Shutdown(ShutdownReason::Crash));
    xen.resume(SERVICE).unwrap();
    assert_eq!(xen.domain_info(SERVICE).unwrap().unwrap().state, DomainState::Alive);
}

#[test]
fn blocking_moves_the_clock_to_the_timer() {
    let (machine, xen) = host();
    let timer = xen.bind_virq(Virq::Timer).unwrap();
    xen.set_timer(Some(1_000));
    xen.block();
    assert_eq!((xen.now_ns(), xen.next_event()), (1_000, Some(timer)));
    xen.set_timer(Some(2_000));
    machine.advance(999);
    assert_eq!(xen.next_event(), None);
    machine.advance(1);
    assert_eq!(xen.next_event(), Some(timer));
    xen.set_timer(Some(5));
    assert_eq!(xen.next_event(), Some(timer), "a time that has passed fires at once");
}

#[test]
fn vcpus_are_set_only_while_they_cannot_run() {
    let (machine, xen) = host();
    let frames = populated(&xen, SERVICE);
    let entry = PvEntry { rip: 0x10_0000, rsp: 8, start_info: 16, rung: 1, page_table: frames[7] };
    assert_eq!(xen.enter_pv(SERVICE, &entry), Err(XenError::Invalid), "not pinned");
    let table = xen.map_foreign(SERVICE, &frames[7..], Access::ReadWrite).unwrap();
    let pin = xen.pin_top_table(SERVICE, frames[7], &mut || ());
    assert_eq!(pin, Err(XenError::Invalid), "a table must not be mapped writable");
    drop(table);
    xen.pin_top_table(SERVICE, frames[7], &mut || ()).unwrap();
    xen.enter_pv(SERVICE, &entry).unwrap();
    xen.unpause(SERVICE).unwrap();
    assert_eq!(xen.unpause(SERVICE), Err(XenError::Invalid), "pauses nest");
    assert_eq!(xen.reset_vcpu(SERVICE), Err(XenError::Busy));
    xen.pause(SERVICE).unwrap();
    let registers = xen.registers(SERVICE).unwrap();
    assert_eq!((registers.rip, registers.rdx), (0x10_0000, 1));
    xen.set_registers(SERVICE, &Registers { rip: 1, ..registers }).unwrap();
    assert_eq!(xen.registers(SERVICE).unwrap().rip, 1);
    xen.reset_vcpu(SERVICE).unwrap();
    assert_eq!(machine.vcpu(SERVICE), VcpuState::Clear);
    xen.enter_hvm(GUEST, &HvmEntry { rip: 5, start_info: 6 }).unwrap();
    assert_eq!(xen.registers(GUEST).unwrap().rbx, 6);
}

#[test]
fn any_call_fails_on_demand() {
    let (machine, xen) = host();
    machine.fail(Fault { call: Call::Pause, after: 1, error: XenError::NoMemory });
    assert_eq!(xen.pause(SERVICE), Ok(()));
    assert_eq!(xen.pause(SERVICE), Err(XenError::NoMemory));
    assert_eq!(xen.pause(SERVICE), Ok(()));
    assert_eq!(machine.calls(Call::Pause), 3);
    assert_eq!(machine.pauses(SERVICE), 3, "one from its creation, two of ours");
    let service = machine.domain(SERVICE);
    assert_eq!(service.pause(GUEST), Err(XenError::NotPermitted));
}

#[test]
fn a_death_in_the_middle_of_a_long_call_is_seen_there() {
    let (machine, xen) = host();
    xen.bind_virq(Virq::DomExc).unwrap();
    let killed = Cell::new(false);
    machine.hook(move |machine| {
        if !killed.replace(true) {
            machine.shut_down(SERVICE, ShutdownReason::Crash);
        }
    });
    let seen = Rc::new(Cell::new(0));
    let inner = (xen.clone(), seen.clone());
    let mut frames: Vec<Frame> = (0..8).map(Frame).collect();
    let mut during = move || {
        while inner.0.next_event().is_some() {
            inner.1.set(inner.1.get() + 1);
        }
    };
    xen.populate(GUEST, 0, &mut frames, &mut during).unwrap();
    assert_eq!(seen.get(), 1);
    let too_much = xen.populate(GUEST, 4, &mut [Frame(16)], &mut during);
    assert_eq!(too_much, Err(XenError::NoMemory), "64 KiB are the limit");
}

#[test]
fn the_console_prints_and_listens() {
    let (machine, xen) = host();
    let keyboard = xen.bind_virq(Virq::Console).unwrap();
    xen.console_write(b"hello");
    assert_eq!(machine.take_printed(), "hello");
    machine.type_keys(b"sq");
    assert_eq!(xen.next_event(), Some(keyboard));
    let mut keys = [0; 8];
    assert_eq!(xen.console_read(&mut keys), 2);
    assert_eq!(&keys[..2], b"sq");
    xen.set_watchdog(Some(3)).unwrap();
    assert_eq!(machine.watchdog(), Some(3));
}
