//! Every call of the hypervisor, passed through [`Breaking`].

use abi::{
    Access, Control, CreateDomain, DomId, DomainInfo, Frame, GrantRef, HvmEntry, HvmParam,
    PciAddress, Port, PortStatus, PvEntry, Registers, Schedule, ShutdownReason, Virq, Width, Xen,
    XenError,
};

use crate::inject_own::{Breaking, Point};

/// Calls that are passed on after the orchestrator has passed a point.
macro_rules! passed_on {
    ($point:ident: $($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> $result {
            self.pass(Point::$point);
            self.xen.$name($($arg),*)
        })*
    };
}

impl<C: Control> Xen for Breaking<'_, C> {
    type Mapping = C::Mapping;

    fn now_ns(&self) -> u64 {
        self.xen.now_ns()
    }

    fn set_timer(&self, at_ns: Option<u64>) {
        self.xen.set_timer(at_ns);
    }

    fn block(&self) {
        self.xen.block();
    }

    fn next_event(&self) -> Option<Port> {
        self.timed.look(self.xen);
        self.pass(Point::Poll);
        self.xen.next_event().inspect(|_| self.count_event())
    }

    fn listen(&self, port: Port) {
        self.xen.listen(port);
    }

    fn raise_all(&self) {
        self.xen.raise_all();
    }

    fn shutdown(&self, reason: ShutdownReason) -> ! {
        self.xen.shutdown(reason)
    }

    passed_on! {
        Relay:
        send(port: Port) -> Result<(), XenError>;
    }

    passed_on! {
        Step:
        alloc_unbound(remote: DomId) -> Result<Port, XenError>;
        bind_interdomain(remote: DomId, port: Port) -> Result<Port, XenError>;
        bind_virq(virq: Virq) -> Result<Port, XenError>;
        close(port: Port) -> Result<(), XenError>;
        map_grants(
            granter: DomId, references: &[GrantRef], access: Access
        ) -> Result<C::Mapping, XenError>;
    }

    passed_on! {
        Look:
        port_status(domain: DomId, port: Port) -> Result<PortStatus, XenError>;
    }
}

impl<C: Control> Control for Breaking<'_, C> {
    // By one of these two a unit's next life begins: what runs from then on did not run into the
    // fault.

    fn reset_vcpu(&self, id: DomId) -> Result<(), XenError> {
        self.pass(Point::Step);
        self.timed.end(id);
        self.xen.reset_vcpu(id)
    }

    fn resume(&self, id: DomId) -> Result<(), XenError> {
        self.pass(Point::Step);
        self.timed.end(id);
        self.xen.resume(id)
    }

    fn destroy_domain(&self, id: DomId, during: &mut dyn FnMut()) -> Result<(), XenError> {
        self.pass(Point::Step);
        self.xen.destroy_domain(id, &mut || {
            self.pass(Point::During);
            during();
        })
    }

    fn populate(
        &self,
        id: DomId,
        order: u32,
        frames: &mut [Frame],
        during: &mut dyn FnMut(),
    ) -> Result<(), XenError> {
        self.pass(Point::Step);
        self.xen.populate(id, order, frames, &mut || {
            self.pass(Point::During);
            during();
        })
    }

    fn pin_top_table(
        &self,
        id: DomId,
        table: Frame,
        during: &mut dyn FnMut(),
    ) -> Result<(), XenError> {
        self.pass(Point::Step);
        self.xen.pin_top_table(id, table, &mut || {
            self.pass(Point::During);
            during();
        })
    }

    fn grant_fabric(&self, reference: GrantRef, to: DomId, page: u32, access: Access) {
        self.xen.grant_fabric(reference, to, page, access);
    }

    fn console_read(&self, into: &mut [u8]) -> usize {
        self.xen.console_read(into)
    }

    fn set_watchdog(&self, seconds: Option<u32>) -> Result<(), XenError> {
        self.xen.set_watchdog(seconds)
    }

    fn set_cpu_weight(&self, id: DomId, weight: u16) -> Result<(), XenError> {
        self.xen.set_cpu_weight(id, weight)
    }

    fn set_rate_limit(&self, limit_us: u32) -> Result<(), XenError> {
        self.xen.set_rate_limit(limit_us)
    }

    fn schedule(&self) -> Schedule {
        self.xen.schedule()
    }

    fn pci_read(&self, at: PciAddress, offset: u8) -> u32 {
        self.xen.pci_read(at, offset)
    }

    fn pci_write(&self, at: PciAddress, offset: u8, value: u32) {
        self.xen.pci_write(at, offset, value);
    }

    fn has_iommu(&self) -> Result<bool, XenError> {
        self.xen.has_iommu()
    }

    passed_on! {
        Print:
        console_write(text: &[u8]) -> ();
    }

    passed_on! {
        Look:
        domain_info(id: DomId) -> Result<Option<DomainInfo>, XenError>;
        registers(id: DomId) -> Result<Registers, XenError>;
    }

    passed_on! {
        Step:
        create_domain(id: DomId, what: &CreateDomain) -> Result<(), XenError>;
        pause(id: DomId) -> Result<(), XenError>;
        unpause(id: DomId) -> Result<(), XenError>;
        shut_down(id: DomId, reason: ShutdownReason) -> Result<(), XenError>;
        map_foreign(
            id: DomId, frames: &[Frame], access: Access
        ) -> Result<C::Mapping, XenError>;
        map_grant_table(id: DomId) -> Result<C::Mapping, XenError>;
        enter_pv(id: DomId, entry: &PvEntry) -> Result<(), XenError>;
        enter_hvm(id: DomId, entry: &HvmEntry) -> Result<(), XenError>;
        set_registers(id: DomId, registers: &Registers) -> Result<(), XenError>;
        set_hvm_param(id: DomId, param: HvmParam, value: u64) -> Result<(), XenError>;
        alloc_port_for(owner: DomId, remote: DomId) -> Result<Port, XenError>;
        write_register(address: u64, width: Width, value: u32) -> Result<(), XenError>;
        allow_device_memory(id: DomId, first: Frame, count: u64) -> Result<(), XenError>;
        give_interrupt(id: DomId, line: u32) -> Result<(), XenError>;
    }
}
