//! What an unmodified Linux guest waits for its XenStore requests through its own kernel: on our
//! host, where a change is replicated to three, and on the classic one with C xenstored.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Options;
use crate::guest::variant;
use crate::peer::drive::Setup;
use crate::peer::guest::{self, Guest, Kind};
use crate::peer::host;
use crate::progress::Steps;
use crate::qemu::{Clock, Line, Machine, Record, Vm};
use crate::report::{Promise, Report};

/// The experiment's name.
pub const NAME: &str = "xenstore-latency";

/// What the guest asks for, one request at a time, and what ours may take in per mille of the
/// classic host's (docs/SPECIFICATION.md). A transaction is four requests: start, read, write, end.
const OPERATIONS: [(&str, u64); 3] = [("read", 500), ("write", 600), ("transaction", 600)];

/// Figures of each operation that are compared.
const FIGURES: [&str; 2] = ["mean_ns", "p99_ns"];

/// Our host's name in measures.
const OURS: &str = "ours";

/// The classic host as Debian has it, and with what makes its scheduler quicker to switch; the
/// better one counts.
const CLASSIC: [(&str, &[&str]); 2] = [("debian", &[]), ("tuned", &["sched_ratelimit_us=0"])];

/// Host time for one boot and its guests.
const LIMIT: Duration = Duration::from_secs(1_800);

/// Measures with `requests` requests of each operation.
pub fn run(options: &Options, requests: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut report = Report::new(NAME, Clock::Virtual, options.seed, requests);
    for (operation, _) in OPERATIONS {
        let label = format!("{requests} requests of ours: {operation}");
        let said = steps.step(&label, || on_ours(operation, requests))?;
        said.0.iter().for_each(|record| note(&mut report, OURS, record));
    }
    let host = host::build(&steps)?;
    for (name, xen_args) in CLASSIC {
        let label = format!("{requests} requests of the classic host's, {name}");
        let said = steps.step(&label, || on_classic(&host, xen_args, requests))?;
        said.0.iter().for_each(|record| note(&mut report, name, record));
    }
    report.promises = promises(&report);
    Ok(report)
}

/// What guests said of their requests.
struct Said(Vec<Record>);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, record) in self.0.iter().enumerate() {
            let operation = record.text("operation").unwrap_or("?");
            let us = record.number("mean_ns").unwrap_or(0) / 1_000;
            write!(f, "{}{operation} {us} us", if place == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What the guest runs.
fn work(operation: &str, requests: u64) -> String {
    format!("run:xsload,bench,--operation,{operation},--requests,{requests}")
}

/// One boot of our host.
fn on_ours(operation: &str, requests: u64) -> Result<Said> {
    let mut machine = Machine::host(&format!("experiment-{NAME}"), Clock::Virtual);
    machine.archive = Some(variant::archive(NAME, &work(operation, requests))?);
    let mut vm = Vm::start(&machine, LIMIT)?;
    let (record, _) = vm.wait_for("the bench's figures", LIMIT, |_, record| {
        record.filter(|r| r.is("bench") && r.source.starts_with("(g")).cloned()
    })?;
    vm.kill()?;
    Ok(Said(vec![record]))
}

/// One boot of the classic host, with a guest for each operation, one after the other.
fn on_classic(host: &host::Host, xen_args: &[&str], requests: u64) -> Result<Said> {
    let mut setup = Setup::new(NAME, Clock::Virtual);
    setup.xen_args = xen_args.iter().map(|word| (*word).to_owned()).collect();
    let guests = OPERATIONS
        .map(|(operation, _)| Guest::new(operation, Kind::Pvh, &work(operation, requests)));
    let lines = guest::run(host, setup, &guests, LIMIT, |_| ())?;
    let records = guests.iter().map(|guest| {
        let said = lines.iter().filter_map(|line| guest.said(line));
        let mut records = said.filter_map(record_of);
        let found = records.find(|record| record.is("bench"));
        found
            .with_context(|| format!("the guest {:?} of the classic host said nothing", guest.name))
    });
    Ok(Said(records.collect::<Result<_>>()?))
}

/// The record in a guest's line that dom0 has printed.
fn record_of(text: &str) -> Option<Record> {
    Line { at: Duration::ZERO, text: text.to_owned() }.record()
}

/// Takes the figures over. Without one, the report has no promise that could hold.
fn note(report: &mut Report, host: &str, record: &Record) {
    let Some(operation) = record.text("operation") else { return };
    for figure in FIGURES {
        if let Some(ns) = record.number(figure).filter(|_| record.number("refused") == Some(0)) {
            report.measure(&format!("{operation} {figure}"), host, ns);
        }
    }
}

/// Holds ours to the better of the two others.
fn promises(report: &Report) -> Vec<Promise> {
    let mut out = Vec::new();
    for (operation, limit) in OPERATIONS {
        for figure in FIGURES {
            let hosts = report.measures.get(&format!("{operation} {figure}"));
            let of = |host: &str| hosts?.get(host)?.first().copied();
            let classic = CLASSIC.iter().filter_map(|(name, _)| of(name)).min();
            let all_came = CLASSIC.iter().all(|(name, _)| of(name).is_some());
            let ratio = of(OURS).zip(classic.filter(|ns| all_came && *ns > 0));
            let per_mille = ratio.map(|(ours, theirs)| ours * 1_000 / theirs);
            let name = format!("{operation} {figure}: per mille of the classic host's");
            out.push(Promise::at_most(name, limit, per_mille));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(operation: &str, mean: u64, p99: u64, refused: u64) -> Record {
        let text = format!(
            "@{{\"event\":\"bench\",\"operation\":\"{operation}\",\"requests\":2000,\
             \"refused\":{refused},\"mean_ns\":{mean},\"p99_ns\":{p99}}}"
        );
        record_of(&text).expect("a record")
    }

    /// Whether the promises hold if all figures are these, but for those that `spoil` changes.
    fn holds(spoil: impl Fn(&str, &str, &mut Record)) -> bool {
        let mut report = Report::new(NAME, Clock::Virtual, 1, 2_000);
        for (operation, _) in OPERATIONS {
            for (host, ns) in [(OURS, 500), ("debian", 1_200), ("tuned", 1_000)] {
                let mut record = bench(operation, ns, 2 * ns, 0);
                spoil(host, operation, &mut record);
                note(&mut report, host, &record);
            }
        }
        report.promises = promises(&report);
        report.holds()
    }

    #[test]
    fn ours_is_held_to_the_better_of_the_others() {
        assert!(holds(|_, _, _| ()));
        let slow = |of: &'static str, mean, p99| {
            move |host: &str, operation: &str, record: &mut Record| {
                if (host, operation) == (OURS, of) {
                    *record = bench(of, mean, p99, 0);
                }
            }
        };
        assert!(!holds(slow("read", 501, 1_000)), "a slow mean");
        assert!(!holds(slow("read", 500, 1_002)), "a slow p99");
        assert!(holds(slow("write", 600, 1_200)) && !holds(slow("write", 601, 1_200)));
        assert!(!holds(|host, operation, record| {
            if host == "tuned" {
                *record = bench(operation, 900, 1_800, 0);
            }
        }));
        assert!(
            !holds(|host, operation, record| {
                if (host, operation) == ("debian", "read") {
                    *record = bench("read", 1_200, 2_400, 1);
                }
            }),
            "a refused request"
        );
    }
}
