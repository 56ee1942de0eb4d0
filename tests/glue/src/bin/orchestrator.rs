//! The initial domain of the test.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]
#![forbid(unsafe_code)]

use core::fmt::Write;

use abi::{Control, DomId, Virq, Xen};
use fabric::SharedMemory;
use runtime::{Boot, Console};

runtime::orchestrator!(start, fabric_pages = 64);

fn start(boot: Boot) -> ! {
    let xen = boot.hypervisor();
    xen.console_write(b"hello\n");
    let _ = writeln!(Console, "command line: {:?}", boot.command_line());
    let _ = writeln!(Console, "archive: {} bytes", boot.archive().len());
    let _ = writeln!(Console, "now {}", xen.now_ns());
    let fabric = xen.fabric();
    fabric.store_u64(8, 42);
    let _ = writeln!(Console, "fabric {} bytes, {}", fabric.len(), fabric.load_u64(8));
    let timer = xen.bind_virq(Virq::Timer).expect("timer");
    for _ in 0..5 {
        let at = xen.now_ns() + 1_000_000;
        xen.set_timer(Some(at));
        xen.block();
        let late = xen.now_ns() - at;
        let port = xen.next_event();
        let _ = writeln!(Console, "timer {timer:?} {port:?} late {late}");
    }
    let _ = writeln!(Console, "{:?}", xen.domain_info(DomId(0)));
    let _ = writeln!(Console, "{:?}", xen.domain_info(DomId(3)));
    let _ = writeln!(
        Console,
        "heap {} of {}",
        runtime::heap::free_bytes(),
        runtime::heap::size_bytes()
    );
    xen.machine_exit(0x10)
}
