//! Signs of life from within one long change.

use core::sync::atomic::{AtomicU32, Ordering};

use fabric::health::HealthWriter;
use runtime::Survivor;

use crate::Fabric;

/// Signs that one step of the loop may give: twice as many as it takes to commit the removal of as
/// many nodes, and as deep, as a guest may own. A change that never ends is a hang all the same, if
/// one that is seen a second later.
const SIGNS_MAX: u32 = 8_192;

/// Our health page.
static HEALTH: Survivor<HealthWriter<Fabric>> = Survivor::new();

/// Signs left in this step.
static LEFT: AtomicU32 = AtomicU32::new(0);

/// Begins a life.
pub fn begin(health: Fabric) {
    // What a former life left is replaced, wherever that ended.
    HEALTH.recover();
    HEALTH.put(HealthWriter::new(health));
}

/// Begins a step.
pub fn renew() {
    LEFT.store(SIGNS_MAX, Ordering::Relaxed);
}

/// Gives a sign, if one is left.
pub fn beat() {
    let left = LEFT.load(Ordering::Relaxed);
    if left > 0 {
        LEFT.store(left - 1, Ordering::Relaxed);
        HEALTH.read(|health| health.add_progress(1));
    }
}
