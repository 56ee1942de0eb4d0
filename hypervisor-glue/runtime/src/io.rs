//! Ports of the machine: QEMU's exit device, the serial line of the self-test.

use core::arch::asm;

use abi::PciAddress;

/// QEMU's `isa-debug-exit` device: a byte `v` ends the machine with exit code `v << 1 | 1`.
const EXIT_PORT: u16 = 0xf4;
/// First serial port, and the port where QEMU and Xen listen for debug text.
const SERIAL_PORTS: [u16; 2] = [0x3f8, 0xe9];

/// Writes a byte to an I/O port.
///
/// # Safety
/// 1. The privilege level must allow it (`PHYSDEVOP_set_iopl` for a PV domain).
/// 2. The device behind the port must not touch memory because of it.
unsafe fn out(port: u16, value: u8) {
    // SAFETY: The caller's duty.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}

/// Writes four bytes to an I/O port.
///
/// # Safety
/// As for [`out`].
unsafe fn out_u32(port: u16, value: u32) {
    // SAFETY: The caller's duty.
    unsafe {
        asm!(
            "out dx, eax",
            in("dx") port,
            in("eax") value,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// Reads four bytes from an I/O port.
///
/// # Safety
/// As for [`out`].
unsafe fn in_u32(port: u16) -> u32 {
    let value;
    // SAFETY: The caller's duty.
    unsafe {
        asm!(
            "in eax, dx",
            in("dx") port,
            out("eax") value,
            options(nomem, nostack, preserves_flags),
        );
    }
    value
}

/// Where the next access to configuration space goes, and that access (PCI 3.0, 3.2.2.3.2).
const PCI_ADDRESS_PORT: u16 = 0xcf8;
const PCI_DATA_PORT: u16 = 0xcfc;

fn pci_select(at: PciAddress, offset: u8) -> u32 {
    const ENABLE: u32 = 1 << 31;
    let (bus, device, function) = (at.bus.into(), at.device.into(), at.function.into());
    let [bus, device, function]: [u32; 3] = [bus, device, function];
    ENABLE | bus << 16 | (device & 31) << 11 | (function & 7) << 8 | u32::from(offset & !3)
}

/// Reads four bytes of PCI configuration space.
///
/// # Safety
/// Port I/O must be allowed (see [`out`]).
pub(crate) unsafe fn pci_read(at: PciAddress, offset: u8) -> u32 {
    // SAFETY: 1. is the caller's duty. 2. Reading configuration space touches no memory.
    unsafe {
        out_u32(PCI_ADDRESS_PORT, pci_select(at, offset));
        in_u32(PCI_DATA_PORT)
    }
}

/// Writes four bytes of PCI configuration space.
///
/// # Safety
/// 1. Port I/O must be allowed (see [`out`]).
/// 2. The device must not touch memory of ours because of it.
pub(crate) unsafe fn pci_write(at: PciAddress, offset: u8, value: u32) {
    // SAFETY: The caller's duty.
    unsafe {
        out_u32(PCI_ADDRESS_PORT, pci_select(at, offset));
        out_u32(PCI_DATA_PORT, value);
    }
}

/// Ends the machine under QEMU; returns where there is no such device.
///
/// # Safety
/// Port I/O must be allowed (see [`out`]).
pub(crate) unsafe fn exit_qemu(code: u8) {
    // SAFETY: 1. is the caller's duty. 2. The device stops the machine; without it nothing listens.
    unsafe { out(EXIT_PORT, code) }
}

/// Writes text to the first serial port of a bare machine.
///
/// # Safety
/// Port I/O must be allowed (see [`out`]).
pub(crate) unsafe fn serial_write(text: &[u8]) {
    for port in SERIAL_PORTS {
        for byte in text {
            // SAFETY: 1. is the caller's duty. 2. A serial line touches no memory. QEMU takes
            // bytes as fast as they come, so the transmitter needs no waiting for.
            unsafe { out(port, *byte) }
        }
    }
}
