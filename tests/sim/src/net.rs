//! The network between replicas: late, lossy, doubling, and sometimes cut.

use std::collections::BTreeSet;

use crate::profile::Profile;
use crate::random::Random;

/// Which way messages go.
#[derive(Clone, Debug, Default)]
pub struct Net {
    /// Links that carry nothing, by sender and receiver.
    cut: BTreeSet<(u8, u8)>,
}

/// When copies of a message arrive, and whether a bit of one is flipped.
pub type Fate = Vec<(u64, Option<u64>)>;

impl Net {
    /// Cuts some links: one replica off from all, one direction, or one pair.
    pub fn cut(&mut self, random: &mut Random) {
        let (a, b) = (random.range(1, 4) as u8, random.range(1, 4) as u8);
        match random.range(0, 4) {
            0 => self.cut.extend((1..=3).flat_map(|other| [(a, other), (other, a)])),
            1 => self.cut.extend((1..=3).map(|other| (a, other))),
            2 => self.cut.extend((1..=3).map(|other| (other, a))),
            _ => self.cut.extend([(a, b), (b, a)]),
        }
    }

    /// Joins all links.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Decides what becomes of a message of `len` bytes.
    pub fn fate(&self, random: &mut Random, profile: &Profile, link: (u8, u8), len: usize) -> Fate {
        if self.cut.contains(&link) || random.chance(profile.lost) {
            return Fate::new();
        }
        let copies = if random.chance(profile.doubled) { 2 } else { 1 };
        let mut fate = Fate::new();
        for _ in 0..copies {
            // Mostly quick, sometimes slow, now and then from long ago: messages overtake each
            // other, and some arrive in another term or life.
            let longest = match random.range(0, 100) {
                0..2 => profile.late_ns,
                2..32 => profile.delay_ns,
                _ => 0,
            };
            let delay = random.range(1_000, longest.max(2_000));
            let bit = random.chance(profile.flipped).then(|| random.range(0, len as u64 * 8));
            fate.push((delay, bit));
        }
        fate
    }
}
