//! What the replicated state machine must offer.

/// A committed request as the state machine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Connection that the request came on.
    pub connection: u32,
    /// Its sequence there. Exactly once is the state machine's duty: it remembers each
    /// connection's last executed sequence and the reply, and answers a repetition from there.
    pub sequence: u64,
    /// The request itself.
    pub payload: &'a [u8],
}

/// A piece of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes written.
    pub len: usize,
    /// Whether the snapshot ends here.
    pub last: bool,
}

/// The bytes given do not make a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreError;

/// A deterministic state machine: equal entries in equal order give equal states.
///
/// The machine keeps its state durable by itself (the store: in its slots), so that the log may
/// forget what [`Self::applied`] covers.
pub trait StateMachine {
    /// What a request is answered with.
    type Reply;

    /// Executes the entry at `index`, which is exactly one more than [`Self::applied`].
    fn apply(&mut self, index: u64, request: Request<'_>) -> Self::Reply;

    /// Notes that the entry at `index` holds no request.
    fn advance(&mut self, index: u64);

    /// Index of the last entry whose effect survives a crash of this replica.
    fn applied(&self) -> u64;

    /// Digest of the state at [`Self::applied`]: equal states, equal digests.
    fn digest(&self) -> u64;

    /// Holds on to the present state as snapshot `slot` (below [`crate::MAX_REPLICAS`]), in O(1);
    /// one held there before is let go.
    fn snapshot_open(&mut self, slot: usize);

    /// Writes the next piece of snapshot `slot`, at least one byte unless the snapshot ends.
    fn snapshot_chunk(&mut self, slot: usize, out: &mut [u8]) -> Chunk;

    /// Lets snapshot `slot` go.
    fn snapshot_close(&mut self, slot: usize);

    /// Pieces of a snapshot follow. They are kept beside the present state, which stays whole and
    /// in use until [`Self::restore_close`]: the snapshot may never be completed, and then the old
    /// state may be the only one left.
    fn restore_open(&mut self);

    /// Takes the next piece.
    ///
    /// # Errors
    /// When the bytes make no state; the transfer then starts again.
    fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), RestoreError>;

    /// Puts the state that the pieces make in the place of the present one, durably and at once,
    /// as the state at `index`.
    ///
    /// # Errors
    /// When something is missing or its digest is not `digest`; the present state stays then.
    fn restore_close(&mut self, index: u64, digest: u64) -> Result<(), RestoreError>;
}
