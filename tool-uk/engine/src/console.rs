//! A guest's console: bytes out of its ring into bounded lines, bytes typed into its ring
//! (`struct xencons_interface`, io/console.h).
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1024 | input, written by us |
//! | 1024 | 2048 | output, written by the guest |
//! | 3072 | 4 | `in_cons`, of the guest |
//! | 3076 | 4 | `in_prod`, ours |
//! | 3080 | 4 | `out_cons`, ours |
//! | 3084 | 4 | `out_prod`, of the guest |
//!
//! Everything in the page may be hostile: indices are checked, bytes are copied out once. A guest
//! that prints without end loses what is beyond its allowance, and nobody else notices.
//!
//! `out_cons` moves only over lines that were handed out: the bytes of an unfinished line stay in
//! the ring, where our next life finds them.

use alloc::vec::Vec;

use fabric::SharedMemory;
use fabric::keys::KeyReader;

const INPUT_LEN: u32 = 1024;
const OUTPUT: usize = 1024;
const OUTPUT_LEN: u32 = 2048;
const IN_CONS: usize = 3072;
const IN_PROD: usize = 3076;
const OUT_CONS: usize = 3080;
const OUT_PROD: usize = 3084;

/// Longest line; a longer one is continued on the next.
pub const MAX_LINE: usize = 400;
/// Bytes of an unfinished line that stay in the ring: half of it remains for what follows.
const HELD_MAX: u32 = OUTPUT_LEN / 2;
/// Bytes that a guest may print at once: the messages of a booting kernel.
const BURST: u64 = 64 << 10;
/// Bytes per second that it may print for ever: about what a serial line carries.
const PER_SECOND: u64 = 16 << 10;

/// What a look at the ring found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pumped {
    /// Bytes taken out, dropped ones included.
    pub taken: u32,
    /// Bytes dropped because the guest printed too much.
    pub dropped: u32,
    /// The guest may wait for the room that there is now.
    pub has_room: bool,
    /// The guest's index is impossible; its output so far is skipped.
    pub is_wild: bool,
}

/// One guest's console.
#[derive(Clone, Debug)]
pub struct Console<M> {
    page: M,
    line: Vec<u8>,
    /// Position behind the last byte that was read.
    read: u32,
    /// Position behind the last byte of a line that was handed out.
    handed: u32,
    allowance: u64,
    refilled_ns: u64,
    /// Bytes dropped since the last line that said so.
    dropped: u64,
}

impl<M: SharedMemory> Console<M> {
    /// The console in this page.
    pub fn new(page: M, now_ns: u64) -> Self {
        let read = page.load_u32(OUT_CONS);
        Self {
            page,
            line: Vec::new(),
            read,
            handed: read,
            allowance: BURST,
            refilled_ns: now_ns,
            dropped: 0,
        }
    }

    /// Takes what the guest printed and hands out whole lines, without their ends. Notify the guest
    /// afterwards if there is new room.
    pub fn pump(&mut self, now_ns: u64, mut line: impl FnMut(&[u8])) -> Pumped {
        self.refill(now_ns);
        let produced = self.page.load_u32(OUT_PROD);
        let waiting = produced.wrapping_sub(self.read);
        let before = self.handed;
        if produced.wrapping_sub(self.handed) > OUTPUT_LEN || waiting > OUTPUT_LEN {
            self.line.clear();
            (self.read, self.handed) = (produced, produced);
            self.page.store_u32(OUT_CONS, produced);
            return Pumped { has_room: true, is_wild: true, ..Pumped::default() };
        }
        let mut bytes = [0; OUTPUT_LEN as usize];
        let bytes = &mut bytes[..waiting as usize];
        let at = (self.read % OUTPUT_LEN) as usize;
        let (first, second) = bytes.split_at_mut((OUTPUT_LEN as usize - at).min(waiting as usize));
        self.page.read(OUTPUT + at, first);
        self.page.read(OUTPUT, second);

        let kept = u64::from(waiting).min(self.allowance) as u32;
        self.allowance -= u64::from(kept);
        if self.dropped > 0 && kept > 0 {
            let note = alloc::format!("[{} bytes dropped: too much output]", self.dropped);
            line(note.as_bytes());
            self.dropped = 0;
        }
        for byte in &bytes[..kept as usize] {
            self.take(*byte, &mut line);
        }
        let dropped = waiting - kept;
        if dropped > 0 {
            self.dropped += u64::from(dropped);
            (self.read, self.handed) = (produced, produced);
        }
        self.page.store_u32(OUT_CONS, self.handed);
        Pumped { taken: waiting, dropped, has_room: self.handed != before, is_wild: false }
    }

    fn take(&mut self, byte: u8, line: &mut impl FnMut(&[u8])) {
        let held = self.read.wrapping_sub(self.handed);
        if byte == b'\n' || self.line.len() == MAX_LINE || held == HELD_MAX {
            line(&self.line);
            self.line.clear();
            self.handed = self.read;
        }
        self.read = self.read.wrapping_add(1);
        match byte {
            b'\n' => self.handed = self.read,
            b'\r' => {}
            _ => self.line.push(byte),
        }
    }

    /// An unfinished line, for whoever looks at the console now: a prompt, last words.
    pub fn flush(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            line(&self.line);
            self.line.clear();
        }
        self.handed = self.read;
        self.page.store_u32(OUT_CONS, self.handed);
    }

    fn refill(&mut self, now_ns: u64) {
        let passed_ns = now_ns.saturating_sub(self.refilled_ns);
        let earned = u128::from(passed_ns) * u128::from(PER_SECOND) / 1_000_000_000;
        if earned > 0 {
            self.allowance = BURST.min(self.allowance.saturating_add(earned as u64));
            self.refilled_ns = now_ns;
        }
    }

    /// Types the first key of `keys`, which is this guest's, and takes it out; a key that a former
    /// life put here already is not typed again. False: the guest left no room, so the key is
    /// lost. Notify the guest afterwards.
    pub fn type_first<O, P>(&mut self, byte: u8, keys: &mut KeyReader<O, P>) -> bool
    where
        O: SharedMemory,
        P: SharedMemory,
    {
        let produced = self.page.load_u32(IN_PROD);
        let is_there = keys.placed() == Some(produced.wrapping_sub(1));
        let has_room = produced.wrapping_sub(self.page.load_u32(IN_CONS)) < INPUT_LEN;
        if has_room && !is_there {
            keys.place(produced);
            self.page.write((produced % INPUT_LEN) as usize, &[byte]);
            self.page.store_u32(IN_PROD, produced.wrapping_add(1));
        }
        keys.consume();
        has_room || is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::keys::{Key, KeyWriter};
    use fabric::{HeapMemory, Part, TornMemory};
    use proptest::prelude::*;

    struct Guest {
        page: HeapMemory,
    }

    impl Guest {
        fn print(&self, bytes: &[u8]) {
            let produced = self.page.load_u32(OUT_PROD);
            for (count, byte) in (0..).zip(bytes) {
                let at = produced.wrapping_add(count) % OUTPUT_LEN;
                self.page.write(OUTPUT + at as usize, &[*byte]);
            }
            self.page.store_u32(OUT_PROD, produced.wrapping_add(bytes.len() as u32));
        }
    }

    fn console() -> (Guest, Console<HeapMemory>) {
        let page = HeapMemory::new(4096);
        (Guest { page: page.clone() }, Console::new(page, 0))
    }

    fn pump(console: &mut Console<HeapMemory>, now_ns: u64) -> (Pumped, Vec<String>) {
        let mut lines = Vec::new();
        let pumped =
            console.pump(now_ns, |line| lines.push(String::from_utf8_lossy(line).into_owned()));
        (pumped, lines)
    }

    #[test]
    fn lines_are_put_together() {
        let (guest, mut console) = console();
        guest.print(b"hel");
        assert_eq!(pump(&mut console, 0).1, Vec::<String>::new());
        guest.print(b"lo\r\nwor");
        assert_eq!(pump(&mut console, 0).1, ["hello"]);
        let mut rest = Vec::new();
        console.flush(|line| rest.extend_from_slice(line));
        assert_eq!(rest, b"wor");
        guest.print(&[b'x'; MAX_LINE + 1]);
        guest.print(b"\n");
        assert_eq!(pump(&mut console, 0).1, ["x".repeat(MAX_LINE), "x".into()]);
    }

    #[test]
    fn a_next_life_finds_the_unfinished_line() {
        let (guest, mut console) = console();
        guest.print(b"whole\nhalf");
        let (pumped, lines) = pump(&mut console, 0);
        assert_eq!((pumped.taken, pumped.has_room, lines), (10, true, vec!["whole".to_owned()]));
        assert!(!pump(&mut console, 0).0.has_room);
        let mut next = Console::new(guest.page.clone(), 0);
        guest.print(b" a line\n");
        assert_eq!(pump(&mut next, 0).1, ["half a line"]);
        assert_eq!(guest.page.load_u32(OUT_CONS), guest.page.load_u32(OUT_PROD));
    }

    #[test]
    fn an_endless_line_leaves_room_in_the_ring() {
        let (guest, mut console) = console();
        for _ in 0..100 {
            guest.print(&[b'\r'; 700]);
            pump(&mut console, 0);
            let held = guest.page.load_u32(OUT_PROD) - guest.page.load_u32(OUT_CONS);
            assert!(held <= HELD_MAX, "{held} bytes are held");
        }
    }

    #[test]
    fn indices_wrap_and_wild_ones_cost_only_their_guest() {
        let (guest, _) = console();
        for index in [OUT_PROD, OUT_CONS] {
            guest.page.store_u32(index, u32::MAX - 2);
        }
        let mut console = Console::new(guest.page.clone(), 0);
        guest.print(b"around\n");
        assert_eq!(pump(&mut console, 0).1, ["around"]);
        guest.page.store_u32(OUT_PROD, 1 << 20);
        let (pumped, lines) = pump(&mut console, 0);
        assert!(pumped.is_wild && lines.is_empty());
        guest.print(b"again\n");
        assert_eq!(pump(&mut console, 0).1, ["again"]);
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let (guest, mut console) = console();
        let (mut kept, mut dropped) = (0, 0);
        for _ in 0..100 {
            guest.print(&[b'y'; 2047]);
            guest.print(b"\n");
            let (pumped, lines) = pump(&mut console, 0);
            kept += lines.iter().map(String::len).sum::<usize>();
            dropped += u64::from(pumped.dropped);
        }
        assert_eq!(dropped, 100 * 2048 - BURST);
        assert!(kept as u64 <= BURST);
        guest.print(b"later\n");
        let (_, lines) = pump(&mut console, 1_000_000_000);
        assert_eq!(lines[0], format!("[{dropped} bytes dropped: too much output]"));
        assert!(lines.last().unwrap().ends_with("later"));
    }

    /// The regions of the operator's keys, with `text` typed for a guest.
    fn typed(text: &[u8]) -> (HeapMemory, HeapMemory) {
        let regions = (HeapMemory::new(4096), HeapMemory::new(16));
        // The toolstack's first life begins before anything is typed.
        KeyReader::new(regions.1.clone(), regions.0.clone());
        let mut writer = KeyWriter::new(regions.0.clone(), regions.1.clone());
        for byte in text {
            writer.push(Key { domid: 17, byte: *byte }).unwrap();
        }
        regions
    }

    /// Passes all keys on; returns how many were lost.
    fn type_all<M: SharedMemory, T: SharedMemory>(
        console: &mut Console<M>,
        taken: T,
        keys: &HeapMemory,
    ) -> usize {
        let mut reader = KeyReader::new(taken, keys.clone());
        let mut lost = 0;
        while let Some(Key { byte, .. }) = reader.peek() {
            lost += usize::from(!console.type_first(byte, &mut reader));
        }
        lost
    }

    #[test]
    fn typed_keys_fit_the_ring() {
        let (guest, mut console) = console();
        guest.page.store_u32(IN_PROD, 1022);
        guest.page.store_u32(IN_CONS, 3);
        let (keys, taken) = typed(b"abcdefgh");
        assert_eq!(type_all(&mut console, taken, &keys), 3);
        let mut bytes = [0; 3];
        guest.page.read(0, &mut bytes);
        assert_eq!((&bytes, guest.page.load_u32(IN_PROD)), (b"cde", 1027));
        guest.page.store_u32(IN_CONS, 77777);
        let (keys, taken) = typed(b"x");
        assert_eq!(type_all(&mut console, taken, &keys), 1);
    }

    #[test]
    fn each_key_is_typed_once_whenever_the_toolstack_dies() {
        for stores in 0.. {
            let (keys, _) = typed(b"ls -l");
            // The guest's page, and behind it what the toolstack has taken.
            let memory = HeapMemory::new(4096 + 16);
            KeyReader::new(Part::new(memory.clone(), 4096, 16), HeapMemory::new(4096));
            let torn = TornMemory::new(memory.clone(), stores);
            let mut dying = Console::new(Part::new(torn.clone(), 0, 4096), 0);
            type_all(&mut dying, Part::new(torn.clone(), 4096, 16), &keys);
            let is_whole = torn.stores() < stores;
            let mut next = Console::new(Part::new(memory.clone(), 0, 4096), 0);
            type_all(&mut next, Part::new(memory.clone(), 4096, 16), &keys);
            assert_eq!(memory.load_u32(IN_PROD), 5, "died after {stores} stores");
            let mut bytes = [0; 5];
            memory.read(0, &mut bytes);
            assert_eq!(&bytes, b"ls -l", "died after {stores} stores");
            if is_whole {
                assert!(stores > 20, "{stores} stores");
                break;
            }
        }
    }

    proptest! {
        #[test]
        fn no_page_harms_us(words in proptest::collection::vec(any::<u32>(), 1024)) {
            let page = HeapMemory::new(4096);
            for (index, word) in words.iter().enumerate() {
                page.store_u32(index * 4, *word);
            }
            let mut console = Console::new(page, 0);
            let (pumped, lines) = pump(&mut console, 5);
            prop_assert!(pumped.taken <= 2048);
            prop_assert!(lines.iter().map(String::len).max().unwrap_or(0) <= 3 * MAX_LINE);
            let (keys, taken) = typed(&[1; 200]);
            let lost = type_all(&mut console, taken, &keys);
            prop_assert!(lost <= 200);
        }
    }
}
