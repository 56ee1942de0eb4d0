//! A Xen for host tests: several domains at once, over memory of the test process.
//!
//! ```
//! use abi::{Control, CreateDomain, DomId, Xen};
//! use fake_xen::Machine;
//!
//! let machine = Machine::new();
//! let orchestrator = machine.domain(DomId(0));
//! let what = CreateDomain {
//!     pvh: false, vcpus: 1, max_memory_kib: 4096,
//!     max_port: 63, grant_frames: 4, maptrack_frames: 4,
//! };
//! orchestrator.create_domain(DomId(1), &what)?;
//! let service = machine.domain(DomId(1));
//! let port = orchestrator.alloc_unbound(DomId(1))?;
//! let theirs = service.bind_interdomain(DomId(0), port)?;
//! service.send(theirs)?;
//! assert_eq!(orchestrator.next_event(), Some(port));
//! # Ok::<(), abi::XenError>(())
//! ```
//!
//! It keeps Xen's rules where PpVMM relies on them: a domid stays taken while somebody maps the
//! dead domain's pages; a page table is pinned only while nobody maps it writable; a port whose
//! other end dies falls back to unbound; deaths are announced by one coalescing event; a mapping
//! shows the granter's page itself, a dead domain's pages turn to [`POISON`].
//!
//! Time stands still unless the test moves it ([`Machine::advance`]) or a domain blocks with its
//! timer armed. [`Machine::fail`] makes any call fail; [`Machine::hook`] lets a test act in the
//! middle of a long call.
#![forbid(unsafe_code)]

mod control;
mod machine;
mod mapping;
mod memory;
mod ports;
mod xen;

#[cfg(test)]
mod tests;

pub use machine::{Call, Fault, Machine, SMALL_DOMAIN, VcpuState};
pub use mapping::{FakeFabric, FakeMapping};
pub use memory::{GARBAGE, POISON};
pub use xen::{DomainEnded, FakeXen};
