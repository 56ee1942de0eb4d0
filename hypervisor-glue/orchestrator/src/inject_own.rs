//! Fault injection into the orchestrator itself: at seeded instants one of its calls to Xen does
//! not return, but panics, traps, or spins.
//!
//! The plan stands on the command line, e.g. `panic=count:50;seed:1;gap_us:60000;after:1000`, and
//! [`Breaking`] stands between the orchestrator and the hypervisor: the rest of the orchestrator
//! makes its calls and knows nothing of it. Each kind meets each program point in turn; a point
//! that the orchestrator does not pass for a while gives way to the next one it does pass.

use core::cell::Cell;

use abi::Xen;

use crate::inject_strike::Timed;

/// How long a program point is waited for before any other will do.
const POINT_NS: u64 = 3_000_000;
/// Kinds that one plan may name: each once.
const MAX_KINDS: usize = Kind::ALL.len();

/// How the orchestrator fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It panics.
    Panic,
    /// It executes an undefined instruction.
    Undefined,
    /// It reads where nothing is.
    WildRead,
    /// It writes where nothing is.
    WildWrite,
    /// It does nothing any more; Xen's watchdog ends that, and the machine.
    Spin,
}

impl Kind {
    /// All kinds, by the name used in plans and results; those before the last one are recovered
    /// from, and injected when a plan names none.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Panic, "panic-explicit"),
        (Self::Undefined, "panic-undefined"),
        (Self::WildRead, "panic-wild-read"),
        (Self::WildWrite, "panic-wild-write"),
        (Self::Spin, "hang-spin"),
    ];

    /// The name used in plans and results.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("unknown", |(_, name)| name)
    }
}

/// Where in its work the orchestrator fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Between two events.
    Poll,
    /// Passing an event on.
    Relay,
    /// Looking at a domain.
    Look,
    /// In a step of a job or of an operation.
    Step,
    /// In the middle of a long call.
    During,
    /// Printing.
    Print,
}

impl Point {
    /// All points, by the name used in results.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Poll, "poll"),
        (Self::Relay, "relay"),
        (Self::Look, "look"),
        (Self::Step, "step"),
        (Self::During, "during"),
        (Self::Print, "print"),
    ];

    /// The name used in results.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(point, _)| *point == self).map_or("unknown", |(_, name)| name)
    }
}

/// How often, when, and in which ways the orchestrator fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Ways, in turn.
    pub kinds: heapless::Vec<Kind, MAX_KINDS>,
    /// Number of failures.
    pub count: u32,
    /// Seed of the instants.
    pub seed: u64,
    /// Mean time between failures in microseconds (± half of it).
    pub gap_us: u64,
    /// Events that are taken before the first one is planned.
    pub after: u64,
}

impl Plan {
    /// Reads a plan; the part after `panic=`. `None`: a field is unknown or cannot be read.
    pub fn parse(text: &str) -> Option<Self> {
        let kinds = heapless::Vec::new();
        let mut plan = Self { kinds, count: 1, seed: 1, gap_us: 60_000, after: 0 };
        for field in text.split(';') {
            let (name, value) = field.split_once(':')?;
            match name {
                "count" => plan.count = value.parse().ok()?,
                "seed" => plan.seed = value.parse().ok()?,
                "gap_us" => plan.gap_us = value.parse().ok()?,
                "after" => plan.after = value.parse().ok()?,
                "kinds" => {
                    for name in value.split('+') {
                        let (kind, _) = Kind::ALL.iter().find(|(_, known)| *known == name)?;
                        plan.kinds.push(*kind).ok()?;
                    }
                }
                _ => return None,
            }
        }
        if plan.kinds.is_empty() {
            let recoverable = &Kind::ALL[..MAX_KINDS - 1];
            plan.kinds.extend(recoverable.iter().map(|(kind, _)| *kind));
        }
        Some(plan)
    }

    /// The way and place of failure `number`: each way meets each place.
    fn aim(&self, number: u32) -> (Kind, Point) {
        let (number, ways) = (number as usize, self.kinds.len());
        (self.kinds[number % ways], Point::ALL[number / ways % Point::ALL.len()].0)
    }
}

/// A failure of ours that was planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its number, from 0.
    pub number: u32,
    /// In which way.
    pub kind: Kind,
    /// Where.
    pub point: Point,
    /// System time of the last look at the clock before it.
    pub at_ns: u64,
}

/// How far a plan got: plain data, kept where it outlives the failures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    random: u64,
    events: u64,
    count: u32,
    from_ns: Option<u64>,
    last: Option<Broken>,
}

impl Progress {
    /// Nothing has happened.
    pub const NONE: Self = Self { random: 0, events: 0, count: 0, from_ns: None, last: None };

    /// The last failure, once.
    pub fn take_last(&mut self) -> Option<Broken> {
        self.last.take()
    }

    /// Plans the next failure.
    fn arm(&mut self, now_ns: u64, plan: &Plan) {
        if self.random == 0 {
            self.random = plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        }
        // xorshift64*: seeded, and good enough to choose instants.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let random = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        let gap_ns = plan.gap_us * 1_000;
        self.from_ns = Some(now_ns + gap_ns / 2 + random % (gap_ns + 1));
    }
}

/// The hypervisor, with calls that break the caller when the plan says so.
#[derive(Debug)]
pub struct Breaking<'a, C> {
    pub(crate) xen: &'a C,
    plan: Option<Plan>,
    progress: &'a Cell<Progress>,
    break_down: fn(Kind) -> !,
    /// A fault of a unit, which is looked at before each event.
    pub(crate) timed: Timed,
}

impl<'a, C: Xen> Breaking<'a, C> {
    /// Calls to `xen` that break down by `plan`, which is at `progress`, by calling `break_down`.
    /// Without a plan they never do.
    pub fn new(
        xen: &'a C,
        plan: Option<Plan>,
        progress: &'a mut Progress,
        break_down: fn(Kind) -> !,
    ) -> Self {
        Self { xen, plan, progress: Cell::from_mut(progress), break_down, timed: Timed::default() }
    }

    /// Where a fault of a unit is timed.
    pub fn timed(&self) -> &Timed {
        &self.timed
    }

    /// Counts an event that was taken.
    pub(crate) fn count_event(&self) {
        let mut progress = self.progress.get();
        progress.events += 1;
        self.progress.set(progress);
    }

    /// The orchestrator passes this point: it breaks down here, if it is to.
    pub(crate) fn pass(&self, point: Point) {
        let Some(plan) = &self.plan else { return };
        let mut progress = self.progress.get();
        if progress.count == plan.count || progress.events < plan.after {
            return;
        }
        let at_ns = self.xen.now_ns();
        let Some(from_ns) = progress.from_ns else {
            progress.arm(at_ns, plan);
            self.progress.set(progress);
            return;
        };
        let (kind, wanted) = plan.aim(progress.count);
        if at_ns < from_ns || (point != wanted && at_ns < from_ns + POINT_NS) {
            return;
        }
        progress.last = Some(Broken { number: progress.count, kind, point, at_ns });
        progress.count += 1;
        progress.arm(at_ns, plan);
        self.progress.set(progress);
        (self.break_down)(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_and_a_wrong_one_refused() {
        let plan = Plan::parse("count:50;seed:3;gap_us:700;after:9").expect("a correct plan");
        assert_eq!((plan.count, plan.seed, plan.gap_us, plan.after), (50, 3, 700, 9));
        assert_eq!(plan.kinds.len(), 4, "those that are recovered from");
        assert_eq!(Plan::parse("kinds:hang-spin").expect("a kind").kinds[..], [Kind::Spin]);
        for wrong in ["", "count", "count:x", "speed:1", "kinds:panic"] {
            assert_eq!(Plan::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn each_way_meets_each_place() {
        let plan = Plan::parse("count:24").expect("a correct plan");
        let mut met: Vec<_> = (0..24).map(|number| plan.aim(number)).collect();
        met.dedup();
        for (kind, _) in &Kind::ALL[..4] {
            for (point, _) in Point::ALL {
                assert!(met.contains(&(*kind, point)), "{kind:?} in {point:?}");
            }
        }
    }
}
