//! From nothing, or from what a former life of the orchestrator left, to a host that watches.

use core::fmt::{self, Write};

use abi::{Control, DomId, XenError};
use builder::pv::{self, MAX_COMMAND_LINE, Plan};
use fabric::archive::{Archive, ArchiveError};
use fabric::control::ControlReader;
use fabric::view::{Party, RegionKind};
use fabric::{Part, SharedMemory};

use crate::host::UNITS;
use crate::inject_own;
use crate::inject_plan::{self, Kind, PlanError};
use crate::inject_records::{Damager, Places};
use crate::inject_registers::Gadgets;
use crate::injector::{Damagers, Injector};
use crate::nic::{self, Nic};
use crate::regions::Regions;
use crate::unit::Unit;

const _: () = assert!(service::ids::SLOTS == system::SLOTS, "ids and description agree");
const _: () = assert!(service::ids::SLOTS == fabric::domains::SLOTS, "ids and table agree");

/// Why the host cannot start. Nothing runs then; the message is all the operator gets.
#[derive(Clone, Copy, Debug)]
pub enum StartError {
    /// The archive, or one of its entries, is not usable.
    Archive {
        /// The entry, empty for the archive itself.
        entry: &'static str,
        /// What is wrong.
        error: ArchiveError,
    },
    /// Xen refused something that every start needs.
    Xen {
        /// What.
        what: &'static str,
        /// Its answer.
        error: XenError,
    },
    /// A unit's NIC cannot be used.
    Nic {
        /// The unit.
        name: &'static str,
        /// What is wrong.
        error: nic::NicError,
    },
    /// An argument of the command line cannot be read.
    Argument(&'static str),
    /// The command line asks for failures of our own that cannot be read.
    OwnFaults,
    /// The command line asks for faults that cannot be injected.
    Injection(&'static str),
    /// A unit's image does not make a domain.
    Unit {
        /// The unit.
        name: &'static str,
        /// What is wrong.
        error: pv::PlanError,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive { entry: "", error } => {
                write!(f, "the archive is not usable: {error}; run `cargo xtask build` again")
            }
            Self::Archive { entry, error } => write!(
                f,
                "the archive's entry `{entry}` is not usable: {error}; run `cargo xtask build` \
                 again"
            ),
            Self::Xen { what, error } => write!(f, "cannot {what}: {error}"),
            Self::Nic { name, error } => write!(f, "the NIC of {name}: {error}"),
            Self::Argument(name) => {
                write!(f, "the argument `{name}=`: a number is missing or out of range")
            }
            Self::OwnFaults => {
                f.write_str("the argument `panic=`: a field or a kind is unknown, or no number")
            }
            Self::Injection(what) => write!(f, "the argument `inject=`: {what}"),
            Self::Unit { name, error } => write!(
                f,
                "the image of {name} is not usable: {error}; see images/system/ppvmm.toml"
            ),
        }
    }
}

/// Opens the archive and looks for every entry that the system description names. The units' images
/// are read and checked whole, unless a former life of ours `has_checked` them already.
///
/// # Errors
/// The first entry that is missing or damaged.
pub fn open_archive(
    bytes: &'static [u8],
    has_checked: bool,
) -> Result<Archive<'static>, StartError> {
    let wrong = |entry| move |error| StartError::Archive { entry, error };
    let archive = Archive::open(bytes).map_err(wrong(""))?;
    for unit in system::SYSTEM.units {
        let entry = archive.entry(unit.entry).map_err(wrong(unit.entry))?;
        if !has_checked {
            entry.verify().map_err(wrong(unit.entry))?;
        }
    }
    for guest in system::SYSTEM.guests {
        archive.entry(guest.kernel).map_err(wrong(guest.kernel))?;
        if !guest.ramdisk.is_empty() {
            archive.entry(guest.ramdisk).map_err(wrong(guest.ramdisk))?;
        }
    }
    Ok(archive)
}

/// Whether the units' fabric pages are to be made new or taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The host boots; the number marks this boot.
    Boot {
        /// Random.
        nonce: u64,
    },
    /// The orchestrator recovers itself; the number replaces a mark that no page holds any more.
    Recovery {
        /// Random.
        nonce: u64,
    },
}

/// The units of the system description, each planned from its image, its pages granted.
///
/// # Errors
/// A unit's image is missing, damaged or unusable.
#[inline(never)]
pub fn units<C: Control, F: SharedMemory + Copy>(
    xen: &C,
    regions: &Regions<F>,
    archive: &Archive<'static>,
    origin: Origin,
) -> Result<[Unit<F>; UNITS], StartError> {
    let mut plans = [const { None }; UNITS];
    let mut nics = [None; UNITS];
    for (index, plan) in plans.iter_mut().enumerate() {
        let unit = &system::SYSTEM.units[index];
        nics[index] = nic::find(xen, unit.nics)
            .map_err(|error| StartError::Nic { name: unit.name, error })?;
        *plan = Some(plan_unit(regions, archive, index, nics[index])?);
    }
    // All control pages hold the mark of this boot.
    let mut pages = (0..UNITS).map(|index| regions.unit(index).control);
    let this_boot = pages.find_map(|page| ControlReader::new(page).nonce());
    Ok(core::array::from_fn(|index| {
        let config = &system::SYSTEM.units[index];
        let plan = plans[index].expect("every unit was planned above");
        regions.grant(xen, index, DomId(config.domid));
        let pages = regions.unit(index);
        let mut unit = match origin {
            Origin::Boot { nonce } => Unit::new(config, plan, &pages, nonce),
            Origin::Recovery { nonce } => {
                Unit::adopt(config, plan, &pages, this_boot.unwrap_or(nonce))
            }
        };
        unit.nic = nics[index];
        unit
    }))
}

fn plan_unit<F: SharedMemory + Copy>(
    regions: &Regions<F>,
    archive: &Archive<'static>,
    index: usize,
    nic: Option<Nic>,
) -> Result<Plan<'static>, StartError> {
    let unit = &system::SYSTEM.units[index];
    let entry = archive
        .entry(unit.entry)
        .map_err(|error| StartError::Archive { entry: unit.entry, error })?;
    let (reference, pages) = regions.view_of(index);
    let mut line = heapless::String::<MAX_COMMAND_LINE>::new();
    write!(line, "unit={index} fabric={reference},{pages}")
        .expect("three numbers fit into a command line");
    if let Some(nic) = nic {
        nic.tell(&mut line).expect("a NIC's numbers fit behind them");
    }
    Plan::new(entry.bytes(), unit.memory_kib / 4, line.as_bytes())
        .map_err(|error| StartError::Unit { name: unit.name, error })
}

/// The two halves of the ring of operations: what tool-uk writes, what we write.
pub fn operation_rings<F: SharedMemory + Copy>(
    regions: &Regions<F>,
) -> (fabric::Part<F>, fabric::Part<F>) {
    let tool = Party::unit(system::TOOL_UK);
    (regions.find(RegionKind::Requests, tool), regions.find(RegionKind::Replies, tool))
}

/// The failures of our own that the command line asks for, if any.
///
/// # Errors
/// The argument cannot be read.
pub fn own_faults(argument: Option<&str>) -> Result<Option<inject_own::Plan>, StartError> {
    let read = |text| inject_own::Plan::parse(text).ok_or(StartError::OwnFaults);
    argument.map(read).transpose()
}

/// The injector that the argument `inject=` asks for.
///
/// # Errors
/// The plan cannot be read, or its unit has no such instructions.
pub fn injector<F: SharedMemory + Copy>(
    archive: &Archive<'static>,
    regions: &Regions<F>,
    argument: Option<&str>,
) -> Result<Option<Injector<Part<F>>>, StartError> {
    let Some(text) = argument else { return Ok(None) };
    let plan = inject_plan::Plan::parse(text).map_err(|error| {
        StartError::Injection(match error {
            PlanError::UnknownField(_) => "a field is unknown",
            PlanError::NotANumber(_) => "a number cannot be read",
            PlanError::UnknownKind(_) => "a kind is unknown, or there are too many",
            PlanError::UnknownSpan(_) => "`during:` is followed by `create` or `rebuild`",
            PlanError::NobodyToRebuild => "`during:rebuild` needs another unit, named by `with:`",
            PlanError::Incomplete => "it names no kind, or no unit",
        })
    })?;
    let position = |id: DomId| system::SYSTEM.units.iter().position(|unit| unit.domid == id.0);
    let no_unit = StartError::Injection("there is no unit with this domid");
    let index = position(plan.unit).ok_or(no_unit)?;
    if plan.with.is_some_and(|other| position(other).is_none()) {
        return Err(no_unit);
    }
    let unit = &system::SYSTEM.units[index];
    let entry = unit.entry;
    let image = archive.entry(entry).map_err(|error| StartError::Archive { entry, error })?;
    let gadgets = Gadgets::of_image(image.bytes())
        .ok_or(StartError::Injection("the unit's text lacks the instructions it needs"))?;
    let is_store = unit.role == system::Role::XenStore;
    if !is_store && plan.kinds.iter().any(|kind| matches!(kind, Kind::Record(_))) {
        return Err(StartError::Injection("only a XenStore has such records"));
    }
    // Which of the stores is hit may change with every fault.
    let damagers = (0..).zip(system::SYSTEM.units).filter(|(_, one)| one.role == unit.role);
    let damagers =
        damagers.map(|(index, one)| (DomId(one.domid), Damager::new(Places::of(regions, index))));
    let damagers = if is_store { damagers.collect() } else { Damagers::new() };
    Ok(Some(Injector::new(plan, gadgets, damagers)))
}
