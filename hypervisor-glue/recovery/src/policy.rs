//! The numbers by which one unit is judged and recovered.

/// The numbers by which one unit is judged and recovered; they come from the system description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// CPU time that a unit may receive with work outstanding and without progress, in ns. Elapsed
    /// time never counts: a unit that gets no CPU is starved, not hung.
    pub hang_limit_ns: u64,
    /// CPU time that a unit may receive from the start of a life until it serves, in ns.
    pub start_limit_ns: u64,
    /// Elapsed time between two pings of an idle unit, in ns. Long: an idle unit is healthy by
    /// definition, and a ping wakes it.
    pub ping_interval_ns: u64,
    /// Elapsed time in service after which a failure no longer counts as a repeated one, in ns.
    pub min_run_ns: u64,
    /// Delay before the second recovery in a row, in ns; doubles with each further one.
    pub backoff_ns: u64,
    /// The delay never grows beyond this, in ns: the ladder ends in service, however late.
    pub backoff_max_ns: u64,
    /// Elapsed time in service after which the ladder starts at its lowest rung again, in ns.
    pub healthy_ns: u64,
    /// Recoveries in a row by microreset, microreboot and rebuild before the next rung is taken.
    /// 0 leaves a rung out. Global restarts are not counted: nothing is above them.
    pub tries: [u8; 3],
}

/// What the supervisor has to know of one unit.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// By what it is judged.
    pub policy: Policy,
    /// Indices of the units that have to serve before it is started.
    pub depends_on: &'static [usize],
}
