//! Building and making `domctl` calls.

use abi::hypercall::{Call, hypercall, outcome};
use abi::layout::{DOMCTL_VERSION, DomctlArgument};
use abi::{DomId, XenError};

use crate::upcall;

/// The operations that the orchestrator uses (`XEN_DOMCTL_*`, domctl.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Operation {
    Create = 1,
    Destroy = 2,
    Pause = 3,
    Unpause = 4,
    GetInfo = 5,
    MaxMemory = 11,
    SetVcpuContext = 12,
    GetVcpuContext = 13,
    MaxVcpus = 15,
    Scheduler = 16,
    IrqPermission = 19,
    IomemPermission = 20,
    Resume = 27,
    SetHvmContext = 34,
    SetTsc = 60,
    SetPagingPool = 86,
}

/// One call; its union is filled and read by the offsets of domctl.h.
pub(crate) struct Domctl(DomctlArgument);

impl Domctl {
    pub(crate) fn new(operation: Operation, id: DomId) -> Self {
        Self(DomctlArgument {
            cmd: operation as u32,
            interface_version: DOMCTL_VERSION,
            domain: id.0,
            pad: [0; 3],
            u: [0; 128],
        })
    }

    pub(crate) fn u32(mut self, offset: usize, value: u32) -> Self {
        self.0.u[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u64(mut self, offset: usize, value: u64) -> Self {
        self.0.u[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn get_u32(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.0.u[offset..offset + 4]);
        u32::from_le_bytes(word)
    }

    pub(crate) fn get_u64(&self, offset: usize) -> u64 {
        u64::from(self.get_u32(offset)) | u64::from(self.get_u32(offset + 4)) << 32
    }

    /// The domain that Xen answered about.
    pub(crate) fn domain(&self) -> DomId {
        DomId(self.0.domain)
    }

    fn arguments(&mut self) -> [u64; 5] {
        [&raw mut self.0 as u64, 0, 0, 0, 0]
    }

    /// # Safety
    /// Every address in the union must be valid for what the operation does with it, and the
    /// operation must not take memory away from Rust.
    pub(crate) unsafe fn call(&mut self) -> Result<(), XenError> {
        let arguments = self.arguments();
        // SAFETY: Xen reads and writes the argument; the rest is the caller's duty.
        outcome(unsafe { hypercall(Call::Domctl, arguments) }).map(|_| ())
    }

    /// The same with upcalls enabled.
    ///
    /// # Safety
    /// As for [`Domctl::call`].
    pub(crate) unsafe fn call_long(&mut self, during: &mut dyn FnMut()) -> Result<(), XenError> {
        let arguments = self.arguments();
        // SAFETY: As in `call`; `during` cannot reach `self`.
        outcome(unsafe { upcall::long(Call::Domctl, arguments, during) }).map(|_| ())
    }
}
