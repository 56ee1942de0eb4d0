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
use runtime::{Boot, FabricMemory, Hypervisor, Place};

runtime::orchestrator!(main, fabric_pages = system::FABRIC_PAGES);

/// Machine frames of the units' domains: they outlive a failure of ours, as Xen does not tell them.
static FRAMES: Place<Frames> = Place::new([[Frame(0); builder::pv::MAX_PAGES as usize]; UNITS]);
/// Epitaphs outlive a failure of ours, too.
static EPITAPHS: Place<Kept> = Place::new(Kept::new());
/// Exit code (before QEMU's `v << 1 | 1`) of a host that ended as it was told to.
const EXIT_DONE: u8 = 0x10;
/// Exit code of a host that could not start.
const EXIT_START: u8 = 0x11;

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
            Next::Power(_) => xen.machine_exit(EXIT_DONE),
        }
    }
}

fn start<'a>(
    boot: &Boot,
    xen: &'a Hypervisor,
) -> Result<Orchestrator<'a, Hypervisor, FabricMemory>, StartError> {
    let began_ns = xen.now_ns();
    let regions = Regions::new(xen.fabric());
    let archive = start::open_archive(boot.archive())?;
    let origin = Origin::Boot { nonce: xen.ticks() | 1 };
    let units = start::units(xen, &regions, &archive, origin)?;
    let table = regions.find(RegionKind::Domains, Party::ORCHESTRATOR);
    let mut host = Host::new(xen, units, Slots::new(table), Routes::new(), EPITAPHS.claim());
    host.notes.add(began_ns, Note::Milestone("orchestrator entered"));
    if let Err(error) = host.bind_virqs() {
        return Err(StartError::Xen { what: "bind the virtual interrupts", error });
    }
    host.start_units();
    let (requests, replies) = start::operation_rings(&regions);
    let injector = start::injector(&archive, boot.argument("inject"))?;
    xen.seal_heap();
    Ok(Orchestrator {
        host,
        jobs: Jobs::new(FRAMES.claim()),
        operations: Operations::new(archive, requests, replies),
        keyboard: Keyboard::new(),
        injector,
    })
}
