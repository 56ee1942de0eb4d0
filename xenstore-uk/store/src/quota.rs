//! What one domain may take of the store (names and defaults of C xenstored).

/// A limited resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Nodes that a domain owns.
    Nodes,
    /// Watches of a connection.
    Watches,
    /// Requests without a reply taken; this server takes one at a time, so it never matters.
    Outstanding,
    /// Bytes that a domain's nodes, watches and transactions take.
    Memory,
    /// Open transactions.
    Transactions,
    /// Nodes accessed in one transaction.
    TransactionNodes,
    /// Permission entries of one node.
    Permissions,
    /// Bytes of a path below the domain's own directory.
    PathLength,
    /// Bytes of one node's value and permissions.
    NodeSize,
}

/// Number of quotas.
pub const QUOTAS: usize = 9;

/// Stands for "there is no such soft quota".
pub const ABSENT: u32 = u32::MAX;

impl Quota {
    /// All of them, in the order of C xenstored.
    pub const ALL: [Self; QUOTAS] = [
        Self::Nodes,
        Self::Watches,
        Self::Outstanding,
        Self::Memory,
        Self::Transactions,
        Self::TransactionNodes,
        Self::Permissions,
        Self::PathLength,
        Self::NodeSize,
    ];

    /// Its name in GET_QUOTA, SET_QUOTA and CONTROL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Watches => "watches",
            Self::Outstanding => "outstanding",
            Self::Memory => "memory",
            Self::Transactions => "transactions",
            Self::TransactionNodes => "transaction-nodes",
            Self::Permissions => "node-permissions",
            Self::PathLength => "path-max",
            Self::NodeSize => "node-size",
        }
    }

    /// What it limits, for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::Nodes => "Nodes per domain",
            Self::Watches => "Watches per domain",
            Self::Outstanding => "Outstanding requests per domain",
            Self::Memory => "Total Xenstore memory per domain",
            Self::Transactions => "Active transactions per domain",
            Self::TransactionNodes => "Max. number of accessed nodes per transaction",
            Self::Permissions => "Max. number of permissions per node",
            Self::PathLength => "Max. length of a node path",
            Self::NodeSize => "Max. size of a node",
        }
    }

    /// The quota with this name, and whether the soft one is meant (`soft-` before the name).
    pub fn from_name(name: &[u8]) -> Option<(Self, Strength)> {
        let (name, strength) = match name.strip_prefix(b"soft-") {
            Some(name) => (name, Strength::Soft),
            None => (name, Strength::Hard),
        };
        let quota = Self::ALL.into_iter().find(|quota| quota.name().as_bytes() == name)?;
        Some((quota, strength))
    }
}

/// Whether passing a limit is refused or reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Refused.
    Hard,
    /// Reported.
    Soft,
}

/// A guest that goes over and under a limit reports it each time: one line a second is enough for
/// an operator, and leaves the log to others.
const REPORT_EVERY_NS: u64 = 1_000_000_000;

/// Which reports of passed limits are told, and how many were not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reports {
    next_ns: u64,
    hidden: u32,
}

impl Reports {
    /// Whether a report is told now: `Some` with the number of those not told since the last one.
    pub fn admit(&mut self, now_ns: u64) -> Option<u32> {
        if now_ns < self.next_ns {
            self.hidden = self.hidden.saturating_add(1);
            return None;
        }
        self.next_ns = now_ns + REPORT_EVERY_NS;
        Some(core::mem::take(&mut self.hidden))
    }
}

/// A set of limits; 0 switches a check off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    hard: [u32; QUOTAS],
    soft: [u32; QUOTAS],
}

impl Default for Limits {
    /// The defaults of C xenstored.
    fn default() -> Self {
        let mut soft = [ABSENT; QUOTAS];
        soft[Quota::Memory as usize] = 2 * 1024 * 1024;
        Self { hard: [1000, 128, 20, 2560 * 1024, 10, 1024, 5, 2048, 2048], soft }
    }
}

impl Limits {
    /// A limit; `None` for a soft quota that does not exist.
    pub fn get(&self, quota: Quota, strength: Strength) -> Option<u32> {
        let limit = match strength {
            Strength::Hard => self.hard[quota as usize],
            Strength::Soft => self.soft[quota as usize],
        };
        (limit != ABSENT).then_some(limit)
    }

    /// Sets a limit; `false` for a soft quota that does not exist.
    pub fn set(&mut self, quota: Quota, strength: Strength, limit: u32) -> bool {
        if limit == ABSENT || self.get(quota, strength).is_none() {
            return false;
        }
        match strength {
            Strength::Hard => self.hard[quota as usize] = limit,
            Strength::Soft => self.soft[quota as usize] = limit,
        }
        true
    }

    /// Whether `value` passes the limit.
    pub fn exceeded(&self, quota: Quota, strength: Strength, value: u32) -> bool {
        self.get(quota, strength).is_some_and(|limit| limit != 0 && value > limit)
    }

    /// All values, hard ones first, as the durable record keeps them.
    pub fn raw(&self) -> impl Iterator<Item = u32> + '_ {
        self.hard.iter().chain(&self.soft).copied()
    }

    /// Limits from the values of [`Limits::raw`]; `None` if there are not enough.
    pub fn from_raw(values: &mut dyn Iterator<Item = u32>) -> Option<Self> {
        let mut limits = Self { hard: [0; QUOTAS], soft: [0; QUOTAS] };
        for limit in limits.hard.iter_mut().chain(&mut limits.soft) {
            *limit = values.next()?;
        }
        Some(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_report_a_second_is_told_and_the_others_are_counted() {
        let mut reports = Reports::default();
        assert_eq!(reports.admit(5), Some(0));
        assert_eq!([6, 7, 1_000_000_004].map(|at| reports.admit(at)), [None; 3]);
        assert_eq!(reports.admit(1_000_000_005), Some(3));
        assert_eq!(reports.admit(3_000_000_000), Some(0));
    }

    #[test]
    fn names() {
        for quota in Quota::ALL {
            assert_eq!(Quota::from_name(quota.name().as_bytes()), Some((quota, Strength::Hard)));
        }
        assert_eq!(Quota::from_name(b"soft-memory"), Some((Quota::Memory, Strength::Soft)));
        assert_eq!(Quota::from_name(b"soft"), None);
        assert_eq!(Quota::ALL.map(|quota| quota as usize), core::array::from_fn(|index| index));
    }

    #[test]
    fn limits() {
        let mut limits = Limits::default();
        assert!(!limits.exceeded(Quota::Nodes, Strength::Hard, 1000));
        assert!(limits.exceeded(Quota::Nodes, Strength::Hard, 1001));
        assert!(limits.set(Quota::Nodes, Strength::Hard, 0));
        assert!(!limits.exceeded(Quota::Nodes, Strength::Hard, u32::MAX));
        assert!(!limits.set(Quota::Nodes, Strength::Soft, 7));
        assert!(!limits.set(Quota::Nodes, Strength::Hard, ABSENT));
        let mut raw = limits.raw();
        assert_eq!(Limits::from_raw(&mut raw), Some(limits));
    }
}
