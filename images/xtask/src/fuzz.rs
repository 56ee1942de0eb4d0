//! `cargo xtask fuzz`: coverage-guided fuzzing of every reader of foreign bytes, on stable Rust.
//!
//! LLVM's `sancov-module` pass counts the edges that each input takes; stable rustc runs it when
//! told so by `-Cpasses`. libFuzzer reads the counters and keeps every input that counts something
//! new. The targets and their oracles are in `tests/fuzz`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::Tool;
use crate::progress::Steps;
use crate::setup;

/// Compiling the targets and libFuzzer.
const COMPILE_LIMIT: Duration = Duration::from_secs(900);

/// What one run may take beside the time it fuzzes: reading its corpus, minimising.
const SLACK: Duration = Duration::from_secs(120);

/// libFuzzer is written in C++.
const PACKAGES: [&str; 1] = ["g++"];

/// The passes that give libFuzzer its feedback: counters per edge, the table of their places, and
/// the operands of comparisons.
const COVERAGE: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

/// The machine that builds is the machine that fuzzes; naming it keeps the passes away from build
/// scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The longest input in bytes: a message and what is around it.
const INPUT_MAX: &str = "8192";

/// An input that takes longer is a finding: targets are bounded.
const INPUT_LIMIT_S: &str = "20";

/// What to fuzz.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// The targets; all of them when none is named.
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Seconds per target.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Lists the targets and ends.
    #[arg(long)]
    pub list: bool,
}

/// What a target's run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    executions: u64,
    per_second: u64,
    /// Edges of the code that were reached.
    edges: u64,
    inputs: u64,
}

/// Fuzzes the targets one after the other; fails when one of them has a finding.
pub fn run(options: &Options) -> Result<()> {
    let steps = Steps::new("fuzz");
    let plain = steps.step("compile the seeds", build_plain)?.0;
    let names = names(&plain)?;
    if options.list {
        names.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    if let Some(unknown) = options.targets.iter().find(|name| !names.contains(name)) {
        bail!("there is no target {unknown:?}; there are {}", names.join(", "));
    }
    let wanted = if options.targets.is_empty() { &names } else { &options.targets };
    setup::packages(&steps, &PACKAGES)?;
    let program = steps.step("compile the targets with coverage", build_instrumented)?.0;
    let mut rows = Vec::new();
    let mut findings = Vec::new();
    for name in wanted {
        let outcome = steps.step(name, || one(&plain, &program, name, options.seconds))?;
        rows.push((name, outcome.0));
        findings.extend(outcome.1);
    }
    println!("| target | executions | per second | edges | inputs kept |\n|---|--:|--:|--:|--:|");
    for (name, o) in rows {
        println!("| {name} | {} | {} | {} | {} |", o.executions, o.per_second, o.edges, o.inputs);
    }
    if findings.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = findings.iter().map(|path| path.display().to_string()).collect();
    bail!(
        "findings, to be run again by `cargo run -p fuzz -- run TARGET FILE` and to be kept in \
         tests/fuzz/findings/TARGET once they are understood:\n{}",
        list.join("\n")
    )
}

/// Where programs, corpora and findings lie.
fn folder() -> PathBuf {
    paths::target().join("fuzz")
}

/// A program built; shown by its file name.
struct Program(PathBuf);

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.file_name().unwrap_or_default().to_string_lossy())
    }
}

fn build_plain() -> Result<Program> {
    let args = ["build", "--package", "fuzz", "--bin", "fuzz"];
    Tool::new("cargo").args(args).named("build-fuzz").limit(COMPILE_LIMIT).run()?;
    Ok(Program(paths::target().join("debug/fuzz")))
}

fn build_instrumented() -> Result<Program> {
    Tool::new("cargo")
        .args(["build", "--profile", "fuzz", "--package", "fuzz", "--bin", "fuzz-libfuzzer"])
        .args(["--features", "libfuzzer", "--target", TARGET, "--target-dir"])
        .arg(folder().join("build"))
        .env("RUSTFLAGS", COVERAGE.join(" "))
        .named("build-fuzz-libfuzzer")
        .limit(COMPILE_LIMIT)
        .run()?;
    Ok(Program(folder().join("build").join(TARGET).join("fuzz/fuzz-libfuzzer")))
}

fn names(plain: &Path) -> Result<Vec<String>> {
    let text = String::from_utf8(Tool::new(plain).arg("list").output()?)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Fuzzes one target, beginning with its seeds and what former runs kept; gives the files that made
/// it fail.
fn one(plain: &Path, program: &Path, name: &str, seconds: u64) -> Result<Fuzzed> {
    let corpus = folder().join("corpus").join(name);
    let seeds = folder().join("seeds").join(name);
    let found = folder().join("findings").join(name);
    for path in [&corpus, &found] {
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    }
    Tool::new(plain).args(["seeds", name]).arg(&seeds).named("fuzz-seeds").run()?;
    let before = files(&found)?;
    let log = format!("fuzz-{name}");
    let result = Tool::new(program)
        .env("PPVMM_FUZZ_TARGET", name)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_MAX}"))
        .arg(format!("-timeout={INPUT_LIMIT_S}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args(["-print_final_stats=1", "-use_value_profile=1"])
        .args(dictionary(&seeds)?)
        .args([&corpus, &seeds])
        .named(&log)
        .limit(Duration::from_secs(seconds) + SLACK)
        .run();
    let text = fs::read(paths::logs().join(format!("{log}.log")))?;
    let outcome = outcome(&String::from_utf8_lossy(&text));
    let new: Vec<PathBuf> = files(&found)?.into_iter().filter(|f| !before.contains(f)).collect();
    match result {
        // libFuzzer ends with an error when it has a finding: that is one of its results.
        Err(error) if new.is_empty() => Err(error),
        _ if outcome.edges == 0 => bail!("{name}: no coverage; libFuzzer would guess blindly"),
        _ => Ok(Fuzzed(outcome, new)),
    }
}

/// The counters of a run, and its findings.
struct Fuzzed(Outcome, Vec<PathBuf>);

impl std::fmt::Display for Fuzzed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { executions, edges, .. } = self.0;
        write!(f, "{executions} executions, {edges} edges, {} findings", self.1.len())
    }
}

/// The argument that names a target's words, if it has any: libFuzzer takes no empty dictionary.
fn dictionary(seeds: &Path) -> Result<Option<String>> {
    let path = seeds.with_extension("dict");
    let is_empty = fs::metadata(&path).with_context(|| path.display().to_string())?.len() == 0;
    Ok((!is_empty).then(|| format!("-dict={}", path.display())))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// Reads libFuzzer's last report (`#N DONE cov: 12 ft: … corp: 3/…`) and its final counters.
fn outcome(log: &str) -> Outcome {
    let number = |text: &str| text.trim().split(['/', ' ']).next()?.parse().ok();
    let after = |line: &str, key: &str| line.split_once(key).and_then(|(_, rest)| number(rest));
    let mut outcome = Outcome::default();
    for line in log.lines() {
        if line.starts_with('#') {
            outcome.edges = after(line, " cov: ").unwrap_or(outcome.edges);
            outcome.inputs = after(line, " corp: ").unwrap_or(outcome.inputs);
        }
        if let Some(count) = after(line, "stat::number_of_executed_units:") {
            outcome.executions = count;
        }
        if let Some(count) = after(line, "stat::average_exec_per_sec:") {
            outcome.per_second = count;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let log = "INFO: seed corpus: files: 6\n\
                   #7\tINITED cov: 100 ft: 200 corp: 5/1Kb exec/s: 0 rss: 40Mb\n\
                   #900\tDONE   cov: 345 ft: 999 corp: 17/20Kb lim: 90 exec/s: 450 rss: 50Mb\n\
                   Done 900 runs in 2 second(s)\n\
                   stat::number_of_executed_units: 900\n\
                   stat::average_exec_per_sec:     450\n";
        let read = Outcome { executions: 900, per_second: 450, edges: 345, inputs: 17 };
        assert_eq!(outcome(log), read);
        assert_eq!(outcome("nothing"), Outcome::default());
    }
}
