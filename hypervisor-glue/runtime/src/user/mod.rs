//! User mode as a fault domain: a [`Program`] that may do anything, and harms nothing but itself.
//!
//! The program is code of the same image. While it runs, page tables of its own are active, in
//! which there is nothing but the image's code and constants (to be read), its arena of stack,
//! input, output and state, and what [`Parts`] gives it to look at. It is entered once per batch,
//! and left by its own call, by a trap, or when its time is up. What comes out of it are words,
//! which are copied before anybody looks at them.
//!
//! The program must not allocate and must not change statics: both are the kernel part's, where
//! it has nothing mapped. A panic of it is told with its text.

mod budget;
mod inside;
mod places;
mod tables;

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use abi::hypercall::{Call, hypercall};
use abi::layout::{CallbackRegister, FLAT_KERNEL_SS, FLAT_USER_CS, FLAT_USER_SS};
use abi::{Control, Frame, PAGE_SIZE, Port, PortStatus, Virq, Xen, XenError};
use fabric::SharedMemory;

use crate::failure::FailureText;
use crate::hypervisor::{event_words, port_bound_to};
use crate::symbols::{ppvmm_enter_user, ppvmm_exit_stack_top, ppvmm_user_call};
use crate::traps::{self, PAGE_FAULT};
use crate::{DmaMemory, Hypervisor, Place, shared_info, timer};

use budget::Budget;
pub use inside::{Inside, Program};
pub(crate) use inside::{is_inside, panicked};
pub(crate) use tables::reserve as reserve_tables;
use tables::{Draft, Use};

/// Words at the start of the input: how many follow, pages of registers, pages of the view.
const HEADER: usize = 3;
/// Words of one batch of input.
pub const INPUT_WORDS: usize = places::INPUT.len() / 4 - HEADER;
/// Words that come out at a time.
const OUTPUT_WORDS: usize = places::OUTPUT.len() / 4 - 1;

/// What a program says with its call, in `rax`.
mod call {
    /// There is output; go on behind the call.
    pub(super) const FLUSH: u64 = 1;
    /// The batch is done.
    pub(super) const DONE: u64 = 2;
    /// The program panicked; the output is its text.
    pub(super) const PANICKED: u64 = 3;
}

/// Exits that are no traps (user/entry.s).
mod exit {
    /// By a syscall.
    pub(super) const CALL: u64 = 256;
    /// By an upcall.
    pub(super) const UPCALL: u64 = 257;
}

/// What the program may look at, beside its arena.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Registers of a device: first machine frame, and pages. It may read them all.
    pub registers: Option<(Frame, usize)>,
    /// The first pages of this memory.
    pub view: Option<(DmaMemory, usize)>,
}

/// How a program died.
#[derive(Clone, Copy, Debug)]
pub enum Death {
    /// It trapped.
    Trapped {
        /// The vector.
        vector: u64,
        /// Its error code.
        error: u64,
        /// Where.
        rip: u64,
        /// For a page fault: on which address.
        address: u64,
    },
    /// It used up its time.
    Endless {
        /// Where it was last.
        rip: u64,
    },
    /// It panicked: [`FaultDomain::panic_text`].
    Panicked,
    /// It made a call that nobody offers.
    Called(u64),
    /// What it wrote as output is longer than the output.
    Overlong(u32),
    /// Whoever takes its output did not want more of it.
    Refused,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trapped { vector, error, rip, address } => {
                let name = traps::name(*vector);
                write!(f, "trap {vector} ({name}) at rip {rip:#x}, error {error:#x}")?;
                if *vector == PAGE_FAULT {
                    write!(f, ", address {address:#x}")?;
                }
                Ok(())
            }
            Self::Endless { rip } => write!(f, "no end in sight at rip {rip:#x}"),
            Self::Panicked => f.write_str("a panic"),
            Self::Called(number) => write!(f, "a call {number:#x} that nobody offers"),
            Self::Overlong(words) => write!(f, "{words} words of output"),
            Self::Refused => f.write_str("its output was refused"),
        }
    }
}

/// The one fault domain of a life.
#[derive(Debug)]
pub struct FaultDomain<P> {
    xen: Hypervisor,
    arena: DmaMemory,
    registers_pages: u32,
    view_pages: u32,
    timer: Port,
    frame: traps::Frame,
    output: Vec<u32>,
    program: PhantomData<fn() -> P>,
}

/// Marks that this life has opened it.
static OPENED: Place<()> = Place::new(());

impl<P: Program> FaultDomain<P> {
    /// Makes its page tables. The unikernel says `user_mode` in [`crate::service!`].
    ///
    /// # Errors
    /// What Xen says, for example when the registers are not this domain's.
    ///
    /// # Panics
    /// The second time in one life, and when there is no room for the parts.
    pub fn open(xen: Hypervisor, parts: &Parts) -> Result<Self, XenError> {
        OPENED.claim();
        let arena = xen.dma_memory(places::ARENA_PAGES);
        tables::make(|draft| map(draft, &arena, parts))?;
        open_exits()?;
        let timer = match xen.bind_virq(Virq::Timer) {
            Err(XenError::Exists) => port_bound_to(PortStatus::Virq(Virq::Timer as u32)),
            bound => Some(bound?),
        };
        let timer = timer.ok_or(XenError::NotFound)?;
        event_words().unmask(timer.0);
        let mut domain = Self {
            xen,
            arena,
            registers_pages: parts.registers.map_or(0, |(_, pages)| pages as u32),
            view_pages: parts.view.map_or(0, |(_, pages)| pages as u32),
            timer,
            frame: traps::Frame::default(),
            output: Vec::with_capacity(OUTPUT_WORDS),
            program: PhantomData,
        };
        domain.renew();
        Ok(domain)
    }

    /// Forgets the program: the next entry begins a fresh one.
    pub fn renew(&mut self) {
        for area in [places::STACK, places::OUTPUT, places::STATE] {
            self.arena.fill(area.offset(), area.len(), 0);
        }
    }

    /// Enters the program with a batch of words. `take` is given what comes out, perhaps several
    /// times, and says whether the program may go on.
    ///
    /// # Errors
    /// How the program died: [`FaultDomain::renew`] it.
    ///
    /// # Panics
    /// When there are more than [`INPUT_WORDS`].
    pub fn enter(
        &mut self,
        words: &[u32],
        mut take: impl FnMut(&[u32]) -> bool,
    ) -> Result<(), Death> {
        assert!(words.len() <= INPUT_WORDS, "a batch of {} words", words.len());
        let header = [words.len() as u32, self.registers_pages, self.view_pages];
        let at = places::INPUT.offset();
        self.arena.write_words(at, &header);
        self.arena.write_words(at + 4 * HEADER, words);
        self.frame = traps::Frame {
            rip: inside::begin::<P> as *const () as u64,
            cs: FLAT_USER_CS.into(),
            rflags: INTERRUPTIBLE,
            // As if it had been called: 8 bytes below a multiple of 16.
            rsp: (places::STACK.address() + places::STACK.len() - 8) as u64,
            ss: FLAT_USER_SS.into(),
            ..traps::Frame::default()
        };
        let mut budget = Budget::begin(self.xen.now_ns());
        loop {
            let call = self.run(&mut budget)?;
            if call == call::PANICKED {
                return Err(Death::Panicked);
            }
            if call != call::FLUSH && call != call::DONE {
                return Err(Death::Called(call));
            }
            self.copy_output()?;
            if !take(&self.output) {
                return Err(Death::Refused);
            }
            if call == call::DONE {
                return Ok(());
            }
        }
    }

    /// Lets user mode run until it calls; answers what it said.
    fn run(&mut self, budget: &mut Budget) -> Result<u64, Death> {
        loop {
            // A timer's event that is pending already would hide the next one.
            if event_words().forget(self.timer.0) {
                timer::fired();
            }
            timer::interrupt_by(self.xen.now_ns(), budget.due_ns());
            self.switch();
            match self.frame.vector {
                exit::CALL => return Ok(self.frame.rax),
                exit::UPCALL => {
                    let now_ns = self.xen.now_ns();
                    let cpu_time_ns = || {
                        let without_ns = self.xen.schedule().without_cpu_ns;
                        self.xen.now_ns().saturating_sub(without_ns)
                    };
                    if budget.is_spent(now_ns, cpu_time_ns) {
                        return Err(Death::Endless { rip: self.frame.rip });
                    }
                }
                vector => {
                    let is_page_fault = vector == PAGE_FAULT;
                    return Err(Death::Trapped {
                        vector,
                        error: self.frame.error,
                        rip: self.frame.rip,
                        address: if is_page_fault { shared_info::fault_address() } else { 0 },
                    });
                }
            }
        }
    }

    /// Goes to user mode and comes back. Events that arrive meanwhile interrupt it, each once: they
    /// stay pending for the unit's own loop.
    fn switch(&mut self) {
        let words = event_words();
        let hidden = words.hide();
        shared_info::upcall_pending().store(0, Ordering::SeqCst);
        self.frame.cs = FLAT_USER_CS.into();
        self.frame.ss = FLAT_USER_SS.into();
        self.frame.rflags = self.frame.rflags & ARITHMETIC | INTERRUPTIBLE;
        // SAFETY: 1. User mode reaches no memory of the kernel part (`map`), and begins with a
        // user's segments and flags, whatever it left in the frame. 2. The routine keeps what Rust
        // expects to be kept, and answers the address of a frame on the exit stack, which stays as
        // it is until the next switch.
        self.frame = unsafe { *ppvmm_enter_user(&raw const self.frame) };
        words.show(hidden);
    }

    fn copy_output(&mut self) -> Result<(), Death> {
        let at = places::OUTPUT.offset();
        let count = self.arena.load_u32(at);
        if count as usize > OUTPUT_WORDS {
            return Err(Death::Overlong(count));
        }
        self.output.resize(count as usize, 0);
        self.arena.read_words(at + 4, &mut self.output);
        Ok(())
    }

    /// The text of a panic, until the program is renewed.
    pub fn panic_text(&self) -> FailureText {
        let mut bytes = [0; FailureText::BYTES];
        let at = places::OUTPUT.offset();
        self.arena.read(at + 4, &mut bytes);
        FailureText::of_bytes(bytes, self.arena.load_u32(at) as usize)
    }
}

/// `rflags` of an interruptible program: IF, and the bit that is always set.
const INTERRUPTIBLE: u64 = 0x202;
/// The flags that an interrupted program keeps: carry, parity, adjust, zero, sign, direction,
/// overflow.
const ARITHMETIC: u64 = 0xcd5;

fn map(draft: &Draft, arena: &DmaMemory, parts: &Parts) {
    let frames = |memory: &DmaMemory, first: usize, pages: usize| {
        let memory = *memory;
        (first..first + pages).map(move |page| memory.machine_frame(page))
    };
    for area in [places::STACK, places::INPUT, places::OUTPUT, places::STATE] {
        let how = if area == places::INPUT { Use::Read } else { Use::Write };
        let pages = frames(arena, area.offset() / PAGE_SIZE, area.pages);
        // SAFETY: The arena is no Rust memory, and what is read from it is copied and checked.
        unsafe { draft.map(area.first, pages, how) }
    }
    if let Some((first, pages)) = parts.registers {
        assert!(pages <= places::REGISTERS.pages, "{pages} pages of registers");
        let frames = first.0..first.0 + pages as u64;
        // SAFETY: Registers are only read, and hold nothing of Rust's.
        unsafe { draft.map(places::REGISTERS.first, frames, Use::ReadRegisters) }
    }
    if let Some((memory, pages)) = &parts.view {
        assert!(*pages <= places::VIEW.pages, "{pages} pages to look at");
        // SAFETY: They are only read.
        unsafe { draft.map(places::VIEW.first, frames(memory, 0, *pages), Use::Read) }
    }
}

/// Tells Xen where to go on when user mode ends.
fn open_exits() -> Result<(), XenError> {
    /// `CALLBACKOP_register`, `CALLBACKTYPE_syscall`, `CALLBACKF_mask_events`.
    const REGISTER: u64 = 0;
    const SYSCALL: u16 = 2;
    const MASK_EVENTS: u16 = 1;
    let stack = &raw const ppvmm_exit_stack_top as u64;
    let address = ppvmm_user_call as *const () as u64;
    let callback = CallbackRegister { kind: SYSCALL, flags: MASK_EVENTS, address };
    // SAFETY: The exit stack is used for nothing else; the handler keeps to Xen's rules
    // (user/entry.s); Xen reads one structure.
    let results = unsafe {
        [
            hypercall(Call::StackSwitch, [FLAT_KERNEL_SS.into(), stack, 0, 0, 0]),
            hypercall(Call::CallbackOp, [REGISTER, &raw const callback as u64, 0, 0, 0]),
        ]
    };
    for result in results {
        abi::hypercall::outcome(result)?;
    }
    Ok(())
}
