//! Signs of life within one long change: removing a large subtree is one commit, and takes longer
//! than a watcher lets pass without progress.

/// Pieces of work between two signs. A piece takes at most two microseconds, so a sign comes in a
/// quarter of the time after which a unit counts as hung.
const PIECES: u32 = 64;

/// Bytes of a path that take a piece to be followed from the root: sixteen names of one letter.
const PATH_PIECE_LEN: usize = 32;

/// Times that a change of a node follows its path: to find it, to change it, to keep it, and to see
/// who watches.
const LOOKS_PER_CHANGE: u32 = 4;

/// Pieces that the maps of a transaction with a thousand paths take.
const PIECES_PER_NOTE: u32 = 12;

/// Pieces of work in a step of about a tenth of a millisecond, such as clearing the memory of a
/// whole store: a sign ends it.
pub(crate) const LONG_STEP: u32 = PIECES;

/// Pieces of work that following a path takes: a guest may name a thousand levels.
pub(crate) fn look(path: &[u8]) -> u32 {
    1 + (path.len() / PATH_PIECE_LEN) as u32
}

/// Pieces of work that changing the node at a path takes.
pub(crate) fn change(path: &[u8]) -> u32 {
    LOOKS_PER_CHANGE * look(path)
}

/// Pieces of work that noting a change inside of a transaction takes: it finds its way through maps
/// of as many paths as the transaction has touched.
pub(crate) fn note(path: &[u8]) -> u32 {
    PIECES_PER_NOTE + change(path)
}

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

    /// Pieces of work were done.
    #[inline]
    pub fn worked(&mut self, pieces: u32) {
        self.pieces += pieces;
        if self.pieces >= PIECES {
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
