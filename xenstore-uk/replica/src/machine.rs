//! The server as the state machine of consensus.

use alloc::vec::Vec;

use fabric::SharedMemory;
use raft::{Chunk, MAX_REPLICAS, Request, RestoreError, StateMachine};
use store::{Config, Server, Snapshot};

/// A server, snapshots on their way out, and one on its way in.
#[derive(Debug)]
pub(crate) struct Machine<M, A> {
    pub server: Server<M, A>,
    config: Config,
    leaving: [Option<Snapshot>; MAX_REPLICAS],
    arriving: Vec<u8>,
}

impl<M, A> Machine<M, A> {
    pub fn new(server: Server<M, A>, config: Config) -> Self {
        Self { server, config, leaving: [const { None }; MAX_REPLICAS], arriving: Vec::new() }
    }

    /// Another life begins: no transfer goes on.
    pub fn forget(&mut self) {
        self.leaving = [const { None }; MAX_REPLICAS];
        self.arriving = Vec::new();
    }
}

impl<M: SharedMemory + Clone, A: SharedMemory> StateMachine for Machine<M, A> {
    type Reply = ();

    fn apply(&mut self, index: u64, request: Request<'_>) {
        let Request { connection, sequence, payload } = request;
        self.server.apply_entry(index, connection as u16, sequence as u32, payload);
    }

    fn advance(&mut self, index: u64) {
        self.server.note_applied(index);
    }

    fn applied(&self) -> u64 {
        self.server.applied()
    }

    fn digest(&self) -> u64 {
        self.server.state().digest()
    }

    fn snapshot_open(&mut self, slot: usize) {
        self.leaving[slot] = Some(self.server.snapshot());
    }

    fn snapshot_chunk(&mut self, slot: usize, out: &mut [u8]) -> Chunk {
        match &mut self.leaving[slot] {
            Some(snapshot) => {
                let (len, last) = snapshot.read(out);
                Chunk { len, last }
            }
            None => Chunk { len: 0, last: true },
        }
    }

    fn snapshot_close(&mut self, slot: usize) {
        self.leaving[slot] = None;
    }

    fn restore_open(&mut self) {
        self.arriving = Vec::new();
    }

    fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        // No state takes more than its slots do.
        if self.arriving.len() + bytes.len() > self.server.slots().memory().len() {
            return Err(RestoreError);
        }
        self.arriving.extend_from_slice(bytes);
        Ok(())
    }

    fn restore_close(&mut self, index: u64, digest: u64) -> Result<(), RestoreError> {
        let bytes = core::mem::take(&mut self.arriving);
        let restored = self.server.restore(&self.config, &bytes, index, digest);
        restored.map_err(|store::RestoreError| RestoreError)
    }
}
