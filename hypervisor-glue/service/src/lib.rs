//! What every service does the same way: it starts a life, takes the work that the orchestrator
//! hands over, answers pings, says how far it got, and sleeps.
//!
//! A service implements [`Work`] and calls [`Service::run`]. The loop keeps the promise on which
//! failure detection rests: `taken` is published only when everything handed over before is
//! served, so a service that no longer serves cannot look as if it did.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod entry;
pub mod ids;
#[cfg(test)]
mod tests;
pub mod view;

use abi::{DomId, Port, PortStatus, Virq, Xen, XenError};
use fabric::SharedMemory;
use fabric::control::{self, Command, ControlError, ControlReader, Rung};
use fabric::health::{Digest, HealthWriter, RecoveryReport, State};
use fabric::kick::{Kick, KickReader, KickWriter, Pushed};
use fabric::{Epoch, Part};

/// Our end of the one event channel between a service and the orchestrator: the orchestrator
/// allocates it before any other port of a new domain, so it is always the first.
pub const DOORBELL: Port = Port(1);
/// Ports searched for an interrupt that a former life bound: no unit has more ports.
const PORTS_SEARCHED: u32 = 256;

/// The regions of the fabric that each service has.
#[derive(Clone, Copy, Debug)]
pub struct Regions<M> {
    /// Written by the service: state and progress.
    pub health: M,
    /// Written by the orchestrator: life, work, orders.
    pub control: M,
    /// Written by the service: its half of the kick rings.
    pub kicks: M,
}

/// Kicks that go out to the orchestrator.
#[derive(Debug)]
pub struct Outbox<M: SharedMemory + Copy> {
    writer: KickWriter<M, Part<M>, { ids::COUNT }>,
    ring: bool,
}

impl<M: SharedMemory + Copy> Outbox<M> {
    /// Says that `id` has something to do at the other side. The doorbell rings when the service
    /// has served what it was handed, once for all kicks.
    pub fn kick(&mut self, id: u16) {
        self.ring |= self.writer.push(id) == Pushed::Ring;
    }
}

/// What a service does with what it is handed.
pub trait Work<M: SharedMemory + Copy> {
    /// An event of a port came. Most services need not know which: they are told by kicks.
    fn event(&mut self, _port: Port) {}

    /// `id` has something to do. `None`: anything may, look at everything.
    fn kick(&mut self, id: Option<u16>, now_ns: u64, out: &mut Outbox<M>);

    /// Goes on with what is under way, a bounded piece of it. Returns how many work items were
    /// completed, and whether there is more to do at once.
    fn step(&mut self, now_ns: u64, out: &mut Outbox<M>) -> Step;

    /// Everything handed over is served, and whoever waited for it has been told: a bounded piece
    /// of work that nobody waits for. Returns when to wake for more of it.
    fn idle(&mut self, now_ns: u64) -> Option<u64> {
        let _ = now_ns;
        None
    }

    /// The relay's epoch while it names this unit, else 0. Called before anything else of a round.
    fn named(&mut self, _relay: u64) {}

    /// How well this unit can take the lead of those that do the same work; 0: not at all.
    fn rank(&self) -> u64 {
        0
    }

    /// What the state has come to, for comparing it with that of those that do the same.
    fn digest(&self) -> Option<Digest> {
        None
    }

    /// The orchestrator wants the state in the log.
    fn dump(&self, now_ns: u64);
}

/// What a [`Work::step`] achieved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Work items completed: requests answered, messages handled.
    pub completed: u64,
    /// There is more to do at once.
    pub more: bool,
    /// Wake the service at this time even if nothing is handed over.
    pub wake_at_ns: Option<u64>,
}

/// Why a service cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The control page does not hold what the orchestrator writes.
    Control(ControlError),
    /// The timer cannot be bound.
    Timer(XenError),
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Control(error) => error.fmt(f),
            Self::Timer(error) => write!(f, "cannot bind the timer: {error}"),
        }
    }
}

/// One life of a service.
#[derive(Debug)]
pub struct Service<'a, X: Xen, M: SharedMemory + Copy> {
    xen: &'a X,
    health: HealthWriter<M>,
    control: ControlReader<M>,
    inbox: KickReader<M, Part<M>>,
    outbox: Outbox<M>,
    epoch: Epoch,
    rung: Rung,
    is_distrusted: bool,
    nonce: u64,
    pong: u64,
    rank: u64,
    digest: Option<Digest>,
    order_done: u32,
    timer_at_ns: Option<u64>,
}

impl<'a, X: Xen, M: SharedMemory + Copy> Service<'a, X, M> {
    /// Begins the life that the control page announces: state `Starting`, nothing taken yet.
    ///
    /// # Errors
    /// The control page is broken, or Xen refuses the timer.
    pub fn start(xen: &'a X, regions: Regions<M>) -> Result<Self, StartError> {
        let control = ControlReader::new(regions.control);
        let told = control.read().map_err(StartError::Control)?;
        let health = HealthWriter::new(regions.health);
        health.start(told.epoch);
        health.set_pong(told.ping);
        bind_virq(xen, Virq::Timer).map_err(StartError::Timer)?;
        xen.listen(DOORBELL);
        let theirs = control::kicks(regions.control);
        let outbox = Outbox { writer: KickWriter::new(regions.kicks, theirs), ring: false };
        let inbox = KickReader::new(regions.kicks, theirs, ids::COUNT as u16);
        Ok(Self {
            xen,
            health,
            control,
            inbox,
            outbox,
            epoch: told.epoch,
            rung: told.rung,
            is_distrusted: told.is_distrusted,
            nonce: told.nonce,
            pong: told.ping,
            rank: 0,
            digest: None,
            order_done: told.order.map_or(0, |order| order.number),
            timer_at_ns: None,
        })
    }

    /// The number of this life.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How this life began.
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Whether what former lives kept of the state is wrong.
    pub fn is_distrusted(&self) -> bool {
        self.is_distrusted
    }

    /// Random number of this boot of the host: marks records as ours.
    pub fn nonce(&self) -> u64 {
        self.nonce
    }

    /// Says that the state of a former life is being validated or reloaded.
    pub fn recovering(&self) {
        self.health.set_state(self.epoch, State::Recovering);
    }

    /// Serves for ever. `report` says what the start found of a former life.
    ///
    /// # Panics
    /// When the control page breaks under our feet: a fault of the orchestrator, or a flipped bit;
    /// the ladder recovers us.
    pub fn run<W: Work<M>>(mut self, mut work: W, report: &RecoveryReport) -> ! {
        self.health.set_recovery(self.epoch, report);
        self.health.set_state(self.epoch, State::Serving);
        // A former life may have been told things that it never looked at.
        work.kick(None, self.xen.now_ns(), &mut self.outbox);
        self.outbox.ring = true;
        loop {
            self.round(&mut work);
        }
    }

    /// Takes what is there, serves it, sleeps if nothing is left.
    fn round<W: Work<M>>(&mut self, work: &mut W) {
        while let Some(port) = self.xen.next_event() {
            work.event(port);
        }
        let told = self.control.read().expect("the orchestrator keeps the control page valid");
        let now_ns = self.xen.now_ns();
        work.named(told.relay);
        for _ in 0..self.inbox.ready() {
            match self.inbox.pop() {
                Some(Kick::Id(id)) => work.kick(Some(id), now_ns, &mut self.outbox),
                Some(Kick::ScanAll) => work.kick(None, now_ns, &mut self.outbox),
                None => break,
            }
        }
        let step = work.step(now_ns, &mut self.outbox);
        self.count(step.completed);
        let rank = work.rank();
        if rank != self.rank {
            self.rank = rank;
            self.health.set_rank(rank);
        }
        let digest = work.digest();
        if digest != self.digest {
            self.digest = digest;
            digest.into_iter().for_each(|digest| self.health.set_digest(digest));
        }
        self.obey(&told, work);
        // The count first, then the look: a kick is in the ring before it is counted, so what was
        // counted and is not in the ring any more has been served.
        let handed = self.control.handed().expect("the orchestrator keeps the page valid");
        let rest = !step.more && self.inbox.ready() == 0;
        if rest {
            self.health.set_taken(handed);
        }
        if core::mem::take(&mut self.outbox.ring) {
            self.ring();
        }
        if rest {
            let idle_at_ns = work.idle(self.xen.now_ns());
            self.sleep([step.wake_at_ns, idle_at_ns].into_iter().flatten().min());
        }
    }

    /// Shows that work items were completed.
    fn count(&mut self, completed: u64) {
        if completed > 0 {
            self.health.add_progress(completed);
        }
    }

    /// Answers a ping and executes an order, once each.
    fn obey<W: Work<M>>(&mut self, told: &control::Control, work: &W) {
        if told.ping != self.pong {
            self.pong = told.ping;
            self.health.set_pong(told.ping);
            self.outbox.ring = true;
        }
        let Some(order) = told.order.filter(|order| order.number != self.order_done) else {
            return;
        };
        self.order_done = order.number;
        match order.command {
            Command::Dump => work.dump(self.xen.now_ns()),
            Command::Stop => self.xen.shutdown(abi::ShutdownReason::PowerOff),
        }
    }

    /// Rings the orchestrator's bell. The channel lives as long as the domain, whoever is at its
    /// other end: if it cannot be rung, this life is broken, and nobody would ever hear of what it
    /// has done.
    fn ring(&self) {
        self.xen.send(DOORBELL).expect("the doorbell is bound before a service runs");
    }

    fn sleep(&mut self, wake_at_ns: Option<u64>) {
        if wake_at_ns != self.timer_at_ns {
            self.xen.set_timer(wake_at_ns);
            self.timer_at_ns = wake_at_ns;
        }
        self.xen.block();
        if self.timer_at_ns.is_some_and(|at_ns| at_ns <= self.xen.now_ns()) {
            self.timer_at_ns = None;
            // Work of its own is due: whoever sees it awake now and at its next turn, and never
            // asleep in between, shall not take these turns for a loop.
            self.count(1);
        }
    }
}

/// Binds a virtual interrupt, or finds it bound by a former life of this domain.
///
/// # Errors
/// What Xen says.
pub fn bind_virq<X: Xen>(xen: &X, virq: Virq) -> Result<Port, XenError> {
    match xen.bind_virq(virq) {
        Err(XenError::Exists) => {}
        other => return other,
    }
    let bound = PortStatus::Virq(virq as u32);
    let mut ports = (1..PORTS_SEARCHED).map(Port);
    let found = ports.find(|port| xen.port_status(DomId::SELF, *port) == Ok(bound));
    found.inspect(|port| xen.listen(*port)).ok_or(XenError::Exists)
}
