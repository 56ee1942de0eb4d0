//! The NIC that a unit drives: found on the PCI bus, given to the unit's domain, silenced before
//! anything happens to that domain's memory.
//!
//! There is no driver here. Of each model it is known where its registers are and which one write
//! resets it; the rest is the unit's business. A reset device neither reads nor writes memory, and
//! its Bus Master bit (PCI 3.0, 6.2.2) stays clear until the unit's next life begins.

use core::fmt::{self, Write};

use abi::{Control, DomId, Frame, PAGE_SIZE, PciAddress, Width, XenError};
use system::NicModel;

/// Buses that are searched: the first one and what lies behind bridges on the way. A search reads
/// 32 words per bus.
const BUSES_MAX: usize = 16;
/// Devices on a bus.
const DEVICES: u8 = 32;
/// Capabilities of one function at most: each has at least four of its 192 bytes.
const CAPABILITIES_MAX: usize = 48;

/// Places in configuration space (PCI 3.0, 6.1 and 6.7).
mod place {
    pub const ID: u8 = 0x00;
    pub const COMMAND: u8 = 0x04;
    pub const HEADER: u8 = 0x0c;
    pub const BARS: u8 = 0x10;
    pub const BUSES: u8 = 0x18;
    pub const CAPABILITIES: u8 = 0x34;
    pub const INTERRUPT: u8 = 0x3c;
}

/// Command: answers memory accesses.
const MEMORY: u32 = 1 << 1;
/// Command: may access memory itself.
const BUS_MASTER: u32 = 1 << 2;
/// Status, seen in the same word: there is a list of capabilities.
const HAS_CAPABILITIES: u32 = 1 << 20;

/// Bytes of an 82574's registers (data sheet, 10.1.1), the control register and its reset bit.
const E1000E_BYTES: u32 = 128 << 10;
const E1000E_RESET: (u32, u32) = (0, 1 << 26);
/// virtio's device status within the common configuration (virtio 1.2, 4.1.4.3); 0 resets.
const VIRTIO_STATUS: u32 = 0x14;

/// Why a NIC that is there cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicError {
    /// Its registers have no address: the firmware did not assign one.
    NoAddress(PciAddress),
    /// It is no modern virtio device, or its registers are spread over several ranges.
    NoWindows(PciAddress),
    /// Xen uses an IOMMU: there a domain gets a device in another way.
    Iommu,
    /// Xen does not say whether it uses one.
    Xen(XenError),
}

impl fmt::Display for NicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress(at) => write!(f, "{at} has no address; the firmware should assign one"),
            Self::NoWindows(at) => write!(
                f,
                "{at} does not show virtio 1.0's registers in one range; QEMU: disable-legacy=on"
            ),
            Self::Iommu => f.write_str("Xen uses an IOMMU; start it with iommu=off"),
            Self::Xen(error) => write!(f, "Xen does not say whether it has an IOMMU: {error}"),
        }
    }
}

/// A NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Where it is.
    pub at: PciAddress,
    /// What it is.
    pub model: NicModel,
    /// Machine address of its registers, and their bytes.
    registers: (u64, u32),
    /// Its line at the interrupt controller.
    line: u8,
    /// Of virtio: where common configuration, interrupt status, device configuration and
    /// notification begin, and the distance of notifications.
    windows: [u32; 5],
}

impl fmt::Display for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}, line {}", name(self.model), self.at, self.line)
    }
}

const fn name(model: NicModel) -> &'static str {
    match model {
        NicModel::E1000e => "e1000e",
        NicModel::VirtioNet => "virtio-net",
    }
}

/// Device and vendor, as the first word of configuration space holds them.
const fn id(model: NicModel) -> u32 {
    match model {
        NicModel::E1000e => 0x10d3_8086,
        NicModel::VirtioNet => 0x1041_1af4,
    }
}

/// The first NIC of the machine that is one of `models`, in their order.
///
/// # Errors
/// It cannot be used.
pub fn find<C: Control>(xen: &C, models: &[NicModel]) -> Result<Option<Nic>, NicError> {
    for model in models {
        if let Some(at) = search(xen, id(*model)) {
            if xen.has_iommu().map_err(NicError::Xen)? {
                return Err(NicError::Iommu);
            }
            return Nic::describe(xen, at, *model).map(Some);
        }
    }
    Ok(None)
}

/// Looks for a function on all buses.
fn search<C: Control>(xen: &C, wanted: u32) -> Option<PciAddress> {
    let mut buses = heapless::Vec::<u8, BUSES_MAX>::new();
    let _ = buses.push(0);
    let mut next = 0;
    while let Some(bus) = buses.get(next).copied() {
        next += 1;
        for device in 0..DEVICES {
            let at = PciAddress { bus, device, function: 0 };
            let found = xen.pci_read(at, place::ID);
            if found == wanted {
                return Some(at);
            }
            let is_bridge = found != u32::MAX && xen.pci_read(at, place::HEADER) >> 16 & 0x7f == 1;
            if is_bridge {
                let behind = (xen.pci_read(at, place::BUSES) >> 8) as u8;
                if !buses.contains(&behind) {
                    // Buses beyond the bound are not searched.
                    let _ = buses.push(behind);
                }
            }
        }
    }
    None
}

/// A virtio capability: kind, range, offset, length, and the word behind them.
type Window = [u32; 5];

impl Nic {
    fn describe<C: Control>(xen: &C, at: PciAddress, model: NicModel) -> Result<Self, NicError> {
        let line = xen.pci_read(at, place::INTERRUPT) as u8;
        let (bar, len, windows) = match model {
            NicModel::E1000e => (0, E1000E_BYTES, [0; 5]),
            NicModel::VirtioNet => virtio(xen, at).ok_or(NicError::NoWindows(at))?,
        };
        let base = base(xen, at, bar).ok_or(NicError::NoAddress(at))?;
        Ok(Self { at, model, registers: (base, len), line, windows })
    }

    /// Ends all that the device does: it is reset, and reaches no memory until
    /// [`Nic::release`].
    ///
    /// # Errors
    /// What Xen says about its registers.
    pub fn silence<C: Control>(&self, xen: &C) -> Result<(), XenError> {
        xen.pci_write(self.at, place::COMMAND, MEMORY);
        let (width, (offset, value)) = match self.model {
            NicModel::E1000e => (Width::Word, E1000E_RESET),
            NicModel::VirtioNet => (Width::Byte, (self.windows[0] + VIRTIO_STATUS, 0)),
        };
        xen.write_register(self.registers.0 + u64::from(offset), width, value)
    }

    /// Lets the device, which is reset, access memory again.
    pub fn release<C: Control>(&self, xen: &C) {
        xen.pci_write(self.at, place::COMMAND, MEMORY | BUS_MASTER);
    }

    /// Gives a new domain the right to the registers and the interrupt.
    ///
    /// # Errors
    /// What Xen says.
    pub fn give<C: Control>(&self, xen: &C, to: DomId) -> Result<(), XenError> {
        let (first, pages) = self.frames();
        xen.allow_device_memory(to, first, u64::from(pages))?;
        xen.give_interrupt(to, u32::from(self.line))
    }

    fn frames(&self) -> (Frame, u32) {
        let (base, len) = self.registers;
        (Frame(base / PAGE_SIZE as u64), len.div_ceil(PAGE_SIZE as u32))
    }

    /// Tells the unit: ` nic=MODEL,FRAME,PAGES,LINE`, and for virtio its windows; in hexadecimal.
    ///
    /// # Errors
    /// The line is full.
    pub fn tell(&self, line: &mut impl Write) -> fmt::Result {
        let (first, pages) = self.frames();
        write!(line, " nic={},{:x},{pages:x},{:x}", name(self.model), first.0, self.line)?;
        if self.model == NicModel::VirtioNet {
            self.windows.iter().try_for_each(|window| write!(line, ",{window:x}"))?;
        }
        Ok(())
    }
}

/// Where range `bar` of a function begins; `None`: nowhere, or it is a range of ports.
fn base<C: Control>(xen: &C, at: PciAddress, bar: u8) -> Option<u64> {
    const IS_PORTS: u32 = 1;
    const IS_64_BITS: u32 = 2 << 1;
    let offset = place::BARS + 4 * bar;
    let low = xen.pci_read(at, offset);
    if low & IS_PORTS != 0 {
        return None;
    }
    let high = if low & IS_64_BITS != 0 { xen.pci_read(at, offset + 4) } else { 0 };
    let base = u64::from(high) << 32 | u64::from(low & !0xf);
    (base != 0).then_some(base)
}

/// virtio's windows from its capabilities: the range they are in, its bytes, and where they begin.
fn virtio<C: Control>(xen: &C, at: PciAddress) -> Option<(u8, u32, [u32; 5])> {
    const COMMON: u32 = 1;
    const NOTIFY: u32 = 2;
    const ISR: u32 = 3;
    const DEVICE: u32 = 4;
    let mut found = heapless::Vec::<Window, CAPABILITIES_MAX>::new();
    capabilities(xen, at, &mut found);
    let of = |kind| found.iter().find(|window| window[0] == kind);
    let all = [of(COMMON)?, of(ISR)?, of(DEVICE)?, of(NOTIFY)?];
    let bar = all[0][1];
    let is_one = all.iter().all(|window| window[1] == bar) && bar < 6;
    let len = all.iter().map(|window| window[2].saturating_add(window[3])).max()?;
    let [common, isr, device, notify] = all.map(|window| window[2]);
    (is_one && len <= E1000E_BYTES).then_some((
        bar as u8,
        len,
        [common, isr, device, notify, all[3][4]],
    ))
}

/// Reads virtio's capabilities (virtio 1.2, 4.1.4).
fn capabilities<C: Control>(
    xen: &C,
    at: PciAddress,
    found: &mut heapless::Vec<Window, CAPABILITIES_MAX>,
) {
    const VENDOR: u32 = 9;
    if xen.pci_read(at, place::COMMAND) & HAS_CAPABILITIES == 0 {
        return;
    }
    let mut next = xen.pci_read(at, place::CAPABILITIES) as u8 & !3;
    for _ in 0..CAPABILITIES_MAX {
        if next < 0x40 {
            return;
        }
        let head = xen.pci_read(at, next);
        if head & 0xff == VENDOR {
            let word = |index: u8| xen.pci_read(at, next.saturating_add(4 * index));
            // There is room for as many as are looked at.
            let _ = found.push([head >> 24, word(1) & 0xff, word(2), word(3), word(4)]);
        }
        next = (head >> 8) as u8 & !3;
    }
}
