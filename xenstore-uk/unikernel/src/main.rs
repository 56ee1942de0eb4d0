//! XenStore as a unikernel: the thin shell around one replica of the engine.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(feature = "fault-points")]
mod fault_points;
mod mail;
mod pulse;
mod seats;
mod shell;

use abi::Xen;
use fabric::Part;
use fabric::health::RecoveryReport;
use fabric::view::RegionKind;
use runtime::{Boot, FabricMemory, Life, Survivor};
use service::Service;
use service::view::View;

use crate::shell::{INDEX_LEN, Shell, Told, Work};

runtime::service!(main, aside_pages = INDEX_LEN.div_ceil(abi::PAGE_SIZE));

/// A part of our view of the fabric.
type Fabric = Part<FabricMemory>;

/// The engine and its connections; still there after a microreset that did not interrupt a change.
static SHELL: Survivor<Shell> = Survivor::new();

fn main(boot: Boot) -> ! {
    let xen = boot.hypervisor();
    let view = service::entry::map_view(&boot);
    let service = Service::start(&xen, view.regions()).expect("the control page is valid");
    let rung = service.rung();
    service.recovering();
    #[cfg(feature = "fault-points")]
    fault_points::arm(service.epoch());
    let kept = boot.life() == Life::Microreset && SHELL.recover_if(Shell::is_whole);
    pulse::begin(view.regions().health);
    let mut report = RecoveryReport { rung: rung as u32, ..RecoveryReport::default() };
    if kept {
        SHELL.modify(|shell| shell.resume(service.epoch(), xen.now_ns(), &mut report));
    } else {
        let told = Told {
            epoch: service.epoch(),
            nonce: service.nonce(),
            is_distrusted: service.is_distrusted(),
        };
        let aside = boot.aside().expect("our builder gives us all that we ask for");
        let index = Part::new(aside, 0, INDEX_LEN);
        SHELL.put(Shell::start(xen, &view, index, told, &mut report));
    }
    if report.dropped > 0 {
        let text = format_args!("{} records could not be read back: memory failed", report.dropped);
        log(&view).line(xen.now_ns(), fabric::log::Level::Error, text);
    }
    // Rings that a former life mapped and nobody asked for again belong to guests that are gone.
    xen.drop_orphans();
    service.run(Work::new(&SHELL, log(&view)), &report)
}

/// Our log, for the operator and for epitaphs.
fn log(view: &View<FabricMemory>) -> fabric::log::LogWriter<Fabric> {
    fabric::log::LogWriter::new(view.own(RegionKind::Log))
}
