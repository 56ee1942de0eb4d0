//! The frame path's state.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use abi::{DomId, Port};
use drivers::trusted::{Layout, PAGE};
use drivers::{BufferId, RxBuffer, Segment};
use fabric::SharedMemory;
use netback::journal::JournalError;
use netback::packet::Packet;
use netback::rx::{RxQueue, buffers_needed};
use netback::tx::TxQueue;
use netback::vif::Connection;
use shadow_driver::Shadow;
use switch::{PortConfig, PortError, PortId, Rate, Role, Switch, Vlan};

use crate::egress::Delivery;
use crate::frames::{FrameKey, Frames, Owner};
use crate::{HOLD_NS, NIC};

/// Which half of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Tx,
    Rx,
}

/// A guest's port to notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notify {
    /// The vif.
    pub port: PortId,
    /// The guest's event channel, as it wrote it.
    pub channel: Port,
}

/// What belongs together in one batch of copies: the copies of one frame.
#[derive(Clone, Debug)]
pub struct Job {
    /// The guest's vif.
    pub port: PortId,
    /// How many of the batch's copies, in order.
    pub copies: usize,
    pub(crate) kind: JobKind,
}

#[derive(Clone, Debug)]
pub(crate) enum JobKind {
    Ingress { queue: usize, packet: Packet, pages: Vec<u32> },
    Deliver { queue: usize, delivery: Delivery },
}

/// What was dropped or refused, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames taken from guests.
    pub from_guests: u64,
    /// Frames given to guests.
    pub to_guests: u64,
    /// Frames that the switch sent nowhere.
    pub nowhere: u64,
    /// Frames for a guest whose queue was full.
    pub queue_full: u64,
    /// Frames that waited too long for a guest's buffers.
    pub stale: u64,
    /// Frames longer than their way allows, or whose headers do not fit their flags.
    pub unfit: u64,
    /// Frames whose sender was answered while a receiver kept them waiting.
    pub held_over: u64,
    /// Copies that failed: a guest's grant was wrong.
    pub bad_grants: u64,
    /// Frames for which no pages were left when they had to be cut or tagged.
    pub no_pages: u64,
    /// Requests found open after a restart, and done again.
    pub redone: u64,
}

/// One queue of a vif.
#[derive(Clone, Debug)]
pub struct Queue<R, J> {
    /// What the guest sends.
    pub tx: TxQueue<R, J>,
    /// What the guest receives.
    pub rx: RxQueue<R, J>,
    pub(crate) redo: VecDeque<Packet>,
    pub(crate) waiting: VecDeque<(FrameKey, u64)>,
    /// How many of those, from the front, have waited for [`HOLD_NS`].
    pub(crate) held_over: usize,
    /// Its guest has let a frame wait that long and has taken none since.
    pub(crate) is_stalled: bool,
    /// Its packets wait: for pages (0), or for this instant, because of its rate.
    pub(crate) blocked_until_ns: Option<u64>,
    pub(crate) is_dirty: bool,
}

/// The memory of one queue, as the shell has mapped it.
#[derive(Clone, Debug)]
pub struct Wiring<R, J> {
    /// The page of the transmit ring.
    pub tx_ring: R,
    /// The page of the receive ring.
    pub rx_ring: R,
    /// The queue's journal.
    pub journal: J,
}

/// How a vif takes part in the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VifSetup {
    /// Its VLAN; 0: none.
    pub vlan: u16,
    /// Limit on what it sends.
    pub rate: Option<Rate>,
}

/// Why a vif cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VifError {
    /// The switch does not take it.
    Switch(PortError),
    /// The journal of a former life cannot be used.
    Journal(JournalError),
}

#[derive(Clone, Debug)]
pub(crate) struct Vif<R, J> {
    pub connection: Connection,
    pub queues: Vec<Queue<R, J>>,
    /// Pages that its frames hold.
    pub pages: usize,
    /// Tells its connection from earlier ones on the same port.
    pub generation: u64,
}

/// The frame path. `R`: a ring's page; `J`: a queue's journal; `S`: the shadow's state; `A`: the
/// arena.
#[derive(Clone, Debug)]
pub struct Plane<R, J, S, A> {
    pub(crate) switch: Switch,
    pub(crate) shadow: Shadow<S>,
    pub(crate) arena: A,
    pub(crate) layout: Layout,
    pub(crate) vifs: BTreeMap<PortId, Vif<R, J>>,
    pub(crate) frames: Frames,
    /// Frames for the NIC that the shadow has no room for, or not yet the device's abilities.
    pub(crate) for_nic: VecDeque<FrameKey>,
    pub(crate) mtu: u16,
    pub(crate) generation: u64,
    /// Pages came back since the last look at the rings.
    pub(crate) has_released: bool,
    pub(crate) counters: Counters,
}

impl<R, J, S, A> Plane<R, J, S, A>
where
    R: SharedMemory,
    J: SharedMemory + Clone,
    S: SharedMemory,
    A: SharedMemory,
{
    /// A frame path without vifs. All receive buffers are lent to the shadow.
    pub fn new(now_ns: u64, mut shadow: Shadow<S>, arena: A, layout: Layout, mtu: u16) -> Self {
        assert!(arena.len() >= (layout.pages() * PAGE) as usize, "the arena is too small");
        let mut switch = Switch::new();
        let uplink =
            PortConfig { role: Role::Uplink, address: None, vlan: Vlan::Trunk, rate: None };
        switch.add(now_ns, NIC, uplink).expect("a new switch takes its first port");
        for number in 0..layout.rx_pages {
            shadow.lend(Self::rx_buffer(layout, BufferId(number)));
        }
        Self {
            switch,
            shadow,
            arena,
            layout,
            vifs: BTreeMap::new(),
            frames: Frames::new(layout),
            for_nic: VecDeque::new(),
            mtu,
            generation: 0,
            has_released: false,
            counters: Counters::default(),
        }
    }

    pub(crate) fn rx_buffer(layout: Layout, id: BufferId) -> RxBuffer {
        let offset = (layout.rx() + id.0) * PAGE;
        RxBuffer { id, segment: Segment { offset, length: PAGE } }
    }

    /// Adds a vif whose frontend has just connected.
    pub fn attach(
        &mut self,
        now_ns: u64,
        port: PortId,
        connection: Connection,
        setup: VifSetup,
        wiring: Vec<Wiring<R, J>>,
    ) -> Result<(), VifError> {
        self.add_port(now_ns, port, &connection, setup)?;
        let queue = |wiring: Wiring<R, J>| Queue {
            tx: TxQueue::connect(wiring.tx_ring, wiring.journal.clone()),
            rx: RxQueue::connect(wiring.rx_ring, wiring.journal),
            redo: VecDeque::new(),
            waiting: VecDeque::new(),
            held_over: 0,
            is_stalled: false,
            blocked_until_ns: None,
            is_dirty: false,
        };
        let queues = wiring.into_iter().map(queue).collect();
        self.insert(port, connection, queues);
        Ok(())
    }

    /// Adds a vif of a former life. Its open requests are done again before any new one. The shell
    /// notifies all its channels afterwards.
    pub fn recover(
        &mut self,
        now_ns: u64,
        port: PortId,
        connection: Connection,
        setup: VifSetup,
        wiring: Vec<Wiring<R, J>>,
    ) -> Result<(), VifError> {
        let mut queues = Vec::new();
        for wiring in wiring {
            let recovered = TxQueue::recover(wiring.tx_ring, wiring.journal.clone());
            let (mut tx, found) = recovered.map_err(VifError::Journal)?;
            let mut rx =
                RxQueue::recover(wiring.rx_ring, wiring.journal).map_err(VifError::Journal)?;
            // What was committed before the crash may not have been shown.
            tx.publish();
            rx.publish();
            self.counters.redone += found.open.len() as u64;
            queues.push(Queue {
                tx,
                rx,
                redo: found.open.into(),
                waiting: VecDeque::new(),
                held_over: 0,
                is_stalled: false,
                blocked_until_ns: None,
                is_dirty: false,
            });
        }
        self.add_port(now_ns, port, &connection, setup)?;
        self.insert(port, connection, queues);
        Ok(())
    }

    fn insert(&mut self, port: PortId, connection: Connection, queues: Vec<Queue<R, J>>) {
        self.generation += 1;
        let generation = self.generation;
        self.vifs.insert(port, Vif { connection, queues, pages: 0, generation });
    }

    fn add_port(
        &mut self,
        now_ns: u64,
        port: PortId,
        connection: &Connection,
        setup: VifSetup,
    ) -> Result<(), VifError> {
        let config = PortConfig {
            role: Role::Member,
            address: Some(connection.address),
            vlan: Vlan::Access(setup.vlan),
            rate: setup.rate,
        };
        self.switch.add(now_ns, port, config).map_err(VifError::Switch)
    }

    /// Takes a vif out: its rings are not touched any more. Not between `collect` and `copied`.
    pub fn detach(&mut self, port: PortId) {
        self.switch.remove(port);
        let Some(vif) = self.vifs.remove(&port) else { return };
        for (key, _) in vif.queues.into_iter().flat_map(|queue| queue.waiting) {
            self.release(key);
        }
    }

    /// The switch, for its counters.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// The shadow, to tell it of failures and interrupts.
    pub fn shadow(&mut self) -> &mut Shadow<S> {
        &mut self.shadow
    }

    /// The guest behind a vif.
    pub fn guest(&self, port: PortId) -> Option<DomId> {
        Some(self.vifs.get(&port)?.connection.guest)
    }

    /// A vif's queues.
    pub fn queues(&self, port: PortId) -> &[Queue<R, J>] {
        self.vifs.get(&port).map_or(&[], |vif| &vif.queues)
    }

    /// What was dropped, and why.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Frames in the arena.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Pages of the send zone that are free, and all of them.
    pub fn pages(&self) -> (usize, usize) {
        (self.frames.free_pages(), self.frames.total_pages())
    }

    /// One user of a frame is done with it; what its owner waited for is done.
    pub(crate) fn release(&mut self, key: FrameKey) {
        self.finish(key, netback::wire::Status::Okay);
    }

    pub(crate) fn finish(&mut self, key: FrameKey, status: netback::wire::Status) {
        if let Some((owner, pages)) = self.frames.release(key) {
            self.has_released = true;
            self.answer(owner, pages, status);
        }
    }

    pub(crate) fn answer(&mut self, owner: Owner, pages: usize, status: netback::wire::Status) {
        match owner {
            Owner::Guest { port, generation, queue, packet } => {
                let vif = self.vifs.get_mut(&port);
                // A frame of a connection that is over has nobody to answer to.
                let Some(vif) = vif.filter(|vif| vif.generation == generation) else { return };
                vif.pages -= pages;
                if let Some(queue) = vif.queues.get_mut(queue) {
                    queue.tx.answer(packet, status);
                    queue.is_dirty = true;
                }
            }
            Owner::Nic(buffer) => self.shadow.lend(Self::rx_buffer(self.layout, buffer)),
            Owner::Frame(_) | Owner::Nobody => {}
        }
    }

    /// Commits and shows all answers given since; fills in whom to notify. What guests receive is
    /// committed before what guests sent is: a frame between two guests must not be answered to its
    /// sender while its receiver may still lose it.
    pub fn publish(&mut self, notify: &mut Vec<Notify>) {
        for side in [Side::Rx, Side::Tx] {
            for (port, vif) in &mut self.vifs {
                for (queue, refs) in vif.queues.iter_mut().zip(&vif.connection.queues) {
                    if !queue.is_dirty {
                        continue;
                    }
                    let (wants_event, channel) = match side {
                        Side::Rx => (queue.rx.publish(), refs.rx_port),
                        Side::Tx => (queue.tx.publish(), refs.tx_port),
                    };
                    queue.is_dirty = side == Side::Rx;
                    if wants_event {
                        notify.push(Notify { port: *port, channel });
                    }
                }
            }
        }
    }

    /// When to call [`Plane::collect`] and [`Plane::enter`] again even if nothing happens.
    pub fn deadline_ns(&self) -> Option<u64> {
        let queues = self.vifs.values().flat_map(|vif| &vif.queues);
        let holds = queues.flat_map(|queue| queue.waiting.iter().skip(queue.held_over));
        let holds = holds.map(|(_, since)| since + HOLD_NS).min();
        let queues = self.vifs.values().flat_map(|vif| &vif.queues);
        let rates = queues.filter_map(|queue| queue.blocked_until_ns.filter(|until| *until > 0));
        holds.into_iter().chain(rates.min()).chain(self.shadow.deadline_ns()).min()
    }

    /// Before going to sleep: asks every frontend for an event when there is something to do.
    /// `true`: there is something already.
    pub fn rest(&mut self) -> bool {
        let mut has_work = false;
        let frames = &self.frames;
        for queue in self.vifs.values_mut().flat_map(|vif| &mut vif.queues) {
            has_work |= queue.is_dirty;
            // A queue that waits for pages or for its rate is woken by them.
            if queue.blocked_until_ns.is_none_or(|until_ns| until_ns == 0 && self.has_released) {
                has_work |= queue.tx.rest() | !queue.redo.is_empty();
            }
            let next = queue.waiting.front().and_then(|(key, _)| frames.get(*key));
            if let Some(frame) = next {
                has_work |= queue.rx.want(buffers_needed(frame.length, &frame.offload));
            }
        }
        has_work
    }
}
