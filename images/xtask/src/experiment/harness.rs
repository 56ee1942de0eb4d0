//! What experiments on a checked guest script share: one boot with faults, and results that
//! outlive an interruption.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::faults::{self, Fault, Plan};
use crate::guest::variant;
use crate::paths;
use crate::qemu::{Clock, Machine, Record, Vm};
use crate::report::{Report, Sample, commit};

/// The unit that experiments with the guest's script break.
pub const UNIT: &str = "xenstore-uk";

/// Fields of the script's last line that must be zero.
pub const MUST_BE_ZERO: [&str; 5] = ["wrong", "lost", "repeated", "events_lost", "events_stray"];

/// Host time that a busy virtual second may take: some 5 s on a free machine, many times that where
/// others work, too.
const HOST_SECONDS_PER_SECOND: u64 = 120;

/// Host time to boot the host and a guest.
const BOOT_LIMIT_S: u64 = 180;

/// After so long a watch event counts as lost: it takes milliseconds.
const EVENT_LIMIT_S: u64 = 2;

/// The same on the real clock. Where others work, too, the threads of two emulated CPUs wait for
/// each other: two seconds were seen, and one that is lost never comes.
const EVENT_LIMIT_REAL_S: u64 = 20;

/// One boot whose guest runs a checked script.
pub struct Boot<'a> {
    /// The experiment's name.
    pub name: &'a str,
    /// The clock.
    pub clock: Clock,
    /// Emulated CPUs.
    pub cpus: u32,
    /// Seed of the script.
    pub seed: u64,
    /// How long the script runs, in seconds of the clock.
    pub seconds: u64,
    /// Connections that work at once in the guest.
    pub clients: u64,
    /// Faults, if any.
    pub plan: Option<Plan>,
}

/// What a boot came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Faults and what became of them.
    pub faults: Vec<Fault>,
    /// Recoveries of any unit, of the orchestrator too.
    pub recoveries: u64,
    /// The script's last line: field and count; empty when it never came.
    pub totals: Vec<(String, u64)>,
    /// Why the boot ended early, if it did.
    pub broken: Option<String>,
}

impl Boot<'_> {
    /// Boots, waits for the end of the script, and ends the machine.
    pub fn run(&self) -> Result<Outcome> {
        Ok(self.observe(&[])?.0)
    }

    /// As [`Boot::run`], with more words for the orchestrator; gives every record, too.
    pub fn observe(&self, words: &[String]) -> Result<(Outcome, Vec<Record>)> {
        self.observe_script(words, "")
    }

    /// As [`Boot::observe`], with more `options` of the script, comma between any two.
    pub fn observe_script(
        &self,
        words: &[String],
        options: &str,
    ) -> Result<(Outcome, Vec<Record>)> {
        self.follow_script(&self.machine(words, options)?)
    }

    /// The machine of this boot, with more `words` and `options`.
    pub fn machine(&self, words: &[String], options: &str) -> Result<Machine> {
        let Boot { name, seed, seconds, clients, .. } = self;
        let event_limit_s = match self.clock {
            Clock::Virtual => EVENT_LIMIT_S,
            Clock::Real => EVENT_LIMIT_REAL_S,
        };
        let work = format!(
            "script:--seed,{seed},--seconds,{seconds},--clients,{clients},\
             --event-limit-s,{event_limit_s},--every-ms,5000,--forgive-doomed,{}{}{options}",
            u64::from(self.plan.is_some()),
            if options.is_empty() { "" } else { "," },
        );
        let mut machine = Machine::host(&format!("experiment-{name}"), self.clock);
        machine.cpus = self.cpus;
        machine.archive = Some(variant::archive(name, &work)?);
        if let Some(plan) = &self.plan {
            machine.orchestrator_args.push(plan.word()?);
        }
        machine.orchestrator_args.extend(words.iter().cloned());
        Ok(machine)
    }

    /// Boots this machine, waits for the end of the script, and ends it; gives every record, too.
    pub fn follow_script(&self, machine: &Machine) -> Result<(Outcome, Vec<Record>)> {
        let limit = Duration::from_secs(BOOT_LIMIT_S + self.seconds * HOST_SECONDS_PER_SECOND);
        follow(
            machine,
            limit,
            &Guest { does: "script", work: "script", total: "script-total", unit: UNIT },
        )
    }
}

/// What the guest of a boot does, and whom the faults hit meanwhile.
pub struct Guest<'a> {
    /// Its work, for messages.
    pub does: &'a str,
    /// What its `/init` calls that work when it has ended; other guests may end others.
    pub work: &'a str,
    /// The record that ends it.
    pub total: &'a str,
    /// The unit that is broken.
    pub unit: &'a str,
}

/// Boots, waits for the end of the guest's work, and ends the machine; gives every record, too.
pub fn follow(
    machine: &Machine,
    limit: Duration,
    guest: &Guest<'_>,
) -> Result<(Outcome, Vec<Record>)> {
    let mut vm = Vm::start(machine, limit)?;
    let awaited = format!("the end of the guest's {}", guest.does);
    let done = format!("GUEST_DONE work={} ", guest.work);
    let end = vm.wait_for(&awaited, limit, |line, record| {
        let total = record.filter(|r| r.is(guest.total) && !r.source.is_empty());
        // Work that is given up has no total; what follows it ends the waiting.
        let is_over = line.text.starts_with("(g") && line.text.contains(&done);
        (total.is_some() || is_over).then(|| total.cloned())
    });
    let records = vm.records().to_vec();
    vm.kill()?;
    let mut outcome = Outcome {
        faults: faults::collect(&records, guest.unit),
        recoveries: recoveries(&records),
        ..Outcome::default()
    };
    match end {
        Ok((Some(total), _)) => outcome.totals = counts(&total),
        Ok((None, _)) => outcome.broken = Some(format!("the guest's {} gave up", guest.does)),
        Err(error) => outcome.broken = Some(format!("{error:#}")),
    }
    Ok((outcome, records))
}

/// Recoveries of any unit, of the orchestrator too.
fn recoveries(records: &[Record]) -> u64 {
    let own = records.iter().filter(|r| r.source.is_empty());
    own.filter(|r| r.is("recovered") || r.is("self-recovered")).count() as u64
}

/// The numbers of a record.
fn counts(record: &Record) -> Vec<(String, u64)> {
    let fields = record.value.as_object().into_iter().flatten();
    fields.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, recoveries, .. } = self;
        let verdict = if self.is_clean() { "all answers right" } else { "NOT CLEAN" };
        write!(f, "{} faults, {recoveries} recoveries, {verdict}", faults.len())
    }
}

impl Outcome {
    /// A field of the script's last line.
    pub fn total(&self, field: &str) -> Option<u64> {
        self.totals.iter().find(|(name, _)| name == field).map(|(_, count)| *count)
    }

    /// Whether the script ended and everything in it was right.
    pub fn is_clean(&self) -> bool {
        MUST_BE_ZERO.iter().all(|field| self.total(field) == Some(0))
    }

    /// The faults as samples against `target`. The script cannot say which fault harmed it: the
    /// last one answers.
    pub fn samples(&self, target: &str) -> Vec<Sample> {
        let sample = |fault: &Fault| Sample {
            kind: fault.kind.clone(),
            target: target.to_owned(),
            at: fault.at,
            detected: fault.detected,
            received: fault.received,
            repaired: fault.repaired,
            rung: fault.rung,
            tries: fault.tries,
            hung: fault.reason.as_deref() == Some("hang"),
            lost: 0,
            repeated: 0,
            // What its writer overwrote before anybody read it has harmed nobody.
            ok: fault.repaired.is_some() || fault.overwritten.is_some(),
        };
        let mut out: Vec<Sample> = self.faults.iter().map(sample).collect();
        if let Some(last) = out.last_mut()
            && !self.is_clean()
        {
            let count = |field: &str| self.total(field).unwrap_or(0);
            last.lost = count("lost") + count("events_lost") + u64::from(self.broken.is_some());
            last.repeated = count("repeated");
            last.ok = false;
        }
        out
    }

    /// Adds the script's counts to a report's measures.
    pub fn measure(&self, report: &mut Report, host: &str) {
        for field in ["requests", "doomed"].iter().chain(&MUST_BE_ZERO) {
            report.measure(field, host, self.total(field).unwrap_or(u64::MAX));
        }
    }
}

/// Results of a long experiment's parts, kept in a file until the experiment is whole.
pub struct Parts {
    file: PathBuf,
    done: Vec<Part>,
}

#[derive(Serialize, Deserialize)]
struct Part {
    commit: String,
    label: String,
    outcome: Outcome,
}

impl Parts {
    /// The parts that an interrupted run of the same experiment and seed has left.
    pub fn open(name: &str, seed: u64) -> Result<Parts> {
        let dir = paths::target().join("experiments");
        fs::create_dir_all(&dir)?;
        let file = dir.join(format!("{name}-{seed}.jsonl"));
        let text = fs::read_to_string(&file).unwrap_or_default();
        let commit = commit();
        let parts = text.lines().filter_map(|line| serde_json::from_str::<Part>(line).ok());
        // What another build did says nothing about this one.
        let done = parts.filter(|part| part.commit == commit).collect();
        Ok(Parts { file, done })
    }

    /// The part of this label: from the file, or by doing it now.
    pub fn part(&mut self, label: &str, work: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
        if let Some(part) = self.done.iter().find(|part| part.label == label) {
            return Ok(part.outcome.clone());
        }
        let outcome = work()?;
        let part = Part { commit: commit(), label: label.to_owned(), outcome: outcome.clone() };
        let line = serde_json::to_string(&part)? + "\n";
        let mut file = OpenOptions::new().create(true).append(true).open(&self.file)?;
        file.write_all(line.as_bytes()).with_context(|| self.file.display().to_string())?;
        self.done.push(part);
        Ok(outcome)
    }

    /// The experiment is whole: nothing needs to be kept.
    pub fn finish(self) -> Result<()> {
        if self.file.exists() {
            fs::remove_file(&self.file)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_survive_an_interruption_of_the_same_build_only() {
        let name = format!("t-{}", std::process::id());
        let mut parts = Parts::open(&name, 1).unwrap();
        let outcome = Outcome { recoveries: 7, ..Outcome::default() };
        parts.part("a", || Ok(outcome)).unwrap();
        drop(parts);
        let mut parts = Parts::open(&name, 1).unwrap();
        let again = parts.part("a", || panic!("it has been done")).unwrap();
        assert_eq!(again.recoveries, 7);
        let text = fs::read_to_string(&parts.file).unwrap();
        fs::write(&parts.file, text.replace(&commit(), "another")).unwrap();
        let mut parts = Parts::open(&name, 1).unwrap();
        assert_eq!(parts.part("a", || Ok(Outcome::default())).unwrap().recoveries, 0);
        parts.finish().unwrap();
    }

    #[test]
    fn an_unclean_script_spoils_the_last_sample() {
        let fault = Fault {
            kind: "crash-x".into(),
            at: 1,
            detected: Some(2),
            repaired: Some(3),
            rung: Some(1),
            ..Fault::default()
        };
        let clean = MUST_BE_ZERO.iter().map(|name| ((*name).to_owned(), 0)).collect();
        let mut outcome =
            Outcome { faults: vec![fault.clone(), fault], totals: clean, ..Outcome::default() };
        assert!(outcome.is_clean() && outcome.samples(UNIT).iter().all(|s| s.ok));
        outcome.totals[1].1 = 2;
        let samples = outcome.samples(UNIT);
        assert!(samples[0].ok && !samples[1].ok && samples[1].lost == 2);
        outcome.totals.clear();
        assert!(!outcome.is_clean(), "a script that never ended proves nothing");
    }
}
