//! The network as a unikernel: a NIC driver behind a shadow, a switch, and netback for guests. What
//! to do is decided by the engines; this is their shell.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod driver;
#[cfg(feature = "fault-points")]
mod fault_points;
mod nic;
mod places;
mod registers;
mod shell;
mod vifs;

use fabric::health::RecoveryReport;
use runtime::{Boot, Survivor};
use service::Service;

use crate::shell::Shell;

runtime::service!(main, user_mode);

/// Marks this life's memory as not to be trusted by the next one, on the lowest rung too: journal
/// and records say everything, guests' pages hold every frame that was not answered, and reading
/// them takes a fraction of a millisecond.
static LIFE: Survivor<()> = Survivor::new();

fn main(boot: Boot) -> ! {
    LIFE.put(());
    LIFE.with(|()| live(boot))
}

fn live(boot: Boot) -> ! {
    let xen = boot.hypervisor();
    let view = service::entry::map_view(&boot);
    let service = Service::start(&xen, view.regions()).expect("the control page is valid");
    service.recovering();
    let mut report = RecoveryReport { rung: service.rung() as u32, ..RecoveryReport::default() };
    let nic = boot.argument("nic");
    let shell = Shell::start(xen, &view, nic, service.epoch(), service.rung(), &mut report);
    service.run(shell, &report)
}
