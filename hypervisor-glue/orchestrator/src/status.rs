//! The status list of the serial console.

use core::fmt::{self, Write};

use abi::{Control, DomId, DomainInfo, DomainState};
use fabric::SharedMemory;

use crate::host::Host;
use crate::report::Line;

/// Prints units and guests, a line each, and what the host itself costs.
pub fn print<C: Control, F: SharedMemory + Copy>(host: &Host<'_, C, F>) {
    let mut line = Line::new();
    let now_ms = host.xen.now_ns() / 1_000_000;
    line.say(format_args!("up {}.{:03} s", now_ms / 1_000, now_ms % 1_000));
    line.print(host.xen);
    for (index, unit) in host.units.iter().enumerate() {
        line.say(format_args!(
            "{}: {:<12} {:<3} {}, life {}, {} KiB, work {}",
            index + 1,
            unit.config.name,
            unit.domid,
            if host.supervisor.is_serving(index) { "serves" } else { "is away" },
            unit.life,
            unit.config.memory_kib,
            unit.handed,
        ));
        match unit.health() {
            Ok(health) => {
                line.say(format_args!(", taken {}, done {}", health.taken, health.progress));
            }
            Err(error) => line.say(format_args!(", {error}")),
        }
        cpu_time(host, unit.domid, &mut line);
        line.print(host.xen);
    }
    for (index, slot) in host.slots.used() {
        let domain = &slot.domain;
        line.say(format_args!(
            "guest d{:<4} slot {index}, {:?}, XenStore asked {} answered {}",
            domain.domid, domain.state, slot.asked, slot.answered,
        ));
        cpu_time(host, DomId(domain.domid), &mut line);
        line.print(host.xen);
    }
    let received = |domid| {
        let info = host.xen.domain_info(domid).ok().flatten();
        info.map_or(0, |info: DomainInfo| info.cpu_time_ns)
    };
    let services: u64 = host.units.iter().map(|unit| received(unit.domid)).sum();
    line.say(format_args!(
        "@{{\"event\":\"cpu-time\",\"at\":{},\"orchestrator\":{},\"services\":{services}}}",
        host.xen.now_ns(),
        received(DomId::ORCHESTRATOR),
    ));
    line.print(host.xen);
}

fn cpu_time<C: Control, F: SharedMemory + Copy>(
    host: &Host<'_, C, F>,
    domid: DomId,
    line: &mut Line,
) {
    match host.xen.domain_info(domid) {
        Ok(Some(info)) => {
            let dying = if info.state == DomainState::Dying { ", dying" } else { "" };
            line.say(format_args!(", CPU {} ms{dying}", info.cpu_time_ns / 1_000_000));
        }
        Ok(None) => line.say(format_args!(", no domain")),
        Err(error) => line.say(format_args!(", {error}")),
    }
}

/// Prints what is known of each failure, the latest last.
pub fn print_epitaphs<C: Control, F: SharedMemory + Copy>(host: &Host<'_, C, F>) {
    let mut line = Line::new();
    line.say(format_args!("{} failures so far", host.epitaphs.total()));
    line.print(host.xen);
    for epitaph in host.epitaphs.iter() {
        let mut printer = Printer { host, line: Line::new() };
        // Printing cannot fail: lines that are too long are cut.
        let _ = write!(printer, "{epitaph}");
        printer.line.print(host.xen);
    }
}

/// Prints what is written to it line by line.
struct Printer<'a, 'h, C: Control, F: SharedMemory + Copy> {
    host: &'a Host<'h, C, F>,
    line: Line,
}

impl<C: Control, F: SharedMemory + Copy> Write for Printer<'_, '_, C, F> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut parts = text.split('\n');
        if let Some(first) = parts.next() {
            self.line.say(format_args!("{first}"));
        }
        for part in parts {
            self.line.print(self.host.xen);
            self.line.say(format_args!("{part}"));
        }
        Ok(())
    }
}
