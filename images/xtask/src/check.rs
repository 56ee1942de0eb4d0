//! `cargo xtask check`: formatting, lints, documentation, tidiness.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::process::Tool;
use crate::progress::Steps;
use crate::setup::TARGET;
use crate::{packages, setup, tidy};

/// Compiling everything once, on a slow machine.
const COMPILE_LIMIT: Duration = Duration::from_secs(900);

/// Runs every check, also after one has failed, and fails when any has.
pub fn run() -> Result<()> {
    let steps = Steps::new("check");
    setup::target(&steps)?;
    let bare = packages::bare()?;
    let mut failed = Vec::new();
    let mut check = |name: &'static str, work: &dyn Fn() -> Result<String>| {
        if let Err(error) = steps.step(name, work) {
            eprintln!("{error:#}");
            failed.push(name);
        }
    };
    check("formatting", &|| cargo("fmt", &["fmt", "--all", "--", "--check"], &[]));
    check("tidy", &tidy::run);
    check("lints of host packages", &|| {
        let args = ["clippy", "--workspace", "--all-targets"];
        let args = [&args[..], &excluding(&bare), &["--", "-D", "warnings"]].concat();
        cargo("clippy-host", &args, &[])
    });
    check("lints of unikernels", &|| {
        if bare.is_empty() {
            return Ok("none in this workspace".into());
        }
        let args = ["clippy", "--target", TARGET];
        let args = [&args[..], &only(&bare), &["--", "-D", "warnings"]].concat();
        cargo("clippy-unikernels", &args, &[])
    });
    let strict = [("RUSTDOCFLAGS", "-D warnings")];
    check("documentation of host packages", &|| {
        let args = [&["doc", "--workspace", "--no-deps"][..], &excluding(&bare)].concat();
        cargo("doc-host", &args, &strict)
    });
    check("documentation of unikernels", &|| {
        if bare.is_empty() {
            return Ok("none in this workspace".into());
        }
        let args = ["doc", "--no-deps", "--document-private-items", "--target", TARGET];
        cargo("doc-unikernels", &[&args[..], &only(&bare)].concat(), &strict)
    });
    if failed.is_empty() {
        return Ok(());
    }
    bail!("{} of the checks failed: {}", failed.len(), failed.join(", "))
}

fn cargo(name: &str, args: &[&str], env: &[(&str, &str)]) -> Result<String> {
    let mut tool = Tool::new("cargo").args(args).named(&format!("check-{name}"));
    for (key, value) in env {
        tool = tool.env(key, value);
    }
    tool.limit(COMPILE_LIMIT).run()?;
    Ok("clean".into())
}

/// Arguments that leave these packages out.
pub fn excluding<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages.iter().flat_map(|name| ["--exclude", name]).collect()
}

fn only<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages.iter().flat_map(|name| ["--package", name]).collect()
}
