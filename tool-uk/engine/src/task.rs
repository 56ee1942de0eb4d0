//! Work on one guest: what it wants next, and why it stops.

use core::fmt;

use api::{Operation, Outcome};
use builder::pvh::{PlanError, ProbeError, StepError};
use store_client::Call;
use wire::Errno;

use crate::create::Create;
use crate::destroy::Destroy;

/// What a task wants next.
#[derive(Clone, Debug)]
pub enum Want<'t> {
    /// An operation of the orchestrator.
    Operate(Operation<'t>),
    /// A request to XenStore.
    Store(Call),
    /// The guest's console page mapped, before it runs.
    Attach,
    /// The guest's console page unmapped, or it cannot go.
    Detach,
    /// Nothing: it is done.
    Nothing,
}

/// Why a task stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The kernel cannot be started.
    Kernel(ProbeError),
    /// The configuration cannot work.
    Plan(PlanError),
    /// An operation went wrong.
    Operation(&'static str, StepError),
    /// XenStore refused.
    Store(&'static str, Errno),
    /// Somebody still maps a page of the guest.
    StillMapped,
    /// The guest's number is taken.
    NumberTaken,
    /// An answer to something that was not asked.
    Unexpected,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(error) => write!(f, "kernel: {error}"),
            Self::Plan(error) => error.fmt(f),
            Self::Operation(what, error) => write!(f, "cannot {what}: {error}"),
            Self::Store(what, errno) => write!(f, "XenStore refused {what}: {}", errno.name()),
            Self::StillMapped => f.write_str("a service still maps its memory"),
            Self::NumberTaken => f.write_str("its number is taken"),
            Self::Unexpected => f.write_str("an answer came that nobody asked for"),
        }
    }
}

/// Work on one guest.
#[derive(Clone, Debug)]
pub enum Task<'a> {
    /// Building it.
    Create(Create<'a>),
    /// Removing it.
    Destroy(Destroy),
}

impl Task<'_> {
    /// What it wants next.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub fn want(&self) -> Result<Want<'_>, Trouble> {
        match self {
            Self::Create(task) => task.want(),
            Self::Destroy(task) => Ok(task.want()),
        }
    }

    /// Takes the outcome of the operation it wanted.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub fn operated(&mut self, outcome: &Outcome<'_>) -> Result<(), Trouble> {
        match self {
            Self::Create(task) => task.operated(outcome),
            Self::Destroy(task) => task.operated(outcome),
        }
    }

    /// Takes the answer to the request it wanted.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub fn answered(&mut self, answer: Result<&[u8], Errno>) -> Result<(), Trouble> {
        match self {
            Self::Create(task) => task.answered(answer),
            Self::Destroy(task) => task.answered(),
        }
    }

    /// The console page was mapped, or unmapped.
    pub fn console_done(&mut self) {
        match self {
            Self::Create(task) => task.console_done(),
            Self::Destroy(task) => task.console_done(),
        }
    }

    /// The connection to XenStore is a new one.
    pub fn store_restarted(&mut self) {
        if let Self::Create(task) = self {
            task.store_restarted();
        }
    }
}

/// The error of an outcome that is one.
pub fn check(what: &'static str, outcome: &Outcome<'_>) -> Result<(), Trouble> {
    match outcome {
        Outcome::Refused(refusal) => Err(Trouble::Operation(what, StepError::Refused(*refusal))),
        Outcome::Failed(failure) => Err(Trouble::Operation(what, StepError::Failed(*failure))),
        _ => Ok(()),
    }
}
