//! Contexts of vCPUs, written and read by the offsets of arch-x86/xen.h and hvm/save.h.

use core::arch::x86_64::__cpuid;

use abi::layout::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use abi::{HvmEntry, PvEntry, Registers};

/// `sizeof(vcpu_guest_context_t)`.
const PV_BYTES: usize = 5168;
/// Offsets in it.
const FLAGS: usize = 512;
const USER_REGS: usize = 520;
const KERNEL_SS: usize = 4968;
const KERNEL_SP: usize = 4976;
const CR3: usize = 4984 + 3 * 8;
const EVENT_CALLBACK: usize = 5112;
const FAILSAFE_CALLBACK: usize = 5120;
/// `VGCF_in_kernel | VGCF_online`.
const IN_KERNEL_ONLINE: u64 = 1 << 2 | 1 << 5;
/// Interrupt enable flag; the fixed bit 1 is set by Xen.
const INTERRUPTS_ENABLED: u64 = 0x200;

/// A PV context, aligned as Xen wants it.
#[repr(C, align(16))]
pub(crate) struct PvContext {
    bytes: [u8; PV_BYTES],
}

impl PvContext {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; PV_BYTES] }
    }

    pub(crate) fn address(&mut self) -> u64 {
        self.bytes.as_mut_ptr() as u64
    }

    fn set(&mut self, offset: usize, value: u64) {
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn get(&self, offset: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[offset..offset + 8]);
        u64::from_le_bytes(word)
    }

    /// Becomes the context of a fresh start.
    pub(crate) fn enter(&mut self, entry: &PvEntry) {
        self.bytes.fill(0);
        self.set(FLAGS, IN_KERNEL_ONLINE);
        let registers = Registers {
            rip: entry.rip,
            rsp: entry.rsp,
            rsi: entry.start_info,
            rdx: entry.rung,
            rflags: INTERRUPTS_ENABLED,
            ..Registers::default()
        };
        self.set_registers(&registers);
        self.set(USER_REGS + 136, u64::from(FLAT_KERNEL_CS));
        self.set(USER_REGS + 160, u64::from(FLAT_KERNEL_SS));
        self.set(KERNEL_SS, u64::from(FLAT_KERNEL_SS));
        self.set(KERNEL_SP, entry.rsp);
        self.set(CR3, entry.page_table.0 << 12);
        // The former life may have ended with upcalls enabled: an event before the first
        // instruction, which masks them, then simply enters once more. Without an address Xen
        // would crash the domain.
        self.set(EVENT_CALLBACK, entry.rip);
        self.set(FAILSAFE_CALLBACK, entry.rip);
    }

    /// Where each register lies in `cpu_user_regs`.
    fn places(registers: &mut Registers) -> [(usize, &mut u64); 18] {
        let r = registers;
        [
            (0, &mut r.r15),
            (8, &mut r.r14),
            (16, &mut r.r13),
            (24, &mut r.r12),
            (32, &mut r.rbp),
            (40, &mut r.rbx),
            (48, &mut r.r11),
            (56, &mut r.r10),
            (64, &mut r.r9),
            (72, &mut r.r8),
            (80, &mut r.rax),
            (88, &mut r.rcx),
            (96, &mut r.rdx),
            (104, &mut r.rsi),
            (112, &mut r.rdi),
            (128, &mut r.rip),
            (144, &mut r.rflags),
            (152, &mut r.rsp),
        ]
    }

    pub(crate) fn registers(&self) -> Registers {
        let mut registers = Registers::default();
        for (offset, register) in Self::places(&mut registers) {
            *register = self.get(USER_REGS + offset);
        }
        registers
    }

    pub(crate) fn set_registers(&mut self, registers: &Registers) {
        let mut registers = *registers;
        for (offset, register) in Self::places(&mut registers) {
            self.set(USER_REGS + offset, *register);
        }
    }
}

/// Descriptor and body of the header record.
const HEADER_BYTES: usize = 8 + 24;
/// `sizeof(struct hvm_hw_cpu)`.
const CPU_BODY: usize = 1032;
/// Header record, CPU record, end record.
pub(crate) const HVM_BYTES: usize = HEADER_BYTES + 8 + CPU_BODY + 8;

/// The saved state by which a PVH vCPU starts: 32-bit protected mode, flat, no paging.
pub(crate) fn hvm_context(entry: &HvmEntry) -> [u8; HVM_BYTES] {
    /// `HVM_FILE_MAGIC`, `HVM_FILE_VERSION`.
    const FILE: [u32; 2] = [0x5438_1286, 1];
    const HEADER_TYPE: u32 = 1;
    const CPU_TYPE: u32 = 2;
    const LIMIT: u32 = u32::MAX;
    let cpu = HEADER_BYTES + 8;
    // (offset, value): descriptors, then fields of `hvm_hw_cpu`.
    let words = [
        (0, HEADER_TYPE),
        (4, (HEADER_BYTES - 8) as u32),
        (8, FILE[0]),
        (12, FILE[1]),
        // Xen compares the processor with the saving one's: it is the same.
        (24, __cpuid(1).eax),
        (HEADER_BYTES, CPU_TYPE),
        (HEADER_BYTES + 4, CPU_BODY as u32),
        (cpu + 520, entry.start_info),
        (cpu + 640, entry.rip),
        (cpu + 648, 2),
        // CR0: protected mode, and the extension type that is fixed to 1.
        (cpu + 656, 0x11),
        (cpu + 720, 0xffff_0ff0),
        (cpu + 728, 0x400),
        // Limits of cs, ds, es, ss, tr.
        (cpu + 768, LIMIT),
        (cpu + 772, LIMIT),
        (cpu + 776, LIMIT),
        (cpu + 788, LIMIT),
        (cpu + 792, 0x67),
        // Access rights: code, data, data, stack, a busy 32-bit task.
        (cpu + 888, 0xc9b),
        (cpu + 892, 0xc93),
        (cpu + 896, 0xc93),
        (cpu + 908, 0xc93),
        (cpu + 912, 0x8b),
    ];
    let mut bytes = [0; HVM_BYTES];
    for (offset, word) in words {
        bytes[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(word));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::Frame;

    #[test]
    fn registers_come_back_as_they_were_set() {
        let mut registers = Registers::default();
        for (index, (_, register)) in PvContext::places(&mut registers).into_iter().enumerate() {
            *register = 0x1000 + index as u64;
        }
        let mut context = PvContext::new();
        context.set_registers(&registers);
        assert_eq!(context.registers(), registers);
    }

    #[test]
    fn an_entry_says_where_to_start() {
        let mut context = PvContext::new();
        context.enter(&PvEntry {
            rip: 0x10_0000,
            rsp: 0x20_0000,
            start_info: 0x30_0000,
            rung: 2,
            page_table: Frame(0x1234),
        });
        let registers = context.registers();
        assert_eq!((registers.rip, registers.rsi, registers.rdx), (0x10_0000, 0x30_0000, 2));
        assert_eq!(context.get(CR3), 0x123_4000);
    }
}
