//! The toolstack as a unikernel: creates and keeps the guests of the system description, and
//! serves their consoles. What to do is decided by `tool-engine`; this is its shell.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod consoles;
mod tool;

use alloc::vec::Vec;

use fabric::health::RecoveryReport;
use runtime::{Boot, Survivor};
use service::Service;
use tool_engine::{OnStop, Spec};

use crate::tool::Tool;

runtime::service!(main);

/// Marks this life's memory as not to be trusted by the next one, on the lowest rung too: the
/// journal and the list of domains say everything, and reading them takes a fraction of a
/// millisecond.
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
    let tool = Tool::new(xen, &view, service.epoch(), service.nonce(), &specs());
    let report = RecoveryReport { rung: service.rung() as u32, ..RecoveryReport::default() };
    service.run(tool, &report)
}

/// The guests of the system description.
fn specs() -> Vec<Spec<'static>> {
    let specs = system::SYSTEM.guests.iter().map(|guest| Spec {
        name: guest.name,
        memory_kib: guest.memory_mib * 1024,
        // More vCPUs than a byte counts are refused later, like every number above 1.
        vcpus: u8::try_from(guest.vcpus).unwrap_or(u8::MAX),
        vifs: u8::try_from(guest.vifs).unwrap_or(u8::MAX),
        store_nodes: guest.store_nodes,
        kernel: guest.kernel,
        ramdisk: guest.ramdisk,
        command_line: guest.cmdline,
        on_crash: on_stop(guest.on_crash),
        on_reboot: on_stop(guest.on_reboot),
        on_poweroff: on_stop(guest.on_poweroff),
    });
    specs.collect()
}

fn on_stop(wish: system::OnStop) -> OnStop {
    match wish {
        system::OnStop::Destroy => OnStop::Destroy,
        system::OnStop::Restart => OnStop::Restart,
        system::OnStop::Preserve => OnStop::Preserve,
    }
}
