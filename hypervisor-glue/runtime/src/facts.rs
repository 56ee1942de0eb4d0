//! What this domain was told at its start.

use core::cell::Cell;

use abi::PAGE_SIZE;
use abi::layout::{SIF_INITDOMAIN, StartInfo};

use crate::cell::OneCpu;

/// Facts that the rest of the runtime needs from `start_info`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Address of the list of machine frames, one word per page.
    pub(crate) p2m: u64,
    /// Pages of the domain.
    pub(crate) pages: u64,
    /// Address of the top page table.
    pub(crate) top_table: u64,
    /// Page tables that the builder made.
    pub(crate) tables: u64,
    /// Whether this is the initial domain.
    pub(crate) initial: bool,
    /// Machine frame of the PV console ring, 0 when there is none.
    pub(crate) console_frame: u64,
    /// Event channel of the PV console.
    pub(crate) console_port: u32,
}

const NOTHING: Facts = Facts {
    p2m: 0,
    pages: 0,
    top_table: 0,
    tables: 0,
    initial: false,
    console_frame: 0,
    console_port: 0,
};

static FACTS: OneCpu<Cell<Facts>> = OneCpu::new(Cell::new(NOTHING));

/// The facts of this life.
pub(crate) fn get() -> Facts {
    FACTS.get()
}

/// Remembers what `start_info` says.
pub(crate) fn learn(info: &StartInfo) -> Facts {
    let initial = info.flags & SIF_INITDOMAIN != 0;
    let facts = Facts {
        p2m: info.mfn_list,
        pages: info.nr_pages,
        top_table: info.pt_base,
        tables: info.nr_pt_frames,
        initial,
        // For the initial domain these words describe a VGA console.
        console_frame: if initial { 0 } else { info.console_mfn },
        console_port: if initial { 0 } else { info.console_evtchn },
    };
    FACTS.set(facts);
    facts
}

impl Facts {
    /// Address after the list of machine frames, page-aligned.
    pub(crate) fn after_p2m(&self) -> u64 {
        (self.p2m + self.pages * 8).next_multiple_of(PAGE_SIZE as u64)
    }
}
