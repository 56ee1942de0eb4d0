//! The orchestrator: Xen's initial domain. It builds the services, watches them, brings them back,
//! and does for tool-uk what only the initial domain may do.
//!
//! It is one loop over pure and hypervisor-facing parts, generic over [`abi::Control`] so that host
//! tests run it on a fake Xen:
//!
//! | module | is |
//! |---|---|
//! | [`host`] | the units, the guests' slots and the relay: everything that happens at once |
//! | [`jobs`] | longer work on units, in steps: build, rebuild, restore |
//! | [`relay`], [`compare`] | which replica of the store serves; whether all hold the same |
//! | [`operations`] | what tool-uk asks for, in steps |
//! | [`mod@unit`], [`slots`], [`regions`] | one service, the guests' places, the fabric by name |
//! | [`nic`] | the NIC that a unit drives: found, given away, silenced |
//! | [`keyboard`], [`report`] | what the operator types and is told |
//! | [`voices`] | what services and guests have to say |
//! | [`watchdog`] | the last resort |
//! | [`injector`], [`inject_registers`], [`inject_records`] | fault injection; shares no state |
//! | [`inject_own`] | the same into the orchestrator itself |
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod attachment;
pub mod compare;
pub mod evidence;
pub mod guest_memory;
pub mod host;
pub mod inject_calls;
pub mod inject_own;
pub mod inject_plan;
pub mod inject_records;
pub mod inject_registers;
pub mod inject_rows;
pub mod inject_strike;
pub mod injector;
pub mod jobs;
pub mod keyboard;
pub mod nic;
pub mod operations;
pub mod pace;
pub mod regions;
pub mod relay;
pub mod report;
pub mod slots;
pub mod start;
pub mod status;
pub mod turn;
pub mod unit;
pub mod voices;
pub mod watch;
pub mod watchdog;
