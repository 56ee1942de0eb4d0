//! Watching and recovering: what the supervisor is shown of each unit, and what is done when it
//! decides.

use abi::{Control, DomainState, Frame, Port, ShutdownReason, XenError};
use fabric::control::Rung;
use fabric::epitaph::{Epitaph, Reason};
use fabric::{Epoch, SharedMemory};
use recovery::{Action, Actions, Event, Pause, Plan, Policy, Report, Run, Sample, Supervisor};

use service::ids;

use crate::evidence::{self, Unfinished};
use crate::host::{Host, UNITS};
use crate::jobs::{Failed, Frames};
use crate::relay;
use crate::report::Note;
use crate::slots::{MAX_PORTS, Route};

/// While a unit comes back nothing is printed for so long: a line costs as much as a microreset.
/// A rebuild takes less; what takes longer is worth hearing about.
const QUIET_NS: u64 = 20_000_000;

/// No limit is stretched beyond this: somebody waits at the console for what will happen.
const STRETCHED_MAX_NS: u64 = 60_000_000_000;

/// What the command line changes of the system description's policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// CPU time limits are multiplied by this. On an emulated machine that follows the real clock,
    /// Xen counts as received what the machine below took away: there limits of microseconds
    /// would judge that machine, not the unit.
    pub patience: u64,
    /// The first rung of every ladder, for measuring the higher ones.
    pub first_rung: Rung,
}

impl Tuning {
    /// Reads the arguments `patience=` and `rung=`.
    ///
    /// # Errors
    /// The name of the argument that cannot be read.
    pub fn parse(patience: Option<&str>, rung: Option<&str>) -> Result<Self, &'static str> {
        let patience = match patience.map(str::parse::<u64>) {
            None => 1,
            Some(Ok(factor)) if factor >= 1 => factor,
            Some(_) => return Err("patience"),
        };
        let first_rung = match rung {
            None | Some("1") => Rung::Microreset,
            Some("2") => Rung::Microreboot,
            Some("3") => Rung::Rebuild,
            Some(_) => return Err("rung"),
        };
        Ok(Self { patience, first_rung })
    }

    /// A limit of CPU time under this tuning.
    fn stretch(self, limit_ns: u64) -> u64 {
        limit_ns.saturating_mul(self.patience).min(STRETCHED_MAX_NS.max(limit_ns))
    }

    /// The policy of a unit under this tuning.
    fn apply(self, policy: Policy) -> Policy {
        let [microreset, microreboot, rebuild] = policy.tries;
        Policy {
            hang_limit_ns: self.stretch(policy.hang_limit_ns),
            start_limit_ns: self.stretch(policy.start_limit_ns),
            tries: match self.first_rung {
                Rung::Microreboot => [0, microreboot, rebuild],
                Rung::Rebuild => [0, 0, rebuild],
                _ => [microreset, microreboot, rebuild],
            },
            ..policy
        }
    }
}

/// The supervisor of the units of the system description.
pub fn supervisor(tuning: Tuning) -> Supervisor<UNITS> {
    Supervisor::new(&core::array::from_fn(|index| {
        let unit = &system::SYSTEM.units[index];
        Plan { policy: tuning.apply(unit.policy), depends_on: unit.depends_on }
    }))
}

impl<C: Control, F: SharedMemory + Copy> Host<'_, C, F> {
    /// Starts all units, each when those it depends on serve.
    pub fn start_units(&mut self) {
        self.announce_nics();
        let actions = self.supervisor.start();
        self.carry_out(self.xen.now_ns(), &actions);
    }

    /// Says which NICs were found, and silences what the firmware may have left at work.
    fn announce_nics(&mut self) {
        let now_ns = self.xen.now_ns();
        for unit in &self.units {
            let Some(nic) = unit.nic else { continue };
            self.notes.add(now_ns, Note::Nic { unit: unit.config.name, nic });
            if let Err(error) = nic.silence(self.xen) {
                let note = Note::Refused { what: "silence the NIC of", domid: unit.domid, error };
                self.notes.add(now_ns, note);
            }
        }
    }

    /// Takes the units over from a former life of ours, as Xen, their pages and their epitaphs show
    /// them. A recovery that was decided is carried out; what else is not in order is built again.
    pub fn find_units_again(&mut self, frames: &Frames) {
        self.find_unfinished_again();
        let now_ns = self.xen.now_ns();
        let mut is_sound = [false; UNITS];
        for (index, frames) in frames.iter().enumerate() {
            is_sound[index] = self.find_again(index, frames);
            let unit = &self.units[index];
            self.supervisor.adopt(now_ns, index, unit.life, unit.ping, unit.says_it_serves());
        }
        // All are known before one of them is recovered: that may concern the others.
        self.adopt_relay();
        for index in (0..UNITS).filter(|index| !is_sound[*index]) {
            self.take_up_recovery(index);
        }
        self.name_leader();
        self.xen.raise_all();
        self.scan_units();
        for index in 0..self.units.len() {
            self.hand(index, ids::DOMAINS);
            self.pass_on_everything(index);
        }
    }

    /// Finds out how a unit stands. True: it runs.
    fn find_again(&mut self, index: usize, frames: &[Frame]) -> bool {
        let unit = &mut self.units[index];
        unit.port = (1..MAX_PORTS as u32).map(Port).find(|port| unit.owns_port(self.xen, *port));
        if let Some(port) = unit.port {
            self.routes.set(port, Route::Unit(index as u8));
        }
        let Some(info) = self.xen.domain_info(unit.domid).ok().flatten() else { return false };
        if unit.port.is_none() {
            return false;
        }
        unit.shared_info = info.shared_info;
        unit.entry = Some(unit.plan.entry(frames, 0));
        (unit.is_fenced, unit.at_fence) = (info.paused, Some(info));
        unit.is_running = !info.paused;
        // What it did while we were away, and what we were told of it, is looked at once.
        unit.ring_again();
        unit.is_running
    }

    /// Recovers a unit that a former life of ours had fenced, as was decided then: its epitaph says
    /// so, if it was kept already.
    fn take_up_recovery(&mut self, index: usize) {
        let unit = &mut self.units[index];
        let is_its =
            |kept: &&Epitaph| kept.unit.as_str() == unit.config.name && kept.epoch == unit.life;
        let decided = self.epitaphs.iter().filter(is_its).last();
        let decided = decided.map(|kept| (kept.rung, kept.reason, kept.time_ns));
        match decided {
            Some((rung @ (Rung::Microreset | Rung::Microreboot), reason, time_ns))
                if unit.is_fenced =>
            {
                unit.open_incident(reason, time_ns);
                let actions = self.supervisor.take_up(index, rung);
                self.carry_out(self.xen.now_ns(), &actions);
            }
            _ => self.tell_supervisor(index, Event::Failed(Reason::Gone)),
        }
    }

    /// Looks at the units whose deadline has come.
    pub fn watch(&mut self) {
        let now_ns = self.xen.now_ns();
        if self.supervisor.wake_at().is_none_or(|at_ns| at_ns > now_ns) {
            return;
        }
        for index in 0..self.units.len() {
            if self.supervisor.is_due(now_ns, index) {
                let sample = self.sample(index);
                self.tell_supervisor(index, Event::Timer(sample));
            }
        }
    }

    /// Looks at those whose deadline is near, as we run anyway: a timer that fires in the midst of
    /// their work costs them, and whoever waits for them, 12 us.
    pub fn watch_in_passing(&mut self) {
        let now_ns = self.xen.now_ns();
        for index in 0..self.units.len() {
            if self.supervisor.is_near(now_ns, index)
                && let Some(sample) = self.sample(index)
            {
                self.supervisor.pass(now_ns, index, &sample);
            }
        }
    }

    /// What can be seen of a unit now; `None` if there is no domain.
    fn sample(&self, index: usize) -> Option<Sample> {
        let unit = &self.units[index];
        let info = self.xen.domain_info(unit.domid).ok()??;
        Some(Sample {
            health: unit.health(),
            handed: unit.handed,
            cpu_time_ns: info.cpu_time_ns,
            run: if info.blocked { Run::Blocked } else { Run::Runnable },
            pause: match (info.paused, unit.is_fenced) {
                (false, _) => Pause::No,
                (true, true) => Pause::ByUs,
                (true, false) => Pause::ByOther,
            },
        })
    }

    /// Looks which units have died.
    pub fn scan_units(&mut self) {
        for index in 0..self.units.len() {
            if !self.units[index].is_running {
                continue;
            }
            let domid = self.units[index].domid;
            let reason = match self.xen.domain_info(domid) {
                Ok(Some(info)) => match info.state {
                    DomainState::Alive => continue,
                    DomainState::Shutdown(reason) => self.why(index, reason),
                    DomainState::Dying => Reason::Gone,
                },
                Ok(None) => Reason::Gone,
                Err(error) => {
                    let note = Note::Refused { what: "look at", domid, error };
                    self.notes.add(self.xen.now_ns(), note);
                    continue;
                }
            };
            self.tell_supervisor(index, Event::Failed(reason));
        }
    }

    /// What a unit's shutdown means: its panic handler says so, or only Xen knows.
    fn why(&self, index: usize, reason: ShutdownReason) -> Reason {
        match self.units[index].has_panicked() {
            Ok(true) => Reason::Panic,
            _ => Reason::Exit(reason.code()),
        }
    }

    /// Tells the supervisor what happened to a unit, and does what it decides.
    pub fn tell_supervisor(&mut self, index: usize, event: Event) {
        let now_ns = self.xen.now_ns();
        let actions = self.supervisor.handle(now_ns, index, event);
        self.carry_out(now_ns, &actions);
    }

    /// The supervisor's decisions at `now_ns`. A microreset that fails makes it decide again; the
    /// ladder bounds how often.
    fn carry_out(&mut self, now_ns: u64, actions: &Actions) {
        for action in actions.iter() {
            match action {
                Action::Fence { unit } => self.fence(unit),
                Action::KeepEpitaph { unit, reason, rung } => {
                    self.bury(now_ns, unit, reason, rung);
                }
                Action::Recover { unit, rung, epoch } => {
                    if !self.puts_off(unit, rung, epoch) {
                        self.recover(unit, rung, epoch);
                    }
                }
                Action::Ring { unit } => self.units[unit].ring_again(),
                Action::Ping { unit, ping } => self.units[unit].send_ping(ping),
                Action::Report { unit, report } => self.report(unit, report),
            }
        }
    }

    /// Starts a unit's next life: by a microreset at once, else by a job.
    pub fn recover(&mut self, index: usize, rung: Rung, epoch: Epoch) {
        match rung {
            Rung::Microreset => self.microreset(index, epoch),
            rung => self.units[index].wanted = Some((rung, epoch)),
        }
    }

    fn fence(&mut self, index: usize) {
        let unit = &mut self.units[index];
        unit.is_running = false;
        if let Err(error) = unit.fence(self.xen) {
            let note = Note::Refused { what: "pause", domid: unit.domid, error };
            self.notes.add(self.xen.now_ns(), note);
        }
        if relay::is_store(index) {
            self.store_stopped(index);
        }
    }

    /// Keeps what can still be read of a unit that was found to have failed at `now_ns`.
    fn bury(&mut self, now_ns: u64, index: usize, reason: Reason, rung: Rung) {
        let unit = &mut self.units[index];
        unit.open_incident(reason, now_ns);
        self.quiet_until_ns = now_ns + QUIET_NS;
        // A domain that cannot be read any more leaves an epitaph without registers. One that left
        // its last words in the fabric had nothing else in them than the way to its end, and asking
        // for them costs a tenth of a microreset.
        let panic = unit.panic();
        let can_tell = unit.at_fence.is_some() && panic.is_none();
        let registers = can_tell.then(|| self.xen.registers(unit.domid).ok()).flatten();
        let epitaph = evidence::of(unit, now_ns, (reason, rung), panic, registers.as_ref());
        let last_words = registers.and_then(|registers| registers.last_words());
        // Kept at once, so that a failure of our own does not lose it. One that still waits for
        // its lines goes without them.
        self.epitaphs.keep(epitaph);
        self.unfinished = Some(Unfinished { unit: index, last_words });
    }

    /// Adds to the latest epitaph what the unit left in its own memory, of which `frames` are the
    /// machine frames; to be called before a job gives that memory away.
    pub fn add_last_words(&mut self, frames: &Frames) {
        let Some(Unfinished { unit, last_words }) = &mut self.unfinished else { return };
        let Some(place) = last_words.take() else { return };
        let domid = self.units[*unit].domid;
        let words = evidence::last_words(self.xen, domid, &frames[*unit], place);
        if let Some(epitaph) = self.epitaphs.latest_mut() {
            epitaph.panic = words;
        }
    }

    /// Completes the epitaph that a recovery left unfinished.
    pub fn finish_epitaph(&mut self) {
        if let Some(Unfinished { unit, .. }) = self.unfinished.take()
            && let Some(epitaph) = self.epitaphs.latest_mut()
        {
            evidence::add_lines(epitaph, &self.units[unit]);
        }
    }

    /// Takes up the epitaph that a former life of ours left without its lines.
    fn find_unfinished_again(&mut self) {
        let Some(latest) = self.epitaphs.latest_mut().filter(|latest| latest.line_count == 0)
        else {
            return;
        };
        let name = latest.unit.as_str();
        let unit = self.units.iter().position(|unit| unit.config.name == name);
        self.unfinished = unit.map(|unit| Unfinished { unit, last_words: None });
    }

    /// Rung 1, at once.
    fn microreset(&mut self, index: usize, life: Epoch) {
        let unit = &mut self.units[index];
        unit.next_life(Rung::Microreset, life);
        unit.entered(self.xen.now_ns());
        match unit.begin_again(self.xen) {
            Ok(()) => {
                let cpu_time_ns = unit.cpu_time_at_fence_ns().unwrap_or(0);
                self.runs_again(index, cpu_time_ns);
            }
            Err(error) => {
                self.job_failed(&Failed { unit: index, what: "reset", error });
            }
        }
    }

    /// What was asked for is done: the unit runs its next life.
    pub fn job_done(&mut self, index: usize) {
        let info = self.xen.domain_info(self.units[index].domid).ok().flatten();
        self.runs_again(index, info.map_or(0, |info| info.cpu_time_ns));
    }

    fn runs_again(&mut self, index: usize, cpu_time_ns: u64) {
        self.units[index].is_running = true;
        self.tell_supervisor(index, Event::JobDone { cpu_time_ns });
    }

    /// What was asked for could not be done.
    pub fn job_failed(&mut self, failed: &Failed) {
        let unit = &self.units[failed.unit];
        // Memory that is missing at the first start does not come by trying again.
        self.hopeless |= unit.life == 0 && failed.error == XenError::NoMemory;
        self.notes.add(self.xen.now_ns(), failed.note(unit.domid));
        self.tell_supervisor(failed.unit, Event::JobFailed);
    }

    /// The operator wants a unit restarted.
    pub fn restart_by_operator(&mut self, index: usize) {
        self.tell_supervisor(index, Event::Restart(Rung::Rebuild));
    }

    fn report(&mut self, index: usize, report: Report) {
        let now_ns = self.xen.now_ns();
        let unit = &mut self.units[index];
        let name = unit.config.name;
        if matches!(report, Report::Serving { .. }) {
            unit.is_distrusted = false;
        }
        let note = match report {
            Report::Serving { .. } => match &mut unit.incident {
                // The report of the recovery waits for the first answer.
                Some(incident) => {
                    incident.ready_ns = now_ns;
                    return;
                }
                None => Note::Ready { unit: name, domid: unit.domid },
            },
            Report::Starved { for_ns, received_ns } => {
                Note::Starved { unit: name, for_ns, received_ns }
            }
            Report::Delayed { reason, rung, until_ns } => {
                Note::Delayed { unit: name, reason, rung, until_ns }
            }
            Report::Refused => Note::Busy { unit: name },
        };
        self.notes.add(now_ns, note);
    }

    /// Arms the timer for the next deadline, or for `other_ns` if that comes first.
    pub fn arm_timer(&mut self, other_ns: Option<u64>) {
        let wanted = match (self.supervisor.wake_at(), other_ns) {
            (Some(watch_ns), Some(other_ns)) => Some(watch_ns.min(other_ns)),
            (watch_ns, other_ns) => watch_ns.or(other_ns),
        };
        if self.timer_at_ns != wanted {
            self.xen.set_timer(wanted);
            self.timer_at_ns = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_tunes_every_policy() {
        let tuning = Tuning::parse(Some("400"), Some("3")).unwrap();
        let before = system::SYSTEM.units[0].policy;
        let after = tuning.apply(before);
        assert_eq!(after.hang_limit_ns, 400 * before.hang_limit_ns);
        assert_eq!(after.start_limit_ns, 400 * before.start_limit_ns);
        let endless = Tuning::parse(Some("1000000000"), None).unwrap().apply(before);
        assert_eq!(endless.hang_limit_ns, STRETCHED_MAX_NS);
        assert_eq!(after.tries, [0, 0, before.tries[2]]);
        assert_eq!(after.min_run_ns, before.min_run_ns);
        assert_eq!(Tuning::parse(Some("0"), None), Err("patience"));
        assert_eq!(Tuning::parse(None, Some("4")), Err("rung"));
    }
}
