//! Finds answers that never come: a thread looks at how long a connection has waited.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often the waiting is looked at: a tenth of the shortest sensible limit.
const LOOK: Duration = Duration::from_millis(100);

/// Since when a connection waits for an answer.
pub struct Pulse {
    origin: Instant,
    /// Nanoseconds since `origin` plus one, or zero when nothing is awaited.
    since: AtomicU64,
}

impl Pulse {
    /// A connection that awaits nothing.
    pub fn new() -> Self {
        Pulse { origin: Instant::now(), since: AtomicU64::new(0) }
    }

    /// An answer is awaited from now on.
    pub fn awaiting(&self) {
        let now = self.origin.elapsed().as_nanos() as u64;
        self.since.store(now + 1, Ordering::Relaxed);
    }

    /// The answer has come.
    pub fn answered(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// How long an answer has been awaited.
    pub fn waiting(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.origin.elapsed().saturating_sub(Duration::from_nanos(since - 1)),
        }
    }
}

/// Calls `lost` once when `pulse` has waited longer than `limit`.
pub fn watch(pulse: std::sync::Arc<Pulse>, limit: Duration, lost: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        while pulse.waiting() < limit {
            thread::sleep(LOOK);
        }
        lost();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, mpsc::channel};

    #[test]
    fn an_answer_that_never_comes_is_noticed_and_one_that_comes_is_not() {
        let pulse = Arc::new(Pulse::new());
        let (sender, receiver) = channel();
        watch(pulse.clone(), Duration::from_millis(300), move || {
            let _ = sender.send(());
        });
        pulse.awaiting();
        pulse.answered();
        assert!(receiver.recv_timeout(Duration::from_millis(600)).is_err());
        pulse.awaiting();
        assert!(receiver.recv_timeout(Duration::from_secs(10)).is_ok());
    }
}
