//! Signs of life within one long change: removing a large subtree is one commit, and takes longer
//! than a watcher lets pass without progress.

/// Pieces of work between two signs: of a piece, such as the record of a node that goes, none
/// takes more than two microseconds, so a sign comes well within the time after which a unit counts
/// as hung.
const PIECES: u32 = 64;

/// Counts the pieces of work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pulse {
    beat: fn(),
    pieces: u32,
}

impl Pulse {
    /// Calls `beat` after each [`PIECES`] pieces.
    pub fn new(beat: fn()) -> Self {
        Self { beat, pieces: 0 }
    }

    /// A piece of work was done.
    #[inline]
    pub fn worked(&mut self) {
        self.pieces += 1;
        if self.pieces == PIECES {
            self.pieces = 0;
            (self.beat)();
        }
    }
}

impl Default for Pulse {
    /// Nobody watches.
    fn default() -> Self {
        Self::new(|| ())
    }
}
