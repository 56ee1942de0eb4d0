//! The machine: its clock, its domains, its memory, and how a test moves it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::rc::Rc;

use abi::{
    Access, CreateDomain, DomId, DomainState, Frame, GrantRef, HvmEntry, HvmParam, PciAddress,
    PortStatus, PvEntry, Registers, Schedule, ShutdownReason, Virq, XenError,
};

use crate::mapping::{FakeFabric, FakeMapping};
use crate::memory::{GARBAGE, POISON, Page};
use crate::ports::Ports;
use crate::xen::FakeXen;

/// The calls that a test can make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is named after the method of `Xen` or `Control`")]
pub enum Call {
    Send,
    AllocUnbound,
    BindInterdomain,
    BindVirq,
    Close,
    PortStatus,
    MapGrants,
    CreateDomain,
    DestroyDomain,
    DomainInfo,
    Pause,
    Unpause,
    Resume,
    ShutDown,
    Populate,
    MapForeign,
    MapGrantTable,
    PinTopTable,
    ResetVcpu,
    EnterPv,
    EnterHvm,
    Registers,
    SetRegisters,
    SetHvmParam,
    AllocPortFor,
    WriteRegister,
    AllowDeviceMemory,
    GiveInterrupt,
    SetWatchdog,
    SetCpuWeight,
}

/// A failure to come.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which call fails.
    pub call: Call,
    /// Calls of this kind that still succeed before it.
    pub after: u32,
    /// With what.
    pub error: XenError,
}

/// Where a domain's vCPU is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VcpuState {
    /// Created, or cleared: no context.
    #[default]
    Clear,
    /// Set to a PV entry.
    Pv(PvEntry),
    /// Set to a PVH entry.
    Hvm(HvmEntry),
}

/// `CSCHED2_DEFAULT_WEIGHT`: what every domain begins with.
const DEFAULT_CPU_WEIGHT: u16 = 256;

/// Where `evtchn_upcall_mask` of the first vCPU lies in the shared information page (xen.h).
const UPCALL_MASK: usize = 1;

/// A grant that is not in a page of the domain's own: the fabric's.
pub(crate) type Grant = (DomId, Page, Access);

#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) what: CreateDomain,
    pub(crate) state: DomainState,
    pub(crate) pauses: u32,
    pub(crate) blocked: bool,
    pub(crate) running: bool,
    pub(crate) cpu_time_ns: u64,
    pub(crate) cpu_weight: u16,
    pub(crate) ports: Ports,
    pub(crate) timer_at_ns: Option<u64>,
    /// Guest frame (PVH) or machine frame (PV) to page.
    pub(crate) pages: BTreeMap<u64, Page>,
    pub(crate) grant_table: Page,
    pub(crate) shared_info: Page,
    pub(crate) sleeps_when_paused: bool,
    pub(crate) grants: BTreeMap<u32, Grant>,
    pub(crate) pinned: Option<Frame>,
    pub(crate) vcpu: VcpuState,
    pub(crate) registers: Registers,
    pub(crate) params: BTreeMap<u32, u64>,
}

impl Domain {
    pub(crate) fn new(what: CreateDomain) -> Self {
        Self {
            what,
            state: DomainState::Alive,
            pauses: 1,
            blocked: false,
            running: false,
            cpu_time_ns: 0,
            cpu_weight: DEFAULT_CPU_WEIGHT,
            ports: Ports::default(),
            timer_at_ns: None,
            pages: BTreeMap::new(),
            grant_table: Page::filled(0),
            shared_info: shared_info(),
            sleeps_when_paused: false,
            grants: BTreeMap::new(),
            pinned: None,
            vcpu: VcpuState::Clear,
            registers: Registers::default(),
            params: BTreeMap::new(),
        }
    }

    /// Whether it waits for an event, for which it lets upcalls in, and whether it has a CPU.
    pub(crate) fn set_scheduled(&mut self, blocked: bool, running: bool) {
        (self.blocked, self.running) = (blocked, running);
        self.shared_info.write(UPCALL_MASK, &[u8::from(!blocked)]);
    }
}

/// The shared information page of a domain that runs and lets no upcall in.
fn shared_info() -> Page {
    let page = Page::filled(0);
    page.write(UPCALL_MASK, &[1]);
    page
}

/// Somebody's mapping of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) mapper: DomId,
    pub(crate) owner: DomId,
    pub(crate) frame: u64,
    pub(crate) access: Access,
}

/// What a test wants to happen in the middle of a long call.
type Hook = Box<dyn FnMut(&Machine)>;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) now_ns: u64,
    /// Of the initial domain.
    pub(crate) schedule: Schedule,
    pub(crate) rate_limit_us: u32,
    pub(crate) next_frame: u64,
    pub(crate) domains: BTreeMap<DomId, Domain>,
    pub(crate) mappings: Vec<Mapped>,
    pub(crate) fabric: Option<FakeFabric>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) calls: BTreeMap<Call, u32>,
    pub(crate) printed: Vec<u8>,
    pub(crate) typed: VecDeque<u8>,
    pub(crate) watchdog: Option<u32>,
    pub(crate) hook: Option<Hook>,
    /// Configuration spaces by function, word by word.
    pub(crate) pci: BTreeMap<PciAddress, [u32; 64]>,
    /// Registers written by the initial domain, in order: machine address and value.
    pub(crate) registers: Vec<(u64, u32)>,
    /// Device memory given away: to whom, first frame, frames.
    pub(crate) device_memory: Vec<(DomId, Frame, u64)>,
    /// Interrupt lines given away.
    pub(crate) lines: Vec<(DomId, u32)>,
}

/// The machine; clones are the same one.
#[derive(Clone)]
pub struct Machine {
    pub(crate) state: Rc<RefCell<State>>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

/// A PV domain of a test that asks nothing of its size.
pub const SMALL_DOMAIN: CreateDomain = CreateDomain {
    pvh: false,
    vcpus: 1,
    max_memory_kib: 64,
    max_port: 15,
    grant_frames: 1,
    maptrack_frames: 1,
};

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// A machine on which only the initial domain runs.
    pub fn new() -> Self {
        let machine = Self { state: Rc::default() };
        let what = CreateDomain {
            pvh: false,
            vcpus: 1,
            max_memory_kib: 0,
            max_port: 4095,
            grant_frames: 64,
            maptrack_frames: 64,
        };
        let initial = Domain { pauses: 0, running: true, ..Domain::new(what) };
        let mut state = machine.state.borrow_mut();
        state.domains.insert(DomId::ORCHESTRATOR, initial);
        // Xen's default.
        state.rate_limit_us = 1_000;
        // Frames start somewhere that is no small number, so that they are not mixed up.
        state.next_frame = 0x1_0000;
        drop(state);
        machine
    }

    /// A machine whose initial domain has a fabric of `pages` pages, all zero.
    pub fn with_fabric(pages: usize) -> Self {
        let machine = Self::new();
        let zero = (0..pages).map(|_| Page::filled(0)).collect();
        let fabric = FakeFabric::new(zero, vec![Access::ReadWrite; pages]);
        machine.state.borrow_mut().fabric = Some(fabric);
        machine
    }

    /// The hypervisor as domain `id` sees it. The handle outlives the domain: calls then fail.
    pub fn domain(&self, id: DomId) -> FakeXen {
        FakeXen { machine: self.clone(), id }
    }

    /// Moves the clock; timers that are due fire.
    pub fn advance(&self, ns: u64) {
        let mut state = self.state.borrow_mut();
        state.now_ns += ns;
        let now_ns = state.now_ns;
        for domain in state.domains.values_mut() {
            if domain.timer_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
                domain.timer_at_ns = None;
                domain.ports.raise_virq(Virq::Timer);
            }
        }
    }

    /// Somebody else has the initial domain's CPU for so long.
    pub fn take_cpu(&self, ns: u64) {
        self.advance(ns);
        let mut state = self.state.borrow_mut();
        state.schedule.running_since_ns = state.now_ns;
        state.schedule.without_cpu_ns += ns;
    }

    /// How long a domain runs before one that wakes may take the CPU from it, in microseconds.
    pub fn rate_limit_us(&self) -> u32 {
        self.state.borrow().rate_limit_us
    }

    /// Lets a call fail.
    pub fn fail(&self, fault: Fault) {
        self.state.borrow_mut().faults.push(fault);
    }

    /// How often the call was made.
    pub fn calls(&self, call: Call) -> u32 {
        self.state.borrow().calls.get(&call).copied().unwrap_or(0)
    }

    /// Runs in the middle of each long call, before its `during`.
    pub fn hook(&self, hook: impl FnMut(&Machine) + 'static) {
        self.state.borrow_mut().hook = Some(Box::new(hook));
    }

    /// A domain shuts down or crashes; the initial domain is told.
    pub fn shut_down(&self, id: DomId, reason: ShutdownReason) {
        self.with_domain(id, |domain| {
            domain.state = DomainState::Shutdown(reason);
            domain.running = false;
        });
        self.announce_death();
    }

    /// The domain receives CPU time.
    pub fn receive_cpu(&self, id: DomId, ns: u64) {
        self.with_domain(id, |domain| domain.cpu_time_ns += ns);
    }

    /// Whether the domain waits for an event, and whether it has a CPU.
    pub fn set_scheduled(&self, id: DomId, blocked: bool, running: bool) {
        self.with_domain(id, |domain| domain.set_scheduled(blocked, running));
    }

    /// The domain goes to sleep just before it is paused the next time, as one on another CPU may.
    pub fn fall_asleep_when_paused(&self, id: DomId) {
        self.with_domain(id, |domain| domain.sleeps_when_paused = true);
    }

    /// Sets a domain's registers, as its own code would.
    pub fn run_to(&self, id: DomId, registers: Registers) {
        self.with_domain(id, |domain| domain.registers = registers);
    }

    /// How often the domain is paused.
    pub fn pauses(&self, id: DomId) -> u32 {
        self.with_domain(id, |domain| domain.pauses)
    }

    /// Where its vCPU was set.
    pub fn vcpu(&self, id: DomId) -> VcpuState {
        self.with_domain(id, |domain| domain.vcpu)
    }

    /// The parameter of a PVH domain.
    pub fn hvm_param(&self, id: DomId, param: HvmParam) -> Option<u64> {
        self.with_domain(id, |domain| domain.params.get(&(param as u32)).copied())
    }

    /// Whether a domain has this id, a zombie too.
    pub fn exists(&self, id: DomId) -> bool {
        self.state.borrow().domains.contains_key(&id)
    }

    /// Reads a page of a domain: machine frame (PV) or guest frame (PVH).
    pub fn read_page(&self, id: DomId, frame: Frame, offset: usize, into: &mut [u8]) {
        let page = self.with_domain(id, |domain| domain.pages[&frame.0].clone());
        page.read(offset, into);
    }

    /// Writes a page of a domain, as its own code would.
    pub fn write_page(&self, id: DomId, frame: Frame, offset: usize, from: &[u8]) {
        let page = self.with_domain(id, |domain| domain.pages[&frame.0].clone());
        page.write(offset, from);
    }

    /// Writes an entry of a domain's grant table, as its own code would.
    pub fn grant(&self, id: DomId, reference: GrantRef, to: DomId, frame: Frame, access: Access) {
        let flags: u16 = if access == Access::ReadOnly { 5 } else { 1 };
        let mut entry = [0; 8];
        entry[..2].copy_from_slice(&flags.to_le_bytes());
        entry[2..4].copy_from_slice(&to.0.to_le_bytes());
        entry[4..].copy_from_slice(&(frame.0 as u32).to_le_bytes());
        let table = self.with_domain(id, |domain| domain.grant_table.clone());
        table.write(reference.0 as usize * 8, &entry);
    }

    /// What was printed on Xen's console since the last call.
    pub fn take_printed(&self) -> String {
        let printed = std::mem::take(&mut self.state.borrow_mut().printed);
        String::from_utf8_lossy(&printed).into_owned()
    }

    /// Types on Xen's console.
    pub fn type_keys(&self, keys: &[u8]) {
        let mut state = self.state.borrow_mut();
        state.typed.extend(keys);
        if let Some(initial) = state.domains.get_mut(&DomId::ORCHESTRATOR) {
            initial.ports.raise_virq(Virq::Console);
        }
    }

    /// A domain's share of CPU time against others'.
    pub fn cpu_weight(&self, id: DomId) -> Option<u16> {
        self.state.borrow().domains.get(&id).map(|domain| domain.cpu_weight)
    }

    /// The seconds that the watchdog is armed for.
    pub fn watchdog(&self) -> Option<u32> {
        self.state.borrow().watchdog
    }

    /// Pages of `owner` that others have mapped.
    pub fn mapped_pages_of(&self, owner: DomId) -> usize {
        self.state.borrow().mappings.iter().filter(|mapped| mapped.owner == owner).count()
    }

    /// Puts a PCI function into the machine; `words` are its configuration space.
    pub fn add_pci(&self, at: PciAddress, words: [u32; 64]) {
        self.state.borrow_mut().pci.insert(at, words);
    }

    /// A word of a function's configuration space.
    pub fn pci_word(&self, at: PciAddress, offset: u8) -> Option<u32> {
        Some(self.state.borrow().pci.get(&at)?[usize::from(offset / 4)])
    }

    /// The device registers that the initial domain has written: machine address and value.
    pub fn written_registers(&self) -> Vec<(u64, u32)> {
        self.state.borrow().registers.clone()
    }

    /// Device memory that a domain may map: first frame and number of frames.
    pub fn device_memory_of(&self, id: DomId) -> Vec<(Frame, u64)> {
        let state = self.state.borrow();
        let of = state.device_memory.iter().filter(|(to, ..)| *to == id);
        of.map(|(_, first, count)| (*first, *count)).collect()
    }

    /// Interrupt lines that a domain may bind.
    pub fn lines_of(&self, id: DomId) -> Vec<u32> {
        let state = self.state.borrow();
        state.lines.iter().filter(|(to, _)| *to == id).map(|(_, line)| *line).collect()
    }

    pub(crate) fn with_domain<R>(&self, id: DomId, look: impl FnOnce(&mut Domain) -> R) -> R {
        let mut state = self.state.borrow_mut();
        look(state.domains.get_mut(&id).unwrap_or_else(|| panic!("{id} does not exist")))
    }

    /// Counts the call, and fails it when the test wants that.
    pub(crate) fn enter(&self, call: Call) -> Result<(), XenError> {
        let mut state = self.state.borrow_mut();
        *state.calls.entry(call).or_default() += 1;
        let Some(index) = state.faults.iter().position(|fault| fault.call == call) else {
            return Ok(());
        };
        let fault = &mut state.faults[index];
        if fault.after > 0 {
            fault.after -= 1;
            return Ok(());
        }
        let error = fault.error;
        state.faults.remove(index);
        Err(error)
    }

    /// The middle of a long call.
    pub(crate) fn interrupt(&self, during: &mut dyn FnMut()) {
        let hook = self.state.borrow_mut().hook.take();
        if let Some(mut hook) = hook {
            hook(self);
            self.state.borrow_mut().hook.get_or_insert(hook);
        }
        if self.with_domain(DomId::ORCHESTRATOR, |initial| initial.ports.any_pending()) {
            during();
        }
    }

    pub(crate) fn announce_death(&self) {
        self.with_domain(DomId::ORCHESTRATOR, |initial| initial.ports.raise_virq(Virq::DomExc));
    }

    pub(crate) fn new_frames(&self, count: u64) -> u64 {
        let mut state = self.state.borrow_mut();
        let first = state.next_frame;
        // A gap, so that frames are not contiguous by chance.
        state.next_frame += count + 3;
        first
    }

    pub(crate) fn new_page(&self) -> Page {
        Page::filled(GARBAGE)
    }

    pub(crate) fn unmapped(&self, mapping: &FakeMapping) {
        {
            let mut state = self.state.borrow_mut();
            for frame in &mapping.frames {
                let gone = Mapped {
                    mapper: mapping.mapper,
                    owner: mapping.owner,
                    frame: *frame,
                    access: mapping.access,
                };
                // A mapper that was destroyed has lost its mappings already.
                if let Some(index) = state.mappings.iter().position(|mapped| *mapped == gone) {
                    state.mappings.swap_remove(index);
                }
            }
        }
        self.bury(mapping.owner);
    }

    /// Removes a dying domain whose pages nobody maps any more.
    pub(crate) fn bury(&self, id: DomId) {
        let mut state = self.state.borrow_mut();
        let dying = state.domains.get(&id).is_some_and(|domain| domain.state == DomainState::Dying);
        if !dying || state.mappings.iter().any(|mapped| mapped.owner == id) {
            return;
        }
        state.domains.remove(&id);
        state.device_memory.retain(|(to, ..)| *to != id);
        state.lines.retain(|(to, _)| *to != id);
        drop(state);
        self.announce_death();
    }

    /// Takes everything from a domain but what others still map.
    pub(crate) fn kill(&self, id: DomId) {
        let mut state = self.state.borrow_mut();
        let owners: Vec<DomId> = (state.mappings.iter())
            .filter(|mapped| mapped.mapper == id)
            .map(|mapped| mapped.owner)
            .collect();
        state.mappings.retain(|mapped| mapped.mapper != id);
        let Some(domain) = state.domains.get_mut(&id) else { return };
        domain.state = DomainState::Dying;
        for page in domain.pages.values() {
            page.fill(POISON);
        }
        let ports: Vec<_> = domain.ports.all().collect();
        domain.ports = Ports::default();
        for (_, status) in ports {
            if let PortStatus::Interdomain(other, port) = status
                && let Some(other) = state.domains.get_mut(&other)
            {
                other.ports.set(port.0, PortStatus::Unbound(id));
            }
        }
        drop(state);
        self.announce_death();
        self.bury(id);
        for owner in owners {
            self.bury(owner);
        }
    }
}
