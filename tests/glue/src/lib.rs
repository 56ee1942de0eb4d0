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
    /// Enter the program in user mode, to do FIRST with SECOND; answers how it ended
    /// ([`super::ending`]), or what it computed.
    pub const USER: u64 = 14;
    /// Answers the time that the last entry took, ns.
    pub const USER_NS: u64 = 15;
    /// Answers whether the kernel part's word is untouched: 1.
    pub const KERNEL_WORD: u64 = 16;
    /// Answers where the program died last: the address of its page fault, or the place.
    pub const USER_ADDRESS: u64 = 17;
}

/// What the program in user mode is told to do.
pub mod deed {
    /// Add SECOND to a sum that it keeps; answers it.
    pub const ADD: u32 = 0;
    /// Put SECOND words out, in several pieces; answers how many arrived as they should.
    pub const PUT: u32 = 1;
    /// Panic.
    pub const PANIC: u32 = 2;
    /// Read where nothing is.
    pub const WILD_READ: u32 = 3;
    /// Write where nothing is.
    pub const WILD_WRITE: u32 = 4;
    /// Jump where nothing is.
    pub const WILD_JUMP: u32 = 5;
    /// Execute an undefined instruction.
    pub const UNDEFINED: u32 = 6;
    /// Overflow the stack.
    pub const OVERFLOW: u32 = 7;
    /// Divide by zero.
    pub const DIVIDE: u32 = 8;
    /// Loop for ever.
    pub const LOOP: u32 = 9;
    /// Read the kernel part's word.
    pub const READ_KERNEL: u32 = 10;
    /// Write it.
    pub const WRITE_KERNEL: u32 = 11;
    /// Read Xen's list of machine frames.
    pub const READ_MACHINE_FRAMES: u32 = 12;
    /// Ask Xen to end the domain.
    pub const HYPERCALL: u32 = 13;
    /// Allocate.
    pub const ALLOCATE: u32 = 14;
    /// Write to the memory it may look at.
    pub const WRITE_VIEW: u32 = 15;
    /// Jump to the entry of the image.
    pub const ENTRY: u32 = 16;
    /// Answer the first word of the memory it may look at.
    pub const READ_VIEW: u32 = 17;
}

/// How a program in user mode ended: the vector of a trap is added to `TRAP`.
pub mod ending {
    /// The first of these answers; smaller ones are results.
    pub const FIRST: u64 = 1 << 32;
    /// By a trap.
    pub const TRAP: u64 = FIRST + 0x100;
    /// Its time was up.
    pub const ENDLESS: u64 = FIRST + 1;
    /// By a panic with the right text.
    pub const PANICKED: u64 = FIRST + 2;
    /// By a call that nobody offers.
    pub const CALLED: u64 = FIRST + 3;
    /// In another way.
    pub const OTHER: u64 = FIRST + 4;
}
