//! The service of the test: does what it is told, and dies of it when it must.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod user;

use alloc::vec::Vec;
use core::hint::black_box;

use abi::{Access, DomId, GrantRef, Port, ShutdownReason, Xen};
use fabric::SharedMemory;
use glue_test::{FIRST_REFERENCE, PAGES, answer, command, question};
use runtime::{Boot, FabricMemory, Hypervisor, Life, Mapping, Survivor};

use crate::user::Contained;

runtime::service!(start, user_mode);

/// What a microreset keeps.
#[derive(Default)]
struct State {
    count: u64,
    numbers: Vec<u64>,
    mapping: Option<Mapping>,
    /// A change began and has not ended.
    is_torn: bool,
}

static STATE: Survivor<State> = Survivor::new();

fn last_words(fabric: &FabricMemory, text: &str) {
    fabric.write(answer::WORDS, text.as_bytes());
    fabric.store_u64(answer::WORDS_LEN, text.len() as u64);
}

fn view(xen: &Hypervisor) -> FabricMemory {
    let access = |page| if page == 1 { Access::ReadOnly } else { Access::ReadWrite };
    xen.map_fabric(GrantRef(FIRST_REFERENCE), PAGES, access).expect("the fabric is granted")
}

fn start(boot: Boot) -> ! {
    let xen = boot.hypervisor();
    let fabric = view(&xen);
    xen.set_last_words(fabric, last_words);
    let survived = STATE.recover_if(|state| !state.is_torn);
    if !survived {
        STATE.put(State::default());
    }
    let doorbell = match boot.life() {
        Life::First => {
            let remote = boot.argument("doorbell").and_then(|port| port.parse().ok());
            xen.bind_interdomain(DomId::ORCHESTRATOR, Port(remote.expect("a doorbell port")))
                .expect("the doorbell is free")
        }
        Life::Microreset | Life::Microreboot => {
            xen.raise_all();
            Port(fabric.load_u32(answer::DOORBELL))
        }
    };
    fabric.store_u32(answer::DOORBELL, doorbell.0);
    fabric.store_u64(answer::SURVIVED, u64::from(survived));
    fabric.store_u64(answer::LIFE, boot.life() as u64);
    fabric.store_u64(answer::STARTS, fabric.load_u64(answer::STARTS) + 1);
    xen.send(doorbell).expect("the doorbell is bound");
    serve(&xen, &fabric, doorbell)
}

fn serve(xen: &Hypervisor, fabric: &FabricMemory, doorbell: Port) -> ! {
    let mut contained = None;
    loop {
        while xen.next_event().is_some() {}
        let sequence = fabric.load_u64(question::SEQUENCE);
        if sequence != fabric.load_u64(answer::SEQUENCE) {
            let value = obey(xen, fabric, &mut contained);
            fabric.store_u64(answer::VALUE, value);
            fabric.store_u64(answer::SEQUENCE, sequence);
            xen.send(doorbell).expect("the doorbell is bound");
            continue;
        }
        xen.block();
    }
}

fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if frame[0] == u64::MAX {
        return 0;
    }
    frame[0] + overflow(depth + 1) + black_box(frame)[1]
}

fn first_word(state: &State) -> u64 {
    state.mapping.as_ref().map_or(u64::MAX, |mapping| mapping.load_u64(0))
}

/// Keeps allocator, records of grants and state busy, so that a life ends in the middle of
/// something.
fn churn(xen: &Hypervisor, granter: DomId, reference: GrantRef) -> ! {
    let mut round = 0u64;
    loop {
        round += 1;
        let mapping = xen.map_grants(granter, &[reference; 2], Access::ReadWrite);
        STATE.with(|state| {
            state.count += 1;
            state.mapping = mapping.ok();
            if state.numbers.len() > 500 {
                state.numbers = Vec::new();
            }
            state.numbers.push(round);
        });
        for _ in 0..round % 7 {
            black_box(alloc::vec![0u8; 64 + (round % 400) as usize]);
        }
        STATE.with(|state| state.mapping = None);
    }
}

/// The fault domain, opened when it is first needed.
struct UserMode<'a> {
    xen: &'a Hypervisor,
    contained: &'a mut Option<Contained>,
}

impl UserMode<'_> {
    fn opened(&mut self) -> &mut Contained {
        self.contained.get_or_insert_with(|| Contained::open(*self.xen))
    }
}

fn obey(xen: &Hypervisor, fabric: &FabricMemory, contained: &mut Option<Contained>) -> u64 {
    let first = fabric.load_u64(question::FIRST);
    let second = fabric.load_u64(question::SECOND);
    let mut user = UserMode { xen, contained };
    match fabric.load_u64(question::COMMAND) {
        command::USER => user.opened().enter(first as u32, second as u32),
        command::USER_NS => user.opened().took_ns,
        command::USER_ADDRESS => user.opened().address,
        command::KERNEL_WORD => u64::from(runtime::mishap::kernel_word().0),
        command::COUNT => STATE.with(|state| {
            state.count += 1;
            state.count
        }),
        command::ALLOCATE => STATE.with(|state| {
            state.count += 1;
            state.numbers.push(state.count);
            runtime::heap::free_bytes() as u64
        }),
        command::PANIC => panic!("told to panic with {first}"),
        command::WRITE_READ_ONLY => {
            fabric.store_u64(question::FIRST, 0);
            0
        }
        command::OVERFLOW => overflow(0),
        command::LOOP => loop {
            black_box(());
        },
        command::LOOP_CHANGING => STATE.with(|_| {
            loop {
                black_box(());
            }
        }),
        command::LOOP_TORN => STATE.modify(|state| {
            state.is_torn = true;
            loop {
                black_box(());
            }
        }),
        command::MAP => STATE.with(|state| {
            let reference = [GrantRef(second as u32)];
            match xen.map_grants(DomId(first as u16), &reference, Access::ReadWrite) {
                Ok(mapping) => state.mapping = Some(mapping),
                Err(_) => return u64::MAX - 1,
            }
            first_word(state)
        }),
        command::READ => STATE.read(first_word),
        command::UNMAP => STATE.with(|state| {
            state.mapping = None;
            0
        }),
        command::CHURN => churn(xen, DomId(first as u16), GrantRef(second as u32)),
        command::DROP_ORPHANS => {
            xen.drop_orphans();
            0
        }
        _ => xen.shutdown(ShutdownReason::PowerOff),
    }
}
