//! The start of a life.

use core::cell::Cell;
use core::fmt::Write;
use core::slice;

use abi::hypercall::{Call, hypercall, outcome};
use abi::layout::StartInfo;
use abi::{Control, DomId, PAGE_SIZE, XenError};

use crate::cell::OneCpu;
use crate::console::{self, Console};
use crate::fabric_pages::{self, FabricRange};
use crate::failure::{self, FailureText};
use crate::guest::Guest;
use crate::mapping::FabricMemory;
use crate::selftest::{self, Test};
use crate::symbols::{UNIKERNEL, ppvmm_shared_info, ppvmm_stack_guard};
use crate::{
    Hypervisor, facts, grants, heap, hypervisor, mapping, paging, survivor, timer, traps, upcall,
    user, window,
};

/// How this life came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The first one of this domain.
    First,
    /// Rung 1: memory is as the former life left it. (For the orchestrator: its own failure.)
    Microreset,
    /// Rung 2: the image is pristine; ports, mappings and the fabric are as they were.
    Microreboot,
}

impl Life {
    fn of_rung(rung: u64) -> Self {
        match rung {
            0 => Self::First,
            1 => Self::Microreset,
            _ => Self::Microreboot,
        }
    }
}

/// What a unikernel starts with.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    hypervisor: Hypervisor,
    life: Life,
    command_line: &'static str,
    archive: &'static [u8],
    aside: Option<FabricMemory>,
    failure: Option<FailureText>,
}

impl Boot {
    /// The hypervisor.
    pub fn hypervisor(&self) -> Hypervisor {
        self.hypervisor
    }

    /// How this life came to be.
    pub fn life(&self) -> Life {
        self.life
    }

    /// The command line: words such as `unit=1`.
    pub fn command_line(&self) -> &'static str {
        self.command_line
    }

    /// The value of the word `name=value` of the command line.
    pub fn argument(&self, name: &str) -> Option<&'static str> {
        argument(self.command_line, name)
    }

    /// The module that Xen gave the initial domain; empty in other domains.
    pub fn archive(&self) -> &'static [u8] {
        self.archive
    }

    /// The pages that this service has aside of its image and heap ([`Unikernel::with_aside`]).
    /// Neither a microreset nor a microreboot touches them: they hold what the former life left
    /// there, and in a first one anything. `None`: this domain is not one of our builder's.
    pub fn aside(&self) -> Option<FabricMemory> {
        self.aside
    }

    /// Bytes of the page tables that this domain started with.
    pub fn table_bytes(&self) -> usize {
        facts::get().tables as usize * PAGE_SIZE
    }

    /// The panic or trap that the orchestrator recovers from.
    pub fn failure(&self) -> Option<FailureText> {
        self.failure
    }
}

fn argument<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Which rules a unikernel lives by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Service,
    Orchestrator,
}

/// A unikernel: made by [`crate::service!`], [`crate::orchestrator!`] or [`crate::guest!`].
#[derive(Clone, Copy, Debug)]
pub struct Unikernel {
    pub(crate) kind: Kind,
    pub(crate) main: fn(Boot) -> !,
    /// Where it starts as an ordinary PVH guest.
    pub(crate) guest: Option<fn(Guest) -> !>,
    pub(crate) fabric: FabricRange,
    /// Pages at the end of its memory that are not the heap's.
    aside: usize,
    pub(crate) tests: &'static [Test],
    /// Whether memory is kept for the page tables of user mode.
    pub(crate) has_user_mode: bool,
}

impl Unikernel {
    /// A service that starts in `main`.
    pub const fn service(main: fn(Boot) -> !) -> Self {
        let (guest, fabric) = (None, FabricRange::NONE);
        Self {
            kind: Kind::Service,
            main,
            guest,
            fabric,
            aside: 0,
            tests: &[],
            has_user_mode: false,
        }
    }

    /// A guest that starts in `main` where Xen runs it as a PVH domain. Elsewhere it tests itself.
    pub const fn guest(main: fn(Guest) -> !) -> Self {
        fn no_unit(_: Boot) -> ! {
            panic!("a guest is no unit of this host")
        }
        Self { guest: Some(main), ..Self::service(no_unit) }
    }

    /// The orchestrator, with its fabric.
    pub const fn orchestrator(main: fn(Boot) -> !, fabric: FabricRange) -> Self {
        Self { kind: Kind::Orchestrator, fabric, ..Self::service(main) }
    }

    /// Keeps so many pages aside: see [`Boot::aside`].
    pub const fn with_aside(self, pages: usize) -> Self {
        Self { aside: pages, ..self }
    }

    /// Keeps what a [`crate::user::FaultDomain`] needs.
    pub const fn with_user_mode(self) -> Self {
        Self { has_user_mode: true, ..self }
    }

    /// Adds tests of its own to the self-test.
    pub const fn with_tests(self, tests: &'static [Test]) -> Self {
        Self { tests, ..self }
    }
}

/// What the orchestrator starts with, kept for its next life.
static BOOT: OneCpu<Cell<Option<Boot>>> = OneCpu::new(Cell::new(None));

/// Xen's version that the structures of `abi` belong to.
const XEN_VERSION: (u64, u64) = (4, 17);

/// Called by `entry.s` with an empty stack.
#[unsafe(no_mangle)]
extern "C" fn ppvmm_pv_entry(start_info: u64, rung: u64) -> ! {
    // SAFETY: Whoever starts a PV domain passes the address of its start information, which stays
    // mapped and is written by nobody while the domain runs.
    let info: &'static StartInfo = unsafe { &*(start_info as *const StartInfo) };
    failure::reset();
    let facts = facts::learn(info);
    traps::open();
    if rung != 0 {
        traps::flush();
    }
    traps::own();
    let ours = window::is_prepared();
    // Only our builder passes a rung.
    let life = if ours { Life::of_rung(rung) } else { Life::First };
    console::open();
    share_page(info.shared_info);
    upcall::open();
    timer::open();
    if life == Life::First {
        hypervisor::event_words().reset();
        stop_ticker();
        guard_pages();
    }
    if let Err(error) = window::open() {
        failure::fail(format_args!("no window for mappings: {error}"));
    }
    let aside = open_memory(life, ours);
    let boot = Boot {
        hypervisor: Hypervisor::new(),
        life,
        command_line: command_line(info),
        archive: if facts.initial { archive(info) } else { &[] },
        aside,
        failure: None,
    };
    if facts.initial {
        allow_ports();
    }
    start(boot)
}

fn start(boot: Boot) -> ! {
    let initial = facts::get().initial;
    let wanted = match UNIKERNEL.kind {
        Kind::Orchestrator => initial && boot.argument("selftest").is_none(),
        Kind::Service => boot.argument("unit").is_some(),
    };
    if !wanted {
        selftest::run()
    }
    if initial {
        check_xen(&boot.hypervisor);
    }
    BOOT.set(Some(boot));
    (UNIKERNEL.main)(boot)
}

/// The orchestrator's next life after a failure of its own: everything mapped is unmapped, upcalls
/// are masked, nothing else changes.
pub(crate) fn again(failure: FailureText) -> Boot {
    failure::reset();
    upcall::open();
    timer::open();
    mapping::drop_all();
    let boot = BOOT.get().expect("only a started orchestrator recovers");
    Boot { life: Life::Microreset, failure: Some(failure), ..boot }
}

/// Makes the page that Xen shares with us visible in our image.
fn share_page(machine_address: u64) {
    let address = &raw const ppvmm_shared_info as u64;
    let wanted = paging::leaf(machine_address >> 12, true);
    if paging::entry(address, 1).is_some_and(|entry| entry.maps_as(wanted)) {
        // A former life has done it.
        return;
    }
    // SAFETY: The static page exists for this, and is accessed as memory that others write.
    if let Err(error) = unsafe { paging::set_leaf(address, wanted) } {
        failure::fail(format_args!("no shared information page: {error}"));
    }
}

/// Page 0, so that a null pointer faults, and the page below the stack become empty.
fn guard_pages() {
    for address in [0, &raw const ppvmm_stack_guard as u64] {
        // SAFETY: Nothing of ours lies in either page. Where the entry is missing already, there
        // is nothing to do.
        let _ = unsafe { paging::set_leaf(address, 0) };
    }
}

/// Gives the records of grants, the heap and the pages aside their places, and decides whether what
/// a former life left in memory is trusted. Answers the pages aside.
fn open_memory(life: Life, ours: bool) -> Option<FabricMemory> {
    /// Xen and libxl map at least 512 KiB behind their tables; no more is taken.
    const LOOSE_BYTES: u64 = 512 << 10;
    let page = PAGE_SIZE as u64;
    let facts = facts::get();
    let (begin, end) = if ours {
        let tables = (facts.pages - facts.tables) * page;
        let aside = UNIKERNEL.aside as u64 * page;
        (facts.after_p2m(), tables.min(facts.top_table).saturating_sub(aside))
    } else {
        // Behind the tables comes one page of boot stack, which we do not use any more.
        let begin = facts.top_table + (facts.tables + 1) * page;
        let mapped = |address| paging::entry(address, 1).is_some_and(|entry| entry.present());
        let pages = (0..LOOSE_BYTES / page).take_while(|n| mapped(begin + n * page)).count();
        (begin, begin + pages as u64 * page)
    };
    let heap_end = if UNIKERNEL.has_user_mode { user::reserve_tables(end) } else { end };
    let heap = begin + (grants::RECORD_PAGES * PAGE_SIZE) as u64;
    if heap >= heap_end {
        failure::fail(format_args!("too little memory: {} pages", facts.pages));
    }
    heap::look_back();
    let sound = !heap::was_interrupted() && !survivor::was_changing() && heap::generation() > 0;
    let keep = life == Life::Microreset && sound;
    grants::forget_table();
    // SAFETY: The range is free memory of this domain by the contract with its builder, page-
    // aligned and mapped; only this function ever uses it, in every life in the same way. When
    // the heap starts afresh nothing of it is in use: this life has not begun, and survivors of
    // former ones are recognised by the heap's generation.
    unsafe {
        grants::open(begin, life == Life::First, keep);
        if !keep {
            heap::start(heap, heap_end);
        }
    }
    survivor::settle();
    // SAFETY: Behind the heap lie the pages that were taken off its end, mapped for the life of the
    // domain; these are used by nothing else of ours.
    ours.then(|| unsafe { fabric_pages::memory_at(end, UNIKERNEL.aside) })
}

fn command_line(info: &'static StartInfo) -> &'static str {
    let len = info.cmd_line.iter().position(|byte| *byte == 0).unwrap_or(info.cmd_line.len());
    core::str::from_utf8(&info.cmd_line[..len]).unwrap_or("")
}

fn archive(info: &StartInfo) -> &'static [u8] {
    let last = info.mod_start + info.mod_len.saturating_sub(1);
    if info.mod_len == 0 || paging::entry(last, 1).is_none() {
        return &[];
    }
    // SAFETY: Xen has loaded and mapped the module there, in memory of ours that nobody writes.
    unsafe { slice::from_raw_parts(info.mod_start as *const u8, info.mod_len as usize) }
}

/// Xen ticks PV domains a hundred times a second from their start; ours sleep until there is work.
fn stop_ticker() {
    /// `VCPUOP_stop_periodic_timer`.
    const STOP_PERIODIC: u64 = 7;
    // SAFETY: No memory is passed; for the own vCPU 0 it cannot fail.
    let _ = unsafe { hypercall(Call::VcpuOp, [STOP_PERIODIC, 0, 0, 0, 0]) };
}

/// Lets the initial domain use I/O ports, for [`Hypervisor::machine_exit`].
fn allow_ports() {
    /// `PHYSDEVOP_set_iopl`.
    const SET_IOPL: u64 = 6;
    let level = 1u32;
    // SAFETY: Xen reads one word. Without the right the exit traps, and the trap is reported.
    let _ = unsafe { hypercall(Call::PhysdevOp, [SET_IOPL, &raw const level as u64, 0, 0, 0]) };
}

/// Ends with a message unless this is the Xen whose control interface we know.
fn check_xen(hypervisor: &Hypervisor) {
    /// `XENVER_version`.
    const VERSION: u64 = 0;
    // SAFETY: No memory is passed.
    let version = outcome(unsafe { hypercall(Call::XenVersion, [VERSION, 0, 0, 0, 0]) });
    let control = hypervisor.domain_info(DomId::ORCHESTRATOR).map(|_| ());
    if let Some(misfit) = misfit(version.unwrap_or(0), control) {
        let _ = writeln!(Console, "\n{misfit}");
        hypervisor.machine_exit(failure::EXIT_FAILED)
    }
}

/// A Xen that we cannot work on.
struct Misfit {
    /// Its major and minor version.
    version: (u64, u64),
    /// Why its control interface does not serve, if it does not.
    control: Option<XenError>,
}

/// What is wrong with a Xen of this `version` (as `XENVER_version` tells it) that answers the first
/// control operation with `control`.
fn misfit(version: u64, control: Result<(), XenError>) -> Option<Misfit> {
    let version = (version >> 16, version & 0xffff);
    let fits = version == XEN_VERSION && control.is_ok();
    (!fits).then(|| Misfit { version, control: control.err() })
}

impl core::fmt::Display for Misfit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let ((major, minor), (known_major, known_minor)) = (self.version, XEN_VERSION);
        write!(
            f,
            "PpVMM needs Xen {known_major}.{known_minor} with domctl interface {:#x}; \
             this is Xen {major}.{minor}{}.",
            abi::layout::DOMCTL_VERSION,
            match self.control {
                Some(XenError::WrongVersion) => ", and its domctl interface differs",
                Some(_) => ", and it refuses control operations",
                None => "",
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_xen_is_told_what_is_needed() {
        let said = |version, control| misfit(version, control).map(|misfit| misfit.to_string());
        let (ours, needs) = (4 << 16 | 17, "PpVMM needs Xen 4.17 with domctl interface 0x15");
        assert_eq!(said(ours, Ok(())), None);
        let newer = said(4 << 16 | 18, Err(XenError::WrongVersion));
        let text = "; this is Xen 4.18, and its domctl interface differs.";
        assert_eq!(newer, Some(format!("{needs}{text}")));
        assert_eq!(said(5 << 16, Ok(())), Some(format!("{needs}; this is Xen 5.0.")));
        let refused = said(ours, Err(XenError::NotPermitted));
        let text = "; this is Xen 4.17, and it refuses control operations.";
        assert_eq!(refused, Some(format!("{needs}{text}")));
    }

    #[test]
    fn arguments_are_words_with_a_value() {
        let line = "unit=1 fabric=4096,300  doorbell=3 units=9";
        assert_eq!(argument(line, "unit"), Some("1"));
        assert_eq!(argument(line, "fabric"), Some("4096,300"));
        assert_eq!(argument(line, "door"), None);
        assert_eq!(argument("selftest=1", "selftest"), Some("1"));
    }
}
