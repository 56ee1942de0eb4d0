//! Kick rings between two threads: what one processor stores becomes visible to the other when it
//! pleases, and the protocol must hold all the same.
#![allow(missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use fabric::SharedMemory;
use fabric::kick::{Kick, KickReader, KickWriter, Pushed, half_size};

/// Few: both ends are to come upon the same one.
const IDS: usize = 2;

/// Pushes: a second of two processors that come upon each other all the time.
const PUSHES: u64 = 400_000;

/// Memory of double words that several threads see, with the orders that the trait promises.
#[derive(Clone)]
struct Shared(Arc<[AtomicU64]>);

impl Shared {
    fn new(len: usize) -> Self {
        Self((0..len.div_ceil(8)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Changes the bits under `mask` of the double word that holds `offset`.
    fn change(&self, offset: usize, mask: u64, value: u64) {
        let shift = offset % 8 * 8;
        let new = |old: u64| Some(old & !(mask << shift) | (value & mask) << shift);
        let word = &self.0[offset / 8];
        word.fetch_update(Ordering::Release, Ordering::Relaxed, new).expect("always some");
    }
}

impl SharedMemory for Shared {
    fn len(&self) -> usize {
        self.0.len() * 8
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        for (at, byte) in (offset..).zip(into) {
            *byte = (self.0[at / 8].load(Ordering::Acquire) >> (at % 8 * 8)) as u8;
        }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        (offset..).zip(from).for_each(|(at, byte)| self.change(at, 0xff, u64::from(*byte)));
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        (offset..offset + len).for_each(|at| self.change(at, 0xff, u64::from(value)));
    }

    fn load_u32(&self, offset: usize) -> u32 {
        (self.0[offset / 8].load(Ordering::Acquire) >> (offset % 8 * 8)) as u32
    }

    fn store_u32(&self, offset: usize, value: u32) {
        self.change(offset, u64::from(u32::MAX), u64::from(value));
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.0[offset / 8].load(Ordering::Acquire)
    }

    fn store_u64(&self, offset: usize, value: u64) {
        self.0[offset / 8].store(value, Ordering::Release);
    }
}

/// The doorbell: rung since the reader heard it last, and whether it will ever ring again.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    is_over: AtomicBool,
}

impl Bell {
    /// Waits until it rings; false: it never will. Waits awake, as that finds most races.
    fn hear(&self) -> bool {
        loop {
            let is_over = self.is_over.load(Ordering::SeqCst);
            if self.rung.swap(false, Ordering::SeqCst) {
                return true;
            }
            if is_over {
                return false;
            }
            std::hint::spin_loop();
        }
    }
}

/// The reader sleeps until the bell rings, and goes back to sleep when it finds no more kicks. When
/// all bells have been heard, nothing may be left that nobody was told of.
#[test]
fn no_kick_is_lost_between_two_threads() {
    let (ours, theirs) = (Shared::new(half_size(IDS)), Shared::new(half_size(IDS)));
    // Plain loads and stores: an instruction that locks the bus would be a fence by itself.
    let made: [AtomicU64; IDS] = Default::default();
    let bell = Bell::default();
    let mut reader = KickReader::new(theirs.clone(), ours.clone(), IDS as u16);
    let mut writer = KickWriter::<_, _, IDS>::new(ours, theirs);
    let mut done = [0; IDS];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = 1_u64;
            for _ in 0..PUSHES {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let id = (random >> 33) as usize % IDS;
                made[id].store(made[id].load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                if writer.push(id as u16) == Pushed::Ring {
                    bell.rung.store(true, Ordering::SeqCst);
                }
                // The reader comes to its end now and then: there the races are.
                (0..random >> 58).for_each(|_| std::hint::spin_loop());
            }
            bell.is_over.store(true, Ordering::SeqCst);
        });
        while bell.hear() {
            while let Some(kick) = reader.pop() {
                let Kick::Id(id) = kick else { panic!("the ring was damaged") };
                done[usize::from(id)] = made[usize::from(id)].load(Ordering::Relaxed);
            }
        }
    });
    assert_eq!((reader.wild(), writer.wild()), (0, 0));
    assert_eq!(done, made.map(AtomicU64::into_inner), "work that nobody was told of");
    assert_eq!(done.iter().sum::<u64>(), PUSHES);
}
