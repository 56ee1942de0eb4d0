//! `cargo xtask test`: the host's tests, then the suite on Xen.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::experiment::hostile_guests;
use crate::guest::initramfs;
use crate::image::Firmware;
use crate::process::Tool;
use crate::progress::Steps;
use crate::refusals::{self, REFUSALS};
use crate::suite::{self, BOOTS, Boot};
use crate::{build, hosted, image, packages, peer};

/// Compiling and running every host test on a slow machine.
const HOST_LIMIT: Duration = Duration::from_secs(1200);

/// Which tests to run.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Options {
    /// Only the tests that need no emulator.
    #[arg(long)]
    pub host_only: bool,
    /// Only the suite on Xen.
    #[arg(long, conflicts_with = "host_only")]
    pub xen_only: bool,
    /// Only those items of the suite whose names hold this text.
    #[arg(long, value_name = "TEXT", requires = "xen_only")]
    pub filter: Option<String>,
}

/// Tests that passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Runs the tests, prints totals, and fails when any test has.
pub fn run(options: &Options) -> Result<()> {
    let steps = Steps::new("test");
    let mut totals = Totals::default();
    if !options.xen_only {
        tools(&steps);
        totals = host(&steps)?;
        if packages::names()?.contains("xenstore-hosted") {
            totals.note(steps.step("script against xenstore-hosted", hosted::run));
        }
        println!("test: host: {}", totals.text());
    }
    if !options.host_only {
        let xen = xen(&steps, options.filter.as_deref())?;
        println!("test: on Xen: {}", xen.text());
        totals.passed += xen.passed;
        totals.failed += xen.failed;
        totals.skipped += xen.skipped;
    }
    println!("test: total: {}", totals.text());
    if totals.failed > 0 || totals.passed == 0 {
        bail!("tests failed");
    }
    Ok(())
}

impl Totals {
    /// Counts one result of the on-Xen suite, and says why it failed.
    fn note(&mut self, result: Result<String>) {
        match result {
            Ok(_) => self.passed += 1,
            Err(error) => {
                eprintln!("{error:#}");
                self.failed += 1;
            }
        }
    }

    fn text(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Gets Debian's XenStore tools. Without them, the tests that drive our store by them count as
/// skipped, and the others are run all the same.
fn tools(steps: &Steps) {
    let unpacked = steps.step("Debian's XenStore tools", || {
        let versions = initramfs::unpack()?.into_iter().map(|unpacked| unpacked.version);
        Ok(versions.collect::<Vec<String>>().join(", "))
    });
    if let Err(error) = unpacked {
        eprintln!("{error:#}");
    }
}

/// Every host test, by nextest where it is installed; cargo's own runner adds the doc tests.
fn host(steps: &Steps) -> Result<Totals> {
    let has_nextest = Tool::new("cargo").args(["nextest", "--version"]).output().is_ok();
    let mut runs: Vec<(&str, Vec<&str>)> = Vec::new();
    if has_nextest {
        runs.push(("nextest", vec!["nextest", "run", "--no-fail-fast", "--workspace"]));
        runs.push(("doc-tests", vec!["test", "--doc", "--no-fail-fast", "--workspace"]));
    } else {
        runs.push(("cargo-test", vec!["test", "--no-fail-fast", "--workspace"]));
    }
    let mut totals = Totals::default();
    for (name, args) in runs {
        let log = crate::paths::logs().join(format!("test-{name}.log"));
        let result = steps.step(name, || {
            Tool::new("cargo")
                .args(&args)
                .env("CARGO_TERM_COLOR", "never")
                .named(&format!("test-{name}"))
                .limit(HOST_LIMIT)
                .run()?;
            Ok("passed")
        });
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let counted = count(&text);
        totals.passed += counted.passed;
        totals.failed += counted.failed;
        totals.skipped += counted.skipped;
        if let Err(error) = result {
            eprintln!("{error:#}");
            failures(&text).iter().for_each(|line| eprintln!("{line}"));
            // A compile error fails no test by name, and must not pass for that.
            totals.failed = totals.failed.max(1);
        }
    }
    Ok(totals)
}

/// Reads the summaries of nextest and of cargo's own runner.
pub fn count(text: &str) -> Totals {
    let mut totals = Totals::default();
    for line in text.lines() {
        let line = line.trim_start();
        let is_summary = line.starts_with("Summary [") || line.starts_with("test result:");
        if !is_summary {
            continue;
        }
        let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric()).collect();
        let before = |names: &[&str]| -> usize {
            let at = words.iter().position(|word| names.contains(word));
            at.and_then(|at| words[..at].iter().rev().find(|word| !word.is_empty()))
                .and_then(|word| word.parse().ok())
                .unwrap_or(0)
        };
        totals.passed += before(&["passed"]);
        totals.failed += before(&["failed"]) + before(&["timed"]);
        totals.skipped += before(&["skipped", "ignored"]);
    }
    totals
}

/// The lines that name failed tests.
fn failures(text: &str) -> Vec<&str> {
    let names = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("FAIL") || line.starts_with("TIMEOUT") || line.ends_with("... FAILED")
    };
    let mut lines: Vec<&str> = text.lines().filter(names).collect();
    lines.dedup();
    lines
}

/// Every unikernel's self-test, every boot in every way, every refusal, the ISO, and an attack.
fn xen(steps: &Steps, filter: Option<&str>) -> Result<Totals> {
    build::run(&build::Options::default())?;
    let present: Vec<&str> = build::present()?.iter().map(|unit| unit.name).collect();
    let totals = Totals::default();
    let mut suite = Suite { steps, present, filter: filter.unwrap_or_default(), totals };
    suite.item("guest without Xen", "", suite::guest_alone);
    for unit in build::present()? {
        let label = format!("self-test of {}", unit.name);
        suite.item(&label, unit.name, || suite::self_test(unit.name));
    }
    if suite.filter.is_empty() || "peer".contains(suite.filter) {
        let (passed, failed) = peer::suite(steps)?;
        suite.totals.passed += passed;
        suite.totals.failed += failed;
    }
    let of_this_host = |boot: &&Boot| boot.system.is_none();
    BOOTS.iter().filter(of_this_host).for_each(|boot| suite.boot(boot));
    for refusal in &REFUSALS {
        let label = format!("refusal {}", refusal.name);
        suite.item(&label, HOST, || refusals::run(refusal));
    }
    for firmware in Firmware::ALL {
        if suite.wants(&format!("image {firmware}"), HOST) {
            suite.totals.note(image::boot(steps, firmware));
        }
    }
    // Builds of other systems replace what is built, so nothing comes after them.
    suite.item("refusal wrong-description", HOST, refusals::wrong_descriptions);
    BOOTS.iter().filter(|boot| !of_this_host(boot)).for_each(|boot| suite.boot(boot));
    suite.item("wrong grants", HOST, hostile_guests::wrong_grants);
    Ok(suite.totals)
}

/// The unikernel without which there is no host to boot.
const HOST: &str = "tool-uk";

/// The on-Xen suite under way.
struct Suite<'a> {
    steps: &'a Steps,
    present: Vec<&'static str>,
    filter: &'a str,
    totals: Totals,
}

impl Suite<'_> {
    /// Whether an item is to be run: it passes the filter, and the unikernel it needs is there.
    fn wants(&mut self, label: &str, needs: &str) -> bool {
        if !label.contains(self.filter) {
            return false;
        }
        let is_possible = needs.is_empty() || self.present.contains(&needs);
        self.totals.skipped += usize::from(!is_possible);
        is_possible
    }

    fn boot(&mut self, boot: &Boot) {
        for way in boot.ways {
            let label = format!("boot {} ({})", boot.name, way.name);
            self.item(&label, boot.initial, || suite::boot(boot, *way));
        }
    }

    fn item(&mut self, label: &str, needs: &str, work: impl FnOnce() -> Result<String>) {
        if self.wants(label, needs) {
            let result = self.steps.step(label, work);
            self.totals.note(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runners_summaries_are_read() {
        let text = "     Summary [   0.405s] 28 tests run: 27 passed, 1 failed, 2 skipped\n";
        assert_eq!(count(text), Totals { passed: 27, failed: 1, skipped: 2 });
        let text = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 8 filtered\n\
                    test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(count(text), Totals { passed: 7, failed: 2, skipped: 1 });
        assert_eq!(count("test result nothing"), Totals::default());
    }
}
