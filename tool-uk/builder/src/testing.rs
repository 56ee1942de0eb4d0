//! A small Xen for tests of this package: machine memory, one PV domain, the checks that Xen makes
//! when it pins page tables.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use abi::{
    Access, Control, CreateDomain, DomId, DomainInfo, DomainState, Frame, GrantRef, HvmEntry,
    HvmParam, PAGE_SIZE, PciAddress, Port, PortStatus, PvEntry, Registers, Schedule,
    ShutdownReason, Virq, Width, Xen, XenError,
};
use fabric::{HeapMemory, SharedMemory};

/// What pages hold before anybody writes them: Xen promises nothing.
pub const GARBAGE: u8 = 0xc2;
/// Where the fake puts the shared information page.
pub const SHARED_INFO: Frame = Frame(0x7_7777);

#[derive(Default)]
pub struct FakeXen {
    pub memory: RefCell<BTreeMap<u64, HeapMemory>>,
    next_frame: Cell<u64>,
    pub created: RefCell<Option<(DomId, CreateDomain)>>,
    pub pinned: RefCell<BTreeSet<u64>>,
    pub entered: Cell<Option<PvEntry>>,
    writable: Rc<RefCell<BTreeMap<u64, u32>>>,
    /// Most pages that were mapped at once.
    pub most_mapped: Cell<usize>,
    /// Calls that will succeed before one fails; `None`: all do.
    pub calls_left: Cell<Option<u32>>,
    pub calls: Cell<u32>,
}

/// Mapped pages of the fake's domain.
pub struct FakeMapping {
    pages: Vec<HeapMemory>,
    frames: Vec<u64>,
    writable: Rc<RefCell<BTreeMap<u64, u32>>>,
    access: Access,
}

impl Drop for FakeMapping {
    fn drop(&mut self) {
        if self.access == Access::ReadWrite {
            for frame in &self.frames {
                *self.writable.borrow_mut().get_mut(frame).expect("counted") -= 1;
            }
        }
    }
}

impl SharedMemory for FakeMapping {
    fn len(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        for (at, byte) in (offset..).zip(into) {
            self.pages[at / PAGE_SIZE].read(at % PAGE_SIZE, std::slice::from_mut(byte));
        }
    }
    fn write(&self, offset: usize, from: &[u8]) {
        assert_eq!(self.access, Access::ReadWrite);
        for (at, byte) in (offset..).zip(from) {
            self.pages[at / PAGE_SIZE].write(at % PAGE_SIZE, &[*byte]);
        }
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.write(offset, &vec![value; len]);
    }
    fn load_u32(&self, offset: usize) -> u32 {
        self.pages[offset / PAGE_SIZE].load_u32(offset % PAGE_SIZE)
    }
    fn store_u32(&self, offset: usize, value: u32) {
        self.pages[offset / PAGE_SIZE].store_u32(offset % PAGE_SIZE, value);
    }
    fn load_u64(&self, offset: usize) -> u64 {
        self.pages[offset / PAGE_SIZE].load_u64(offset % PAGE_SIZE)
    }
    fn store_u64(&self, offset: usize, value: u64) {
        self.pages[offset / PAGE_SIZE].store_u64(offset % PAGE_SIZE, value);
    }
}

impl FakeXen {
    fn call(&self) -> Result<(), XenError> {
        self.calls.set(self.calls.get() + 1);
        match self.calls_left.get() {
            Some(0) => Err(XenError::NoMemory),
            Some(left) => {
                self.calls_left.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn entry(&self, table: u64, slot: u64) -> u64 {
        self.memory.borrow()[&table].load_u64(slot as usize * 8)
    }

    /// The leaf entry of `address` under the given top table, if every level is present.
    pub fn walk(&self, top: Frame, address: u64) -> Option<u64> {
        let mut table = top.0;
        for shift in [39, 30, 21] {
            let entry = self.entry(table, address >> shift & 511);
            if entry & 1 == 0 {
                return None;
            }
            table = entry >> 12 & 0xff_ffff_ffff;
        }
        Some(self.entry(table, address >> 12 & 511))
    }

    /// Reads `len` bytes at a virtual address through the page tables.
    pub fn read_virtual(&self, top: Frame, address: u64, len: usize) -> Option<Vec<u8>> {
        (address..address + len as u64)
            .map(|at| {
                let leaf = self.walk(top, at).filter(|leaf| leaf & 1 != 0)?;
                let mut byte = [0];
                let memory = self.memory.borrow();
                memory[&(leaf >> 12 & 0xff_ffff_ffff)].read((at & 4095) as usize, &mut byte);
                Some(byte[0])
            })
            .collect()
    }

    /// Counts a table of the given level and those below it, as Xen validates them.
    fn validate(&self, table: u64, level: u32, tables: &mut BTreeSet<u64>) {
        assert_eq!(
            self.writable.borrow().get(&table).copied().unwrap_or(0),
            0,
            "table {table:#x} is mapped writable by the builder"
        );
        tables.insert(table);
        if level == 1 {
            return;
        }
        for slot in 0..512 {
            let entry = self.entry(table, slot);
            if entry & 1 != 0 {
                self.validate(entry >> 12 & 0xff_ffff_ffff, level - 1, tables);
            }
        }
    }
}

impl Xen for FakeXen {
    type Mapping = FakeMapping;
    fn now_ns(&self) -> u64 {
        0
    }
    fn set_timer(&self, _: Option<u64>) {}
    fn block(&self) {}
    fn next_event(&self) -> Option<Port> {
        None
    }
    fn send(&self, _: Port) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn alloc_unbound(&self, _: DomId) -> Result<Port, XenError> {
        Err(XenError::Unsupported)
    }
    fn bind_interdomain(&self, _: DomId, _: Port) -> Result<Port, XenError> {
        Err(XenError::Unsupported)
    }
    fn bind_virq(&self, _: Virq) -> Result<Port, XenError> {
        Err(XenError::Unsupported)
    }
    fn listen(&self, _: Port) {}
    fn close(&self, _: Port) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn port_status(&self, _: DomId, _: Port) -> Result<PortStatus, XenError> {
        Err(XenError::Unsupported)
    }
    fn raise_all(&self) {}
    fn map_grants(&self, _: DomId, _: &[GrantRef], _: Access) -> Result<Self::Mapping, XenError> {
        Err(XenError::Unsupported)
    }
    fn shutdown(&self, _: ShutdownReason) -> ! {
        panic!("the builder never ends its domain")
    }
}

impl Control for FakeXen {
    fn create_domain(&self, id: DomId, what: &CreateDomain) -> Result<(), XenError> {
        self.call()?;
        self.next_frame.set(0x1000);
        *self.created.borrow_mut() = Some((id, *what));
        Ok(())
    }
    fn destroy_domain(&self, _: DomId, _: &mut dyn FnMut()) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn domain_info(&self, id: DomId) -> Result<Option<DomainInfo>, XenError> {
        self.call()?;
        Ok(Some(DomainInfo {
            id,
            state: DomainState::Alive,
            paused: true,
            blocked: false,
            running: false,
            cpu_time_ns: 0,
            pages: self.memory.borrow().len() as u64,
            shared_info: SHARED_INFO,
        }))
    }
    fn pause(&self, _: DomId) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn unpause(&self, _: DomId) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn resume(&self, _: DomId) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn shut_down(&self, _: DomId, _: abi::ShutdownReason) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn populate(
        &self,
        _: DomId,
        order: u32,
        frames: &mut [Frame],
        during: &mut dyn FnMut(),
    ) -> Result<(), XenError> {
        self.call()?;
        let (_, limits) = self.created.borrow().expect("created first");
        for frame in frames {
            let base = self.next_frame.get();
            // A hole after each extent: nothing may rely on neighbours beyond it.
            self.next_frame.set(base + (1 << order) + 3);
            for page in base..base + (1 << order) {
                let memory = HeapMemory::new(PAGE_SIZE);
                memory.fill(0, PAGE_SIZE, GARBAGE);
                self.memory.borrow_mut().insert(page, memory);
            }
            *frame = Frame(base);
            during();
        }
        let pages = self.memory.borrow().len() as u64;
        if pages * 4 > limits.max_memory_kib { Err(XenError::NoMemory) } else { Ok(()) }
    }
    fn map_foreign(
        &self,
        _: DomId,
        frames: &[Frame],
        access: Access,
    ) -> Result<Self::Mapping, XenError> {
        self.call()?;
        self.most_mapped.set(self.most_mapped.get().max(frames.len()));
        for frame in frames {
            if self.pinned.borrow().contains(&frame.0) && access == Access::ReadWrite {
                return Err(XenError::Invalid);
            }
            if access == Access::ReadWrite {
                *self.writable.borrow_mut().entry(frame.0).or_default() += 1;
            }
        }
        Ok(FakeMapping {
            pages: frames.iter().map(|frame| self.memory.borrow()[&frame.0].clone()).collect(),
            frames: frames.iter().map(|frame| frame.0).collect(),
            writable: self.writable.clone(),
            access,
        })
    }
    fn map_grant_table(&self, _: DomId) -> Result<Self::Mapping, XenError> {
        Err(XenError::Unsupported)
    }
    fn pin_top_table(&self, _: DomId, table: Frame, _: &mut dyn FnMut()) -> Result<(), XenError> {
        self.call()?;
        let mut tables = BTreeSet::new();
        self.validate(table.0, 4, &mut tables);
        *self.pinned.borrow_mut() = tables;
        Ok(())
    }
    fn reset_vcpu(&self, _: DomId) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn enter_pv(&self, _: DomId, entry: &PvEntry) -> Result<(), XenError> {
        self.call()?;
        self.entered.set(Some(*entry));
        Ok(())
    }
    fn enter_hvm(&self, _: DomId, _: &HvmEntry) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn registers(&self, _: DomId) -> Result<Registers, XenError> {
        Err(XenError::Unsupported)
    }
    fn set_registers(&self, _: DomId, _: &Registers) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn set_hvm_param(&self, _: DomId, _: HvmParam, _: u64) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
    fn alloc_port_for(&self, _: DomId, _: DomId) -> Result<Port, XenError> {
        Err(XenError::Unsupported)
    }
    fn grant_fabric(&self, _: GrantRef, _: DomId, _: u32, _: Access) {}
    fn console_write(&self, _: &[u8]) {}
    fn console_read(&self, _: &mut [u8]) -> usize {
        0
    }
    fn pci_read(&self, _: PciAddress, _: u8) -> u32 {
        u32::MAX
    }

    fn pci_write(&self, _: PciAddress, _: u8, _: u32) {}

    fn write_register(&self, _: u64, _: Width, _: u32) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }

    fn allow_device_memory(&self, _: DomId, _: Frame, _: u64) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }

    fn give_interrupt(&self, _: DomId, _: u32) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }

    fn has_iommu(&self) -> Result<bool, XenError> {
        Ok(false)
    }

    fn set_cpu_weight(&self, _: DomId, _: u16) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }

    fn set_rate_limit(&self, _: u32) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }

    fn schedule(&self) -> Schedule {
        Schedule::default()
    }

    fn set_watchdog(&self, _: Option<u32>) -> Result<(), XenError> {
        Err(XenError::Unsupported)
    }
}

/// A program header of a test image.
#[derive(Clone, Debug)]
pub struct TestSegment {
    pub kind: u32,
    pub flags: u32,
    pub address: u64,
    pub bytes: Vec<u8>,
    pub memory_len: u64,
}

/// Makes an ELF file of the given segments.
pub fn elf(entry: u64, segments: &[TestSegment]) -> Vec<u8> {
    let mut file = vec![0; 64 + 56 * segments.len()];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[24..32].copy_from_slice(&entry.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
    for (index, segment) in segments.iter().enumerate() {
        let at = 64 + 56 * index;
        let words = [
            file.len() as u64,
            segment.address,
            segment.address,
            segment.bytes.len() as u64,
            segment.memory_len,
            4,
        ];
        file[at..at + 4].copy_from_slice(&segment.kind.to_le_bytes());
        file[at + 4..at + 8].copy_from_slice(&segment.flags.to_le_bytes());
        for (slot, word) in words.iter().enumerate() {
            file[at + 8 + slot * 8..at + 16 + slot * 8].copy_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&segment.bytes);
    }
    file
}

/// One Xen note.
pub fn xen_note(kind: u32, value: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, value.len() as u32, kind] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(value);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// A service image: code at 1 MiB, constants in the middle of a page after it, data, bss, notes.
pub fn service_image() -> Vec<u8> {
    let notes = [xen_note(6, b"test\0"), xen_note(1, &0x10_0040u64.to_le_bytes())].concat();
    let part = |flags, address, fill: u8, len: usize, memory_len| TestSegment {
        kind: 1,
        flags,
        address,
        bytes: vec![fill; len],
        memory_len,
    };
    elf(
        0,
        &[
            part(5, 0x10_0000, 0x11, 5000, 5000),
            part(4, 0x10_2100, 0x22, 100, 100),
            part(6, 0x10_3000, 0x33, 4096 + 10, 4 * 4096),
            TestSegment { kind: 4, flags: 4, address: 0, memory_len: 0, bytes: notes },
        ],
    )
}
