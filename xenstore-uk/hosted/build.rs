//! Looks for Debian's XenStore tools, which are unpacked below `target/` and never installed. The
//! tests that run them are ignored where they are not there, and so count as skipped.

use std::path::Path;

/// A condition of tests, and the program that must be there for it.
const TOOLS: [(&str, &str); 3] = [
    // `cargo xtask setup` unpacks these two, `cargo xtask peer` the third.
    ("has_xenstore_tools", "debian/xenstore-utils/usr/bin/xenstore-write"),
    ("has_test_xenstore", "debian/xen-utils-4.17/usr/lib/xen-4.17/bin/test-xenstore"),
    ("has_xenstore_control", "peer-host/root/usr/lib/xen-4.17/bin/xenstore-control"),
];

fn main() {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    for (condition, program) in TOOLS {
        let program = target.join(program);
        println!("cargo:rustc-check-cfg=cfg({condition})");
        println!("cargo:rerun-if-changed={}", program.display());
        if program.exists() {
            println!("cargo:rustc-cfg={condition}");
        }
    }
}
