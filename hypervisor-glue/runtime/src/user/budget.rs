//! How long user mode may take.

/// CPU time that one entry may use. A full ring of frames takes a tenth of it.
pub(crate) const BUDGET_NS: u64 = 700_000;

/// The budget of one entry. System time raises the suspicion, CPU time decides: a unit that others
/// keep from the CPU is not blamed for it. So an endless loop that has the CPU for itself ends
/// after twice the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    due_ns: u64,
    /// CPU time of this domain when the suspicion arose.
    ran_ns: Option<u64>,
}

impl Budget {
    /// A fresh one.
    pub(super) fn begin(now_ns: u64) -> Self {
        Self { due_ns: now_ns + BUDGET_NS, ran_ns: None }
    }

    /// When to look at it.
    pub(super) fn due_ns(self) -> u64 {
        self.due_ns
    }

    /// Looks whether it is used up.
    pub(super) fn is_spent(&mut self, now_ns: u64, cpu_time_ns: impl FnOnce() -> u64) -> bool {
        if now_ns < self.due_ns {
            return false;
        }
        let ran_ns = cpu_time_ns();
        let left_ns = match self.ran_ns {
            Some(before_ns) => BUDGET_NS.saturating_sub(ran_ns.saturating_sub(before_ns)),
            None => {
                self.ran_ns = Some(ran_ns);
                BUDGET_NS
            }
        };
        self.due_ns = now_ns + left_ns;
        left_ns == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cpu_time_spends_it() {
        let mut budget = Budget::begin(1_000);
        assert!(!budget.is_spent(2_000, || panic!("not asked")));
        let due_ns = budget.due_ns();
        assert_eq!(due_ns, 1_000 + BUDGET_NS);
        assert!(!budget.is_spent(due_ns, || 5_000_000));
        // Others had the CPU meanwhile.
        let due_ns = budget.due_ns();
        assert!(!budget.is_spent(due_ns, || 5_000_000 + BUDGET_NS / 2));
        assert_eq!(budget.due_ns(), due_ns + BUDGET_NS - BUDGET_NS / 2);
        assert!(budget.is_spent(budget.due_ns(), || 5_000_000 + BUDGET_NS));
    }
}
