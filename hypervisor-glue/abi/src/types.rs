//! Small values that cross the hypercall boundary.

use core::fmt;

/// Bytes in a page (`XEN_PAGE_SIZE`, x86).
pub const PAGE_SIZE: usize = 4096;

/// A domain's number (`domid_t`, xen.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(pub u16);

impl DomId {
    /// The initial domain: our orchestrator.
    pub const ORCHESTRATOR: Self = Self(0);
    /// The calling domain (`DOMID_SELF`).
    pub const SELF: Self = Self(0x7ff0);
    /// The first reserved number (`DOMID_FIRST_RESERVED`): ordinary domains lie below it.
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.0)
    }
}

/// An event channel port of the calling domain (`evtchn_port_t`, event_channel.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u32);

/// An entry of a granter's grant table (`grant_ref_t`, grant_table.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantRef(pub u32);

/// A page frame number: a machine frame (MFN) for PV domains, a guest frame (GFN) for PVH ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Frame(pub u64);

/// A PCI function: where its configuration space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Bus.
    pub bus: u8,
    /// Device on the bus, below 32.
    pub device: u8,
    /// Function of the device, below 8.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// Bytes of one access to a device register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    Byte,
    /// Four bytes.
    Word,
}

/// What a mapping or a grant allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// A virtual interrupt (`VIRQ_*`, xen.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Virq {
    /// The one-shot timer of the vCPU.
    Timer = 0,
    /// A byte arrived on Xen's console.
    Console = 2,
    /// A domain shut down, crashed or is gone; it coalesces, so scan all domains.
    DomExc = 3,
}

/// How a domain asks to be shut down, or was (`SHUTDOWN_*`, sched.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// It stopped cleanly.
    PowerOff,
    /// It wants to be started again.
    Reboot,
    /// It saved its state.
    Suspend,
    /// It, or Xen on its behalf, found it broken.
    Crash,
    /// Its watchdog expired.
    Watchdog,
    /// It asks for a soft reset.
    SoftReset,
    /// A code that the public header does not name.
    Unknown(u8),
}

impl ShutdownReason {
    /// The reason with the given `SHUTDOWN_*` code.
    pub fn from_code(code: u8) -> Self {
        match code {
            0 => Self::PowerOff,
            1 => Self::Reboot,
            2 => Self::Suspend,
            3 => Self::Crash,
            4 => Self::Watchdog,
            5 => Self::SoftReset,
            other => Self::Unknown(other),
        }
    }

    /// Its `SHUTDOWN_*` code.
    pub fn code(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Reboot => 1,
            Self::Suspend => 2,
            Self::Crash => 3,
            Self::Watchdog => 4,
            Self::SoftReset => 5,
            Self::Unknown(code) => code,
        }
    }
}

/// What a port of some domain is bound to (`EVTCHNSTAT_*`, event_channel.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortStatus {
    /// Free.
    Closed,
    /// Waits for the named domain to bind it.
    Unbound(DomId),
    /// Connected to a port of another domain.
    Interdomain(DomId, Port),
    /// A virtual interrupt.
    Virq(u32),
    /// A physical interrupt.
    Pirq(u32),
    /// Anything else the header names (inter-processor interrupts).
    Other,
}

/// Why Xen refused (`errno.h`), as far as PpVMM tells reasons apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XenError {
    /// Not permitted (EPERM).
    NotPermitted,
    /// Nothing there (ENOENT, ESRCH).
    NotFound,
    /// Out of memory (ENOMEM).
    NoMemory,
    /// A bad address (EFAULT).
    BadAddress,
    /// In use already (EBUSY).
    Busy,
    /// Exists already (EEXIST): a domid still taken, perhaps by a zombie.
    Exists,
    /// An argument that Xen does not accept (EINVAL).
    Invalid,
    /// No room for more (ENOSPC).
    NoSpace,
    /// Not implemented or not supported (ENOSYS, EOPNOTSUPP).
    Unsupported,
    /// The interface version differs (EACCES, domctl.h).
    WrongVersion,
    /// A grant operation failed with this `GNTST_*` status (grant_table.h).
    Grant(i16),
    /// The mapping window has no free page.
    WindowFull,
    /// Any other error number.
    Other(i32),
}

impl XenError {
    /// The error of a hypercall that returned `-errno`.
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            1 => Self::NotPermitted,
            2 | 3 => Self::NotFound,
            12 => Self::NoMemory,
            13 => Self::WrongVersion,
            14 => Self::BadAddress,
            16 => Self::Busy,
            17 => Self::Exists,
            22 => Self::Invalid,
            28 => Self::NoSpace,
            38 | 95 => Self::Unsupported,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPermitted => f.write_str("not permitted (EPERM)"),
            Self::NotFound => f.write_str("not found (ENOENT)"),
            Self::NoMemory => f.write_str("Xen has no memory left (ENOMEM)"),
            Self::BadAddress => f.write_str("bad address (EFAULT)"),
            Self::Busy => f.write_str("busy (EBUSY)"),
            Self::Exists => f.write_str("exists already (EEXIST)"),
            Self::Invalid => f.write_str("invalid argument (EINVAL)"),
            Self::NoSpace => f.write_str("no space (ENOSPC)"),
            Self::Unsupported => f.write_str("not supported by this Xen (ENOSYS)"),
            Self::WrongVersion => f.write_str("interface version differs (EACCES)"),
            Self::Grant(status) => write!(f, "grant operation failed (GNTST {status})"),
            Self::WindowFull => f.write_str("the mapping window is full"),
            Self::Other(errno) => write!(f, "error {errno}"),
        }
    }
}

impl core::error::Error for XenError {}
