//! The trials, one after the other; each prints a line, the first wrong one panics.

use alloc::vec::Vec;
use core::fmt::Write;

use abi::{
    Access, Control, CreateDomain, DomId, DomainState, Frame, HvmEntry, PAGE_SIZE, PortStatus,
    Registers, ShutdownReason, Xen, XenError,
};
use fabric::SharedMemory;
use glue_test::{answer, command};
use runtime::{Boot, Console};

use crate::bench::Bench;
use crate::user_trials;

/// A PVH guest that does nothing: only its memory and grants matter.
const GUEST: DomId = DomId(16);
const GUEST_PAGES: usize = 1024;
const LARGE_PAGES: u64 = 16384;
const GRANTED_PAGE: u64 = 7;
const REFERENCE: u32 = 9;
const MARK: u64 = 0x1122_3344_5566_7788;

macro_rules! say {
    ($($words:tt)*) => {{ let _ = writeln!(Console, $($words)*); }};
}

pub fn first(boot: Boot) -> ! {
    let mut bench = Bench::new(&boot);
    say!("start: {} ns", bench.build());
    say!("ports: {:?}", bench.ports());
    device(&bench);
    resets(&mut bench);
    crashes(&mut bench);
    user_trials::all(&mut bench);
    guest(&mut bench);
    long_call(&bench);
    rebuild(&mut bench);
    mapping_speed(&bench);
    panic!("the orchestrator panics on purpose")
}

/// Goes on in later lives: the service is untouched, all mappings are gone.
pub fn recovered(boot: Boot) -> ! {
    let xen = boot.hypervisor();
    let failure = boot.failure().expect("a later life has a reason");
    let service = DomId(glue_test::SERVICE);
    let info = xen.domain_info(service).expect("known").expect("the service lives on");
    if failure.as_str().contains("on purpose") {
        assert_eq!(info.state, DomainState::Alive);
        let shared = xen.map_foreign(service, &[info.shared_info], Access::ReadOnly);
        shared.expect("a page of the service").store_u64(0, 0);
    }
    if failure.as_str().contains("trap 14") {
        let mut frames = [Frame(0); 64];
        xen.create_domain(GUEST, &large_guest()).expect("room for a guest");
        xen.set_timer(Some(xen.now_ns() + 20_000));
        let mut during = || panic!("a panic in the middle of a long call");
        xen.populate(GUEST, 4, &mut frames, &mut during).expect("memory");
    }
    if !failure.as_str().contains("a long call") {
        xen.machine_exit(runtime::EXIT_TESTS_FAILED);
    }
    for id in [GUEST, service] {
        xen.pause(id).expect("exists");
        xen.destroy_domain(id, &mut || ()).expect("exists");
        // Pages of the service were mapped when the former lives ended: no zombie is left.
        assert_eq!(xen.domain_info(id), Ok(None), "nothing holds {id} back");
    }
    say!("glue-test passed");
    xen.machine_exit(runtime::EXIT_PASSED)
}

/// A PVH guest of 64 MiB.
fn large_guest() -> CreateDomain {
    CreateDomain {
        pvh: true,
        vcpus: 1,
        max_memory_kib: LARGE_PAGES * 4,
        max_port: 63,
        grant_frames: 4,
        maptrack_frames: 4,
    }
}

/// The text screen's memory: the initial domain may use it.
fn device(bench: &Bench) {
    const TEXT_SCREEN: Frame = Frame(0xb8);
    let screen = bench.xen.map_device(TEXT_SCREEN, 8).expect("the initial domain may");
    screen.store_u32(8, 0x0741_0742);
    assert_eq!(screen.load_u32(8), 0x0741_0742);
    drop(screen);
    // The local APIC is Xen's.
    assert!(bench.xen.map_device(Frame(0xfee00), 1).is_err());
}

fn resets(bench: &mut Bench) {
    for count in 1..=20 {
        assert_eq!(bench.ask(command::COUNT, 0, 0), count);
    }
    let mut slowest = 0;
    for round in 0..50 {
        slowest = slowest.max(bench.reset(1));
        assert_eq!(bench.fabric.load_u64(answer::LIFE), 1);
        assert_eq!(bench.fabric.load_u64(answer::SURVIVED), 1, "round {round}");
        assert_eq!(bench.ask(command::COUNT, 0, 0), 21 + round);
    }
    say!("microreset: state kept 50 times, slowest {slowest} ns");
    let free = bench.ask(command::ALLOCATE, 0, 0);
    let took = bench.reset(2);
    assert_eq!(bench.fabric.load_u64(answer::LIFE), 2);
    assert_eq!(bench.fabric.load_u64(answer::SURVIVED), 0);
    assert_eq!(bench.ask(command::COUNT, 0, 0), 1);
    say!("microreboot: {took} ns; heap had {free} bytes free");
    for looping in [command::LOOP, command::LOOP_CHANGING] {
        bench.ask(command::COUNT, 0, 0);
        bench.tell(looping, 0, 0);
        spin(bench, 2_000_000);
        let running = bench.xen.registers(bench.service()).expect("known");
        bench.withdraw();
        let took = bench.reset(1);
        let survived = bench.fabric.load_u64(answer::SURVIVED);
        assert_eq!(survived, u64::from(looping == command::LOOP));
        say!("hang at {:#x}: reset in {took} ns, state kept: {survived}", running.rip);
    }
}

/// Lets the service run for a while.
pub fn spin(bench: &Bench, ns: u64) {
    let end_ns = bench.xen.now_ns() + ns;
    bench.xen.set_timer(Some(end_ns));
    while bench.xen.now_ns() < end_ns {
        while bench.xen.next_event().is_some() {}
        bench.xen.block();
    }
}

fn crashes(bench: &mut Bench) {
    for how in [command::PANIC, command::WRITE_READ_ONLY, command::OVERFLOW] {
        bench.tell(how, 4711, 0);
        let state = bench.await_death();
        assert_eq!(state, DomainState::Shutdown(ShutdownReason::Crash));
        let mut words = [0; 240];
        let len = bench.last_words(&mut words);
        let words = core::str::from_utf8(&words[..len]).expect("text");
        if how != command::OVERFLOW {
            let mut text = [0; 240];
            let len = bench.text_by_registers(&mut text);
            assert_eq!(words.as_bytes(), &text[..len]);
        }
        bench.withdraw();
        let took = bench.reset(1);
        say!("crash {how}: {words:?}; reset in {took} ns");
        assert_eq!(words.is_empty(), how == command::OVERFLOW);
        bench.ask(command::COUNT, 0, 0);
    }
    // An instruction pointer that points nowhere, set from outside, while the service runs: one
    // that waits drops the frame it would return to.
    let (xen, service) = (bench.xen, bench.service());
    bench.tell(command::LOOP, 0, 0);
    spin(bench, 1_000_000);
    xen.pause(service).expect("exists");
    let registers = xen.registers(service).expect("known");
    xen.set_registers(service, &Registers { rip: 0x10, ..registers }).expect("paused");
    xen.unpause(service).expect("paused");
    assert_eq!(bench.await_death(), DomainState::Shutdown(ShutdownReason::Crash));
    let mut words = [0; 240];
    let len = bench.last_words(&mut words);
    say!("wild jump: {:?}", core::str::from_utf8(&words[..len]));
    bench.withdraw();
    bench.reset(2);
}

fn guest(bench: &mut Bench) {
    let xen = bench.xen;
    let what = CreateDomain {
        pvh: true,
        vcpus: 1,
        max_memory_kib: GUEST_PAGES as u64 * 4,
        max_port: 63,
        grant_frames: 4,
        maptrack_frames: 4,
    };
    xen.create_domain(GUEST, &what).expect("room for a guest");
    assert_eq!(xen.create_domain(GUEST, &what), Err(XenError::Exists));
    let mut frames: Vec<Frame> = (0..GUEST_PAGES as u64 / 16).map(|n| Frame(n * 16)).collect();
    xen.populate(GUEST, 4, &mut frames, &mut || ()).expect("memory");
    let page = xen.map_foreign(GUEST, &[Frame(GRANTED_PAGE)], Access::ReadWrite).expect("exists");
    page.store_u64(0, MARK);
    let table = xen.map_grant_table(GUEST).expect("exists");
    let entry = REFERENCE as usize * 8;
    table.store_u32(entry + 4, GRANTED_PAGE as u32);
    table.store_u32(entry, 1 | u32::from(glue_test::SERVICE) << 16);
    drop(table);
    assert_eq!(bench.ask(command::MAP, 16, REFERENCE.into()), MARK);
    assert_eq!(bench.ask(command::MAP, 16, 5), u64::MAX - 1, "reference 5 is not granted");
    page.store_u64(0, MARK + 1);
    assert_eq!(bench.ask(command::READ, 0, 0), MARK + 1);
    bench.reset(1);
    assert_eq!(bench.ask(command::READ, 0, 0), MARK + 1, "the mapping survives rung 1");
    bench.reset(2);
    assert_eq!(bench.ask(command::READ, 0, 0), u64::MAX, "its owner does not survive rung 2");
    assert_eq!(bench.ask(command::MAP, 16, REFERENCE.into()), MARK + 1, "adopted");
    bench.ask(command::UNMAP, 0, 0);
    bench.ask(command::MAP, 16, REFERENCE.into());
    bench.reset(2);
    bench.ask(command::DROP_ORPHANS, 0, 0);
    churn(bench);
    torn(bench);
    guest_falls(bench);
    drop(page);
    xen.destroy_domain(GUEST, &mut || ()).expect("exists");
    assert_eq!(xen.domain_info(GUEST), Ok(None), "nobody holds its pages");
    say!("grants: mapped, survived rung 1, adopted after rung 2, dropped");
}

/// A life that ends in a change of what it owns leaves mappings that the next one can drop.
fn torn(bench: &mut Bench) {
    for is_wanted_again in [true, false] {
        assert_eq!(bench.ask(command::MAP, GUEST.0.into(), REFERENCE.into()), MARK + 1);
        bench.tell(command::LOOP_TORN, 0, 0);
        spin(bench, 1_000_000);
        bench.withdraw();
        bench.reset(1);
        assert_eq!(bench.fabric.load_u64(answer::SURVIVED), 0, "the state was not whole");
        assert_eq!(bench.ask(command::READ, 0, 0), u64::MAX, "its owner is gone");
        if is_wanted_again {
            assert_eq!(bench.ask(command::MAP, GUEST.0.into(), REFERENCE.into()), MARK + 1);
        }
        bench.ask(command::DROP_ORPHANS, 0, 0);
        bench.ask(command::UNMAP, 0, 0);
    }
}

/// Lives that end anywhere: in the allocator, in a hypercall, in the middle of a change.
fn churn(bench: &mut Bench) {
    const LIVES: u64 = 300;
    const MOST_NS: u64 = 60_000;
    /// On the real clock of a loaded machine a life takes up to half a second.
    const TIME_NS: u64 = 10_000_000_000;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let (mut lives, mut kept) = (0, 0);
    let end_ns = bench.xen.now_ns() + TIME_NS;
    while lives < LIVES && bench.xen.now_ns() < end_ns {
        lives += 1;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        bench.tell(command::CHURN, GUEST.0.into(), REFERENCE.into());
        spin(bench, 1_000 + random % MOST_NS);
        bench.withdraw();
        bench.reset(if random.is_multiple_of(5) { 2 } else { 1 });
        kept += bench.fabric.load_u64(answer::SURVIVED);
        assert_eq!(bench.ask(command::MAP, GUEST.0.into(), REFERENCE.into()), MARK + 1);
        bench.ask(command::DROP_ORPHANS, 0, 0);
    }
    bench.ask(command::UNMAP, 0, 0);
    bench.reset(2);
    bench.ask(command::DROP_ORPHANS, 0, 0);
    assert!(0 < kept && kept < lives, "{kept} of {lives} lives kept their state");
    say!("churn: {lives} lives ended anywhere, {kept} kept their state");
}

/// The guest starts, at an invalid instruction, and falls: a triple fault is a crash.
fn guest_falls(bench: &Bench) {
    let xen = bench.xen;
    let code = xen.map_foreign(GUEST, &[Frame(16)], Access::ReadWrite).expect("exists");
    code.write(0, &[0x0f, 0x0b]);
    drop(code);
    xen.enter_hvm(GUEST, &HvmEntry { rip: 0x1_0000, start_info: 0x2000 }).expect("entered");
    let port = xen.alloc_port_for(GUEST, DomId::ORCHESTRATOR).expect("a port");
    let status = xen.port_status(GUEST, port).expect("known");
    assert_eq!(status, PortStatus::Unbound(DomId::ORCHESTRATOR));
    let ours = xen.bind_interdomain(GUEST, port).expect("unbound");
    let status = xen.port_status(DomId::SELF, ours).expect("known");
    assert_eq!(status, PortStatus::Interdomain(GUEST, port));
    xen.close(ours).expect("ours");
    xen.unpause(GUEST).expect("paused");
    let fallen = bench.until(|bench| {
        let info = bench.xen.domain_info(GUEST).expect("known").expect("exists");
        info.state == DomainState::Shutdown(ShutdownReason::Crash)
    });
    assert!(fallen, "{:?}", xen.domain_info(GUEST));
    assert_eq!(xen.registers(GUEST).expect("known").rip, 0x1_0000);
}

/// While a large guest is populated and destroyed, a crash of the service is seen at once.
fn long_call(bench: &Bench) {
    const EVERY_NS: u64 = 200_000;
    let xen = bench.xen;
    xen.create_domain(GUEST, &large_guest()).expect("room for a guest");
    let mut frames: Vec<Frame> = (0..LARGE_PAGES / 16).map(|n| Frame(n * 16)).collect();
    let (mut calls, mut latest_ns) = (0u32, 0);
    let mut due_ns = xen.now_ns() + EVERY_NS;
    xen.set_timer(Some(due_ns));
    let mut during = || {
        while xen.next_event().is_some() {}
        let now_ns = xen.now_ns();
        if now_ns >= due_ns {
            calls += 1;
            latest_ns = latest_ns.max(now_ns - due_ns);
            due_ns = now_ns + EVERY_NS;
            xen.set_timer(Some(due_ns));
        }
    };
    let start_ns = xen.now_ns();
    xen.populate(GUEST, 4, &mut frames, &mut during).expect("memory");
    let populated_ns = xen.now_ns() - start_ns;
    xen.destroy_domain(GUEST, &mut during).expect("exists");
    let took_ns = xen.now_ns() - start_ns;
    assert!(calls > 5, "only {calls} upcalls in {took_ns} ns");
    say!(
        "64 MiB: populated in {populated_ns} ns, destroyed after {took_ns} ns, \
         {calls} upcalls, latest {latest_ns} ns"
    );
}

fn rebuild(bench: &mut Bench) {
    bench.destroy();
    assert_eq!(bench.xen.domain_info(bench.service()), Ok(None));
    let status = bench.xen.port_status(DomId::SELF, bench.doorbell).expect("known");
    assert_eq!(status, PortStatus::Unbound(bench.service()), "the port falls back to unbound");
    let took = bench.build();
    assert_eq!(bench.ask(command::COUNT, 0, 0), 1);
    say!("rebuild: {took} ns");
}

fn mapping_speed(bench: &Bench) {
    const COUNT: usize = 256;
    let xen = bench.xen;
    let info = xen.domain_info(bench.service()).expect("known").expect("exists");
    assert!(info.pages >= COUNT as u64);
    let frames = bench.free_frames(COUNT);
    let start_ns = xen.now_ns();
    let mapping = xen.map_foreign(bench.service(), frames, Access::ReadWrite).expect("maps");
    let mapped_ns = xen.now_ns();
    let mut bytes = [0; PAGE_SIZE];
    for page in 0..COUNT {
        mapping.read(page * PAGE_SIZE, &mut bytes);
    }
    let read_ns = xen.now_ns();
    for page in 0..COUNT {
        mapping.write(page * PAGE_SIZE, &bytes);
    }
    let written_ns = xen.now_ns();
    drop(mapping);
    let end_ns = xen.now_ns();
    say!(
        "{COUNT} pages: map {} ns, read {} ns, write {} ns, unmap {} ns",
        mapped_ns - start_ns,
        read_ns - mapped_ns,
        written_ns - read_ns,
        end_ns - written_ns
    );
    let null = xen.now_ns();
    for _ in 0..100 {
        let _ = xen.port_status(DomId::SELF, bench.doorbell);
    }
    say!("port_status: {} ns", (xen.now_ns() - null) / 100);
    bench.ask(command::COUNT, 0, 0);
    let start_ns = xen.now_ns();
    for _ in 0..100 {
        bench.ask(command::COUNT, 0, 0);
    }
    say!("question and answer: {} ns", (xen.now_ns() - start_ns) / 100);
    // Left mapped on purpose: the next life must not find the service held back by it.
    core::mem::forget(xen.map_foreign(bench.service(), frames, Access::ReadOnly));
}
