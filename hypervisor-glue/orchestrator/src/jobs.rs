//! Longer work on units: building, rebuilding, restoring. Each unit has at most one job; a job is
//! done in steps of some tens of microseconds, and between any two the host looks at its events.

use abi::{Control, Frame, XenError};
use builder::pv::{Build, Built, Limits, MAX_PAGES, Pages, Progress, Restore};
use fabric::control::Rung;
use fabric::{Epoch, SharedMemory};

use crate::host::{Host, UNIT_CPU_WEIGHT, UNITS};
use crate::report::Note;
use crate::slots::Route;
use crate::unit::Unit;

/// Machine frames of every unit's domain; kept here because a build fills them while the host's
/// event handling goes on.
pub type Frames = [[Frame; MAX_PAGES as usize]; UNITS];

/// What Xen allows a service: its doorbell, its timer and room to look around; the smallest grant
/// table, as services grant nothing; map-track entries for its view of the fabric, every guest's
/// ring and the chunks Xen hands them out in (256 per frame).
const LIMITS: Limits = Limits { max_port: 1023, grant_frames: 1, maptrack_frames: 32 };

/// What is being done to a unit.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// Restoring its image in place; the domain is paused.
    Restore(Restore),
    /// Destroying its domain, if there is one, before it is built again.
    Destroy(Rung),
    /// Building its domain.
    Build(Build, Rung),
}

/// The jobs of all units.
#[derive(Debug)]
pub struct Jobs<'a, M> {
    frames: &'a mut Frames,
    /// What stays mapped of each unit's image, so that a microreboot only copies.
    pages: [Pages<M>; UNITS],
    by_unit: [Option<Job>; UNITS],
    lives: [Epoch; UNITS],
    next: usize,
}

impl<'a, M: SharedMemory> Jobs<'a, M> {
    /// No jobs; `frames` are filled by builds.
    pub fn new(frames: &'a mut Frames) -> Self {
        let pages = [const { Pages::new() }; UNITS];
        Self { frames, pages, by_unit: [None; UNITS], lives: [0; UNITS], next: 0 }
    }

    /// The machine frames of a unit's domain.
    pub fn frames(&self, unit: usize) -> &[Frame] {
        let kib_per_page = abi::PAGE_SIZE / 1024;
        let pages = system::SYSTEM.units[unit].memory_kib as usize / kib_per_page;
        &self.frames[unit][..pages]
    }

    /// Machine frames of all units.
    pub fn all_frames(&self) -> &Frames {
        self.frames
    }

    /// Starts what is wanted for a unit: its image restored in place (rung 2), or its domain
    /// destroyed, if there is one, and built again. Replaces a job that the unit has already.
    pub fn start<F: SharedMemory + Copy>(
        &mut self,
        index: usize,
        unit: &Unit<F>,
        rung: Rung,
        life: Epoch,
    ) {
        self.lives[index] = life;
        self.by_unit[index] = Some(match rung {
            Rung::Microreboot => Job::Restore(Restore::new(unit.domid, unit.shared_info)),
            rung => Job::Destroy(rung),
        });
    }

    /// Whether any unit has a job.
    pub fn is_idle(&self) -> bool {
        self.by_unit.iter().all(Option::is_none)
    }

    /// Whether any unit but this one is being built.
    pub fn builds_another(&self, than: usize) -> bool {
        let is_built = |job: &Option<Job>| matches!(job, Some(Job::Destroy(_) | Job::Build(..)));
        self.by_unit.iter().enumerate().any(|(unit, job)| unit != than && is_built(job))
    }

    /// Does one step of one job, units in turn. Returns the unit whose job failed, with what Xen
    /// said; the job is over then.
    ///
    /// # Errors
    /// The unit, what was tried, and Xen's answer.
    pub fn step<C: Control<Mapping = M>, F: SharedMemory + Copy>(
        &mut self,
        host: &mut Host<'_, C, F>,
    ) -> Result<(), Failed> {
        self.next = (self.next + 1) % UNITS;
        let start = self.next;
        let Some(unit) =
            (start..start + UNITS).map(|at| at % UNITS).find(|at| self.by_unit[*at].is_some())
        else {
            return Ok(());
        };
        let Some(job) = self.by_unit[unit].take() else { return Ok(()) };
        let next = match job {
            Job::Restore(restore) => self.step_restore(host, unit, restore),
            Job::Destroy(rung) => {
                self.pages[unit].clear();
                destroy(host, unit, rung)
            }
            Job::Build(build, rung) => self.step_build(host, unit, build, rung),
        }?;
        self.by_unit[unit] = next;
        Ok(())
    }

    fn step_restore<C: Control<Mapping = M>, F: SharedMemory + Copy>(
        &mut self,
        host: &mut Host<'_, C, F>,
        index: usize,
        mut restore: Restore,
    ) -> Result<Option<Job>, Failed> {
        let failed = |error| Failed { unit: index, what: "restore", error };
        let (plan, xen) = (host.units[index].plan, host.xen);
        let done = restore
            .step(&plan, &self.frames[index], &mut self.pages[index], xen, &mut || host.poll())
            .map_err(|error| failed(error.error))?;
        if !done {
            return Ok(Some(Job::Restore(restore)));
        }
        let unit = &mut host.units[index];
        unit.next_life(Rung::Microreboot, self.lives[index]);
        unit.entered(host.xen.now_ns());
        unit.enter_again(host.xen, Rung::Microreboot).map_err(failed)?;
        host.job_done(index);
        Ok(None)
    }

    fn step_build<C: Control<Mapping = M>, F: SharedMemory + Copy>(
        &mut self,
        host: &mut Host<'_, C, F>,
        index: usize,
        mut build: Build,
        rung: Rung,
    ) -> Result<Option<Job>, Failed> {
        let failed = |error| Failed { unit: index, what: "build", error };
        let plan = host.units[index].plan;
        let xen = host.xen;
        let progress = build
            .step(&plan, &mut self.frames[index], &mut self.pages[index], xen, &mut || host.poll())
            .map_err(|error| failed(error.error))?;
        if host.units[index].port.is_none() {
            let port = host.units[index].connect(xen).map_err(failed)?;
            host.routes.set(port, Route::Unit(index as u8));
            host.prefer(host.units[index].domid, UNIT_CPU_WEIGHT);
        }
        let Progress::Done(Built { entry, shared_info }) = progress else {
            return Ok(Some(Job::Build(build, rung)));
        };
        let unit = &mut host.units[index];
        unit.entry = Some(entry);
        unit.shared_info = shared_info;
        if let Some(nic) = unit.nic {
            let failed = |error| Failed { unit: index, what: "give its NIC to", error };
            nic.give(xen, unit.domid).map_err(failed)?;
            nic.release(xen);
        }
        unit.next_life(rung, self.lives[index]);
        unit.entered(xen.now_ns());
        xen.unpause(unit.domid).map_err(failed)?;
        host.job_done(index);
        Ok(None)
    }
}

/// Destroys what there is of a unit's domain.
fn destroy<C: Control, F: SharedMemory + Copy>(
    host: &mut Host<'_, C, F>,
    index: usize,
    rung: Rung,
) -> Result<Option<Job>, Failed> {
    let failed = |error| Failed { unit: index, what: "destroy", error };
    let xen = host.xen;
    let unit = &mut host.units[index];
    let domid = unit.domid;
    unit.entry = None;
    if let Some(port) = unit.port.take() {
        host.routes.set(port, Route::Stray);
        // A port that is closed already is what we want.
        let _ = xen.close(port);
    }
    if xen.domain_info(domid).map_err(failed)?.is_some() {
        xen.destroy_domain(domid, &mut || host.poll()).map_err(failed)?;
    }
    if xen.domain_info(domid).map_err(failed)?.is_some() {
        // Somebody still maps a page of it. Nobody may: pages of services are never shared.
        return Err(failed(XenError::Exists));
    }
    Ok(Some(Job::Build(Build::new(domid, LIMITS), rung)))
}

/// A job that Xen did not let us finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The unit.
    pub unit: usize,
    /// What was tried.
    pub what: &'static str,
    /// Xen's answer.
    pub error: XenError,
}

impl Failed {
    /// The failure in words for the operator.
    pub fn note(&self, domid: abi::DomId) -> Note {
        Note::Refused { what: self.what, domid, error: self.error }
    }
}
