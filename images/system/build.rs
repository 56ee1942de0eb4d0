//! Reads `ppvmm.toml`, or the file named by `PPVMM_SYSTEM`, and generates the tables of this crate.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

#[path = "src/describe/mod.rs"]
mod describe;

/// Descriptions that build upon one another: more would be hard to follow, or go round in a circle.
const BASES_MAX: usize = 3;

fn main() -> ExitCode {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("ppvmm.toml");
    let file = env::var_os("PPVMM_SYSTEM").map_or(default, PathBuf::from);
    println!("cargo:rerun-if-env-changed=PPVMM_SYSTEM");
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    match describe_file(&file).map(|description| describe::emit(&description)) {
        Ok(tables) => {
            fs::write(target.join("system.rs"), tables).expect("OUT_DIR is writable");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("cargo:error={}: {}", file.display(), reason.replace('\n', " | "));
            eprintln!("{}: {reason}", file.display());
            ExitCode::FAILURE
        }
    }
}

fn describe_file(file: &Path) -> Result<describe::file::Description, String> {
    let mut texts = vec![read(file)?];
    while let Some(name) = describe::base(&texts[0]).map_err(|wrong| wrong.to_string())? {
        if texts.len() == BASES_MAX {
            return Err(format!("base = {name:?} is wrong: allowed are {BASES_MAX} files in all"));
        }
        texts.insert(0, read(&file.with_file_name(name))?);
    }
    describe::parse_over(&texts).map_err(|wrong| wrong.to_string())
}

fn read(file: &Path) -> Result<String, String> {
    println!("cargo:rerun-if-changed={}", file.display());
    fs::read_to_string(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))
}
