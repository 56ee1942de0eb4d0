//! Messages between a driver and those who use it.

use core::borrow::Borrow;

use frame::{Checksum, Mac};

use crate::Machine;

/// Pieces of one frame: 18 that a frontend may send (`XEN_NETIF_NR_SLOTS_MIN`, netif.h) and two
/// more where a tag is put in.
pub const SEGMENTS_MAX: usize = 20;
/// Group addresses a device filters by; with more it receives all groups.
pub const GROUPS_MAX: usize = 16;

/// A range of bytes of the DMA arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// First byte, from the arena's start.
    pub offset: u32,
    /// Number of bytes.
    pub length: u32,
}

/// The pieces of one frame, in order.
pub type Segments = heapless::Vec<Segment, SEGMENTS_MAX>;

/// Names a frame that was handed over for transmission. Never reused within a life of the shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrameId(pub u32);

/// Names a receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// How a large frame is cut by the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Payload bytes per segment.
    pub size: u16,
    /// Bytes of all headers.
    pub headers: u16,
}

/// What the device does to a frame. All offsets count from the frame's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxOffload {
    /// Start of the IP header.
    pub network: u16,
    /// Whether it is IPv6.
    pub is_v6: bool,
    /// Start of the TCP or UDP header: the checksum covers all from here.
    pub start: u16,
    /// Place of the checksum; holds the pseudo header's sum already.
    pub field: u16,
    /// Whether it is TCP.
    pub is_tcp: bool,
    /// Whether it is to be cut, and how.
    pub cut: Option<Cut>,
}

/// A frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxFrame {
    /// Its name.
    pub id: FrameId,
    /// Where its bytes lie.
    pub segments: Segments,
    /// What the device shall do to it.
    pub offload: Option<TxOffload>,
}

/// A place for a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxBuffer {
    /// Its name.
    pub id: BufferId,
    /// Where it lies: within one page.
    pub segment: Segment,
}

/// How a device is set up. The whole of it travels, so that replaying it is starting with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The NIC's own address; `None`: the one it was made with.
    pub address: Option<Mac>,
    /// The longest payload of a frame.
    pub mtu: u16,
    /// Whether it takes frames for every address (a switch's uplink does).
    pub is_promiscuous: bool,
    /// Groups it takes frames for, if it is not promiscuous.
    pub groups: heapless::Vec<Mac, GROUPS_MAX>,
}

impl Default for Config {
    fn default() -> Self {
        Self { address: None, mtu: 1500, is_promiscuous: true, groups: heapless::Vec::new() }
    }
}

/// What the headers of a frame that the device cuts must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TsoStyle {
    /// Lengths and sums of the large frame (virtio 1.2, 5.1.6.2).
    Whole,
    /// IP length and IP checksum zero, pseudo header without length (82574 data sheet, 7.3.6).
    Zeroed,
}

/// What a started device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Its address.
    pub address: Mac,
    /// Completes TCP and UDP checksums.
    pub has_checksum: bool,
    /// Cuts large frames, and what it wants in their headers.
    pub tso: Option<TsoStyle>,
    /// Descriptors for sending that may be in use at once.
    pub tx_slots: u16,
    /// Descriptors one frame takes beside its segments.
    pub tx_extra: u16,
    /// Buffers for receiving that may be posted at once.
    pub rx_slots: u16,
}

/// What a driver is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bring the device up from any state.
    Start(Config),
    /// Change the set-up of a running device.
    Configure(Config),
    /// Send a frame.
    Transmit(TxFrame),
    /// Receive into a buffer.
    Post(RxBuffer),
}

/// What a driver reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The start needs a pause: ask again after this many nanoseconds.
    Wait(u32),
    /// The device is up.
    Started(Features),
    /// A frame has left; its bytes are no longer needed.
    Sent(FrameId),
    /// A frame arrived.
    Received {
        /// Where.
        buffer: BufferId,
        /// Its first byte, from the buffer's start.
        offset: u16,
        /// Its bytes; 0: the device found it broken, and the buffer is free.
        length: u16,
        /// What the device found out about its checksum.
        checksum: Checksum,
    },
    /// The cable came (`true`) or went.
    Link(bool),
    /// The driver gives up.
    Failed(Failure),
}

/// Why a driver gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The device does not answer: its registers read as all ones, or a step never ends.
    Silent,
    /// The device refuses what the driver needs.
    Refused,
    /// The device reports what cannot be.
    Nonsense,
    /// The driver was asked for more than the device has room for.
    Overrun,
}

/// How far a start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Call again after this many nanoseconds.
    Wait(u32),
    /// The device is up.
    Ready(Features),
}

/// A NIC driver. It keeps no data that its next instance would need: `shadow-driver` has all that.
/// It allocates nothing: in its fault domain there is no heap.
pub trait Driver<M: Machine> {
    /// Brings the device up, from whatever state it is in.
    fn start(&mut self, machine: &mut M, config: &Config) -> Result<Start, Failure>;

    /// Changes the set-up of a running device.
    fn configure(&mut self, machine: &mut M, config: &Config) -> Result<(), Failure>;

    /// Proposes the descriptors of a frame.
    fn transmit(&mut self, machine: &mut M, frame: &TxFrame) -> Result<(), Failure>;

    /// Proposes a receive buffer.
    fn post(&mut self, machine: &mut M, buffer: &RxBuffer) -> Result<(), Failure>;

    /// Tells the device about everything proposed since the last call.
    fn flush(&mut self, machine: &mut M);

    /// Acknowledges interrupts and reports what the device has finished.
    fn poll(&mut self, machine: &mut M, events: &mut impl Extend<Event>) -> Result<(), Failure>;
}

/// One entry into the driver: executes the commands, then harvests if the device is up. Ends at
/// the first failure, which is the last event.
pub fn run<M: Machine>(
    driver: &mut impl Driver<M>,
    machine: &mut M,
    commands: &[Command],
    events: &mut impl Extend<Event>,
) {
    run_each(driver, machine, commands, events);
}

/// The same, for commands that come one by one.
pub(crate) fn run_each<M: Machine>(
    driver: &mut impl Driver<M>,
    machine: &mut M,
    commands: impl IntoIterator<Item = impl Borrow<Command>>,
    events: &mut impl Extend<Event>,
) {
    if let Err(failure) = execute(driver, machine, commands, events) {
        events.extend([Event::Failed(failure)]);
    }
}

fn execute<M: Machine>(
    driver: &mut impl Driver<M>,
    machine: &mut M,
    commands: impl IntoIterator<Item = impl Borrow<Command>>,
    events: &mut impl Extend<Event>,
) -> Result<(), Failure> {
    for command in commands {
        match command.borrow() {
            Command::Start(config) => match driver.start(machine, config)? {
                Start::Wait(pause_ns) => {
                    events.extend([Event::Wait(pause_ns)]);
                    return Ok(());
                }
                Start::Ready(features) => events.extend([Event::Started(features)]),
            },
            Command::Configure(config) => driver.configure(machine, config)?,
            Command::Transmit(frame) => driver.transmit(machine, frame)?,
            Command::Post(buffer) => driver.post(machine, buffer)?,
        }
    }
    driver.flush(machine);
    driver.poll(machine, events)
}
