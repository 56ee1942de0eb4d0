//! Writing into a guest's memory before it runs, a few pages at a time.

use abi::{Access, Control, DomId, Frame, PAGE_SIZE, XenError};
use api::Grant;
use fabric::SharedMemory;

/// Pages written in one step: mapping and copying them takes some 40 µs, with a look at events
/// behind each.
const STEP_PAGES: usize = 16;
/// `GTF_permit_access` (grant_table.h): the entry may be mapped.
const PERMIT_ACCESS: u16 = 1;
/// Bytes of a grant entry of version 1.
const GRANT_ENTRY: usize = 8;

/// What is written.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// So many zeros.
    Zeros(u32),
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Zeros(len) => *len as usize,
        }
    }
}

/// How far a copy got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Everything is written.
    All,
    /// So many bytes are written; go on there.
    UpTo(u32),
}

/// Writes the bytes of `source` from `done` on to the guest's `address + done`, some pages of them,
/// and calls `during` behind each.
///
/// # Errors
/// What Xen says when a page cannot be mapped.
pub fn copy_step<C: Control>(
    xen: &C,
    guest: DomId,
    address: u32,
    source: &Source<'_>,
    done: u32,
    during: &mut dyn FnMut(),
) -> Result<Copied, XenError> {
    let from = done as usize;
    let at = address as usize + from;
    let first_page = at / PAGE_SIZE;
    let end = (at + source.len() - from).min((first_page + STEP_PAGES) * PAGE_SIZE);
    let pages = end.div_ceil(PAGE_SIZE) - first_page;
    let mut frames = [Frame(0); STEP_PAGES];
    for (frame, gfn) in frames.iter_mut().zip(first_page as u64..) {
        *frame = Frame(gfn);
    }
    let memory = xen.map_foreign(guest, &frames[..pages], Access::ReadWrite)?;
    let to = from + (end - at);
    let mut next = at;
    while next < end {
        let page_end = end.min((next / PAGE_SIZE + 1) * PAGE_SIZE);
        let (offset, part) = (next - first_page * PAGE_SIZE, from + (next - at));
        match source {
            Source::Bytes(bytes) => memory.write(offset, &bytes[part..part + (page_end - next)]),
            Source::Zeros(_) => memory.fill(offset, page_end - next, 0),
        }
        next = page_end;
        during();
    }
    Ok(if to == source.len() { Copied::All } else { Copied::UpTo(to as u32) })
}

/// Fills an entry of a guest's grant table: first whom and what, then that it is valid.
pub fn seed_grant<M: SharedMemory>(table: &M, grant: &Grant) {
    let at = grant.reference as usize * GRANT_ENTRY;
    table.store_u32(at + 4, grant.gfn);
    table.store_u32(at, u32::from(grant.to) << 16 | u32::from(PERMIT_ACCESS));
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::HeapMemory;

    #[test]
    fn a_grant_entry_is_as_the_header_says() {
        let table = HeapMemory::new(PAGE_SIZE);
        seed_grant(&table, &Grant { reference: 2, to: 3, gfn: 0xfeffc });
        let mut entry = [0; 8];
        table.read(16, &mut entry);
        assert_eq!(entry, [1, 0, 3, 0, 0xfc, 0xef, 0x0f, 0]);
    }
}
