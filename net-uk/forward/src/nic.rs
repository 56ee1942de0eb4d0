//! Frames to and from the NIC.

use alloc::vec::Vec;

use drivers::trusted::Salvaged;
use drivers::{Command, Cut, Event, Features, TsoStyle, TxOffload};
use fabric::SharedMemory;
use frame::{Checksum, HEADERS, Offload, Protocol, Transport, checksum};
use shadow_driver::{Cause, Outcome, Token};

use crate::NIC;
use crate::frames::{Frame, FrameKey, Owner};
use crate::plane::Plane;
use crate::soft::Finished;

/// Bytes of a frame beside its payload: header and one tag.
const OVERHEAD: u32 = 18;

/// What a frame needs before the shadow can have it.
enum Plan {
    Plain,
    Device(TxOffload),
    Software,
    Unfit,
}

impl<R, J, S, A> Plane<R, J, S, A>
where
    R: SharedMemory,
    J: SharedMemory + Clone,
    S: SharedMemory,
    A: SharedMemory,
{
    /// Fills in what the driver is to do. `true`: enter it.
    pub fn enter(&mut self, now_ns: u64, commands: &mut Vec<Command>) -> bool {
        self.feed_nic();
        self.shadow.batch(now_ns, commands)
    }

    /// What the driver said. `Some`: its life has ended; stop the device, then
    /// [`Plane::salvaged`], then `shadow().restart`.
    pub fn report(&mut self, now_ns: u64, events: &[Event]) -> Option<Cause> {
        let mut outcomes = Vec::new();
        self.shadow.report(now_ns, events, &mut outcomes);
        let failed = self.settle(now_ns, outcomes);
        self.feed_nic();
        failed
    }

    /// What lay in the ring of a stopped device.
    pub fn salvaged(&mut self, now_ns: u64, found: &[Salvaged]) {
        let mut outcomes = Vec::new();
        self.shadow.salvaged(found, &mut outcomes);
        self.settle(now_ns, outcomes);
    }

    fn settle(&mut self, now_ns: u64, outcomes: Vec<Outcome>) -> Option<Cause> {
        let mut failed = None;
        for outcome in outcomes {
            match outcome {
                Outcome::Sent(token) => self.release(FrameKey(token.0)),
                Outcome::Received { buffer, frame, checksum } => {
                    let segments = core::iter::once(frame).collect();
                    let offload = Offload { checksum, gso: None };
                    let key = self.frames.add(Frame {
                        segments,
                        length: frame.length,
                        offload,
                        owner: Owner::Nic(buffer),
                        pages: Vec::new(),
                        users: 0,
                    });
                    self.route(now_ns, NIC, key);
                }
                Outcome::Failed(cause) => failed = Some(cause),
                Outcome::Up(_) | Outcome::Link(_) => {}
            }
        }
        failed
    }

    /// Hands waiting frames to the shadow, in order.
    pub(crate) fn feed_nic(&mut self) {
        // What the device can do is known once it was up; till then nothing can leave anyway.
        let Some(features) = self.shadow.features() else { return };
        while self.shadow.room() > 0 {
            let Some(key) = self.for_nic.pop_front() else { return };
            match self.plan(key, &features) {
                Plan::Plain => self.give(key, None),
                Plan::Device(offload) => self.give(key, Some(offload)),
                Plan::Software => match self.finished(key) {
                    Finished::Parts(parts) => {
                        parts.into_iter().rev().for_each(|part| self.for_nic.push_front(part));
                    }
                    Finished::Dropped => {}
                    // Pages come back when frames before it have left.
                    Finished::NoPages => return self.for_nic.push_front(key),
                },
                Plan::Unfit => {
                    self.counters.unfit += 1;
                    self.finish(key, netback::wire::Status::Error);
                }
            }
        }
    }

    fn give(&mut self, key: FrameKey, offload: Option<TxOffload>) {
        let Some(frame) = self.frames.get(key) else { return };
        let sent = self.shadow.send(Token(key.0), frame.segments.clone(), offload);
        debug_assert!(sent.is_ok(), "there was room, and no frame is empty");
    }

    fn plan(&mut self, key: FrameKey, features: &Features) -> Plan {
        let Some(frame) = self.frames.get(key) else { return Plan::Unfit };
        let (length, offload, users) = (frame.length, frame.offload, frame.users);
        let is_whole = matches!(frame.owner, Owner::Guest { .. });
        if offload.gso.is_none() && length > u32::from(self.mtu) + OVERHEAD {
            return Plan::Unfit;
        }
        if offload.checksum != Checksum::Blank && offload.gso.is_none() {
            return Plan::Plain;
        }
        let can = features.has_checksum && (offload.gso.is_none() || features.tso.is_some());
        // Headers are prepared in place, which nobody else may see.
        if !can || users > 1 || !is_whole {
            return Plan::Software;
        }
        self.prepare(key, length, offload, features).map_or(Plan::Unfit, Plan::Device)
    }

    fn prepare(
        &mut self,
        key: FrameKey,
        length: u32,
        offload: Offload,
        features: &Features,
    ) -> Option<TxOffload> {
        let mut bytes = [0; HEADERS];
        let read = self.read_start(key, &mut bytes);
        let bytes = &mut bytes[..read];
        let transport = Transport::find(bytes)?;
        let is_zeroed = features.tso == Some(TsoStyle::Zeroed) && offload.gso.is_some();
        let cut = match offload.gso {
            Some(gso) if transport.suits(gso.kind) => {
                Some(Cut { size: gso.size, headers: u16::try_from(transport.payload).ok()? })
            }
            Some(_) => return None,
            None => None,
        };
        let (start, field) = checksum::prepare(bytes, length as usize, is_zeroed)?;
        let network = transport.network;
        if is_zeroed && !transport.is_v6 {
            bytes[network + 2..network + 4].fill(0);
            bytes[network + 10..network + 12].fill(0);
        }
        self.write_start(key, bytes);
        self.mark_complete(key);
        Some(TxOffload {
            network: u16::try_from(network).ok()?,
            is_v6: transport.is_v6,
            start,
            field,
            is_tcp: transport.protocol == Protocol::Tcp,
            cut,
        })
    }
}
