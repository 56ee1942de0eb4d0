//! What the two unikernels of this test agree on: two fabric pages and a doorbell each way.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

/// The service's domid.
pub const SERVICE: u16 = 1;
/// First grant reference of the service's fabric view.
pub const FIRST_REFERENCE: u32 = 1024;
/// Pages of the view: the service's own page, the orchestrator's, and some more to measure with.
pub const PAGES: usize = 300;

/// Words of the service's page (it writes, the orchestrator reads).
pub mod answer {
    /// Sequence of the command that was answered last.
    pub const SEQUENCE: usize = 0;
    /// The answer.
    pub const VALUE: usize = 8;
    /// Counts the service's starts, whatever their kind.
    pub const STARTS: usize = 16;
    /// The life: 0 first, 1 microreset, 2 microreboot.
    pub const LIFE: usize = 24;
    /// Whether state survived into this life.
    pub const SURVIVED: usize = 32;
    /// Length of the last words.
    pub const WORDS_LEN: usize = 40;
    /// The last words.
    pub const WORDS: usize = 48;
    /// The orchestrator's port for the service's doorbell, written when it is bound.
    pub const DOORBELL: usize = 512;
}

/// Words of the orchestrator's page.
pub mod question {
    /// Offset of the page in the view.
    pub const PAGE: usize = 4096;
    /// Sequence of the command.
    pub const SEQUENCE: usize = PAGE;
    /// The command.
    pub const COMMAND: usize = PAGE + 8;
    /// Its first argument.
    pub const FIRST: usize = PAGE + 16;
    /// Its second argument.
    pub const SECOND: usize = PAGE + 24;
}

/// What the service is asked to do.
pub mod command {
    /// Add one to the surviving counter; answers it.
    pub const COUNT: u64 = 1;
    /// Panic.
    pub const PANIC: u64 = 2;
    /// Write to a page that is mapped read-only.
    pub const WRITE_READ_ONLY: u64 = 3;
    /// Overflow the stack.
    pub const OVERFLOW: u64 = 4;
    /// Loop for ever.
    pub const LOOP: u64 = 5;
    /// Loop for ever in the middle of a change.
    pub const LOOP_CHANGING: u64 = 6;
    /// Loop for ever in the middle of a change that the state itself tells of.
    pub const LOOP_TORN: u64 = 13;
    /// Map the page that domain FIRST granted as SECOND; answers its first word.
    pub const MAP: u64 = 7;
    /// Read the mapped page's first word again.
    pub const READ: u64 = 8;
    /// Unmap it.
    pub const UNMAP: u64 = 9;
    /// Count as COUNT, in memory from the heap; answers the free bytes of the heap.
    pub const ALLOCATE: u64 = 10;
    /// Allocate, map and unmap without end: the page that domain FIRST granted as SECOND.
    pub const CHURN: u64 = 12;
    /// Drop mappings that were not asked for in this life.
    pub const DROP_ORPHANS: u64 = 11;
}
