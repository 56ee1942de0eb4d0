//! The console as a story: which lines a person wants to see, and faults in one line each.

use crate::faults::{Fault, rung_name};
use crate::qemu::{Line, Record};
use crate::report::table::time;

/// Words that make a line of Xen's own worth showing.
const ALARMS: [&str; 6] = ["panic", "fatal", "error", "crash", "bug", "not found"];

/// What the guest's demonstration says when an answer was right, and when it was not.
const RIGHT: &str = "read it back";
const WRONG: &str = "WRONG";

/// What has happened so far.
pub struct Timeline {
    verbose: bool,
    unit: &'static str,
    open: Option<Fault>,
    /// Faults that were injected.
    pub faults: u64,
    /// Faults after which the unit served again and the guest got a right answer.
    pub survived: u64,
    /// Right answers in the guest.
    pub right: u64,
    /// Wrong answers in the guest.
    pub wrong: u64,
    /// Right answers since the last fault.
    pub right_since: u64,
    /// Whether Xen itself has stopped.
    pub xen_panicked: bool,
}

impl Timeline {
    /// A story about faults in `unit`; a verbose one leaves nothing out.
    pub fn new(verbose: bool, unit: &'static str) -> Timeline {
        let open = None;
        let (faults, survived, right, wrong, right_since) = (0, 0, 0, 0, 0);
        let xen_panicked = false;
        Timeline { verbose, unit, open, faults, survived, right, wrong, right_since, xen_panicked }
    }

    /// What to show for this line.
    pub fn tell(&mut self, line: &Line) -> Vec<String> {
        let mut out = Vec::new();
        self.xen_panicked |= line.text.starts_with("(XEN) Panic on CPU");
        if self.verbose || self.is_worth_showing(&line.text) {
            out.push(line.text.clone());
        }
        if let Some(record) = line.record() {
            out.extend(self.record(&record));
        } else {
            out.extend(self.answer(&line.text));
        }
        out
    }

    fn is_worth_showing(&self, text: &str) -> bool {
        if text.starts_with("(XEN)") {
            let lower = text.to_lowercase();
            let is_alarm = ALARMS.iter().any(|word| lower.contains(word));
            return text.contains("Xen version") || (is_alarm && !text.contains("Loglevel"));
        }
        let is_quiet = text.contains("@{") || text.trim().is_empty();
        !is_quiet && !is_banner(text) && !is_guest_kernel(text)
    }

    fn record(&mut self, record: &Record) -> Option<String> {
        if let Some(fault) = Fault::injected(record, self.unit) {
            self.faults += 1;
            self.right_since = 0;
            let text = format!(">>> fault {}: {} in {}", self.faults, fault.kind, self.unit);
            self.open = Some(fault);
            return Some(text);
        }
        let Some(fault) = self.open.as_mut() else { return unasked(record) };
        if !fault.note(record, self.unit) {
            return unasked(record);
        }
        let since = |instant: Option<u64>| time(instant.and_then(|t| t.checked_sub(fault.at)));
        Some(format!(
            ">>> fault {}: detected after {}, repaired after {} by {}",
            self.faults,
            since(fault.detected),
            since(fault.repaired),
            fault.rung.map_or("nothing", rung_name),
        ))
    }

    fn answer(&mut self, text: &str) -> Option<String> {
        if text.contains(WRONG) {
            self.wrong += 1;
            return None;
        }
        if !text.contains(RIGHT) {
            return None;
        }
        self.right += 1;
        self.right_since += 1;
        let is_repaired = self.open.as_ref().is_some_and(|fault| fault.rung.is_some());
        if !is_repaired {
            return None;
        }
        self.open = None;
        // Those, too, that came before the guest worked.
        self.survived = self.faults;
        let lost = if self.wrong == 0 { "nothing lost" } else { "answers were WRONG" };
        Some(format!(">>> fault {}: the guest goes on, {lost}", self.faults))
    }
}

/// A recovery that no injected fault explains: the operator's word, or a failure of its own.
fn unasked(record: &Record) -> Option<String> {
    if !record.source.is_empty() {
        return None;
    }
    let span = |from: &str, to: &str| {
        time(record.number(to).and_then(|end| end.checked_sub(record.number(from)?)))
    };
    if record.is("recovered") {
        return Some(format!(
            ">>> {} was recovered by {} (why: {}) and serves after {}",
            record.text("unit").unwrap_or("a unit"),
            record.number("rung").map_or("nothing", rung_name),
            record.text("reason").unwrap_or("not told"),
            span("detected", "ready"),
        ));
    }
    record.is("self-recovered").then(|| {
        format!(">>> the orchestrator recovered itself within {}", span("entered", "ready"))
    })
}

/// A guest's kernel begins its lines with the time, behind the guest's name.
fn is_guest_kernel(text: &str) -> bool {
    let Some((name, rest)) = text.split_once(") ") else { return false };
    let Some((time, _)) = rest.trim_start_matches('[').split_once(']') else { return false };
    let is_time = !time.is_empty() && time.chars().all(|c| " .0123456789".contains(c));
    name.starts_with('(') && rest.starts_with('[') && is_time
}

/// Xen draws its name and version with these characters.
fn is_banner(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| " \\/_|()'.,-0123456789+gdebu~".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn tell(timeline: &mut Timeline, text: &str) -> Vec<String> {
        timeline.tell(&Line { at: Duration::ZERO, text: text.into() })
    }

    #[test]
    fn a_fault_is_told_in_three_lines() {
        let mut t = Timeline::new(false, "u");
        let injected = r#"@{"event":"injected","kind":"crash-undefined","at":1000}"#;
        assert_eq!(tell(&mut t, injected), [">>> fault 1: crash-undefined in u"]);
        assert_eq!(tell(&mut t, "(g16) demo: wrote 3, read it back").len(), 1);
        let recovered =
            r#"@{"event":"recovered","unit":"u","rung":1,"detected":9700,"repaired":46000}"#;
        assert_eq!(
            tell(&mut t, recovered),
            [">>> fault 1: detected after 8700 ns, repaired after 45.0 us by microreset"]
        );
        let lines = tell(&mut t, "(g16) demo: wrote 4, read it back");
        assert_eq!(lines[1], ">>> fault 1: the guest goes on, nothing lost");
        assert_eq!((t.faults, t.survived, t.right, t.right_since), (1, 1, 2, 2));
        // Two faults come before the guest's next answer.
        for _ in 0..2 {
            tell(&mut t, injected);
            tell(&mut t, recovered);
        }
        tell(&mut t, "(g16) demo: wrote 5, read it back");
        assert_eq!((t.faults, t.survived), (3, 3));
    }

    #[test]
    fn a_recovery_without_a_fault_is_told_in_one_line() {
        let mut t = Timeline::new(false, "u");
        let asked = "@{\"event\":\"recovered\",\"unit\":\"v\",\"rung\":3,\
                     \"reason\":\"operator\",\"detected\":5,\"ready\":6005}";
        assert_eq!(
            tell(&mut t, asked),
            [">>> v was recovered by rebuild (why: operator) and serves after 6000 ns"]
        );
        let own = r#"@{"event":"self-recovered","times":1,"entered":7,"ready":107}"#;
        assert_eq!(tell(&mut t, own), [">>> the orchestrator recovered itself within 100 ns"]);
        assert!(tell(&mut t, r#"(g16) @{"event":"recovered","unit":"v"}"#).is_empty());
        assert_eq!((t.faults, t.survived), (0, 0));
    }

    #[test]
    fn xens_chatter_is_left_out_and_its_alarms_are_not() {
        let mut t = Timeline::new(false, "u");
        assert!(tell(&mut t, "(XEN) Initializing CPU#0").is_empty());
        assert!(tell(&mut t, "  |_|  \\_\\").is_empty());
        assert_eq!(tell(&mut t, "(XEN) Panic on CPU 0:").len(), 1);
        assert!(tell(&mut t, "(g16) [    0.240336] Yama: disabled").is_empty());
        assert_eq!(tell(&mut t, "(g16) GUEST_READY up=1.6").len(), 1);
        assert_eq!(tell(&mut t, "[     1.234] xenstore-uk (d1) serves").len(), 1);
        assert_eq!(tell(&mut Timeline::new(true, "u"), "(XEN) Initializing CPU#0").len(), 1);
    }
}
