//! Frames on their way out.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use drivers::{Command, Features, FrameId, Segments, TxFrame, TxOffload};
use fabric::{Epoch, SharedMemory};

use crate::durable::{self, FrameRecord};

/// What the sender calls a frame; it comes back when the frame is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Why a frame is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// As many frames as the shadow may hold are waiting.
    Full,
    /// The frame has no bytes.
    Empty,
}

#[derive(Clone, Debug)]
struct Held {
    frame: FrameRecord,
    slot: usize,
    /// Its name with the driver that has it now.
    id: Option<FrameId>,
}

impl Held {
    fn slots(&self, features: &Features) -> usize {
        self.frame.segments.len() + usize::from(features.tx_extra)
    }
}

/// All frames the shadow holds, oldest first: those that the driver has, then those that wait.
#[derive(Clone, Debug)]
pub(crate) struct Transmit {
    frames: VecDeque<Held>,
    free: Vec<usize>,
    submitted: usize,
    in_ring: usize,
    next_id: u32,
    next_sequence: u64,
}

impl Transmit {
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            frames: VecDeque::new(),
            free: (0..bound).rev().collect(),
            submitted: 0,
            in_ring: 0,
            next_id: 1,
            next_sequence: 1,
        }
    }

    /// Reads the records of a former life. Those that are not kept are cleared.
    pub(crate) fn recover<S: SharedMemory>(
        state: &S,
        bound: usize,
        keep: impl Fn(Token) -> bool,
    ) -> (Self, usize) {
        let mut transmit = Self::new(0);
        let mut forgotten = 0;
        let mut found = Vec::new();
        for slot in 0..bound {
            match durable::read_frame(state, slot) {
                Some(frame) if keep(frame.token) => found.push(Held { frame, slot, id: None }),
                other => {
                    forgotten += usize::from(other.is_some());
                    durable::clear_frame(state, slot);
                    transmit.free.push(slot);
                }
            }
        }
        found.sort_by_key(|held| held.frame.sequence);
        transmit.next_sequence = found.last().map_or(1, |held| held.frame.sequence + 1);
        transmit.frames = found.into();
        (transmit, forgotten)
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn submitted(&self) -> usize {
        self.submitted
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.frames.iter().map(|held| held.frame.token)
    }

    pub(crate) fn push<S: SharedMemory>(
        &mut self,
        state: &S,
        epoch: Epoch,
        token: Token,
        segments: Segments,
        offload: Option<TxOffload>,
    ) -> Result<(), SendError> {
        if segments.is_empty() {
            return Err(SendError::Empty);
        }
        let slot = self.free.pop().ok_or(SendError::Full)?;
        let frame = FrameRecord { sequence: self.next_sequence, token, segments, offload };
        self.next_sequence += 1;
        durable::write_frame(state, slot, epoch, &frame);
        self.frames.push_back(Held { frame, slot, id: None });
        Ok(())
    }

    /// Whether the ring has room for the next waiting frame.
    pub(crate) fn can_submit(&self, features: &Features) -> bool {
        let next = self.frames.get(self.submitted);
        next.is_some_and(|held| self.in_ring + held.slots(features) <= features.tx_slots.into())
    }

    /// Hands waiting frames over, as many as the device's ring has room for.
    pub(crate) fn submit(&mut self, features: &Features, commands: &mut Vec<Command>) {
        while let Some(held) = self.frames.get_mut(self.submitted) {
            let slots = held.slots(features);
            if self.in_ring + slots > usize::from(features.tx_slots) {
                break;
            }
            let id = FrameId(self.next_id);
            self.next_id = self.next_id.wrapping_add(1);
            held.id = Some(id);
            self.in_ring += slots;
            self.submitted += 1;
            commands.push(Command::Transmit(TxFrame {
                id,
                segments: held.frame.segments.clone(),
                offload: held.frame.offload,
            }));
        }
    }

    /// The device has sent a frame. `None`: it never had such a frame.
    pub(crate) fn sent<S: SharedMemory>(
        &mut self,
        state: &S,
        features: &Features,
        id: FrameId,
    ) -> Option<Token> {
        // Devices finish in order nearly always: the search ends at its first step.
        let at = self.frames.iter().take(self.submitted).position(|held| held.id == Some(id))?;
        let held = self.frames.remove(at)?;
        self.submitted -= 1;
        self.in_ring -= held.slots(features);
        durable::clear_frame(state, held.slot);
        self.free.push(held.slot);
        Some(held.frame.token)
    }

    /// The driver is gone: everything it had is to be sent again, under new names.
    pub(crate) fn take_back(&mut self) {
        self.frames.iter_mut().for_each(|held| held.id = None);
        self.submitted = 0;
        self.in_ring = 0;
    }
}
