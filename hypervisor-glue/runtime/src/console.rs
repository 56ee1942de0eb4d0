//! Where a unikernel's own words go before anything else exists to carry them.

use core::cell::Cell;
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use abi::PAGE_SIZE;
use abi::hypercall::{Call, hypercall};

use crate::cell::OneCpu;
use crate::{facts, io, paging};

/// Text goes to Xen's console in the initial domain, to the serial line on a bare machine, to the
/// PV console ring of an ordinary guest, and nowhere in a service, whose log is in the fabric.
#[derive(Clone, Copy, Debug)]
pub struct Console;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sink {
    Nowhere,
    Xen,
    Serial,
    /// Address of the ring (`xencons_interface`, io/console.h).
    Ring(u64),
}

static SINK: OneCpu<Cell<Sink>> = OneCpu::new(Cell::new(Sink::Nowhere));

/// Offsets in `xencons_interface`.
const OUT: usize = 1024;
const OUT_SIZE: u32 = 2048;
const OUT_CONS: usize = 3080;
const OUT_PROD: usize = 3084;
/// Looks at a full ring before its text is given up: nobody may be reading.
const RING_PATIENCE: u32 = 1_000_000;

/// The bare machine of the self-test.
pub(crate) fn use_serial() {
    SINK.set(Sink::Serial);
}

/// Finds the sink of a PV domain.
pub(crate) fn open() {
    let facts = facts::get();
    SINK.set(if facts.initial { Sink::Xen } else { Sink::Nowhere });
    if facts.console_frame == 0 {
        return;
    }
    // The ring is one of our own pages, mapped like all of them; find it by its machine frame.
    let ring = (1..facts.pages)
        .map(|page| page * PAGE_SIZE as u64)
        .find(|address| paging::machine_frame(*address) == facts.console_frame);
    if let Some(ring) = ring {
        SINK.set(Sink::Ring(ring));
    }
}

/// Whether nobody reads what is written to [`Console`]: then nothing need be put into words.
pub(crate) fn is_silent() -> bool {
    matches!(SINK.get(), Sink::Nowhere)
}

/// Whether this is a bare machine, without Xen below.
pub(crate) fn is_bare() -> bool {
    SINK.get() == Sink::Serial
}

/// Writes text to Xen's console; only the initial domain is heard.
pub(crate) fn write_to_xen(text: &[u8]) {
    /// `CONSOLEIO_write`.
    const WRITE: u64 = 0;
    let arguments = [WRITE, text.len() as u64, text.as_ptr() as u64, 0, 0];
    // SAFETY: Xen reads the text. A refusal leaves nothing to be done about it.
    let _ = unsafe { hypercall(Call::ConsoleIo, arguments) };
}

/// Reads what was typed on Xen's console.
pub(crate) fn read_from_xen(into: &mut [u8]) -> usize {
    /// `CONSOLEIO_read`.
    const READ: u64 = 1;
    let arguments = [READ, into.len() as u64, into.as_mut_ptr() as u64, 0, 0];
    // SAFETY: Xen writes at most `into.len()` bytes there.
    let count = unsafe { hypercall(Call::ConsoleIo, arguments) };
    usize::try_from(count).unwrap_or(0)
}

fn write_to_ring(ring: u64, text: &[u8]) {
    // SAFETY: The ring's page is mapped and no Rust object; index words are aligned, and the other
    // end reads them at any time.
    let index = |at: usize| unsafe { AtomicU32::from_ptr((ring as usize + at) as *mut u32) };
    let mut produced = index(OUT_PROD).load(Ordering::Relaxed);
    for byte in text {
        let mut patience = RING_PATIENCE;
        while produced.wrapping_sub(index(OUT_CONS).load(Ordering::Acquire)) >= OUT_SIZE {
            notify();
            crate::hypervisor::yield_now();
            patience -= 1;
            if patience == 0 {
                return;
            }
        }
        let at = ring as usize + OUT + (produced % OUT_SIZE) as usize;
        // SAFETY: Inside the ring's page.
        unsafe { ptr::write_volatile(at as *mut u8, *byte) };
        produced = produced.wrapping_add(1);
        index(OUT_PROD).store(produced, Ordering::Release);
    }
    notify();
}

fn notify() {
    // A console that nobody serves is no reason to fail.
    let _ = crate::hypervisor::send(facts::get().console_port);
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match SINK.get() {
            Sink::Nowhere => {}
            Sink::Xen => write_to_xen(text.as_bytes()),
            // SAFETY: A bare machine's kernel may use all ports.
            Sink::Serial => unsafe { io::serial_write(text.as_bytes()) },
            Sink::Ring(ring) => write_to_ring(ring, text.as_bytes()),
        }
        Ok(())
    }
}
