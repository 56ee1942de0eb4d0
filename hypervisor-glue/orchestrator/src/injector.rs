//! Fault injection from outside, into byte-identical release images.
//!
//! The injector plays the fault, not the watcher: it shares no state with the recovery code, which
//! learns of a fault only by what the fault does. It is given a plan on the command line, e.g.
//! `inject=unit:1;kinds:crash-undefined+hang-loop;count:60;seed:7;gap_us:30000;after:500`, and
//! acts at seeded instants: `gap_us` (± half) after the last fault, counted from the moment the
//! unit has been handed `after` pieces of work, then a seeded number of nanoseconds after the
//! next piece of work, so that the unit is caught in the middle of it.
//!
//! `row:2+10` asks for faults in a row, first two, then ten: the first of a row comes at a seeded
//! instant, each other one as soon as the unit lives again, in the middle of its recovery. `with:5`
//! ends another unit at the instant at which a row begins.

use abi::{Access, Control, DomId, DomainState, Frame, ShutdownReason, XenError};
use fabric::{Epoch, SharedMemory};

use crate::inject_records::{Damager, Record};
use crate::inject_registers::{Gadgets, changed};
use crate::inject_rows::Rows;

/// Longest delay between a piece of work and the fault, so that the unit is still busy with it.
const MAX_AIM_NS: u64 = 25_000;
/// A unit that sleeps at the chosen instant is looked at again after this time, then after twice as
/// long, and so on: under load it is awake for some 12 µs per piece of work.
const FIRST_STEP_NS: u64 = 2_000;
/// The longest such step; a unit that slept through it has done its work.
const LAST_STEP_NS: u64 = 1 << 20;
/// Pieces of work between two faults, at least: the new life's own, and more than the parts that
/// one request comes in. So somebody gets an answer in between, and each fault has a recovery of
/// its own, however seldom the unit is asked.
const WORK_BETWEEN: u64 = 8;
/// Kinds that one plan may name.
const MAX_KINDS: usize = 16;
/// Time between two steps of a search through a unit's memory, so that others are served, too.
const SEARCH_PAUSE_NS: u64 = 50_000;

/// One way of breaking a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The instruction pointer points at memory that is not there.
    WildJump,
    /// The next instruction is an undefined one of the unit's own text.
    Undefined,
    /// The stack pointer points at memory that is not there.
    WildStack,
    /// Every general register but the stack pointer holds a wild address.
    WildRegisters,
    /// The next instruction is an endless loop of the unit's own text.
    EndlessLoop,
    /// The domain is shut down as crashed, asleep or not.
    Shutdown,
    /// The vCPU is paused behind the watcher's back.
    Paused,
    /// One bit of one of the unit's pages, chosen uniformly, is flipped.
    FlipPage,
    /// One bit of a record is flipped.
    Record(Record),
}

impl Kind {
    /// All kinds, in the order of their names in plans.
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::WildJump, "crash-wild-jump"),
        (Self::Undefined, "crash-undefined"),
        (Self::WildStack, "crash-wild-stack"),
        (Self::WildRegisters, "crash-wild-registers"),
        (Self::Shutdown, "crash-shutdown"),
        (Self::EndlessLoop, "hang-loop"),
        (Self::Paused, "hang-paused"),
        (Self::FlipPage, "flip-page"),
        (Self::Record(Record::Node), "corrupt-record-node"),
        (Self::Record(Record::Slot), "corrupt-record-slot"),
        (Self::Record(Record::Header), "corrupt-record-header"),
        (Self::Record(Record::Area), "corrupt-record-area"),
        (Self::Record(Record::Control), "corrupt-record-control"),
        (Self::Record(Record::Health), "corrupt-record-health"),
    ];

    /// The name used in plans and results (`evaluation.md`: a prefix, then detail).
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("unknown", |(_, name)| name)
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

/// What is wrong with a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError<'a> {
    /// A field that plans do not have.
    UnknownField(&'a str),
    /// A number that cannot be read.
    NotANumber(&'a str),
    /// A kind that does not exist, or more kinds than a plan may name.
    UnknownKind(&'a str),
    /// No kind or no unit is named.
    Incomplete,
}

/// What to inject, into whom, how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Domain of the unit to break.
    pub unit: DomId,
    /// It is the replica of the store that serves when the fault is due (`unit:store`).
    pub is_leader: bool,
    /// Kinds to choose from, in turn.
    pub kinds: heapless::Vec<Kind, MAX_KINDS>,
    /// Number of faults.
    pub count: u32,
    /// Seed of the instants.
    pub seed: u64,
    /// Mean time between faults in microseconds.
    pub gap_us: u64,
    /// Pieces of work the unit is handed before the first fault.
    pub after: u64,
    /// Which faults come in a row.
    pub rows: Rows,
    /// Another unit, which is shut down as crashed when a row begins.
    pub with: Option<DomId>,
}

impl Plan {
    /// Reads a plan; the part after `inject=`.
    ///
    /// # Errors
    /// [`PlanError`] names the field.
    pub fn parse(text: &str) -> Result<Self, PlanError<'_>> {
        let mut plan = Self {
            unit: DomId(0),
            is_leader: false,
            kinds: heapless::Vec::new(),
            count: 1,
            seed: 1,
            gap_us: 20_000,
            after: 0,
            rows: Rows::single(),
            with: None,
        };
        for field in text.split(';') {
            let (name, value) = field.split_once(':').ok_or(PlanError::UnknownField(field))?;
            let wrong = PlanError::NotANumber(field);
            let number = || value.parse::<u64>().map_err(|_| wrong);
            let domid = || value.parse::<u16>().map(DomId).map_err(|_| wrong);
            match name {
                "unit" if value == "store" => {
                    let first = system::SYSTEM.with_role(system::Role::XenStore);
                    plan.unit = DomId(first.map_or(0, |unit| system::SYSTEM.units[unit].domid));
                    plan.is_leader = true;
                }
                "unit" => plan.unit = domid()?,
                "with" => plan.with = Some(domid()?),
                "row" => plan.rows = Rows::parse(value).ok_or(wrong)?,
                "count" => plan.count = value.parse().map_err(|_| wrong)?,
                "seed" => plan.seed = number()?,
                "gap_us" => plan.gap_us = number()?,
                "after" => plan.after = number()?,
                "kinds" => {
                    for name in value.split('+') {
                        let kind = Kind::named(name).ok_or(PlanError::UnknownKind(name))?;
                        plan.kinds.push(kind).map_err(|_| PlanError::UnknownKind(name))?;
                    }
                }
                other => return Err(PlanError::UnknownField(other)),
            }
        }
        if plan.kinds.is_empty() || plan.unit == DomId::ORCHESTRATOR {
            return Err(PlanError::Incomplete);
        }
        Ok(plan)
    }
}

/// A fault that was injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected {
    /// Its number, from 0.
    pub number: u32,
    /// Its kind.
    pub kind: Kind,
    /// System time at which it took effect: the write of the bit, or the last instant before the
    /// changed vCPU could run.
    pub at_ns: u64,
}

/// Where the injector is in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// Until the unit was handed the planned number of pieces of work.
    Waiting,
    /// Until this time and this piece of work; then at the next piece.
    Armed { from_ns: u64, from_work: u64 },
    /// Until the unit lives another life than this one; then soon.
    Following { life: Epoch },
    /// Fires at this time if the unit is awake then, else looks again after `step_ns`.
    Firing { at_ns: u64, step_ns: u64 },
    /// All faults are injected.
    Done,
}

/// A damaged record that is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Damaged {
    number: u32,
    kind: Kind,
    look_at_ns: u64,
}

/// Injects the faults of one plan.
#[derive(Debug)]
pub struct Injector<F> {
    plan: Plan,
    gadgets: Gadgets,
    random: u64,
    injected: u32,
    aim: Aim,
    work_seen: u64,
    /// Nobody hands the unit its work, as guests reach the network by themselves: any time is one
    /// at which it may be at work.
    is_self_driven: bool,
    /// For the kinds that damage records.
    damager: Option<Damager<F>>,
    damaged: Option<Damaged>,
}

impl<F: SharedMemory + Copy> Injector<F> {
    /// An injector for the plan; `gadgets` are those of the unit's image. Without a `damager`,
    /// kinds that damage records find none.
    pub fn new(plan: Plan, gadgets: Gadgets, damager: Option<Damager<F>>) -> Self {
        let random = plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let net = system::SYSTEM.with_role(system::Role::Net);
        let is_self_driven = net.is_some_and(|net| system::SYSTEM.units[net].domid == plan.unit.0);
        Self {
            plan,
            gadgets,
            random,
            injected: 0,
            aim: Aim::Waiting,
            work_seen: 0,
            is_self_driven,
            damager,
            damaged: None,
        }
    }

    /// The unit it breaks.
    pub fn unit(&self) -> DomId {
        self.plan.unit
    }

    /// Whether it breaks the replica of the store that serves.
    pub fn breaks_the_leader(&self) -> bool {
        self.plan.is_leader
    }

    /// Breaks the unit of this domain from now on; its image is that of the former one.
    pub fn aim_at(&mut self, unit: DomId) {
        self.plan.unit = unit;
    }

    /// When it wants to be polled, if it waits for a time.
    pub fn due_ns(&self) -> Option<u64> {
        let aim_ns = match self.aim {
            Aim::Firing { at_ns, .. } => Some(at_ns),
            Aim::Armed { from_ns, .. } if self.is_self_driven => Some(from_ns),
            Aim::Waiting | Aim::Armed { .. } | Aim::Following { .. } | Aim::Done => None,
        };
        let look_ns = self.damaged.map(|damaged| damaged.look_at_ns);
        [aim_ns, look_ns].into_iter().flatten().min()
    }

    /// Some time before the next fault can come: the record that was damaged last, if the damage is
    /// gone. Whether it was noticed is for the watcher to say.
    pub fn settled(&mut self, now_ns: u64) -> Option<Injected> {
        let Damaged { number, kind, .. } = self.damaged.take_if(|d| now_ns >= d.look_at_ns)?;
        let is_gone = self.damager.as_ref().is_some_and(|damager| !damager.is_left());
        is_gone.then_some(Injected { number, kind, at_ns: now_ns })
    }

    /// Looks at the clock, at the number of pieces of work handed to the unit so far and at the
    /// life it lives; injects a fault when its instant has come. `frames` are the unit's machine
    /// frames.
    ///
    /// # Errors
    /// What Xen says when it refuses: the fault does not count as injected and is tried again.
    pub fn poll<C: Control>(
        &mut self,
        xen: &C,
        work: u64,
        life: Epoch,
        frames: &[Frame],
    ) -> Result<Option<Injected>, XenError> {
        let now_ns = xen.now_ns();
        let new_work = self.is_self_driven || work != self.work_seen;
        self.work_seen = work;
        match self.aim {
            Aim::Waiting if work >= self.plan.after => self.arm(now_ns, work),
            Aim::Armed { from_ns, from_work }
                if new_work && now_ns >= from_ns && (work >= from_work || self.is_self_driven) =>
            {
                self.fire_soon(now_ns);
            }
            Aim::Following { life: broken } if life != broken => self.fire_soon(now_ns),
            Aim::Firing { at_ns, step_ns } if now_ns >= at_ns => {
                let fired = self.fire(xen, life, frames)?;
                if fired.is_none() {
                    self.look_again(xen.now_ns(), step_ns);
                }
                return Ok(fired);
            }
            _ => {}
        }
        Ok(None)
    }

    fn arm(&mut self, now_ns: u64, from_work: u64) {
        let gap_ns = self.plan.gap_us * 1_000;
        let from_ns = now_ns + gap_ns / 2 + self.random_below(gap_ns + 1);
        self.aim = Aim::Armed { from_ns, from_work };
    }

    fn fire_soon(&mut self, now_ns: u64) {
        let at_ns = now_ns + self.random_below(MAX_AIM_NS);
        self.aim = Aim::Firing { at_ns, step_ns: FIRST_STEP_NS };
    }

    /// The unit slept: it is looked at again a little later, or with its next piece of work.
    fn look_again(&mut self, now_ns: u64, step_ns: u64) {
        if self.damager.as_ref().is_some_and(Damager::is_searching) {
            self.aim = Aim::Firing { at_ns: now_ns + SEARCH_PAUSE_NS, step_ns };
            return;
        }
        self.aim = if step_ns > LAST_STEP_NS {
            Aim::Armed { from_ns: now_ns, from_work: self.work_seen }
        } else {
            Aim::Firing { at_ns: now_ns + step_ns, step_ns: 2 * step_ns }
        };
    }

    /// Injects the next fault, unless the unit sleeps or is about to wake: the event that wakes it
    /// would replace the changed registers.
    fn fire<C: Control>(
        &mut self,
        xen: &C,
        life: Epoch,
        frames: &[Frame],
    ) -> Result<Option<Injected>, XenError> {
        let kind = self.plan.kinds[self.injected as usize % self.plan.kinds.len()];
        let at_ns = match kind {
            Kind::FlipPage => Some(self.flip(xen, frames)?),
            Kind::Shutdown => Some(crash(xen, self.plan.unit)?),
            Kind::Record(record) => self.damage(xen, frames, record)?,
            _ if !runs_its_own_code(xen, self.plan.unit)? => None,
            _ => self.stop(xen, kind)?,
        };
        let Some(at_ns) = at_ns else { return Ok(None) };
        let number = self.injected;
        if let Kind::Record(_) = kind {
            let look_at_ns = at_ns + self.plan.gap_us * 1_000 * 3 / 8;
            self.damaged = Some(Damaged { number, kind, look_at_ns });
        }
        self.injected += 1;
        let begins = self.plan.rows.begins();
        let goes_on = self.plan.rows.advance();
        if self.injected == self.plan.count {
            self.aim = Aim::Done;
        } else if goes_on {
            self.aim = Aim::Following { life };
        } else {
            self.arm(at_ns, self.work_seen + WORK_BETWEEN);
        }
        if let Some(other) = self.plan.with.filter(|_| begins) {
            // One that is away already cannot fall.
            let _ = crash(xen, other);
        }
        Ok(Some(Injected { number, kind, at_ns }))
    }

    /// Stops the unit, and breaks it if it is caught in the middle of its own code: on a CPU of its
    /// own it may have gone to sleep since it was seen awake.
    fn stop<C: Control>(&mut self, xen: &C, kind: Kind) -> Result<Option<u64>, XenError> {
        let unit = self.plan.unit;
        xen.pause(unit)?;
        let is_caught = runs_its_own_code(xen, unit);
        if kind == Kind::Paused && is_caught == Ok(true) {
            return Ok(Some(xen.now_ns()));
        }
        let result = match is_caught {
            Ok(true) => self.derail(xen, kind).map(Some),
            other => other.map(|_| None),
        };
        let at_ns = xen.now_ns();
        xen.unpause(unit)?;
        Ok(result?.map(|()| at_ns))
    }

    /// Changes the registers of the unit's vCPU, which is stopped.
    fn derail<C: Control>(&mut self, xen: &C, kind: Kind) -> Result<(), XenError> {
        let before = xen.registers(self.plan.unit)?;
        let wild = 0x5bad_0000_0000 + self.random_below(1 << 30);
        let after = changed(&before, kind, wild, self.gadgets);
        xen.set_registers(self.plan.unit, &after)
    }

    /// Flips one bit of one page of the unit.
    fn flip<C: Control>(&mut self, xen: &C, frames: &[Frame]) -> Result<u64, XenError> {
        let frame = frames[self.random_below(frames.len() as u64) as usize];
        let bit = self.random_below(8 * abi::PAGE_SIZE as u64) as usize;
        let page = xen.map_foreign(self.plan.unit, &[frame], Access::ReadWrite)?;
        let mut byte = [0];
        page.read(bit / 8, &mut byte);
        page.write(bit / 8, &[byte[0] ^ 1 << (bit % 8)]);
        Ok(xen.now_ns())
    }

    /// Damages a record, or goes on looking for it.
    fn damage<C: Control>(
        &mut self,
        xen: &C,
        frames: &[Frame],
        record: Record,
    ) -> Result<Option<u64>, XenError> {
        let Some(mut damager) = self.damager.take() else { return Ok(None) };
        let unit = self.plan.unit;
        let mut random = |bound| self.random_below(bound);
        let damaged = damager.damage(xen, unit, frames, record, &mut random);
        self.damager = Some(damager);
        damaged
    }

    /// The next number below `bound` (xorshift64*: seeded, and good enough to choose instants).
    fn random_below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }
}

/// Shuts a unit down as crashed.
fn crash<C: Control>(xen: &C, unit: DomId) -> Result<u64, XenError> {
    let at_ns = xen.now_ns();
    xen.shut_down(unit, ShutdownReason::Crash).map(|()| at_ns)
}

/// Whether the unit is in the middle of its own code. While it waits, and until the event that ends
/// the wait is delivered, its upcalls are not masked (`vcpu_info`, xen.h).
fn runs_its_own_code<C: Control>(xen: &C, unit: DomId) -> Result<bool, XenError> {
    /// Offset of `evtchn_upcall_mask` of the first vCPU in the shared information page.
    const UPCALL_MASK: usize = 1;
    let info = xen.domain_info(unit)?.ok_or(XenError::NotFound)?;
    if info.blocked || info.state != DomainState::Alive {
        return Ok(false);
    }
    let page = xen.map_foreign(info.id, &[info.shared_info], Access::ReadOnly)?;
    let mut mask = [0];
    page.read(UPCALL_MASK, &mut mask);
    Ok(mask[0] != 0)
}

#[cfg(test)]
mod tests {
    use abi::CreateDomain;
    use fake_xen::{FakeFabric, Machine};

    use super::*;

    #[test]
    fn a_plan_is_read() {
        let plan = Plan::parse("unit:1;kinds:crash-undefined+hang-loop;count:60;seed:7;after:5");
        let plan = plan.expect("a correct plan");
        assert_eq!(plan.unit, DomId(1));
        assert_eq!(plan.kinds.as_slice(), [Kind::Undefined, Kind::EndlessLoop]);
        assert_eq!((plan.count, plan.seed, plan.after, plan.gap_us), (60, 7, 5, 20_000));
    }

    #[test]
    fn a_wrong_plan_names_its_field() {
        let cases = [
            ("unit:1;kinds:crash-now", PlanError::UnknownKind("crash-now")),
            ("unit:x", PlanError::NotANumber("unit:x")),
            ("speed:3", PlanError::UnknownField("speed")),
            ("unit", PlanError::UnknownField("unit")),
            ("unit:1", PlanError::Incomplete),
            ("kinds:hang-loop", PlanError::Incomplete),
            ("row:1+0", PlanError::NotANumber("row:1+0")),
        ];
        for (text, error) in cases {
            assert_eq!(Plan::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_sleeping_unit_is_looked_at_again_and_then_with_its_next_work() {
        let plan = Plan::parse("unit:1;kinds:hang-loop").expect("a correct plan");
        let mut injector = Injector::<FakeFabric>::new(plan, Gadgets::default(), None);
        let mut now_ns = 1_000;
        let mut step_ns = FIRST_STEP_NS;
        injector.look_again(now_ns, step_ns);
        let mut looks = 0;
        while let Aim::Firing { at_ns, step_ns: next_ns } = injector.aim {
            assert_eq!((at_ns, next_ns), (now_ns + step_ns, 2 * step_ns));
            (now_ns, step_ns) = (at_ns, next_ns);
            injector.look_again(now_ns, step_ns);
            looks += 1;
        }
        assert_eq!(injector.aim, Aim::Armed { from_ns: now_ns, from_work: 0 });
        assert!((5..20).contains(&looks), "{looks} looks at one piece of work");
    }

    const WHAT: CreateDomain = CreateDomain {
        pvh: false,
        vcpus: 1,
        max_memory_kib: 64,
        max_port: 15,
        grant_frames: 1,
        maptrack_frames: 1,
    };

    /// An injector of one fault that is due now, and a host whose unit runs.
    fn due(kind: Kind) -> (Injector<FakeFabric>, Machine) {
        let mut plan = Plan::parse("unit:1;kinds:hang-loop").expect("a correct plan");
        plan.kinds[0] = kind;
        let machine = Machine::new();
        let xen = machine.domain(DomId::ORCHESTRATOR);
        xen.create_domain(plan.unit, &WHAT).unwrap();
        xen.unpause(plan.unit).unwrap();
        let mut injector = Injector::new(plan, Gadgets { undefined: 10, endless_loop: 20 }, None);
        injector.aim = Aim::Firing { at_ns: 0, step_ns: FIRST_STEP_NS };
        (injector, machine)
    }

    #[test]
    fn a_unit_that_falls_asleep_under_the_injectors_hand_is_spared_and_goes_on() {
        for kind in [Kind::EndlessLoop, Kind::Paused] {
            let (mut injector, machine) = due(kind);
            let (unit, xen) = (injector.unit(), machine.domain(DomId::ORCHESTRATOR));
            machine.fall_asleep_when_paused(unit);
            assert_eq!(injector.poll(&xen, 1, 1, &[]), Ok(None));
            assert_eq!((machine.pauses(unit), xen.registers(unit).unwrap().rip), (0, 0));
            assert!(injector.due_ns().is_some(), "it is looked at again");
            machine.set_scheduled(unit, false, true);
            machine.advance(2 * FIRST_STEP_NS);
            let injected = injector.poll(&xen, 1, 1, &[]).unwrap().expect("it is awake");
            assert_eq!((injected.number, injected.kind), (0, kind));
            let is_paused = u32::from(kind == Kind::Paused);
            assert_eq!(machine.pauses(unit), is_paused);
            let rip = xen.registers(unit).unwrap().rip;
            assert_eq!(rip, if kind == Kind::Paused { 0 } else { 20 });
        }
    }

    #[test]
    fn faults_in_a_row_follow_each_life_and_another_unit_falls_with_the_first() {
        let (mut injector, machine) = due(Kind::EndlessLoop);
        let (unit, xen) = (injector.unit(), machine.domain(DomId::ORCHESTRATOR));
        let other = DomId(5);
        xen.create_domain(other, &WHAT).unwrap();
        injector.plan.count = 3;
        injector.plan.rows = Rows::parse("2+1").unwrap();
        injector.plan.with = Some(other);
        assert!(injector.poll(&xen, 1, 1, &[]).unwrap().is_some());
        let crashed = DomainState::Shutdown(ShutdownReason::Crash);
        assert_eq!(xen.domain_info(other).unwrap().unwrap().state, crashed);
        xen.resume(other).unwrap();
        let mut poll = |work, life| {
            machine.advance(MAX_AIM_NS);
            injector.poll(&xen, work, life, &[]).unwrap().map(|fault| fault.number)
        };
        assert_eq!([poll(500, 1), poll(900, 1)], [None, None], "the broken life is left alone");
        assert_eq!([poll(900, 2), poll(900, 2)], [None, Some(1)], "without any work");
        assert_eq!(xen.domain_info(other).unwrap().unwrap().state, DomainState::Alive);
        assert_eq!([poll(900, 3), poll(900, 4)], [None, None], "the row is over");
        assert_eq!(machine.pauses(unit), 0);
    }

    #[test]
    fn the_next_fault_waits_for_work_however_late_it_comes() {
        let (mut injector, machine) = due(Kind::EndlessLoop);
        injector.plan.count = 2;
        let xen = machine.domain(DomId::ORCHESTRATOR);
        assert!(injector.poll(&xen, 100, 1, &[]).unwrap().is_some());
        machine.advance(1_000_000_000);
        let mut poll = |work| {
            injector.poll(&xen, work, 1, &[]).unwrap();
            injector.due_ns().is_some()
        };
        assert!(!(101..100 + WORK_BETWEEN).any(&mut poll));
        assert!(poll(100 + WORK_BETWEEN));
    }
}
