//! PVH guests: what a configuration becomes, as a sequence of operations that tool-uk asks of the
//! orchestrator (pvh.pandoc, arch-x86/hvm/start_info.h).
//!
//! Layout of the guest's physical memory:
//!
//! | address | what |
//! |---|---|
//! | 0x1000 | `hvm_start_info`, memory map, module list, command line |
//! | kernel's `p_paddr` | kernel |
//! | end of RAM, rounded down | ramdisk |
//! | 0xfeff8000 | ACPI tables |
//! | 0xfeffc000 | XenStore ring, where Xen's own toolstack puts it |
//! | 0xfefff000 | console ring, likewise |
//!
//! Linux reads everything in the first pages before it uses them for itself.

mod acpi;
mod plan;
mod probe;

pub use plan::{Config, Plan, PlanError, Ramdisk, Step, StepError};
pub use probe::{Probe, ProbeError, Wanted};

/// Where `hvm_start_info` lies.
pub const START_INFO: u32 = 0x1000;
/// Frame of the ACPI tables, the first of the special region.
pub const ACPI_GFN: u32 = 0xfeff8;
/// Where the ACPI tables lie.
pub const ACPI_ADDRESS: u32 = ACPI_GFN << 12;
/// Frame of the XenStore ring (`X86_HVM_END_SPECIAL_REGION` - 8 + 4 in Xen's libxenguest).
pub const STORE_GFN: u32 = 0xfeffc;
/// Frame of the console ring.
pub const CONSOLE_GFN: u32 = 0xfefff;
/// First byte of the special region behind the ACPI tables, reserved in the guest's memory map.
pub const SPECIAL_START: u64 = 0xfeff_9000;
/// Bytes of that.
pub const SPECIAL_LEN: u64 = 0x7000;
/// Longest command line of a guest; Linux accepts 2,048, but the whole start information travels
/// in one message.
pub const MAX_COMMAND_LINE: usize = 1024;
/// Pages above its RAM and special pages that a guest may populate: Linux wants a few for its
/// balloon driver, and Xen's own toolstack gives the same 1 MiB.
pub const SLACK_PAGES: u32 = 256;
/// Grant table entry of the console ring.
pub const CONSOLE_GRANT: u32 = 0;
/// Grant table entries of the XenStore ring, one per replica, and the replicas' domids.
pub const STORE_GRANTS: [(u32, u16); 3] = [(1, 1), (2, 2), (3, 3)];
/// Domid of the domain that owns the consoles.
pub const CONSOLE_OWNER: u16 = 5;

#[cfg(test)]
mod tests;
