//! The words in which a driver behind a wall and the trusted part talk to each other.
//!
//! A message is a head, with its kind in the lowest byte, and as many words as its kind says.
//! Commands go in. Calls for the trusted part and events come out, in one stream in the order in
//! which the driver made them; reading them never panics, whatever they are.

use alloc::vec::Vec;

use frame::{Checksum, Mac};

use crate::{
    BufferId, Command, Config, Cut, Descriptor, Event, Failure, Features, FrameId, GROUPS_MAX,
    RingId, RxBuffer, SEGMENTS_MAX, Segment, Segments, TsoStyle, TxFrame, TxOffload, Window,
};

/// Kinds of messages.
mod kind {
    pub(super) const START: u8 = 1;
    pub(super) const CONFIGURE: u8 = 2;
    pub(super) const TRANSMIT: u8 = 3;
    pub(super) const POST: u8 = 4;

    pub(super) const WRITE8: u8 = 16;
    pub(super) const WRITE16: u8 = 17;
    pub(super) const WRITE32: u8 = 18;
    pub(super) const SET_UP: u8 = 19;
    pub(super) const BYTES: u8 = 20;
    pub(super) const SCRATCH_BYTES: u8 = 21;
    pub(super) const CONTEXT: u8 = 22;
    pub(super) const SCRATCH: u8 = 23;
    pub(super) const PUBLISH: u8 = 24;
    pub(super) const DOORBELL: u8 = 25;

    pub(super) const WAIT: u8 = 32;
    pub(super) const STARTED: u8 = 33;
    pub(super) const SENT: u8 = 34;
    pub(super) const RECEIVED: u8 = 35;
    pub(super) const LINK: u8 = 36;
    pub(super) const FAILED: u8 = 37;
}

/// Words that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

/// A head: kind, a byte, and a half word.
const fn head(kind: u8, byte: u8, half: u16) -> u32 {
    kind as u32 | (byte as u32) << 8 | (half as u32) << 16
}

const fn halves(low: u16, high: u16) -> u32 {
    low as u32 | (high as u32) << 16
}

const fn parted(word: u32) -> (u16, u16) {
    (word as u16, (word >> 16) as u16)
}

fn take<const N: usize>(words: &mut &[u32]) -> Result<[u32; N], Garbled> {
    let (taken, rest) = words.split_first_chunk().ok_or(Garbled)?;
    *words = rest;
    Ok(*taken)
}

fn address_words(mac: Mac) -> (u32, u16) {
    let [a, b, c, d, e, f] = mac.0;
    (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]))
}

fn address(low: u32, high: u16) -> Mac {
    let ([a, b, c, d], [e, f]) = (low.to_le_bytes(), high.to_le_bytes());
    Mac([a, b, c, d, e, f])
}

// ---- Commands ------------------------------------------------------------------------------

/// Appends commands.
pub fn write_commands(commands: &[Command], words: &mut Vec<u32>) {
    for command in commands {
        match command {
            Command::Start(config) => write_config(kind::START, config, words),
            Command::Configure(config) => write_config(kind::CONFIGURE, config, words),
            Command::Transmit(frame) => write_frame(frame, words),
            Command::Post(RxBuffer { id, segment }) => {
                words.extend([head(kind::POST, 0, 0), id.0, segment.offset, segment.length]);
            }
        }
    }
}

fn write_config(kind: u8, config: &Config, words: &mut Vec<u32>) {
    let bits = u8::from(config.address.is_some()) | u8::from(config.is_promiscuous) << 1;
    let (low, high) = address_words(config.address.unwrap_or(Mac([0; 6])));
    words.extend([head(kind, bits, config.mtu), low, halves(high, config.groups.len() as u16)]);
    for group in &config.groups {
        let (low, high) = address_words(*group);
        words.extend([low, high.into()]);
    }
}

fn write_frame(frame: &TxFrame, words: &mut Vec<u32>) {
    let TxFrame { id, segments, offload } = frame;
    let flags = offload.map_or(0, |offload| {
        let bits = [true, offload.is_v6, offload.is_tcp, offload.cut.is_some()];
        (0..).zip(bits).map(|(bit, is_set)| u16::from(is_set) << bit).sum()
    });
    words.extend([head(kind::TRANSMIT, segments.len() as u8, flags), id.0]);
    if let Some(offload) = offload {
        let cut = offload.cut.unwrap_or(Cut { size: 0, headers: 0 });
        let TxOffload { network, start, field, .. } = *offload;
        words.extend([halves(network, start), halves(field, cut.size), cut.headers.into()]);
    }
    words.extend(segments.iter().flat_map(|segment| [segment.offset, segment.length]));
}

/// Reads the next command. `None`: there are no more.
pub fn read_command(words: &mut &[u32]) -> Option<Result<Command, Garbled>> {
    let (first, rest) = words.split_first()?;
    *words = rest;
    let (byte, half) = ((*first >> 8) as u8, (*first >> 16) as u16);
    Some(match *first as u8 {
        kind::START => read_config(byte, half, words).map(Command::Start),
        kind::CONFIGURE => read_config(byte, half, words).map(Command::Configure),
        kind::TRANSMIT => read_frame(byte, half, words).map(Command::Transmit),
        kind::POST => take(words).map(|[id, offset, length]| {
            Command::Post(RxBuffer { id: BufferId(id), segment: Segment { offset, length } })
        }),
        _ => Err(Garbled),
    })
}

fn read_config(bits: u8, mtu: u16, words: &mut &[u32]) -> Result<Config, Garbled> {
    let [low, rest] = take(words)?;
    let (high, count) = parted(rest);
    let mut groups = heapless::Vec::<Mac, GROUPS_MAX>::new();
    for _ in 0..count {
        let [low, high] = take(words)?;
        groups.push(address(low, high as u16)).map_err(|_| Garbled)?;
    }
    let own = (bits & 1 != 0).then(|| address(low, high));
    Ok(Config { address: own, mtu, is_promiscuous: bits & 2 != 0, groups })
}

fn read_frame(count: u8, flags: u16, words: &mut &[u32]) -> Result<TxFrame, Garbled> {
    let [id] = take(words)?;
    let offload = if flags & 1 != 0 { Some(read_offload(flags, words)?) } else { None };
    if usize::from(count) > SEGMENTS_MAX {
        return Err(Garbled);
    }
    let mut segments = Segments::new();
    for _ in 0..count {
        let [offset, length] = take(words)?;
        segments.push(Segment { offset, length }).map_err(|_| Garbled)?;
    }
    Ok(TxFrame { id: FrameId(id), segments, offload })
}

fn read_offload(flags: u16, words: &mut &[u32]) -> Result<TxOffload, Garbled> {
    let [places, more, headers] = take(words)?;
    let ((network, start), (field, size)) = (parted(places), parted(more));
    let cut = Cut { size, headers: headers as u16 };
    Ok(TxOffload {
        network,
        is_v6: flags & 2 != 0,
        start,
        field,
        is_tcp: flags & 4 != 0,
        cut: (flags & 8 != 0).then_some(cut),
    })
}

// ---- Calls and events ----------------------------------------------------------------------

/// What a driver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Write 8 bits of a register.
    Write8(Window, u32, u8),
    /// Write 16 bits of a register.
    Write16(Window, u32, u16),
    /// Write 32 bits of a register.
    Write32(Window, u32, u32),
    /// [`crate::Machine::set_up`].
    SetUp(RingId),
    /// [`crate::Machine::place`].
    Place(RingId, u16, Descriptor),
    /// [`crate::Machine::scratch`].
    Scratch(RingId, u16, [u8; 16]),
    /// [`crate::Machine::publish`].
    Publish(RingId, u16),
    /// [`crate::Machine::doorbell`].
    Doorbell(RingId),
    /// An event.
    Event(Event),
}

fn quarters(bytes: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_le_bytes)
}

fn sixteen(words: [u32; 4]) -> [u8; 16] {
    let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = words.map(u32::to_le_bytes);
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// Gives the words of what a driver says to `put`, all at once.
pub fn write_said(said: &Said, put: impl FnOnce(&[u32])) {
    let with_bytes = |kind, ring: RingId, index, bytes| {
        let [a, b, c, d] = quarters(bytes);
        [head(kind, ring as u8, index), a, b, c, d]
    };
    match *said {
        Said::Write8(window, at, value) => {
            put(&[head(kind::WRITE8, window as u8, 0), at, value.into()]);
        }
        Said::Write16(window, at, value) => {
            put(&[head(kind::WRITE16, window as u8, 0), at, value.into()]);
        }
        Said::Write32(window, at, value) => put(&[head(kind::WRITE32, window as u8, 0), at, value]),
        Said::SetUp(ring) => put(&[head(kind::SET_UP, ring as u8, 0)]),
        Said::Place(ring, index, Descriptor::Bytes { segment, bits }) => {
            put(&[head(kind::BYTES, ring as u8, index), segment.offset, segment.length, bits]);
        }
        Said::Place(ring, index, Descriptor::Scratch { length, bits }) => {
            put(&[head(kind::SCRATCH_BYTES, ring as u8, index), length, bits]);
        }
        Said::Place(ring, index, Descriptor::Context(bytes)) => {
            put(&with_bytes(kind::CONTEXT, ring, index, bytes));
        }
        Said::Scratch(ring, index, bytes) => put(&with_bytes(kind::SCRATCH, ring, index, bytes)),
        Said::Publish(ring, value) => put(&[head(kind::PUBLISH, ring as u8, value)]),
        Said::Doorbell(ring) => put(&[head(kind::DOORBELL, ring as u8, 0)]),
        Said::Event(event) => write_event(&event, put),
    }
}

fn write_event(event: &Event, put: impl FnOnce(&[u32])) {
    match *event {
        Event::Wait(pause_ns) => put(&[head(kind::WAIT, 0, 0), pause_ns]),
        Event::Started(features) => {
            let tso = match features.tso {
                None => 0,
                Some(TsoStyle::Whole) => 1,
                Some(TsoStyle::Zeroed) => 2,
            };
            let (low, high) = address_words(features.address);
            let bits = u8::from(features.has_checksum) | tso << 1;
            put(&[
                head(kind::STARTED, bits, high),
                low,
                halves(features.tx_slots, features.tx_extra),
                features.rx_slots.into(),
            ]);
        }
        Event::Sent(id) => put(&[head(kind::SENT, 0, 0), id.0]),
        Event::Received { buffer, offset, length, checksum } => {
            let sum = match checksum {
                Checksum::Unknown => 0,
                Checksum::Valid => 1,
                Checksum::Blank => 2,
            };
            put(&[head(kind::RECEIVED, sum, length), buffer.0, offset.into()]);
        }
        Event::Link(is_up) => put(&[head(kind::LINK, is_up.into(), 0)]),
        Event::Failed(failure) => put(&[head(kind::FAILED, failure as u8, 0)]),
    }
}

/// Reads what a driver says next. `None`: nothing more.
pub fn read_said(words: &mut &[u32]) -> Option<Result<Said, Garbled>> {
    let (first, rest) = words.split_first()?;
    *words = rest;
    let (kind, byte, half) = (*first as u8, (*first >> 8) as u8, (*first >> 16) as u16);
    Some(match kind {
        kind::WRITE8..=kind::WRITE32 => read_write(kind, byte, words),
        kind::SET_UP..=kind::DOORBELL => read_call(kind, byte, half, words),
        _ => read_event(kind, byte, half, words).map(Said::Event),
    })
}

fn read_write(kind: u8, byte: u8, words: &mut &[u32]) -> Result<Said, Garbled> {
    let windows = [Window::Main, Window::Isr, Window::Device, Window::Notify];
    let window = *windows.get(usize::from(byte)).ok_or(Garbled)?;
    let [at, value] = take(words)?;
    Ok(match kind {
        kind::WRITE8 => Said::Write8(window, at, value as u8),
        kind::WRITE16 => Said::Write16(window, at, value as u16),
        _ => Said::Write32(window, at, value),
    })
}

fn read_call(kind: u8, byte: u8, half: u16, words: &mut &[u32]) -> Result<Said, Garbled> {
    let ring = *[RingId::Rx, RingId::Tx].get(usize::from(byte)).ok_or(Garbled)?;
    Ok(match kind {
        kind::SET_UP => Said::SetUp(ring),
        kind::BYTES => {
            let [offset, length, bits] = take(words)?;
            let segment = Segment { offset, length };
            Said::Place(ring, half, Descriptor::Bytes { segment, bits })
        }
        kind::SCRATCH_BYTES => {
            let [length, bits] = take(words)?;
            Said::Place(ring, half, Descriptor::Scratch { length, bits })
        }
        kind::CONTEXT => Said::Place(ring, half, Descriptor::Context(sixteen(take(words)?))),
        kind::SCRATCH => Said::Scratch(ring, half, sixteen(take(words)?)),
        kind::PUBLISH => Said::Publish(ring, half),
        _ => Said::Doorbell(ring),
    })
}

fn read_event(kind: u8, byte: u8, half: u16, words: &mut &[u32]) -> Result<Event, Garbled> {
    Ok(match kind {
        kind::WAIT => {
            let [pause_ns] = take(words)?;
            Event::Wait(pause_ns)
        }
        kind::STARTED => {
            let [low, tx, rx_slots] = take(words)?;
            let (tx_slots, tx_extra) = parted(tx);
            let styles = [None, Some(TsoStyle::Whole), Some(TsoStyle::Zeroed)];
            Event::Started(Features {
                address: address(low, half),
                has_checksum: byte & 1 != 0,
                tso: *styles.get(usize::from(byte >> 1)).ok_or(Garbled)?,
                tx_slots,
                tx_extra,
                rx_slots: rx_slots as u16,
            })
        }
        kind::SENT => {
            let [id] = take(words)?;
            Event::Sent(FrameId(id))
        }
        kind::RECEIVED => {
            let [buffer, offset] = take(words)?;
            let sums = [Checksum::Unknown, Checksum::Valid, Checksum::Blank];
            let checksum = *sums.get(usize::from(byte)).ok_or(Garbled)?;
            let (buffer, offset) = (BufferId(buffer), offset as u16);
            Event::Received { buffer, offset, length: half, checksum }
        }
        kind::LINK => Event::Link(byte != 0),
        kind::FAILED => {
            let failures = [Failure::Silent, Failure::Refused, Failure::Nonsense, Failure::Overrun];
            Event::Failed(*failures.get(usize::from(byte)).ok_or(Garbled)?)
        }
        _ => return Err(Garbled),
    })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
