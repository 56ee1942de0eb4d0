//! Passes the linker arguments of the unikernel.
include!("../../hypervisor-glue/runtime/link.rs");

fn main() {
    link_unikernel("xenstore-uk", "../../hypervisor-glue/runtime");
}
