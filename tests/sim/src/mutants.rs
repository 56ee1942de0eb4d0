//! Broken variants: changes of at most three lines that pass the unit tests and that the simulator
//! must catch. A simulator that lets one through judges too little.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

/// Most lines that a variant may take away, or put in.
const MAX_LINES: usize = 3;

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// Only the variants whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Seeds after which a variant counts as not caught.
    #[arg(long, default_value_t = 3000)]
    seeds: u64,
    /// Seconds after which a variant counts as not caught.
    #[arg(long, default_value_t = 1800)]
    seconds: u64,
}

/// Runs the variants and prints a table; fails when one is not caught or fails the unit tests.
pub fn run(options: &Options) -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match run_all(&root, options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run_all(root: &Path, options: &Options) -> Result<bool, String> {
    let work = root.join("target/mutants");
    let tree = work.join("tree");
    copy_tree(root, &tree)?;
    let folder = root.join("tests/sim/mutants");
    let mut patches: Vec<PathBuf> = fs::read_dir(&folder)
        .map_err(|why| format!("{}: {why}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|kind| kind == "patch"))
        .collect();
    patches.sort();
    println!("| variant | caught by | seeds |\n|---|---|--:|");
    let mut all = true;
    for patch in patches {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let text = fs::read_to_string(&patch).map_err(|why| format!("{name}: {why}"))?;
        let before = apply(&tree, &text).map_err(|why| format!("{name}: {why}"))?;
        let verdict = judge(&tree, &work, options);
        fs::write(tree.join(&before.0), &before.1).map_err(|why| format!("{name}: {why}"))?;
        let (caught, row) = match verdict? {
            Verdict::Caught { oracle, seeds } => (true, format!("{oracle} | {seeds}")),
            Verdict::Missed => (false, format!("**not caught** | {}", options.seeds)),
            Verdict::Visible(what) => (false, format!("**the unit tests already**: {what} | 0")),
        };
        println!("| {name} | {row} |");
        all &= caught;
    }
    Ok(all)
}

enum Verdict {
    Caught { oracle: String, seeds: u64 },
    Missed,
    Visible(String),
}

fn cargo(tree: &Path, work: &Path, args: &[&str]) -> Result<Output, String> {
    Command::new("cargo")
        .args(args)
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", work.join("build"))
        // The oracles shall object, not the core's own assertions.
        .env("CARGO_PROFILE_DEV_DEBUG_ASSERTIONS", "false")
        .env("CARGO_TERM_COLOR", "never")
        // A build that was interrupted must not spoil the next one.
        .env("CARGO_INCREMENTAL", "0")
        .output()
        .map_err(|why| format!("cargo {args:?}: {why}"))
}

fn judge(tree: &Path, work: &Path, options: &Options) -> Result<Verdict, String> {
    for args in [&["test", "-q", "-p", "raft"][..], &["test", "-q", "-p", "sim", "--lib"]] {
        let tests = cargo(tree, work, args)?;
        if !tests.status.success() {
            let output = String::from_utf8_lossy(&tests.stdout).into_owned()
                + &String::from_utf8_lossy(&tests.stderr);
            let telling = |line: &&str| line.contains("panicked") || line.contains("error");
            let line = output.lines().find(telling).unwrap_or("see its output");
            return Ok(Verdict::Visible(line.to_owned()));
        }
    }
    let build = cargo(tree, work, &["build", "-q", "-p", "sim"])?;
    if !build.status.success() {
        return Err(String::from_utf8_lossy(&build.stderr).into_owned());
    }
    let seeds = format!("0..{}", options.seeds);
    let run = Command::new("timeout")
        .arg(options.seconds.to_string())
        .arg(work.join("build/debug/sim"))
        .args(["--seeds", &seeds])
        .output()
        .map_err(|why| format!("sim: {why}"))?;
    // `timeout` exits with 124 when the time is over.
    if run.status.success() || run.status.code() == Some(124) {
        return Ok(Verdict::Missed);
    }
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    let line = text.lines().find(|line| line.starts_with("seed ")).unwrap_or("seed 0");
    let seed = line.trim_start_matches("seed ").split(',').next();
    let seed: u64 = seed.and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let oracle = line.split(": ").nth(1).unwrap_or("an assertion");
    Ok(Verdict::Caught { oracle: oracle.to_owned(), seeds: seed + 1 })
}

/// Copies every file that git knows.
fn copy_tree(root: &Path, tree: &Path) -> Result<(), String> {
    let list = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output()
        .map_err(|why| format!("git ls-files: {why}"))?;
    for name in String::from_utf8_lossy(&list.stdout).split_terminator('\0') {
        let (from, to) = (root.join(name), tree.join(name));
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        let folder = to.parent().expect("a file is in a folder");
        fs::create_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
        fs::write(&to, bytes).map_err(|why| format!("{}: {why}", to.display()))?;
    }
    Ok(())
}

/// Applies a unified diff of one file by its text, wherever in the file that is now. Returns the
/// file and what it held before.
fn apply(tree: &Path, patch: &str) -> Result<(PathBuf, String), String> {
    let target = patch.lines().find_map(|line| line.strip_prefix("+++ b/"));
    let path = PathBuf::from(target.ok_or("names no file")?);
    let before = fs::read_to_string(tree.join(&path)).map_err(|why| why.to_string())?;
    let mut after = before.clone();
    let (mut gone, mut new) = (0, 0);
    for hunk in patch.split("\n@@ ").skip(1) {
        let (mut old_text, mut new_text) = (String::new(), String::new());
        for line in hunk.lines().skip(1) {
            let Some((sign, rest)) = line.split_at_checked(1) else { continue };
            if sign != "+" {
                old_text += &format!("{rest}\n");
            }
            if sign != "-" {
                new_text += &format!("{rest}\n");
            }
            gone += usize::from(sign == "-");
            new += usize::from(sign == "+");
        }
        if after.matches(&old_text).count() != 1 {
            return Err(format!("does not fit {} any more:\n{old_text}", path.display()));
        }
        after = after.replace(&old_text, &new_text);
    }
    if gone.max(new) > MAX_LINES {
        return Err(format!("changes {} lines, at most {MAX_LINES}", gone.max(new)));
    }
    fs::write(tree.join(&path), after).map_err(|why| why.to_string())?;
    Ok((path, before))
}
