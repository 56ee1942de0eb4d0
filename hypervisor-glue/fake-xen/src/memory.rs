//! Pages of the machine.

use std::cell::RefCell;
use std::rc::Rc;

use abi::PAGE_SIZE;

/// What a new page holds: Xen promises nothing.
pub const GARBAGE: u8 = 0xc2;
/// What the pages of a destroyed domain hold.
pub const POISON: u8 = 0xdb;

/// One machine page; clones are the same page.
#[derive(Clone, Debug)]
pub(crate) struct Page(Rc<RefCell<[u8; PAGE_SIZE]>>);

impl Page {
    pub(crate) fn filled(value: u8) -> Self {
        Self(Rc::new(RefCell::new([value; PAGE_SIZE])))
    }

    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.0.borrow()[offset..offset + into.len()]);
    }

    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        self.0.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
    }

    pub(crate) fn fill(&self, value: u8) {
        self.0.borrow_mut().fill(value);
    }
}
