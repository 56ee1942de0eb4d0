//! How a boot ended.
//!
//! The initial domain writes a byte to QEMU's `isa-debug-exit` port; QEMU then ends with
//! `2 * byte + 1`. The bytes are chosen so that no outcome of ours looks like QEMU's own 0 or 1.

use std::fmt;
use std::process::ExitStatus;

/// Everything asked for was done.
pub const BYTE_PASSED: u8 = 0x10;
/// A check failed.
pub const BYTE_FAILED: u8 = 0x11;
/// The initial domain gave up: what was booted cannot work, or it met what it cannot survive.
pub const BYTE_GAVE_UP: u8 = 0x7f;

/// How a boot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The host ended by itself and is content.
    Passed,
    /// The host ended by itself and says that something failed.
    Failed,
    /// The initial domain gave up and said why.
    GaveUp,
    /// The machine was reset or switched off without a verdict.
    PoweredOff,
    /// The time limit passed, or we ended it.
    Ended,
    /// QEMU ended with another code.
    Other(i32),
}

impl Outcome {
    /// Reads QEMU's exit status.
    pub fn of(status: ExitStatus) -> Outcome {
        match status.code() {
            None => Outcome::Ended,
            Some(0) => Outcome::PoweredOff,
            Some(code) => match u8::try_from(code >> 1) {
                Ok(BYTE_PASSED) if code & 1 == 1 => Outcome::Passed,
                Ok(BYTE_FAILED) if code & 1 == 1 => Outcome::Failed,
                Ok(BYTE_GAVE_UP) if code & 1 == 1 => Outcome::GaveUp,
                _ => Outcome::Other(code),
            },
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Passed => f.write_str("passed"),
            Outcome::Failed => f.write_str("failed: the host says why above"),
            Outcome::GaveUp => f.write_str("the orchestrator gave up: it says why above"),
            Outcome::PoweredOff => f.write_str("powered off"),
            Outcome::Ended => f.write_str("ended from outside (time limit or signal)"),
            Outcome::Other(code) => write!(f, "QEMU ended with exit code {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn qemus_own_codes_are_no_verdicts() {
        let of = |code: i32| Outcome::of(ExitStatus::from_raw(code << 8));
        assert_eq!(of(33), Outcome::Passed);
        assert_eq!(of(35), Outcome::Failed);
        assert_eq!(of(255), Outcome::GaveUp);
        assert_eq!(of(0), Outcome::PoweredOff);
        assert_eq!(of(1), Outcome::Other(1));
        assert_eq!(of(32), Outcome::Other(32));
        assert_eq!(Outcome::of(ExitStatus::from_raw(9)), Outcome::Ended);
    }
}
