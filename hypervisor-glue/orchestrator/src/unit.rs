//! One service as the orchestrator holds it: its place in the fabric, its domain, its work.

use abi::{DomId, DomainInfo, DomainState, Frame, Port, PortStatus, PvEntry, XenError};
use builder::pv::Plan;
use fabric::control::{Control, ControlReader, ControlWriter, Order, Rung};
use fabric::epitaph::Reason;
use fabric::health::{Digest, Health, HealthError, HealthReader, State};
use fabric::kick::{Kick, KickReader, KickWriter, Pushed};
use fabric::{Epoch, Part, SharedMemory};
use service::{DOORBELL, ids};

use crate::nic::Nic;
use crate::report::Incident;

/// The regions of one unit, as the orchestrator sees them.
#[derive(Clone, Copy, Debug)]
pub struct Regions<F> {
    /// Written by the unit.
    pub health: Part<F>,
    /// Written by us.
    pub control: Part<F>,
    /// The unit's half of the kick rings.
    pub kicks: Part<F>,
    /// The unit's text.
    pub log: Part<F>,
}

/// A service.
pub struct Unit<F: SharedMemory + Copy> {
    /// Its description.
    pub config: &'static system::Unit,
    /// Its domain.
    pub domid: DomId,
    /// Its image, laid out; the same for all lives.
    pub plan: Plan<'static>,
    /// The NIC that it drives.
    pub nic: Option<Nic>,
    /// How its vCPU is set; `rung` says why.
    pub entry: Option<PvEntry>,
    /// Shared information page of its domain.
    pub shared_info: Frame,
    /// Its present life.
    pub life: Epoch,
    /// Our end of its doorbell, while there is a domain.
    pub port: Option<Port>,
    /// Pieces of work handed over since the host booted.
    pub handed: u64,
    /// The last ping sent.
    pub ping: u64,
    /// Epoch of the relay while it names this unit, else 0.
    pub relay: u64,
    /// The last order given.
    pub order: u32,
    /// What its lives kept of their state is wrong: the next ones are told, until one of them has
    /// begun to ask the others for it.
    pub is_distrusted: bool,
    /// Marks this boot of the host.
    nonce: u64,
    /// What a job is to do for it: the rung, and the life that begins by it.
    pub wanted: Option<(Rung, Epoch)>,
    /// Whether it runs a life that was announced to it: only then its end is news.
    pub is_running: bool,
    /// Whether we have paused it.
    pub is_fenced: bool,
    /// What Xen said of its domain when it was fenced: all but the pause is as it was until it runs
    /// again.
    pub at_fence: Option<DomainInfo>,
    /// Whether its last failure was one that its own handler has ended: it waits there.
    is_at_its_end: bool,
    /// The recovery under way, until its first answer.
    pub incident: Option<Incident>,
    /// Its text.
    pub log: Part<F>,
    health: HealthReader<Part<F>>,
    control: ControlWriter<Part<F>>,
    to_unit: KickWriter<Part<Part<F>>, Part<F>, { ids::COUNT }>,
    from_unit: KickReader<Part<Part<F>>, Part<F>>,
    ring: bool,
}

impl<F: SharedMemory + Copy> Unit<F> {
    /// A unit that never lived; `nonce` marks this boot of the host.
    pub fn new(
        config: &'static system::Unit,
        plan: Plan<'static>,
        regions: &Regions<F>,
        nonce: u64,
    ) -> Self {
        ControlWriter::new(regions.control).initialise(nonce);
        Self::with(config, plan, regions, nonce)
    }

    /// A unit as its control page says, which a former life of ours wrote. A damaged page is
    /// written anew, with what the unit says of itself and the mark of this boot.
    pub fn adopt(
        config: &'static system::Unit,
        plan: Plan<'static>,
        regions: &Regions<F>,
        nonce: u64,
    ) -> Self {
        let Ok(told) = ControlReader::new(regions.control).read() else {
            return Self::repaired(config, plan, regions, nonce);
        };
        let mut unit = Self::with(config, plan, regions, told.nonce);
        unit.life = told.epoch;
        unit.handed = told.handed;
        unit.ping = told.ping;
        unit.relay = told.relay;
        unit.is_distrusted = told.is_distrusted && !unit.says_it_serves();
        unit.order = told.order.map_or(0, |order| order.number);
        unit
    }

    fn repaired(
        config: &'static system::Unit,
        plan: Plan<'static>,
        regions: &Regions<F>,
        nonce: u64,
    ) -> Self {
        let mut unit = Self::with(config, plan, regions, nonce);
        if let Ok(health) = unit.health() {
            unit.life = health.epoch;
            unit.handed = health.taken;
            unit.ping = health.pong;
        }
        unit.announce(Rung::Microreset);
        unit
    }

    fn with(
        config: &'static system::Unit,
        plan: Plan<'static>,
        regions: &Regions<F>,
        nonce: u64,
    ) -> Self {
        let ours = fabric::control::kicks(regions.control);
        Self {
            config,
            domid: DomId(config.domid),
            plan,
            nic: None,
            entry: None,
            shared_info: Frame(0),
            life: 0,
            port: None,
            handed: 0,
            ping: 0,
            relay: 0,
            order: 0,
            is_distrusted: false,
            nonce,
            wanted: None,
            is_running: false,
            is_fenced: false,
            at_fence: None,
            is_at_its_end: false,
            incident: None,
            log: regions.log,
            health: HealthReader::new(regions.health),
            control: ControlWriter::new(regions.control),
            to_unit: KickWriter::new(ours, regions.kicks),
            from_unit: KickReader::new(ours, regions.kicks, ids::COUNT as u16),
            ring: false,
        }
    }

    /// Hands a piece of work over; the doorbell rings with [`Unit::ring_if_needed`].
    pub fn hand(&mut self, id: u16) {
        // The kick first: a unit that sees the new count finds the kick.
        self.ring |= self.to_unit.push(id) == Pushed::Ring;
        self.handed += 1;
        self.control.set_handed(self.handed);
    }

    /// Tells the unit whether the relay names it: the epoch, or 0.
    pub fn set_relay(&mut self, epoch: u64) {
        self.relay = epoch;
        self.control.set_relay(epoch);
    }

    /// How well the unit can take the lead of those that do the same work; 0: not at all.
    pub fn rank(&self) -> u64 {
        self.health.rank()
    }

    /// A digest of its state, from one of [`fabric::health::DIGESTS`] places.
    pub fn digest(&self, place: usize) -> Option<Digest> {
        self.health.digest(place)
    }

    /// Asks the unit to show that it can still wake.
    pub fn send_ping(&mut self, ping: u64) {
        self.ping = ping;
        self.control.set_ping(ping);
        self.ring = true;
    }

    /// Gives the unit an order.
    pub fn give_order(&mut self, command: fabric::control::Command) {
        self.order += 1;
        self.control.set_order(Order { number: self.order, command });
        self.ring = true;
    }

    /// Rings the doorbell once more: the unit may have missed it.
    pub fn ring_again(&mut self) {
        self.ring = true;
    }

    /// Rings the doorbell once for everything handed over since the last call.
    pub fn ring_if_needed<C: abi::Control>(&mut self, xen: &C) {
        if core::mem::take(&mut self.ring)
            && let Some(port) = self.port
        {
            // A domain that died meanwhile hears nothing; its next life looks at everything.
            let _ = xen.send(port);
        }
    }

    /// Takes one kick of the unit.
    pub fn take_kick(&mut self) -> Option<Kick> {
        self.from_unit.pop()
    }

    /// How many kicks to take in this round. Ask once more before sleeping: a kick that came while
    /// earlier ones were unread rang no bell.
    pub fn kicks_ready(&self) -> usize {
        self.from_unit.ready()
    }

    /// What the unit says of itself, perhaps still what a former life said.
    ///
    /// # Errors
    /// The page holds nothing that a unit writes.
    pub fn health(&self) -> Result<Health, HealthError> {
        self.health.read()
    }

    /// The panic record of its present life, if it left one. To check it takes microseconds: it is
    /// looked for where the unit says that it is there, or says nothing that can be read.
    pub fn panic(&self) -> Option<fabric::health::Panic> {
        self.has_panicked().unwrap_or(true).then(|| self.health.panic(self.life)).flatten()
    }

    /// Whether its own handler has ended its present life.
    ///
    /// # Errors
    /// As [`Unit::health`].
    pub fn has_panicked(&self) -> Result<bool, HealthError> {
        self.health().map(|health| health.state == State::Panicked && health.epoch == self.life)
    }

    /// Whether the unit says that it serves, in its present life.
    pub fn says_it_serves(&self) -> bool {
        self.health().is_ok_and(|h| h.state == State::Serving && h.epoch == self.life)
    }

    /// Begins an incident, unless one is open already.
    pub fn open_incident(&mut self, reason: Reason, now_ns: u64) {
        self.is_at_its_end = reason == Reason::Panic;
        self.incident.get_or_insert(Incident {
            reason,
            rung: Rung::First,
            tries: 0,
            detected_ns: now_ns,
            cpu_time_ns: self.cpu_time_at_fence_ns(),
            entered_ns: 0,
            ready_ns: 0,
            repaired_ns: 0,
        });
    }

    /// Announces the next life: its number and how it begins. Every word of the control page is
    /// written anew, so that a flipped bit does not outlive a recovery.
    pub fn next_life(&mut self, rung: Rung, life: Epoch) {
        self.life = life;
        self.to_unit.restart();
        // What was handed over so far, and the scan every life begins with, is one piece of work.
        self.handed += 1;
        self.announce(rung);
        if let Some(incident) = &mut self.incident {
            incident.rung = rung;
            incident.tries += 1;
        }
    }

    /// Writes the whole control page.
    fn announce(&self, rung: Rung) {
        self.control.write(&Control {
            epoch: self.life,
            rung,
            is_distrusted: self.is_distrusted,
            handed: self.handed,
            ping: self.ping,
            relay: self.relay,
            order: None,
            nonce: self.nonce,
        });
    }

    /// Lets the announced life begin.
    pub fn entered(&mut self, now_ns: u64) {
        self.is_fenced = false;
        if let Some(incident) = &mut self.incident {
            incident.entered_ns = now_ns;
        }
    }

    /// Fences the unit: it changes nothing any more. Afterwards its domain, if there is one, is
    /// paused exactly once, whoever paused it.
    ///
    /// # Errors
    /// What Xen says.
    pub fn fence<C: abi::Control>(&mut self, xen: &C) -> Result<(), XenError> {
        self.is_fenced = true;
        let paused = self.pause(xen);
        // Before anything happens to its memory.
        let silenced = self.nic.map_or(Ok(()), |nic| nic.silence(xen));
        paused.and(silenced)
    }

    /// CPU time that its domain had received when it was fenced, if there was one.
    pub fn cpu_time_at_fence_ns(&self) -> Option<u64> {
        self.at_fence.as_ref().map(|info| info.cpu_time_ns)
    }

    /// Pauses its domain, if there is one that is not paused, and remembers how Xen describes it.
    fn pause<C: abi::Control>(&mut self, xen: &C) -> Result<(), XenError> {
        self.at_fence = None;
        self.at_fence = xen.domain_info(self.domid)?;
        let Some(info) = self.at_fence.as_ref().filter(|info| !info.paused) else { return Ok(()) };
        let was_alive = info.state == DomainState::Alive;
        xen.pause(self.domid)?;
        if was_alive {
            // On another CPU it may have died between the look and the pause.
            self.at_fence = xen.domain_info(self.domid)?;
        }
        Ok(())
    }

    /// Drops the unit's execution and enters the announced life: the end of rungs 1 and 2. The
    /// domain is paused once when this is called. Channels, grants and mappings stay.
    ///
    /// # Errors
    /// What Xen says.
    pub fn enter_again<C: abi::Control>(&mut self, xen: &C, rung: Rung) -> Result<(), XenError> {
        let info = self.at_fence.as_ref().ok_or(XenError::NotFound)?;
        let has_died = matches!(info.state, DomainState::Shutdown(_));
        if has_died {
            xen.resume(self.domid)?;
        }
        let entry = self.entry.ok_or(XenError::NotFound)?;
        // Without the reset a vCPU that was blocked stays blocked. One that has died was running,
        // and rung 1 is in a hurry; should it have been otherwise, rung 2 helps.
        if !(has_died && rung == Rung::Microreset) {
            xen.reset_vcpu(self.domid)?;
        }
        xen.enter_pv(self.domid, &PvEntry { rung: rung as u64, ..entry })?;
        self.unpause(xen)
    }

    /// As [`Unit::enter_again`], by rung 1. A unit whose own handler has ended its last life waits
    /// in it, and begins again by itself when it is resumed.
    ///
    /// # Errors
    /// What Xen says.
    pub fn begin_again<C: abi::Control>(&mut self, xen: &C) -> Result<(), XenError> {
        if !self.is_at_its_end {
            return self.enter_again(xen, Rung::Microreset);
        }
        xen.resume(self.domid)?;
        self.unpause(xen)
    }

    fn unpause<C: abi::Control>(&self, xen: &C) -> Result<(), XenError> {
        if let Some(nic) = self.nic {
            nic.release(xen);
        }
        xen.unpause(self.domid)
    }

    /// Connects the doorbell of a domain that was just created: the domain's first port.
    ///
    /// # Errors
    /// What Xen says; [`XenError::Invalid`] when the domain has other ports already.
    pub fn connect<C: abi::Control>(&mut self, xen: &C) -> Result<Port, XenError> {
        let theirs = xen.alloc_port_for(self.domid, DomId::ORCHESTRATOR)?;
        if theirs != DOORBELL {
            return Err(XenError::Invalid);
        }
        let ours = xen.bind_interdomain(self.domid, theirs)?;
        self.port = Some(ours);
        Ok(ours)
    }

    /// Whether our port `port` is the doorbell of this unit's domain.
    pub fn owns_port<C: abi::Control>(&self, xen: &C, port: Port) -> bool {
        let status = xen.port_status(DomId::SELF, port);
        status == Ok(PortStatus::Interdomain(self.domid, DOORBELL))
    }
}
