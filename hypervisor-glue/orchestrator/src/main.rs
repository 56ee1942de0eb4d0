//! Xen's initial domain: from Xen's hand to the loop that never ends.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]
#![forbid(unsafe_code)]

use abi::{Frame, Xen};
use fabric::view::{Party, RegionKind};
use orchestrator::evidence::Kept;
use orchestrator::host::{Host, UNITS};
use orchestrator::jobs::{Frames, Jobs};
use orchestrator::keyboard::Keyboard;
use orchestrator::operations::Operations;
use orchestrator::regions::Regions;
use orchestrator::report::{Line, Note};
use orchestrator::slots::{Routes, Slots};
use orchestrator::start::{self, Origin, StartError};
use orchestrator::turn::{Next, Orchestrator};
use orchestrator::voices::Voices;
use orchestrator::watch::Tuning;
use runtime::{Boot, FabricMemory, Hypervisor, Life, Place};

runtime::orchestrator!(main, fabric_pages = system::FABRIC_PAGES);

/// Machine frames of the units' domains: they outlive a failure of ours, as Xen does not tell them.
static FRAMES: Place<Frames> = Place::new([[Frame(0); builder::pv::MAX_PAGES as usize]; UNITS]);
/// Epitaphs outlive a failure of ours, too.
static EPITAPHS: Place<Kept> = Place::new(Kept::new());
/// How often we recovered ourselves since the host booted.
static RECOVERIES: Place<u32> = Place::new(0);
/// Exit code (before QEMU's `v << 1 | 1`) of a host that ended as it was told to.
const EXIT_DONE: u8 = 0x10;
/// Exit code of a host that could not start.
const EXIT_START: u8 = 0x11;

/// The first life, and every life after a failure of our own.
fn main(boot: Boot) -> ! {
    let xen = boot.hypervisor();
    let mut host = match start(&boot, &xen) {
        Ok(host) => host,
        Err(error) => {
            let mut line = Line::new();
            line.say(format_args!("PpVMM cannot start: {error}"));
            line.print(&xen);
            xen.machine_exit(EXIT_START)
        }
    };
    loop {
        match host.turn() {
            Next::Again => {}
            Next::Sleep => xen.block(),
            Next::Power(api::Power::Reboot) => xen.shutdown(abi::ShutdownReason::Reboot),
            Next::Power(api::Power::Off) => xen.machine_exit(EXIT_DONE),
        }
    }
}

/// Kept apart from `main`: what is only needed at the start leaves the stack with it.
#[inline(never)]
fn start<'a>(
    boot: &Boot,
    xen: &'a Hypervisor,
) -> Result<Orchestrator<'a, Hypervisor, FabricMemory>, StartError> {
    let began_ns = xen.now_ns();
    xen.set_recovery(main);
    let is_recovery = boot.life() != Life::First;
    let tuning = Tuning::parse(boot.argument("patience"), boot.argument("rung"))
        .map_err(StartError::Argument)?;
    let regions = Regions::new(xen.fabric());
    let archive = start::open_archive(boot.archive(), is_recovery)?;
    let nonce = xen.ticks() | 1;
    let origin = if is_recovery { Origin::Recovery { nonce } } else { Origin::Boot { nonce } };
    let units = start::units(xen, &regions, &archive, origin)?;
    let frames = FRAMES.claim();
    let table = regions.find(RegionKind::Domains, Party::ORCHESTRATOR);
    let mut routes = Routes::new();
    let slots = if is_recovery { Slots::adopt(table, xen, &mut routes) } else { Slots::new(table) };
    let mut host = Host::new(xen, units, slots, routes, EPITAPHS.claim(), tuning);
    let refused = |error| StartError::Xen { what: "bind the virtual interrupts", error };
    host.bind_virqs().map_err(refused)?;
    if is_recovery {
        host.find_units_again(frames);
        let times = RECOVERIES.claim();
        *times += 1;
        let ready_ns = xen.now_ns();
        host.notes
            .add(ready_ns, Note::SelfRecovered { times: *times, entered_ns: began_ns, ready_ns });
    } else {
        host.notes.add(began_ns, Note::Milestone("orchestrator entered"));
        host.start_units();
    }
    let (requests, replies) = start::operation_rings(&regions);
    let injector =
        if is_recovery { None } else { start::injector(&archive, boot.argument("inject"))? };
    xen.seal_heap();
    Ok(Orchestrator {
        host,
        jobs: Jobs::new(frames),
        operations: Operations::new(archive, requests, replies),
        voices: Voices::new(&regions),
        keyboard: Keyboard::new(),
        injector,
    })
}
