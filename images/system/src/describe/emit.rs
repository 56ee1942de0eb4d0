//! The tables of a description, as Rust text for the target.

use std::fmt::Write;

use super::Wrong;
use super::file::{Description, Guest, NicModel, OnStop, Recovery, Role, Unit};

/// A region of the fabric; parties are `None` for the orchestrator, else unit indices.
pub(super) struct Region {
    kind: String,
    subject: Option<usize>,
    writer: Option<usize>,
    readers: Vec<usize>,
    pub(super) pages: u32,
}

/// All regions, in the order of the fabric: the common table, then each unit's.
pub(super) fn regions(description: &Description) -> Vec<Region> {
    let units = &description.units;
    let all = (0..units.len()).collect();
    let mut regions = vec![Region {
        kind: "Domains".into(),
        subject: None,
        writer: None,
        readers: all,
        pages: 1,
    }];
    let stores: Vec<usize> =
        (0..units.len()).filter(|i| units[*i].role == Role::Xenstore).collect();
    for (index, unit) in units.iter().enumerate() {
        let others: Vec<usize> = stores.iter().copied().filter(|other| *other != index).collect();
        let mut add = |kind: &str, writer: Option<usize>, readers: &[usize], pages| {
            if pages > 0 {
                let (kind, subject) = (kind.to_owned(), Some(index));
                let readers = readers.to_vec();
                regions.push(Region { kind, subject, writer, readers, pages });
            }
        };
        let ours = Some(index);
        add("Health", ours, &[], 1);
        add("Log", ours, &[], unit.regions.log);
        add("Control", None, &[index], 1);
        add("Kicks", ours, &[], 1);
        add("Areas", ours, &others, unit.regions.areas);
        add("Slots", ours, &[], unit.regions.slots);
        add("RaftLog", ours, &[], unit.regions.raft_log);
        add("RaftMail", ours, &others, unit.regions.raft_mail);
        add("Requests", ours, &[], unit.regions.requests);
        add("Replies", None, &[index], unit.regions.replies);
        add("Journal", ours, &[], unit.regions.journal);
        add("ConsoleOut", ours, &[], unit.regions.console_out);
        if unit.role == Role::Tool {
            add("ConsoleIn", None, &[index], 1);
            add("ConsoleTaken", ours, &[], 1);
        }
        if unit.store_slot.is_some() {
            add("StoreClient", ours, &stores, 1);
            for (replica, store) in stores.iter().enumerate() {
                let mut readers = stores.clone();
                readers[replica] = index;
                add(&format!("StoreServer({replica})"), Some(*store), &readers, 1);
            }
        }
    }
    regions
}

/// Unit indices, each after those it depends on; in the order of the file where that is open.
pub(super) fn restart_order(description: &Description) -> Result<Vec<usize>, Wrong> {
    let units = &description.units;
    let mut order: Vec<usize> = Vec::new();
    while order.len() < units.len() {
        let is_placed = |name: &String| order.iter().any(|index| units[*index].name == *name);
        let next = (0..units.len())
            .find(|index| !order.contains(index) && units[*index].depends_on.iter().all(is_placed));
        let Some(next) = next else {
            let rest = (0..units.len()).filter(|index| !order.contains(index));
            let names: Vec<&str> = rest.map(|index| units[index].name.as_str()).collect();
            return Err(Wrong::Value {
                field: "depends_on".into(),
                value: format!("a circle of {}", names.join(", ")),
                allowed: "an order in which each unit comes after those it depends on".into(),
            });
        };
        order.push(next);
    }
    Ok(order)
}

/// The Rust source of the tables of a checked description.
pub fn emit(description: &Description) -> String {
    let mut out = String::new();
    emit_constants(&mut out, description);
    let order = restart_order(description).unwrap_or_default();
    let limits = &description.limits;
    let units: String = description.units.iter().map(|unit| emit_unit(description, unit)).collect();
    let guests: String = description.guests.iter().map(emit_guests).collect();
    let regions: String = regions(description).iter().map(emit_region).collect();
    let limits = format!(
        "slots: {}, first_guest_domid: {}, fabric_pages: {}, archive_mib: {}",
        limits.slots, limits.first_guest_domid, limits.fabric_pages, limits.archive_mib,
    );
    let text = format!(
        "/// The host, as its description says.
pub static SYSTEM: System = SYSTEM_TABLE;
const SYSTEM_TABLE: System = System {{
    units: &[\n{units}    ],
    guests: &[\n{guests}    ],
    regions: &[\n{regions}    ],
    restart_order: &{order:?},
    limits: Limits {{ {limits} }},
}};
"
    );
    out.push_str(&text);
    out
}

fn emit_constants(out: &mut String, description: &Description) {
    let mut line = |doc: &str, name: &str, kind: &str, value: u64| {
        let _ = writeln!(out, "/// {doc}\npub const {name}: {kind} = {value};");
    };
    line("Units of the description.", "UNITS", "usize", description.units.len() as u64);
    line("Connection slots.", "SLOTS", "usize", description.limits.slots.into());
    let first = description.limits.first_guest_domid;
    line("Domid of the first guest.", "FIRST_GUEST_DOMID", "u16", first.into());
    for (index, unit) in description.units.iter().enumerate() {
        let name = unit.name.to_uppercase().replace('-', "_");
        line(&format!("Index of the unit `{}`.", unit.name), &name, "usize", index as u64);
        if unit.role == Role::Xenstore {
            let pages = unit.regions.areas / description.limits.slots;
            let name = format!("{name}_AREA_PAGES");
            line("Pages of the area of one connection.", &name, "usize", pages.into());
        }
    }
}

fn emit_unit(description: &Description, unit: &Unit) -> String {
    let index_of = |name: &String| description.units.iter().position(|other| other.name == *name);
    let depends_on: Vec<usize> = unit.depends_on.iter().filter_map(index_of).collect();
    let role = match unit.role {
        Role::Xenstore => "XenStore",
        Role::Net => "Net",
        Role::Tool => "Tool",
    };
    let nics: String = unit.nics.iter().map(|model| emit_nic(*model)).collect();
    format!(
        "        Unit {{ name: {:?}, role: Role::{role}, domid: {}, entry: {:?}, memory_kib: {}, \
         store_slot: {:?}, nics: &[{nics}], depends_on: &{depends_on:?}, policy: {} }},\n",
        unit.name,
        unit.domid,
        unit.entry,
        unit.memory_kib,
        unit.store_slot,
        emit_policy(&description.recovery.with(&unit.recovery)),
    )
}

fn emit_nic(model: NicModel) -> &'static str {
    match model {
        NicModel::E1000e => "NicModel::E1000e, ",
        NicModel::VirtioNet => "NicModel::VirtioNet, ",
    }
}

fn emit_policy(recovery: &Recovery) -> String {
    let Recovery { tries, .. } = recovery;
    format!(
        "Policy {{ hang_limit_ns: {}, start_limit_ns: {}, ping_interval_ns: {}, min_run_ns: {}, \
         backoff_ns: {}, backoff_max_ns: {}, healthy_ns: {}, tries: [{}, {}, {}] }}",
        recovery.hang_limit_us * 1_000,
        recovery.start_limit_us * 1_000,
        recovery.ping_interval_ms * 1_000_000,
        recovery.min_run_ms * 1_000_000,
        recovery.backoff_ms * 1_000_000,
        recovery.backoff_max_ms * 1_000_000,
        recovery.healthy_ms * 1_000_000,
        tries.microreset,
        tries.microreboot,
        tries.rebuild,
    )
}

fn emit_guests(guest: &Guest) -> String {
    let on_stop = |what: OnStop| match what {
        OnStop::Destroy => "OnStop::Destroy",
        OnStop::Restart => "OnStop::Restart",
        OnStop::Preserve => "OnStop::Preserve",
    };
    let mut out = String::new();
    for number in 1..=guest.count {
        let name =
            if guest.count == 1 { guest.name.clone() } else { format!("{}-{number}", guest.name) };
        let _ = writeln!(
            out,
            "        Guest {{ name: {name:?}, memory_mib: {}, vcpus: {}, vifs: {}, \
             store_nodes: {}, kernel: {:?}, ramdisk: {:?}, cmdline: {:?}, on_crash: {}, \
             on_reboot: {}, on_poweroff: {} }},",
            guest.memory_mib,
            guest.vcpus,
            guest.vifs,
            guest.store_nodes,
            guest.kernel,
            guest.ramdisk,
            guest.cmdline,
            on_stop(guest.on_crash),
            on_stop(guest.on_reboot),
            on_stop(guest.on_poweroff),
        );
    }
    out
}

fn emit_region(region: &Region) -> String {
    let party = |party: Option<usize>| match party {
        Some(index) => format!("Party::unit({index})"),
        None => "Party::ORCHESTRATOR".to_owned(),
    };
    let readers: String =
        region.readers.iter().map(|reader| format!(".with(Party::unit({reader}))")).collect();
    format!(
        "        Region {{ kind: RegionKind::{}, subject: {}, writer: {}, readers: \
         Parties::NONE{readers}, pages: {} }},\n",
        region.kind,
        party(region.subject),
        party(region.writer),
        region.pages,
    )
}
