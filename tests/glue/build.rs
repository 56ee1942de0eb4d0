//! Passes the linker arguments of the two unikernels.
include!("../../hypervisor-glue/runtime/link.rs");

fn main() {
    link_unikernel("glue-orchestrator", "../../hypervisor-glue/runtime");
    link_unikernel("glue-service", "../../hypervisor-glue/runtime");
}
