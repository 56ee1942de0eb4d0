//! Ports of the machine: QEMU's exit device, the serial line of the self-test.

use core::arch::asm;

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
