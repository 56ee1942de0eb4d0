//! A fake 82574L.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::Common;
use crate::e1000e::reg;
use crate::{Cut, RingId, TxOffload};

#[derive(Debug, Default)]
pub(super) struct State {
    registers: BTreeMap<u32, u32>,
    causes: u32,
    mask: u32,
    context: Option<TxOffload>,
    cut: Option<Cut>,
    partial: Vec<u8>,
}

impl State {
    fn get(&self, offset: u32) -> u32 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    fn block(ring: RingId) -> u32 {
        if ring == RingId::Rx { reg::RX_RING } else { reg::TX_RING }
    }

    fn ring(&self, ring: RingId) -> (u64, u32, u32, u32) {
        let at = |offset| self.get(Self::block(ring) + offset);
        let bus = u64::from(at(reg::RING_LOW)) | u64::from(at(reg::RING_HIGH)) << 32;
        let size = (at(reg::RING_LENGTH) / 16).max(1);
        (bus, size, at(reg::RING_HEAD) % size, at(reg::RING_TAIL) % size)
    }

    fn raise(&mut self, common: &mut Common, cause: u32) {
        self.causes |= cause;
        common.interrupt = self.causes & self.mask != 0;
    }

    pub(super) fn read(&mut self, common: &mut Common, offset: u32) -> u32 {
        match offset {
            reg::ICR => {
                common.interrupt = false;
                core::mem::take(&mut self.causes)
            }
            reg::STATUS => {
                let is_up = self.get(reg::CTRL) & reg::CTRL_LINK_UP != 0;
                if is_up { reg::STATUS_LINK } else { 0 }
            }
            reg::RAL => {
                let [a, b, c, d, ..] = common.address.0;
                u32::from_le_bytes([a, b, c, d])
            }
            reg::RAH => {
                let [.., e, f] = common.address.0;
                u32::from(u16::from_le_bytes([e, f])) | reg::RAH_VALID
            }
            _ => self.get(offset),
        }
    }

    pub(super) fn write(&mut self, common: &mut Common, offset: u32, value: u32) {
        match offset {
            reg::CTRL if value & reg::CTRL_RESET != 0 => {
                *self = Self::default();
                common.interrupt = false;
            }
            reg::IMS => self.mask |= value,
            reg::IMC => self.mask &= !value,
            reg::RAL => common.address.0[..4].copy_from_slice(&value.to_le_bytes()),
            reg::RAH => common.address.0[4..].copy_from_slice(&value.to_le_bytes()[..2]),
            _ => {
                self.registers.insert(offset, value);
            }
        }
        if matches!(offset, reg::IMS | reg::IMC) {
            common.interrupt = self.causes & self.mask != 0;
        }
    }

    pub(super) fn step(&mut self, common: &mut Common, frames: usize) {
        if self.get(reg::TCTL) & 1 << 1 != 0 {
            self.transmit(common, frames);
        }
        if self.get(reg::RCTL) & 1 << 1 != 0 {
            self.receive(common, frames);
        }
    }

    fn transmit(&mut self, common: &mut Common, frames: usize) {
        let (bus, size, mut head, tail) = self.ring(RingId::Tx);
        let mut sent = 0;
        while head != tail && sent < frames {
            let raw: [u8; 16] = common.read(bus + u64::from(head) * 16);
            let word = u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]);
            let command = raw[11];
            if word >> 20 & 0xf == 0 {
                self.context = Some(TxOffload {
                    network: raw[0].into(),
                    is_v6: command & reg::TUCMD_V4 == 0,
                    start: raw[4].into(),
                    field: raw[5].into(),
                    is_tcp: command & reg::TUCMD_TCP != 0,
                    cut: None,
                });
                let size = u16::from_le_bytes([raw[14], raw[15]]);
                self.cut = Some(Cut { size, headers: raw[13].into() });
            } else {
                let address = u64::from_le_bytes([
                    raw[0], raw[1], raw[2], raw[3], raw[4], raw[5], raw[6], raw[7],
                ]);
                common.read_into(address, word & 0x000f_ffff, &mut self.partial);
                if command & reg::DCMD_END != 0 {
                    let bytes = core::mem::take(&mut self.partial);
                    let wanted = raw[13] & reg::POPTS_TRANSPORT != 0;
                    let cut = self.cut.filter(|_| command & reg::DCMD_CUT != 0);
                    let offload = self.context.filter(|_| wanted);
                    let offload = offload.map(|offload| TxOffload { cut, ..offload });
                    common.send(bytes, offload, true);
                    sent += 1;
                    self.raise(common, 1);
                }
                common.write(bus + u64::from(head) * 16 + 12, &[reg::TX_DONE]);
            }
            head = (head + 1) % size;
            self.registers.insert(reg::TX_RING + reg::RING_HEAD, head);
        }
    }

    fn receive(&mut self, common: &mut Common, frames: usize) {
        let (bus, size, mut head, tail) = self.ring(RingId::Rx);
        for _ in 0..frames {
            if head == tail {
                return;
            }
            let Some(frame) = common.inbox.pop_front() else { return };
            let at = bus + u64::from(head) * 16;
            let address: [u8; 8] = common.read(at);
            common.write(u64::from_le_bytes(address), &frame);
            let length = if common.faults.talks_nonsense { 0xfff0 } else { frame.len() as u16 };
            let [low, high] = length.to_le_bytes();
            common.write(at + 8, &[low, high, 0, 0, reg::RX_DONE | reg::RX_END, 0]);
            head = (head + 1) % size;
            self.registers.insert(reg::RX_RING + reg::RING_HEAD, head);
            self.raise(common, 1 << 7);
        }
    }
}
