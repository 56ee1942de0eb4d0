//! The domain table: which guest is on which slot, and whether it lives. Written by the
//! orchestrator, read by every service, so that none has to ask Xen or believe a guest.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | generation: one more with each change, checked word |
//! | 64 + 16 × slot | 8 | checked word: domid (bits 0..16), kind (16..20), state (20..24), |
//! | | | shutdown code (24..32), tag (32..48) |
//! | 72 + 16 × slot | 8 | checked word: life (bits 0..32), tag (32..48) |
//!
//! The tag is the low half of the generation that changed the entry: a reader that sees two tags
//! came in the middle of a change and looks again.

use crate::{Epoch, PAGE_SIZE, SharedMemory, checked};

/// Bytes of the domain table.
pub const SIZE: usize = PAGE_SIZE;
/// Slots of the table: one page holds them, and a host in software emulation runs far fewer guests.
pub const SLOTS: usize = 64;

const GENERATION: usize = 0;
const ENTRIES: usize = 64;
const ENTRY: usize = 16;
const GENERATION_SALT: u16 = 0x4447;
const ENTRY_SALT: u16 = 0x4445;
const LIFE_SALT: u16 = 0x444c;
/// Looks at an entry that changes meanwhile: the writer stores two words, so a second look succeeds
/// unless the writer itself stands still in between.
const LOOKS: usize = 4;

/// What a domain is to the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DomainKind {
    /// A service of ours (its XenStore connection is in the fabric).
    Service = 1,
    /// A guest.
    Guest = 2,
}

/// Where a domain is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DomainState {
    /// Being built; it has not run yet.
    Building = 1,
    /// It runs, is paused, or is blocked.
    Alive = 2,
    /// It shut down or crashed, and waits for a decision; the code says why.
    Shutdown = 3,
    /// Its destruction has begun: unmap what is mapped of it.
    Dying = 4,
    /// Nothing is left of it; the slot may be given to another.
    Gone = 5,
}

/// One used slot of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Xen's id.
    pub domid: u16,
    /// What it is.
    pub kind: DomainKind,
    /// Where it is in its life.
    pub state: DomainState,
    /// Xen's shutdown code (`SHUTDOWN_*`) while the state is [`DomainState::Shutdown`], else 0.
    pub shutdown_code: u8,
    /// Which domain on this slot: one more with each new one, so that nothing meant for a former
    /// domain reaches the next.
    pub life: Epoch,
}

/// Why a slot could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainsError {
    /// The entry changes right now: look again at the next kick.
    Changing,
    /// The words hold nothing that the orchestrator writes.
    Corrupt,
}

impl core::fmt::Display for DomainsError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Changing => "domain table: the entry is being changed",
            Self::Corrupt => "domain table: an invalid word",
        })
    }
}

/// The orchestrator's side. It keeps nothing in RAM.
#[derive(Clone, Copy, Debug)]
pub struct DomainsWriter<M> {
    page: M,
}

impl<M: SharedMemory> DomainsWriter<M> {
    /// The writer of `page`. Panics if it is smaller than [`SIZE`].
    pub fn new(page: M) -> Self {
        assert!(page.len() >= SIZE, "a domain table has {SIZE} bytes");
        Self { page }
    }

    /// Empties all slots.
    pub fn initialise(&self) {
        checked::store(&self.page, GENERATION, 0, GENERATION_SALT);
        for slot in 0..SLOTS {
            self.set(slot, None);
        }
    }

    /// Changes a slot, then the generation. Kick the readers afterwards. Panics if `slot` is not
    /// below [`SLOTS`].
    pub fn set(&self, slot: usize, domain: Option<Domain>) {
        let at = entry(slot);
        let former = checked::load(&self.page, GENERATION, GENERATION_SALT).unwrap_or(0);
        let generation = former.wrapping_add(1);
        let tag = (generation & 0xffff) << 32;
        let (word, life) = match domain {
            Some(domain) => (pack(&domain), domain.life),
            None => (0, 0),
        };
        checked::store(&self.page, at, word | tag, ENTRY_SALT);
        checked::store(&self.page, at + 8, u64::from(life) | tag, LIFE_SALT);
        checked::store(&self.page, GENERATION, generation, GENERATION_SALT);
    }
}

/// The side of services (and of the orchestrator after its own recovery).
#[derive(Clone, Copy, Debug)]
pub struct DomainsReader<M> {
    page: M,
}

impl<M: SharedMemory> DomainsReader<M> {
    /// The reader of `page`. Panics if it is smaller than [`SIZE`].
    pub fn new(page: M) -> Self {
        assert!(page.len() >= SIZE, "a domain table has {SIZE} bytes");
        Self { page }
    }

    /// Changes with every change of any slot.
    pub fn generation(&self) -> Result<u64, DomainsError> {
        checked::load(&self.page, GENERATION, GENERATION_SALT).ok_or(DomainsError::Corrupt)
    }

    /// The domain on `slot`, if there is one. Panics if `slot` is not below [`SLOTS`].
    pub fn get(&self, slot: usize) -> Result<Option<Domain>, DomainsError> {
        let at = entry(slot);
        for _ in 0..LOOKS {
            let found = decode(self.page.load_u64(at), self.page.load_u64(at + 8));
            if found != Err(DomainsError::Changing) {
                return found;
            }
        }
        Err(DomainsError::Changing)
    }

    /// All slots with their domains, read at once.
    pub fn entries(&self) -> impl Iterator<Item = (usize, Result<Option<Domain>, DomainsError>)> {
        let mut bytes = [0; SLOTS * ENTRY];
        self.page.read(ENTRIES, &mut bytes);
        (0..SLOTS).map(move |slot| {
            let words = bytes[slot * ENTRY..(slot + 1) * ENTRY].as_chunks::<8>().0;
            let [word, life] = [words[0], words[1]].map(u64::from_le_bytes);
            // Most slots are empty, and a life that begins looks at them all.
            let is_empty = is_empty(word, life);
            (slot, if is_empty { Ok(None) } else { self.look(slot, (word, life)) })
        })
    }

    /// What a copy of the words says; whatever is wrong with it may be wrong with the copy only.
    /// Apart, so that what is made of the empty slots stays a short loop.
    #[inline(never)]
    fn look(&self, slot: usize, copy: (u64, u64)) -> Result<Option<Domain>, DomainsError> {
        decode(copy.0, copy.1).or_else(|_| self.get(slot))
    }

    /// What a damaged entry still says, for repairing it: the domid as it stands there, which may
    /// be the damage, and the life, if its word is intact. Panics if `slot` is not below [`SLOTS`].
    pub fn hint(&self, slot: usize) -> (u16, Option<Epoch>) {
        let at = entry(slot);
        let life = checked::load(&self.page, at + 8, LIFE_SALT).map(|word| word as u32);
        (self.page.load_u64(at) as u16, life)
    }
}

fn entry(slot: usize) -> usize {
    assert!(slot < SLOTS, "slot {slot} of {SLOTS}");
    ENTRIES + ENTRY * slot
}

fn pack(domain: &Domain) -> u64 {
    u64::from(domain.domid)
        | (domain.kind as u64) << 16
        | (domain.state as u64) << 20
        | u64::from(domain.shutdown_code) << 24
}

/// In what the two words of an empty slot differ: their salts.
const EMPTY_WORDS_APART: u64 = ((ENTRY_SALT ^ LIFE_SALT) as u64) << checked::VALUE_BITS;

/// Whether these are the words of an empty slot.
#[inline(always)]
fn is_empty(word: u64, life: u64) -> bool {
    word as u32 == 0
        && word ^ life == EMPTY_WORDS_APART
        && checked::decode(word, ENTRY_SALT).is_some()
}

fn decode(word: u64, life: u64) -> Result<Option<Domain>, DomainsError> {
    let word = checked::decode(word, ENTRY_SALT).ok_or(DomainsError::Corrupt)?;
    let life = checked::decode(life, LIFE_SALT).ok_or(DomainsError::Corrupt)?;
    if word >> 32 != life >> 32 {
        return Err(DomainsError::Changing);
    }
    unpack(word as u32, life as u32)
}

fn unpack(word: u32, life: Epoch) -> Result<Option<Domain>, DomainsError> {
    if word == 0 {
        return Ok(None);
    }
    let kind = match word >> 16 & 0xf {
        1 => DomainKind::Service,
        2 => DomainKind::Guest,
        _ => return Err(DomainsError::Corrupt),
    };
    let state = match word >> 20 & 0xf {
        1 => DomainState::Building,
        2 => DomainState::Alive,
        3 => DomainState::Shutdown,
        4 => DomainState::Dying,
        5 => DomainState::Gone,
        _ => return Err(DomainsError::Corrupt),
    };
    Ok(Some(Domain { domid: word as u16, kind, state, shutdown_code: (word >> 24) as u8, life }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HeapMemory, TornMemory};

    const GUEST: Domain = Domain {
        domid: 17,
        kind: DomainKind::Guest,
        state: DomainState::Shutdown,
        shutdown_code: 3,
        life: 0xfedc_ba98,
    };

    fn table() -> (HeapMemory, DomainsReader<HeapMemory>) {
        let page = HeapMemory::new(SIZE);
        DomainsWriter::new(&page).initialise();
        (page.clone(), DomainsReader::new(page))
    }

    #[test]
    fn entries_come_back_and_the_generation_counts() {
        let (page, reader) = table();
        let before = reader.generation().unwrap();
        DomainsWriter::new(&page).set(63, Some(GUEST));
        assert_eq!(reader.get(63), Ok(Some(GUEST)));
        assert_eq!(reader.get(62), Ok(None));
        let all: Vec<_> = reader.entries().filter(|(_, found)| *found != Ok(None)).collect();
        assert_eq!(all, [(63, Ok(Some(GUEST)))]);
        assert_eq!(reader.generation(), Ok(before + 1));
        DomainsWriter::new(&page).set(63, None);
        assert_eq!(reader.get(63), Ok(None));
    }

    #[test]
    fn a_damaged_entry_still_hints_at_its_domain() {
        let (page, reader) = table();
        DomainsWriter::new(&page).set(5, Some(GUEST));
        let at = entry(5);
        page.store_u64(at, page.load_u64(at) ^ 1 << 21);
        assert_eq!(reader.get(5), Err(DomainsError::Corrupt));
        assert_eq!(reader.hint(5), (17, Some(GUEST.life)));
        page.store_u64(at + 8, page.load_u64(at + 8) ^ 1);
        assert_eq!(reader.hint(5), (17, None));
    }

    #[test]
    fn golden() {
        let (page, _) = table();
        DomainsWriter::new(&page).set(1, Some(GUEST));
        assert_eq!(page.load_u64(0), 0x4406_0000_0000_0041);
        assert_eq!(page.load_u64(80) & 0xffff_ffff_ffff, 0x0041_0332_0011);
        assert_eq!(page.load_u64(88) & 0xffff_ffff_ffff, 0x0041_fedc_ba98);
    }

    #[test]
    fn a_change_is_seen_whole_or_as_a_change() {
        for stores in 0..3 {
            let (page, reader) = table();
            let torn = TornMemory::new(&page, stores);
            DomainsWriter::new(&torn).set(2, Some(GUEST));
            let expected = match stores {
                0 => Ok(None),
                1 => Err(DomainsError::Changing),
                _ => Ok(Some(GUEST)),
            };
            assert_eq!(reader.get(2), expected);
            assert_eq!(reader.entries().nth(2), Some((2, expected)));
        }
    }

    #[test]
    fn corruption_is_told() {
        assert_eq!(DomainsReader::new(HeapMemory::new(SIZE)).get(0), Err(DomainsError::Corrupt));
        let (page, reader) = table();
        DomainsWriter::new(&page).set(2, Some(GUEST));
        for bit in 0..128 {
            let at = ENTRIES + 2 * ENTRY + bit / 64 * 8;
            page.store_u64(at, page.load_u64(at) ^ 1 << (bit % 64));
            assert_eq!(reader.get(2), Err(DomainsError::Corrupt), "bit {bit}");
            let damaged = |(_, found): &(_, Result<_, _>)| *found == Err(DomainsError::Corrupt);
            let damaged: Vec<usize> = reader.entries().filter(damaged).map(|(at, _)| at).collect();
            assert_eq!(damaged, [2], "bit {bit}");
            page.store_u64(at, page.load_u64(at) ^ 1 << (bit % 64));
        }
    }
}
