//! The tidy test: rules that no compiler checks, kept by a ratchet.
//!
//! A rule that measures (length of a file or function) may have
//! exceptions, recorded in `images/xtask/tidy-exceptions.txt` as `RULE PATH WHAT VALUE`. A recorded
//! value may only shrink: a finding above it fails, and so does one below it, until the record says
//! so. All other rules have no exceptions.

pub mod dependencies;
pub mod rules;
pub mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::Tool;

/// Where exceptions are recorded.
pub const EXCEPTIONS: &str = "images/xtask/tidy-exceptions.txt";

/// Kinds of files whose lines are measured.
const MEASURED: [&str; 5] = [".rs", ".s", ".ld", ".sh", "/init"];

/// Kinds of files that hold text of ours.
const TEXTS: [&str; 9] = [".rs", ".s", ".ld", ".toml", ".sh", "/init", ".md", ".py", ".ci/run"];

/// Something a rule found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: &'static str,
    /// The file, from the workspace's root.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub text: String,
    /// What was measured and its value, where exceptions are possible.
    pub measure: Option<(String, usize)>,
}

impl Finding {
    /// A finding in the line with this index (from 0).
    pub fn at(rule: &'static str, path: &str, index: usize, text: String) -> Finding {
        Finding { rule, path: path.to_owned(), line: index + 1, text, measure: None }
    }

    /// The same finding with what was measured.
    #[must_use]
    pub fn measured(mut self, what: &str, value: usize) -> Finding {
        self.measure = Some((what.to_owned(), value));
        self
    }

    fn key(&self) -> Option<(Key, usize)> {
        let (what, value) = self.measure.clone()?;
        Some(((self.rule.to_owned(), self.path.clone(), what), value))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} [{}]", self.path, self.line, self.text, self.rule)
    }
}

/// Rule, path, and what was measured.
type Key = (String, String, String);

/// Checks every file of the workspace and its dependencies.
pub fn run() -> Result<String> {
    let files = tracked()?;
    let mut findings = Vec::new();
    for path in &files {
        findings.extend(check_file(path, &fs::read(paths::root().join(path))?));
    }
    findings.extend(licences(&files));
    let recorded = fs::read_to_string(paths::root().join(EXCEPTIONS)).context(EXCEPTIONS)?;
    let mut complaints = ratchet(findings, &parse_exceptions(&recorded)?);
    complaints.extend(dependencies::check()?);
    if complaints.is_empty() {
        return Ok(format!("{} files", files.len()));
    }
    bail!("{} findings:\n{}", complaints.len(), complaints.join("\n"))
}

/// All rules on one file.
pub fn check_file(path: &str, bytes: &[u8]) -> Vec<Finding> {
    let ends = |kinds: &[&str]| kinds.iter().any(|kind| path.ends_with(kind));
    let mut out = Vec::new();
    if !ends(&TEXTS) {
        return out;
    }
    let text = String::from_utf8_lossy(bytes);
    out.extend(rules::no_promises(path, &text));
    if ends(&MEASURED) {
        out.extend(rules::line_length(path, &text));
        out.extend(rules::file_length(path, &text));
    }
    if path.ends_with(".md") {
        out.extend(rules::one_title(path, &text));
    }
    if path.ends_with(".rs") {
        let lines = source::lines(&text);
        for rule in rules::RUST_RULES {
            out.extend(rule(path, &lines));
        }
    }
    out
}

/// Both licence texts lie at the root.
fn licences(files: &[String]) -> Vec<Finding> {
    ["LICENSE-MIT", "LICENSE-APACHE"]
        .iter()
        .filter(|name| !files.iter().any(|file| file == *name))
        .map(|name| Finding::at("licences", name, 0, "this licence text is missing".into()))
        .collect()
}

/// Files that git tracks or would track.
fn tracked() -> Result<Vec<String>> {
    let out = Tool::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"])
        .named("git-ls-files")
        .output()?;
    let names = String::from_utf8(out)?;
    let exists = |path: &&str| paths::root().join(path).is_file();
    Ok(names.lines().filter(exists).map(str::to_owned).collect())
}

/// Reads the recorded exceptions.
pub fn parse_exceptions(text: &str) -> Result<BTreeMap<Key, usize>> {
    let mut out = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [rule, path, what, value] = words.as_slice() else {
            bail!("{EXCEPTIONS}: {line:?} is not RULE PATH WHAT VALUE");
        };
        let value = value.parse().with_context(|| format!("{EXCEPTIONS}: {line:?}"))?;
        out.insert((rule.to_string(), path.to_string(), what.to_string()), value);
    }
    Ok(out)
}

/// What remains wrong given the exceptions: findings beyond them, and exceptions that could shrink.
pub fn ratchet(findings: Vec<Finding>, exceptions: &BTreeMap<Key, usize>) -> Vec<String> {
    let mut unused = exceptions.clone();
    let mut out = Vec::new();
    for finding in findings {
        let Some((key, value)) = finding.key() else {
            out.push(finding.to_string());
            continue;
        };
        match unused.remove(&key) {
            Some(allowed) if value == allowed => {}
            Some(allowed) if value < allowed => {
                out.push(format!("{finding}: better than its record of {allowed}; shrink it"));
            }
            Some(allowed) => out.push(format!("{finding}: its record allows {allowed}")),
            None => out.push(finding.to_string()),
        }
    }
    for ((rule, path, what), _) in unused {
        out.push(format!("{EXCEPTIONS}: {rule} {path} {what} is needed no more; remove it"));
    }
    out
}
