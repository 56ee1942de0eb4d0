//! The shadow itself.

use alloc::vec::Vec;

use drivers::trusted::{Refused, Salvaged};
use drivers::{
    BufferId, Command, Config, Event, Failure, Features, RxBuffer, Segment, Segments, TxOffload,
};
use fabric::{Epoch, SharedMemory};
use frame::Checksum;

use crate::receive::Receive;
use crate::transmit::{SendError, Token, Transmit};
use crate::watch::{Advice, Watch};
use crate::{BACK_OFF_MAX_NS, BACK_OFF_NS, HEALTHY_NS, START_NS, durable};

/// Why a driver's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It trapped in its fault domain.
    Crashed,
    /// It used up its time budget.
    Endless,
    /// It gave up.
    GaveUp(Failure),
    /// It proposed what is forbidden.
    Forbidden(Refused),
    /// It reported what cannot be.
    Nonsense,
    /// The device holds frames and sends none.
    Stuck,
    /// The start did not end.
    Slow,
}

/// Where the driver stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No driver: the shell stops the device and makes a fresh driver.
    Down,
    /// A fresh driver waits for its time, or starts.
    Starting {
        /// When the next step is due.
        due_ns: u64,
        /// When the first step was, once it was.
        since_ns: Option<u64>,
    },
    /// It works.
    Up,
}

/// What happened, for those above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device is up (again).
    Up(Features),
    /// The driver's life has ended: stop the device, salvage, restart.
    Failed(Cause),
    /// A frame has left.
    Sent(Token),
    /// A frame came; the buffer belongs to the caller until it is lent again.
    Received {
        /// The buffer.
        buffer: BufferId,
        /// The frame's bytes.
        frame: Segment,
        /// What the device found out about its checksum.
        checksum: Checksum,
    },
    /// The cable came or went.
    Link(bool),
}

/// What the shadow has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames accepted.
    pub accepted: u64,
    /// Frames refused because the stated bound was full.
    pub refused: u64,
    /// Frames that left.
    pub sent: u64,
    /// Frames handed to a driver a second time or more.
    pub replayed: u64,
    /// Frames received.
    pub received: u64,
    /// Frames found in a dead driver's ring (counted in `received`, too).
    pub salvaged: u64,
    /// Drivers that failed.
    pub failures: u64,
    /// Interrupt storms.
    pub storms: u64,
}

/// What a former life left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Whether its configuration was found; else the given one counts.
    pub has_config: bool,
    /// Frames that will be sent, oldest first.
    pub kept: Vec<Token>,
    /// How many were let go.
    pub forgotten: usize,
}

/// The shadow of one NIC's driver. `S` is memory that outlives the domain and that only it writes.
#[derive(Clone, Debug)]
pub struct Shadow<S> {
    state: S,
    epoch: Epoch,
    config: Config,
    is_config_new: bool,
    phase: Phase,
    features: Option<Features>,
    has_link: bool,
    transmit: Transmit,
    receive: Receive,
    watch: Watch,
    up_since_ns: u64,
    back_off_ns: u64,
    counters: Counters,
}

impl<S: SharedMemory> Shadow<S> {
    /// A shadow with nothing to send, whose driver is still to be started. `bound` is the number of
    /// frames it may hold. Panics if `state` has less than [`crate::bytes_needed`] bytes.
    pub fn create(state: S, epoch: Epoch, config: Config, bound: usize) -> Self {
        assert!(state.len() >= durable::bytes_needed(bound), "no room for {bound} frames");
        for slot in 0..bound {
            durable::clear_frame(&state, slot);
        }
        durable::write_config(&state, epoch, &config);
        Self::with(state, epoch, config, Transmit::new(bound))
    }

    /// The shadow that a former life left in `state`. Frames for which `keep` is false are let go:
    /// their sender sends them anew. `config` counts if none is found.
    pub fn recover(
        state: S,
        epoch: Epoch,
        config: Config,
        bound: usize,
        keep: impl Fn(Token) -> bool,
    ) -> (Self, Recovered) {
        assert!(state.len() >= durable::bytes_needed(bound), "no room for {bound} frames");
        let found = durable::read_config(&state);
        let has_config = found.is_some();
        let (transmit, forgotten) = Transmit::recover(&state, bound, keep);
        let kept = transmit.tokens().collect();
        let shadow = Self::with(state, epoch, found.unwrap_or(config), transmit);
        durable::write_config(&shadow.state, epoch, &shadow.config);
        (shadow, Recovered { has_config, kept, forgotten })
    }

    fn with(state: S, epoch: Epoch, config: Config, transmit: Transmit) -> Self {
        Self {
            state,
            epoch,
            config,
            is_config_new: false,
            phase: Phase::Down,
            features: None,
            has_link: true,
            transmit,
            receive: Receive::default(),
            watch: Watch::default(),
            up_since_ns: 0,
            back_off_ns: 0,
            counters: Counters::default(),
        }
    }

    /// Where the driver stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What the device could do when it was last up.
    pub fn features(&self) -> Option<Features> {
        self.features
    }

    /// What the shadow has seen.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Frames it holds.
    pub fn held(&self) -> usize {
        self.transmit.len()
    }

    /// Frames it would still accept.
    pub fn room(&self) -> usize {
        self.transmit.room()
    }

    /// Receive buffers it holds.
    pub fn buffers(&self) -> usize {
        self.receive.len()
    }

    /// Takes a frame. Its bytes must stay until [`Outcome::Sent`] returns the token.
    pub fn send(
        &mut self,
        token: Token,
        segments: Segments,
        offload: Option<TxOffload>,
    ) -> Result<(), SendError> {
        let result = self.transmit.push(&self.state, self.epoch, token, segments, offload);
        match result {
            Ok(()) => self.counters.accepted += 1,
            Err(_) => self.counters.refused += 1,
        }
        result
    }

    /// Gives a buffer to receive into.
    pub fn lend(&mut self, buffer: RxBuffer) {
        self.receive.lend(buffer);
    }

    /// Changes the device's set-up.
    pub fn configure(&mut self, config: Config) {
        durable::write_config(&self.state, self.epoch, &config);
        self.config = config;
        self.is_config_new = true;
    }

    /// A fresh driver is there, and the device is quiet: start when it is time.
    pub fn restart(&mut self, now_ns: u64) {
        assert_eq!(self.phase, Phase::Down, "a driver that lives is not restarted");
        self.phase = Phase::Starting { due_ns: now_ns + self.back_off_ns, since_ns: None };
    }

    /// The device's interrupt came: whether to enter the driver for it.
    pub fn interrupt(&mut self, now_ns: u64) -> Advice {
        let advice = self.watch.interrupt(now_ns);
        self.counters.storms += u64::from(advice == Advice::Mask);
        advice
    }

    /// Whether a masked interrupt line may be opened again now.
    pub fn unmask(&mut self, now_ns: u64) -> bool {
        self.watch.unmask(now_ns)
    }

    /// When to call [`Shadow::batch`] again even if nothing happens; 0: now.
    pub fn deadline_ns(&self) -> Option<u64> {
        let poll = match self.phase {
            Phase::Down => None,
            Phase::Starting { due_ns, .. } => Some(due_ns),
            Phase::Up if self.has_work() => Some(0),
            Phase::Up if self.transmit.submitted() > 0 => Some(self.watch.next_poll_ns()),
            Phase::Up => self.watch.next_unmask_ns().map(|_| self.watch.next_poll_ns()),
        };
        [poll, self.watch.next_unmask_ns()].into_iter().flatten().min()
    }

    /// Whether there is something that the device could be given now.
    fn has_work(&self) -> bool {
        self.features.is_some_and(|features| {
            self.is_config_new
                || self.transmit.can_submit(&features)
                || self.receive.can_post(&features)
        })
    }

    /// Fills `commands` with what the driver is to do now. `true`: enter it, even if there are none
    /// (the time has come to look).
    pub fn batch(&mut self, now_ns: u64, commands: &mut Vec<Command>) -> bool {
        match self.phase {
            Phase::Down => false,
            Phase::Starting { due_ns, .. } if now_ns < due_ns => false,
            Phase::Starting { due_ns, since_ns } => {
                let since_ns = Some(since_ns.unwrap_or(now_ns));
                self.phase = Phase::Starting { due_ns, since_ns };
                self.is_config_new = false;
                commands.push(Command::Start(self.config.clone()));
                true
            }
            Phase::Up => self.batch_up(now_ns, commands),
        }
    }

    fn batch_up(&mut self, now_ns: u64, commands: &mut Vec<Command>) -> bool {
        let Some(features) = self.features else { return false };
        if core::mem::take(&mut self.is_config_new) {
            commands.push(Command::Configure(self.config.clone()));
        }
        let was_idle = self.transmit.submitted() == 0;
        self.transmit.submit(&features, commands);
        self.receive.post(&features, commands);
        if was_idle && self.transmit.submitted() > 0 {
            self.watch.progress(now_ns);
        }
        !commands.is_empty() || self.deadline_ns().is_some_and(|due| now_ns >= due)
    }

    /// What the driver said when it was entered. Stops at the first thing that ends its life.
    pub fn report(&mut self, now_ns: u64, events: &[Event], outcomes: &mut Vec<Outcome>) {
        for event in events {
            if let Err(cause) = self.event(now_ns, *event, outcomes) {
                return self.fail(now_ns, cause, outcomes);
            }
        }
        self.watch.entered(now_ns, !events.is_empty());
        match self.phase {
            Phase::Starting { since_ns: Some(since), .. } if now_ns > since + START_NS => {
                self.fail(now_ns, Cause::Slow, outcomes);
            }
            Phase::Up if self.has_link && self.is_stuck(now_ns) => {
                self.fail(now_ns, Cause::Stuck, outcomes);
            }
            _ => {}
        }
    }

    fn is_stuck(&self, now_ns: u64) -> bool {
        self.transmit.submitted() > 0 && self.watch.is_stuck(now_ns)
    }

    fn event(
        &mut self,
        now_ns: u64,
        event: Event,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Cause> {
        match (self.phase, event) {
            (_, Event::Failed(failure)) => return Err(Cause::GaveUp(failure)),
            (Phase::Starting { since_ns, .. }, Event::Wait(pause_ns)) => {
                self.phase = Phase::Starting { due_ns: now_ns + u64::from(pause_ns), since_ns };
            }
            (Phase::Starting { .. }, Event::Started(features)) => {
                self.started(now_ns, features)?;
                outcomes.push(Outcome::Up(features));
            }
            (Phase::Up, Event::Sent(id)) => {
                let features = self.features.ok_or(Cause::Nonsense)?;
                let token = self.transmit.sent(&self.state, &features, id);
                outcomes.push(Outcome::Sent(token.ok_or(Cause::Nonsense)?));
                self.counters.sent += 1;
                self.watch.progress(now_ns);
            }
            (Phase::Up, Event::Received { buffer, offset, length, checksum }) => {
                let segment = self.receive.received(buffer, offset, length);
                let segment = segment.ok_or(Cause::Nonsense)?;
                if length == 0 {
                    self.receive.lend(RxBuffer { id: buffer, segment });
                    return Ok(());
                }
                let offset = segment.offset + u32::from(offset);
                let frame = Segment { offset, length: length.into() };
                outcomes.push(Outcome::Received { buffer, frame, checksum });
                self.counters.received += 1;
            }
            (Phase::Up, Event::Link(is_up)) => {
                self.has_link = is_up;
                self.watch.progress(now_ns);
                outcomes.push(Outcome::Link(is_up));
            }
            _ => return Err(Cause::Nonsense),
        }
        Ok(())
    }

    fn started(&mut self, now_ns: u64, features: Features) -> Result<(), Cause> {
        let needed = drivers::SEGMENTS_MAX + usize::from(features.tx_extra);
        if usize::from(features.tx_slots) < needed || features.tx_slots > drivers::RING_SIZE {
            return Err(Cause::Nonsense);
        }
        if features.rx_slots > drivers::RING_SIZE {
            return Err(Cause::Nonsense);
        }
        self.features = Some(features);
        self.phase = Phase::Up;
        self.up_since_ns = now_ns;
        self.watch = Watch::new(now_ns);
        Ok(())
    }

    /// The shell found the driver dead or forbidden: the same as [`Outcome::Failed`], without one.
    pub fn failed(&mut self, now_ns: u64, cause: Cause) {
        self.fail(now_ns, cause, &mut Vec::new());
    }

    fn fail(&mut self, now_ns: u64, cause: Cause, outcomes: &mut Vec<Outcome>) {
        if self.phase == Phase::Down {
            return;
        }
        let was_up = self.phase == Phase::Up;
        let was_healthy = was_up && now_ns.saturating_sub(self.up_since_ns) >= HEALTHY_NS;
        let is_first = self.counters.failures == 0;
        self.back_off_ns = match self.back_off_ns {
            _ if was_healthy || is_first => 0,
            0 => BACK_OFF_NS,
            last => (last * 2).min(BACK_OFF_MAX_NS),
        };
        self.counters.failures += 1;
        self.counters.replayed += self.transmit.submitted() as u64;
        self.phase = Phase::Down;
        self.transmit.take_back();
        outcomes.push(Outcome::Failed(cause));
    }

    /// Frames found in the stopped device's ring. Then all other buffers are the shadow's again.
    /// To be called once after each failure, before [`Shadow::restart`].
    pub fn salvaged(&mut self, found: &[Salvaged], outcomes: &mut Vec<Outcome>) {
        for frame in found {
            let Some(buffer) = self.receive.salvaged(frame.buffer) else { continue };
            let offset = frame.buffer.offset + frame.offset;
            let frame = Segment { offset, length: frame.length };
            outcomes.push(Outcome::Received { buffer, frame, checksum: Checksum::Unknown });
            self.counters.received += 1;
            self.counters.salvaged += 1;
        }
        self.receive.take_back();
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
