//! The health page: what a unit says of itself. One page, written by the unit alone.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | state (bits 0..8) and boot epoch (bits 8..40) as a checked word |
//! | 8 | 8 | `taken`: the greatest `handed` up to which all work is served, checked word |
//! | 16 | 8 | `progress`: work items completed in this life, own turns too, checked word |
//! | 24 | 8 | `pong`: the last `ping` answered, checked word |
//! | 32 | 8 | `rank`: how well the unit can take the lead, 0 = not at all, checked word |
//! | 64 | 40 | recovery report: record of [`crate::record`], kind `RECOVERY` |
//! | 128 | 8 × 16 | [`Digest`]s: that at index *n* is word *n* mod 16, checked words; 0 = none |
//! | 1024 | 640 | panic: record of [`crate::record`], kind `PANIC` |
//!
//! The first five change often and are single stores; each carries its own check
//! ([`crate::checked`]), so a flipped bit is seen, never believed. Beating costs one store.
//!
//! The unit's page outlives the unit: after a reset it still says what the former life said. The
//! orchestrator believes nothing whose epoch is not the present one ([`Health::epoch`]).

use core::fmt::Write;

use crate::record::{self, Kind};
use crate::text::Text;
use crate::{Epoch, PAGE_SIZE, SharedMemory, checked};

/// Bytes of the health page.
pub const SIZE: usize = PAGE_SIZE;

const STATE: usize = 0;
const TAKEN: usize = 8;
const PROGRESS: usize = 16;
const PONG: usize = 24;
const RANK: usize = 32;
const RECOVERY: usize = 64;
const DIGEST: usize = 128;
const PANIC: usize = 1024;

const STATE_SALT: u16 = 0x4853;
const TAKEN_SALT: u16 = 0x4854;
const PROGRESS_SALT: u16 = 0x4850;
const PONG_SALT: u16 = 0x4847;

const RANK_SALT: u16 = 0x4852;
const DIGEST_SALT: u16 = 0x4844;

/// Digests kept: units that do the same are compared where they have the same index, and one may
/// be some steps behind the other.
pub const DIGESTS: usize = 16;

const RECOVERY_KIND: Kind = Kind { magic: *b"PVrr", version: 1 };
const PANIC_KIND: Kind = Kind { magic: *b"PVpn", version: 1 };

/// Longest panic message kept, in bytes.
pub const PANIC_TEXT_MAX: usize = 512;
/// Longest file name kept of a panic's place, in bytes.
pub const PANIC_FILE_MAX: usize = 88;

/// What a unit is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Entered; its runtime is being set up.
    Starting = 1,
    /// Validates or reloads its state after a recovery.
    Recovering = 2,
    /// Serves its clients. "Ready" is the first time this is seen in an epoch.
    Serving = 3,
    /// Ends because it was told to.
    Stopping = 4,
    /// Its panic handler ran; the panic record says why.
    Panicked = 5,
}

impl State {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Starting,
            2 => Self::Recovering,
            3 => Self::Serving,
            4 => Self::Stopping,
            5 => Self::Panicked,
            _ => return None,
        })
    }
}

/// The frequently changing words of a health page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// What the unit is doing.
    pub state: State,
    /// The life that wrote this.
    pub epoch: Epoch,
    /// All work handed over up to this count is served ([`crate::control::Control::handed`]).
    pub taken: u64,
    /// Work items completed in this life.
    pub progress: u64,
    /// The last ping answered.
    pub pong: u64,
}

/// Which word of a health page does not hold what a unit writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthError {
    /// State and epoch. Also what a page is before the unit's first store.
    State,
    /// `taken`.
    Taken,
    /// `progress`.
    Progress,
    /// `pong`.
    Pong,
}

impl core::fmt::Display for HealthError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::State => "health page: the state word is invalid",
            Self::Taken => "health page: the `taken` word is invalid",
            Self::Progress => "health page: the `progress` word is invalid",
            Self::Pong => "health page: the `pong` word is invalid",
        })
    }
}

/// What the state of a unit came to, for comparing it with that of another one that does the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// How many changes led to it, modulo 2¹⁶.
    pub index: u16,
    /// What it is: equal states have equal ones.
    pub sum: u32,
}

impl Digest {
    /// The digest `sum` of the state after `index` changes, cut to what a page holds.
    pub fn new(index: u64, sum: u64) -> Self {
        Self { index: index as u16, sum: (sum ^ sum >> 32) as u32 }
    }
}

/// What a recovery found: small numbers for the epitaph and the experiments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The rung this life entered by ([`crate::control::Control::rung`]).
    pub rung: u32,
    /// Records validated in memory and kept.
    pub kept: u32,
    /// Records loaded again from the fabric.
    pub reloaded: u32,
    /// Records that failed their check and were dropped.
    pub dropped: u32,
    /// Requests found half done and finished or answered again.
    pub resumed: u32,
}

/// A panic: message and place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Panic {
    /// The message.
    pub message: Text<PANIC_TEXT_MAX>,
    /// Source file.
    pub file: Text<PANIC_FILE_MAX>,
    /// Line in that file.
    pub line: u32,
}

impl Panic {
    /// The panic with `message`, formatted here (a panic handler has no other memory to use).
    pub fn new(message: core::fmt::Arguments<'_>, file: &str, line: u32) -> Self {
        let mut panic = Self { file: Text::from_bytes(file.as_bytes()), line, ..Self::default() };
        // Writing to a `Text` never fails; a failing `Display` leaves what came before.
        let _ = panic.message.write_fmt(message);
        panic
    }
}

impl core::fmt::Display for Panic {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.message)?;
        // Where only the text was left, it names the place itself.
        if self.file.is_empty() { Ok(()) } else { write!(f, " at {}:{}", self.file, self.line) }
    }
}

/// The unit's side. It keeps nothing in RAM, so a panic handler may make a second one.
#[derive(Clone, Copy, Debug)]
pub struct HealthWriter<M> {
    page: M,
}

impl<M: SharedMemory> HealthWriter<M> {
    /// The writer of `page`. Panics if it is smaller than [`SIZE`].
    pub fn new(page: M) -> Self {
        assert!(page.len() >= SIZE, "a health page has {SIZE} bytes");
        Self { page }
    }

    /// Starts life `epoch` in the state [`State::Starting`] without progress. `taken` and `pong` of
    /// the former life stay if they are valid, else they start at 0. Reports of former lives stay
    /// readable until they are replaced.
    pub fn start(&self, epoch: Epoch) {
        for (offset, salt) in [(TAKEN, TAKEN_SALT), (PONG, PONG_SALT)] {
            if checked::load(&self.page, offset, salt).is_none() {
                checked::store(&self.page, offset, 0, salt);
            }
        }
        checked::store(&self.page, PROGRESS, 0, PROGRESS_SALT);
        checked::store(&self.page, RANK, 0, RANK_SALT);
        self.page.fill(DIGEST, DIGESTS * 8, 0);
        self.set_state(epoch, State::Starting);
    }

    /// Publishes the state.
    pub fn set_state(&self, epoch: Epoch, state: State) {
        let word = state as u64 | u64::from(epoch) << 8;
        checked::store(&self.page, STATE, word, STATE_SALT);
    }

    /// Everything handed over up to `handed` is served: read `handed` first, then serve until
    /// nothing is left, then call this.
    pub fn set_taken(&self, handed: u64) {
        checked::store(&self.page, TAKEN, handed, TAKEN_SALT);
    }

    /// `items` more work items have been completed in this life.
    pub fn add_progress(&self, items: u64) {
        // A damaged count begins anew: whoever watches looks for a change alone.
        let before = checked::load(&self.page, PROGRESS, PROGRESS_SALT).unwrap_or(0);
        checked::store(&self.page, PROGRESS, before.wrapping_add(items), PROGRESS_SALT);
    }

    /// How well this unit can take the lead of those that do the same work; 0: not at all.
    pub fn set_rank(&self, rank: u64) {
        checked::store(&self.page, RANK, rank, RANK_SALT);
    }

    /// What the state has come to.
    pub fn set_digest(&self, digest: Digest) {
        let word = u64::from(digest.index) << 32 | u64::from(digest.sum);
        let place = usize::from(digest.index) % DIGESTS;
        checked::store(&self.page, DIGEST + place * 8, word, DIGEST_SALT);
    }

    /// Answers a ping.
    pub fn set_pong(&self, ping: u64) {
        checked::store(&self.page, PONG, ping, PONG_SALT);
    }

    /// Publishes what the recovery into life `epoch` found.
    pub fn set_recovery(&self, epoch: Epoch, report: &RecoveryReport) {
        let RecoveryReport { rung, kept, reloaded, dropped, resumed } = *report;
        let mut payload = [0; RECOVERY_LEN];
        for (to, word) in payload.chunks_exact_mut(4).zip([rung, kept, reloaded, dropped, resumed])
        {
            to.copy_from_slice(&word.to_le_bytes());
        }
        record::write_once(&self.page, RECOVERY, RECOVERY_KIND, epoch, &payload);
    }

    /// Publishes a panic of life `epoch`, then the state [`State::Panicked`].
    pub fn set_panic(&self, epoch: Epoch, panic: &Panic) {
        let mut payload = [0; PANIC_LEN];
        let (line, rest) = payload.split_at_mut(4);
        line.copy_from_slice(&panic.line.to_le_bytes());
        let (file, message) = rest.split_at_mut(PANIC_FILE_MAX);
        file[..panic.file.as_bytes().len()].copy_from_slice(panic.file.as_bytes());
        message[..panic.message.as_bytes().len()].copy_from_slice(panic.message.as_bytes());
        record::write_once(&self.page, PANIC, PANIC_KIND, epoch, &payload);
        self.set_state(epoch, State::Panicked);
    }
}

const RECOVERY_LEN: usize = 5 * 4;
const PANIC_LEN: usize = 4 + PANIC_FILE_MAX + PANIC_TEXT_MAX;
const _: () = assert!(RECOVERY + record::size_once(RECOVERY_LEN) <= DIGEST);
const _: () = assert!(DIGEST + DIGESTS * 8 <= PANIC);
const _: () = assert!(PANIC + record::size_once(PANIC_LEN) <= SIZE);

/// The orchestrator's side: everything is checked before it is believed.
#[derive(Clone, Copy, Debug)]
pub struct HealthReader<M> {
    page: M,
}

impl<M: SharedMemory> HealthReader<M> {
    /// The reader of `page`. Panics if it is smaller than [`SIZE`].
    pub fn new(page: M) -> Self {
        assert!(page.len() >= SIZE, "a health page has {SIZE} bytes");
        Self { page }
    }

    /// The words, each read once. A page that its unit never wrote gives [`HealthError::State`].
    pub fn read(&self) -> Result<Health, HealthError> {
        let word = |offset, salt, error| checked::load(&self.page, offset, salt).ok_or(error);
        let state = word(STATE, STATE_SALT, HealthError::State)?;
        Ok(Health {
            state: State::from_code(state as u8).ok_or(HealthError::State)?,
            epoch: u32::try_from(state >> 8).map_err(|_| HealthError::State)?,
            taken: word(TAKEN, TAKEN_SALT, HealthError::Taken)?,
            progress: word(PROGRESS, PROGRESS_SALT, HealthError::Progress)?,
            pong: word(PONG, PONG_SALT, HealthError::Pong)?,
        })
    }

    /// How well the unit can take the lead; 0: not at all, or the word is invalid.
    pub fn rank(&self) -> u64 {
        checked::load(&self.page, RANK, RANK_SALT).unwrap_or(0)
    }

    /// The digest in one of [`DIGESTS`] places, if there is one.
    pub fn digest(&self, place: usize) -> Option<Digest> {
        let word = checked::load(&self.page, DIGEST + place % DIGESTS * 8, DIGEST_SALT)?;
        Some(Digest { index: (word >> 32) as u16, sum: word as u32 })
    }

    /// What the recovery into life `epoch` found, if that life has said so.
    pub fn recovery(&self, epoch: Epoch) -> Option<RecoveryReport> {
        let mut payload = [0; RECOVERY_LEN];
        let found = record::read_once(&self.page, RECOVERY, RECOVERY_KIND, &mut payload).ok()?;
        let word = |i: usize| {
            let at = 4 * i;
            u32::from_le_bytes([payload[at], payload[at + 1], payload[at + 2], payload[at + 3]])
        };
        (found.epoch == epoch && found.length == RECOVERY_LEN).then(|| RecoveryReport {
            rung: word(0),
            kept: word(1),
            reloaded: word(2),
            dropped: word(3),
            resumed: word(4),
        })
    }

    /// The panic of life `epoch`, if it had one.
    pub fn panic(&self, epoch: Epoch) -> Option<Panic> {
        let mut payload = [0; PANIC_LEN];
        let found = record::read_once(&self.page, PANIC, PANIC_KIND, &mut payload).ok()?;
        if found.epoch != epoch || found.length != PANIC_LEN {
            return None;
        }
        let (line, rest) = payload.split_at(4);
        let (file, message) = rest.split_at(PANIC_FILE_MAX);
        let up_to_zero = |bytes: &[u8]| bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        Some(Panic {
            line: u32::from_le_bytes([line[0], line[1], line[2], line[3]]),
            file: Text::from_bytes(&file[..up_to_zero(file)]),
            message: Text::from_bytes(&message[..up_to_zero(message)]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeapMemory;
    use proptest::prelude::*;

    fn page() -> (HealthWriter<HeapMemory>, HealthReader<HeapMemory>, HeapMemory) {
        let page = HeapMemory::new(SIZE);
        (HealthWriter::new(page.clone()), HealthReader::new(page.clone()), page)
    }

    #[test]
    fn an_untouched_page_is_no_health() {
        assert_eq!(page().1.read(), Err(HealthError::State));
    }

    #[test]
    fn a_unit_says_how_it_is() {
        let (unit, watcher, _) = page();
        unit.start(7);
        unit.set_state(7, State::Serving);
        unit.set_taken(41);
        unit.add_progress(5);
        unit.add_progress(7);
        unit.set_pong(4);
        let health = Health { state: State::Serving, epoch: 7, taken: 41, progress: 12, pong: 4 };
        assert_eq!(watcher.read(), Ok(health));
    }

    #[test]
    fn the_last_digests_of_a_life_are_kept_and_none_of_the_former() {
        let (unit, watcher, _) = page();
        unit.start(7);
        assert_eq!(watcher.digest(1), None);
        for index in 0..=16 {
            unit.set_digest(Digest::new(0x1_0000 + index, 0xaa00_0000_0000 + index));
        }
        assert_eq!(watcher.digest(0), Some(Digest { index: 16, sum: 0xaa10 }));
        assert_eq!(watcher.digest(1), Some(Digest { index: 1, sum: 0xaa01 }));
        unit.start(8);
        assert!((0..DIGESTS).all(|place| watcher.digest(place).is_none()));
    }

    #[test]
    fn golden() {
        let (unit, _, memory) = page();
        unit.start(7);
        unit.set_state(7, State::Serving);
        unit.set_taken(0x1_0002);
        assert_eq!(memory.load_u64(STATE), 0x4f50_0000_0000_0703);
        assert_eq!(memory.load_u64(TAKEN), 0x4857_0000_0001_0002);
        assert_eq!(memory.load_u64(PROGRESS), 0x4850_0000_0000_0000);
        assert_eq!(memory.load_u64(PONG), 0x4847_0000_0000_0000);
    }

    #[test]
    fn reports_belong_to_their_life() {
        let (unit, watcher, _) = page();
        let report = RecoveryReport { rung: 2, kept: 1, reloaded: 1000, dropped: 3, resumed: 4 };
        unit.set_recovery(9, &report);
        assert_eq!(watcher.recovery(9), Some(report));
        assert_eq!(watcher.recovery(8), None);
        unit.set_panic(9, &Panic::new(format_args!("no {}", "\x1bway"), "src/a.rs", 17));
        let panic = watcher.panic(9).unwrap();
        assert_eq!(panic.to_string(), "no ?way at src/a.rs:17");
        assert_eq!(watcher.read().map(|_| ()), Err(HealthError::Taken));
        assert_eq!(watcher.panic(10), None);
    }

    #[test]
    fn a_long_panic_is_cut() {
        let (unit, watcher, _) = page();
        let long = "x".repeat(2000);
        unit.set_panic(1, &Panic::new(format_args!("{long}"), &long, 1));
        let panic = watcher.panic(1).unwrap();
        assert_eq!(panic.message.as_bytes().len(), PANIC_TEXT_MAX);
        assert_eq!(panic.file.as_bytes().len(), PANIC_FILE_MAX);
    }

    proptest! {
        /// Each flipped bit of the hot words is seen; no garbage panics the reader.
        #[test]
        fn a_flipped_bit_is_seen(bit in 0_usize..256) {
            let (unit, watcher, memory) = page();
            unit.start(5);
            let at = bit / 64 * 8;
            memory.store_u64(at, memory.load_u64(at) ^ 1 << (bit % 64));
            prop_assert!(watcher.read().is_err());
        }

        #[test]
        fn garbage_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), SIZE)) {
            let (_, watcher, memory) = page();
            memory.write(0, &bytes);
            prop_assert_eq!(watcher.recovery(1), None);
            prop_assert_eq!(watcher.panic(1), None);
            let _ = watcher.read();
        }
    }
}
