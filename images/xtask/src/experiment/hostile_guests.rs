//! A guest attacks the services with everything it may write, while an ordinary guest checks every
//! answer it gets: only the attacker may suffer.

use std::fs;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Options;
use super::harness::MUST_BE_ZERO;
use crate::archive::Source;
use crate::faults::{self, Plan, Target};
use crate::guest::variant;
use crate::progress::Steps;
use crate::qemu::{Clock, Machine, Record, Vm};
use crate::report::{Promise, Report, Sample, stats};
use crate::{build, paths};

/// The experiment's name.
pub const NAME: &str = "hostile-guests";

/// What the attacks are compared with: an attacker that does nothing, and one that only computes.
const CALM: [&str; 2] = ["idle", "spin"];

/// Attacks of one life, in an order that leaves the last one without a ring.
const ATTACKS: [&str; 22] = [
    "ring-indices",
    "ring-lengths",
    "ring-garbage",
    "ring-half",
    "ring-unread",
    "ring-flood",
    "ring-reconnect",
    "grants-clear",
    "grants-retarget",
    "grants-types",
    "events-store",
    "events-both",
    "console-flood",
    "console-indices",
    "watches",
    "transactions",
    "values",
    "give-away",
    "paths",
    "deep",
    "ports",
    LAST,
];

/// The system description.
pub const SYSTEM: &str = "hostile";

/// Attacks on grants, which matter when a service maps them anew.
const GRANTS: [&str; 3] = ["grants-clear", "grants-retarget", "grants-types"];

/// Attacks that end the attacker, whom the toolstack starts again.
const ENDS: [&str; 2] = ["crash", "reboot"];

/// The attack after which nothing can serve its attacker: it has no rings any more.
const LAST: &str = "page-gone";

/// Length of an attack, in virtual milliseconds: several windows of the ordinary guest.
const ATTACK_MS: u64 = 150;
/// An attack with its pauses and what follows it, at most.
const ROUND_MS: u64 = ATTACK_MS + 80;
/// Length of a window of the ordinary guest's latencies: some 170 requests.
const WINDOW_MS: u64 = 40;
/// The ordinary guest has booted and works after this long.
const WAIT_MS: u64 = 1_800;
/// The ordinary guest works alone for about this long.
const BEFORE_MS: u64 = 400;
/// Rebuilds of the store while grants are wrong.
const REBUILDS: u64 = 6;
/// Host time that a boot may take.
const LIMIT: Duration = Duration::from_secs(1_500);
/// Host time in which epitaphs are printed.
const EVIDENCE: Duration = Duration::from_secs(5);
/// Nobody's latency may grow by more than this, in per cent of that beside a guest that computes.
const SLOWER_PERCENT: u64 = 200;

/// Boots the attacks, `runs` times with different seeds.
pub fn run(options: &Options, runs: u64) -> Result<Report> {
    let steps = Steps::new("experiment");
    let mut report = Report::new(NAME, Clock::Virtual, options.seed, runs);
    let mut found = Vec::new();
    for run in 0..runs {
        let seed = options.seed * 1000 + run;
        let attacks: Vec<&str> = CALM.iter().chain(&ATTACKS).copied().collect();
        for boot in [
            Boot { name: "attacks", seed, attacks, rebuilds: 0 },
            Boot { name: "grants", seed, attacks: GRANTS.to_vec(), rebuilds: REBUILDS },
            Boot { name: ENDS[0], seed, attacks: vec![ENDS[0]], rebuilds: 0 },
            Boot { name: ENDS[1], seed, attacks: vec![ENDS[1]], rebuilds: 0 },
        ] {
            steps.step(&format!("{}, seed {seed}", boot.name), || {
                let outcome = boot.run()?;
                let text = outcome.summary();
                found.push(outcome);
                Ok(text)
            })?;
        }
    }
    judge(&mut report, &found);
    Ok(report)
}

/// A test of what the experiment measures most rarely: a guest takes its grants back, or changes
/// their types, and gives them again, while the store is rebuilt. The other guest notices nothing,
/// and it is served afterwards. (One that grants another page of its own instead is served on that
/// page until the next rebuild: nothing tells the store which one is meant.)
///
/// # Errors
/// What went wrong.
pub fn wrong_grants() -> Result<String> {
    build::run_system(SYSTEM)?;
    let attacks = vec!["grants-clear", "grants-types"];
    let wanted = attacks.len();
    let boot = Boot { name: "grants", seed: 1, attacks, rebuilds: REBUILDS };
    let outcome = boot.run()?;
    let (unserved, came) = (outcome.unserved(), outcome.attacks.len());
    let is_right = outcome.is_clean() && unserved == 0 && outcome.unrepaired == 0;
    if !is_right || came != wanted || outcome.faults != REBUILDS {
        bail!(
            "{}; {unserved} attackers not served afterwards, {came} attacks of {wanted}, \
             {} rebuilds of {REBUILDS}, {} of them not repaired",
            outcome.summary(),
            outcome.faults,
            outcome.unrepaired,
        );
    }
    Ok(outcome.summary())
}

/// One boot.
struct Boot {
    name: &'static str,
    seed: u64,
    attacks: Vec<&'static str>,
    /// Crashes of the store meanwhile, each answered by a rebuild.
    rebuilds: u64,
}

/// What a boot came to.
#[derive(Debug, Default)]
struct Outcome {
    /// The attacks in this boot.
    wanted: Vec<&'static str>,
    /// What was found of each.
    attacks: Vec<Attacked>,
    /// Recoveries that nobody's fault explains.
    alarms: u64,
    /// Faults asked for, and faults injected.
    rebuilds: u64,
    faults: u64,
    /// Faults injected and not repaired.
    unrepaired: u64,
    /// Lives of the attacker, and those of them that were served before they attacked.
    lives: u64,
    served_lives: u64,
    /// The script's last line.
    total: Option<Record>,
    /// Why the boot ended early.
    broken: Option<String>,
}

/// One attack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Attacked {
    name: String,
    begin: u64,
    end: Option<u64>,
    rounds: u64,
    served: bool,
    /// Means and maxima of the ordinary guest's windows that lie inside.
    means: Vec<u64>,
    slowest: Vec<u64>,
}

impl Boot {
    fn run(&self) -> Result<Outcome> {
        let Boot { name, seed, attacks, rebuilds } = self;
        let seconds = (BEFORE_MS + attacks.len() as u64 * ROUND_MS).div_ceil(1_000);
        let work = format!(
            "script:--seed,{seed},--seconds,{seconds},--event-limit-s,5,--every-ms,{WINDOW_MS},\
             --windows,1,--forgive-doomed,{}",
            u64::from(*rebuilds > 0),
        );
        let plan = paths::image().join(format!("hostile-{name}"));
        let attack_list = attacks.join(",");
        let text = format!("seed={seed} ms={ATTACK_MS} wait_ms={WAIT_MS} attacks={attack_list}\n");
        fs::write(&plan, text)?;
        let more = vec![
            Source { name: "hostile".into(), path: paths::unikernel("hostile") },
            Source { name: "hostile-plan".into(), path: plan },
        ];
        let mut machine = Machine::host(&format!("experiment-{NAME}-{name}"), Clock::Virtual);
        machine.archive = Some(variant::archive_with(NAME, &work, more)?);
        // The attacker's own words are debug text of a guest.
        machine.xen_args.push("guest_loglvl=all".into());
        if *rebuilds > 0 {
            let (kinds, gap_us) = (vec!["crash-undefined"], ATTACK_MS * 1_000 / 3);
            // The ordinary guest has booted when the store has had this much work.
            let plan = Plan {
                kinds,
                count: *rebuilds,
                seed: *seed,
                gap_us,
                after: 1_000,
                during: None,
                target: Target::Leader,
            };
            machine.orchestrator_args.extend([plan.word()?, "rung=3".into()]);
        }
        let mut vm = Vm::start(&machine, LIMIT)?;
        let end = vm.wait_for("the end of the guest's script", LIMIT, |_, record| {
            record.filter(|r| r.is("script-total") && r.source.starts_with("(g")).cloned()
        });
        let records = vm.records().to_vec();
        // What was known of each failure, for whoever reads the log.
        vm.type_text(b"e")?;
        vm.expect("failures so far", LIMIT)?;
        vm.expect_any(&["never said"], EVIDENCE).ok();
        vm.kill()?;
        let mut outcome = Outcome { rebuilds: *rebuilds, ..read(&records, attacks) };
        match end {
            Ok((total, _)) => outcome.total = Some(total),
            Err(error) => outcome.broken = Some(format!("{error:#}")),
        }
        Ok(outcome)
    }
}

/// What the console tells of a boot.
fn read(records: &[Record], wanted: &[&'static str]) -> Outcome {
    let mut outcome = Outcome { wanted: wanted.to_vec(), ..Outcome::default() };
    let own = |event: &str| records.iter().filter(|r| r.source.is_empty() && r.is(event)).count();
    let found = faults::collect(records, super::harness::UNIT);
    outcome.faults = found.len() as u64;
    outcome.unrepaired = found.iter().filter(|fault| fault.repaired.is_none()).count() as u64;
    let explained = found.iter().filter(|fault| fault.repaired.is_some()).count() as u64;
    let recovered = own("recovered") as u64;
    outcome.alarms = recovered.saturating_sub(explained) + own("self-recovered") as u64;
    outcome.attacks = marks(records);
    let lives = records.iter().filter(|r| r.is("attacker-begins") && r.source.contains("(d"));
    for life in lives {
        outcome.lives += 1;
        outcome.served_lives += u64::from(life.value["served"].as_bool() == Some(true));
    }
    let offset = clocks_apart(records);
    let mut before: Option<u64> = None;
    for window in records.iter().filter(|r| is_window(r)) {
        let Some(at) = window.number("at_ns").map(|at| at.saturating_add(offset)) else { continue };
        let began = before.replace(at).unwrap_or(at);
        let inside = outcome
            .attacks
            .iter_mut()
            .find(|attack| attack.begin <= began && attack.end.is_some_and(|end| at <= end));
        if let Some(attack) = inside {
            attack.means.extend(window.number("mean_ns"));
            attack.slowest.extend(window.number("max_ns"));
        }
    }
    outcome
}

/// A line of the attacker: Xen prints it behind its domain's name.
fn is_mark(record: &Record) -> bool {
    record.is("attack") && record.source.contains("(d")
}

fn is_window(record: &Record) -> bool {
    record.is("script") && record.source.starts_with("(g") && record.number("at_ns").is_some()
}

fn marks(records: &[Record]) -> Vec<Attacked> {
    let mut out: Vec<Attacked> = Vec::new();
    for record in records.iter().filter(|record| is_mark(record)) {
        let (Some(name), Some(at)) = (record.text("name"), record.number("at")) else { continue };
        let last = out.last_mut().filter(|last| last.name == name);
        match (record.text("phase"), last) {
            (Some("begin"), _) => {
                out.push(Attacked { name: name.into(), begin: at, ..Attacked::default() });
            }
            (Some("end"), Some(last)) => {
                last.end = Some(at);
                last.rounds = record.number("rounds").unwrap_or(0);
            }
            (Some("after"), Some(last)) => {
                last.served = record.value["served"].as_bool().unwrap_or(false);
            }
            _ => {}
        }
    }
    out
}

/// By how much the ordinary guest's clock, which starts with its script, is behind Xen's: a line of
/// it that stands before the attacker's was written before it, and the tightest pair tells.
fn clocks_apart(records: &[Record]) -> u64 {
    let mut last = None;
    let mut least = u64::MAX;
    for record in records {
        if is_window(record) {
            last = record.number("at_ns");
        } else if is_mark(record)
            && let (Some(window), Some(mark)) = (last, record.number("at"))
        {
            least = least.min(mark.saturating_sub(window));
        }
    }
    least
}

impl Outcome {
    fn field(&self, name: &str) -> Option<u64> {
        self.total.as_ref()?.number(name)
    }

    /// Attacks whose attacker had no answer when it behaved again; one that ends itself is to be
    /// served in its next life.
    fn unserved(&self) -> u64 {
        let ends = self.wanted.iter().any(|name| ENDS.contains(name));
        let attacks = self.attacks.iter().filter(|attack| !ends && attack.name != LAST);
        let after = attacks.filter(|attack| !attack.served).count() as u64;
        let too_few = u64::from(ends).saturating_add(1).saturating_sub(self.lives);
        after + too_few + (self.lives - self.served_lives)
    }

    fn is_clean(&self) -> bool {
        MUST_BE_ZERO.iter().all(|field| self.field(field) == Some(0)) && self.alarms == 0
    }

    fn summary(&self) -> String {
        let rounds: u64 = self.attacks.iter().map(|attack| attack.rounds).sum();
        let verdict = match &self.broken {
            Some(reason) => format!("BROKEN: {reason}"),
            None if self.is_clean() => "the ordinary guest noticed nothing".to_owned(),
            None => "NOT CLEAN".to_owned(),
        };
        let requests = self.field("requests").unwrap_or(0);
        format!("{} attacks, {rounds} rounds, {requests} requests, {verdict}", self.attacks.len())
    }
}

fn judge(report: &mut Report, outcomes: &[Outcome]) {
    let mut missing = 0;
    for outcome in outcomes {
        for name in &outcome.wanted {
            let mut attacks = outcome.attacks.iter().filter(|attack| attack.name == *name);
            let Some(attack) = attacks.next() else {
                missing += 1;
                continue;
            };
            if !CALM.contains(name) {
                let kind = format!("hostile-{name}");
                let (target, ok) = ("guests".to_owned(), outcome.is_clean());
                let sample = Sample { kind, target, at: attack.begin, ok, ..Sample::default() };
                report.samples.push(Some(sample));
            }
            report.measure("rounds", name, attack.rounds);
            report.measure("served-after", name, u64::from(attack.served));
            attack.means.iter().for_each(|ns| report.measure("latency", name, *ns));
            attack.slowest.iter().for_each(|ns| report.measure("slowest", name, *ns));
        }
    }
    promise(report, outcomes, missing);
}

fn promise(report: &mut Report, outcomes: &[Outcome], missing: u64) {
    let sum = |value: fn(&Outcome) -> u64| Some(outcomes.iter().map(value).sum::<u64>());
    let injected = outcomes.iter().map(|outcome| outcome.faults).sum::<u64>();
    let wanted = outcomes.iter().map(|outcome| outcome.rebuilds).sum::<u64>();
    let mut promises = vec![
        Promise::enough("rebuilds beside wrong grants", wanted, injected as usize),
        Promise::at_most("attacks that never came", 0, Some(missing)),
        Promise::at_most("recoveries without a fault", 0, sum(|outcome| outcome.alarms)),
        Promise::at_most("faults not repaired", 0, sum(|outcome| outcome.unrepaired)),
        Promise::at_most("attackers not served afterwards", 0, sum(Outcome::unserved)),
    ];
    for field in MUST_BE_ZERO {
        let values = outcomes.iter().map(|outcome| outcome.field(field).unwrap_or(u64::MAX));
        let total = values.fold(0, u64::saturating_add);
        promises.push(Promise::at_most(format!("script: {field}"), 0, Some(total)));
    }
    let latency = report.measures.get("latency");
    let median = |name: &str| stats::median(latency?.get(name)?);
    if let Some(calm) = median(CALM[1]).filter(|calm| *calm > 0) {
        for name in ATTACKS {
            let percent = median(name).map(|ns| ns * 100 / calm);
            let what = format!("latency under {name}, % of that beside a guest that computes");
            promises.push(Promise::at_most(what, SLOWER_PERCENT, percent));
        }
    }
    report.promises = promises;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn record(source: &str, value: Value) -> Record {
        Record { at: Duration::ZERO, source: source.into(), value }
    }

    fn mark(phase: &str, at: u64) -> Record {
        let value = json!({
            "event": "attack", "name": "spin", "phase": phase, "at": at, "rounds": 7,
            "served": true,
        });
        record("(XEN) (d17)", value)
    }

    fn window(at: u64, mean: u64) -> Record {
        let value = json!({ "event": "script", "at_ns": at, "mean_ns": mean, "max_ns": 2 * mean });
        record("(g16)", value)
    }

    #[test]
    fn windows_belong_to_the_attack_they_lie_in() {
        // The script began at 1,000 of Xen's clock.
        let records = [
            window(90, 1),
            mark("begin", 1_100),
            window(200, 2),
            window(300, 3),
            window(400, 4),
            mark("end", 1_401),
            window(500, 5),
            mark("after", 1_600),
        ];
        assert_eq!(clocks_apart(&records), 1_001);
        let found = read(&records, &["spin"]);
        let spin = &found.attacks[0];
        assert_eq!((&spin.means, spin.rounds, spin.served), (&vec![3, 4], 7, true));
        assert_eq!(spin.slowest, [6, 8]);
    }

    #[test]
    fn a_recovery_without_a_fault_and_a_missing_attack_break_the_promises() {
        let total = json!({
            "event": "script-total", "wrong": 0, "lost": 0, "repeated": 0, "events_lost": 0,
            "events_stray": 0,
        });
        let outcome = |records: &[Record]| {
            let mut outcome = read(records, &["crash"]);
            outcome.total = Some(record("(g16)", total.clone()));
            outcome
        };
        let holds = |outcome: Outcome| {
            let mut report = Report::new(NAME, Clock::Virtual, 1, 1);
            judge(&mut report, &[outcome]);
            report.holds()
        };
        let value = json!({ "event": "attack", "name": "crash", "phase": "begin", "at": 5 });
        let crash = record("(d17)", value);
        let begins = |served: bool| {
            record("(d17)", json!({ "event": "attacker-begins", "at": 4, "served": served }))
        };
        let forged = record("(g17)", json!({ "event": "recovered", "detected": 6 }));
        let alarm = record("", json!({ "event": "recovered", "detected": 6 }));
        let good = [begins(true), crash, begins(true)];
        let with = |more: &[Record]| holds(outcome(&[&good, more].concat()));
        assert!(with(&[forged]));
        assert!(!with(&[alarm]));
        assert!(!with(&[begins(false)]), "a life that is not served");
        assert!(!holds(outcome(&good[..2])), "an attacker that never returned");
        assert!(!holds(outcome(&[])), "an attack that never came");
    }
}
