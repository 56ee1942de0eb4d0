//! PV service domains: the layout that the runtime relies on, the content of every page that is
//! written before the start, and the bounded steps that build or restore such a domain.
//!
//! Layout, by virtual address, which equals the pseudo-physical address:
//!
//! | what | where | mapped |
//! |---|---|---|
//! | guard | page 0 | not at all: a null pointer faults |
//! | image | at its `p_vaddr` | as its segments say; never writable and executable |
//! | boot stack | 1 page after the image | read-write |
//! | `start_info` | next page | read-write |
//! | p2m | next pages: one u64 machine frame per page | read-write |
//! | free memory | up to the page tables | read-write |
//! | page tables | the last pages: L4, L3, 2 × L2, L1s of memory, L1s of the window | read-only |
//! | window | 1 GiB, 16 MiB long | 4,096 empty entries for foreign, granted and MMIO pages |
//!
//! `start_info.pt_base` is the address of the L4 table, `nr_pt_frames` the number of table pages,
//! `mfn_list` the p2m: free memory is what lies between the end of the p2m and `pt_base`.

mod build;
mod plan;
mod tables;

pub use build::{Build, BuildError, Built, Limits, Pages, Progress, Restore, Stage};
pub use plan::{Plan, PlanError};
pub use tables::Layout;

/// Most pages a service domain may have: 32 MiB, twice what a service is promised to run in.
pub const MAX_PAGES: u32 = 8192;
/// Most bytes of a service's command line.
pub const MAX_COMMAND_LINE: usize = 255;
/// First address of the mapping window.
pub const WINDOW_START: u64 = 1 << 30;
/// Pages of the mapping window (16 MiB).
pub const WINDOW_PAGES: u32 = 4096;

/// Bytes in a page, as an address.
pub(crate) const PAGE: u64 = abi::PAGE_SIZE as u64;

#[cfg(test)]
mod tests;
