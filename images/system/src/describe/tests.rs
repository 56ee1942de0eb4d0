//! Each wrong value ends with a message that names the field, the value and what is allowed.

use super::*;

const GOOD: &str = include_str!("../../ppvmm.toml");

fn parse(text: &str) -> Result<Description, Wrong> {
    parse_over(&[text])
}

/// The message for the description in which `from` reads `to`.
fn message(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "the test is about {from:?}, which is not in the file");
    match parse(&GOOD.replacen(from, to, 1)) {
        Ok(_) => panic!("{to:?} passed"),
        Err(wrong) => wrong.to_string(),
    }
}

#[test]
fn the_description_is_good() {
    let description = parse(GOOD).unwrap();
    assert_eq!(description.units.len(), 5);
    let tables = emit(&description);
    assert!(tables.contains("pub const XENSTORE_UK_AREA_PAGES: usize = 4;"), "{tables}");
}

const ONE_STORE: &str = include_str!("../../one-store.toml");

/// The descriptions with other guests, each with what it builds upon.
const VARIANTS: [(&str, &[&str]); 4] = [
    (include_str!("../../several.toml"), &[GOOD]),
    (include_str!("../../busy.toml"), &[GOOD, ONE_STORE]),
    (include_str!("../../hostile.toml"), &[GOOD, ONE_STORE]),
    (include_str!("../../large-store.toml"), &[GOOD, ONE_STORE]),
];

#[test]
fn the_variants_are_good_and_change_nothing_but_guests() {
    for (text, bases) in VARIANTS {
        let name = if bases.len() == 1 { "ppvmm.toml" } else { "one-store.toml" };
        assert_eq!(base(text), Ok(Some(name.into())));
        let whole = parse_over(bases).unwrap();
        let variant = parse_over(&[bases, &[text]].concat()).unwrap();
        assert_ne!(format!("{:?}", variant.guests), format!("{:?}", whole.guests));
        let back = Description { guests: whole.guests.clone(), ..variant };
        assert_eq!(format!("{back:?}"), format!("{whole:?}"));
    }
}

#[test]
fn with_one_store_all_else_is_as_it_was() {
    assert_eq!(base(ONE_STORE), Ok(Some("ppvmm.toml".into())));
    let (whole, one) = (parse(GOOD).unwrap(), parse_over(&[GOOD, ONE_STORE]).unwrap());
    let stores = |units: &[file::Unit]| {
        units.iter().filter(|unit| unit.role == file::Role::Xenstore).count()
    };
    assert_eq!((stores(&whole.units), stores(&one.units)), (3, 1));
    for unit in &one.units {
        let mut other = whole.units.iter().find(|other| other.name == unit.name).unwrap().clone();
        other.regions.raft_mail = unit.regions.raft_mail;
        other.depends_on.clone_from(&unit.depends_on);
        assert_eq!(format!("{unit:?}"), format!("{other:?}"));
    }
    let back = Description { units: whole.units.clone(), ..one };
    assert_eq!(format!("{back:?}"), format!("{whole:?}"));
}

#[test]
fn a_wrong_base_and_a_wrong_variant_are_named() {
    assert_eq!(base(GOOD), Ok(None));
    let message = |result: Result<Description, Wrong>| result.unwrap_err().to_string();
    assert!(base("base = 3").unwrap_err().to_string().starts_with("base = (integer) is wrong"));
    let text = "[limits]\nslots = 65";
    assert!(message(parse_over(&[GOOD, text])).contains("missing field"), "whole tables count");
    assert!(message(parse_over(&[GOOD, "limit = 3"])).contains("unknown field `limit`"));
    assert!(message(parse_over(&[GOOD, "version = 2"])).contains("version = 2 is wrong"));
    assert!(message(parse("base = \"x\"")).contains("unknown field `base`"));
}

#[test]
fn bounds_agree_with_the_fabric() {
    assert_eq!(check::SLOTS_MAX as usize, fabric::domains::SLOTS);
    assert_eq!(check::UNITS_MAX + 1, fabric::view::PARTIES_MAX);
}

#[test]
fn wrong_values_are_named_with_what_is_allowed() {
    let cases = [
        ("version = 1", "version = 2", "version = 2 is wrong: allowed is 1 (the format"),
        ("slots = 64", "slots = 65", "limits.slots = 65 is wrong: allowed is 2 to 64"),
        ("first_guest_domid = 16", "first_guest_domid = 0", "limits.first_guest_domid = 0"),
        ("fabric_pages = 3072", "fabric_pages = 8", "limits.fabric_pages = 8 is wrong"),
        ("archive_mib = 96", "archive_mib = 0", "limits.archive_mib = 0 is wrong: allowed is 1 to"),
        ("hang_limit_us = 500", "hang_limit_us = 5", "recovery.hang_limit_us = 5 is wrong"),
        ("start_limit_us = 40000", "start_limit_us = 0", "recovery.start_limit_us = 0 is wrong"),
        ("ping_interval_ms = 30000", "ping_interval_ms = 1", "recovery.ping_interval_ms = 1"),
        ("min_run_ms = 20", "min_run_ms = 0", "recovery.min_run_ms = 0 is wrong"),
        ("backoff_ms = 1", "backoff_ms = 0", "recovery.backoff_ms = 0 is wrong"),
        ("backoff_max_ms = 1000", "backoff_max_ms = 0", "recovery.backoff_max_ms = 0 is wrong"),
        ("healthy_ms = 100", "healthy_ms = 19", "recovery.healthy_ms = 19 is wrong: allowed is 20"),
        ("rebuild = 3", "rebuild = 0", "recovery.tries.rebuild = 0 is wrong: allowed is 1 to 100"),
        (
            "domid = 1\n",
            "domid = 16\n",
            "unit \"xenstore-uk\": domid = 16 is wrong: allowed is 1 to",
        ),
        (
            "domid = 5",
            "domid = 1",
            "unit \"tool-uk\": domid = 1 is wrong: allowed is a domid that no",
        ),
        ("name = \"tool-uk\"", "name = \"Tool\"", "unit 4: name = \"Tool\" is wrong"),
        ("name = \"tool-uk\"", "name = \"xenstore-uk\"", "a name that no other unit has"),
        ("entry = \"tool-uk\"", "entry = \"\"", "unit \"tool-uk\": entry = \"\" is wrong"),
        ("memory_kib = 8192", "memory_kib = 32768", "memory_kib = 32768 is wrong: allowed is 1024"),
        ("memory_kib = 8192", "memory_kib = 8190", "a multiple of 4 (whole pages)"),
        ("[\"xenstore-uk\", ", "[\"net\", ", "depends_on = \"net\" is wrong: allowed is names of"),
        ("depends_on = []", "depends_on = [\"tool-uk\"]", "a circle of xenstore-uk, tool-uk"),
        ("slots = 512, areas", "slots = 1, areas", "regions.slots = 1 is wrong"),
        ("areas = 256", "areas = 128", "regions.areas = 128 is wrong: allowed is 192 to"),
        ("areas = 256", "areas = 257", "allowed is a multiple of limits.slots"),
        ("requests = 2", "requests = 1", "regions.requests = 1 is wrong: allowed is 2 to 64"),
        ("replies = 2", "replies = 65", "regions.replies = 65 is wrong"),
        ("journal = 4", "journal = 0", "regions.journal = 0 is wrong"),
        ("console-out = 4", "console-out = 0", "regions.console-out = 0 is wrong"),
        ("mail = 18 }", "mail = 18, requests = 2 }", "only a unit with role tool has it"),
        ("raft-log = 32", "raft-log = 31", "regions.raft-log = 31 is wrong: allowed is 32 to"),
        ("mail = 18", "mail = 9", "regions.raft-mail = 9 is wrong: allowed is 18"),
        ("console-out = 4 }", "console-out = 4, slots = 9 }", "only a unit with role xenstore"),
        ("store_slot = 0", "store_slot = 64", "store_slot = 64 is wrong: allowed is 0 to 63"),
        ("slots = 512, areas", "slots = 2000, areas", "pages of all regions = "),
        ("store_slot = 63", "store_slot = 0", "allowed is a slot that no other unit has"),
        ("entry = \"tool-uk\"", "entry = \"tool-uk\"\nnics = [\"e1000e\"]", "nics = [E1000e] is"),
        ("\"virtio-net\"]", "\"ne2000\"]", "unknown variant `ne2000`"),
        ("journal = 64", "journal = 9", "unit \"net-uk\": regions.journal = 9 is wrong"),
        ("vifs = 1", "vifs = 5", "guest \"demo\": vifs = 5 is wrong: allowed is 0 to 4"),
        ("name = \"demo\"", "name = \"tool-uk\"", "a name that no other guest or unit has"),
        ("count = 1", "count = 64", "count of all guests = 64 is wrong: allowed is 0 to 62"),
        ("memory_mib = 128", "memory_mib = 8", "guest \"demo\": memory_mib = 8 is wrong"),
        ("vcpus = 1", "vcpus = 2", "vcpus = 2 is wrong: allowed is 1 (the builder makes no ACPI"),
        ("\"guest-kernel\"", "\"guest kernel\"", "guest \"demo\": kernel = \"guest kernel\""),
        ("ramdisk = \"guest-", "ramdisk = \"/guest-", "guest \"demo\": ramdisk = \"/guest-init"),
        ("cmdline = \"", "cmdline = \"\\u001b", "at most 1024 printable ASCII characters"),
    ];
    for (from, to, expected) in cases {
        let message = message(from, to);
        assert!(message.contains(expected), "{to:?} gives {message:?}, not {expected:?}");
    }
}

#[test]
fn wrong_syntax_names_its_place() {
    let cases = [
        ("version = 1", "version = ", "line 3"),
        ("slots = 64", "slots = \"many\"", "invalid type: string \"many\""),
        ("slots = 64", "slots = -1", "invalid value: integer `-1`"),
        ("role = \"tool\"", "role = \"disk\"", "unknown variant `disk`, expected one of"),
        ("on_crash = \"restart\"", "on_crash = \"panic\"", "unknown variant `panic`"),
        ("vcpus = 1", "cpus = 1", "unknown field `cpus`, expected one of"),
        ("archive_mib = 96", "", "missing field `archive_mib`"),
        ("log = 4, requests", "logs = 4, requests", "unknown field `logs`"),
    ];
    for (from, to, expected) in cases {
        let message = message(from, to);
        assert!(message.contains(expected), "{to:?} gives {message:?}, not {expected:?}");
    }
}

#[test]
fn several_guests_of_a_kind_are_numbered() {
    let description = parse(&GOOD.replacen("count = 1", "count = 3", 1)).unwrap();
    let tables = emit(&description);
    assert!(tables.contains("name: \"demo-1\"") && tables.contains("name: \"demo-3\""));
    assert!(!tables.contains("name: \"demo\""));
}

#[test]
fn a_unit_may_have_values_of_its_own() {
    let text = GOOD.replacen("store_slot = 0", "store_slot = 0\nrecovery.hang_limit_us = 900", 1);
    let tables = emit(&parse(&text).unwrap());
    let policies: Vec<_> = tables.match_indices("hang_limit_ns: 900000").collect();
    assert_eq!(policies.len(), 1, "only tool-uk");
}
