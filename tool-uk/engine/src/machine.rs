//! One wanted guest and where it is in its life.

use serde::{Deserialize, Serialize};

use crate::spec::{OnStop, Spec};

/// A guest that lived shorter than this has stopped too early: its restarts count as in a row.
/// Xen's own toolstack uses the same time.
const SHORT_LIFE_NS: u64 = 5_000_000_000;
/// Restarts in a row before the guest is given up.
const MAX_RESTARTS: u32 = 5;
/// Delay before the second restart in a row, doubled with each further one.
const RESTART_DELAY_NS: u64 = 100_000_000;

/// What follows the removal of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// It is created again.
    Create,
    /// Nothing.
    End,
}

/// Where a guest is in its life. The number is its domid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It is to be created.
    Wanted,
    /// It is being built and has not run yet.
    Creating(u16),
    /// It runs.
    Running(u16),
    /// It stopped and is kept for inspection.
    Preserved(u16),
    /// It is being removed.
    Destroying(u16, Then),
    /// It is no longer wanted.
    Ended,
}

impl Phase {
    /// The domid, while there is one.
    pub fn domid(self) -> Option<u16> {
        match self {
            Self::Creating(domid)
            | Self::Running(domid)
            | Self::Preserved(domid)
            | Self::Destroying(domid, _) => Some(domid),
            Self::Wanted | Self::Ended => None,
        }
    }
}

/// How a guest stopped (`SHUTDOWN_*`, sched.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It powered itself off.
    PowerOff,
    /// It wants to start again.
    Reboot,
    /// It saved itself, which nobody asked for.
    Suspend,
    /// It crashed, or its watchdog expired.
    Crash,
    /// It is gone, and we did not remove it.
    Gone,
}

impl Stop {
    /// The stop with this shutdown code.
    pub fn from_code(code: u8) -> Self {
        match code {
            0 => Self::PowerOff,
            1 | 5 => Self::Reboot,
            2 => Self::Suspend,
            _ => Self::Crash,
        }
    }

    /// What happened, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "powered off",
            Self::Reboot => "reboots",
            Self::Suspend => "suspended",
            Self::Crash => "crashed",
            Self::Gone => "is gone",
        }
    }
}

/// What a stop leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Remove it.
    Remove(Then),
    /// Remove it: it stopped too often in a row.
    GiveUp,
    /// Keep it.
    Keep,
}

/// One wanted guest.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// What it is to be.
    pub spec: Spec<'a>,
    /// Where it is.
    pub phase: Phase,
    /// Restarts in a row.
    pub restarts: u32,
    /// Not to be touched before this time.
    pub not_before_ns: u64,
    /// Attempts of the present removal.
    pub attempts: u32,
    /// When it began to run, as far as this life of tool-uk knows.
    started_ns: u64,
}

impl<'a> Machine<'a> {
    /// A guest that is to be created.
    pub fn new(spec: Spec<'a>) -> Self {
        Self {
            spec,
            phase: Phase::Wanted,
            restarts: 0,
            not_before_ns: 0,
            attempts: 0,
            started_ns: 0,
        }
    }

    /// It runs.
    pub fn run(&mut self, domid: u16, now_ns: u64) {
        self.phase = Phase::Running(domid);
        self.started_ns = now_ns;
    }

    /// It stopped: what follows, by its configuration.
    pub fn stop(&mut self, stop: Stop, now_ns: u64) -> Decision {
        let wish = match stop {
            Stop::PowerOff => self.spec.on_poweroff,
            Stop::Reboot => self.spec.on_reboot,
            Stop::Suspend => OnStop::Preserve,
            Stop::Crash | Stop::Gone => self.spec.on_crash,
        };
        match wish {
            OnStop::Destroy => Decision::Remove(Then::End),
            OnStop::Restart => self.restart(now_ns),
            // There is nothing left to keep of a guest that is gone.
            OnStop::Preserve if stop == Stop::Gone => Decision::Remove(Then::End),
            OnStop::Preserve => Decision::Keep,
        }
    }

    fn restart(&mut self, now_ns: u64) -> Decision {
        if now_ns.saturating_sub(self.started_ns) >= SHORT_LIFE_NS {
            self.restarts = 0;
        }
        self.restarts += 1;
        if self.restarts > MAX_RESTARTS {
            return Decision::GiveUp;
        }
        Decision::Remove(Then::Create)
    }

    /// How long to wait before the guest is created again.
    pub fn restart_delay_ns(&self) -> u64 {
        match self.restarts {
            0 | 1 => 0,
            more => RESTART_DELAY_NS << (more - 2).min(MAX_RESTARTS),
        }
    }
}
