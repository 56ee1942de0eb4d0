//! Seeded numbers.

/// SplitMix64: a few lines, and every seed is a good one.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A word that is often at an edge: what checks are got wrong at.
    pub fn edge(&mut self) -> u32 {
        const EDGES: [u32; 10] =
            [0, 1, 1023, 1024, 1025, 2048, 0x7fff_ffff, 0x8000_0000, 0xffff_fbff, u32::MAX];
        let word = self.next();
        match word & 1 {
            0 => EDGES[(word >> 1) as usize % EDGES.len()],
            _ => (word >> 32) as u32,
        }
    }
}
