//! `cargo xtask run`: boots the host and shows what it does.

use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::build;
use crate::progress::Steps;
use crate::qemu::{Clock, Line, Machine, Outcome, Vm};

/// How long one look at the console waits, so that typed letters pass soon.
const LOOK: Duration = Duration::from_millis(20);

/// Words that make a line of Xen's own worth showing.
const ALARMS: [&str; 6] = ["panic", "fatal", "error", "crash", "bug", "not found"];

/// How the host is booted.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// End by itself after the demonstration, with exit code 0 when all went well.
    #[arg(long)]
    pub once: bool,
    /// Go on crashing services until stopped.
    #[arg(long)]
    pub storm: bool,
    /// Run on the virtual clock: one instruction is one nanosecond, every run is the same.
    #[arg(long = "virtual")]
    pub virtual_clock: bool,
    /// Number of emulated CPUs.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub smp: u32,
    /// Emulated memory in MiB.
    #[arg(long, default_value_t = 768, value_name = "MIB")]
    pub memory: u32,
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
    let machine = machine(options);
    let steps = Steps::new("run");
    steps.note(format!("console log: {}", machine.log.display()));
    let mut vm = Vm::start(&machine, Duration::from_secs(options.limit))?;
    let typed = keyboard();
    let outcome = loop {
        if let Some(line) = vm.next_line(LOOK)? {
            show(&line, options.verbose);
        } else if vm.is_ended() {
            break vm.finish(|_| ())?.0;
        }
        match typed.try_recv() {
            Ok(bytes) => vm.type_text(&bytes)?,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
    };
    judge(options, outcome)
}

/// The machine that these options describe.
pub fn machine(options: &Options) -> Machine {
    let clock = if options.virtual_clock { Clock::Virtual } else { Clock::Real };
    let mut machine = Machine::host("run", clock);
    machine.cpus = options.smp;
    machine.memory_mib = options.memory;
    machine.gdb_port = options.gdb;
    machine.xen_args.clone_from(&options.xen_append);
    if options.once {
        machine.orchestrator_args.push("once".into());
    }
    if options.storm {
        machine.orchestrator_args.push("storm".into());
    }
    machine.orchestrator_args.extend(options.append.iter().cloned());
    if options.xen_only {
        machine.orchestrator = None;
    }
    machine
}

fn judge(options: &Options, outcome: Outcome) -> Result<()> {
    println!("run: {outcome}");
    match outcome {
        Outcome::Passed => Ok(()),
        Outcome::PoweredOff if !options.once || options.xen_only => Ok(()),
        other => bail!("the host did not end well: {other}"),
    }
}

/// Prints a line with the host time since the boot began; Xen's chatter only when asked.
fn show(line: &Line, verbose: bool) {
    let text = &line.text;
    let chatter = text.starts_with("(XEN)") || text.trim().is_empty() || is_banner(text);
    let lower = text.to_lowercase();
    let alarm = ALARMS.iter().any(|word| lower.contains(word)) && text.starts_with("(XEN)");
    let machine_readable = text.starts_with("@{");
    if !verbose && ((chatter && !alarm) || machine_readable) {
        return;
    }
    let mut out = stdout().lock();
    // A closed pipe is no reason to stop the host.
    let _ = writeln!(out, "[{:8.3}] {text}", line.at.as_secs_f64());
    let _ = out.flush();
}

/// Xen draws its name and version with these characters.
fn is_banner(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| " \\/_|()'.,-0123456789+gdebu~".contains(c))
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
