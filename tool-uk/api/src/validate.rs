//! What an operation must keep to, whatever the state of the host is.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Grant, GuestId, GuestLimits, MAX_BYTES, MAX_LOAD_LEN, MAX_NAME, MAX_POPULATE_PAGES, Operation,
};

/// First frame of the special pages and of everything above them: below it lies a guest's RAM.
const RAM_END_GFN: u32 = 0xfeff8;
/// Frames below 4 GiB, all that a guest's addresses reach.
const GFNS: u32 = 1 << 20;
/// The first entries of a grant table, kept free by guests (`GNTTAB_NR_RESERVED_ENTRIES`).
const RESERVED_GRANTS: u32 = 8;
/// Entries of two-level event channels (`EVTCHN_2L_NR_CHANNELS`).
const MAX_PORT: u32 = 4095;
/// Grant table frames a guest may have: Xen's default limit for its own tools.
const MAX_GRANT_FRAMES: u32 = 64;

/// What this host allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// First number of a guest; those below are services.
    pub first_guest: u16,
    /// Last number of a guest.
    pub last_guest: u16,
    /// Pages of one guest.
    pub guest_pages: u32,
    /// vCPUs of one guest.
    pub guest_vcpus: u8,
}

impl Default for Limits {
    /// Guests from 16 up to the last ordinary domid, 2 GiB and one vCPU each: more vCPUs need
    /// ACPI tables, more memory a second range above the hole below 4 GiB.
    fn default() -> Self {
        Self { first_guest: 16, last_guest: 0x7fef, guest_pages: 2 << 18, guest_vcpus: 1 }
    }
}

/// Why an operation is not allowed. The blame lies on who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The number is not a guest's.
    NotAGuest(u16),
    /// More pages than a guest, or one request, may have; or none.
    Pages(u32),
    /// More vCPUs than a guest may have; or none.
    Vcpus(u8),
    /// An event channel limit out of range.
    MaxPort(u32),
    /// A grant table of an impossible size.
    GrantFrames(u32),
    /// A frame range that does not lie inside of what a guest may have.
    Frames(u32),
    /// An address range that does not lie inside of what a guest may have.
    Address(u32),
    /// A length that is zero, or above the bound of one request.
    Length(u32),
    /// A name that no archive entry can have.
    Name,
    /// A grant to a domain that is no service.
    Grantee(u16),
    /// A grant reference that guests do not keep free.
    Reference(u32),
    /// Nothing to do in the request.
    Empty,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAGuest(id) => write!(f, "d{id} is not a guest"),
            Self::Pages(pages) => write!(f, "{pages} pages are not allowed at once"),
            Self::Vcpus(vcpus) => write!(f, "{vcpus} vCPUs are not allowed"),
            Self::MaxPort(port) => write!(f, "highest port {port}, allowed are 1 to {MAX_PORT}"),
            Self::GrantFrames(frames) => {
                write!(f, "{frames} grant frames, allowed are 1 to {MAX_GRANT_FRAMES}")
            }
            Self::Frames(gfn) => write!(f, "frames from {gfn:#x} do not lie inside of a guest"),
            Self::Address(at) => write!(f, "bytes from {at:#x} do not lie inside of a guest"),
            Self::Length(len) => write!(f, "a length of {len} bytes is not allowed"),
            Self::Name => write!(f, "an archive name has 1 to {MAX_NAME} bytes"),
            Self::Grantee(id) => write!(f, "pages are granted to services only, not to d{id}"),
            Self::Reference(reference) => write!(
                f,
                "grant reference {reference} belongs to the guest, ours are below {RESERVED_GRANTS}"
            ),
            Self::Empty => f.write_str("the request asks for nothing"),
        }
    }
}

impl core::error::Error for Refusal {}

/// Whether the operation may be executed at all.
///
/// # Errors
/// The first [`Refusal`] found.
pub fn validate(operation: &Operation<'_>, limits: &Limits) -> Result<(), Refusal> {
    if let Some(GuestId(id)) = operation.guest()
        && !(limits.first_guest..=limits.last_guest).contains(&id)
    {
        return Err(Refusal::NotAGuest(id));
    }
    match operation {
        Operation::Create { limits: asked, .. } => check_limits(asked, limits),
        Operation::Populate { first_gfn, pages, before, .. } => {
            check_populate(*first_gfn, *pages, *before, limits)
        }
        Operation::Load { entry, offset, address, len, .. } => {
            check_name(entry)?;
            check_range(*address, *len, MAX_LOAD_LEN)?;
            offset.checked_add(*len).map(|_| ()).ok_or(Refusal::Length(*len))
        }
        Operation::Zero { address, len, .. } => check_range(*address, *len, MAX_LOAD_LEN),
        Operation::Write { address, bytes, .. } => {
            check_range(*address, u32::try_from(bytes.len()).unwrap_or(u32::MAX), MAX_BYTES as u32)
        }
        Operation::ReadArchive { entry, len, .. } => {
            check_name(entry)?;
            check_len(*len, MAX_BYTES as u32)
        }
        Operation::SeedGrants { grants, .. } => {
            if grants.is_empty() {
                return Err(Refusal::Empty);
            }
            grants.iter().try_for_each(|grant| check_grant(grant, limits))
        }
        Operation::SetEntry { rip, start_info, .. } => {
            check_range(*rip, 1, 1)?;
            check_range(*start_info, 1, 1)
        }
        Operation::SetParam { .. }
        | Operation::ConnectStore { .. }
        | Operation::ConnectConsole { .. }
        | Operation::Pause { .. }
        | Operation::Unpause { .. }
        | Operation::Destroy { .. }
        | Operation::Query { .. }
        | Operation::List { .. }
        | Operation::Host { .. } => Ok(()),
    }
}

fn check_limits(asked: &GuestLimits, limits: &Limits) -> Result<(), Refusal> {
    if !(1..=limits.guest_pages).contains(&asked.pages) {
        return Err(Refusal::Pages(asked.pages));
    }
    if !(1..=limits.guest_vcpus).contains(&asked.vcpus) {
        return Err(Refusal::Vcpus(asked.vcpus));
    }
    if !(1..=MAX_PORT).contains(&asked.max_port) {
        return Err(Refusal::MaxPort(asked.max_port));
    }
    if !(1..=MAX_GRANT_FRAMES).contains(&asked.grant_frames) {
        return Err(Refusal::GrantFrames(asked.grant_frames));
    }
    Ok(())
}

fn check_populate(first_gfn: u32, pages: u32, before: u32, limits: &Limits) -> Result<(), Refusal> {
    if !(1..=MAX_POPULATE_PAGES).contains(&pages) {
        return Err(Refusal::Pages(pages));
    }
    if before.checked_add(pages).is_none_or(|total| total > limits.guest_pages) {
        return Err(Refusal::Pages(before));
    }
    let end = first_gfn.checked_add(pages).ok_or(Refusal::Frames(first_gfn))?;
    let ram = end <= limits.guest_pages;
    let special = first_gfn >= RAM_END_GFN && end <= GFNS;
    if ram || special { Ok(()) } else { Err(Refusal::Frames(first_gfn)) }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic());
    if plain && (1..=MAX_NAME).contains(&name.len()) { Ok(()) } else { Err(Refusal::Name) }
}

fn check_len(len: u32, most: u32) -> Result<(), Refusal> {
    if (1..=most).contains(&len) { Ok(()) } else { Err(Refusal::Length(len)) }
}

/// Bytes below 4 GiB; which of them the guest has, Xen knows.
fn check_range(address: u32, len: u32, most: u32) -> Result<(), Refusal> {
    check_len(len, most)?;
    address.checked_add(len).map(|_| ()).ok_or(Refusal::Address(address))
}

fn check_grant(grant: &Grant, limits: &Limits) -> Result<(), Refusal> {
    if grant.to == 0 || grant.to >= limits.first_guest {
        return Err(Refusal::Grantee(grant.to));
    }
    if grant.reference >= RESERVED_GRANTS {
        return Err(Refusal::Reference(grant.reference));
    }
    if grant.gfn >= GFNS { Err(Refusal::Frames(grant.gfn)) } else { Ok(()) }
}
