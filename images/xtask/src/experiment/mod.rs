//! `cargo xtask experiment NAME`: boots hosts, injects faults, measures, and holds the results to
//! what is promised.

mod busy_faults;
mod corrupt_random;
mod false_alarms;
mod harness;
pub mod hostile_guests;
mod idle;
mod net_faults;
mod orchestrator_faults;
mod reload;
mod service_faults;
mod xenstore_during_create;
mod xenstore_faults;
mod xenstore_latency;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::report::{Report, table};
use crate::{build, packages};

/// How an experiment is run.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Which experiment; `list` lists them.
    pub name: String,
    /// Write the result to this file as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Seed: the same one repeats the same experiment.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Number of faults or repetitions (each experiment has its own default).
    #[arg(long, value_name = "N")]
    pub runs: Option<u64>,
}

/// An experiment.
struct Experiment {
    name: &'static str,
    about: &'static str,
    runs: u64,
    /// Name of the system description that its hosts are built with.
    system: &'static str,
    run: fn(&Options, u64) -> Result<Report>,
}

/// The host as it is shipped, with three replicas of the XenStore.
const WHOLE: &str = "ppvmm";

/// The host with one xenstore-uk: what its own repair takes, as no other one serves in its place.
const ONE_STORE: &str = "one-store";

const EXPERIMENTS: [Experiment; 12] = [
    Experiment {
        name: idle::NAME,
        about: "start, CPU time and memory of a host that has nothing to do (runs are seconds)",
        runs: 10,
        system: WHOLE,
        run: idle::run,
    },
    Experiment {
        name: service_faults::NAME,
        about: "crashes and hangs of xenstore-uk while a guest checks every answer",
        runs: 180,
        system: ONE_STORE,
        run: service_faults::run,
    },
    Experiment {
        name: busy_faults::NAME,
        about: "crashes of xenstore-uk while a guest is created or another unit rebuilt",
        runs: 30,
        system: ONE_STORE,
        run: busy_faults::run,
    },
    Experiment {
        name: reload::NAME,
        about: "microreboots of xenstore-uk with 1,000 to 10,000 nodes in the store",
        runs: 10,
        system: "large-store",
        run: reload::run,
    },
    Experiment {
        name: xenstore_faults::NAME,
        about: "crashes and hangs of the leading xenstore-uk: another one serves",
        runs: 120,
        system: WHOLE,
        run: xenstore_faults::run,
    },
    Experiment {
        name: xenstore_during_create::NAME,
        about: "crash and corruption of the leading xenstore-uk while a guest is created",
        runs: 10,
        system: "create",
        run: xenstore_during_create::run,
    },
    Experiment {
        name: xenstore_latency::NAME,
        about: "what a guest waits for XenStore, beside the classic host with C xenstored",
        runs: 2_000,
        system: "bench",
        run: xenstore_latency::run,
    },
    Experiment {
        name: corrupt_random::NAME,
        about: "bit flips anywhere in xenstore-uk: masked, recovered, wrong, lost",
        runs: 200,
        system: ONE_STORE,
        run: corrupt_random::run,
    },
    Experiment {
        name: false_alarms::NAME,
        about: "no recovery without a fault, under full load (runs are virtual seconds)",
        runs: 600,
        system: ONE_STORE,
        run: false_alarms::run,
    },
    Experiment {
        name: orchestrator_faults::NAME,
        about: "panics and traps in the orchestrator: services and guests stay untouched",
        runs: 64,
        system: ONE_STORE,
        run: orchestrator_faults::run,
    },
    Experiment {
        name: net_faults::NAME,
        about: "crashes and hangs of net-uk while a guest's TCP stream and pings go through it",
        runs: 60,
        system: WHOLE,
        run: net_faults::run,
    },
    Experiment {
        name: hostile_guests::NAME,
        about: "a guest attacks the services with all it may write, beside an ordinary one",
        runs: 1,
        system: hostile_guests::SYSTEM,
        run: hostile_guests::run,
    },
];

/// Whether there is an experiment of this name.
pub fn is_known(name: &str) -> bool {
    EXPERIMENTS.iter().any(|experiment| experiment.name == name)
}

/// Runs one experiment, prints its tables, and fails unless everything promised holds.
pub fn run(options: &Options) -> Result<()> {
    let Some(experiment) = EXPERIMENTS.iter().find(|e| e.name == options.name) else {
        let list: Vec<String> = EXPERIMENTS
            .iter()
            .map(|e| format!("    {:<20} {} (--runs {})", e.name, e.about, e.runs))
            .collect();
        let list = list.join("\n");
        if options.name == "list" {
            println!("{list}");
            return Ok(());
        }
        bail!("no experiment is called {:?}; there are:\n{list}", options.name);
    };
    if !packages::names()?.contains("orchestrator") {
        bail!("an experiment needs the orchestrator, which this workspace does not have");
    }
    build::run_system(experiment.system)?;
    let runs = options.runs.unwrap_or(experiment.runs);
    let report = (experiment.run)(options, runs)?;
    println!("{}", table::render(&report));
    if let Some(file) = &options.json {
        report.write(file)?;
        println!("written: {}", file.display());
    }
    if report.holds() {
        return Ok(());
    }
    bail!("{}: not everything promised holds", report.experiment)
}
