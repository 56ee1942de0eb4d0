//! `cargo xtask run`: boots the host and shows what it does.

use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::build;
use crate::faults::{Plan, Target};
use crate::progress::Steps;
use crate::qemu::{Clock, Machine, Nic, Outcome, Vm};
use crate::timeline::Timeline;

/// How long one look at the console waits, so that typed letters pass soon.
const LOOK: Duration = Duration::from_millis(20);

/// The unit whose faults are shown.
pub const UNIT: &str = "xenstore-uk";

/// The demonstration's faults: a crash, a wild jump, a hang.
const KINDS: [&str; 3] = ["crash-undefined", "crash-wild-jump", "hang-loop"];

/// Faults of the demonstration.
const DEMO_FAULTS: u64 = 3;

/// Faults of a storm: more than anybody waits for.
const STORM_FAULTS: u64 = 1_000_000;

/// Time between two faults, long enough to watch the guest go on in between.
const DEMO_GAP_US: u64 = 2_500_000;
const STORM_GAP_US: u64 = 300_000;

/// Requests before the first fault: a Linux guest makes about this many until its userspace is up
/// and the demonstration has written a few times.
const DEMO_AFTER: u64 = 70;

/// Right answers that the guest must get after the last fault.
const RIGHT_AFTER: u64 = 3;

/// What an operator would type to power the host off.
const POWER_OFF: &[u8] = b"Py";

/// How the host is booted.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// End by itself after the demonstration, with exit code 0 when all went well.
    #[arg(long)]
    pub once: bool,
    /// Go on crashing services until stopped.
    #[arg(long, conflicts_with = "once")]
    pub storm: bool,
    /// Inject no faults.
    #[arg(long, conflicts_with = "storm")]
    pub no_faults: bool,
    /// Seed of the faults' instants.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Run on the virtual clock: one instruction is one nanosecond, every run is the same.
    #[arg(long = "virtual")]
    pub virtual_clock: bool,
    /// Number of emulated CPUs.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub smp: u32,
    /// Emulated memory in MiB.
    #[arg(long, default_value_t = 768, value_name = "MIB")]
    pub memory: u32,
    /// The machine's NIC.
    #[arg(long, default_value = "e1000e", value_name = "MODEL")]
    pub nic: Nic,
    /// Let a debugger attach at this TCP port of the loopback interface.
    #[arg(long, value_name = "PORT")]
    pub gdb: Option<u16>,
    /// Words for the orchestrator's command line.
    #[arg(long, value_name = "WORDS")]
    pub append: Vec<String>,
    /// Words for Xen's command line.
    #[arg(long, value_name = "WORDS")]
    pub xen_append: Vec<String>,
    /// Show Xen's own lines, too.
    #[arg(long)]
    pub verbose: bool,
    /// End the machine after this many seconds of host time.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    pub limit: u64,
    /// Boot what the last build left, without building.
    #[arg(long)]
    pub no_build: bool,
    /// Boot Xen without an initial domain (it stops with a panic): shows that the emulator works.
    #[arg(long)]
    pub xen_only: bool,
}

/// Builds and boots the host; streams its console and passes typed letters on.
pub fn run(options: &Options) -> Result<()> {
    if !options.no_build {
        build::run(&build::Options::default())?;
    }
    let machine = machine(options)?;
    let steps = Steps::new("run");
    steps.note(format!("console log: {}", machine.log.display()));
    let mut vm = Vm::start(&machine, Duration::from_secs(options.limit))?;
    let mut timeline = Timeline::new(options.verbose, UNIT);
    let typed = keyboard();
    let mut is_told = false;
    let outcome = loop {
        if let Some(line) = vm.next_line(LOOK)? {
            timeline.tell(&line).iter().for_each(|text| show(line.at, text));
        } else if vm.is_ended() {
            break vm.finish(|_| ())?.0;
        }
        if let Ok(bytes) = typed.try_recv() {
            vm.type_text(&bytes)?;
        }
        if !is_told && is_demonstrated(options, &timeline) {
            is_told = true;
            if options.once {
                vm.type_text(POWER_OFF)?;
            } else {
                show(vm.elapsed(), HOW_TO_REACH);
            }
        }
    };
    judge(options, outcome, &timeline)
}

/// Said once the demonstration is over.
const HOW_TO_REACH: &str = "\
--- the host stays up: type h and Enter for its one-letter commands, Ctrl-C to end it";

/// Whether all faults of the demonstration have come and the guest has gone on after the last.
fn is_demonstrated(options: &Options, timeline: &Timeline) -> bool {
    let wanted = if options.no_faults { 0 } else { DEMO_FAULTS };
    timeline.survived >= wanted && timeline.right_since >= RIGHT_AFTER && !options.storm
}

/// The demonstration's faults.
pub fn demonstration(seed: u64) -> Plan {
    let (count, gap_us, after) = (DEMO_FAULTS, DEMO_GAP_US, DEMO_AFTER);
    Plan { kinds: KINDS.to_vec(), count, seed, gap_us, after, during: None, target: Target::Leader }
}

/// The machine that these options describe.
pub fn machine(options: &Options) -> Result<Machine> {
    let clock = if options.virtual_clock { Clock::Virtual } else { Clock::Real };
    let mut machine = Machine::host("run", clock);
    machine.cpus = options.smp;
    machine.memory_mib = options.memory;
    machine.nic = options.nic;
    machine.gdb_port = options.gdb;
    machine.xen_args.clone_from(&options.xen_append);
    if !options.no_faults {
        let mut plan = demonstration(options.seed);
        if options.storm {
            (plan.count, plan.gap_us) = (STORM_FAULTS, STORM_GAP_US);
        }
        machine.orchestrator_args.push(plan.word()?);
    }
    machine.orchestrator_args.extend(options.append.iter().cloned());
    if options.xen_only {
        machine.orchestrator = None;
    }
    Ok(machine)
}

fn judge(options: &Options, outcome: Outcome, timeline: &Timeline) -> Result<()> {
    let Timeline { faults, survived, right, wrong, .. } = timeline;
    println!(
        "run: {outcome}; {faults} faults, {survived} survived; the guest got {right} right and \
         {wrong} wrong answers"
    );
    ensure!(!timeline.xen_panicked || options.xen_only, "Xen has stopped: it says why above");
    if options.once {
        ensure!(outcome == Outcome::Passed, "the host did not end well: {outcome}");
        ensure!(is_demonstrated(options, timeline) && *wrong == 0, "not all was shown");
    }
    match outcome {
        Outcome::Passed | Outcome::PoweredOff => Ok(()),
        other => bail!("the host did not end well: {other}"),
    }
}

/// Prints a line with the host time since the boot began.
fn show(at: Duration, text: &str) {
    let mut out = stdout().lock();
    // A closed pipe is no reason to stop the host.
    let _ = writeln!(out, "[{:8.3}] {text}", at.as_secs_f64());
    let _ = out.flush();
}

/// Bytes typed on our standard input, when that is something one can read from.
fn keyboard() -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    if stdin().is_terminal() {
        eprintln!("run: letters you type (then Enter) go to the host's serial console");
    }
    thread::spawn(move || {
        let mut chunk = [0; 256];
        while let Ok(count @ 1..) = stdin().lock().read(&mut chunk) {
            if sender.send(chunk[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
