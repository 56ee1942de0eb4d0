//! What is counted, and the lines that tell it to programs.

use crate::latency::Histogram;
use crate::watches;

/// Complaints printed in full; more of them would only hide the first.
const COMPLAINTS_MAX: u64 = 20;

/// Counts of one script.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests answered.
    pub requests: u64,
    /// Answers that differ from the model's.
    pub wrong: u64,
    /// Requests never answered.
    pub lost: u64,
    /// Requests that were executed or answered twice.
    pub repeated: u64,
    /// Transactions that conflicted as they had to.
    pub conflicts: u64,
    /// Transactions that conflicted although nothing stood in their way.
    pub needless_conflicts: u64,
    /// Watch events.
    pub events: watches::Counts,
    /// Wrong answers inside transactions that changed nothing in the end, given up or EAGAIN: a
    /// server that died forgets what such a transaction has written. Without a fault there must be
    /// none.
    pub doomed: u64,
    /// Whether `doomed` answers are forgiven, since faults are injected.
    pub forgives_doomed: bool,
    /// Complaints made, printed or not.
    pub complaints: u64,
}

impl Tally {
    /// Prints what is wrong, up to a bound.
    pub fn complain(&mut self, text: &str) {
        self.complaints += 1;
        if self.complaints <= COMPLAINTS_MAX {
            let short: String = text.chars().take(400).collect();
            println!("xsload: WRONG: request {}: {short}", self.requests);
        }
    }

    /// Whether everything was as it must be.
    pub fn is_clean(&self) -> bool {
        let Tally { wrong, lost, repeated, events, .. } = self;
        let doomed = if self.forgives_doomed { 0 } else { self.doomed };
        wrong + lost + repeated + events.lost + events.stray + doomed == 0
    }

    /// Adds another script's counts.
    pub fn add(&mut self, other: &Tally) {
        self.forgives_doomed = other.forgives_doomed;
        self.requests += other.requests;
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.conflicts += other.conflicts;
        self.needless_conflicts += other.needless_conflicts;
        self.doomed += other.doomed;
        self.events.seen += other.events.seen;
        self.events.repeated += other.events.repeated;
        self.events.coalesced += other.events.coalesced;
        self.events.lost += other.events.lost;
        self.events.stray += other.events.stray;
    }

    /// The machine-readable line: one JSON object behind an `@`.
    pub fn line(&self, event: &str, head: &str, latency: Option<&Histogram>) -> String {
        let mut out = format!(
            "@{{\"event\":\"{event}\",{head}\"requests\":{},\"wrong\":{},\"lost\":{},\
             \"repeated\":{},\"conflicts\":{},\"needless_conflicts\":{},\"doomed\":{},\
             \"events\":{},\
             \"events_lost\":{},\"events_stray\":{},\"events_repeated\":{},\
             \"events_coalesced\":{},\"ok\":{}",
            self.requests,
            self.wrong,
            self.lost,
            self.repeated,
            self.conflicts,
            self.needless_conflicts,
            self.doomed,
            self.events.seen,
            self.events.lost,
            self.events.stray,
            self.events.repeated,
            self.events.coalesced,
            self.is_clean(),
        );
        if let Some(h) = latency {
            let show = |value: Option<u64>| value.map_or("null".into(), |v| v.to_string());
            out += &format!(
                ",\"mean_ns\":{},\"p50_ns\":{},\"p99_ns\":{},\"max_ns\":{}",
                h.mean(),
                show(h.per_mille(500)),
                show(h.per_mille(990)),
                h.max()
            );
        }
        out.push('}');
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_one_object_and_any_fault_shows() {
        let mut tally = Tally { requests: 5, ..Tally::default() };
        let line = tally.line("script", "\"seed\":1,", Some(&Histogram::new()));
        assert!(line.starts_with("@{\"event\":\"script\",\"seed\":1,\"requests\":5,"), "{line}");
        assert!(line.contains("\"ok\":true") && line.contains("\"p99_ns\":null"), "{line}");
        tally.events.lost = 1;
        assert!(tally.line("script", "", None).ends_with("\"ok\":false}"));
    }
}
