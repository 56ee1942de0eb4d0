//! Building a guest, from its kernel's headers to its first instruction.

use alloc::boxed::Box;

use api::{Failure, GuestId, Operation, Outcome};
use builder::elf::{Header, XenNotes};
use builder::pvh::{Config, Plan, Probe, Ramdisk, STORE_GFN, Step, Wanted};
use store_client::Call;
use wire::Errno;

use crate::batch::Batch;
use crate::nodes::{self, Facts, Uuid};
use crate::spec::Spec;
use crate::task::{Trouble, Want, check};

#[derive(Clone, Debug)]
enum Stage<'a> {
    /// Reading the kernel's headers and notes.
    Probe(Box<Probe>),
    /// Asking for the ramdisk's length.
    Ramdisk(Box<(Header, XenNotes)>),
    /// Having the orchestrator build it.
    Build(Box<Plan<'a>>, Step),
    /// Mapping its console.
    Attach,
    /// Writing its XenStore nodes.
    Nodes(Batch),
    /// Writing those of one of its devices: each in a transaction of its own, as XenStore executes
    /// each as one piece of work, which must not look like a hang.
    Device(u8, Batch),
    /// Telling XenStore of it.
    Introduce,
    /// Setting how many nodes it may own.
    Limit,
    /// Letting it run.
    Unpause,
    /// It runs.
    Done,
}

/// A guest being built.
#[derive(Clone, Debug)]
pub struct Create<'a> {
    spec: Spec<'a>,
    domid: u16,
    uuid: Uuid,
    net: Option<u16>,
    stage: Stage<'a>,
    store_port: u32,
    console_port: u32,
}

impl<'a> Create<'a> {
    /// Begins to build guest `domid`, whose network interfaces domain `net` serves.
    pub fn new(spec: Spec<'a>, domid: u16, uuid: Uuid, net: Option<u16>) -> Self {
        let stage = Stage::Probe(Box::default());
        Self { spec, domid, uuid, net, stage, store_port: 0, console_port: 0 }
    }

    /// What it wants next.
    ///
    /// # Errors
    /// The kernel's notes are too long.
    pub fn want(&self) -> Result<Want<'_>, Trouble> {
        let guest = GuestId(self.domid);
        let read = |entry, offset, len| Operation::ReadArchive { entry, offset, len };
        Ok(match &self.stage {
            Stage::Probe(probe) => match probe.wanted().map_err(Trouble::Kernel)? {
                Wanted::Bytes { offset, len } => Want::Operate(read(self.spec.kernel, offset, len)),
                // The stage changes as soon as nothing more is wanted.
                Wanted::Nothing => return Err(Trouble::Unexpected),
            },
            Stage::Ramdisk(_) => Want::Operate(read(self.spec.ramdisk, 0, 1)),
            Stage::Build(plan, step) => {
                Want::Operate(plan.operation(*step).ok_or(Trouble::Unexpected)?)
            }
            Stage::Attach => Want::Attach,
            Stage::Nodes(batch) | Stage::Device(_, batch) => {
                Want::Store(batch.call().ok_or(Trouble::Unexpected)?)
            }
            Stage::Introduce => {
                Want::Store(Call::introduce(self.domid, STORE_GFN, self.store_port))
            }
            Stage::Limit => Want::Store(Call::limit_nodes(self.domid, self.spec.store_nodes)),
            Stage::Unpause => Want::Operate(Operation::Unpause { guest }),
            Stage::Done => Want::Nothing,
        })
    }

    /// Takes the outcome of the operation it wanted.
    ///
    /// # Errors
    /// Why the guest cannot be built.
    pub fn operated(&mut self, outcome: &Outcome<'_>) -> Result<(), Trouble> {
        match &mut self.stage {
            Stage::Probe(probe) => {
                check("read the kernel", outcome)?;
                let Outcome::Bytes { entry_len, bytes } = outcome else {
                    return Err(Trouble::Unexpected);
                };
                probe.feed(bytes, *entry_len).map_err(Trouble::Kernel)?;
                if probe.wanted().map_err(Trouble::Kernel)? == Wanted::Nothing {
                    let found = probe.found().ok_or(Trouble::Unexpected)?;
                    self.probed(found)?;
                }
            }
            Stage::Ramdisk(found) => {
                check("read the ramdisk", outcome)?;
                let Outcome::Bytes { entry_len, .. } = outcome else {
                    return Err(Trouble::Unexpected);
                };
                let found = **found;
                self.plan(found, *entry_len)?;
            }
            Stage::Build(plan, step) => {
                let what = plan.operation(*step).map_or("", |operation| operation.name());
                let taken = matches!(outcome, Outcome::Failed(Failure::Exists));
                if *step == Step::Create && taken {
                    return Err(Trouble::NumberTaken);
                }
                let next =
                    plan.after(*step, outcome).map_err(|error| Trouble::Operation(what, error))?;
                match next {
                    Step::StorePort(port) => self.store_port = port,
                    Step::ConsolePort(port) => self.console_port = port,
                    _ => {}
                }
                *step = next;
                if next == Step::Ready {
                    self.stage = Stage::Attach;
                }
            }
            Stage::Unpause => {
                check("let it run", outcome)?;
                self.stage = Stage::Done;
            }
            _ => return Err(Trouble::Unexpected),
        }
        Ok(())
    }

    fn probed(&mut self, found: (Header, XenNotes)) -> Result<(), Trouble> {
        if self.spec.ramdisk.is_empty() {
            return self.plan(found, 0);
        }
        self.stage = Stage::Ramdisk(Box::new(found));
        Ok(())
    }

    fn plan(&mut self, (header, notes): (Header, XenNotes), len: u32) -> Result<(), Trouble> {
        let entry = self.spec.ramdisk;
        let config = Config {
            guest: GuestId(self.domid),
            memory_kib: self.spec.memory_kib,
            vcpus: self.spec.vcpus,
            kernel: self.spec.kernel,
            header,
            notes,
            ramdisk: (!entry.is_empty()).then_some(Ramdisk { entry, len }),
            command_line: self.spec.command_line,
        };
        let plan = Plan::new(config).map_err(Trouble::Plan)?;
        self.stage = Stage::Build(Box::new(plan), Step::Create);
        Ok(())
    }

    /// Takes XenStore's answer.
    ///
    /// # Errors
    /// Why the guest cannot be built.
    pub fn answered(&mut self, answer: Result<&[u8], Errno>) -> Result<(), Trouble> {
        match &mut self.stage {
            Stage::Nodes(batch) => {
                batch.answered(answer).map_err(|errno| Trouble::Store("its nodes", errno))?;
                if batch.call().is_none() {
                    self.device(0);
                }
            }
            Stage::Device(index, batch) => {
                batch.answered(answer).map_err(|errno| Trouble::Store("its devices", errno))?;
                if batch.call().is_none() {
                    let next = *index + 1;
                    self.device(next);
                }
            }
            Stage::Introduce => {
                answer.map_err(|errno| Trouble::Store("to know it", errno))?;
                let is_limited = self.spec.store_nodes > 0;
                self.stage = if is_limited { Stage::Limit } else { Stage::Unpause };
            }
            Stage::Limit => {
                answer.map_err(|errno| Trouble::Store("its quota", errno))?;
                self.stage = Stage::Unpause;
            }
            _ => return Err(Trouble::Unexpected),
        }
        Ok(())
    }

    /// The console page is mapped, as far as it can be.
    pub fn console_done(&mut self) {
        if matches!(self.stage, Stage::Attach) {
            self.stage = Stage::Nodes(Batch::new(nodes::create(&self.facts())));
        }
    }

    /// Goes on with a device, or behind the last one.
    fn device(&mut self, index: u8) {
        self.stage = match nodes::device(&self.facts(), index) {
            Some(calls) => Stage::Device(index, Batch::new(calls)),
            None => Stage::Introduce,
        };
    }

    fn facts(&self) -> Facts<'a> {
        Facts {
            domid: self.domid,
            name: self.spec.name,
            uuid: self.uuid,
            memory_kib: self.spec.memory_kib,
            vcpus: self.spec.vcpus,
            vifs: self.spec.vifs,
            net: self.net,
            store_port: self.store_port,
            console_port: self.console_port,
        }
    }

    /// The connection to XenStore is a new one.
    pub fn store_restarted(&mut self) {
        if let Stage::Nodes(batch) | Stage::Device(_, batch) = &mut self.stage {
            batch.restart();
        }
    }
}
