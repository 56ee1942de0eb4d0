//! The loop: one turn looks at the events, does one piece of longer work, and says whether there is
//! more to do or until when to sleep.

use abi::Control;
use fabric::control::Command;
use fabric::{Part, SharedMemory};

use crate::attachment::Attachment;
use crate::host::Host;
use crate::inject_plan::Span;
use crate::inject_strike::Timed;
use crate::injector::Injector;
use crate::jobs::Jobs;
use crate::keyboard::{HELP, Keyboard, Request};
use crate::operations::Operations;
use crate::pace::Pace;
use crate::report::{Line, Note};
use crate::status;
use crate::voices::Voices;
use crate::watchdog::Watchdog;

/// Keys read at once: more than a person types between two turns.
const KEYS: usize = 16;

/// Nothing is printed for so long after a fault was injected: longer than a hang takes to be seen.
const QUIET_AFTER_FAULT_NS: u64 = 2_000_000;

/// What comes after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is more to do.
    Again,
    /// Nothing to do until an event, or until the timer that is armed.
    Sleep,
    /// The machine ends, or starts again.
    Power(api::Power),
    /// The host cannot start; what was tried has been printed.
    Hopeless,
}

/// Everything the orchestrator is.
pub struct Orchestrator<'a, C: Control, F: SharedMemory + Copy> {
    /// Units, slots, relay.
    pub host: Host<'a, C, F>,
    /// Longer work on units.
    pub jobs: Jobs<'a, C::Mapping>,
    /// Work for tool-uk.
    pub operations: Operations<'a, F>,
    /// How that shares the CPU.
    pub pace: Pace,
    /// What services and guests have to say.
    pub voices: Voices<'a, F>,
    /// What the operator types.
    pub keyboard: Keyboard,
    /// To whom else it goes.
    pub attachment: Attachment<F>,
    /// The last resort.
    pub watchdog: Watchdog,
    /// Fault injection, when the command line asks for it.
    pub injector: Option<Injector<Part<F>>>,
    /// Its last fault, until that takes effect.
    pub timed: &'a Timed,
}

impl<C: Control, F: SharedMemory + Copy> Orchestrator<'_, C, F> {
    /// One turn.
    pub fn turn(&mut self) -> Next {
        let mut next = self.work();
        if next == Next::Sleep && self.host.has_late_kicks() {
            next = Next::Again;
        }
        // A fault comes last: it takes effect as soon as the unit gets the CPU.
        if next == Next::Again || next == Next::Sleep {
            self.inject();
        }
        if next == Next::Sleep {
            self.arm_timer();
        }
        if let Next::Power(_) = next {
            self.tell_unfinished_plan();
        }
        next
    }

    fn work(&mut self) -> Next {
        self.host.poll();
        self.show_life();
        if let Some(power) = self.host.power {
            return Next::Power(power);
        }
        if self.host.hopeless {
            while !self.host.notes.is_empty() {
                self.host.notes.print_one(self.host.xen);
            }
            return Next::Hopeless;
        }
        self.host.add_last_words(self.jobs.all_frames());
        self.start_jobs();
        if !self.jobs.is_idle() || self.host.operations_due {
            self.arm_timer();
        }
        let mut again = self.step_job();
        again |= self.step_operation();
        if core::mem::take(&mut self.host.keyboard) {
            self.read_keys();
            again = true;
        }
        if again {
            return Next::Again;
        }
        // Printing is slow, so it comes last, a line at a time, and not while a unit comes back.
        if self.host.xen.now_ns() < self.host.quiet_until_ns {
            return Next::Sleep;
        }
        self.host.finish_epitaph();
        if !self.host.notes.is_empty() {
            self.host.notes.print_one(self.host.xen);
            return Next::Again;
        }
        if self.voices.print_some(self.host.xen) {
            return Next::Again;
        }
        Next::Sleep
    }

    /// Keeps Xen's watchdog quiet.
    fn show_life(&mut self) {
        if let Err(error) = self.watchdog.poll(self.host.xen) {
            let domid = abi::DomId::ORCHESTRATOR;
            let note = Note::Refused { what: "arm the watchdog of", domid, error };
            self.host.notes.add(self.host.xen.now_ns(), note);
        }
    }

    /// Lets the injector have its instant.
    fn inject(&mut self) {
        let Some(injector) = &mut self.injector else { return };
        if injector.breaks_the_leader() {
            injector.aim_at(self.host.units[self.host.store].domid);
        }
        let domid = injector.unit();
        let Some(index) = self.host.units.iter().position(|unit| unit.domid == domid) else {
            return;
        };
        let (work, life) = (self.host.units[index].handed, self.host.units[index].life);
        let xen = self.host.xen;
        if let Some(span) = injector.during() {
            let is_within = match span {
                Span::Create => self.host.slots.has_unfinished(),
                Span::Rebuild => self.jobs.builds_another(index),
            };
            injector.tell_within(xen.now_ns(), is_within);
        }
        if let Some(fault) = self.timed.struck(xen) {
            let fault = injector.within(fault);
            self.host.notes.add(fault.at_ns, Note::Injected { domid, fault });
        }
        if let Some(fault) = injector.settled(xen.now_ns(), life) {
            self.host.notes.add(fault.at_ns, Note::Overwritten { domid, fault });
        }
        match injector.poll(xen, work, life, self.jobs.frames(index)) {
            Ok(None) => {}
            Ok(Some(fault)) => {
                self.host.quiet_until_ns = fault.at_ns + QUIET_AFTER_FAULT_NS;
                self.timed.begin(injector.take_strike());
                if !self.timed.is_pending() {
                    self.host.notes.add(fault.at_ns, Note::Injected { domid, fault });
                }
            }
            Err(error) => {
                let note = Note::Refused { what: "inject a fault into", domid, error };
                self.host.notes.add(xen.now_ns(), note);
            }
        }
    }

    /// A plan whose instants have not all come is not to be taken for one without effect.
    fn tell_unfinished_plan(&self) {
        let Some(injector) = &self.injector else { return };
        let (injected, planned) = injector.progress();
        if injected == planned {
            return;
        }
        let mut line = Line::new();
        line.say(format_args!("{injected} of {planned} planned faults were injected"));
        if let Some(span) = injector.during() {
            line.say(format_args!(": they were to come during:{}", span.name()));
        }
        line.print(self.host.xen);
    }

    /// Turns what the host decided into jobs.
    fn start_jobs(&mut self) {
        for index in 0..self.host.units.len() {
            let Some((rung, life)) = self.host.units[index].wanted.take() else { continue };
            if index == self.host.tool {
                self.operations.restart();
            }
            self.jobs.start(index, &self.host.units[index], rung, life);
        }
    }

    fn step_job(&mut self) -> bool {
        if self.jobs.is_idle() {
            return false;
        }
        if let Err(failed) = self.jobs.step(&mut self.host) {
            self.host.job_failed(&failed);
        }
        true
    }

    fn step_operation(&mut self) -> bool {
        let began_ns = self.host.xen.now_ns();
        if !self.host.operations_due || self.pace.is_resting(began_ns) {
            return false;
        }
        self.host.operations_due = self.operations.step(&mut self.host);
        let waits = self.host.slots.next_waits(self.host.xen);
        self.pace.worked(began_ns, self.host.xen.now_ns(), waits);
        self.host.operations_due
    }

    fn arm_timer(&mut self) {
        let fault_ns = self.injector.as_ref().and_then(Injector::due_ns);
        let now_ns = self.host.xen.now_ns();
        let loud_ns = Some(self.host.quiet_until_ns).filter(|at_ns| *at_ns > now_ns);
        let rest_ns = self.pace.due_ns(now_ns).filter(|_| self.host.operations_due);
        let (watchdog_ns, relay_ns) = (self.watchdog.due_ns(), self.host.relay.due_ns());
        let due = [fault_ns, loud_ns, rest_ns, watchdog_ns, relay_ns, self.host.compare_at_ns];
        let due = due.into_iter().flatten().min();
        self.host.arm_timer(due);
    }

    fn read_keys(&mut self) {
        let mut keys = [0; KEYS];
        let count = self.host.xen.console_read(&mut keys);
        for key in &keys[..count] {
            if self.attachment.pass(&mut self.host, *key) {
                continue;
            }
            if let Some(request) = self.keyboard.key(*key, self.host.units.len()) {
                self.obey(request);
            }
        }
        // More may wait: Xen says it once.
        self.host.keyboard = count == KEYS;
    }

    fn obey(&mut self, request: Request) {
        let xen = self.host.xen;
        let mut line = Line::new();
        match request {
            Request::Help => {
                for text in HELP {
                    line.say(format_args!("{text}"));
                    line.print(xen);
                }
            }
            Request::Status => status::print(&self.host),
            Request::Epitaphs => status::print_epitaphs(&self.host),
            Request::Restart(index) => self.host.restart_by_operator(index),
            Request::Attach(domid) => self.attachment.begin(&self.host, domid),
            Request::Dump(index) => self.host.units[index].give_order(Command::Dump),
            Request::Confirm(what) => line.say(format_args!("{what}: y confirms")),
            Request::Reboot => self.host.power = Some(api::Power::Reboot),
            Request::PowerOff => self.host.power = Some(api::Power::Off),
            Request::Unknown(key) => {
                line.say(format_args!("key {:?} means nothing, h lists the keys", key as char));
            }
        }
        line.print(xen);
    }
}
