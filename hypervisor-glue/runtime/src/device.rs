//! Devices of the machine, as a driver domain uses them: registers, memory for DMA, interrupts, and
//! copies between that memory and pages that guests granted.

use alloc::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use alloc::vec::Vec;

use abi::hypercall::{Call, hypercall, outcome};
use abi::layout::{
    BindPirq, CopyEnd, CopyGrant, MapPirq, SYSCTL_VERSION, SetupGsi, SysctlArgument,
};
use abi::{DomId, Frame, GrantRef, PAGE_SIZE, Port, PortStatus, Xen, XenError};

use crate::hypervisor::{event_op, event_words};
use crate::span::{Span, shared_by_span};
use crate::{Hypervisor, paging, window};

/// Ports searched for an interrupt that a former life bound: no unit has more ports.
const PORTS_SEARCHED: u32 = 256;
/// Copies per hypercall: 2.5 KiB of stack.
const COPIES: usize = 64;

/// Registers of a device, mapped uncached at a fixed place of the window, where they stay.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRegisters {
    base: *mut u8,
    len: usize,
}

impl DeviceRegisters {
    fn at(&self, offset: u32, len: usize) -> *mut u8 {
        let offset = offset as usize;
        let fits = offset.is_multiple_of(len) && offset + len <= self.len;
        assert!(fits, "no register of {len} bytes at {offset:#x}");
        self.base.wrapping_add(offset)
    }

    /// Reads 8 bits.
    pub fn read8(&self, offset: u32) -> u8 {
        // SAFETY: Mapped for the life of the domain, in range and aligned (`at`); device memory
        // holds no Rust object.
        unsafe { self.at(offset, 1).read_volatile() }
    }

    /// Reads 16 bits.
    pub fn read16(&self, offset: u32) -> u16 {
        // SAFETY: As in `read8`.
        unsafe { self.at(offset, 2).cast::<u16>().read_volatile() }
    }

    /// Reads 32 bits.
    pub fn read32(&self, offset: u32) -> u32 {
        // SAFETY: As in `read8`.
        unsafe { self.at(offset, 4).cast::<u32>().read_volatile() }
    }

    /// Writes 8 bits.
    pub fn write8(&self, offset: u32, value: u8) {
        // SAFETY: As in `read8`. What a device does because of it is bounded by the addresses that
        // it was given: whoever writes those is trusted.
        unsafe { self.at(offset, 1).write_volatile(value) }
    }

    /// Writes 16 bits.
    pub fn write16(&self, offset: u32, value: u16) {
        // SAFETY: As in `write8`.
        unsafe { self.at(offset, 2).cast::<u16>().write_volatile(value) }
    }

    /// Writes 32 bits.
    pub fn write32(&self, offset: u32, value: u32) {
        // SAFETY: As in `write8`.
        unsafe { self.at(offset, 4).cast::<u32>().write_volatile(value) }
    }
}

/// Pages of our own that a device may read and write: never Rust's, and never given back.
#[derive(Clone, Copy, Debug)]
pub struct DmaMemory {
    span: Span,
}

shared_by_span!(DmaMemory);

impl DmaMemory {
    /// The address by which a device finds each page.
    pub fn bus_addresses(&self) -> Vec<u64> {
        let pages = self.span.address()..self.span.address() + fabric::SharedMemory::len(self);
        pages.step_by(PAGE_SIZE).map(|page| paging::machine_frame(page as u64) << 12).collect()
    }
}

/// Which way a [`GrantCopy`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// Out of the guest's page.
    FromGuest,
    /// Into the guest's page.
    ToGuest,
}

/// A copy between a page that a guest granted and our memory for DMA. Neither side crosses a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantCopy {
    /// Which way.
    pub direction: CopyDirection,
    /// Who granted the page.
    pub guest: DomId,
    /// Its reference.
    pub grant: GrantRef,
    /// First byte in the granted page.
    pub guest_offset: u16,
    /// First byte in our memory.
    pub offset: u32,
    /// Bytes.
    pub length: u16,
}

impl GrantCopy {
    /// The form in which Xen takes it. `None`: our side is not within one page of `memory`.
    fn argument(&self, memory: &DmaMemory) -> Option<CopyGrant> {
        /// `GNTCOPY_source_gref`, `GNTCOPY_dest_gref`.
        const BY_REFERENCE: [u16; 2] = [1, 2];
        let (page, within) = (self.offset as usize / PAGE_SIZE, self.offset as usize % PAGE_SIZE);
        let is_within = within + usize::from(self.length) <= PAGE_SIZE;
        if !is_within || (page + 1) * PAGE_SIZE > fabric::SharedMemory::len(memory) {
            return None;
        }
        let frame = paging::machine_frame((memory.span.address() + page * PAGE_SIZE) as u64);
        let ours = CopyEnd { place: frame, domid: DomId::SELF.0, offset: within as u16 };
        let place = self.grant.0.into();
        let theirs = CopyEnd { place, domid: self.guest.0, offset: self.guest_offset };
        let (source, dest, flags) = match self.direction {
            CopyDirection::FromGuest => (theirs, ours, BY_REFERENCE[0]),
            CopyDirection::ToGuest => (ours, theirs, BY_REFERENCE[1]),
        };
        Some(CopyGrant { source, dest, len: self.length, flags, status: 0 })
    }
}

impl Hypervisor {
    /// Maps the registers of the one device that this domain was given, `count` pages from machine
    /// frame `first` on. A later life maps them again at the same place.
    ///
    /// # Errors
    /// What Xen says, when the domain may not use these frames.
    ///
    /// # Panics
    /// When there are more pages than the window keeps for them.
    pub fn map_registers(&self, first: Frame, count: usize) -> Result<DeviceRegisters, XenError> {
        for page in 0..count {
            let value = (first.0 + page as u64) << 12 | paging::UNCACHED;
            let address = window::address(window::device_slot(page));
            // SAFETY: These slots hold device registers and nothing else, ever.
            unsafe { paging::set_leaf(address, value) }?;
        }
        let address = window::address(window::device_slot(0)) as usize;
        let base = core::ptr::with_exposed_provenance_mut(address);
        Ok(DeviceRegisters { base, len: count * PAGE_SIZE })
    }

    /// Takes `pages` zeroed pages of our memory for DMA, for the rest of this life. The next life
    /// may start with the device stopped only: nothing else keeps these pages.
    pub fn dma_memory(&self, pages: usize) -> DmaMemory {
        let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE)
            .expect("whole pages make a layout");
        // SAFETY: The layout is not empty (a device needs memory).
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: 1. and 2. Never freed, and never Rust's again. 3. Page-aligned.
        DmaMemory { span: unsafe { Span::new(base, pages * PAGE_SIZE) } }
    }

    /// Executes copies, in order. `worked` has one entry per copy afterwards.
    pub fn copy_grants(&self, memory: &DmaMemory, copies: &[GrantCopy], worked: &mut Vec<bool>) {
        /// `GNTTABOP_copy`.
        const COPY: u64 = 5;
        worked.clear();
        for batch in copies.chunks(COPIES) {
            let mut arguments = [CopyGrant::default(); COPIES];
            let mut is_ours = [true; COPIES];
            for ((argument, ours), copy) in arguments.iter_mut().zip(&mut is_ours).zip(batch) {
                match copy.argument(memory) {
                    Some(made) => *argument = made,
                    // A copy of nothing, from us to us.
                    None => {
                        *ours = false;
                        argument.source.domid = DomId::SELF.0;
                        argument.dest.domid = DomId::SELF.0;
                    }
                }
            }
            let list = arguments.as_mut_ptr() as u64;
            // SAFETY: Xen reads and writes the arguments. What it writes beyond lies in `memory`,
            // which is no Rust memory, or in a guest's page.
            let result =
                unsafe { hypercall(Call::GrantTableOp, [COPY, list, batch.len() as u64, 0, 0]) };
            let is_done = outcome(result).is_ok();
            let each = arguments.iter().zip(is_ours).take(batch.len());
            worked.extend(each.map(|(argument, ours)| is_done && ours && argument.status == 0));
        }
    }

    /// Binds the interrupt line of our device, or finds it bound by a former life.
    ///
    /// # Errors
    /// What Xen says.
    pub fn bind_line(&self, line: u32) -> Result<Port, XenError> {
        /// `EVTCHNOP_bind_pirq`; `BIND_PIRQ__WILL_SHARE`.
        const BIND: u64 = 2;
        const WILL_SHARE: u32 = 1;
        let bound = PortStatus::Pirq(line);
        let mut ports = (1..PORTS_SEARCHED).map(Port);
        if let Some(port) = ports.find(|port| self.port_status(DomId::SELF, *port) == Ok(bound)) {
            self.listen(port);
            return Ok(port);
        }
        let mut bind = BindPirq { pirq: line, flags: WILL_SHARE, port: 0 };
        // SAFETY: The operation's structure.
        unsafe { event_op(BIND, &mut bind) }?;
        event_words().unmask(bind.port);
        Ok(Port(bind.port))
    }

    /// Lets the next interrupt of the line come.
    pub fn end_interrupt(&self, line: u32) {
        /// `PHYSDEVOP_eoi`.
        const EOI: u64 = 12;
        let mut line = line;
        // SAFETY: `physdev_eoi` is one word, the line. A line that is not ours is refused.
        let _ = unsafe { physdev_op(EOI, &mut line) };
    }

    /// Keeps the next interrupts of a port back until [`Xen::listen`].
    pub fn silence(&self, port: Port) {
        event_words().silence(port.0);
    }
}

/// One `PHYSDEVOP_*` call.
///
/// # Safety
/// `argument` must be the structure that the operation documents.
unsafe fn physdev_op<T>(operation: u64, argument: &mut T) -> Result<(), XenError> {
    let arguments = [operation, &raw mut *argument as u64, 0, 0, 0];
    // SAFETY: Xen reads and writes the structure, which is the right one (the caller's duty).
    outcome(unsafe { hypercall(Call::PhysdevOp, arguments) }).map(|_| ())
}

/// Sets a line of the interrupt controller up as PCI interrupts are: by level, active low.
pub(crate) fn open_line(line: u32) -> Result<(), XenError> {
    /// `PHYSDEVOP_setup_gsi`.
    const SETUP: u64 = 21;
    let mut setup = SetupGsi { gsi: line as i32, triggering: 1, polarity: 1 };
    // SAFETY: The operation's structure.
    match unsafe { physdev_op(SETUP, &mut setup) } {
        // It is set up already.
        Err(XenError::Exists) => Ok(()),
        other => other,
    }
}

/// Makes a line known to a domain, under its own number.
pub(crate) fn map_line(id: DomId, line: u32) -> Result<(), XenError> {
    /// `PHYSDEVOP_map_pirq`; `MAP_PIRQ_TYPE_GSI`.
    const MAP: u64 = 13;
    const BY_LINE: i32 = 1;
    let number = line as i32;
    let mut map = MapPirq {
        domid: id.0,
        kind: BY_LINE,
        index: number,
        pirq: number,
        bus: 0,
        devfn: 0,
        entry_nr: 0,
        table_base: 0,
    };
    // SAFETY: The operation's structure.
    unsafe { physdev_op(MAP, &mut map) }
}

/// Whether Xen can give devices to domains behind an IOMMU (`XEN_SYSCTL_PHYSCAP_directio`).
pub(crate) fn has_iommu() -> Result<bool, XenError> {
    /// `XEN_SYSCTL_physinfo`, the place of its capabilities, and the bit.
    const PHYSINFO: u32 = 3;
    const CAPABILITIES: usize = 7;
    const DIRECT_IO: u32 = 1 << 2;
    Ok(sysctl(PHYSINFO, [])?[CAPABILITIES] & DIRECT_IO != 0)
}

/// An operation on the whole system whose argument holds no address; answers what Xen made of it.
pub(crate) fn sysctl<const N: usize>(cmd: u32, words: [u32; N]) -> Result<[u32; 32], XenError> {
    let mut call = SysctlArgument { cmd, interface_version: SYSCTL_VERSION, u: [0; 32] };
    call.u[..N].copy_from_slice(&words);
    // SAFETY: Xen reads and writes the argument; the callers' operations follow no address in it.
    outcome(unsafe { hypercall(Call::Sysctl, [&raw mut call as u64, 0, 0, 0, 0]) })?;
    Ok(call.u)
}
