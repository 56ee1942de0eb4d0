//! The program that libFuzzer drives: the target is named in the environment, because all
//! arguments are libFuzzer's.
#![no_main]
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use fuzz::Target;
use libfuzzer_sys::fuzz_target;

/// The variable that names the target.
const TARGET: &str = "PPVMM_FUZZ_TARGET";

static CHOSEN: OnceLock<Target> = OnceLock::new();

fn chosen() -> Target {
    let name = std::env::var(TARGET).unwrap_or_default();
    fuzz::find(&name).unwrap_or_else(|| panic!("{TARGET}={name:?} names no target"))
}

fuzz_target!(|input: &[u8]| {
    (CHOSEN.get_or_init(chosen).run)(input);
});
