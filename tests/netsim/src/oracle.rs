//! The oracles of `docs/NET-ORACLES.md`. They see the frontends' rings and pages, the wire, and the
//! copies asked for; nothing of the code under test.

use std::collections::{BTreeMap, BTreeSet};

use crate::content::Unit;

/// Which promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Oracle {
    /// N1: a frame for the wire was lost.
    Sent,
    /// N2: a frame for another guest was lost.
    Delivered,
    /// N3: a flow's frames changed places.
    Order,
    /// N4: a grant was used after its release, or a response is not one.
    Grants,
    /// N5: a guest found bytes that are not for it.
    Privacy,
    /// N6: buffers leaked or exceed their bound.
    Bounded,
    /// N7: a ring index moved wrongly.
    Connected,
    /// N8: the device touched foreign memory.
    Confined,
    /// N9: a request got no answer.
    Answers,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub oracle: Oracle,
    /// What was seen.
    pub what: String,
}

/// Where a frame was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Wire,
    Guest(u8),
}

#[derive(Debug, Default)]
pub(crate) struct Oracles {
    pub violations: Vec<Violation>,
    seen: BTreeSet<(Place, Unit)>,
    last: BTreeMap<(Place, u8, u8, u16), (u32, u32)>,
    /// What must appear where before the run ends.
    expected: BTreeSet<(Place, Unit)>,
}

impl Oracles {
    pub(crate) fn fail(&mut self, oracle: Oracle, what: String) {
        self.violations.push(Violation { oracle, what });
    }

    pub(crate) fn check(&mut self, oracle: Oracle, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(oracle, what());
        }
    }

    pub(crate) fn expect(&mut self, place: Place, unit: Unit) {
        self.expected.insert((place, unit));
    }

    /// A unit was seen: its first appearance must be in order.
    pub(crate) fn saw(&mut self, place: Place, unit: Unit) {
        if !self.seen.insert((place, unit)) {
            return;
        }
        let position = (unit.number, unit.part);
        let last = self.last.entry((place, unit.from, unit.to, unit.flow)).or_insert(position);
        let is_late = *last > position;
        let former = *last;
        *last = position.max(former);
        self.check(Oracle::Order, !is_late, || format!("{unit:?} at {place:?} after {former:?}"));
    }

    /// Everything that had to appear has. `may_drop`: frames between guests were dropped at a
    /// stated bound, and counted.
    pub(crate) fn finish(&mut self, may_drop: bool) {
        let missing: Vec<_> = self.expected.difference(&self.seen).copied().collect();
        for (place, unit) in missing {
            match place {
                Place::Wire => self.fail(Oracle::Sent, format!("{unit:?} never left")),
                Place::Guest(_) if may_drop => {}
                Place::Guest(_) => {
                    self.fail(Oracle::Delivered, format!("{unit:?} never reached {place:?}"));
                }
            }
        }
    }
}
