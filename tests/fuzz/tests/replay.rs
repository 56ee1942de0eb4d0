//! Every input that once failed, every seed, and some changed seeds, without coverage feedback:
//! what was found stays found, and no target is broken.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;

use fuzz::{TARGETS, Target};

/// Changed seeds per target: a second or two on a slow machine.
const CHANGED: u32 = 400;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// Changes, inserts, removes or repeats a few bytes.
fn change(input: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(16)).min(input.len());
        match random.below(4) {
            0 => drop(input.drain(at..end)),
            1 => input.insert(at, random.below(256) as u8),
            2 => {
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            _ => input[at..end].iter_mut().for_each(|byte| *byte ^= 1 << random.below(8)),
        }
    }
}

fn replay(target: &Target) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("findings").join(target.name);
    if let Ok(entries) = fs::read_dir(&folder) {
        for entry in entries {
            let path = entry.expect("a folder of this repository").path();
            println!("{}", path.display());
            (target.run)(&fs::read(&path).expect("a file of this repository"));
        }
    }
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no seed", target.name);
    seeds.iter().for_each(|seed| (target.run)(seed));
    (target.run)(&[]);
    let mut random = Random(0x1234_5678);
    for number in 0..CHANGED {
        let mut input = seeds[random.below(seeds.len())].clone();
        change(&mut input, &mut random);
        println!("{} changed seed {number}", target.name);
        (target.run)(&input);
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(&fuzz::find(stringify!($name)).expect("a target"));
        })*

        #[test]
        fn every_target_is_replayed() {
            let names = [$(stringify!($name)),*];
            assert_eq!(names.to_vec(), TARGETS.map(|target| target.name).to_vec());
        }
    };
}

replays!(
    wire server slots snapshot pages rings archive elf api raft_messages raft_storage console driver
);
