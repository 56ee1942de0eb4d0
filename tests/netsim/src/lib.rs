//! A seeded simulation of net-uk's frame path. `docs/NET-ORACLES.md` says what it checks.
//!
//! One seed is one run: [`run`] builds a host with some honest guests and perhaps a hostile one,
//! lets them talk while net-uk, its driver and the device fail, then heals everything and requires
//! that the rest drains. Everything that net-uk stores outside its own head goes through one
//! [`Fuse`], which can blow between any two stores.
#![forbid(unsafe_code)]

mod content;
mod fuse;
mod guest;
mod life;
mod oracle;
mod random;
mod world;

pub use fuse::Fuse;
pub use oracle::{Oracle, Violation};
pub use random::Random;
pub use world::{Report, run};
