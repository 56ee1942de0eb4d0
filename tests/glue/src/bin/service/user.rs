//! A program in user mode that does what it is told, and how it ended.

use alloc::vec::Vec;
use core::hint::black_box;

use abi::Xen;
use fabric::SharedMemory;
use glue_test::{deed, ending};
use runtime::user::{Death, FaultDomain, Inside, Parts, Program};
use runtime::{Hypervisor, mishap};

/// The text of its panic.
const TEXT: &str = "told to panic in user mode";
/// What lies in the memory that it may look at.
const SEEN: u32 = 0x7365_656e;
/// Words it puts out at a time.
const PIECE: usize = 300;

/// The program's state.
#[derive(Debug)]
struct Obedient {
    sum: u32,
}

impl Program for Obedient {
    fn begin() -> Self {
        Self { sum: 0 }
    }

    fn serve(&mut self, inside: &mut Inside) {
        let [what, with] = inside.input() else { panic!("two words are a command") };
        match *what {
            deed::ADD => {
                self.sum += with;
                inside.put(&[self.sum]);
            }
            deed::PUT => {
                for first in (0..*with).step_by(PIECE) {
                    let piece: [u32; PIECE] = core::array::from_fn(|index| first + index as u32);
                    inside.put(&piece[..PIECE.min((with - first) as usize)]);
                }
            }
            deed::PANIC => panic!("{TEXT}"),
            deed::WILD_READ => mishap::wild_read(),
            deed::WILD_WRITE => mishap::wild_write(),
            deed::WILD_JUMP => mishap::wild_jump(),
            deed::UNDEFINED => mishap::undefined_instruction(),
            deed::OVERFLOW => mishap::stack_overflow(),
            deed::DIVIDE => mishap::division_by_zero(),
            deed::LOOP => mishap::endless_loop(),
            deed::READ_KERNEL => mishap::read_kernel(),
            deed::WRITE_KERNEL => mishap::write_kernel(),
            deed::READ_MACHINE_FRAMES => mishap::read_machine_frames(),
            deed::HYPERCALL => mishap::hypercall_in_user_mode(),
            deed::ALLOCATE => {
                let block = black_box(Vec::<u32>::with_capacity(black_box(5)));
                inside.put(&[block.capacity() as u32]);
            }
            deed::WRITE_VIEW => inside.view().store_u32(0, 0),
            deed::ENTRY => mishap::jump_to_entry(),
            _ => inside.put(&[inside.view().load_u32(0)]),
        }
    }
}

/// The fault domain with the program, and what it did last.
#[derive(Debug)]
pub struct Contained {
    xen: Hypervisor,
    domain: FaultDomain<Obedient>,
    pub took_ns: u64,
    /// Where it died: the address of a page fault, else the place.
    pub address: u64,
}

impl Contained {
    pub fn open(xen: Hypervisor) -> Self {
        let memory = xen.dma_memory(1);
        memory.store_u32(0, SEEN);
        let parts = Parts { registers: None, view: Some((memory, 1)) };
        let domain = FaultDomain::open(xen, &parts).expect("Xen accepts the tables of user mode");
        Self { xen, domain, took_ns: 0, address: 0 }
    }

    /// Enters the program; a program that died is renewed.
    pub fn enter(&mut self, what: u32, with: u32) -> u64 {
        let start_ns = self.xen.now_ns();
        let mut answer = Vec::new();
        let result = self.domain.enter(&[what, with], |words| {
            answer.extend_from_slice(words);
            true
        });
        self.took_ns = self.xen.now_ns() - start_ns;
        let Err(death) = result else { return answered(what, &answer) };
        let value = match death {
            Death::Trapped { vector, rip, address, .. } => {
                self.address = if address == 0 { rip } else { address };
                ending::TRAP + vector
            }
            Death::Endless { rip } => {
                self.address = rip;
                ending::ENDLESS
            }
            Death::Panicked if self.domain.panic_text().as_str().ends_with(TEXT) => {
                ending::PANICKED
            }
            Death::Called(_) => ending::CALLED,
            _ => ending::OTHER,
        };
        self.domain.renew();
        value
    }
}

/// The value of what came out.
fn answered(what: u32, answer: &[u32]) -> u64 {
    if what == deed::PUT {
        return answer.iter().zip(0..).take_while(|(word, index)| *word == index).count() as u64;
    }
    answer.first().copied().map_or(ending::OTHER, u64::from)
}
