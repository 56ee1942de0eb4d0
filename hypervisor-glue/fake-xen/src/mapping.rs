//! Mapped pages.

use std::rc::Rc;

use abi::{Access, DomId, PAGE_SIZE};
use fabric::SharedMemory;

use crate::machine::Machine;
use crate::memory::Page;

/// Reads and writes a run of pages, wherever the boundaries lie.
pub(crate) trait Pages {
    fn pages(&self) -> &[Page];
    fn writable(&self) -> bool;

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done;
            let some = (PAGE_SIZE - at % PAGE_SIZE).min(into.len() - done);
            self.pages()[at / PAGE_SIZE].read(at % PAGE_SIZE, &mut into[done..done + some]);
            done += some;
        }
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        assert!(self.writable(), "a write to pages that are mapped read-only: a page fault");
        let mut done = 0;
        while done < from.len() {
            let at = offset + done;
            let some = (PAGE_SIZE - at % PAGE_SIZE).min(from.len() - done);
            self.pages()[at / PAGE_SIZE].write(at % PAGE_SIZE, &from[done..done + some]);
            done += some;
        }
    }

    fn word<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset.is_multiple_of(N), "word at unaligned offset {offset}");
        let mut word = [0; N];
        self.copy_out(offset, &mut word);
        word
    }
}

macro_rules! shared_by_pages {
    ($type:ty) => {
        impl SharedMemory for $type {
            fn len(&self) -> usize {
                self.pages().len() * PAGE_SIZE
            }
            fn read(&self, offset: usize, into: &mut [u8]) {
                self.copy_out(offset, into);
            }
            fn write(&self, offset: usize, from: &[u8]) {
                self.copy_in(offset, from);
            }
            fn fill(&self, offset: usize, len: usize, value: u8) {
                self.copy_in(offset, &vec![value; len]);
            }
            fn load_u32(&self, offset: usize) -> u32 {
                u32::from_le_bytes(self.word(offset))
            }
            fn store_u32(&self, offset: usize, value: u32) {
                assert!(offset.is_multiple_of(4), "word at unaligned offset {offset}");
                self.copy_in(offset, &value.to_le_bytes());
            }
            fn load_u64(&self, offset: usize) -> u64 {
                u64::from_le_bytes(self.word(offset))
            }
            fn store_u64(&self, offset: usize, value: u64) {
                assert!(offset.is_multiple_of(8), "word at unaligned offset {offset}");
                self.copy_in(offset, &value.to_le_bytes());
            }
        }
    };
}

/// Pages of another domain, unmapped when dropped.
#[derive(Debug)]
pub struct FakeMapping {
    pub(crate) machine: Machine,
    pub(crate) mapper: DomId,
    pub(crate) owner: DomId,
    pub(crate) frames: Vec<u64>,
    pub(crate) pages: Vec<Page>,
    pub(crate) access: Access,
}

impl Pages for FakeMapping {
    fn pages(&self) -> &[Page] {
        &self.pages
    }

    fn writable(&self) -> bool {
        self.access == Access::ReadWrite
    }
}

shared_by_pages!(FakeMapping);

impl Drop for FakeMapping {
    fn drop(&mut self) {
        self.machine.unmapped(self);
    }
}

/// The fabric, or a unit's view of it. Copies are free and never unmapped, as in the runtime;
/// the test process keeps the pages for good.
#[derive(Clone, Copy, Debug)]
pub struct FakeFabric {
    pages: &'static [Page],
    access: &'static [Access],
}

impl FakeFabric {
    pub(crate) fn new(pages: Vec<Page>, access: Vec<Access>) -> Self {
        Self { pages: Rc::new(pages).to_vec().leak(), access: access.leak() }
    }

    pub(crate) fn page(&self, page: usize) -> Option<Page> {
        self.pages.get(page).cloned()
    }

    /// Whether each page a write touches may be written.
    fn may_write(&self, offset: usize, len: usize) -> bool {
        let last = (offset + len.max(1) - 1) / PAGE_SIZE;
        (offset / PAGE_SIZE..=last).all(|page| self.access[page] == Access::ReadWrite)
    }
}

/// A view whose pages have been found writable.
struct Writing(FakeFabric);

impl Pages for Writing {
    fn pages(&self) -> &[Page] {
        self.0.pages
    }

    fn writable(&self) -> bool {
        true
    }
}

impl Pages for FakeFabric {
    fn pages(&self) -> &[Page] {
        self.pages
    }

    fn writable(&self) -> bool {
        false
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        assert!(self.may_write(offset, from.len()), "a write to a read-only page of the fabric");
        Writing(*self).copy_in(offset, from);
    }
}

shared_by_pages!(FakeFabric);
