//! Whether the replicas of the XenStore hold the same: each publishes the digest of its state after
//! every change, and where they have come equally far they must agree.

use abi::Control;
use fabric::SharedMemory;
use fabric::epitaph::Reason;
use fabric::health::{DIGESTS, Digest};
use recovery::Event;
use system::Role;

use crate::host::{Host, UNITS};
use crate::relay;

/// Time from a replica's word to the comparison: what was written meanwhile is compared at once,
/// and the others have come as far. A difference is to be found 5 ms after the write.
const COMPARE_NS: u64 = 1_000_000;

/// Looks for the replica whose digest nobody shares, while at least two others agree on the same
/// index. One against one, nobody knows who is right.
fn odd_one_out(digests: &[Option<Digest>]) -> Option<usize> {
    let shared = digests.iter().flatten().find(|digest| {
        let equal = digests.iter().flatten().filter(|other| other == digest);
        equal.count() > 1
    })?;
    let differs = |digest: Digest| digest.index == shared.index && digest.sum != shared.sum;
    digests.iter().position(|digest| digest.is_some_and(differs))
}

impl<C: Control, F: SharedMemory + Copy> Host<'_, C, F> {
    /// A replica has done something: its state is compared with that of the others soon, if there
    /// are any. Without them the timer would only come in the midst of somebody's work.
    pub fn compare_soon(&mut self) {
        if relay::is_alone() {
            return;
        }
        let due_ns = self.xen.now_ns() + COMPARE_NS;
        self.compare_at_ns.get_or_insert(due_ns);
    }

    /// Compares the replicas, if that is due. One that differs begins anew, with what the others
    /// have.
    pub fn compare_replicas(&mut self) {
        if self.compare_at_ns.is_none_or(|at_ns| at_ns > self.xen.now_ns()) {
            return;
        }
        self.compare_at_ns = None;
        for place in 0..DIGESTS {
            let mut digests = [None; UNITS];
            for unit in system::SYSTEM.all_with_role(Role::XenStore) {
                if self.supervisor.is_serving(unit) {
                    digests[unit] = self.units[unit].digest(place);
                }
            }
            if let Some(unit) = odd_one_out(&digests) {
                self.units[unit].is_distrusted = true;
                self.tell_supervisor(unit, Event::Failed(Reason::Diverged));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_odd_when_two_others_agree_at_its_index() {
        let digest = |index, sum| Some(Digest { index, sum });
        let odd = |digests: [Option<Digest>; 3]| odd_one_out(&digests);
        assert_eq!(odd([digest(3, 7), digest(3, 7), digest(3, 7)]), None);
        assert_eq!(odd([digest(3, 7), digest(3, 8), digest(3, 7)]), Some(1));
        assert_eq!(odd([digest(3, 8), digest(3, 7), digest(3, 7)]), Some(0));
        assert_eq!(odd([digest(3, 7), digest(19, 8), digest(3, 7)]), None, "further than they");
        assert_eq!(odd([digest(3, 7), digest(3, 8), None]), None, "one against one");
        assert_eq!(odd([digest(3, 7), digest(3, 8), digest(3, 9)]), None, "nobody agrees");
        assert_eq!(odd([None; 3]), None);
    }
}
