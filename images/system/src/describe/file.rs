//! The fields of a description file, as they stand in it.

use serde::Deserialize;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Version of this format: 1.
    pub version: u32,
    /// Bounds of the host.
    pub limits: Limits,
    /// By what units are judged unless they say otherwise.
    pub recovery: Recovery,
    /// The units.
    #[serde(rename = "unit")]
    pub units: Vec<Unit>,
    /// The guests.
    #[serde(rename = "guest", default)]
    pub guests: Vec<Guest>,
}

/// Bounds of the host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Connection slots of the XenStore.
    pub slots: u32,
    /// Domid of the first guest.
    pub first_guest_domid: u32,
    /// Pages that the fabric may take.
    pub fabric_pages: u32,
    /// Size of the archive, in MiB.
    pub archive_mib: u32,
}

/// Recoveries in a row per rung.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tries {
    /// Microresets.
    pub microreset: u32,
    /// Microreboots.
    pub microreboot: u32,
    /// Rebuilds.
    pub rebuild: u32,
}

/// By what a unit is judged and recovered: every value.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// CPU time with work outstanding and without progress.
    pub hang_limit_us: u64,
    /// CPU time from the start of a life to service.
    pub start_limit_us: u64,
    /// Time between two pings of an idle unit.
    pub ping_interval_ms: u64,
    /// Time in service below which a failure is a repeated one.
    pub min_run_ms: u64,
    /// Delay before a second recovery in a row.
    pub backoff_ms: u64,
    /// The longest delay.
    pub backoff_max_ms: u64,
    /// Time in service after which the ladder starts anew.
    pub healthy_ms: u64,
    /// Recoveries in a row per rung.
    pub tries: Tries,
}

/// By what a unit is judged and recovered: the values that differ from the common ones.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoveryPart {
    /// See [`Recovery`].
    pub hang_limit_us: Option<u64>,
    /// See [`Recovery`].
    pub start_limit_us: Option<u64>,
    /// See [`Recovery`].
    pub ping_interval_ms: Option<u64>,
    /// See [`Recovery`].
    pub min_run_ms: Option<u64>,
    /// See [`Recovery`].
    pub backoff_ms: Option<u64>,
    /// See [`Recovery`].
    pub backoff_max_ms: Option<u64>,
    /// See [`Recovery`].
    pub healthy_ms: Option<u64>,
    /// See [`Recovery`].
    pub tries: Option<Tries>,
}

impl Recovery {
    /// These values with those that `part` sets.
    pub fn with(&self, part: &RecoveryPart) -> Self {
        Self {
            hang_limit_us: part.hang_limit_us.unwrap_or(self.hang_limit_us),
            start_limit_us: part.start_limit_us.unwrap_or(self.start_limit_us),
            ping_interval_ms: part.ping_interval_ms.unwrap_or(self.ping_interval_ms),
            min_run_ms: part.min_run_ms.unwrap_or(self.min_run_ms),
            backoff_ms: part.backoff_ms.unwrap_or(self.backoff_ms),
            backoff_max_ms: part.backoff_max_ms.unwrap_or(self.backoff_max_ms),
            healthy_ms: part.healthy_ms.unwrap_or(self.healthy_ms),
            tries: part.tries.unwrap_or(self.tries),
        }
    }
}

/// What a unit does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A XenStore.
    Xenstore,
    /// The network.
    Net,
    /// The toolstack.
    Tool,
}

/// Pages of the regions of a unit; 0 = none. Its health, control and kick pages go without saying.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Regions {
    /// Text log.
    pub log: u32,
    /// Durable slots of the XenStore.
    pub slots: u32,
    /// Areas of XenStore connections.
    pub areas: u32,
    /// Term, vote and log of a replica of the XenStore.
    pub raft_log: u32,
    /// Its messages to the others.
    pub raft_mail: u32,
    /// Operations asked of the orchestrator.
    pub requests: u32,
    /// The orchestrator's answers.
    pub replies: u32,
    /// Journal.
    pub journal: u32,
    /// Guests' console output.
    pub console_out: u32,
}

/// A unit.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Domain id.
    pub domid: u32,
    /// Archive entry with its image.
    pub entry: String,
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Units that have to serve first.
    #[serde(default)]
    pub depends_on: Vec<String>,
    /// Connection slot on which it is a client of the XenStore.
    pub store_slot: Option<u32>,
    /// NICs that it can drive: it gets the first of them that the machine has.
    #[serde(default)]
    pub nics: Vec<NicModel>,
    /// Its regions of the fabric.
    #[serde(default)]
    pub regions: Regions,
    /// What differs from the common recovery values.
    #[serde(default)]
    pub recovery: RecoveryPart,
}

/// A NIC that net-uk has a driver for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum NicModel {
    /// Intel 82574L.
    #[serde(rename = "e1000e")]
    E1000e,
    /// A modern virtio-net device.
    #[serde(rename = "virtio-net")]
    VirtioNet,
}

/// What to do with a guest that stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnStop {
    /// Remove it.
    Destroy,
    /// Remove it and create it anew.
    Restart,
    /// Keep its memory.
    Preserve,
}

/// A guest, or several of a kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Name; with a count above 1, `-1`, `-2`… are appended.
    pub name: String,
    /// How many of them.
    #[serde(default = "one")]
    pub count: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Network interfaces.
    #[serde(default)]
    pub vifs: u32,
    /// Nodes that it may own in the XenStore; 0 = as many as the store grants by itself.
    #[serde(default)]
    pub store_nodes: u32,
    /// Archive entry with the kernel.
    pub kernel: String,
    /// Archive entry with the initial RAM disk; empty = none.
    #[serde(default)]
    pub ramdisk: String,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// After a crash.
    pub on_crash: OnStop,
    /// After a reboot.
    pub on_reboot: OnStop,
    /// After a power-off.
    pub on_poweroff: OnStop,
}

fn one() -> u32 {
    1
}
