//! What to break and when: the word on the orchestrator's command line that asks its injector for
//! faults, and the console's records of them.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use system::{Role, SYSTEM};

use crate::qemu::Record;

/// Faults to be injected into one unit, from outside.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Kinds, in turn.
    pub kinds: Vec<&'static str>,
    /// How many.
    pub count: u64,
    /// Seed of the instants.
    pub seed: u64,
    /// Mean time between two, in microseconds.
    pub gap_us: u64,
    /// Pieces of work that the unit is handed before the first.
    pub after: u64,
    /// What the orchestrator is in the middle of when they come.
    pub during: Option<During>,
    /// Which replica of the XenStore they hit.
    pub target: Target,
}

/// What the orchestrator is in the middle of when a fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum During {
    /// Creating a guest.
    Create,
    /// Rebuilding the unit with this role.
    Rebuild(Role),
}

impl During {
    /// Its word in plans and in the records of faults.
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Rebuild(_) => "rebuild",
        }
    }
}

/// A replica of the XenStore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one that serves when the fault is due.
    Leader,
    /// The first one, which leads until its first fault and follows afterwards.
    First,
}

/// The domain of the unit with this role.
fn domid(role: Role) -> Result<u16> {
    let unit = SYSTEM.with_role(role).with_context(|| format!("no unit is a {role:?}"))?;
    Ok(SYSTEM.units[unit].domid)
}

impl Plan {
    /// The word that asks for these faults in the XenStore.
    pub fn word(&self) -> Result<String> {
        self.word_for(Role::XenStore)
    }

    /// The word that asks for these faults in the unit with this role.
    pub fn word_for(&self, role: Role) -> Result<String> {
        let Plan { kinds, count, seed, gap_us, after, during, target } = self;
        let unit = match target {
            Target::Leader if role == Role::XenStore => "store".to_owned(),
            _ => domid(role)?.to_string(),
        };
        let mut word = format!(
            "inject=unit:{unit};kinds:{};count:{count};seed:{seed};gap_us:{gap_us};after:{after}",
            kinds.join("+"),
        );
        if let Some(during) = during {
            word += &format!(";during:{}", during.word());
        }
        if let Some(During::Rebuild(other)) = during {
            word += &format!(";with:{}", domid(*other)?);
        }
        Ok(word)
    }
}

/// A failure this long after a fault and its recoveries has another cause: longer than the ladder's
/// longest back-off, and than one and a half of the longest time that a hang may last
/// (`REAL_PATIENCE`).
const RELATED_NS: u64 = 4_000_000_000;

/// What the names of faults in records begin with.
pub const RECORD_KINDS: &str = "corrupt-record-";

/// One fault and what became of it, as the console tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its kind.
    pub kind: String,
    /// When it took effect (Xen's time in nanoseconds, like all others here).
    pub at: u64,
    /// CPU time that the unit had received by then, where that is known.
    #[serde(default)]
    pub cpu: Option<u64>,
    /// When the watcher had first decided.
    pub detected: Option<u64>,
    /// CPU time that it received from the fault to the watcher's decision.
    #[serde(default)]
    pub received: Option<u64>,
    /// When a client had its first answer after the last recovery.
    pub repaired: Option<u64>,
    /// The rung of the last recovery.
    pub rung: Option<u64>,
    /// Recoveries up to the one that held; more than one: a lower rung could not help.
    #[serde(default)]
    pub tries: Option<u64>,
    /// Why the watcher decided, in its word: a fault that was to crash the unit may hang it.
    #[serde(default)]
    pub reason: Option<String>,
    /// When a damaged record, or wild registers, were seen to have been overwritten.
    #[serde(default)]
    pub overwritten: Option<u64>,
    /// What the orchestrator was in the middle of, if the plan asked for that.
    #[serde(default)]
    pub during: Option<String>,
}

impl Fault {
    /// The fault that this record tells of, if it is the orchestrator's own, or the last word of
    /// `unit` built with fault points.
    pub fn injected(record: &Record, unit: &str) -> Option<Fault> {
        let by_unit = record.source.strip_prefix('(').and_then(|name| name.strip_suffix(')'));
        let is_trusted = record.source.is_empty() || by_unit == Some(unit);
        if !is_trusted || !record.is("injected") {
            return None;
        }
        let kind = record.text("kind")?.to_owned();
        let at = record.number("at")?;
        let during = record.text("during").map(str::to_owned);
        let cpu = record.number("cpu");
        Some(Fault { kind, at, cpu, during, ..Fault::default() })
    }

    /// Whether it damaged a record, which may be written anew before anybody reads it.
    pub fn is_record(&self) -> bool {
        self.kind.starts_with(RECORD_KINDS)
    }

    /// Notes that the unit has written a damaged record again, or that the record was overwritten.
    fn note_record(&mut self, record: &Record, unit: &str) {
        let Some(at) = record.number("at") else { return };
        if record.is("overwritten") && record.source.is_empty() {
            self.overwritten = Some(at);
        } else if self.is_record() && record.is("rewritten") && record.source == format!("({unit})")
        {
            // Written again the moment it was found.
            self.detected = self.detected.or(Some(at));
            self.repaired = self.repaired.or(Some(at));
        }
    }

    /// Notes a recovery of the unit or of another replica, or that one of them serves in the place
    /// of another, if the record tells of it after this fault. After a fail-over it does not matter
    /// to anybody when the failed one was back.
    pub fn note(&mut self, record: &Record, unit: &str) -> bool {
        let is_turn = record.is("failed-over");
        let is_ours = record.source.is_empty() && (is_turn || record.is("recovered"));
        let name = record.text(if is_turn { "from" } else { "unit" });
        let last = self.repaired.unwrap_or(self.at);
        let related = self.at..=last.saturating_add(RELATED_NS);
        let detected = record.number("detected").filter(|detected| related.contains(detected));
        if !is_ours || !name.is_some_and(|name| is_replica(name, unit)) || detected.is_none() {
            return false;
        }
        if self.detected.is_none() || is_turn {
            self.detected = detected;
        }
        if self.detected == detected {
            // The same decision, whichever record tells more of it.
            self.reason = self.reason.take().or(record.text("reason").map(str::to_owned));
            let cpu = record.number("cpu").zip(self.cpu);
            self.received = self.received.or(cpu.and_then(|(now, then)| now.checked_sub(then)));
        }
        if is_turn {
            self.repaired = record.number("answered");
            self.rung = Some(0);
        }
        if self.rung == Some(0) {
            return true;
        }
        self.repaired = record.number("repaired").filter(|repaired| *repaired > self.at);
        self.rung = record.number("rung");
        self.tries = record.number("tries");
        true
    }
}

/// Whether `name` is that of the unit, or of another of its kind: with a number behind it.
fn is_replica(name: &str, unit: &str) -> bool {
    let rest = name.strip_prefix(unit);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Every fault of these records with its recoveries: those up to the next fault.
pub fn collect(records: &[Record], unit: &str) -> Vec<Fault> {
    let mut out: Vec<Fault> =
        records.iter().filter_map(|record| Fault::injected(record, unit)).collect();
    out.sort_by_key(|fault| fault.at);
    for record in records {
        let time = record.number("detected").or_else(|| record.number("at"));
        let Some(time) = time else { continue };
        // A record is printed when there is time for it, perhaps after the next fault's.
        let owner = out.iter_mut().rev().find(|fault| fault.at <= time);
        if let Some(fault) = owner {
            fault.note(record, unit);
            fault.note_record(record, unit);
        }
    }
    out
}

/// The name of a rung of the ladder.
pub fn rung_name(rung: u64) -> &'static str {
    match rung {
        0 => "fail-over",
        1 => "microreset",
        2 => "microreboot",
        3 => "rebuild",
        4 => "global restart",
        _ => "unknown rung",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn record(source: &str, value: Value) -> Record {
        Record { at: Duration::ZERO, source: source.into(), value }
    }

    fn recovered(source: &str, rung: u64, detected: u64, repaired: u64) -> Record {
        let value = json!({
            "event": "recovered", "unit": "u", "rung": rung, "detected": detected,
            "repaired": repaired,
        });
        record(source, value)
    }

    #[test]
    fn a_fail_over_repairs_whatever_becomes_of_the_failed_one() {
        let turn = json!({ "event": "failed-over", "from": "u", "to": "u-2", "detected": 110,
            "named": 111, "serves": 150, "answered": 160 });
        let injected = json!({ "event": "injected", "kind": "crash-undefined", "at": 100 });
        let mut records = vec![record("", injected), record("", turn), recovered("", 1, 110, 900)];
        for _ in 0..2 {
            let fault = &collect(&records, "u")[0];
            let told = (fault.detected, fault.repaired, fault.rung);
            assert_eq!(told, (Some(110), Some(160), Some(0)));
            records.swap(1, 2);
        }
        assert!(is_replica("u-2", "u") && !is_replica("unit", "u"));
    }

    #[test]
    fn recoveries_belong_to_the_fault_before_them_and_a_guest_tells_none() {
        let fault = |kind: &str, at: u64| {
            record("", json!({ "event": "injected", "kind": kind, "at": at }))
        };
        let records = [
            fault("crash-undefined", 100),
            fault("hang-loop", 500),
            recovered("", 1, 130, 190),
            recovered("(g16)", 3, 101, 102),
            recovered("", 1, 700, 0),
            recovered("", 2, 900, 990),
        ];
        let all = collect(&records, "u");
        assert_eq!(all.len(), 2);
        let told = |f: &Fault| (f.detected, f.repaired, f.rung);
        assert_eq!(told(&all[0]), (Some(130), Some(190), Some(1)));
        assert_eq!(told(&all[1]), (Some(700), Some(990), Some(2)));
        assert_eq!(collect(&records, "other")[0].detected, None);
        let with_cpu = |cpu: u64, value: Value| {
            let mut value = value;
            value["cpu"] = cpu.into();
            record("", value)
        };
        let hang = json!({ "event": "injected", "kind": "hang-loop", "at": 500 });
        let told = [
            with_cpu(40, hang),
            with_cpu(47, recovered("", 1, 700, 790).value),
            with_cpu(99, recovered("", 2, 900, 990).value),
        ];
        assert_eq!(collect(&told, "u")[0].received, Some(7), "by the first decision");
        let late = [fault("hang-loop", 500), recovered("", 1, RELATED_NS + 501, RELATED_NS + 600)];
        assert_eq!(collect(&late, "u")[0].detected, None);
    }

    #[test]
    fn a_damaged_record_is_written_again_or_overwritten() {
        let event = |source: &str, event: &str, at: u64| {
            record(source, json!({ "event": event, "kind": "corrupt-record-slot", "at": at }))
        };
        let records = [
            event("", "injected", 100),
            event("(u)", "rewritten", 150),
            event("", "overwritten", 180),
            event("", "injected", 200),
            event("(g16)", "rewritten", 210),
            event("(u)", "overwritten", 220),
            event("", "injected", 300),
            event("", "overwritten", 350),
        ];
        let all = collect(&records, "u");
        let told = |f: &Fault| (f.detected, f.repaired, f.overwritten);
        assert_eq!(told(&all[0]), (Some(150), Some(150), Some(180)));
        assert_eq!(told(&all[1]), (None, None, None));
        assert_eq!(told(&all[2]), (None, None, Some(350)));
    }

    #[test]
    fn a_unit_with_fault_points_tells_its_own_and_nobody_elses() {
        let word = json!({ "event": "injected", "kind": "crash-panic", "at": 5 });
        let told = |source: &str| Fault::injected(&record(source, word.clone()), "u").is_some();
        assert!(told("") && told("(u)"));
        assert!(!told("(g16)") && !told("(v)") && !told("u"));
    }

    #[test]
    fn the_word_is_what_the_orchestrator_reads() {
        let kinds = vec!["crash-undefined", "hang-loop"];
        let plan = Plan {
            kinds,
            count: 3,
            seed: 7,
            gap_us: 1000,
            after: 50,
            during: None,
            target: Target::First,
        };
        let word =
            "inject=unit:1;kinds:crash-undefined+hang-loop;count:3;seed:7;gap_us:1000;after:50";
        assert_eq!(plan.word().unwrap(), word);
        let during = |during| Plan { during: Some(during), ..plan.clone() }.word().unwrap();
        assert_eq!(during(During::Create), format!("{word};during:create"));
        assert_eq!(during(During::Rebuild(Role::Tool)), format!("{word};during:rebuild;with:5"));
        let leader = Plan { target: Target::Leader, ..plan.clone() }.word().unwrap();
        assert_eq!(leader, word.replace("unit:1", "unit:store"));
    }
}
