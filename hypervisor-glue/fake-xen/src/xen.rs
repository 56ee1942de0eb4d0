//! The trait [`Xen`] of one domain.

use std::panic::panic_any;

use abi::{Access, DomId, GrantRef, Port, PortStatus, ShutdownReason, Virq, Xen, XenError};

use crate::machine::{Call, Domain, Machine, Mapped};
use crate::mapping::{FakeFabric, FakeMapping};
use crate::memory::Page;

/// The hypervisor as one domain sees it.
#[derive(Clone, Debug)]
pub struct FakeXen {
    pub(crate) machine: Machine,
    pub(crate) id: DomId,
}

/// What [`Xen::shutdown`] panics with, because it must not return: catch it with `catch_unwind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainEnded {
    /// Which domain.
    pub id: DomId,
    /// Why.
    pub reason: ShutdownReason,
}

/// `GNTST_bad_gntref`.
const BAD_REFERENCE: XenError = XenError::Grant(-3);
/// `GNTST_general_error`: the entry allows nothing, or not this access, or not this domain.
const REFUSED: XenError = XenError::Grant(-1);
/// `GNTST_bad_domain`.
const BAD_DOMAIN: XenError = XenError::Grant(-2);

impl FakeXen {
    /// Who sees it.
    pub fn id(&self) -> DomId {
        self.id
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The orchestrator's fabric, as `runtime::Hypervisor::fabric`.
    pub fn fabric(&self) -> FakeFabric {
        self.machine.state.borrow().fabric.expect("a machine made by `with_fabric`")
    }

    /// A unit's view of the fabric, as `runtime::Hypervisor::map_fabric`.
    ///
    /// # Errors
    /// [`XenError::Grant`] when a page is not granted to this domain, or not for this access.
    pub fn map_fabric(
        &self,
        first: GrantRef,
        count: usize,
        access: impl Fn(usize) -> Access,
    ) -> Result<FakeFabric, XenError> {
        let access: Vec<Access> = (0..count).map(access).collect();
        let pages: Result<Vec<Page>, XenError> = (first.0..)
            .zip(&access)
            .map(|(reference, access)| {
                let reference = GrantRef(reference);
                let (page, _) = self.granted(DomId::ORCHESTRATOR, reference, *access)?;
                Ok(page)
            })
            .collect();
        Ok(FakeFabric::new(pages?, access))
    }

    pub(crate) fn me<R>(&self, look: impl FnOnce(&mut Domain) -> R) -> R {
        self.machine.with_domain(self.id, look)
    }

    /// The page behind a reference, and its frame.
    fn granted(
        &self,
        granter: DomId,
        reference: GrantRef,
        access: Access,
    ) -> Result<(Page, u64), XenError> {
        let state = self.machine.state.borrow();
        let domain = state.domains.get(&granter).ok_or(BAD_DOMAIN)?;
        let (to, page, frame, allowed) = match domain.grants.get(&reference.0) {
            Some((to, page, allowed)) => (*to, page.clone(), u64::from(reference.0), *allowed),
            None => entry(domain, reference)?,
        };
        if to != self.id || (access == Access::ReadWrite && allowed == Access::ReadOnly) {
            return Err(REFUSED);
        }
        Ok((page, frame))
    }
}

/// Reads an entry of the domain's grant table page.
fn entry(domain: &Domain, reference: GrantRef) -> Result<(DomId, Page, u64, Access), XenError> {
    const ENTRIES: u32 = 512;
    if reference.0 >= ENTRIES {
        return Err(BAD_REFERENCE);
    }
    let mut bytes = [0; 8];
    domain.grant_table.read(reference.0 as usize * 8, &mut bytes);
    let [flags, flags_high, to, to_high, frame @ ..] = bytes;
    let access = match u16::from_le_bytes([flags, flags_high]) & 7 {
        1 => Access::ReadWrite,
        5 => Access::ReadOnly,
        _ => return Err(REFUSED),
    };
    let frame = u64::from(u32::from_le_bytes(frame));
    let page = domain.pages.get(&frame).cloned().ok_or(BAD_REFERENCE)?;
    Ok((DomId(u16::from_le_bytes([to, to_high])), page, frame, access))
}

impl Xen for FakeXen {
    type Mapping = FakeMapping;

    fn now_ns(&self) -> u64 {
        self.machine.state.borrow().now_ns
    }

    fn set_timer(&self, at_ns: Option<u64>) {
        let now_ns = self.now_ns();
        self.me(|me| {
            let due = at_ns.is_some_and(|at_ns| at_ns <= now_ns);
            me.timer_at_ns = if due { None } else { at_ns };
            if due {
                me.ports.raise_virq(Virq::Timer);
            }
        });
    }

    /// Nobody else runs meanwhile, so the only thing to wait for is the own timer: the clock moves
    /// there. Without one this would be for ever, and panics.
    fn block(&self) {
        if self.me(|me| me.ports.any_pending()) {
            return;
        }
        let at_ns = self.me(|me| me.timer_at_ns).expect("blocked for ever: no event, no timer");
        self.machine.advance(at_ns - self.now_ns());
        assert!(self.me(|me| me.ports.any_pending()), "the timer is armed but not bound");
    }

    fn next_event(&self) -> Option<Port> {
        self.me(|me| me.ports.take()).map(Port)
    }

    fn send(&self, port: Port) -> Result<(), XenError> {
        self.machine.enter(Call::Send)?;
        match self.me(|me| me.ports.status(port.0)) {
            PortStatus::Interdomain(other, remote) => {
                let mut state = self.machine.state.borrow_mut();
                if let Some(other) = state.domains.get_mut(&other) {
                    other.ports.raise(remote.0);
                }
                Ok(())
            }
            PortStatus::Unbound(_) => Ok(()),
            _ => Err(XenError::Invalid),
        }
    }

    fn alloc_unbound(&self, remote: DomId) -> Result<Port, XenError> {
        self.machine.enter(Call::AllocUnbound)?;
        self.allocate(PortStatus::Unbound(remote))
    }

    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, XenError> {
        self.machine.enter(Call::BindInterdomain)?;
        {
            let state = self.machine.state.borrow();
            let other = state.domains.get(&remote).ok_or(XenError::NotFound)?;
            if other.ports.status(remote_port.0) != PortStatus::Unbound(self.id) {
                return Err(XenError::Invalid);
            }
        }
        let port = self.allocate(PortStatus::Interdomain(remote, remote_port))?;
        self.machine.with_domain(remote, |other| {
            other.ports.set(remote_port.0, PortStatus::Interdomain(self.id, port));
        });
        self.me(|me| me.ports.raise(port.0));
        Ok(port)
    }

    fn bind_virq(&self, virq: Virq) -> Result<Port, XenError> {
        self.machine.enter(Call::BindVirq)?;
        if virq != Virq::Timer && self.id != DomId::ORCHESTRATOR {
            return Err(XenError::NotPermitted);
        }
        if self.me(|me| me.ports.has_virq(virq)) {
            return Err(XenError::Exists);
        }
        self.allocate(PortStatus::Virq(virq as u32))
    }

    fn listen(&self, port: Port) {
        self.me(|me| me.ports.listen(port.0));
    }

    fn close(&self, port: Port) -> Result<(), XenError> {
        self.machine.enter(Call::Close)?;
        let status = self.me(|me| me.ports.close(port.0)).ok_or(XenError::Invalid)?;
        if let PortStatus::Interdomain(other, remote) = status {
            let mut state = self.machine.state.borrow_mut();
            if let Some(other) = state.domains.get_mut(&other) {
                other.ports.set(remote.0, PortStatus::Unbound(self.id));
            }
        }
        Ok(())
    }

    fn port_status(&self, domain: DomId, port: Port) -> Result<PortStatus, XenError> {
        self.machine.enter(Call::PortStatus)?;
        let domain = if domain == DomId::SELF { self.id } else { domain };
        if domain != self.id && self.id != DomId::ORCHESTRATOR {
            return Err(XenError::NotPermitted);
        }
        let state = self.machine.state.borrow();
        let asked = state.domains.get(&domain).ok_or(XenError::NotFound)?;
        Ok(asked.ports.status(port.0))
    }

    fn raise_all(&self) {
        self.me(|me| me.ports.raise_all());
    }

    fn map_grants(
        &self,
        granter: DomId,
        references: &[GrantRef],
        access: Access,
    ) -> Result<FakeMapping, XenError> {
        self.machine.enter(Call::MapGrants)?;
        let found: Result<Vec<(Page, u64)>, XenError> =
            references.iter().map(|reference| self.granted(granter, *reference, access)).collect();
        let (pages, frames) = found?.into_iter().unzip();
        Ok(self.mapping(granter, frames, pages, access))
    }

    fn shutdown(&self, reason: ShutdownReason) -> ! {
        self.machine.shut_down(self.id, reason);
        panic_any(DomainEnded { id: self.id, reason })
    }
}

impl FakeXen {
    fn allocate(&self, status: PortStatus) -> Result<Port, XenError> {
        let port = self.me(|me| me.ports.allocate(me.what.max_port, status));
        port.map(Port).ok_or(XenError::NoSpace)
    }

    pub(crate) fn mapping(
        &self,
        owner: DomId,
        frames: Vec<u64>,
        pages: Vec<Page>,
        access: Access,
    ) -> FakeMapping {
        let mut state = self.machine.state.borrow_mut();
        for frame in &frames {
            state.mappings.push(Mapped { mapper: self.id, owner, frame: *frame, access });
        }
        drop(state);
        let machine = self.machine.clone();
        FakeMapping { machine, mapper: self.id, owner, frames, pages, access }
    }
}
