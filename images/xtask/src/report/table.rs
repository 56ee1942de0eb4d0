//! A report as tables on a terminal.

use std::collections::BTreeSet;

use super::stats::{mean, median, median_interval, worst, worst_name};
use super::{Report, Sample};

/// A table of aligned columns.
#[derive(Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(|text| (*text).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Whether there is nothing below the headings.
    pub fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// The table as text: the first column to the left, numbers to the right.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Nanoseconds for a person.
pub fn time(ns: Option<u64>) -> String {
    match ns {
        None => "-".into(),
        Some(ns) if ns < 10_000 => format!("{ns} ns"),
        Some(ns) if ns < 10_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        Some(ns) if ns < 10_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        Some(ns) => format!("{:.1} s", ns as f64 / 1e9),
    }
}

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut out = format!(
        "{}: {} clock, seed {}, commit {:.12}\n",
        report.experiment, report.clock, report.seed, report.commit
    );
    for table in [faults(report), measures(report), promises(report)] {
        if !table.is_empty() {
            out += &format!("\n{}\n", table.text());
        }
    }
    let never = report.samples.iter().filter(|sample| sample.is_none()).count();
    if never > 0 {
        out += &format!("\n{never} instants never came\n");
    }
    out
}

fn faults(report: &Report) -> Table {
    let mut table = Table::new(&[
        "fault",
        "number",
        "ok",
        "detected p50",
        "worst",
        "repaired p50",
        "worst",
        "rungs",
        "lost",
        "repeated",
    ]);
    let samples = || report.samples.iter().flatten();
    let groups: BTreeSet<_> = samples().map(|s| (s.kind.as_str(), s.target.as_str())).collect();
    let targets: BTreeSet<_> = groups.iter().map(|(_, target)| *target).collect();
    for (kind, target) in groups {
        let all: Vec<&Sample> =
            samples().filter(|s| s.kind == kind && s.target == target).collect();
        let name = if targets.len() > 1 { format!("{kind}, {target}") } else { kind.to_owned() };
        let detection: Vec<u64> = all.iter().filter_map(|s| s.detection()).collect();
        let repair: Vec<u64> = all.iter().filter_map(|s| s.repair()).collect();
        let mut rungs: Vec<u64> = all.iter().filter_map(|s| s.rung).collect();
        rungs.sort_unstable();
        rungs.dedup();
        let rungs: Vec<String> = rungs.iter().map(u64::to_string).collect();
        table.row(vec![
            name,
            all.len().to_string(),
            all.iter().filter(|s| s.ok).count().to_string(),
            time(median(&detection)),
            time(worst(&detection)),
            time(median(&repair)),
            time(worst(&repair)),
            rungs.join(","),
            all.iter().map(|s| s.lost).sum::<u64>().to_string(),
            all.iter().map(|s| s.repeated).sum::<u64>().to_string(),
        ]);
    }
    table
}

fn measures(report: &Report) -> Table {
    let mut table =
        Table::new(&["measure", "host", "values", "mean", "median", "95 % interval", "worst"]);
    for (name, hosts) in &report.measures {
        for (host, values) in hosts {
            let interval = median_interval(values);
            table.row(vec![
                name.clone(),
                host.clone(),
                values.len().to_string(),
                mean(values).map_or("-".into(), |v| v.to_string()),
                median(values).map_or("-".into(), |v| v.to_string()),
                interval.map_or("-".into(), |(low, high)| format!("{low}..{high}")),
                worst(values).map_or("-".into(), |v| format!("{v} ({})", worst_name(values.len()))),
            ]);
        }
    }
    table
}

fn promises(report: &Report) -> Table {
    let mut table = Table::new(&["promise", "limit", "found", ""]);
    for promise in &report.promises {
        table.row(vec![
            promise.name.clone(),
            promise.limit.to_string(),
            promise.value.map_or("-".into(), |value| value.to_string()),
            if promise.holds { "holds".into() } else { "BROKEN".into() },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Clock;
    use crate::report::Promise;

    #[test]
    fn columns_are_aligned_and_broken_promises_stand_out() {
        let mut report = Report::new("t", Clock::Virtual, 1, 1);
        report.promises.push(Promise::at_most("short", 5, Some(123)));
        report.promises.push(Promise::at_most("a longer name", 5, None));
        let text = render(&report);
        assert!(text.contains("short              5    123  BROKEN"), "{text}");
        assert!(text.contains("a longer name      5      -  BROKEN"), "{text}");
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(time(Some(8_700)), "8700 ns");
        assert_eq!(time(Some(25_900)), "25.9 us");
        assert_eq!(time(Some(12_570_000)), "12.6 ms");
        assert_eq!(time(None), "-");
    }
}
