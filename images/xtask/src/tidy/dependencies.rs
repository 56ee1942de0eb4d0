//! Third-party code: only packages on the list, only licences that ours can be joined with.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::Tool;
use crate::setup::TARGET;

/// Packages that ours may name as dependencies, and what for.
pub const ALLOWED: [(&str, &str); 21] = [
    ("anyhow", "errors of host tools"),
    ("arbtest", "property tests"),
    ("bitflags", "flag sets of hardware and hypervisor formats"),
    ("clap", "command lines of host tools"),
    ("crc32fast", "CRC-32 of records"),
    ("heapless", "bounded collections without an allocator"),
    ("indicatif", "progress of host tools"),
    ("libfuzzer-sys", "the fuzzer, never part of a unikernel"),
    ("log", "the logging facade"),
    ("noraft", "the core of consensus"),
    ("postcard", "messages between units"),
    ("proptest", "property tests"),
    ("serde", "messages and reports"),
    ("serde_json", "reports"),
    ("smoltcp", "TCP/IP in units"),
    ("snow", "encryption of the management connection"),
    ("stateright", "linearizability checks in tests"),
    ("talc", "the heap of units"),
    ("toml", "the system description"),
    ("virtio-drivers", "transports and queues of virtio devices"),
    ("zerocopy", "views of wire formats"),
];

/// Licences, one of which every package must offer.
const LICENCES: [&str; 12] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "0BSD",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "CC0-1.0",
    // LLVM's own, as permissive as MIT: libFuzzer.
    "NCSA",
];

/// The machine that the tools run on; other machines' packages are used by nobody here.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Complaints about the workspace's dependencies. Fetches those that are not there yet.
pub fn check() -> Result<Vec<String>> {
    let out = Tool::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", HOST, "--filter-platform", TARGET])
        .named("cargo-metadata")
        .output()?;
    check_metadata(&serde_json::from_slice(&out)?)
}

/// Complaints about what `cargo metadata` says.
pub fn check_metadata(data: &Value) -> Result<Vec<String>> {
    let packages = data["packages"].as_array().context("cargo metadata without packages")?;
    let mut out = BTreeSet::new();
    let allowed: BTreeMap<&str, &str> = ALLOWED.into_iter().collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if !package["source"].is_null() {
            let licence = package["license"].as_str().unwrap_or("none");
            if !is_licence_accepted(licence) {
                out.insert(format!("dependency {name}: its licence {licence:?} is not accepted"));
            }
            continue;
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let wanted = dependency["name"].as_str().unwrap_or_default();
            let is_ours = dependency["source"].is_null();
            if !is_ours && !allowed.contains_key(wanted) {
                out.insert(format!(
                    "{name} depends on {wanted}, which is not on the list in \
                     images/xtask/src/tidy/dependencies.rs: add it with its reason, or do without"
                ));
            }
        }
    }
    Ok(out.into_iter().collect())
}

/// Whether an SPDX expression can be met: `OR` needs one side, `AND` both.
fn is_licence_accepted(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let meets = |part: &str| LICENCES.contains(&part.trim());
    if expression.contains('(') {
        // Grouped alternatives joined by AND: each group must offer one.
        let groups = expression.split(" AND ");
        return groups
            .into_iter()
            .all(|group| group.replace(['(', ')'], " ").split(" OR ").any(meets));
    }
    plain.split(" OR ").any(|side| side.split(" AND ").all(meets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn licences_are_read() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
        ] {
            assert!(is_licence_accepted(good), "{good}");
        }
        for bad in ["GPL-3.0", "none", "MIT AND GPL-2.0", "(MIT OR Apache-2.0) AND LGPL-2.1"] {
            assert!(!is_licence_accepted(bad), "{bad}");
        }
    }

    #[test]
    fn unlisted_packages_and_licences_are_found() {
        let data = json!({ "packages": [
            { "name": "ours", "source": null, "dependencies": [
                { "name": "serde", "source": "registry" },
                { "name": "left-pad", "source": "registry" },
                { "name": "fabric", "source": null },
            ] },
            { "name": "serde", "source": "registry", "license": "MIT OR Apache-2.0" },
            { "name": "left-pad", "source": "registry", "license": "GPL-3.0" },
        ] });
        let complaints = check_metadata(&data).unwrap();
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints.iter().all(|text| text.contains("left-pad")));
    }
}
