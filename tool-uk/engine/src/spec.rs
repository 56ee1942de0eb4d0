//! What guests are wanted.

/// What to do with a guest that stopped; the words are those of `xl`'s configuration files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// Remove it.
    Destroy,
    /// Remove it and create it anew.
    Restart,
    /// Keep its memory for inspection.
    Preserve,
}

/// A guest that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// Its name, unique among all.
    pub name: &'a str,
    /// Its RAM in KiB.
    pub memory_kib: u32,
    /// Its vCPUs.
    pub vcpus: u8,
    /// Its network interfaces.
    pub vifs: u8,
    /// Nodes that it may own in XenStore; 0: as many as XenStore grants by itself.
    pub store_nodes: u32,
    /// Archive entry of its kernel.
    pub kernel: &'a str,
    /// Archive entry of its ramdisk; empty: none.
    pub ramdisk: &'a str,
    /// Its kernel's command line.
    pub command_line: &'a str,
    /// After a crash.
    pub on_crash: OnStop,
    /// After a reboot.
    pub on_reboot: OnStop,
    /// After it powered itself off.
    pub on_poweroff: OnStop,
}

/// What this life of tool-uk is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Number of this life.
    pub epoch: u32,
    /// Random number of this boot of the host.
    pub nonce: u64,
    /// Domid of the first guest.
    pub first_guest: u16,
    /// Domid of the last guest.
    pub last_guest: u16,
    /// Domid of the unit that serves network interfaces, if the host has one.
    pub net: Option<u16>,
}
