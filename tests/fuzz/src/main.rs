//! `fuzz`: lists the targets, writes their seeds, runs single inputs.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use fuzz::{TARGETS, Target, find};

const USAGE: &str = "usage: fuzz list | fuzz seeds TARGET FOLDER | fuzz run TARGET FILE...";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["list"] => {
            TARGETS.iter().for_each(|target| println!("{}", target.name));
            Ok(())
        }
        ["seeds", name, folder] => target(name).and_then(|it| write_seeds(&it, folder.as_ref())),
        ["run", name, ref files @ ..] => target(name).and_then(|it| run(&it, files)),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn target(name: &str) -> Result<Target, String> {
    find(name).ok_or_else(|| format!("there is no target {name:?}; see: fuzz list"))
}

/// Writes the seeds, and the words as a dictionary beside the folder (`FOLDER.dict`).
fn write_seeds(target: &Target, folder: &Path) -> Result<(), String> {
    let write = |path: PathBuf, bytes: &[u8]| {
        fs::write(&path, bytes).map_err(|why| format!("{}: {why}", path.display()))
    };
    fs::create_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    for (number, seed) in (target.seeds)().iter().enumerate() {
        write(folder.join(format!("seed-{number:02}")), seed)?;
    }
    let mut words = String::new();
    for word in target.words {
        words.push('"');
        for byte in *word {
            let _ = write!(words, "\\x{byte:02x}");
        }
        words.push_str("\"\n");
    }
    write(folder.with_extension("dict"), words.as_bytes())
}

fn run(target: &Target, files: &[&str]) -> Result<(), String> {
    for file in files {
        let input = fs::read(file).map_err(|why| format!("{file}: {why}"))?;
        (target.run)(&input);
        println!("{file}: {} bytes, nothing wrong", input.len());
    }
    Ok(())
}
