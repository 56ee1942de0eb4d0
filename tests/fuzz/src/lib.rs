//! Fuzz targets: every reader of bytes that another domain, a guest, or damage may have written.
//!
//! A target is a function of bytes that panics when something is wrong. `cargo xtask fuzz` drives
//! it by libFuzzer, which keeps an input when it reaches code that none before it has reached. The
//! feedback comes from LLVM's `sancov-module` pass, which stable rustc runs over our packages; the
//! standard library, compiled elsewhere, gives none. Without `unsafe` there is no memory to
//! corrupt, so no sanitizer is needed: integer overflow and `debug_assert` are on.
//!
//! | target | reads | oracle beside "no panic" |
//! |---|---|---|
//! | `wire` | XenStore messages, strings, numbers, paths | what is parsed is written back |
//! | `server` | two hostile clients' rings, around crashes | others' answers; counts; checksums |
//! | `slots` | damaged slots and areas of the store | a right value or none |
//! | `snapshot` | a state sent by another replica | it or the one before, also in the next life |
//! | `pages` | control, health, domain, log pages; records | what was written, or an error |
//! | `rings` | kick and message rings of a hostile peer | honest: nothing lost; hostile: bounded |
//! | `archive` | archives, table sealed or not | entries inside, apart, in order |
//! | `elf` | unikernel and guest kernel images, and plans | parts inside, apart, in order |
//! | `api` | requests and replies between units | what is parsed is written back |
//! | `raft_messages` | a replica's messages, whole, changed and sealed | it opens again as it was |
//! | `raft_storage` | a replica's damaged storage | as it was, or an error |
//! | `console` | a guest's console ring | bounded lines |
//!
//! Inputs that once failed lie in `findings/TARGET/`; `tests/replay.rs` runs them, the seeds, and
//! some thousand changed seeds with every build. `fuzz run TARGET FILE` runs one input.
#![forbid(unsafe_code)]

mod bytes;
mod targets;

// The tests' own clusters and hosts serve here, too.
#[path = "../../../xenstore-uk/store/tests/common/mod.rs"]
mod host;
#[path = "../../../raft/tests/cluster/mod.rs"]
mod ledger;

pub use bytes::Bytes;
pub use targets::{TARGETS, Target, find};
