//! Passes the linker arguments of the unikernel.
include!("../runtime/link.rs");

fn main() {
    link_unikernel("orchestrator", "../runtime");
}
