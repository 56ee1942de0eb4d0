//! Broken variants: each file of `broken/` names the oracle that has to notice it.
//!
//! `cargo test --release -p netsim --test broken -- --ignored --nocapture` copies the sources under
//! `target/broken`, applies one patch after the other, and runs the seeds until one fails.
//! `NETSIM_VARIANT=a,b` picks those whose names contain one of these words.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Seeds that a variant may survive at most.
const SEEDS: &str = "0..2000";

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).expect("the package lies two folders deep").to_path_buf()
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if ["target", ".git"].iter().any(|skipped| name == *skipped) {
            continue;
        }
        let (from, to) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}

fn patch(work: &Path, file: &Path, option: &str) {
    let mut command = Command::new("patch");
    command.args(["--batch", "--no-backup-if-mismatch", "-p1", option, "-i"]).arg(file);
    let output = command.current_dir(work).output().expect("patch is installed");
    assert!(output.status.success(), "{}: {}", file.display(), text(&output));
}

fn text(output: &Output) -> String {
    let (out, error) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(error))
}

fn changed_lines(patch: &str) -> usize {
    let is_change = |line: &&str| line.starts_with('+') && !line.starts_with("+++");
    let added = patch.lines().filter(is_change).count();
    let is_removal = |line: &&str| line.starts_with('-') && !line.starts_with("---");
    added.max(patch.lines().filter(is_removal).count())
}

/// Runs the seeds on the sources as they are; the line that says which one failed.
fn simulate(work: &Path, target: &Path) -> Option<String> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--release", "--offline", "-q", "-p", "netsim", "--test", "seeds"]);
    command.env("CARGO_TARGET_DIR", target).env("NETSIM_SEEDS", SEEDS);
    let output = command.current_dir(work).output().expect("cargo runs");
    let text = text(&output);
    assert!(!text.contains("could not compile"), "{text}");
    if output.status.success() {
        return None;
    }
    let is_telling = |line: &&str| line.starts_with("seed ") || line.contains("panicked at");
    let lines: Vec<&str> = text.lines().filter(is_telling).collect();
    Some(lines.last().unwrap_or(&"it failed without a word").to_string())
}

#[test]
#[ignore = "builds the simulation once per variant"]
fn each_is_caught() {
    let base = root().join("target/broken");
    let (work, target) = (base.join("work"), base.join("target"));
    let _absent_at_first = fs::remove_dir_all(&work);
    copy(&root(), &work).unwrap();
    let mut patches: Vec<PathBuf> = fs::read_dir(root().join("tests/netsim/broken"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .collect();
    patches.sort();
    assert!(patches.len() >= 9, "one for each oracle");
    if let Ok(wanted) = std::env::var("NETSIM_VARIANT") {
        let is_wanted = |name: &str| wanted.split(',').any(|part| name.contains(part));
        patches.retain(|path| is_wanted(&path.to_string_lossy()));
    }
    let mut survived = Vec::new();
    for file in patches {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let lines = changed_lines(&fs::read_to_string(&file).unwrap());
        assert!(lines <= 3, "{name} changes {lines} lines");
        patch(&work, &file, "--forward");
        let caught = simulate(&work, &target);
        patch(&work, &file, "--reverse");
        println!("{name}: {}", caught.as_deref().unwrap_or("SURVIVED"));
        if caught.is_none() {
            survived.push(name);
        }
    }
    assert!(survived.is_empty(), "not caught: {survived:?}");
}
