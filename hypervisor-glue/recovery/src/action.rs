//! What the supervisor wants done.

use fabric::Epoch;

use crate::{Reason, Rung};

/// Something that the orchestrator does for one unit, in the order in which it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Pause the domain, if there is one: it shall change nothing any more.
    Fence {
        /// The unit.
        unit: usize,
    },
    /// Keep the evidence, before anything of it is overwritten.
    KeepEpitaph {
        /// The unit.
        unit: usize,
        /// Why it is recovered.
        reason: Reason,
        /// The rung that will be taken.
        rung: Rung,
    },
    /// Start the unit's next life by this rung ([`Rung::Global`] and [`Rung::First`] are a
    /// rebuild), then report [`crate::Event::JobDone`] or [`crate::Event::JobFailed`]. May take
    /// many steps.
    Recover {
        /// The unit.
        unit: usize,
        /// How.
        rung: Rung,
        /// Epoch of the new life, for the control page.
        epoch: Epoch,
    },
    /// Ring the unit's doorbell once more.
    Ring {
        /// The unit.
        unit: usize,
    },
    /// Write this ping to the unit's control page and ring its doorbell.
    Ping {
        /// The unit.
        unit: usize,
        /// Number of the ping.
        ping: u64,
    },
    /// Nothing to do but to say so.
    Report {
        /// The unit.
        unit: usize,
        /// What there is to say.
        report: Report,
    },
}

/// What an operator may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It serves again (or for the first time).
    Serving {
        /// How its life began.
        rung: Rung,
        /// Its life.
        epoch: Epoch,
    },
    /// It has work, is ready to run, and gets no CPU.
    Starved {
        /// Elapsed time without progress, in ns.
        for_ns: u64,
        /// CPU time received meanwhile, in ns.
        received_ns: u64,
    },
    /// It failed again too soon; its recovery waits.
    Delayed {
        /// Why it failed this time.
        reason: Reason,
        /// What will be done.
        rung: Rung,
        /// When it goes on, in ns.
        until_ns: u64,
    },
    /// The operator's wish cannot be met now: a recovery of the unit is under way.
    Refused,
}

/// Actions per event: at most two for each of 15 units (a global restart fences all of them) and
/// three for the unit that caused it.
const ACTIONS_MAX: usize = 2 * fabric::view::PARTIES_MAX + 4;

/// A bounded list of actions.
#[derive(Clone, Copy, Debug)]
pub struct Actions {
    list: [Option<Action>; ACTIONS_MAX],
    len: usize,
}

impl Actions {
    pub(crate) const fn new() -> Self {
        Self { list: [None; ACTIONS_MAX], len: 0 }
    }

    pub(crate) fn push(&mut self, action: Action) {
        assert!(self.len < ACTIONS_MAX, "the bound of actions per event is wrong");
        self.list[self.len] = Some(action);
        self.len += 1;
    }

    /// The actions, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Action> + use<> {
        let Self { list, len } = *self;
        list.into_iter().take(len).flatten()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
