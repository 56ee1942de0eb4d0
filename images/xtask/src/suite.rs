//! The on-Xen suite: boots of the real host, each with what its console must say.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::guest::variant;
use crate::image::GUEST_UP;
use crate::qemu::{Clock, Machine, Outcome, Vm, machine};
use crate::run::UNIT;
use crate::{build, faults, paths, run};

/// One line that must come, in order.
pub enum Expect {
    /// A line with this pattern.
    Line(&'static str),
    /// A line with each of these patterns, in whatever order.
    Lines(&'static [&'static str]),
    /// So many faults injected, and each of them repaired.
    Repaired(usize),
    /// After this point, letters typed on the serial console.
    Type(&'static str),
}

/// How a boot must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, in this way.
    With(Outcome),
    /// Not at all: it is ended by us once everything expected has come.
    Running,
}

/// One boot of the suite.
pub struct Boot {
    /// Its name, also of its log.
    pub name: &'static str,
    /// The unikernel that Xen starts as its initial domain.
    pub initial: &'static str,
    /// Another system description than the host's own, by its name in `images/system`.
    pub system: Option<&'static str>,
    /// A unikernel as its module instead of the archive.
    pub module: Option<&'static str>,
    /// Another work of the guests than the host's own (see `images/guest/init`).
    pub work: Option<&'static str>,
    /// Whether the demonstration's faults are injected.
    pub has_faults: bool,
    /// More words for the orchestrator's command line.
    pub arguments: &'static [&'static str],
    /// In which ways it runs.
    pub ways: &'static [Way],
    /// What must come, in order.
    pub expect: &'static [Expect],
    /// How it must end.
    pub end: End,
    /// Host seconds that each expected line, and the end, may take.
    pub patience_s: u64,
}

/// One way to run a boot.
#[derive(Clone, Copy)]
pub struct Way {
    /// Emulated CPUs.
    pub cpus: u32,
    /// The clock.
    pub clock: Clock,
    /// A word for logs.
    pub name: &'static str,
}

/// One CPU on the virtual clock: every run is the same.
pub const VIRTUAL: Way = Way { cpus: 1, clock: Clock::Virtual, name: "virtual-smp1" };

/// Two CPUs on the real clock: nothing may rest on one CPU or on a calm machine.
pub const REAL: Way = Way { cpus: 2, clock: Clock::Real, name: "real-smp2" };

/// The boots.
pub const BOOTS: [Boot; 7] = [
    Boot {
        name: "runtime-trials",
        initial: "glue-orchestrator",
        system: None,
        module: Some("glue-service"),
        work: None,
        has_faults: false,
        arguments: &[],
        // It measures the runtime against limits of the virtual clock.
        ways: &[VIRTUAL],
        expect: &[],
        end: End::With(Outcome::Passed),
        patience_s: 120,
    },
    Boot {
        name: "three-faults",
        initial: "orchestrator",
        system: None,
        module: None,
        work: None,
        has_faults: true,
        arguments: &[],
        ways: &[VIRTUAL, REAL],
        expect: &[
            Expect::Line(GUEST_UP),
            Expect::Line("demo: wrote*read it back"),
            Expect::Repaired(3),
            Expect::Line("demo: wrote*read it back"),
            Expect::Type("Py"),
        ],
        end: End::With(Outcome::Passed),
        // On the real clock a guest of a busy machine takes minutes to boot.
        patience_s: 400,
    },
    Boot {
        name: "ladder",
        initial: "orchestrator",
        system: None,
        module: None,
        work: None,
        has_faults: false,
        // Two units at once; the same, and the store again while it recovers; ten in a row.
        arguments: &["inject=unit:1;with:5;kinds:crash-shutdown;row:1+2+10;count:13;seed:1;\
                      gap_us:1500000;after:70"],
        ways: &[VIRTUAL],
        expect: &[
            Expect::Lines(&[
                "\"recovered\",\"unit\":\"xenstore-uk\"*\"rung\":1",
                "\"recovered\",\"unit\":\"tool-uk\"*\"rung\":1",
            ]),
            Expect::Line("demo: wrote*read it back"),
            Expect::Line("xenstore-uk failed again*: rung 1, microreset, in"),
            Expect::Line("\"recovered\",\"unit\":\"xenstore-uk\"*\"rung\":1"),
            Expect::Line("demo: wrote*read it back"),
            Expect::Line("xenstore-uk failed again*: rung 1, microreset, in"),
            Expect::Line("xenstore-uk failed again*: rung 2, microreboot, in"),
            Expect::Line("xenstore-uk failed again*: rung 2, microreboot, in"),
            Expect::Line("xenstore-uk failed again*: rung 3, rebuild, in"),
            Expect::Line("xenstore-uk failed again*: rung 3, rebuild, in"),
            Expect::Line("xenstore-uk failed again*: rung 4, global restart, in"),
            Expect::Line("xenstore-uk failed again*: rung 3, rebuild, in"),
            Expect::Line("\"recovered\",\"unit\":\"xenstore-uk\"*\"rung\":3"),
            Expect::Line("demo: wrote*read it back"),
            Expect::Type("ePy"),
            Expect::Line("16 failures so far"),
        ],
        end: End::With(Outcome::Passed),
        // Others work on the machine, too.
        patience_s: 400,
    },
    Boot {
        name: "xenstore-tools",
        initial: "orchestrator",
        system: None,
        module: None,
        work: Some("run:xenstore-tools"),
        has_faults: false,
        arguments: &[],
        ways: &[VIRTUAL],
        expect: &[
            Expect::Line("test-xenstore: 12 passed, 0 failed, exit 0"),
            Expect::Line("xenstore tools: * answers, 0 wrong"),
            Expect::Line("GUEST_DONE work=run exit=0"),
            Expect::Type("Py"),
        ],
        end: End::With(Outcome::Passed),
        // Others work on the machine, too.
        patience_s: 400,
    },
    Boot {
        name: "storm",
        initial: "orchestrator",
        system: None,
        module: None,
        // Whoever waits for a bell that nobody rings waits longer than the limits.
        work: Some(
            "script:--seed,7,--clients,3,--requests,6000,--forgive-doomed,1,--reply-limit-s,20,\
             --event-limit-s,20",
        ),
        has_faults: false,
        // Kinds that are seen at once: a hang takes seconds on the real clock.
        arguments: &["inject=unit:store;kinds:crash-undefined+crash-wild-jump+crash-shutdown;\
                      count:12;seed:3;gap_us:500000;after:300"],
        // What units do at the same time on two CPUs, and how they come back meanwhile.
        ways: &[REAL],
        expect: &[
            Expect::Repaired(12),
            Expect::Line("GUEST_DONE work=script exit=0"),
            Expect::Type("Py"),
        ],
        end: End::With(Outcome::Passed),
        // Others work on the machine, too.
        patience_s: 400,
    },
    Boot {
        name: "watchdog",
        initial: "orchestrator",
        system: None,
        module: None,
        work: None,
        has_faults: false,
        // Its loop stands still while the services come up.
        arguments: &["watchdog=5", "panic=kinds:hang-spin;count:1;gap_us:1000;after:20"],
        ways: &[REAL],
        expect: &[
            Expect::Line("orchestrator entered"),
            Expect::Line("Hardware Dom0 shutdown: watchdog rebooting machine"),
        ],
        // The machine starts again, which ends the emulator.
        end: End::With(Outcome::PoweredOff),
        patience_s: 120,
    },
    Boot {
        name: "several-guests",
        initial: "orchestrator",
        system: Some("several"),
        module: None,
        work: None,
        has_faults: true,
        arguments: &[],
        ways: &[VIRTUAL],
        expect: &[
            Expect::Lines(&[
                "(g16) demo: wrote*read it back",
                "(g17) GUEST_READY up=*work=shell",
                "(g18) GUEST_DONE work=run exit=0",
                "(g19) GUEST_DONE work=run exit=0",
                "guest leaves (d18) powered off: it is removed",
                "guest returns (d19) reboots: it is restarted",
                "guest returns is d20, running",
                "(g20) GUEST_DONE work=run exit=0",
            ]),
            Expect::Line("(g16) demo: wrote*read it back"),
            // A command for the shell's guest, in whose middle tool-uk is rebuilt.
            Expect::Type("c17\recho $((6*7))-ty\x1d4c17\rped\r"),
            Expect::Line("\"recovered\",\"unit\":\"tool-uk\"*\"rung\":3"),
            Expect::Line("(g17) 42-typed"),
            Expect::Type("\x1dPy"),
        ],
        end: End::With(Outcome::Passed),
        // Others work on the machine, too.
        patience_s: 400,
    },
];

/// Seed of the faults' instants.
const SEED: u64 = 1;

/// A self-test takes a second; a hanging one is not waited for long.
const SELF_TEST_LIMIT: Duration = Duration::from_secs(60);

/// Linux comes up in three seconds, on a busy machine in ten.
const GUEST_LIMIT: Duration = Duration::from_secs(120);

/// Boots a unikernel on a bare machine, where it tests itself and says so by its exit code.
pub fn self_test(name: &str) -> Result<String> {
    let log = paths::logs().join(format!("suite-self-test-{name}.log"));
    let vm = Vm::launch(machine::bare_arguments(&paths::unikernel(name)), &log, SELF_TEST_LIMIT)?;
    let mut last = String::new();
    let (outcome, _) = vm.finish(|line| last.clone_from(&line.text))?;
    if outcome != Outcome::Passed {
        bail!("it ended with \"{outcome}\"; its console is in {}", log.display());
    }
    Ok(last)
}

/// The guest's kernel and file system on a bare machine: what is wrong with them shows here first.
pub fn guest_alone() -> Result<String> {
    let log = paths::logs().join("suite-guest-alone.log");
    let mut arguments = machine::bare_arguments(&paths::guest_kernel());
    arguments.extend(["-initrd".into(), paths::guest_initramfs().into(), "-append".into()]);
    arguments
        .push("console=ttyS0 quiet ppvmm.work=run:xenstore-read,domid ppvmm.then=reboot".into());
    let mut vm = Vm::launch(arguments, &log, GUEST_LIMIT)?;
    let line = vm.expect("GUEST_READY up=*xenbus=no", GUEST_LIMIT)?;
    // Without Xen the tool must start, find its libraries, and say that there is no XenStore.
    vm.expect("xenstore-read: *xs_open", GUEST_LIMIT)?;
    let (outcome, _) = vm.finish(|_| ())?;
    match outcome {
        Outcome::PoweredOff => Ok(line.text),
        other => bail!("it ended with \"{other}\"; its console is in {}", log.display()),
    }
}

/// Boots one host and holds it to what is expected.
pub fn boot(boot: &Boot, way: Way) -> Result<String> {
    let mut machine = Machine::host(&format!("suite-{}-{}", boot.name, way.name), way.clock);
    machine.cpus = way.cpus;
    machine.orchestrator = Some(paths::unikernel(boot.initial));
    if let Some(name) = boot.system {
        build::run_system(name)?;
    }
    if let Some(work) = boot.work {
        machine.archive = Some(variant::archive(boot.name, work)?);
    }
    if let Some(module) = boot.module {
        machine.archive = Some(paths::unikernel(module));
    }
    if boot.has_faults {
        machine.orchestrator_args.push(run::demonstration(SEED).word()?);
    }
    machine.orchestrator_args.extend(boot.arguments.iter().map(|word| (*word).to_owned()));
    let patience = Duration::from_secs(boot.patience_s);
    let steps = u32::try_from(boot.expect.len()).unwrap_or(u32::MAX).saturating_add(1);
    let mut vm = Vm::start(&machine, patience.saturating_mul(steps))?;
    for expect in boot.expect {
        match expect {
            Expect::Line(pattern) => drop(vm.expect(pattern, patience)?),
            Expect::Lines(patterns) => all_of(&mut vm, patterns, patience)?,
            Expect::Repaired(count) => repaired(&mut vm, *count, patience)?,
            Expect::Type(text) => vm.type_text(text.as_bytes())?,
        }
    }
    let spent = vm.elapsed().as_secs_f64();
    let End::With(wanted) = boot.end else {
        vm.kill()?;
        return Ok(format!("all {} lines in {spent:.1} s", boot.expect.len()));
    };
    let (outcome, _) = vm.finish(|_| ())?;
    if outcome != wanted {
        bail!("it should have ended with \"{wanted}\", and ended with \"{outcome}\"");
    }
    Ok(outcome.to_string())
}

/// Waits until so many faults were injected, and each was repaired.
fn repaired(vm: &mut Vm, count: usize, patience: Duration) -> Result<()> {
    loop {
        let found = faults::collect(vm.records(), UNIT);
        let done = found.iter().filter(|fault| fault.repaired.is_some()).count();
        if done >= count && done == found.len() {
            return Ok(());
        }
        let what = format!("a record beyond {} faults, {done} repaired of {count}", found.len());
        vm.wait_for(&what, patience, |_, record| record.is_some().then_some(()))?;
    }
}

/// Waits for a line with each pattern, in whatever order they come.
fn all_of(vm: &mut Vm, patterns: &[&str], patience: Duration) -> Result<()> {
    let mut missing = patterns.to_vec();
    while !missing.is_empty() {
        let (found, _) = vm.expect_any(&missing, patience)?;
        missing.remove(found);
    }
    Ok(())
}
