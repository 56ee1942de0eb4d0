//! A fake virtio-net.

use alloc::vec::Vec;

use super::{Common, ring_of};
use crate::virtio::{HEADER, flag, reg};
use crate::{Cut, TxOffload, Window};

#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    size: u32,
    is_on: bool,
    addresses: [u64; 3],
    taken: u16,
    returned: u16,
}

#[derive(Debug, Default)]
pub(super) struct State {
    status: u8,
    device_select: u32,
    driver_select: u32,
    accepted: [u32; 2],
    queue: u32,
    queues: [Queue; 2],
    isr: u8,
}

impl State {
    const OFFERED: [u32; 2] =
        [flag::CSUM | flag::MAC | flag::TSO | flag::STATUS | 1 << 28 | 1 << 29, flag::VERSION_1];

    pub(super) fn read(&mut self, common: &mut Common, window: Window, offset: u32) -> u32 {
        match (window, offset) {
            (Window::Main, reg::DEVICE_SELECT) => self.device_select,
            (Window::Main, reg::DEVICE_FEATURES) => {
                Self::OFFERED.get(self.device_select as usize).copied().unwrap_or(0)
            }
            (Window::Main, reg::STATUS) => self.status.into(),
            (Window::Main, reg::QUEUE_NOTIFY_OFF) => self.queue,
            (Window::Isr, 0) => {
                common.interrupt = false;
                core::mem::take(&mut self.isr).into()
            }
            (Window::Device, 0..6) => common.address.0[offset as usize].into(),
            (Window::Device, reg::NET_STATUS) => flag::LINK_UP.into(),
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, common: &mut Common, window: Window, offset: u32, value: u32) {
        if window != Window::Main {
            return;
        }
        match offset {
            reg::DEVICE_SELECT => self.device_select = value,
            reg::DRIVER_SELECT => self.driver_select = value,
            reg::DRIVER_FEATURES => {
                if let Some(word) = self.accepted.get_mut(self.driver_select as usize) {
                    *word = value;
                }
            }
            reg::STATUS if value == 0 => {
                *self = Self::default();
                common.interrupt = false;
            }
            reg::STATUS => self.set_status(value as u8),
            reg::QUEUE_SELECT => self.queue = value,
            _ => self.write_queue(offset, value),
        }
    }

    fn set_status(&mut self, status: u8) {
        let offered = self.accepted.iter().zip(Self::OFFERED).all(|(got, offer)| got & !offer == 0);
        let is_fine = offered && self.accepted[1] & flag::VERSION_1 != 0;
        self.status = if is_fine { status } else { status & !flag::FEATURES_OK };
    }

    fn write_queue(&mut self, offset: u32, value: u32) {
        let Some(queue) = ring_of(self.queue).map(|ring| &mut self.queues[ring as usize]) else {
            return;
        };
        match offset {
            reg::QUEUE_SIZE => queue.size = value,
            reg::QUEUE_ENABLE => queue.is_on = value == 1,
            reg::QUEUE_DESC..0x38 => {
                let which = ((offset - reg::QUEUE_DESC) / 8) as usize;
                let shift = (offset & 4) * 8;
                let address = &mut queue.addresses[which];
                *address = *address & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ => {}
        }
    }

    pub(super) fn step(&mut self, common: &mut Common, frames: usize) {
        if self.status & flag::DRIVER_OK == 0 {
            return;
        }
        for _ in 0..frames {
            if !self.transmit(common) {
                break;
            }
        }
        for _ in 0..frames {
            if common.inbox.is_empty() || !self.receive(common) {
                break;
            }
        }
    }

    fn take(&mut self, common: &mut Common, ring: usize) -> Option<(u16, Vec<(u64, u32)>)> {
        let queue = self.queues[ring];
        if !queue.is_on || queue.size == 0 {
            return None;
        }
        let [descriptors, offered, _] = queue.addresses;
        let index = u16::from_le_bytes(common.read(offered + 2));
        if index == queue.taken {
            return None;
        }
        let entry = u64::from(u32::from(queue.taken) % queue.size);
        let head = u16::from_le_bytes(common.read(offered + 4 + 2 * entry));
        self.queues[ring].taken = queue.taken.wrapping_add(1);
        let (mut at, mut parts) = (head, Vec::new());
        for _ in 0..queue.size {
            let raw: [u8; 16] = common.read(descriptors + u64::from(at) * 16);
            let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] = raw;
            let bus = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            parts.push((bus, u32::from_le_bytes([l0, l1, l2, l3])));
            if u16::from_le_bytes([f0, f1]) & flag::NEXT == 0 {
                break;
            }
            at = u16::from_le_bytes([n0, n1]);
        }
        Some((head, parts))
    }

    fn give_back(&mut self, common: &mut Common, ring: usize, head: u32, written: u32) {
        let queue = &mut self.queues[ring];
        let base = queue.addresses[2];
        let entry = base + 4 + 8 * u64::from(u32::from(queue.returned) % queue.size);
        queue.returned = queue.returned.wrapping_add(1);
        let index = queue.returned;
        common.write(entry, &head.to_le_bytes());
        common.write(entry + 4, &written.to_le_bytes());
        common.write(base + 2, &index.to_le_bytes());
        self.isr |= 1;
        common.interrupt = true;
    }

    fn transmit(&mut self, common: &mut Common) -> bool {
        let Some((head, parts)) = self.take(common, 1) else { return false };
        let mut bytes = Vec::new();
        for (bus, length) in parts {
            common.read_into(bus, length, &mut bytes);
        }
        let mut header: Vec<u8> = bytes.drain(..bytes.len().min(HEADER as usize)).collect();
        header.resize(HEADER as usize, 0);
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let offload = (header[0] & flag::NEEDS_CSUM != 0).then(|| TxOffload {
            network: 14,
            is_v6: bytes.get(12) == Some(&0x86),
            start: word(6),
            field: word(6) + word(8),
            is_tcp: word(8) == 16,
            cut: (header[1] != 0).then(|| Cut { size: word(4), headers: word(2) }),
        });
        common.send(bytes, offload, false);
        self.give_back(common, 1, head.into(), 0);
        true
    }

    fn receive(&mut self, common: &mut Common) -> bool {
        let Some((head, parts)) = self.take(common, 0) else { return false };
        let Some(frame) = common.inbox.pop_front() else { return false };
        let mut bytes = alloc::vec![0; HEADER as usize];
        bytes.extend(frame);
        if let Some((bus, _)) = parts.first() {
            common.write(*bus, &bytes);
        }
        let (head, written) = match common.faults.talks_nonsense {
            true => (0x1_0007, u32::MAX),
            false => (head.into(), bytes.len() as u32),
        };
        self.give_back(common, 0, head, written);
        true
    }
}
