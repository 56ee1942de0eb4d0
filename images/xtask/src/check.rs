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
    let unikernels: Vec<&str> = packages::with_unikernels()?.into_iter().collect();
    let only: Vec<&str> = unikernels.iter().flat_map(|name| ["--package", name]).collect();
    let mut failed = Vec::new();
    let mut check = |name: &'static str, work: &dyn Fn() -> Result<String>| {
        if let Err(error) = steps.step(name, work) {
            eprintln!("{error:#}");
            failed.push(name);
        }
    };
    check("formatting", &|| cargo("fmt", &["fmt", "--all", "--", "--check"], &[]));
    check("tidy", &tidy::run);
    check("lints on the host", &|| {
        let args = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        cargo("clippy-host", &args, &[])
    });
    check("lints on the unikernels' target", &|| {
        let args = ["clippy", "--target", TARGET];
        let args = [&args[..], &only, &["--", "-D", "warnings"]].concat();
        cargo("clippy-unikernels", &args, &[])
    });
    check("documentation", &|| {
        // Links to private items work in an editor, where most of this is read.
        let strict = [("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")];
        cargo("doc", &["doc", "--workspace", "--no-deps"], &strict)
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
