//! Several requests in one transaction, begun again on a conflict.

use alloc::vec::Vec;

use store_client::{Call, Verdict};
use wire::Errno;

/// Conflicts in a row before giving up: nobody else writes to a guest's nodes before it runs, so
/// each conflict is with something unrelated.
const MAX_TRIES: u32 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Within { transaction: u32, next: usize },
    Commit { transaction: u32 },
    Drop { transaction: u32, reason: Errno },
    Done,
}

/// Whether the transaction met a conflict, or is unknown to a store that was recovered: none of our
/// requests is about something that may be missing.
fn is_conflict(reason: Errno) -> bool {
    matches!(reason, Errno::Again | Errno::NotFound)
}

/// Requests that come true together.
#[derive(Clone, Debug)]
pub struct Batch {
    calls: Vec<Call>,
    state: State,
    tries: u32,
}

impl Batch {
    /// A batch that has not begun.
    pub fn new(calls: Vec<Call>) -> Self {
        Self { calls, state: State::Start, tries: 1 }
    }

    /// The next request; `None` when all came true.
    pub fn call(&self) -> Option<Call> {
        match self.state {
            State::Start => Some(Call::start_transaction()),
            State::Within { transaction, next } => {
                Some(self.calls[next].clone().within(transaction))
            }
            State::Commit { transaction } => {
                Some(Call::end_transaction(Verdict::Commit).within(transaction))
            }
            State::Drop { transaction, .. } => {
                Some(Call::end_transaction(Verdict::Drop).within(transaction))
            }
            State::Done => None,
        }
    }

    /// Takes the answer to the last request.
    ///
    /// # Errors
    /// Why the batch did not come true. Nothing of it did.
    pub fn answered(&mut self, answer: Result<&[u8], Errno>) -> Result<(), Errno> {
        self.state = match (self.state, answer) {
            (State::Start, Ok(id)) => {
                let transaction =
                    wire::text::only(id).and_then(wire::text::decimal).ok_or(Errno::Invalid)?;
                self.within(transaction, 0)
            }
            (State::Within { transaction, next }, Ok(_)) => self.within(transaction, next + 1),
            (State::Within { transaction, .. }, Err(reason)) => State::Drop { transaction, reason },
            (State::Commit { .. }, Ok(_)) => State::Done,
            (State::Commit { .. }, Err(reason)) | (State::Drop { reason, .. }, _) => {
                if !is_conflict(reason) || self.tries == MAX_TRIES {
                    return Err(reason);
                }
                self.tries += 1;
                State::Start
            }
            (State::Start, Err(reason)) => return Err(reason),
            (State::Done, _) => State::Done,
        };
        Ok(())
    }

    fn within(&self, transaction: u32, next: usize) -> State {
        if next < self.calls.len() {
            State::Within { transaction, next }
        } else {
            State::Commit { transaction }
        }
    }

    /// The connection is a new one: transactions of the former one are gone.
    pub fn restart(&mut self) {
        if self.state != State::Done {
            self.state = State::Start;
        }
    }
}
