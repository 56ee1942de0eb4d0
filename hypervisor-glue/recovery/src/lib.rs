//! Recovery policy: when a unit has failed, and what is done about it.
//!
//! Pure: events and time go in, a bounded list of actions comes out. No clock, no hypercall, no
//! allocation. The orchestrator owns one [`Supervisor`], and
//!
//! 1. tells it each event as it happens: [`Supervisor::handed`] for work given to a unit (cheap,
//!    on each relayed kick), [`Supervisor::handle`] for everything else;
//! 2. executes the [`Action`]s of the answer, in order;
//! 3. arms **one** timer at [`Supervisor::wake_at`]. When it expires, it gives each unit of
//!    [`Supervisor::is_due`] an [`Event::Timer`] with a fresh [`Sample`] of that unit.
//!
//! # Watching
//! Work-conserving: a unit with work outstanding is judged by the CPU time that it received, never
//! by elapsed time. The next look is set to the first instant at which the limit *could* be
//! reached, so an idle unit costs no timer, and a starved one only few. Bound: a hang is seen after
//! [`Policy::hang_limit_ns`] and a half of received CPU time, plus the timers' slack.
//!
//! | a look shows | verdict |
//! |---|---|
//! | nothing outstanding, asleep | healthy; left alone until the next ping |
//! | nothing outstanding, not asleep | judged as with work: it progresses, or it loops |
//! | work outstanding, progress since the last look | healthy |
//! | …no progress, it received less CPU time than the limit | healthy; reported if it starves |
//! | …no progress, it received the limit | hung |
//! | …it sleeps | the doorbell rings once more; asleep without progress at the next look: failed |
//! | paused by somebody else | failed |
//! | words that no correct unit writes | corrupt |
//!
//! What a unit owes: it sleeps only after it has published in `taken` every count of `handed` that
//! it has seen, and answers a ping whenever it wakes; work of its own (a scrubber) counts as
//! progress.
//!
//! # Ladder
//! Microreset, microreboot, rebuild, global restart. A failure within [`Policy::healthy_ns`] of
//! service counts as one more try of the present rung; when its tries are used up, the next rung is
//! taken. A failure within [`Policy::min_run_ns`] is also delayed, twice as long each time up to a
//! maximum. Above everything there is the global restart, after which rebuilds are tried again: the
//! ladder never ends but in service.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod action;
mod ladder;
mod policy;
mod supervisor;
mod watch;

pub use action::{Action, Actions, Report};
pub use fabric::control::Rung;
pub use fabric::epitaph::Reason;
pub use policy::{Plan, Policy};
pub use supervisor::{Event, Supervisor};
pub use watch::{Pause, Run, Sample};
