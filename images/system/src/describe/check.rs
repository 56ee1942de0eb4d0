//! Every value of a description, and what it may be.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::ops::RangeInclusive;

use super::Wrong;
use super::file::{Description, Guest, Limits, Recovery, Regions, Role, Unit};

/// Format of the file.
const VERSION: u32 = 1;
/// One page holds the domain table ([`fabric::domains::SLOTS`], repeated here because this module
/// is part of a build script; a test compares them).
pub(super) const SLOTS_MAX: u32 = 64;
/// Domids of services lie below the guests'; Xen's reserved ones begin at 0x7ff0.
const DOMID_MAX: u32 = 0x7fef;
/// A service runs in 16 MiB; below 1 MiB not even its image and page tables fit.
const UNIT_MEMORY_KIB: RangeInclusive<u32> = 1024..=16384;
/// A Debian kernel with its initramfs does not start in less than 48 MiB.
const GUEST_MEMORY_MIB: RangeInclusive<u32> = 48..=4096;
/// 2 MiB of slots hold 16,384 of them, of which some are always free.
const STORE_NODES_MAX: u32 = 15_000;
/// More virtual CPUs of a PVH guest need ACPI tables, which the builder does not make.
const GUEST_VCPUS: RangeInclusive<u32> = 1..=1;
/// Each vif takes a place in net-uk's journal.
const GUEST_VIFS: RangeInclusive<u32> = 0..=4;
/// Least pages of a replica's log: four times the decision of the longest transaction.
const RAFT_LOG_PAGES: u32 = 32;
/// Pages of a half ring of messages (`raft::MIN_HALF`).
const RAFT_MAIL_PAGES: u32 = 9;
/// A fabric is at least a few pages; 64 MiB of it would no longer be "small state".
const FABRIC_PAGES: RangeInclusive<u32> = 16..=16384;
/// The archive is copied by nobody, but lies in the initial domain's memory.
const ARCHIVE_MIB: RangeInclusive<u32> = 1..=512;
/// Names of archive entries have at most 32 bytes; unit and guest names are printed in columns.
const NAME_MAX: usize = 32;
/// Linux's limit on x86 is 2,048 bytes; half of it leaves room for what the builder adds.
const CMDLINE_MAX: usize = 1024;
/// The orchestrator and 15 units fit a set of parties ([`fabric::view::PARTIES_MAX`]).
pub(super) const UNITS_MAX: usize = 15;

fn wrong(field: String, value: impl Debug, allowed: impl Into<String>) -> Wrong {
    Wrong::Value { field, value: format!("{value:?}"), allowed: allowed.into() }
}

fn within<T: PartialOrd + Debug + Copy>(
    field: String,
    value: T,
    range: RangeInclusive<T>,
    why: &str,
) -> Result<(), Wrong> {
    if range.contains(&value) {
        return Ok(());
    }
    let allowed = if range.start() == range.end() {
        format!("{:?} ({why})", range.start())
    } else {
        format!("{:?} to {:?} ({why})", range.start(), range.end())
    };
    Err(wrong(field, value, allowed))
}

/// Checks every value.
pub(super) fn check(description: &Description) -> Result<(), Wrong> {
    within("version".into(), description.version, VERSION..=VERSION, "the format of this file")?;
    check_limits(&description.limits)?;
    check_recovery("recovery", &description.recovery)?;
    let count = description.units.len();
    if count == 0 || count > UNITS_MAX {
        return Err(wrong("number of [[unit]]".into(), count, format!("1 to {UNITS_MAX}")));
    }
    for (index, unit) in description.units.iter().enumerate() {
        check_unit(description, index, unit)?;
    }
    check_store(description)?;
    super::emit::restart_order(description)?;
    for (index, guest) in description.guests.iter().enumerate() {
        check_guest(description, index, guest)?;
    }
    check_guest_count(description)?;
    let pages: u32 = super::emit::regions(description).iter().map(|region| region.pages).sum();
    let most = description.limits.fabric_pages;
    within("pages of all regions".into(), pages, 0..=most, "limits.fabric_pages")
}

fn check_limits(limits: &Limits) -> Result<(), Wrong> {
    let Limits { slots, first_guest_domid, fabric_pages, archive_mib } = *limits;
    within("limits.slots".into(), slots, 2..=SLOTS_MAX, "the domain table is one page")?;
    let field = "limits.first_guest_domid".into();
    within(field, first_guest_domid, 2..=16384, "services lie below, all guests above")?;
    let field = "limits.fabric_pages".into();
    within(field, fabric_pages, FABRIC_PAGES, "pages of 4 KiB")?;
    within("limits.archive_mib".into(), archive_mib, ARCHIVE_MIB, "MiB")
}

fn check_recovery(of: &str, recovery: &Recovery) -> Result<(), Wrong> {
    let Recovery { tries, .. } = *recovery;
    let ms = "milliseconds";
    let field = |name: &str| format!("{of}.{name}");
    let us = "microseconds of received CPU time";
    within(field("hang_limit_us"), recovery.hang_limit_us, 100..=1_000_000, us)?;
    within(field("start_limit_us"), recovery.start_limit_us, 1_000..=60_000_000, us)?;
    within(field("ping_interval_ms"), recovery.ping_interval_ms, 100..=3_600_000, ms)?;
    within(field("min_run_ms"), recovery.min_run_ms, 1..=60_000, ms)?;
    within(field("backoff_ms"), recovery.backoff_ms, 1..=10_000, ms)?;
    let (least, most) = (recovery.backoff_ms, 60_000);
    within(field("backoff_max_ms"), recovery.backoff_max_ms, least..=most, "from backoff_ms up")?;
    let least = recovery.min_run_ms;
    within(field("healthy_ms"), recovery.healthy_ms, least..=3_600_000, "from min_run_ms up")?;
    let none = "0 leaves the rung out";
    within(field("tries.microreset"), tries.microreset, 0..=100, none)?;
    within(field("tries.microreboot"), tries.microreboot, 0..=100, none)?;
    within(field("tries.rebuild"), tries.rebuild, 1..=100, "a unit must have one way back")
}

fn check_name(field: String, name: &str) -> Result<(), Wrong> {
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(is_good) {
        return Ok(());
    }
    let allowed = format!("1 to {NAME_MAX} lower-case letters, digits and hyphens");
    Err(wrong(field, name, allowed))
}

fn check_unit(description: &Description, index: usize, unit: &Unit) -> Result<(), Wrong> {
    check_name(format!("unit {}: name", index + 1), &unit.name)?;
    let field = |name: &str| format!("unit \"{}\": {name}", unit.name);
    let earlier = &description.units[..index];
    if earlier.iter().any(|other| other.name == unit.name) {
        return Err(wrong(field("name"), &unit.name, "a name that no other unit has"));
    }
    let first_guest = description.limits.first_guest_domid;
    let below = "below limits.first_guest_domid; 0 is the orchestrator";
    within(field("domid"), unit.domid, 1..=first_guest - 1, below)?;
    if earlier.iter().any(|other| other.domid == unit.domid) {
        return Err(wrong(field("domid"), unit.domid, "a domid that no other unit has"));
    }
    check_name(field("entry"), &unit.entry)?;
    let why = "KiB; a service is small";
    within(field("memory_kib"), unit.memory_kib, UNIT_MEMORY_KIB, why)?;
    if !unit.memory_kib.is_multiple_of(4) {
        return Err(wrong(field("memory_kib"), unit.memory_kib, "a multiple of 4 (whole pages)"));
    }
    for name in &unit.depends_on {
        if *name == unit.name || !description.units.iter().any(|other| other.name == *name) {
            return Err(wrong(field("depends_on"), name, "names of other units"));
        }
    }
    if unit.role != Role::Net && !unit.nics.is_empty() {
        return Err(wrong(field("nics"), &unit.nics, "set only for a unit with role net"));
    }
    check_regions(description, unit)?;
    check_recovery(&field("recovery"), &description.recovery.with(&unit.recovery))
}

fn check_regions(description: &Description, unit: &Unit) -> Result<(), Wrong> {
    let field = |name: &str| format!("unit \"{}\": regions.{name}", unit.name);
    let Regions { log, slots, areas, requests, replies, journal, console_out, .. } = unit.regions;
    within(field("log"), log, 1..=64, "pages; the last words of a unit are evidence")?;
    let most = description.limits.fabric_pages;
    match unit.role {
        Role::Xenstore => {
            within(field("slots"), slots, 2..=most, "pages")?;
            check_replica(description, unit)?;
            let least = 3 * description.limits.slots;
            within(field("areas"), areas, least..=most, "pages: 3 or more per slot")?;
            let per_slot = areas / description.limits.slots;
            if per_slot * description.limits.slots != areas {
                return Err(wrong(field("areas"), areas, "a multiple of limits.slots"));
            }
        }
        Role::Net | Role::Tool => {
            within(field("slots"), slots, 0..=0, "only a unit with role xenstore has them")?;
            within(field("areas"), areas, 0..=0, "only a unit with role xenstore has them")?;
        }
    }
    if unit.role == Role::Tool {
        let why = "pages: a message of 4 KiB and its header have to fit";
        within(field("requests"), requests, 2..=64, why)?;
        within(field("replies"), replies, 2..=64, why)?;
        within(field("console-out"), console_out, 1..=64, "pages")?;
        return within(field("journal"), journal, 1..=most, "pages");
    }
    if unit.role == Role::Net {
        let why = "pages: what outlives it of the shadow driver, and of one vif at least";
        within(field("journal"), journal, 16..=most, why)?;
    }
    let why = "only a unit with role tool has it";
    within(field("requests"), requests, 0..=0, why)?;
    within(field("replies"), replies, 0..=0, why)?;
    within(field("console-out"), console_out, 0..=0, why)?;
    within(field("journal"), journal, 0..=most, "pages")
}

/// The log has room for several of the longest entries, and the mail for two of the longest
/// messages to each other replica.
fn check_replica(description: &Description, unit: &Unit) -> Result<(), Wrong> {
    let field = |name: &str| format!("unit \"{}\": regions.{name}", unit.name);
    let most = description.limits.fabric_pages;
    let why = "pages; the log keeps the last changes, and all of a transaction";
    within(field("raft-log"), unit.regions.raft_log, RAFT_LOG_PAGES..=most, why)?;
    let stores = description.units.iter().filter(|other| other.role == Role::Xenstore).count();
    let wanted = RAFT_MAIL_PAGES * (stores as u32 - 1);
    let why = "pages: 9 for each other unit with role xenstore";
    within(field("raft-mail"), unit.regions.raft_mail, wanted..=wanted, why)
}

/// A XenStore for each client, and a slot for each client alone.
fn check_store(description: &Description) -> Result<(), Wrong> {
    let mut slots = BTreeSet::new();
    for unit in &description.units {
        let Some(slot) = unit.store_slot else { continue };
        let field = format!("unit \"{}\": store_slot", unit.name);
        let most = description.limits.slots - 1;
        within(field.clone(), slot, 0..=most, "below limits.slots")?;
        if !slots.insert(slot) {
            return Err(wrong(field, slot, "a slot that no other unit has"));
        }
        let servers = description.units.iter().filter(|other| other.role == Role::Xenstore);
        if servers.count() == 0 {
            return Err(wrong(field, slot, "set only if there is a unit with role xenstore"));
        }
    }
    Ok(())
}

fn check_guest(description: &Description, index: usize, guest: &Guest) -> Result<(), Wrong> {
    check_name(format!("guest {}: name", index + 1), &guest.name)?;
    let field = |name: &str| format!("guest \"{}\": {name}", guest.name);
    let is_taken = description.guests[..index].iter().any(|other| other.name == guest.name)
        || description.units.iter().any(|unit| unit.name == guest.name);
    if is_taken {
        return Err(wrong(field("name"), &guest.name, "a name that no other guest or unit has"));
    }
    within(field("memory_mib"), guest.memory_mib, GUEST_MEMORY_MIB, "MiB")?;
    within(field("vifs"), guest.vifs, GUEST_VIFS, "each takes a place in net-uk's journal")?;
    if guest.vifs > 0 && !description.units.iter().any(|unit| unit.role == Role::Net) {
        let allowed = "0 in a host without a unit with role net";
        return Err(wrong(field("vifs"), guest.vifs, allowed));
    }
    let why = "the store has no more slots";
    within(field("store_nodes"), guest.store_nodes, 0..=STORE_NODES_MAX, why)?;
    let why = "the builder makes no ACPI tables";
    within(field("vcpus"), guest.vcpus, GUEST_VCPUS, why)?;
    check_name(field("kernel"), &guest.kernel)?;
    if !guest.ramdisk.is_empty() {
        check_name(field("ramdisk"), &guest.ramdisk)?;
    }
    let is_printable = guest.cmdline.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if guest.cmdline.len() > CMDLINE_MAX || !is_printable {
        let allowed = format!("at most {CMDLINE_MAX} printable ASCII characters");
        return Err(wrong(field("cmdline"), &guest.cmdline, allowed));
    }
    within(field("count"), guest.count, 0..=SLOTS_MAX, "one slot each")
}

fn check_guest_count(description: &Description) -> Result<(), Wrong> {
    let guests: u32 = description.guests.iter().map(|guest| guest.count).sum();
    let clients = description.units.iter().filter(|unit| unit.store_slot.is_some()).count() as u32;
    let most = description.limits.slots.saturating_sub(clients);
    within("count of all guests".into(), guests, 0..=most, "limits.slots without the units'")?;
    let last = description.limits.first_guest_domid + guests;
    within("domid of the last guest".into(), last, 0..=DOMID_MAX, "Xen reserves the rest")
}
