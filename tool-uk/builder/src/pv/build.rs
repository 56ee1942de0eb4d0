//! Building and restoring a PV domain in steps that are short enough to look at events between
//! any two of them.

use core::fmt;
use core::ops::Range;

use abi::{Access, Control, CreateDomain, DomId, Frame, PAGE_SIZE, PvEntry, XenError};
use fabric::{Part, SharedMemory};

use super::Plan;

/// Pages written in one step: mapping costs about 1.2 µs and copying 1 µs per page. Events are
/// served behind each page: a crash elsewhere must be noticed within 50 µs, most of which is Xen's.
const STEP_PAGES: usize = 8;
/// Parts of [`STEP_PAGES`] pages that stay mapped between a build and the restores that follow:
/// enough for every service's image, and for all services together less than half of the window
/// in which the initial domain maps others' memory.
const KEPT_PARTS: usize = 32;
/// Pages restored in one step where they are still mapped: copying alone takes 0.6 µs per page.
const STEP_KEPT_PAGES: u32 = 32;
/// Of those that are still mapped, pages written between two looks at events: some 3 µs. A look
/// takes as long as copying a page.
const LOOK_KEPT_PAGES: usize = 4;
/// Page tables written in one step: each is computed first.
const STEP_TABLES: u32 = 4;
/// Order of the extents that memory is populated with. Xen looks at events between two extents:
/// 16 pages keep it blind for about 25 µs, 512 pages for 166 µs.
const EXTENT_ORDER: u32 = 4;
/// Pages of one extent.
const EXTENT_PAGES: usize = 1 << EXTENT_ORDER;
/// Extents per populate call, a long one: events are served inside, but the recovery of a unit that
/// needs more than a microreset begins only behind it.
const STEP_EXTENTS: usize = 4;

/// Limits of a service that Xen enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Highest event channel port.
    pub max_port: u32,
    /// Grant table frames.
    pub grant_frames: u32,
    /// Map-track frames.
    pub maptrack_frames: u32,
}

/// What a build is doing, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Creating the domain.
    Create,
    /// Giving it memory.
    Populate,
    /// Writing image, `start_info` and p2m.
    Fill,
    /// Writing page tables.
    Tables,
    /// Having Xen check and pin the page tables.
    Pin,
    /// Setting the vCPU.
    Enter,
    /// Nothing more to do.
    Done,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "creating the domain",
            Self::Populate => "giving it memory",
            Self::Fill => "writing its image",
            Self::Tables => "writing its page tables",
            Self::Pin => "pinning its page tables",
            Self::Enter => "setting its vCPU",
            Self::Done => "done",
        })
    }
}

/// Xen refused something in the middle of a build. What exists of the domain stays: destroy it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildError {
    /// What was being done.
    pub stage: Stage,
    /// What Xen said.
    pub error: XenError,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.stage, self.error)
    }
}

impl core::error::Error for BuildError {}

/// What a finished build knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    /// How the vCPU was set; the same with another rung serves later resets.
    pub entry: PvEntry,
    /// The domain's shared information page.
    pub shared_info: Frame,
}

/// What one step reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call again.
    Working(Stage),
    /// The domain stands, paused, ready for its first unpause.
    Done(Built),
}

/// The filled pages of a domain, mapped here from its build on as far as there is room: mapping a
/// page takes twice as long as restoring it. Must be dropped before the domain is destroyed, which
/// would else stay as a zombie.
#[derive(Debug)]
pub struct Pages<M> {
    parts: heapless::Vec<M, KEPT_PARTS>,
}

impl<M: SharedMemory> Pages<M> {
    /// Nothing is mapped yet.
    pub const fn new() -> Self {
        Self { parts: heapless::Vec::new() }
    }

    /// Unmaps all.
    pub fn clear(&mut self) {
        self.parts.clear();
    }
}

impl<M: SharedMemory> Default for Pages<M> {
    fn default() -> Self {
        Self::new()
    }
}

/// A PV domain being built, from nothing to paused at its entry.
///
/// The list of machine frames is the caller's, because it outlives the build: restoring needs it.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    id: DomId,
    limits: Limits,
    stage: Stage,
    /// Pages (or tables) of the stage that are done.
    done: u32,
    shared_info: Frame,
}

impl Build {
    /// Starts a build of domain `id`.
    pub fn new(id: DomId, limits: Limits) -> Self {
        Self { id, limits, stage: Stage::Create, done: 0, shared_info: Frame(0) }
    }

    /// Does the next bounded piece of work. `frames` has at least as many entries as the plan has
    /// pages, and is the same in every step, as is `pages`, which is empty in the first one.
    ///
    /// # Errors
    /// [`BuildError`] when Xen refuses. The build cannot go on then.
    pub fn step<C: Control>(
        &mut self,
        plan: &Plan<'_>,
        frames: &mut [Frame],
        pages: &mut Pages<C::Mapping>,
        control: &C,
        during: &mut dyn FnMut(),
    ) -> Result<Progress, BuildError> {
        let stage = self.stage;
        let frames = &mut frames[..plan.layout().pages as usize];
        self.advance(plan, frames, pages, control, during)
            .map_err(|error| BuildError { stage, error })?;
        Ok(match self.stage {
            Stage::Done => Progress::Done(Built {
                entry: plan.entry(frames, 0),
                shared_info: self.shared_info,
            }),
            stage => Progress::Working(stage),
        })
    }

    fn advance<C: Control>(
        &mut self,
        plan: &Plan<'_>,
        frames: &mut [Frame],
        pages: &mut Pages<C::Mapping>,
        control: &C,
        during: &mut dyn FnMut(),
    ) -> Result<(), XenError> {
        let layout = plan.layout();
        match self.stage {
            Stage::Create => {
                self.create(layout.pages, control)?;
                self.enter(Stage::Populate);
            }
            Stage::Populate => {
                self.done += populate(self.id, &mut frames[self.done as usize..], control, during)?;
                if self.done == layout.pages {
                    self.enter(Stage::Fill);
                }
            }
            Stage::Fill => {
                let first = plan.filled_pages().start + self.done;
                let filling = Filling { id: self.id, plan, frames, shared_info: self.shared_info };
                self.done += filling.fill(first, pages, control, during)?;
                if plan.filled_pages().start + self.done == plan.filled_pages().end {
                    self.enter(Stage::Tables);
                }
            }
            Stage::Tables => {
                self.done += write_tables(self.id, plan, self.done, frames, control, during)?;
                if self.done == layout.table_count() {
                    self.enter(Stage::Pin);
                }
            }
            Stage::Pin => {
                control.pin_top_table(self.id, frames[layout.tables as usize], during)?;
                self.enter(Stage::Enter);
            }
            Stage::Enter => {
                control.enter_pv(self.id, &plan.entry(frames, 0))?;
                self.enter(Stage::Done);
            }
            Stage::Done => {}
        }
        Ok(())
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.done = 0;
    }

    fn create<C: Control>(&mut self, pages: u32, control: &C) -> Result<(), XenError> {
        control.create_domain(
            self.id,
            &CreateDomain {
                pvh: false,
                vcpus: 1,
                max_memory_kib: u64::from(pages) * (PAGE_SIZE as u64 / 1024),
                max_port: self.limits.max_port,
                grant_frames: self.limits.grant_frames,
                maptrack_frames: self.limits.maptrack_frames,
            },
        )?;
        let info = control.domain_info(self.id)?.ok_or(XenError::NotFound)?;
        self.shared_info = info.shared_info;
        Ok(())
    }
}

/// Populates the next pages; returns how many.
fn populate<C: Control>(
    id: DomId,
    missing: &mut [Frame],
    control: &C,
    during: &mut dyn FnMut(),
) -> Result<u32, XenError> {
    if missing.len() < EXTENT_PAGES {
        missing.fill(Frame(0));
        control.populate(id, 0, missing, during)?;
        return Ok(missing.len() as u32);
    }
    let extents = (missing.len() / EXTENT_PAGES).min(STEP_EXTENTS);
    let mut bases = [Frame(0); STEP_EXTENTS];
    control.populate(id, EXTENT_ORDER, &mut bases[..extents], during)?;
    for (pages, base) in missing.chunks_exact_mut(EXTENT_PAGES).zip(&bases[..extents]) {
        for (page, number) in pages.iter_mut().zip(base.0..) {
            *page = Frame(number);
        }
    }
    Ok((extents * EXTENT_PAGES) as u32)
}

/// The writing of a domain's filled pages.
struct Filling<'a> {
    id: DomId,
    plan: &'a Plan<'a>,
    frames: &'a [Frame],
    shared_info: Frame,
}

impl Filling<'_> {
    /// Writes the next of the plan's filled pages, from page `first`, and calls `during` meanwhile;
    /// returns how many.
    fn fill<C: Control>(
        &self,
        first: u32,
        pages: &mut Pages<C::Mapping>,
        control: &C,
        during: &mut dyn FnMut(),
    ) -> Result<u32, XenError> {
        let filled = self.plan.filled_pages();
        let end = filled.end.min(first + STEP_PAGES as u32);
        let part = (first - filled.start) as usize / STEP_PAGES;
        if let Some(mapping) = pages.parts.get(part) {
            self.write(first..end, mapping, LOOK_KEPT_PAGES, during);
            return Ok(end - first);
        }
        let frames = &self.frames[first as usize..end as usize];
        let mapping = control.map_foreign(self.id, frames, Access::ReadWrite)?;
        self.write(first..end, &mapping, 1, during);
        if part == pages.parts.len() {
            // What finds no room is unmapped here, and mapped again for each restore.
            let _ = pages.parts.push(mapping);
        }
        Ok(end - first)
    }

    /// Writes these pages into `mapping`, which begins with the first of them, and calls `during`
    /// behind each `look_pages` of them.
    fn write(
        &self,
        pages: Range<u32>,
        mapping: &impl SharedMemory,
        look_pages: usize,
        during: &mut dyn FnMut(),
    ) {
        for (count, page) in pages.enumerate() {
            let part = Part::new(mapping, count * PAGE_SIZE, PAGE_SIZE);
            self.plan.fill(page, self.frames, self.shared_info, &part);
            if (count + 1).is_multiple_of(look_pages) {
                during();
            }
        }
    }
}

/// Writes the next page tables, from number `first`, and calls `during` behind each; returns how
/// many.
///
/// They are mapped here only while they are written: Xen refuses to pin a table that is mapped
/// writable anywhere.
fn write_tables<C: Control>(
    id: DomId,
    plan: &Plan<'_>,
    first: u32,
    frames: &[Frame],
    control: &C,
    during: &mut dyn FnMut(),
) -> Result<u32, XenError> {
    let end = plan.layout().table_count().min(first + STEP_TABLES);
    let start = plan.layout().tables as usize;
    let tables = &frames[start + first as usize..start + end as usize];
    let mapping = control.map_foreign(id, tables, Access::ReadWrite)?;
    let mut page = [0; PAGE_SIZE];
    for index in first..end {
        plan.table_page(index, frames, &mut page);
        mapping.write((index - first) as usize * PAGE_SIZE, &page);
        during();
    }
    Ok(end - first)
}

/// A PV domain whose image is being restored in place (microreboot): image, boot stack,
/// `start_info` and p2m become what they were at the first start. Page tables, window mappings,
/// channels and grants stay.
///
/// The domain must be paused.
#[derive(Clone, Copy, Debug)]
pub struct Restore {
    id: DomId,
    shared_info: Frame,
    done: u32,
}

impl Restore {
    /// Starts to restore domain `id`, whose shared information page is `shared_info`.
    pub fn new(id: DomId, shared_info: Frame) -> Self {
        Self { id, shared_info, done: 0 }
    }

    /// Writes the next pages, as far as possible through those that are still mapped, and calls
    /// `during` meanwhile; true when all are written.
    ///
    /// # Errors
    /// [`BuildError`] when Xen refuses the mapping.
    pub fn step<C: Control>(
        &mut self,
        plan: &Plan<'_>,
        frames: &[Frame],
        pages: &mut Pages<C::Mapping>,
        control: &C,
        during: &mut dyn FnMut(),
    ) -> Result<bool, BuildError> {
        let filled = plan.filled_pages();
        let filling = Filling { id: self.id, plan, frames, shared_info: self.shared_info };
        let kept_end = (pages.parts.len() * STEP_PAGES) as u32;
        let until = (self.done + STEP_KEPT_PAGES).min(kept_end).max(self.done + 1);
        while self.done < until && filled.start + self.done < filled.end {
            self.done += filling
                .fill(filled.start + self.done, pages, control, during)
                .map_err(|error| BuildError { stage: Stage::Fill, error })?;
        }
        Ok(filled.start + self.done == filled.end)
    }
}
