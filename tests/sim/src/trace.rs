//! What has happened, for a person to read.

use std::fmt::Arguments;

use raft::{Message, Refusal};

/// Prints as it goes, or keeps silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Nothing is printed.
    Silent,
    /// Every step is printed.
    Print,
}

impl Trace {
    /// Notes something.
    pub fn note(self, now: u64, text: Arguments<'_>) {
        if self == Self::Print {
            println!("{:>12.3} us  {text}", now as f64 / 1000.0);
        }
    }

    /// Notes a message that arrived.
    pub fn delivered(self, now: u64, to: u8, bytes: &[u8], refused: Option<Refusal>) {
        if self == Self::Silent {
            return;
        }
        let refused = refused.map_or(String::new(), |why| format!(", refused: {why:?}"));
        match Message::decode(bytes) {
            Err(_) => self.note(now, format_args!("?>{to} {} damaged bytes{refused}", bytes.len())),
            Ok(message) => self.note(
                now,
                format_args!(
                    "{}>{to} {:?} term {} at {}/{} commit {:#x} number {} flags {} records \
                     {}{refused}",
                    message.from.replica(),
                    message.kind,
                    message.term,
                    message.position.term,
                    message.position.index,
                    message.commit,
                    message.number,
                    message.flags,
                    message.count,
                ),
            ),
        }
    }
}
