//! The trait [`Control`] of the initial domain; every other one is refused.

use abi::{
    Access, Control, CreateDomain, DomId, DomainInfo, DomainState, Frame, GrantRef, HvmEntry,
    HvmParam, PciAddress, Port, PortStatus, PvEntry, Registers, Schedule, ShutdownReason, Width,
    XenError,
};

use crate::machine::{Call, Domain, VcpuState};
use crate::mapping::FakeMapping;
use crate::xen::FakeXen;

/// The frame that stands for the grant table in the list of mappings.
const GRANT_TABLE_FRAME: u64 = u64::MAX;
/// The frame of every domain's shared information page: none of its own memory.
const SHARED_INFO: Frame = Frame(0x7000_0000);

impl FakeXen {
    /// Enters a privileged call about domain `id`.
    fn control<R>(
        &self,
        call: Call,
        id: DomId,
        act: impl FnOnce(&mut Domain) -> Result<R, XenError>,
    ) -> Result<R, XenError> {
        self.privileged(call)?;
        let mut state = self.machine.state.borrow_mut();
        act(state.domains.get_mut(&id).ok_or(XenError::NotFound)?)
    }

    fn privileged(&self, call: Call) -> Result<(), XenError> {
        if self.id != DomId::ORCHESTRATOR {
            return Err(XenError::NotPermitted);
        }
        self.machine.enter(call)
    }
}

/// A vCPU is set only while it cannot run.
fn stopped(domain: &Domain) -> Result<(), XenError> {
    let runs = domain.pauses == 0 && domain.state == DomainState::Alive;
    if runs { Err(XenError::Busy) } else { Ok(()) }
}

impl Control for FakeXen {
    fn create_domain(&self, id: DomId, what: &CreateDomain) -> Result<(), XenError> {
        self.privileged(Call::CreateDomain)?;
        if id == DomId::ORCHESTRATOR || id >= DomId::FIRST_RESERVED || what.vcpus == 0 {
            return Err(XenError::Invalid);
        }
        let mut state = self.machine.state.borrow_mut();
        if state.domains.contains_key(&id) {
            return Err(XenError::Exists);
        }
        state.domains.insert(id, Domain::new(*what));
        Ok(())
    }

    fn destroy_domain(&self, id: DomId, during: &mut dyn FnMut()) -> Result<(), XenError> {
        self.control(Call::DestroyDomain, id, |_| Ok(()))?;
        self.machine.interrupt(during);
        self.machine.kill(id);
        Ok(())
    }

    fn domain_info(&self, id: DomId) -> Result<Option<DomainInfo>, XenError> {
        let info = self.control(Call::DomainInfo, id, |domain| {
            Ok(DomainInfo {
                id,
                state: domain.state,
                paused: domain.pauses > 0,
                blocked: domain.blocked,
                running: domain.running,
                cpu_time_ns: domain.cpu_time_ns,
                pages: domain.pages.len() as u64,
                shared_info: SHARED_INFO,
            })
        });
        match info {
            Ok(info) => Ok(Some(info)),
            Err(XenError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn pause(&self, id: DomId) -> Result<(), XenError> {
        self.control(Call::Pause, id, |domain| {
            domain.pauses += 1;
            if core::mem::take(&mut domain.sleeps_when_paused) {
                domain.set_scheduled(true, false);
            }
            Ok(())
        })
    }

    fn unpause(&self, id: DomId) -> Result<(), XenError> {
        self.control(Call::Unpause, id, |domain| {
            domain.pauses = domain.pauses.checked_sub(1).ok_or(XenError::Invalid)?;
            Ok(())
        })
    }

    fn resume(&self, id: DomId) -> Result<(), XenError> {
        self.control(Call::Resume, id, |domain| {
            if domain.state == DomainState::Dying {
                return Err(XenError::Invalid);
            }
            domain.state = DomainState::Alive;
            Ok(())
        })
    }

    fn shut_down(&self, id: DomId, reason: ShutdownReason) -> Result<(), XenError> {
        self.control(Call::ShutDown, id, |_| Ok(()))?;
        self.machine.shut_down(id, reason);
        Ok(())
    }

    fn populate(
        &self,
        id: DomId,
        order: u32,
        frames: &mut [Frame],
        during: &mut dyn FnMut(),
    ) -> Result<(), XenError> {
        let (pvh, limit) = self.control(Call::Populate, id, |domain| {
            Ok((domain.what.pvh, domain.what.max_memory_kib / 4))
        })?;
        for frame in frames.iter_mut() {
            let count = 1u64 << order;
            let first = if pvh { frame.0 } else { self.machine.new_frames(count) };
            for number in first..first + count {
                let page = self.machine.new_page();
                let have = self.machine.with_domain(id, |domain| {
                    domain.pages.insert(number, page);
                    domain.pages.len() as u64
                });
                if have > limit {
                    return Err(XenError::NoMemory);
                }
            }
            *frame = Frame(first);
            self.machine.interrupt(during);
        }
        Ok(())
    }

    fn map_foreign(
        &self,
        id: DomId,
        frames: &[Frame],
        access: Access,
    ) -> Result<FakeMapping, XenError> {
        let pages = self.control(Call::MapForeign, id, |domain| {
            let pinned = domain.pinned.map(|table| table.0);
            frames
                .iter()
                .map(|frame| {
                    if access == Access::ReadWrite && pinned == Some(frame.0) {
                        return Err(XenError::Invalid);
                    }
                    if *frame == SHARED_INFO {
                        return Ok(domain.shared_info.clone());
                    }
                    domain.pages.get(&frame.0).cloned().ok_or(XenError::Invalid)
                })
                .collect::<Result<Vec<_>, _>>()
        })?;
        Ok(self.mapping(id, frames.iter().map(|frame| frame.0).collect(), pages, access))
    }

    fn map_grant_table(&self, id: DomId) -> Result<FakeMapping, XenError> {
        let page =
            self.control(Call::MapGrantTable, id, |domain| Ok(domain.grant_table.clone()))?;
        Ok(self.mapping(id, vec![GRANT_TABLE_FRAME], vec![page], Access::ReadWrite))
    }

    fn pin_top_table(
        &self,
        id: DomId,
        table: Frame,
        during: &mut dyn FnMut(),
    ) -> Result<(), XenError> {
        self.control(Call::PinTopTable, id, |domain| {
            if domain.what.pvh || !domain.pages.contains_key(&table.0) {
                return Err(XenError::Invalid);
            }
            Ok(())
        })?;
        let state = self.machine.state.borrow();
        let writable = state.mappings.iter().any(|mapped| {
            mapped.owner == id && mapped.frame == table.0 && mapped.access == Access::ReadWrite
        });
        drop(state);
        if writable {
            return Err(XenError::Invalid);
        }
        self.machine.interrupt(during);
        self.machine.with_domain(id, |domain| domain.pinned = Some(table));
        Ok(())
    }

    fn reset_vcpu(&self, id: DomId) -> Result<(), XenError> {
        self.control(Call::ResetVcpu, id, |domain| {
            stopped(domain)?;
            domain.vcpu = VcpuState::Clear;
            domain.blocked = false;
            Ok(())
        })
    }

    fn enter_pv(&self, id: DomId, entry: &PvEntry) -> Result<(), XenError> {
        self.control(Call::EnterPv, id, |domain| {
            stopped(domain)?;
            if domain.what.pvh || domain.pinned != Some(entry.page_table) {
                return Err(XenError::Invalid);
            }
            domain.vcpu = VcpuState::Pv(*entry);
            domain.registers = Registers {
                rip: entry.rip,
                rsp: entry.rsp,
                rsi: entry.start_info,
                rdx: entry.rung,
                ..Registers::default()
            };
            Ok(())
        })
    }

    fn enter_hvm(&self, id: DomId, entry: &HvmEntry) -> Result<(), XenError> {
        self.control(Call::EnterHvm, id, |domain| {
            stopped(domain)?;
            if !domain.what.pvh {
                return Err(XenError::Invalid);
            }
            domain.vcpu = VcpuState::Hvm(*entry);
            domain.registers = Registers {
                rip: entry.rip.into(),
                rbx: entry.start_info.into(),
                ..Registers::default()
            };
            Ok(())
        })
    }

    fn registers(&self, id: DomId) -> Result<Registers, XenError> {
        self.control(Call::Registers, id, |domain| Ok(domain.registers))
    }

    fn set_registers(&self, id: DomId, registers: &Registers) -> Result<(), XenError> {
        self.control(Call::SetRegisters, id, |domain| {
            stopped(domain)?;
            domain.registers = *registers;
            Ok(())
        })
    }

    fn set_hvm_param(&self, id: DomId, param: HvmParam, value: u64) -> Result<(), XenError> {
        self.control(Call::SetHvmParam, id, |domain| {
            if !domain.what.pvh {
                return Err(XenError::Invalid);
            }
            domain.params.insert(param as u32, value);
            Ok(())
        })
    }

    fn alloc_port_for(&self, owner: DomId, remote: DomId) -> Result<Port, XenError> {
        let owner = if owner == DomId::SELF { self.id } else { owner };
        let remote = if remote == DomId::SELF { self.id } else { remote };
        self.control(Call::AllocPortFor, owner, |domain| {
            let max_port = domain.what.max_port;
            let port = domain.ports.allocate(max_port, PortStatus::Unbound(remote));
            let port = port.ok_or(XenError::NoSpace)?;
            domain.ports.mask(port);
            Ok(Port(port))
        })
    }

    fn grant_fabric(&self, reference: GrantRef, to: DomId, page: u32, access: Access) {
        let page = self.fabric().page(page as usize).expect("a page of the fabric");
        self.me(|me| me.grants.insert(reference.0, (to, page, access)));
    }

    fn pci_read(&self, at: PciAddress, offset: u8) -> u32 {
        let state = self.machine.state.borrow();
        state.pci.get(&at).map_or(u32::MAX, |words| words[usize::from(offset / 4)])
    }

    fn pci_write(&self, at: PciAddress, offset: u8, value: u32) {
        if let Some(words) = self.machine.state.borrow_mut().pci.get_mut(&at) {
            words[usize::from(offset / 4)] = value;
        }
    }

    fn write_register(&self, address: u64, _: Width, value: u32) -> Result<(), XenError> {
        self.privileged(Call::WriteRegister)?;
        self.machine.state.borrow_mut().registers.push((address, value));
        Ok(())
    }

    fn allow_device_memory(&self, id: DomId, first: Frame, count: u64) -> Result<(), XenError> {
        self.control(Call::AllowDeviceMemory, id, |_| Ok(()))?;
        self.machine.state.borrow_mut().device_memory.push((id, first, count));
        Ok(())
    }

    fn give_interrupt(&self, id: DomId, line: u32) -> Result<(), XenError> {
        self.control(Call::GiveInterrupt, id, |_| Ok(()))?;
        self.machine.state.borrow_mut().lines.push((id, line));
        Ok(())
    }

    fn has_iommu(&self) -> Result<bool, XenError> {
        Ok(false)
    }

    fn console_write(&self, text: &[u8]) {
        self.machine.state.borrow_mut().printed.extend(text);
    }

    fn console_read(&self, into: &mut [u8]) -> usize {
        let mut state = self.machine.state.borrow_mut();
        let count = into.len().min(state.typed.len());
        for (to, from) in into.iter_mut().zip(state.typed.drain(..count)) {
            *to = from;
        }
        count
    }

    fn set_watchdog(&self, seconds: Option<u32>) -> Result<(), XenError> {
        self.privileged(Call::SetWatchdog)?;
        self.machine.state.borrow_mut().watchdog = seconds;
        Ok(())
    }

    fn set_cpu_weight(&self, id: DomId, weight: u16) -> Result<(), XenError> {
        self.control(Call::SetCpuWeight, id, |domain| {
            domain.cpu_weight = weight;
            if weight == 0 { Err(XenError::Invalid) } else { Ok(()) }
        })
    }

    fn set_rate_limit(&self, limit_us: u32) -> Result<(), XenError> {
        self.machine.state.borrow_mut().rate_limit_us = limit_us;
        if (1..100).contains(&limit_us) { Err(XenError::Invalid) } else { Ok(()) }
    }

    fn schedule(&self) -> Schedule {
        self.machine.state.borrow().schedule
    }
}
