//! The service under test, and how it is driven.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;

use abi::{Access, Control, DomId, DomainState, Frame, GrantRef, PAGE_SIZE, Port, Virq, Xen};
use builder::pv::{Build, Built, Limits, Pages, Plan, Progress, Restore};
use fabric::SharedMemory;
use glue_test::{FIRST_REFERENCE, PAGES, SERVICE, answer, question};
use runtime::{Boot, FabricMemory, Hypervisor};

/// Pages of the service: 4 MiB.
const SERVICE_PAGES: u32 = 1024;
/// How long anything may take.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Everything about the service.
pub struct Bench {
    pub xen: Hypervisor,
    pub fabric: FabricMemory,
    plan: Plan<'static>,
    frames: Box<[Frame]>,
    pages: Pages<<Hypervisor as abi::Xen>::Mapping>,
    built: Option<Built>,
    pub doorbell: Port,
    timer: Port,
    deaths: Port,
}

impl Bench {
    pub fn new(boot: &Boot) -> Self {
        let xen = boot.hypervisor();
        let service = DomId(SERVICE);
        let doorbell = xen.alloc_unbound(service).expect("a port");
        let line = format!("unit=1 doorbell={}", doorbell.0);
        for page in 0..PAGES as u32 {
            let access = if page == 1 { Access::ReadOnly } else { Access::ReadWrite };
            xen.grant_fabric(GrantRef(FIRST_REFERENCE + page), service, page, access);
        }
        Self {
            xen,
            fabric: xen.fabric(),
            plan: Plan::new(boot.archive(), SERVICE_PAGES, line.as_bytes()).expect("a good image"),
            frames: vec![Frame(0); SERVICE_PAGES as usize].into_boxed_slice(),
            pages: Pages::new(),
            built: None,
            doorbell,
            timer: xen.bind_virq(Virq::Timer).expect("the timer"),
            deaths: xen.bind_virq(Virq::DomExc).expect("the announcement of deaths"),
        }
    }

    pub fn service(&self) -> DomId {
        DomId(SERVICE)
    }

    /// Destroys the service, of which nothing may be mapped then.
    pub fn destroy(&mut self) {
        self.pages.clear();
        self.xen.destroy_domain(self.service(), &mut || ()).expect("exists");
    }

    /// Builds the service and waits until it is up; tells how long it took, ns.
    pub fn build(&mut self) -> u64 {
        let start_ns = self.xen.now_ns();
        let limits = Limits { max_port: 63, grant_frames: 4, maptrack_frames: 16 };
        let mut build = Build::new(self.service(), limits);
        loop {
            match build.step(&self.plan, &mut self.frames, &mut self.pages, &self.xen, &mut || ()) {
                Ok(Progress::Working(_)) => {}
                Ok(Progress::Done(built)) => {
                    self.built = Some(built);
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let starts = self.fabric.load_u64(answer::STARTS);
        self.xen.unpause(self.service()).expect("it is paused");
        self.await_start(starts);
        self.xen.now_ns() - start_ns
    }

    /// Rung 1 or 2; tells how long it took until the service was up again, ns.
    pub fn reset(&mut self, rung: u64) -> u64 {
        let (xen, service) = (self.xen, self.service());
        let start_ns = xen.now_ns();
        let starts = self.fabric.load_u64(answer::STARTS);
        xen.pause(service).expect("it exists");
        let info = xen.domain_info(service).expect("known").expect("exists");
        if let DomainState::Shutdown(_) = info.state {
            xen.resume(service).expect("it was shut down");
        }
        let built = self.built.expect("it was built");
        if rung == 2 {
            let mut restore = Restore::new(service, built.shared_info);
            let (frames, pages) = (&self.frames, &mut self.pages);
            while !restore.step(&self.plan, frames, pages, &xen, &mut || {}).expect("restores") {}
        }
        xen.reset_vcpu(service).expect("it is paused");
        xen.enter_pv(service, &abi::PvEntry { rung, ..built.entry }).expect("it is paused");
        xen.unpause(service).expect("it is paused");
        self.await_start(starts);
        xen.now_ns() - start_ns
    }

    fn await_start(&self, starts: u64) {
        let up = self.until(|bench| bench.fabric.load_u64(answer::STARTS) > starts);
        assert!(up, "the service did not start: {:x?}", self.xen.registers(self.service()));
    }

    /// Serves events until `done`, or patience ends: then false.
    pub fn until(&self, done: impl Fn(&Self) -> bool) -> bool {
        let end_ns = self.xen.now_ns() + PATIENCE_NS;
        self.xen.set_timer(Some(end_ns));
        loop {
            while self.xen.next_event().is_some() {}
            if done(self) {
                return true;
            }
            if self.xen.now_ns() >= end_ns {
                return false;
            }
            self.xen.block();
        }
    }

    /// Gives a command without waiting.
    pub fn tell(&self, command: u64, first: u64, second: u64) -> u64 {
        let sequence = self.fabric.load_u64(question::SEQUENCE) + 1;
        self.fabric.store_u64(question::COMMAND, command);
        self.fabric.store_u64(question::FIRST, first);
        self.fabric.store_u64(question::SECOND, second);
        self.fabric.store_u64(question::SEQUENCE, sequence);
        self.xen.send(self.doorbell).expect("our port");
        sequence
    }

    /// Gives a command and waits for the answer.
    pub fn ask(&self, command: u64, first: u64, second: u64) -> u64 {
        let sequence = self.tell(command, first, second);
        let answered = self.until(|bench| bench.fabric.load_u64(answer::SEQUENCE) == sequence);
        assert!(answered, "no answer to command {command}");
        self.fabric.load_u64(answer::VALUE)
    }

    /// Marks the pending command as answered: the next life shall not obey it.
    pub fn withdraw(&self) {
        let sequence = self.fabric.load_u64(question::SEQUENCE);
        self.fabric.store_u64(answer::SEQUENCE, sequence);
    }

    /// Waits until the service is shut down or gone.
    pub fn await_death(&self) -> DomainState {
        let state = |bench: &Self| bench.xen.domain_info(bench.service()).expect("known");
        let dead =
            self.until(|bench| state(bench).is_none_or(|info| info.state != DomainState::Alive));
        assert!(dead, "the service lives on");
        state(self).expect("it is not destroyed").state
    }

    /// The text the service left when it failed.
    pub fn last_words(&self, into: &mut [u8; 240]) -> usize {
        let len = (self.fabric.load_u64(answer::WORDS_LEN) as usize).min(into.len());
        self.fabric.read(answer::WORDS, &mut into[..len]);
        self.fabric.store_u64(answer::WORDS_LEN, 0);
        len
    }

    /// Some frames of the service that hold no page table.
    pub fn free_frames(&self, count: usize) -> &[Frame] {
        &self.frames[600..600 + count]
    }

    /// The text of a failure that the registers lead to.
    pub fn text_by_registers(&self, into: &mut [u8; 240]) -> usize {
        let registers = self.xen.registers(self.service()).expect("known");
        let (address, len) = registers.last_words().expect("the service failed by itself");
        let (page, offset) = (address as usize / PAGE_SIZE, address as usize % PAGE_SIZE);
        let pages =
            self.xen.map_foreign(self.service(), &self.frames[page..page + 2], Access::ReadOnly);
        pages.expect("two pages of the service").read(offset, &mut into[..len]);
        len
    }

    /// The ports this test listens to.
    pub fn ports(&self) -> [Port; 3] {
        [self.doorbell, self.timer, self.deaths]
    }
}
