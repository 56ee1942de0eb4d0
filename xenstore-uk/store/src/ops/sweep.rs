//! Removes what belonged to domains that are gone, in bounded steps.
//!
//! A domain's nodes go with all below them, and entries naming it leave every permission list, so
//! that a later domain of the same id inherits nothing (`xenstore.txt`; XSA-322).

use alloc::vec::Vec;
use wire::{Errno, Permission};

use crate::effects::Effects;
use crate::state::State;
use crate::tree::Descend;

/// Nodes looked at in one step: some ten microseconds, so that no request waits longer for it.
pub const SWEEP_STEP: usize = 256;

/// Nodes removed in one step: some 3 us each, altogether well below the time after which a unit
/// counts as hung.
const REMOVED_PER_STEP: usize = 32;

/// What one step of a sweep may do.
#[derive(Clone, Copy, Debug)]
struct Budget {
    /// Nodes looked at.
    looks: usize,
    /// Nodes removed.
    removals: usize,
}

impl Budget {
    const STEP: Self = Self { looks: SWEEP_STEP, removals: REMOVED_PER_STEP };
    const WHOLE: Self = Self { looks: usize::MAX, removals: usize::MAX };
}

/// What a sweep does to one node.
enum Clean {
    Remove(Vec<u8>),
    RemoveLeaf(Vec<u8>),
    Strip(Vec<u8>, Vec<Permission>),
}

impl State {
    /// Whether anything of a domain that is gone remains.
    pub fn needs_sweep(&self) -> bool {
        !self.sweeps.is_empty()
    }

    /// The oldest sweep: its domain, and how far it is.
    pub(crate) fn next_sweep(&self) -> Option<(u16, &[u8])> {
        self.sweeps.front().map(|sweep| (sweep.domid, &sweep.cursor[..]))
    }

    /// One step of the sweep after `domid`, behind `cursor`. Answers whether there was one.
    pub(crate) fn sweep_from(&mut self, domid: u16, cursor: &[u8], fx: &mut dyn Effects) -> bool {
        let at = self.sweeps.iter().position(|sweep| sweep.domid == domid);
        let Some(mut sweep) = at.and_then(|at| self.sweeps.remove(at)) else { return false };
        sweep.cursor.clear();
        sweep.cursor.extend_from_slice(cursor);
        self.sweeps.push_front(sweep);
        self.sweep(fx);
        true
    }

    /// One step of the oldest sweep.
    pub fn sweep(&mut self, fx: &mut dyn Effects) {
        let Some(mut sweep) = self.sweeps.pop_front() else { return };
        let room = self.sweep_step(sweep.domid, &mut sweep.cursor, Budget::STEP, fx);
        if room && sweep.cursor.is_empty() {
            self.end_sweep(sweep.domid, sweep.record, fx);
        } else {
            self.sweeps.push_front(sweep);
        }
    }

    /// Ends the sweep of a domain id that is about to be used again.
    pub(crate) fn finish_sweep(&mut self, domid: u16, fx: &mut dyn Effects) -> Result<(), Errno> {
        let at = self.sweeps.iter().position(|sweep| sweep.domid == domid);
        let Some(mut sweep) = at.and_then(|at| self.sweeps.remove(at)) else { return Ok(()) };
        if self.sweep_step(domid, &mut sweep.cursor, Budget::WHOLE, fx) {
            self.end_sweep(domid, sweep.record, fx);
            Ok(())
        } else {
            self.sweeps.push_back(sweep);
            Err(Errno::NoSpace)
        }
    }

    fn end_sweep(&mut self, domid: u16, record: u32, fx: &mut dyn Effects) {
        let mut stripped = false;
        for permissions in &mut self.special {
            let before = permissions.len();
            let mut index = 0;
            permissions.retain(|entry| {
                index += 1;
                index == 1 || entry.domid != domid
            });
            stripped |= permissions.len() != before;
        }
        if stripped {
            self.put_settings(fx);
        }
        fx.delete(record);
        self.records.give(record);
        if self.domains.get(&domid).is_some_and(|domain| domain.introduced.is_none()) {
            self.domains.remove(&domid);
        }
    }

    /// Answers whether there was room for all of it; else the sweep begins again later.
    fn sweep_step(
        &mut self,
        domid: u16,
        cursor: &mut Vec<u8>,
        budget: Budget,
        fx: &mut dyn Effects,
    ) -> bool {
        let (mut work, mut left) = (Vec::new(), budget.removals);
        // Behind which node to go on, when there is more to be removed than in one step.
        let (mut last, mut is_full) = (cursor.clone(), false);
        let tree = self.tree.clone();
        tree.walk(cursor, budget.looks, &mut |path, node, _| {
            if is_full {
                return Descend::No;
            }
            // The root has no parent to be removed from.
            if node.owner() == domid && path.len() > 1 {
                let below = tree.bottom_up(path, left);
                left -= below.len();
                if below.last().is_some_and(|last| last == path) {
                    work.push(Clean::Remove(path.to_vec()));
                } else {
                    is_full = true;
                    work.extend(below.into_iter().map(Clean::RemoveLeaf));
                }
                return Descend::No;
            }
            last.clear();
            last.extend_from_slice(path);
            if node.permissions().skip(1).any(|entry| entry.domid == domid) {
                let mut kept: Vec<Permission> = node.permissions().take(1).collect();
                kept.extend(node.permissions().skip(1).filter(|entry| entry.domid != domid));
                work.push(Clean::Strip(path.to_vec(), kept));
            }
            Descend::Yes
        });
        drop(tree);
        if is_full {
            *cursor = last;
        }
        for clean in work {
            match clean {
                Clean::Remove(path) => self.remove_live(&path, fx),
                Clean::RemoveLeaf(path) => self.remove_leaf(&path, fx),
                Clean::Strip(path, kept) => {
                    if !fx.has_reserve(wire::MESSAGE_MAX) {
                        cursor.clear();
                        return false;
                    }
                    self.put_live(&path, Some(&kept), None, fx);
                }
            }
        }
        true
    }
}
