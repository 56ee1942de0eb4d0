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
//!
//! `during:create` has every fault come while the orchestrator creates a guest, `during:rebuild`
//! while it rebuilds the unit of `with:`, which is ended then until its ladder has come so far. The
//! injector is told when such a span begins and ends, and chooses seeded instants within it.

use abi::{Access, Control, DomId, DomainState, Frame, ShutdownReason, XenError};
use fabric::{Epoch, SharedMemory};

use crate::inject_plan::{Kind, Plan, Span};
use crate::inject_records::{Damager, Record};
use crate::inject_registers::{Gadgets, changed};
use crate::inject_strike::{Baseline, Strike};

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
/// The first fault of a span comes within this time of its beginning: a rebuild takes some five
/// milliseconds. One that the span leaves no time for comes in the next.
const REBUILD_AIM_NS: u64 = 2_000_000;
/// A unit that is to be rebuilt is ended this often until it is. Between two lives its back-off
/// grows up to some milliseconds.
const END_AGAIN_NS: u64 = 1_000_000;

/// Those who damage the records of each unit that may be meant.
pub type Damagers<F> = heapless::Vec<(DomId, Damager<F>), { system::SYSTEM.units.len() }>;

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
    /// CPU time that the unit had received by then, if its vCPU was changed.
    pub cpu_time_ns: Option<u64>,
    /// The span that the plan wants it in, if it took effect there.
    pub during: Option<Span>,
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

/// A damaged record, or registers, that may be overwritten before anybody reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Damaged {
    number: u32,
    kind: Kind,
    /// The unit and the life that were hit.
    unit: DomId,
    life: Epoch,
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
    /// For the kinds that damage records: one for each unit that may be meant.
    damagers: Damagers<F>,
    damaged: Option<Damaged>,
    /// Of a unit whose registers were just changed.
    baseline: Option<Baseline>,
    /// The last fault, if it was one of registers, until somebody times it.
    strike: Option<Strike>,
    /// Whether the orchestrator is in the middle of what the plan names; always, if it names
    /// nothing.
    is_within: bool,
    /// When the unit that is to be rebuilt may be ended again.
    end_at_ns: u64,
}

impl<F: SharedMemory + Copy> Injector<F> {
    /// An injector for the plan; `gadgets` are those of the unit's image. Without a damager,
    /// kinds that damage records find none.
    pub fn new(plan: Plan, gadgets: Gadgets, damagers: Damagers<F>) -> Self {
        let random = plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let net = system::SYSTEM.with_role(system::Role::Net);
        let is_self_driven = net.is_some_and(|net| system::SYSTEM.units[net].domid == plan.unit.0);
        let is_within = plan.during.is_none();
        Self {
            plan,
            gadgets,
            random,
            injected: 0,
            aim: Aim::Waiting,
            work_seen: 0,
            is_self_driven,
            damagers,
            damaged: None,
            baseline: None,
            strike: None,
            is_within,
            end_at_ns: 0,
        }
    }

    /// The unit it breaks.
    pub fn unit(&self) -> DomId {
        self.plan.unit
    }

    /// In the middle of what its faults are to come.
    pub fn during(&self) -> Option<Span> {
        self.plan.during
    }

    /// Tells it whether the orchestrator is in the middle of that now; call it before the others.
    pub fn tell_within(&mut self, now_ns: u64, is_within: bool) {
        if self.is_within == is_within {
            return;
        }
        self.is_within = is_within;
        let aim_ns = match self.plan.during {
            Some(Span::Rebuild) => REBUILD_AIM_NS,
            Some(Span::Create) | None => self.plan.gap_us * 1_000,
        };
        match self.aim {
            Aim::Armed { from_ns, from_work } if is_within => {
                let from_ns = from_ns.max(now_ns + self.random_below(aim_ns));
                self.aim = Aim::Armed { from_ns, from_work };
            }
            Aim::Armed { .. } | Aim::Firing { .. } if !is_within => {
                self.arm(now_ns, self.work_seen);
            }
            _ => {}
        }
    }

    /// Faults that were injected, and those that were planned.
    pub fn progress(&self) -> (u32, u32) {
        (self.injected, self.plan.count)
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
            // In the middle of longer work there is a turn soon.
            Aim::Firing { at_ns, .. } => Some(at_ns).filter(|_| self.plan.during.is_none()),
            Aim::Armed { from_ns, .. } if self.ends_other() => Some(from_ns.max(self.end_at_ns)),
            Aim::Armed { from_ns, .. } if self.is_self_driven => Some(from_ns),
            Aim::Waiting | Aim::Armed { .. } | Aim::Following { .. } | Aim::Done => None,
        };
        let look_ns = self.damaged.map(|damaged| damaged.look_at_ns);
        [aim_ns, look_ns].into_iter().flatten().min()
    }

    /// The last fault, if its unit has not run since and its instant is yet to come.
    pub fn take_strike(&mut self) -> Option<Strike> {
        self.strike.take()
    }

    /// A fault that has just taken effect: with the span, if it is now.
    pub fn within(&self, fault: Injected) -> Injected {
        Injected { during: self.span(), ..fault }
    }

    /// Some time before the next fault can come: what was damaged last, if the damage is gone; of
    /// registers, if the same `life` goes on. Whether it was noticed is for the watcher to say.
    pub fn settled(&mut self, now_ns: u64, life: Epoch) -> Option<Injected> {
        let damaged = self.damaged.take_if(|damaged| now_ns >= damaged.look_at_ns)?;
        let Damaged { number, kind, unit, .. } = damaged;
        let is_gone = match kind {
            Kind::Record(_) => self.damager(unit).is_some_and(|damager| !damager.is_left()),
            _ => (self.plan.unit, life) == (unit, damaged.life),
        };
        let fault = Injected { number, kind, at_ns: now_ns, cpu_time_ns: None, during: None };
        is_gone.then_some(fault)
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
        // In the middle of longer work a unit is caught that waits for the CPU, whatever its work.
        let at_any_time = self.is_self_driven || self.plan.during.is_some();
        let new_work = at_any_time || work != self.work_seen;
        self.work_seen = work;
        match self.aim {
            Aim::Waiting if work >= self.plan.after => self.arm(now_ns, work),
            Aim::Armed { from_ns, .. }
                if self.ends_other() && now_ns >= from_ns.max(self.end_at_ns) =>
            {
                self.end_at_ns = now_ns + END_AGAIN_NS;
                self.end_other(xen);
            }
            _ if !self.is_within => {}
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

    /// Whether it is for the injector to begin the span: nobody else has a unit rebuilt.
    fn ends_other(&self) -> bool {
        self.plan.during == Some(Span::Rebuild) && !self.is_within
    }

    /// Ends the other unit; one that is away already cannot fall.
    fn end_other<C: Control>(&self, xen: &C) {
        if let Some(other) = self.plan.with {
            let _ = crash(xen, other);
        }
    }

    /// The planned span, if it is now.
    fn span(&self) -> Option<Span> {
        self.plan.during.filter(|_| self.is_within)
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
        self.aim = if self.plan.during.is_some() {
            Aim::Firing { at_ns: now_ns, step_ns }
        } else if step_ns > LAST_STEP_NS {
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
        let fault = Injected { number, kind, at_ns, cpu_time_ns: None, during: self.span() };
        let baseline = self.baseline.take();
        self.strike = baseline.map(|last| Strike::begin(last, self.plan.unit, fault));
        if let Kind::Record(_) | Kind::WildRegisters = kind {
            let look_at_ns = at_ns + self.plan.gap_us * 1_000 * 3 / 8;
            self.damaged = Some(Damaged { number, kind, unit: self.plan.unit, life, look_at_ns });
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
        if begins && self.plan.during.is_none() {
            self.end_other(xen);
        }
        Ok(Some(fault))
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
            Ok(true) => self.derail(xen, kind),
            other => other.map(|_| false),
        };
        let is_derailed = result == Ok(true);
        self.baseline = is_derailed.then(|| Baseline::of(xen, unit)).flatten();
        let at_ns = xen.now_ns();
        xen.unpause(unit)?;
        Ok(result?.then_some(at_ns))
    }

    /// Changes the registers of the unit's vCPU, which is stopped. False: they mean nothing to it
    /// at this instant.
    fn derail<C: Control>(&mut self, xen: &C, kind: Kind) -> Result<bool, XenError> {
        let before = xen.registers(self.plan.unit)?;
        // `syscall` leaves its return address in rcx. A unit that comes back from a hypercall, most
        // often the one that rang the orchestrator, fetches its registers from the stack.
        if kind == Kind::WildRegisters && before.rcx == before.rip {
            return Ok(false);
        }
        let wild = 0x5bad_0000_0000 + self.random_below(1 << 30);
        let after = changed(&before, kind, wild, self.gadgets);
        xen.set_registers(self.plan.unit, &after).map(|()| true)
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

    /// Damages a record.
    fn damage<C: Control>(
        &mut self,
        xen: &C,
        frames: &[Frame],
        record: Record,
    ) -> Result<Option<u64>, XenError> {
        let unit = self.plan.unit;
        let mut random = self.random;
        let mut below = |bound| random_below(&mut random, bound);
        let damaged = match self.damager(unit) {
            Some(damager) => damager.damage(xen, unit, frames, record, &mut below),
            None => Ok(None),
        };
        self.random = random;
        damaged
    }

    fn damager(&mut self, of: DomId) -> Option<&mut Damager<F>> {
        self.damagers.iter_mut().find(|(unit, _)| *unit == of).map(|(_, damager)| damager)
    }

    /// The next number below `bound`.
    fn random_below(&mut self, bound: u64) -> u64 {
        random_below(&mut self.random, bound)
    }
}

/// The next number below `bound` (xorshift64*: seeded, and good enough to choose instants).
fn random_below(random: &mut u64, bound: u64) -> u64 {
    *random ^= *random >> 12;
    *random ^= *random << 25;
    *random ^= *random >> 27;
    (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
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
    use abi::{Registers, Xen};
    use fake_xen::{FakeFabric, Machine, SMALL_DOMAIN};

    use super::*;
    use crate::inject_rows::Rows;
    use crate::inject_strike::Timed;

    #[test]
    fn a_sleeping_unit_is_looked_at_again_and_then_with_its_next_work() {
        let plan = Plan::parse("unit:1;kinds:hang-loop").expect("a correct plan");
        let mut injector = Injector::<FakeFabric>::new(plan, Gadgets::default(), Damagers::new());
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

    /// An injector of one fault that is due now, and a host whose unit runs.
    fn due(kind: Kind) -> (Injector<FakeFabric>, Machine) {
        let mut plan = Plan::parse("unit:1;kinds:hang-loop").expect("a correct plan");
        plan.kinds[0] = kind;
        let machine = Machine::new();
        let xen = machine.domain(DomId::ORCHESTRATOR);
        xen.create_domain(plan.unit, &SMALL_DOMAIN).unwrap();
        xen.unpause(plan.unit).unwrap();
        let mut injector =
            Injector::new(plan, Gadgets { undefined: 10, endless_loop: 20 }, Damagers::new());
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
    fn wild_registers_wait_until_the_unit_uses_them() {
        let (mut injector, machine) = due(Kind::WildRegisters);
        let (unit, xen) = (injector.unit(), machine.domain(DomId::ORCHESTRATOR));
        let set = |registers: &Registers| {
            xen.pause(unit).unwrap();
            xen.set_registers(unit, registers).unwrap();
            xen.unpause(unit).unwrap();
        };
        let back_from_hypercall = Registers { rip: 7, rcx: 7, ..Registers::default() };
        set(&back_from_hypercall);
        assert_eq!(injector.poll(&xen, 1, 1, &[]), Ok(None));
        assert_eq!(xen.registers(unit), Ok(back_from_hypercall));
        assert_eq!(machine.pauses(unit), 0);
        set(&Registers { rip: 8, ..back_from_hypercall });
        machine.advance(2 * FIRST_STEP_NS);
        assert!(injector.poll(&xen, 1, 1, &[]).unwrap().is_some());
        // The fault comes when the unit runs, not before.
        machine.advance(500);
        let timed = Timed::default();
        timed.begin(injector.take_strike());
        assert_eq!(timed.struck(&xen), None);
        let at_ns = xen.now_ns();
        machine.advance(500);
        machine.receive_cpu(unit, 1);
        assert_eq!(timed.struck(&xen).map(|fault| fault.at_ns), Some(at_ns));
        assert!(!timed.is_pending() && timed.struck(&xen).is_none(), "it says so once");
        // A life that goes on has overwritten them all.
        let look_at_ns = injector.due_ns().expect("it looks what became of them");
        assert_eq!(injector.settled(look_at_ns - 1, 1), None);
        assert_eq!(injector.settled(look_at_ns, 1).map(|fault| fault.number), Some(0));
        assert_eq!(injector.settled(look_at_ns, 1), None, "it says so once");
    }

    #[test]
    fn faults_in_a_row_follow_each_life_and_another_unit_falls_with_the_first() {
        let (mut injector, machine) = due(Kind::EndlessLoop);
        let (unit, xen) = (injector.unit(), machine.domain(DomId::ORCHESTRATOR));
        let other = DomId(5);
        xen.create_domain(other, &SMALL_DOMAIN).unwrap();
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
