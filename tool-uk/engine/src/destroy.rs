//! Removing a guest: everybody lets go of its pages, then it goes. Each step can be done again, and
//! is right for a guest of which only a part is left.

use alloc::string::String;
use alloc::vec::Vec;

use api::{Failure, GuestId, Operation, Outcome};
use store_client::Call;

use crate::nodes::{self, Uuid};
use crate::task::{Trouble, Want, check};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Detach,
    Pause,
    Release,
    Remove(usize),
    Destroy,
    Done,
}

/// A guest being removed.
#[derive(Clone, Debug)]
pub struct Destroy {
    domid: u16,
    roots: Vec<String>,
    stage: Stage,
}

impl Destroy {
    /// Begins to remove guest `domid`.
    pub fn new(domid: u16, uuid: Uuid, net: Option<u16>) -> Self {
        Self { domid, roots: nodes::roots(domid, uuid, net), stage: Stage::Detach }
    }

    /// What it wants next.
    pub fn want(&self) -> Want<'_> {
        let guest = GuestId(self.domid);
        match self.stage {
            Stage::Detach => Want::Detach,
            Stage::Pause => Want::Operate(Operation::Pause { guest }),
            Stage::Release => Want::Store(Call::release(self.domid)),
            Stage::Remove(root) => Want::Store(Call::remove(&self.roots[root])),
            Stage::Destroy => Want::Operate(Operation::Destroy { guest }),
            Stage::Done => Want::Nothing,
        }
    }

    /// Takes the outcome of the operation it wanted.
    ///
    /// # Errors
    /// [`Trouble::StillMapped`]: try again later. Others: the orchestrator refused.
    pub fn operated(&mut self, outcome: &Outcome<'_>) -> Result<(), Trouble> {
        match self.stage {
            // A guest that is gone already, or cannot be paused, is removed all the same.
            Stage::Pause => self.stage = Stage::Release,
            Stage::Destroy => match outcome {
                Outcome::Failed(Failure::StillMapped) => return Err(Trouble::StillMapped),
                Outcome::Failed(Failure::NoGuest) => self.stage = Stage::Done,
                _ => {
                    check("destroy it", outcome)?;
                    self.stage = Stage::Done;
                }
            },
            _ => return Err(Trouble::Unexpected),
        }
        Ok(())
    }

    /// Takes XenStore's answer, which does not matter: what was not there is gone, too.
    ///
    /// # Errors
    /// None was asked for.
    pub fn answered(&mut self) -> Result<(), Trouble> {
        self.stage = match self.stage {
            Stage::Release => Stage::Remove(0),
            Stage::Remove(root) if root + 1 < self.roots.len() => Stage::Remove(root + 1),
            Stage::Remove(_) => Stage::Destroy,
            _ => return Err(Trouble::Unexpected),
        };
        Ok(())
    }

    /// The console page is unmapped.
    pub fn console_done(&mut self) {
        if self.stage == Stage::Detach {
            self.stage = Stage::Pause;
        }
    }
}
