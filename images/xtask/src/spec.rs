//! `cargo xtask spec`: reads the promises of docs/SPECIFICATION.md and says which of them hold.
//!
//! A promise is a row of a table there: what is promised, its limit, and in the last cell the
//! command that measures it, between backticks. Further words between backticks pick those of the
//! experiment's own promises that the row stands on: the ones whose names hold all of the words.
//! Without such words the row stands on all of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::experiment;
use crate::paths;

/// The page of promises, from the workspace's root.
const PAGE: &str = "docs/SPECIFICATION.md";

/// Columns of a verdict.
const WORD: usize = 12;

/// Digits of a commit that are shown.
const COMMIT_DIGITS: usize = 12;

/// Which results are held against the promises.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Results of experiments, written by `cargo xtask experiment NAME --json FILE`; of two results
    /// of one experiment the later one on this line counts.
    ///
    /// Each promise of docs/SPECIFICATION.md is printed with the value that came closest to its
    /// limit, the clock, the commit and the verdict: `holds`, `BROKEN`, `not measured` where no
    /// result is given, `UNKNOWN` where a result says nothing of the promise, `by exit code` where
    /// the command itself fails when the promise is broken. Fails when a promise has no command
    /// that can be run, is broken, or is unknown to its result.
    #[arg(value_name = "FILE")]
    pub results: Vec<PathBuf>,
}

/// Checks a command's words (without `cargo xtask`): an error says what is wrong with them.
pub type Check<'a> = &'a dyn Fn(&[&str]) -> Result<()>;

/// One row of a table of promises.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    promise: String,
    limit: String,
    /// The command's words without `cargo xtask`; none where there is no command.
    command: Vec<String>,
    /// What picks an experiment's promises.
    words: Vec<String>,
}

/// One promise of an experiment's result.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Measured {
    name: String,
    limit: u64,
    value: Option<u64>,
    holds: bool,
}

/// An experiment's result, as much of it as is needed here.
#[derive(Clone, Debug)]
struct Outcome {
    experiment: String,
    clock: String,
    commit: String,
    promises: Vec<Measured>,
}

/// What became of a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Holds(Measured),
    Broken(Measured),
    NotMeasured,
    ByExitCode,
    /// The result names nothing that the row's words pick.
    Unknown,
}

/// Prints every promise and its verdict; fails when one is broken or cannot be measured.
pub fn run(options: &Options, check: Check<'_>) -> Result<()> {
    let page = fs::read_to_string(paths::root().join(PAGE)).context(PAGE)?;
    let rows = rows(&page);
    let outcomes = options.results.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    let mut complaints = Vec::new();
    for row in &rows {
        complaints.extend(complaint(row, check));
        let outcome = outcomes.iter().rev().find(|outcome| row.is_measured_by(outcome));
        let verdict = row.judge(outcome);
        complaints.extend(verdict.complaint().map(|text| format!("{:?} {text}", row.promise)));
        println!("{:<WORD$}  {}", verdict.word(), row.title());
        if let Some(outcome) = outcome {
            let Outcome { clock, commit, .. } = outcome;
            let commit = commit.get(..COMMIT_DIGITS).unwrap_or(commit);
            println!("{:WORD$}  {}; {clock} clock, commit {commit}", "", verdict.found());
        }
    }
    if rows.is_empty() {
        bail!("{PAGE} has no table with the columns 'promise' and 'command'");
    }
    if !complaints.is_empty() {
        bail!("{} of {} promises:\n{}", complaints.len(), rows.len(), complaints.join("\n"));
    }
    Ok(())
}

/// The promises of a page: the rows of its tables whose last column is headed `command`.
fn rows(page: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut columns: Vec<String> = Vec::new();
    for line in page.lines() {
        let Some(inner) = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|'))
        else {
            columns.clear();
            continue;
        };
        let cells: Vec<String> = inner.split('|').map(|cell| cell.trim().to_owned()).collect();
        if columns.is_empty() {
            columns = cells;
        } else if !cells.iter().all(|cell| cell.chars().all(|c| c == '-' || c == ':'))
            && columns.last().is_some_and(|last| last == "command")
        {
            rows.push(Row::new(&columns, &cells));
        }
    }
    rows
}

impl Row {
    fn new(columns: &[String], cells: &[String]) -> Row {
        let cell = |name: &str| {
            let at = columns.iter().position(|column| column == name);
            at.and_then(|at| cells.get(at)).cloned().unwrap_or_default()
        };
        let quoted = cell("command");
        let mut quoted = quoted.split('`').skip(1).step_by(2).map(str::to_owned);
        let command = quoted.next().unwrap_or_default();
        let command = command.strip_prefix("cargo xtask ").unwrap_or_default();
        Row {
            promise: cell("promise").replace('`', ""),
            limit: cell("limit"),
            command: command.split_whitespace().map(str::to_owned).collect(),
            words: quoted.collect(),
        }
    }

    /// What is promised, and how far.
    fn title(&self) -> String {
        match self.limit.as_str() {
            "" => self.promise.clone(),
            limit => format!("{}: {limit}", self.promise),
        }
    }

    /// The experiment that measures the promise, if one does.
    fn experiment(&self) -> Option<&str> {
        match self.command.as_slice() {
            [verb, name, ..] if verb == "experiment" => Some(name),
            _ => None,
        }
    }

    fn is_measured_by(&self, outcome: &Outcome) -> bool {
        self.experiment() == Some(&outcome.experiment)
    }

    fn judge(&self, outcome: Option<&Outcome>) -> Verdict {
        if self.experiment().is_none() {
            return Verdict::ByExitCode;
        }
        let Some(outcome) = outcome else { return Verdict::NotMeasured };
        let is_picked = |found: &&Measured| self.words.iter().all(|word| found.name.contains(word));
        let picked = outcome.promises.iter().filter(is_picked);
        // Broken ones first, then by how much of the limit is used.
        let closest = picked.max_by(|a, b| {
            let used =
                |it: &Measured| it.value.map_or(f64::MAX, |v| v as f64 / it.limit.max(1) as f64);
            a.holds.cmp(&b.holds).reverse().then(used(a).total_cmp(&used(b)))
        });
        match closest.cloned() {
            None => Verdict::Unknown,
            Some(found) if found.holds => Verdict::Holds(found),
            Some(found) => Verdict::Broken(found),
        }
    }
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self {
            Verdict::Holds(_) => "holds",
            Verdict::Broken(_) => "BROKEN",
            Verdict::NotMeasured => "not measured",
            Verdict::ByExitCode => "by exit code",
            Verdict::Unknown => "UNKNOWN",
        }
    }

    /// The value that came closest to its limit.
    fn found(&self) -> String {
        match self {
            Verdict::Holds(found) | Verdict::Broken(found) => {
                let value = found.value.map_or("nothing".into(), |value| value.to_string());
                format!("{value} of {} ({})", found.limit, found.name)
            }
            _ => "nothing of the kind".into(),
        }
    }

    fn complaint(&self) -> Option<String> {
        match self {
            Verdict::Broken(_) => Some(format!("is broken: {}", self.found())),
            Verdict::Unknown => Some("picks nothing of its experiment's result".into()),
            _ => None,
        }
    }
}

/// What is wrong with a row's command.
fn complaint(row: &Row, check: Check<'_>) -> Option<String> {
    if row.command.is_empty() {
        return Some(format!("{:?} has no command `cargo xtask …`", row.promise));
    }
    let words: Vec<&str> = row.command.iter().map(String::as_str).collect();
    let known = row.experiment().is_none_or(experiment::is_known);
    let wrong = check(&words).err().map(|why| why.to_string());
    let wrong = wrong.or_else(|| (!known).then(|| "there is no such experiment".to_owned()));
    wrong.map(|why| format!("{:?}: `cargo xtask {}`: {why}", row.promise, words.join(" ")))
}

fn read(path: &Path) -> Result<Outcome> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let value = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
    outcome(&value).with_context(|| format!("{} is no experiment's result", path.display()))
}

fn outcome(value: &Value) -> Option<Outcome> {
    let text = |value: &Value, key: &str| value[key].as_str().map(str::to_owned);
    let promise = |promise: &Value| {
        Some(Measured {
            name: text(promise, "name")?,
            limit: promise["limit"].as_u64()?,
            value: promise["value"].as_u64(),
            holds: promise["holds"].as_bool()?,
        })
    };
    Some(Outcome {
        experiment: text(value, "experiment")?,
        clock: text(value, "clock")?,
        commit: text(value, "commit")?,
        promises: value["promises"].as_array()?.iter().map(promise).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TABLE: &str = "# Title\n\
        text | with a bar\n\n\
        | promise | limit | command |\n|---|--:|---|\n\
        | crash detected | 0.05 ms | `cargo xtask experiment service-faults`: `crash-` |\n\
        | all of it | - | `cargo xtask experiment service-faults` |\n\
        | the `ISO` boots | | `cargo xtask image --check` |\n\
        | somehow | 1 | by magic |\n\n\
        | name | meaning |\n|---|---|\n| a | b |\n";

    fn result(crash: u64, hang: u64) -> Outcome {
        let promise = |name: &str, value: u64| {
            let holds = value <= 50;
            json!({ "name": name, "limit": 50, "value": value, "holds": holds })
        };
        let promises = [promise("crash-x detected", crash), promise("hang-y detected", hang)];
        let value = json!({ "experiment": "service-faults", "clock": "virtual",
            "commit": "0123456789abcdef", "promises": promises });
        outcome(&value).unwrap()
    }

    #[test]
    fn rows_are_promises_with_their_commands() {
        let rows = rows(TABLE);
        let names: Vec<&str> = rows.iter().map(|row| row.promise.as_str()).collect();
        assert_eq!(names, ["crash detected", "all of it", "the ISO boots", "somehow"]);
        assert_eq!(rows[0].command, ["experiment", "service-faults"]);
        assert_eq!(rows[0].words, ["crash-"]);
        assert!(rows[3].command.is_empty());
    }

    #[test]
    fn a_promise_is_held_against_what_its_words_pick() {
        let rows = rows(TABLE);
        let (good, bad) = (result(20, 40), result(20, 60));
        assert_eq!(rows[0].judge(None), Verdict::NotMeasured);
        assert!(matches!(rows[0].judge(Some(&bad)), Verdict::Holds(found) if found.limit == 50));
        let closest = |verdict| match verdict {
            Verdict::Holds(found) | Verdict::Broken(found) => found.value,
            _ => None,
        };
        assert_eq!(closest(rows[1].judge(Some(&good))), Some(40));
        assert!(rows[1].judge(Some(&bad)).complaint().is_some());
        assert_eq!(rows[2].judge(None), Verdict::ByExitCode);
        let unknown = Row { words: vec!["no such".into()], ..rows[0].clone() };
        assert!(unknown.judge(Some(&good)).complaint().is_some());
    }

    #[test]
    fn a_promise_needs_a_command_that_exists() {
        let rows = rows(TABLE);
        let fine: Check<'_> = &|_| Ok(());
        let refuses: Check<'_> = &|_| bail!("no such verb");
        assert_eq!(complaint(&rows[0], fine), None);
        assert!(complaint(&rows[0], refuses).unwrap().contains("no such verb"));
        assert!(complaint(&rows[3], fine).unwrap().contains("no command"));
        let words = ["experiment", "no-such"].map(str::to_owned).to_vec();
        let strange = Row { command: words, ..rows[0].clone() };
        assert!(complaint(&strange, fine).unwrap().contains("no such experiment"));
    }
}
