//! Xen's initial domain: from Xen's hand to the loop that never ends.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]
#![forbid(unsafe_code)]

use abi::{Frame, Xen};
use fabric::view::{Party, RegionKind};
use orchestrator::attachment::Attachment;
use orchestrator::evidence::Kept;
use orchestrator::host::{Host, UNITS};
use orchestrator::inject_own::{Breaking, Kind, Progress};
use orchestrator::jobs::{Frames, Jobs};
use orchestrator::keyboard::Keyboard;
use orchestrator::operations::Operations;
use orchestrator::pace::Pace;
use orchestrator::regions::Regions;
use orchestrator::report::{Line, Note};
use orchestrator::slots::{Routes, Slots};
use orchestrator::start::{self, Origin, StartError};
use orchestrator::turn::{Next, Orchestrator};
use orchestrator::voices::{Heard, Voices};
use orchestrator::watch::Tuning;
use orchestrator::watchdog::Watchdog;
use runtime::{Boot, FabricMemory, Hypervisor, Life, Place, mishap};

runtime::orchestrator!(main, fabric_pages = system::FABRIC_PAGES);

/// Machine frames of the units' domains: they outlive a failure of ours, as Xen does not tell them.
static FRAMES: Place<Frames> = Place::new([[Frame(0); builder::pv::MAX_PAGES as usize]; UNITS]);
/// Epitaphs outlive a failure of ours, too.
static EPITAPHS: Place<Kept> = Place::new(Kept::new());
/// What was printed need not be printed again after a failure of ours.
static HEARD: Place<Heard> = Place::new([0; UNITS + 1]);
/// How often we recovered ourselves since the host booted.
static RECOVERIES: Place<u32> = Place::new(0);
/// How far a plan of failures of our own got: it goes on after each of them.
static OWN_FAULTS: Place<Progress> = Place::new(Progress::NONE);
/// Exit code (before QEMU's `v << 1 | 1`) of a host that ended as it was told to.
const EXIT_DONE: u8 = 0x10;
/// Exit code of a host that could not start.
const EXIT_START: u8 = 0x11;

/// The first life, and every life after a failure of our own.
fn main(boot: Boot) -> ! {
    let xen = boot.hypervisor();
    let own_faults = OWN_FAULTS.claim();
    let broken = own_faults.take_last();
    let plan = start::own_faults(boot.argument("panic")).unwrap_or_else(|e| refuse(&xen, &e));
    let calls = Breaking::new(&xen, plan, own_faults, break_down);
    let mut host = start(&boot, &xen, &calls).unwrap_or_else(|error| refuse(&xen, &error));
    if let Some(broken) = broken {
        host.host.notes.add(broken.at_ns, Note::InjectedOwn(broken));
        // At once: the next failure forgets what was not printed.
        while !host.host.notes.is_empty() {
            host.host.notes.print_one(&xen);
        }
    }
    loop {
        match host.turn() {
            Next::Again => {}
            Next::Sleep => xen.block(),
            Next::Hopeless => {
                let mut line = Line::new();
                line.say(format_args!(
                    "PpVMM cannot start: the machine has too little memory; give it more"
                ));
                line.print(&xen);
                xen.machine_exit(EXIT_START)
            }
            Next::Power(api::Power::Reboot) => xen.shutdown(abi::ShutdownReason::Reboot),
            Next::Power(api::Power::Off) => xen.machine_exit(EXIT_DONE),
        }
    }
}

/// Says why the host cannot start, and ends the machine.
fn refuse(xen: &Hypervisor, error: &StartError) -> ! {
    let mut line = Line::new();
    line.say(format_args!("PpVMM cannot start: {error}"));
    line.print(xen);
    xen.machine_exit(EXIT_START)
}

/// Fails as a plan wants.
fn break_down(kind: Kind) -> ! {
    match kind {
        Kind::Panic => panic!("as planned"),
        Kind::Undefined => mishap::undefined_instruction(),
        Kind::WildRead => mishap::wild_read(),
        Kind::WildWrite => mishap::wild_write(),
        Kind::Spin => loop {
            core::hint::spin_loop();
        },
    }
}

type Calls<'a> = Breaking<'a, Hypervisor>;

/// Kept apart from `main`: what is only needed at the start leaves the stack with it.
#[inline(never)]
fn start<'a>(
    boot: &Boot,
    hypervisor: &Hypervisor,
    xen: &'a Calls<'a>,
) -> Result<Orchestrator<'a, Calls<'a>, FabricMemory>, StartError> {
    let began_ns = xen.now_ns();
    hypervisor.set_recovery(main);
    let is_recovery = boot.life() != Life::First;
    let tuning = Tuning::parse(boot.argument("patience"), boot.argument("rung"))
        .map_err(StartError::Argument)?;
    let watchdog = Watchdog::parse(boot.argument("watchdog")).map_err(StartError::Argument)?;
    let regions = Regions::new(hypervisor.fabric());
    let archive = start::open_archive(boot.archive(), is_recovery)?;
    let nonce = hypervisor.ticks() | 1;
    let origin = if is_recovery { Origin::Recovery { nonce } } else { Origin::Boot { nonce } };
    let units = start::units(xen, &regions, &archive, origin)?;
    let frames = FRAMES.claim();
    let table = regions.find(RegionKind::Domains, Party::ORCHESTRATOR);
    let mut routes = Routes::new();
    let slots = if is_recovery { Slots::adopt(table, xen, &mut routes) } else { Slots::new(table) };
    let mut host = Host::new(xen, units, slots, routes, EPITAPHS.claim(), tuning);
    let refused = |error| StartError::Xen { what: "bind the virtual interrupts", error };
    host.bind_virqs().map_err(refused)?;
    host.take_precedence();
    if is_recovery {
        host.find_units_again(frames);
        let times = RECOVERIES.claim();
        *times += 1;
        host.owes_answer = Some(*times);
        let ready_ns = xen.now_ns();
        host.notes
            .add(ready_ns, Note::SelfRecovered { times: *times, entered_ns: began_ns, ready_ns });
    } else {
        host.notes.add(began_ns, Note::Milestone("orchestrator entered"));
        host.notes.add(
            began_ns,
            Note::Memory {
                tables: boot.table_bytes(),
                archive: boot.archive().len(),
                fabric: system::FABRIC_PAGES * abi::PAGE_SIZE,
            },
        );
        host.start_units();
    }
    let (requests, replies) = start::operation_rings(&regions);
    let injector = if is_recovery {
        None
    } else {
        start::injector(&archive, &regions, boot.argument("inject"))?
    };
    hypervisor.seal_heap();
    Ok(Orchestrator {
        host,
        jobs: Jobs::new(frames),
        operations: Operations::new(archive, requests, replies),
        pace: Pace::default(),
        voices: Voices::new(&regions, HEARD.claim()),
        keyboard: Keyboard::new(),
        attachment: Attachment::new(&regions),
        watchdog,
        injector,
        timed: xen.timed(),
    })
}
