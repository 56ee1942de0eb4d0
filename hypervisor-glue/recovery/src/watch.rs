//! Judging one unit that serves: is it healthy, hung, asleep, starved?

use fabric::Epoch;
use fabric::checked::{VALUE_MAX, distance};
use fabric::health::{Health, HealthError, State};

use crate::{Policy, Reason, Report};

/// Shortest time to the next look, in ns: Xen postpones timers that are closer (`timer_slop`).
pub(crate) const LOOK_MIN_NS: u64 = 50_000;

/// A unit is called starved after this long without progress and without its CPU time, in ns: ten
/// times Xen's longest usual time slice (10 ms, credit2), so that ordinary waiting is not reported.
const STARVED_NS: u64 = 100_000_000;

/// What Xen says of the unit's virtual CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// It runs, or would if it got a CPU.
    Runnable,
    /// It waits for an event.
    Blocked,
}

/// Who has paused the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Nobody.
    No,
    /// The orchestrator, in a job of its own: the unit is not judged meanwhile.
    ByUs,
    /// Somebody else.
    ByOther,
}

/// A look at a unit: what it says, and what Xen says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its health page.
    pub health: Result<Health, HealthError>,
    /// Work handed over to it so far.
    pub handed: u64,
    /// CPU time that its domain has received, in ns (`XEN_DOMCTL_getdomaininfo`).
    pub cpu_time_ns: u64,
    /// Whether it wants to run.
    pub run: Run,
    /// Whether it may.
    pub pause: Pause,
}

/// What a unit had done at some look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    at_ns: u64,
    cpu_time_ns: u64,
    taken: u64,
    progress: u64,
    pong: u64,
}

/// The deadline of a unit with work outstanding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    /// Where it stood when it was last seen to make progress; `None` before the first look.
    mark: Option<Mark>,
    /// It was asleep with work outstanding, and the doorbell rang once more.
    is_rung: bool,
    is_starved: bool,
    /// It was pinged in this life; a ping that a former life left unanswered is not held against
    /// the present one.
    is_pinged: bool,
}

/// What a look means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is outstanding.
    Idle,
    /// Healthy so far: look again then.
    Busy { wake_at_ns: u64 },
    /// The same, and the doorbell shall ring.
    Ring { wake_at_ns: u64 },
    /// The same, and the operator shall know.
    Starved { wake_at_ns: u64, report: Report },
    /// It failed.
    Failed(Reason),
}

impl Watch {
    pub(crate) const fn new() -> Self {
        Self { mark: None, is_rung: false, is_starved: false, is_pinged: false }
    }

    /// The watch of a unit that has just been pinged.
    pub(crate) const fn pinged() -> Self {
        Self { is_pinged: true, ..Self::new() }
    }

    /// Whether the unit has gone on before the look at this time, and so is judged from it on.
    pub(crate) fn is_marked_at(&self, now_ns: u64) -> bool {
        self.mark.is_some_and(|mark| mark.at_ns == now_ns)
    }

    /// When to look after work was handed over: half a limit, so that a mark is never older.
    pub(crate) const fn first_look_ns(policy: &Policy) -> u64 {
        let half = policy.hang_limit_ns / 2;
        if half > LOOK_MIN_NS { half } else { LOOK_MIN_NS }
    }

    /// Judges a unit that serves in life `epoch` and was last sent the ping `ping`. One that has
    /// nothing outstanding and yet does not sleep is judged as if it had: it either makes progress
    /// with work of its own, or it loops.
    pub(crate) fn look(
        &mut self,
        now_ns: u64,
        policy: &Policy,
        epoch: Epoch,
        ping: u64,
        sample: &Sample,
    ) -> Verdict {
        let health = match check(epoch, ping, sample) {
            Ok(health) => health,
            Err(reason) => return Verdict::Failed(reason),
        };
        let later = now_ns + Self::first_look_ns(policy);
        if sample.pause == Pause::ByUs {
            self.mark = None;
            return Verdict::Busy { wake_at_ns: later };
        }
        let is_silent = self.is_pinged && health.pong != ping;
        let has_work = health.taken != sample.handed || is_silent;
        if !has_work && sample.run == Run::Blocked {
            return Verdict::Idle;
        }
        let seen = Mark {
            at_ns: now_ns,
            cpu_time_ns: sample.cpu_time_ns,
            taken: health.taken,
            progress: health.progress,
            pong: health.pong,
        };
        let mark = match self.mark {
            Some(mark) if !has_moved(&mark, &seen) => mark,
            _ => {
                let is_pinged = self.is_pinged;
                *self = Self { mark: Some(seen), is_pinged, ..Self::new() };
                seen
            }
        };
        if sample.run == Run::Blocked {
            if self.is_rung {
                return Verdict::Failed(Reason::Asleep);
            }
            self.is_rung = true;
            return Verdict::Ring { wake_at_ns: later };
        }
        if mark == seen {
            return Verdict::Busy { wake_at_ns: later };
        }
        self.judge(now_ns, policy, &mark, seen.cpu_time_ns - mark.cpu_time_ns)
    }

    fn judge(&mut self, now_ns: u64, policy: &Policy, mark: &Mark, received_ns: u64) -> Verdict {
        let Some(left_ns) = policy.hang_limit_ns.checked_sub(received_ns).filter(|left| *left > 0)
        else {
            return Verdict::Failed(Reason::Hang);
        };
        // CPU time passes no faster than time: before that the limit cannot be reached. But a unit
        // that goes on, and hangs then, is marked anew only by the next look.
        let wake_ns = left_ns.min(Self::first_look_ns(policy)).max(LOOK_MIN_NS);
        let wake_at_ns = now_ns + wake_ns;
        let for_ns = now_ns - mark.at_ns;
        if for_ns < STARVED_NS || self.is_starved {
            return Verdict::Busy { wake_at_ns };
        }
        self.is_starved = true;
        Verdict::Starved { wake_at_ns, report: Report::Starved { for_ns, received_ns } }
    }
}

/// What no correct unit shows, whether it has work or not.
fn check(epoch: Epoch, ping: u64, sample: &Sample) -> Result<Health, Reason> {
    let health = sample.health.map_err(|_| Reason::Corrupt)?;
    if health.state == State::Panicked && health.epoch == epoch {
        return Err(Reason::Panic);
    }
    // More taken than handed, or a pong before its ping.
    let is_ahead = |behind, ahead| distance(behind, ahead) > VALUE_MAX / 2;
    let is_wild = is_ahead(sample.handed, health.taken) || is_ahead(ping, health.pong);
    if health.epoch != epoch || is_wild {
        return Err(Reason::Corrupt);
    }
    if sample.pause == Pause::ByOther {
        return Err(Reason::Paused);
    }
    Ok(health)
}

fn has_moved(mark: &Mark, seen: &Mark) -> bool {
    let is_new_domain = seen.cpu_time_ns < mark.cpu_time_ns || seen.at_ns < mark.at_ns;
    (mark.taken, mark.progress, mark.pong) != (seen.taken, seen.progress, seen.pong)
        || is_new_domain
}
