//! What a PV service domain consists of, before there is a domain.

use core::fmt;
use core::ops::Range;

use abi::{Frame, PAGE_SIZE, PvEntry};
use fabric::SharedMemory;

use super::tables::Layout;
use super::{MAX_COMMAND_LINE, MAX_PAGES, PAGE};
use crate::elf::{Address, ElfError, Image, Placement};

/// `start_info.magic`: what a PV kernel of 64 bits expects (xen.h).
const MAGIC: &[u8] = b"xen-3.0-x86_64";

/// Why a service cannot be planned. The blame lies on the image or on the system description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The image is not usable.
    Elf(ElfError),
    /// The image names no PV entry (Xen note 1).
    NoEntry,
    /// The PV entry does not lie in the image.
    EntryOutside(u64),
    /// The image covers page 0, which stays unmapped.
    ImageAtZero,
    /// More pages asked for than a service may have.
    TooLarge {
        /// Pages asked for.
        pages: u32,
    },
    /// Image, page tables and start information do not fit.
    TooSmall {
        /// Pages asked for.
        pages: u32,
        /// Pages needed, without any free memory.
        needed: u32,
    },
    /// The command line is longer than [`MAX_COMMAND_LINE`].
    CommandLineTooLong(usize),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => error.fmt(f),
            Self::NoEntry => f.write_str("the image has no Xen note with a PV entry"),
            Self::EntryOutside(entry) => {
                write!(f, "the PV entry {entry:#x} does not lie in the image")
            }
            Self::ImageAtZero => f.write_str("the image covers page 0, link it at 1 MiB"),
            Self::TooLarge { pages } => {
                write!(f, "{pages} pages of memory asked for, a service has {MAX_PAGES} at most")
            }
            Self::TooSmall { pages, needed } => {
                write!(f, "{pages} pages of memory are too few, the image needs {needed}")
            }
            Self::CommandLineTooLong(len) => {
                write!(f, "command line of {len} bytes, {MAX_COMMAND_LINE} at most")
            }
        }
    }
}

impl core::error::Error for PlanError {}

impl From<ElfError> for PlanError {
    fn from(error: ElfError) -> Self {
        Self::Elf(error)
    }
}

/// A service domain on paper: image, layout, command line. One plan serves every life of the
/// service.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    image: Image<'a>,
    placement: Placement,
    layout: Layout,
    entry: u64,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_len: usize,
}

impl<'a> Plan<'a> {
    /// Plans a domain of `pages` pages that runs `image`.
    ///
    /// # Errors
    /// Every [`PlanError`].
    pub fn new(image: &'a [u8], pages: u32, command_line: &[u8]) -> Result<Self, PlanError> {
        let mut kept_line = [0; MAX_COMMAND_LINE];
        kept_line
            .get_mut(..command_line.len())
            .ok_or(PlanError::CommandLineTooLong(command_line.len()))?
            .copy_from_slice(command_line);
        if pages > MAX_PAGES {
            return Err(PlanError::TooLarge { pages });
        }
        let image = Image::parse(image)?;
        let placement = image.header.placement(Address::Virtual, u64::from(pages) * PAGE)?;
        if placement.start() < PAGE {
            return Err(PlanError::ImageAtZero);
        }
        let entry = image.notes.entry.ok_or(PlanError::NoEntry)?;
        if !(placement.start()..placement.end()).contains(&entry) {
            return Err(PlanError::EntryOutside(entry));
        }
        let layout = Layout::new(&placement, pages).ok_or(PlanError::TooSmall {
            pages,
            needed: placement.end().div_ceil(PAGE) as u32 + Layout::overhead(pages),
        })?;
        let command_line_len = command_line.len();
        Ok(Self { image, placement, layout, entry, command_line: kept_line, command_line_len })
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The pages that [`Plan::fill`] writes: image, boot stack, `start_info`, p2m. Microreboot
    /// restores exactly these; page tables and window stay as they are.
    pub fn filled_pages(&self) -> Range<u32> {
        self.layout.image_start..self.layout.free
    }

    /// The pages that hold the image alone: text, data, bss.
    pub fn image_pages(&self) -> Range<u32> {
        self.layout.image_start..self.layout.stack
    }

    /// How the vCPU starts. `rung` is 0 for a first start, else the rung of the recovery ladder.
    pub fn entry(&self, frames: &[Frame], rung: u64) -> PvEntry {
        PvEntry {
            rip: self.entry,
            rsp: u64::from(self.layout.stack + 1) * PAGE,
            start_info: u64::from(self.layout.start_info) * PAGE,
            rung,
            page_table: frames[self.layout.tables as usize],
        }
    }

    /// Writes the first content of pages `first..` of [`Plan::filled_pages`] into `memory`, which
    /// holds exactly these pages.
    ///
    /// `frames` are the domain's machine frames, `shared_info` its shared information page.
    pub fn fill(
        &self,
        first: u32,
        frames: &[Frame],
        shared_info: Frame,
        memory: &impl SharedMemory,
    ) {
        let pages = (memory.len() / PAGE_SIZE) as u32;
        let image_end = self.layout.stack.min(first + pages);
        if first < image_end {
            self.fill_image(first, image_end, memory);
        }
        for page in first.max(image_end)..first + pages {
            let at = (page - first) as usize * PAGE_SIZE;
            if page < self.layout.start_info {
                memory.fill(at, PAGE_SIZE, 0);
            } else if page == self.layout.start_info {
                memory.fill(at, PAGE_SIZE, 0);
                self.fill_start_info(at, shared_info, memory);
            } else {
                let mut list = [0; PAGE_SIZE];
                self.p2m_page(page - self.layout.p2m, frames, &mut list);
                memory.write(at, &list);
            }
        }
    }

    /// Writes pages `[first, end)` of the image: bytes of the file where there are any, else 0.
    fn fill_image(&self, first: u32, end: u32, memory: &impl SharedMemory) {
        let (base, limit) = (u64::from(first) * PAGE, u64::from(end) * PAGE);
        let mut written = base;
        for part in self.placement.parts() {
            let (from, to) = (part.start.max(base), part.file_end().min(limit));
            if from >= to {
                continue;
            }
            memory.fill((written - base) as usize, (from - written) as usize, 0);
            memory.write((from - base) as usize, self.image.part_bytes(part, from, to));
            written = to;
        }
        memory.fill((written - base) as usize, (limit - written) as usize, 0);
    }

    /// Writes `start_info` (xen.h; offsets of the 64-bit layout) into a page of zeros at `at`.
    fn fill_start_info(&self, at: usize, shared_info: Frame, memory: &impl SharedMemory) {
        let layout = &self.layout;
        let address = |page: u32| u64::from(page) * PAGE;
        let words = [
            (32, u64::from(layout.pages)),
            (40, shared_info.0 * PAGE),
            (88, address(layout.tables)),
            (96, u64::from(layout.table_count())),
            (104, address(layout.p2m)),
            (1152, u64::from(layout.p2m)),
            (1160, u64::from(layout.free - layout.p2m)),
        ];
        memory.write(at, MAGIC);
        for (offset, value) in words {
            memory.store_u64(at + offset, value);
        }
        memory.write(at + 128, &self.command_line[..self.command_line_len]);
    }

    /// Computes page `index` of the list of machine frames.
    fn p2m_page(&self, index: u32, frames: &[Frame], out: &mut [u8; PAGE_SIZE]) {
        let first = index as usize * (PAGE_SIZE / 8);
        let pages = &frames[..self.layout.pages as usize];
        let listed = pages.get(first..).unwrap_or_default();
        for (slot, frame) in out.chunks_exact_mut(8).zip(listed) {
            slot.copy_from_slice(&frame.0.to_le_bytes());
        }
    }

    /// Computes page table number `index` (0 is the L4) for a domain of these machine frames.
    pub fn table_page(&self, index: u32, frames: &[Frame], out: &mut [u8; PAGE_SIZE]) {
        self.layout.table_page(index, &self.placement, frames, out);
    }
}
