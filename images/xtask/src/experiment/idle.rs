//! A host that has nothing to do: how soon it is ready, and what CPU time and memory it takes.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use system::{FABRIC_PAGES, SYSTEM};

use super::Options;
use crate::elf::Elf;
use crate::guest::variant;
use crate::paths;
use crate::progress::Steps;
use crate::qemu::{Clock, Machine, Record, Vm};
use crate::report::{Promise, Report};

/// The experiment's name.
pub const NAME: &str = "idle";

/// Promises (docs/SPECIFICATION.md).
const READY_US: u64 = 100_000;
const CPU_MILLIONTHS: u64 = 5_000;
const OWN_BYTES: u64 = 4 << 20;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// ELF segments that are loaded.
const LOAD: u32 = 1;

/// Host time for the whole boot.
const LIMIT: Duration = Duration::from_secs(600);

/// Host time between two looks: each makes the orchestrator print for a millisecond.
const PAUSE: Duration = Duration::from_secs(2);

/// What the console has told before the guest was up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Start {
    /// When the orchestrator was entered, in µs of Xen's time.
    entered_us: Option<u64>,
    /// When each of the services was ready.
    ready_us: BTreeMap<String, u64>,
    /// Bytes of the orchestrator's page tables.
    tables: Option<u64>,
    /// Bytes of the archive.
    archive: Option<u64>,
}

impl Start {
    fn note(&mut self, text: &str, record: Option<&Record>) {
        if let Some((at_us, what)) = milestone(text) {
            if what == "orchestrator entered" {
                self.entered_us = Some(at_us);
            } else if let Some(unit) = what.strip_suffix(" serves") {
                self.ready_us.entry(unit.to_owned()).or_insert(at_us);
            }
        }
        if let Some(record) = record.filter(|r| r.source.is_empty() && r.is("memory")) {
            self.tables = record.number("tables");
            self.archive = record.number("archive");
        }
    }
}

/// When the last of the services was ready; `None` if one never was.
fn all_ready_us(start: &Start) -> Option<u64> {
    let units = SYSTEM.units.iter().map(|unit| format!("{} (d{})", unit.name, unit.domid));
    let ready: Option<Vec<u64>> = units.map(|unit| start.ready_us.get(&unit).copied()).collect();
    ready?.into_iter().max()
}

/// Time in µs and text of one of the orchestrator's notes, `[ms.µs] text`.
fn milestone(text: &str) -> Option<(u64, &str)> {
    let (time, what) = text.strip_prefix('[')?.split_once("] ")?;
    let (ms, us) = time.trim().split_once('.')?;
    Some((ms.parse::<u64>().ok()? * 1_000 + us.parse::<u64>().ok()?, what))
}

/// CPU time that orchestrator and services had received at some time, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    at: u64,
    cpu: u64,
}

impl Look {
    /// Asks for the status, whose last line is the record.
    fn take(vm: &mut Vm) -> Result<Look> {
        vm.type_text(b"s")?;
        let (record, _) = vm.wait_for("the status", LIMIT, |_, record| {
            record.filter(|r| r.is("cpu-time") && r.source.is_empty()).cloned()
        })?;
        let field = |name: &str| record.number(name).with_context(|| format!("no field {name}"));
        Ok(Look { at: field("at")?, cpu: field("orchestrator")? + field("services")? })
    }

    /// Millionths of a CPU since an earlier look.
    fn millionths_since(self, before: Look) -> Option<u64> {
        ((self.cpu - before.cpu) * 1_000_000).checked_div(self.at - before.at)
    }
}

/// Watches an idle host for `seconds` virtual seconds at least.
pub fn run(options: &Options, seconds: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut machine = Machine::host("experiment-idle", Clock::Virtual);
    machine.archive = Some(variant::archive(NAME, "idle")?);
    let mut start = Start::default();
    let mut share = None;
    steps.step(&format!("{seconds} idle seconds"), || {
        let mut vm = Vm::start(&machine, LIMIT)?;
        vm.wait_for("an idle guest", LIMIT, |line, record| {
            start.note(&line.text, record);
            let is_up = line.text.starts_with("(g") && line.text.contains("GUEST_READY");
            is_up.then_some(())
        })?;
        // What the guest does last has been answered then.
        vm.next_line(PAUSE)?;
        let first = Look::take(&mut vm)?;
        let last = loop {
            vm.next_line(PAUSE)?;
            let look = Look::take(&mut vm)?;
            if look.at >= first.at + seconds * 1_000_000_000 {
                break look;
            }
        };
        vm.kill()?;
        share = last.millionths_since(first);
        Ok(format!("{} virtual seconds watched", (last.at - first.at) / 1_000_000_000))
    })?;
    let image = loaded_bytes(&fs::read(paths::unikernel("orchestrator"))?)?;
    let mut report = Report::new(NAME, Clock::Virtual, options.seed, seconds);
    report.promises = promises(&start, share, image);
    Ok(report)
}

/// Memory that an image takes, from its first byte to its last.
fn loaded_bytes(image: &[u8]) -> Result<u64> {
    let elf = Elf::parse(image)?;
    let loaded = || elf.segments.iter().filter(|segment| segment.kind == LOAD);
    let begin = loaded().map(|segment| segment.vaddr).min();
    let end = loaded().map(|segment| segment.vaddr + segment.memory_size).max();
    Ok(end.context("an image without segments")? - begin.unwrap_or(0))
}

/// `image`: bytes of the orchestrator's image in memory, the fabric among them.
fn promises(start: &Start, share: Option<u64>, image: u64) -> Vec<Promise> {
    let fabric = FABRIC_PAGES as u64 * PAGE;
    let limits = &SYSTEM.limits;
    let ready = all_ready_us(start).zip(start.entered_us).map(|(ready, entered)| ready - entered);
    let own = start.tables.map(|tables| image - fabric + tables);
    vec![
        Promise::at_most("orchestrator's start to all services ready, µs", READY_US, ready),
        Promise::at_most("orchestrator and services, millionths of a CPU", CPU_MILLIONTHS, share),
        Promise::at_most("orchestrator's own memory, bytes", OWN_BYTES, own),
        Promise::at_most("fabric, bytes", u64::from(limits.fabric_pages) * PAGE, Some(fabric)),
        Promise::at_most("archive, bytes", u64::from(limits.archive_mib) << 20, start.archive),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_start_is_read_from_the_console() {
        let mut start = Start::default();
        for text in [
            "[  1000.369] orchestrator entered",
            "[  1009.529] xenstore-uk (d1) serves",
            "(g16) [  5.000] nobody serves",
            "[  1013.007] tool-uk (d5) serves",
        ] {
            start.note(text, None);
        }
        let value = json!({ "event": "memory", "tables": 81920, "archive": 38000000 });
        let record = |source: &str| Record {
            at: Duration::ZERO,
            source: source.into(),
            value: value.clone(),
        };
        start.note("", Some(&record("(g16)")));
        assert_eq!(start.tables, None, "a guest tells nothing about the host");
        start.note("", Some(&record("")));
        let ready = [("tool-uk (d5)", 1_013_007), ("xenstore-uk (d1)", 1_009_529)];
        let ready = ready.map(|(unit, at_us)| (unit.to_owned(), at_us));
        assert_eq!((start.entered_us, &start.ready_us), (Some(1_000_369), &ready.into()));
        assert_eq!(all_ready_us(&start), None, "others are to come");
        assert_eq!((start.tables, start.archive), (Some(81_920), Some(38_000_000)));
    }

    fn all_at(at_us: u64) -> BTreeMap<String, u64> {
        let name = |unit: &system::Unit| format!("{} (d{})", unit.name, unit.domid);
        SYSTEM.units.iter().map(|unit| (name(unit), at_us)).collect()
    }

    #[test]
    fn each_promise_can_break() {
        let start = Start {
            entered_us: Some(1),
            ready_us: all_at(100_001),
            tables: Some(PAGE),
            archive: Some(1),
        };
        let fabric = FABRIC_PAGES as u64 * PAGE;
        let holds = |start: &Start, share, image| {
            promises(start, share, image).iter().all(|promise| promise.holds)
        };
        assert!(holds(&start, Some(5_000), fabric + OWN_BYTES - PAGE));
        assert!(!holds(&start, Some(5_001), fabric + PAGE), "too busy");
        assert!(!holds(&start, None, fabric + PAGE), "never looked at");
        assert!(!holds(&start, Some(1), fabric + OWN_BYTES), "too large");
        let late = Start { ready_us: all_at(100_002), ..start.clone() };
        assert!(!holds(&late, Some(1), fabric + PAGE), "too late");
        let mut fewer = start.clone();
        fewer.ready_us.pop_first();
        assert!(!holds(&fewer, Some(1), fabric + PAGE), "one is missing");
        let silent = Start { archive: None, ..start };
        assert!(!holds(&silent, Some(1), fabric + PAGE), "no archive told");
    }

    #[test]
    fn the_share_is_of_the_time_between_two_looks() {
        let (before, after) = (Look { at: 1_000, cpu: 50 }, Look { at: 3_000, cpu: 60 });
        assert_eq!(after.millionths_since(before), Some(5_000));
        assert_eq!(before.millionths_since(before), None);
    }
}
