//! From a guest's configuration to the operations that build it.

use core::fmt;

use api::{
    Failure, Grant, GuestId, GuestLimits, MAX_BYTES, MAX_LOAD_LEN, MAX_POPULATE_PAGES, Operation,
    Outcome, Param, Refusal,
};

use super::acpi::{self, TABLES_LEN};
use super::{
    ACPI_ADDRESS, ACPI_GFN, CONSOLE_GFN, CONSOLE_GRANT, CONSOLE_OWNER, MAX_COMMAND_LINE,
    SLACK_PAGES, SPECIAL_LEN, SPECIAL_START, START_INFO, STORE_GFN, STORE_GRANTS,
};
use crate::elf::{Address, ElfError, Header, Placement, XenNotes};

const PAGE: u32 = abi::PAGE_SIZE as u32;
/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const MAP_RAM: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RESERVED`.
const MAP_RESERVED: u32 = 2;
/// `XEN_HVM_MEMMAP_TYPE_ACPI`.
const MAP_ACPI: u32 = 3;
/// Entries of the guest's memory map: its RAM, the ACPI tables, the rest of the special region.
const MAP_ENTRIES: u32 = 3;
/// Special pages: ACPI tables, XenStore ring, console ring.
const SPECIAL_PAGES: u32 = 3;
/// Sizes of the structures at [`START_INFO`].
const START_INFO_LEN: u32 = 56;
const MAP_ENTRY_LEN: u32 = 24;
const MODULE_LEN: u32 = 32;
/// Most RAM in KiB: 2 GiB, far below the hole under 4 GiB.
const MAX_MEMORY_KIB: u32 = 2 << 20;
/// Highest event channel port of a guest: Linux with one vCPU and many devices stays below.
const MAX_PORT: u32 = 1023;
/// Grant table frames of a guest, what Xen's own toolstack gives.
const GRANT_FRAMES: u32 = 64;

/// The ramdisk of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramdisk<'a> {
    /// Name of its archive entry.
    pub entry: &'a str,
    /// Its length in bytes.
    pub len: u32,
}

/// What a guest is to be.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// Its number.
    pub guest: GuestId,
    /// Its RAM in KiB.
    pub memory_kib: u32,
    /// Its vCPUs.
    pub vcpus: u8,
    /// Name of the archive entry of its kernel.
    pub kernel: &'a str,
    /// The kernel's headers.
    pub header: Header,
    /// The kernel's notes.
    pub notes: XenNotes,
    /// Its ramdisk.
    pub ramdisk: Option<Ramdisk<'a>>,
    /// The kernel's command line.
    pub command_line: &'a str,
}

/// Why a guest cannot be planned. The blame lies on its configuration or its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The kernel's segments do not fit into the RAM.
    Elf(ElfError),
    /// The kernel has no PVH entry (Xen note 18).
    NoEntry,
    /// The PVH entry does not lie in the kernel.
    EntryOutside(u64),
    /// The kernel covers the start information.
    KernelTooLow(u64),
    /// RAM outside of the allowed range.
    Memory {
        /// KiB asked for.
        kib: u32,
    },
    /// Kernel and ramdisk do not fit together.
    RamdiskTooLarge {
        /// KiB asked for.
        kib: u32,
        /// KiB that kernel and ramdisk take.
        needed_kib: u32,
    },
    /// More vCPUs than this version can describe to a guest.
    Vcpus(u8),
    /// The command line is too long, or has a NUL in it.
    CommandLine(usize),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => error.fmt(f),
            Self::NoEntry => f.write_str("the kernel has no PVH entry (CONFIG_PVH)"),
            Self::EntryOutside(entry) => {
                write!(f, "the PVH entry {entry:#x} does not lie in the kernel")
            }
            Self::KernelTooLow(start) => {
                write!(f, "the kernel starts at {start:#x}, below the start information's end")
            }
            Self::Memory { kib } => {
                write!(f, "{kib} KiB of memory, allowed are 4 to {MAX_MEMORY_KIB}")
            }
            Self::RamdiskTooLarge { kib, needed_kib } => write!(
                f,
                "{kib} KiB of memory are too few, kernel and ramdisk alone take {needed_kib}"
            ),
            Self::Vcpus(vcpus) => {
                write!(f, "{vcpus} vCPUs: more than one needs ACPI tables, which are not built yet")
            }
            Self::CommandLine(len) => {
                write!(f, "command line of {len} bytes, {MAX_COMMAND_LINE} at most, no NUL in it")
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

/// Where a build is. A small value: it can be kept in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the guest.
    Create,
    /// Populate RAM; this many pages are there.
    Ram(u32),
    /// Populate the XenStore page.
    StorePage,
    /// Populate the console page.
    ConsolePage,
    /// Populate the page of the ACPI tables.
    AcpiPage,
    /// Clear the XenStore page.
    ClearStore,
    /// Clear the console page.
    ClearConsole,
    /// Load bytes of a kernel segment; this many are there.
    Load(u8, u32),
    /// Clear the rest of a kernel segment; this many bytes are clear.
    Clear(u8, u32),
    /// Load the ramdisk; this many bytes are there.
    Ramdisk(u32),
    /// Write the ACPI tables.
    Acpi,
    /// Write the start information.
    StartInfo,
    /// Make the event channel for XenStore.
    ConnectStore,
    /// Tell the guest the frame of the XenStore ring; its port follows.
    StorePfn(u32),
    /// Tell the guest its XenStore port.
    StorePort(u32),
    /// Make the event channel for the console.
    ConnectConsole,
    /// Tell the guest the frame of the console ring; its port follows.
    ConsolePfn(u32),
    /// Tell the guest its console port.
    ConsolePort(u32),
    /// Fill the reserved grant table entries.
    Grants,
    /// Set the vCPU.
    Entry,
    /// The guest stands, paused.
    Ready,
}

/// Why a build cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepError {
    /// The orchestrator does not allow the operation.
    Refused(Refusal),
    /// The operation failed.
    Failed(Failure),
    /// The outcome does not belong to the operation: a bug on one side.
    Unexpected,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Failed(failure) => failure.fmt(f),
            Self::Unexpected => f.write_str("the orchestrator gave an answer that does not fit"),
        }
    }
}

impl core::error::Error for StepError {}

/// A guest on paper.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    config: Config<'a>,
    placement: Placement,
    entry: u32,
    ramdisk_at: u32,
    acpi: [u8; TABLES_LEN],
    start_info: heapless::Vec<u8, MAX_BYTES>,
}

impl<'a> Plan<'a> {
    /// Plans a guest.
    ///
    /// # Errors
    /// Every [`PlanError`].
    pub fn new(config: Config<'a>) -> Result<Self, PlanError> {
        let kib = config.memory_kib;
        if !(4..=MAX_MEMORY_KIB).contains(&kib) {
            return Err(PlanError::Memory { kib });
        }
        if config.vcpus != 1 {
            return Err(PlanError::Vcpus(config.vcpus));
        }
        let line = config.command_line;
        if line.len() > MAX_COMMAND_LINE || line.contains('\0') {
            return Err(PlanError::CommandLine(line.len()));
        }
        let ram_end = kib / 4 * PAGE;
        let placement = config.header.placement(Address::Physical, u64::from(ram_end))?;
        if placement.start() < u64::from(START_INFO + PAGE) {
            return Err(PlanError::KernelTooLow(placement.start()));
        }
        let entry = config.notes.phys32_entry.ok_or(PlanError::NoEntry)?;
        if !(placement.start()..placement.end()).contains(&entry) {
            return Err(PlanError::EntryOutside(entry));
        }
        let ramdisk_len = config.ramdisk.map_or(0, |ramdisk| ramdisk.len);
        let kernel_end = placement.end().next_multiple_of(u64::from(PAGE));
        let ramdisk_at = ram_end
            .checked_sub(ramdisk_len)
            .map(|at| at / PAGE * PAGE)
            .filter(|at| u64::from(*at) >= kernel_end)
            .ok_or(PlanError::RamdiskTooLarge {
                kib,
                needed_kib: (kernel_end / 1024) as u32 + ramdisk_len.div_ceil(PAGE) * (PAGE / 1024),
            })?;
        // The entry lies inside of RAM, so it fits into 32 bits.
        let entry = entry as u32;
        let start_info = start_info(&config, ram_end, ramdisk_at);
        Ok(Self { config, placement, entry, ramdisk_at, acpi: acpi::tables(), start_info })
    }

    /// Pages of RAM.
    fn ram_pages(&self) -> u32 {
        self.config.memory_kib / 4
    }

    /// The operation of a step; `None` when the guest stands.
    pub fn operation(&self, step: Step) -> Option<Operation<'_>> {
        let guest = self.config.guest;
        let ram = self.ram_pages();
        let page = |before, first_gfn| Operation::Populate { guest, before, first_gfn, pages: 1 };
        let clear = |gfn: u32| Operation::Zero { guest, address: gfn * PAGE, len: PAGE };
        let set = |param, value| Operation::SetParam { guest, param, value };
        Some(match step {
            Step::Create => {
                let limits = GuestLimits {
                    pages: ram + SPECIAL_PAGES + SLACK_PAGES,
                    vcpus: self.config.vcpus,
                    max_port: MAX_PORT,
                    grant_frames: GRANT_FRAMES,
                };
                Operation::Create { guest, limits }
            }
            Step::Ram(done) => {
                let pages = (ram - done).min(MAX_POPULATE_PAGES);
                Operation::Populate { guest, before: done, first_gfn: done, pages }
            }
            Step::StorePage => page(ram, STORE_GFN),
            Step::ConsolePage => page(ram + 1, CONSOLE_GFN),
            Step::AcpiPage => page(ram + 2, ACPI_GFN),
            Step::ClearStore => clear(STORE_GFN),
            Step::ClearConsole => clear(CONSOLE_GFN),
            Step::Load(part, done) => self.load(part, done),
            Step::Clear(part, done) => self.clear(part, done),
            Step::Ramdisk(done) => {
                let ramdisk = self.config.ramdisk?;
                Operation::Load {
                    guest,
                    entry: ramdisk.entry,
                    offset: done,
                    address: self.ramdisk_at + done,
                    len: (ramdisk.len - done).min(MAX_LOAD_LEN),
                }
            }
            Step::Acpi => Operation::Write { guest, address: ACPI_ADDRESS, bytes: &self.acpi },
            Step::StartInfo => {
                Operation::Write { guest, address: START_INFO, bytes: &self.start_info }
            }
            Step::ConnectStore => Operation::ConnectStore { guest },
            Step::StorePfn(_) => set(Param::StorePfn, STORE_GFN),
            Step::StorePort(port) => set(Param::StorePort, port),
            Step::ConnectConsole => Operation::ConnectConsole { guest },
            Step::ConsolePfn(_) => set(Param::ConsolePfn, CONSOLE_GFN),
            Step::ConsolePort(port) => set(Param::ConsolePort, port),
            Step::Grants => Operation::SeedGrants { guest, grants: seeds() },
            Step::Entry => Operation::SetEntry { guest, rip: self.entry, start_info: START_INFO },
            Step::Ready => return None,
        })
    }

    /// Loads the next bytes of a kernel segment.
    fn load(&self, part: u8, done: u32) -> Operation<'_> {
        let part = &self.placement.parts()[usize::from(part)];
        Operation::Load {
            guest: self.config.guest,
            entry: self.config.kernel,
            // The archive's entries and the guest's RAM end below 4 GiB.
            offset: part.segment.offset as u32 + done,
            address: part.start as u32 + done,
            len: (part.segment.file_len as u32 - done).min(MAX_LOAD_LEN),
        }
    }

    /// Clears the next bytes behind a kernel segment's file bytes.
    fn clear(&self, part: u8, done: u32) -> Operation<'_> {
        let part = &self.placement.parts()[usize::from(part)];
        let len = (part.segment.memory_len - part.segment.file_len) as u32;
        Operation::Zero {
            guest: self.config.guest,
            address: part.file_end() as u32 + done,
            len: (len - done).min(MAX_LOAD_LEN),
        }
    }

    /// The step after `step`, whose operation had this outcome.
    ///
    /// # Errors
    /// [`StepError`]. The guest is half built then: destroy it.
    pub fn after(&self, step: Step, outcome: &Outcome<'_>) -> Result<Step, StepError> {
        let port = match (step, outcome) {
            (_, Outcome::Refused(refusal)) => return Err(StepError::Refused(*refusal)),
            (_, Outcome::Failed(failure)) => return Err(StepError::Failed(*failure)),
            (Step::ConnectStore | Step::ConnectConsole, Outcome::Port(port)) => *port,
            (Step::ConnectStore | Step::ConnectConsole, _) => return Err(StepError::Unexpected),
            (_, Outcome::Done) => 0,
            _ => return Err(StepError::Unexpected),
        };
        Ok(match step {
            Step::Create => Step::Ram(0),
            Step::Ram(done) => {
                let done = done + (self.ram_pages() - done).min(MAX_POPULATE_PAGES);
                if done < self.ram_pages() { Step::Ram(done) } else { Step::StorePage }
            }
            Step::StorePage => Step::ConsolePage,
            Step::ConsolePage => Step::AcpiPage,
            Step::AcpiPage => Step::ClearStore,
            Step::ClearStore => Step::ClearConsole,
            Step::ClearConsole => self.loading(0, 0),
            Step::Load(part, done) => self.loading(part, done + MAX_LOAD_LEN),
            Step::Clear(part, done) => self.clearing(part, done + MAX_LOAD_LEN),
            Step::Ramdisk(done) => self.loading_ramdisk(done + MAX_LOAD_LEN),
            Step::Acpi => Step::StartInfo,
            Step::StartInfo => Step::ConnectStore,
            Step::ConnectStore => Step::StorePfn(port),
            Step::StorePfn(port) => Step::StorePort(port),
            Step::StorePort(_) => Step::ConnectConsole,
            Step::ConnectConsole => Step::ConsolePfn(port),
            Step::ConsolePfn(port) => Step::ConsolePort(port),
            Step::ConsolePort(_) => Step::Grants,
            Step::Grants => Step::Entry,
            Step::Entry | Step::Ready => Step::Ready,
        })
    }

    /// The step at `done` file bytes of a segment, or the one after them.
    fn loading(&self, part: u8, done: u32) -> Step {
        match self.placement.parts().get(usize::from(part)) {
            Some(segment) if u64::from(done) < segment.segment.file_len => Step::Load(part, done),
            Some(_) => self.clearing(part, 0),
            None => self.loading_ramdisk(0),
        }
    }

    fn clearing(&self, part: u8, done: u32) -> Step {
        let segment = &self.placement.parts()[usize::from(part)].segment;
        if u64::from(done) < segment.memory_len - segment.file_len {
            Step::Clear(part, done)
        } else {
            self.loading(part + 1, 0)
        }
    }

    fn loading_ramdisk(&self, done: u32) -> Step {
        if self.config.ramdisk.is_some_and(|ramdisk| done < ramdisk.len) {
            Step::Ramdisk(done)
        } else {
            Step::Acpi
        }
    }
}

/// The grants a guest is born with: its rings, to those who serve them.
fn seeds() -> heapless::Vec<Grant, { api::MAX_GRANTS }> {
    let console = Grant { reference: CONSOLE_GRANT, to: CONSOLE_OWNER, gfn: CONSOLE_GFN };
    let store = STORE_GRANTS.map(|(reference, to)| Grant { reference, to, gfn: STORE_GFN });
    core::iter::once(console).chain(store).collect()
}

/// `hvm_start_info` version 1, and behind it what it points to.
fn start_info(config: &Config<'_>, ram_end: u32, ramdisk_at: u32) -> heapless::Vec<u8, MAX_BYTES> {
    let map_at = START_INFO + START_INFO_LEN;
    let modules_at = map_at + MAP_ENTRIES * MAP_ENTRY_LEN;
    let line_at = modules_at + MODULE_LEN;
    let mut page = Writer::default();
    page.words32([START_MAGIC, 1, 0, u32::from(config.ramdisk.is_some())]);
    page.words64([modules_at.into(), line_at.into(), ACPI_ADDRESS.into(), map_at.into()]);
    page.words32([MAP_ENTRIES, 0]);
    page.words64([0, ram_end.into()]);
    page.words32([MAP_RAM, 0]);
    page.words64([ACPI_ADDRESS.into(), PAGE.into()]);
    page.words32([MAP_ACPI, 0]);
    page.words64([SPECIAL_START, SPECIAL_LEN]);
    page.words32([MAP_RESERVED, 0]);
    let ramdisk_len = config.ramdisk.map_or(0, |ramdisk| ramdisk.len);
    page.words64([ramdisk_at.into(), ramdisk_len.into(), 0, 0]);
    page.bytes(config.command_line.as_bytes());
    page.bytes(&[0]);
    page.0
}

/// Appends to a buffer that has room for the longest start information.
#[derive(Default)]
struct Writer(heapless::Vec<u8, MAX_BYTES>);

// The bound that `Writer::bytes` relies on; one byte more ends the command line.
const _: () = assert!(
    (START_INFO_LEN + MAP_ENTRIES * MAP_ENTRY_LEN + MODULE_LEN) as usize + MAX_COMMAND_LINE
        < MAX_BYTES
);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes).expect("the start information is bounded");
    }

    fn words32<const N: usize>(&mut self, words: [u32; N]) {
        words.iter().for_each(|word| self.bytes(&word.to_le_bytes()));
    }

    fn words64<const N: usize>(&mut self, words: [u64; N]) {
        words.iter().for_each(|word| self.bytes(&word.to_le_bytes()));
    }
}
