//! Who is to blame when a ring looks wrong.
//!
//! A connection that is given up answers nothing before its client asks for a reset, and a Linux
//! guest never does. So a second look comes before: an error that is still there is the client's,
//! unless what is remembered of the connection is not what was written of it. An error that is gone
//! was most likely a slip of ours, as of a register that a fault has changed.

use fabric::SharedMemory;
use wire::ring::RingError;

use crate::connection::Area;
use crate::server::{Progress, Server};
use crate::{Fault, Ring};

/// Errors in a row that no second look finds: a client that plays with its ring between two looks
/// is not served for ever.
const DOUBTS_MAX: u8 = 3;

/// Who is.
enum Blame {
    /// The client.
    Client,
    /// Our memory.
    Memory,
    /// Nobody: there is no error any more.
    Nobody,
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// Takes note of how the service of a connection ended. After an error that is nobody's, the
    /// request at hand is looked at again, as after a recovery: it may have been executed.
    pub(super) fn conclude<P: SharedMemory>(
        &mut self,
        client: u16,
        ring: &Ring<P>,
        outcome: Result<(), RingError>,
        progress: &mut Progress,
    ) {
        let Err(error) = outcome else {
            if let Some(connection) = self.connection_mut(client).filter(|_| progress.executed) {
                connection.doubts = 0;
            }
            return;
        };
        match self.blame(client, ring, error) {
            Blame::Client => {
                self.give_up(client, ring, error);
                progress.notify = true;
                progress.more = false;
            }
            Blame::Memory => progress.fault = Some(Fault::Connection),
            Blame::Nobody => progress.more = true,
        }
    }

    fn blame<P: SharedMemory>(&mut self, client: u16, ring: &Ring<P>, error: RingError) -> Blame {
        let key = self.slots.key();
        let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) else {
            return Blame::Nobody;
        };
        let state = &connection.state;
        let saved = Area::new(&self.areas, client, key).read_state(state.life);
        let remembered = (state.consumed(), state.produced);
        if saved.is_none_or(|saved| (saved.consumed(), saved.produced) != remembered) {
            return Blame::Memory;
        }
        // This one is found in messages of ours.
        let is_known = error == RingError::Communication;
        if is_known || connection.shows_error(ring) || connection.doubts + 1 >= DOUBTS_MAX {
            return Blame::Client;
        }
        connection.doubts += 1;
        connection.recovered = true;
        Blame::Nobody
    }
}
