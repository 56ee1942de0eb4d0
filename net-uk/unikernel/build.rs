//! Passes the linker arguments of the unikernel.
include!("../../hypervisor-glue/runtime/link.rs");

fn main() {
    link_unikernel("net-uk", "../../hypervisor-glue/runtime");
}
