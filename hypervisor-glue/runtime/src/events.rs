//! Event channels, two-level interface: which port is pending next.

use core::sync::atomic::{AtomicU64, Ordering};

/// The event words of `shared_info`.
pub(crate) struct EventWords<'a> {
    /// One bit per pending word.
    pub(crate) selector: &'a AtomicU64,
    /// One bit per port.
    pub(crate) pending: &'a [AtomicU64; 64],
    /// One bit per port.
    pub(crate) mask: &'a [AtomicU64; 64],
}

impl EventWords<'_> {
    /// Takes the first pending, unmasked port at or after `from`, wrapping around.
    pub(crate) fn take(&self, from: u32) -> Option<u32> {
        let (start, start_bit) = ((from / 64 % 64) as usize, from % 64);
        let selector = self.selector.load(Ordering::Acquire);
        // The word of `from` is looked at twice: from its bit upwards, and at last as a whole.
        for (mut words, first) in [(selector & u64::MAX << start, true), (selector, false)] {
            while words != 0 {
                let word = words.trailing_zeros() as usize;
                words &= words - 1;
                let ready = self.ready(word);
                let rotated = first && word == start;
                let wanted = if rotated { ready & u64::MAX << start_bit } else { ready };
                if ready == 0 {
                    self.settle(word);
                }
                if wanted != 0 {
                    let bit = wanted.trailing_zeros();
                    self.pending[word].fetch_and(!(1 << bit), Ordering::AcqRel);
                    return Some(word as u32 * 64 + bit);
                }
            }
        }
        None
    }

    /// Whether some unmasked port is pending. When there is none, no selector bit is left: Xen
    /// raises an upcall only when it sets one.
    pub(crate) fn any(&self) -> bool {
        let mut words = self.selector.load(Ordering::Acquire);
        while words != 0 {
            let word = words.trailing_zeros() as usize;
            words &= words - 1;
            if self.ready(word) != 0 || self.settle(word) {
                return true;
            }
        }
        false
    }

    fn ready(&self, word: usize) -> u64 {
        self.pending[word].load(Ordering::Acquire) & !self.mask[word].load(Ordering::Acquire)
    }

    /// Clears the selector bit of a word without ready ports. Xen sets a pending bit before it
    /// sets the selector bit, so one that came meanwhile is seen by the second look: then the bit
    /// stays, and the answer is true.
    fn settle(&self, word: usize) -> bool {
        self.selector.fetch_and(!(1 << word), Ordering::AcqRel);
        let ready = self.ready(word) != 0;
        if ready {
            self.selector.fetch_or(1 << word, Ordering::AcqRel);
        }
        ready
    }

    /// Lets the port deliver events; one that is pending already is found by the next take.
    pub(crate) fn unmask(&self, port: u32) {
        let (word, bit) = ((port / 64 % 64) as usize, port % 64);
        self.mask[word].fetch_and(!(1 << bit), Ordering::AcqRel);
        if self.pending[word].load(Ordering::Acquire) & 1 << bit != 0 {
            self.selector.fetch_or(1 << word, Ordering::AcqRel);
        }
    }

    /// Stops the port from delivering events and forgets a pending one.
    pub(crate) fn silence(&self, port: u32) {
        let (word, bit) = ((port / 64 % 64) as usize, port % 64);
        self.mask[word].fetch_or(1 << bit, Ordering::AcqRel);
        self.pending[word].fetch_and(!(1 << bit), Ordering::AcqRel);
    }

    /// Forgets a pending event of the port; answers whether there was one.
    pub(crate) fn forget(&self, port: u32) -> bool {
        let (word, bit) = ((port / 64 % 64) as usize, port % 64);
        self.pending[word].fetch_and(!(1 << bit), Ordering::AcqRel) & 1 << bit != 0
    }

    /// Hides what is pending, so that Xen raises an upcall for each port that becomes pending from
    /// now on; for [`Self::show`].
    pub(crate) fn hide(&self) -> u64 {
        self.selector.swap(0, Ordering::AcqRel)
    }

    /// Shows again what was hidden.
    pub(crate) fn show(&self, hidden: u64) {
        self.selector.fetch_or(hidden, Ordering::AcqRel);
    }

    /// Marks the port pending, as Xen does.
    pub(crate) fn raise(&self, port: u32) {
        let (word, bit) = ((port / 64 % 64) as usize, port % 64);
        self.pending[word].fetch_or(1 << bit, Ordering::AcqRel);
        self.selector.fetch_or(1 << word, Ordering::AcqRel);
    }

    /// Marks every unmasked port pending.
    pub(crate) fn raise_all(&self) {
        for word in 0..64 {
            let open = !self.mask[word].load(Ordering::Acquire);
            if open != 0 {
                self.pending[word].fetch_or(open, Ordering::AcqRel);
                self.selector.fetch_or(1 << word, Ordering::AcqRel);
            }
        }
    }

    /// Masks all ports and forgets everything pending: a first life.
    pub(crate) fn reset(&self) {
        for word in 0..64 {
            self.mask[word].store(u64::MAX, Ordering::Release);
            self.pending[word].store(0, Ordering::Release);
        }
        self.selector.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Page {
        selector: AtomicU64,
        pending: [AtomicU64; 64],
        mask: [AtomicU64; 64],
    }

    impl Page {
        fn new() -> Self {
            let page = Self {
                selector: AtomicU64::new(0),
                pending: [const { AtomicU64::new(0) }; 64],
                mask: [const { AtomicU64::new(0) }; 64],
            };
            page.words().reset();
            page
        }

        fn words(&self) -> EventWords<'_> {
            EventWords { selector: &self.selector, pending: &self.pending, mask: &self.mask }
        }
    }

    fn drain(words: &EventWords<'_>, mut from: u32) -> Vec<u32> {
        let mut taken = Vec::new();
        while let Some(port) = words.take(from) {
            taken.push(port);
            from = port + 1;
        }
        taken
    }

    #[test]
    fn every_pending_port_comes_once_in_rotation() {
        let page = Page::new();
        let words = page.words();
        let ports = [3, 5, 63, 64, 700, 4095];
        for port in ports {
            words.unmask(port);
            words.raise(port);
        }
        assert_eq!(drain(&words, 5), [5, 63, 64, 700, 4095, 3]);
        assert!(!words.any());
        assert_eq!(page.selector.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_noisy_port_starves_nobody() {
        let page = Page::new();
        let words = page.words();
        for port in [1, 2] {
            words.unmask(port);
            words.raise(port);
        }
        let first = words.take(0).expect("pending");
        words.raise(first);
        assert_ne!(words.take(first + 1), Some(first));
    }

    #[test]
    fn masked_ports_wait_for_their_unmasking() {
        let page = Page::new();
        let words = page.words();
        words.raise(9);
        assert_eq!(words.take(0), None);
        words.unmask(9);
        assert!(words.any());
        assert_eq!(words.take(0), Some(9));
        words.raise(9);
        words.silence(9);
        assert_eq!(words.take(0), None);
    }

    #[test]
    fn what_is_hidden_is_found_again_and_what_is_forgotten_is_not() {
        let page = Page::new();
        let words = page.words();
        for port in [7, 8] {
            words.unmask(port);
            words.raise(port);
        }
        let hidden = words.hide();
        assert!(!words.any());
        assert!(words.forget(8) && !words.forget(8));
        words.show(hidden);
        assert_eq!(drain(&words, 0), [7]);
    }

    #[test]
    fn a_new_life_looks_at_all_its_ports() {
        let page = Page::new();
        let words = page.words();
        for port in [7, 130] {
            words.unmask(port);
        }
        words.raise_all();
        assert_eq!(drain(&words, 0), [7, 130]);
    }
}
