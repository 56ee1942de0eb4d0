//! An ordinary PVH guest of Xen, as its own kernel sees it: its rings, its grant table, its event
//! channels. Nothing here is more than any guest may do; what it does with it is its own business.

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::cell::Cell;
use core::ffi::CStr;
use core::fmt;
use core::fmt::Write;
use core::slice;
use core::sync::atomic::Ordering;

use abi::hypercall::{Call, outcome};
use abi::layout::{AddToPhysmap, AllocUnbound, BindInterdomain, HvmParamArgument, SchedPoll};
use abi::{DomId, PAGE_SIZE, Port, ShutdownReason, XenError};

use crate::cell::OneCpu;
use crate::console::Console;
use crate::span::Span;
use crate::symbols::{ppvmm_guest_pages, ppvmm_shared_info};
use crate::{FabricMemory, clock, shared_info};

/// `HVM_PARAM_STORE_PFN`: the frame of the XenStore ring (hvm/params.h).
pub const PARAM_STORE_PFN: u32 = 1;
/// `HVM_PARAM_STORE_EVTCHN`: the port of the XenStore channel.
pub const PARAM_STORE_PORT: u32 = 2;
/// `HVM_PARAM_CONSOLE_PFN`: the frame of the console ring.
pub const PARAM_CONSOLE_PFN: u32 = 17;
/// `HVM_PARAM_CONSOLE_EVTCHN`: the port of the console channel.
pub const PARAM_CONSOLE_PORT: u32 = 18;

/// Whether this unikernel runs as a guest.
static OPEN: OneCpu<Cell<bool>> = OneCpu::new(Cell::new(false));

/// A guest's hands.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    command_line: &'static str,
    module: &'static [u8],
}

/// Calls Xen by its stub for this call.
///
/// # Safety
/// As for [`abi::hypercall::hypercall`]; the stubs must be there (see [`open`]).
unsafe fn call(call: Call, arguments: [u64; 3]) -> Result<u64, XenError> {
    /// Bytes of a stub (`hypercall_page`, arch-x86/cpuid.h).
    const STUB: u64 = 32;
    let stub = &raw const ppvmm_guest_pages as u64 + call as u64 * STUB;
    let result: i64;
    // SAFETY: Xen preserves every register but rax; as in `abi`, argument registers count as
    // overwritten. The stub returns; it uses a word of the stack.
    unsafe {
        asm!(
            "call {stub}",
            stub = in(reg) stub,
            lateout("rax") result,
            inlateout("rdi") arguments[0] => _,
            inlateout("rsi") arguments[1] => _,
            inlateout("rdx") arguments[2] => _,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    outcome(result)
}

/// Makes this machine a guest's, if Xen runs it: hypercall stubs, shared information, grant table.
pub(crate) fn open(start_info: u64) -> Option<Guest> {
    /// Xen's CPUID leaves begin at one of these (arch-x86/cpuid.h): signature in ebx, ecx, edx.
    const LEAVES: core::ops::Range<u32> = 0x4000_0000..0x4001_0000;
    const SIGNATURE: (u32, u32, u32) = (0x566e_6558, 0x6558_4d4d, 0x4d4d_566e);
    let leaf = LEAVES.step_by(0x100).find(|leaf| {
        let found = __cpuid(*leaf);
        (found.ebx, found.ecx, found.edx) == SIGNATURE
    })?;
    let register = __cpuid(leaf + 2).ebx;
    let stubs = &raw const ppvmm_guest_pages as u64;
    // SAFETY: Xen fills the static page, which exists for this, with code.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") stubs as u32, in("edx") (stubs >> 32) as u32);
    }
    let grants = stubs + PAGE_SIZE as u64;
    let shared = &raw const ppvmm_shared_info as u64;
    /// `XENMAPSPACE_shared_info`, `XENMAPSPACE_grant_table`.
    const SPACES: (u32, u32) = (0, 1);
    add_to_physmap(SPACES.0, 0, shared).ok()?;
    add_to_physmap(SPACES.1, 0, grants).ok()?;
    for word in shared_info::mask() {
        word.store(!0, Ordering::Relaxed);
    }
    OPEN.set(true);
    // SAFETY: Xen's loader passes the address of `hvm_start_info`; it and what it points to lie in
    // memory that is mapped and that nobody writes.
    let (command_line, module) = unsafe { passed(start_info) };
    Some(Guest { command_line, module })
}

/// Puts a page of Xen's in the place of a frame of ours.
fn add_to_physmap(space: u32, index: u64, address: u64) -> Result<u64, XenError> {
    /// `XENMEM_add_to_physmap`.
    const ADD: u64 = 7;
    let gpfn = address / PAGE_SIZE as u64;
    let argument = AddToPhysmap { domid: DomId::SELF.0, size: 0, space, index, gpfn };
    // SAFETY: Xen reads the argument. The frame is a static page without Rust objects.
    unsafe { call(Call::MemoryOp, [ADD, &raw const argument as u64, 0]) }
}

/// The command line and the first module.
///
/// # Safety
/// `start_info` must be the address of a valid `hvm_start_info` in memory that never changes.
unsafe fn passed(start_info: u64) -> (&'static str, &'static [u8]) {
    /// Offsets of `nr_modules`, `modlist_paddr`, `cmdline_paddr` (arch-x86/hvm/start_info.h).
    const FIELDS: (u64, u64, u64) = (12, 16, 24);
    // SAFETY: The caller's duty; the fields are aligned.
    unsafe {
        let long = |address: u64| (address as *const u64).read();
        let modules = ((start_info + FIELDS.0) as *const u32).read();
        let list = long(start_info + FIELDS.1);
        let line = long(start_info + FIELDS.2);
        let module = match modules {
            0 => &[],
            _ => slice::from_raw_parts(long(list) as *const u8, long(list + 8) as usize),
        };
        let line = if line == 0 { c"" } else { CStr::from_ptr(line as *const core::ffi::c_char) };
        (line.to_str().unwrap_or(""), module)
    }
}

/// Crashes the guest that this is, if it is one.
pub(crate) fn crash_if_open() {
    if OPEN.get() {
        // Xen does not return from a crash.
        let _ = shut_down(ShutdownReason::Crash);
    }
}

fn shut_down(reason: ShutdownReason) -> Result<u64, XenError> {
    /// `SCHEDOP_shutdown`.
    const SHUTDOWN: u64 = 2;
    let code = u32::from(reason.code());
    // SAFETY: Xen reads one word.
    unsafe { call(Call::SchedOp, [SHUTDOWN, &raw const code as u64, 0]) }
}

impl Guest {
    /// Its command line.
    pub fn command_line(&self) -> &'static str {
        self.command_line
    }

    /// Its first module (a Linux guest's initial RAM disk); empty without one.
    pub fn module(&self) -> &'static [u8] {
        self.module
    }

    /// Xen's system time in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    /// A parameter that its toolstack has set.
    ///
    /// # Errors
    /// What Xen says.
    pub fn param(&self, index: u32) -> Result<u64, XenError> {
        /// `HVMOP_get_param`.
        const GET: u64 = 1;
        let mut argument = HvmParamArgument { domid: DomId::SELF.0, pad: 0, index, value: 0 };
        // SAFETY: Xen reads and writes the argument.
        unsafe { call(Call::HvmOp, [GET, &raw mut argument as u64, 0]) }?;
        Ok(argument.value)
    }

    /// The page of the special region at this frame, as [`Guest::param`] tells it. `None`: no frame
    /// of that region, which alone is known to hold nothing of ours.
    pub fn ring(&self, gfn: u64) -> Option<FabricMemory> {
        /// Frames of the special region (`X86_HVM_NR_SPECIAL_PAGES` below 0xff000).
        const SPECIAL: core::ops::Range<u64> = 0xfeff8..0xff000;
        if !SPECIAL.contains(&gfn) {
            return None;
        }
        let base = core::ptr::with_exposed_provenance_mut(gfn as usize * PAGE_SIZE);
        // SAFETY: 1. Identity-mapped for ever; a frame without a page behind it reads as ones. 2.
        // Only memory of Xen's loader lies there. 3. A page is aligned.
        Some(FabricMemory::new(unsafe { Span::new(base, PAGE_SIZE) }))
    }

    /// The first frame of its grant table: 512 entries of 8 bytes (`grant_entry_v1`).
    pub fn grants(&self) -> FabricMemory {
        let base = (&raw mut ppvmm_guest_pages).cast::<u8>().wrapping_add(PAGE_SIZE);
        // SAFETY: 1. A static page. 2. No Rust object uses it. 3. A page is aligned.
        FabricMemory::new(unsafe { Span::new(base, PAGE_SIZE) })
    }

    /// Notifies the other end of a port.
    ///
    /// # Errors
    /// What Xen says.
    pub fn send(&self, port: Port) -> Result<(), XenError> {
        /// `EVTCHNOP_send`.
        const SEND: u64 = 4;
        // SAFETY: Xen reads one word.
        unsafe { call(Call::EventChannelOp, [SEND, &raw const port.0 as u64, 0]) }.map(drop)
    }

    /// Closes a port.
    ///
    /// # Errors
    /// What Xen says.
    pub fn close(&self, port: Port) -> Result<(), XenError> {
        /// `EVTCHNOP_close`.
        const CLOSE: u64 = 3;
        // SAFETY: Xen reads one word.
        unsafe { call(Call::EventChannelOp, [CLOSE, &raw const port.0 as u64, 0]) }.map(drop)
    }

    /// Allocates a port that `remote` may bind.
    ///
    /// # Errors
    /// What Xen says.
    pub fn alloc_unbound(&self, remote: DomId) -> Result<Port, XenError> {
        /// `EVTCHNOP_alloc_unbound`.
        const ALLOC: u64 = 6;
        let mut argument = AllocUnbound { dom: DomId::SELF.0, remote_dom: remote.0, port: 0 };
        // SAFETY: Xen reads and writes the argument.
        unsafe { call(Call::EventChannelOp, [ALLOC, &raw mut argument as u64, 0]) }?;
        Ok(Port(argument.port))
    }

    /// Binds a new port to a port of another domain that is meant for this one.
    ///
    /// # Errors
    /// What Xen says.
    pub fn bind(&self, remote: DomId, remote_port: Port) -> Result<Port, XenError> {
        /// `EVTCHNOP_bind_interdomain`.
        const BIND: u64 = 0;
        let (remote_dom, remote_port) = (remote.0, remote_port.0);
        let mut argument = BindInterdomain { remote_dom, remote_port, local_port: 0 };
        // SAFETY: Xen reads and writes the argument.
        unsafe { call(Call::EventChannelOp, [BIND, &raw mut argument as u64, 0]) }?;
        Ok(Port(argument.local_port))
    }

    /// Sleeps until this time, whatever happens.
    pub fn sleep_until(&self, at_ns: u64) {
        /// `SCHEDOP_poll`.
        const POLL: u64 = 3;
        let argument = SchedPoll { ports: 0, nr_ports: 0, timeout: at_ns };
        while self.now_ns() < at_ns {
            // SAFETY: Xen reads the argument, and no ports. A refusal only means that we spin.
            let _ = unsafe { call(Call::SchedOp, [POLL, &raw const argument as u64, 0]) };
        }
    }

    /// Takes the page behind a frame of the special region away from the guest.
    ///
    /// # Errors
    /// What Xen says; [`XenError::Invalid`]: not in that region.
    pub fn give_up_page(&self, gfn: u64) -> Result<(), XenError> {
        /// `XENMEM_remove_from_physmap`.
        const REMOVE: u64 = 15;
        self.ring(gfn).ok_or(XenError::Invalid)?;
        // `xen_remove_from_physmap`: domid, then the frame.
        let argument = [u64::from(DomId::SELF.0), gfn];
        // SAFETY: Xen reads the argument. Nothing of ours lies in that frame.
        unsafe { call(Call::MemoryOp, [REMOVE, argument.as_ptr() as u64, 0]) }.map(drop)
    }

    /// Ends, or for [`ShutdownReason::Suspend`] pauses, this guest.
    ///
    /// # Errors
    /// What Xen says, if it goes on.
    pub fn shutdown(&self, reason: ShutdownReason) -> Result<(), XenError> {
        shut_down(reason).map(drop)
    }

    /// Prints a line where Xen prints guests' debug text (I/O port 0xe9).
    pub fn print(&self, line: fmt::Arguments<'_>) {
        // The console never refuses text.
        let _ = writeln!(Console, "{line}");
    }
}
