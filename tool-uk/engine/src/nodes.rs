//! The XenStore nodes of a guest: those that Xen's own toolstack writes for a PVH guest
//! (`libxl__domain_make`, `libxl__build_post`, `libxl__device_console_add`), with its permissions.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use builder::pvh::{CONSOLE_GFN, CONSOLE_OWNER, STORE_GFN};

use crate::call::Call;

/// Bytes of console output that a console daemon is asked to keep, what `xl` writes.
const CONSOLE_LIMIT: &str = "1048576";

/// What nodes are about.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The guest.
    pub domid: u16,
    /// Its name.
    pub name: &'a str,
    /// Its unique number.
    pub uuid: Uuid,
    /// Its RAM in KiB.
    pub memory_kib: u32,
    /// Its vCPUs.
    pub vcpus: u8,
    /// Its port for XenStore.
    pub store_port: u32,
    /// Its port for the console.
    pub console_port: u32,
}

/// A unique number of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid(u128);

impl Uuid {
    /// The number of the guest `domid` in the boot with this random number: the same in every life
    /// of tool-uk (splitmix64, marked as a random UUID: RFC 9562, version 4).
    pub fn of(nonce: u64, domid: u16) -> Self {
        let mix = |step: u64| {
            let mut word = nonce
                .wrapping_add(u64::from(domid) << 32)
                .wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ word >> 31
        };
        let random = u128::from(mix(1)) << 64 | u128::from(mix(2));
        let marks = 0xf000_u128 << 64 | 0xc000_u128 << 48;
        Self(random & !marks | 0x4000_u128 << 64 | 0x8000_u128 << 48)
    }
}

impl core::fmt::Display for Uuid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let part = |shift: u32, bits: u32| self.0 >> shift & ((1 << bits) - 1);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            part(96, 32),
            part(80, 16),
            part(64, 16),
            part(48, 16),
            part(0, 48)
        )
    }
}

/// Who may use a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rights {
    /// As its parent.
    Inherit,
    /// Privileged domains; the guest may read.
    GuestReads,
    /// The guest.
    GuestOwns,
    /// Privileged domains only.
    Hidden,
}

/// The paths below which a guest's nodes lie.
pub fn roots(domid: u16, uuid: Uuid) -> [String; 3] {
    [format!("/local/domain/{domid}"), format!("/vm/{uuid}"), format!("/libxl/{domid}")]
}

/// Where the guest's name is.
pub fn name_path(domid: u16) -> String {
    format!("/local/domain/{domid}/name")
}

/// Collects requests.
struct Writer {
    domid: u16,
    calls: Vec<Call>,
}

impl Writer {
    fn directory(&mut self, path: &str, rights: Rights) {
        self.calls.push(Call::make_directory(path));
        self.protect(path, rights);
    }

    fn value(&mut self, path: &str, value: &str) {
        self.calls.push(Call::write(path, value));
    }

    fn protect(&mut self, path: &str, rights: Rights) {
        let (reader, owner) = (format!("r{}", self.domid), format!("n{}", self.domid));
        let permissions: &[&str] = match rights {
            Rights::Inherit => return,
            Rights::GuestReads => &["n0", &reader],
            Rights::GuestOwns => &[&owner],
            Rights::Hidden => &["n0"],
        };
        self.calls.push(Call::set_permissions(path, permissions));
    }
}

/// The requests that write all nodes of a new guest.
pub fn create(facts: &Facts<'_>) -> Vec<Call> {
    let mut writer = Writer { domid: facts.domid, calls: Vec::new() };
    let [domain, vm, libxl] = roots(facts.domid, facts.uuid);
    for root in [&domain, &vm, &libxl] {
        // What a former guest of that number left is not the new one's.
        writer.calls.push(Call::make_directory(root));
        writer.calls.push(Call::remove(root));
    }
    writer.directory(&domain, Rights::GuestReads);
    writer.directory(&vm, Rights::GuestReads);
    writer.directory(&libxl, Rights::Hidden);
    writer.value(&format!("{libxl}/type"), "pvh");
    writer.value(&format!("{vm}/name"), facts.name);
    writer.value(&format!("{vm}/uuid"), &facts.uuid.to_string());

    writer.value(&format!("{domain}/vm"), &vm);
    writer.value(&format!("{domain}/name"), facts.name);
    writer.value(&format!("{domain}/domid"), &facts.domid.to_string());
    for directory in ["cpu", "memory", "device", "control"] {
        writer.directory(&format!("{domain}/{directory}"), Rights::Inherit);
    }
    for owned in [
        "control/shutdown",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
        "control/sysrq",
        "device/suspend/event-channel",
        "data",
        "drivers",
        "feature",
        "attr",
        "error",
    ] {
        writer.directory(&format!("{domain}/{owned}"), Rights::GuestOwns);
    }
    for feature in ["multiprocessor-suspend", "xs_reset_watches"] {
        writer.value(&format!("{domain}/control/platform-feature-{feature}"), "1");
    }
    for vcpu in 0..facts.vcpus {
        writer.value(&format!("{domain}/cpu/{vcpu}/availability"), "online");
    }
    let memory = facts.memory_kib.to_string();
    writer.value(&format!("{domain}/memory/static-max"), &memory);
    writer.value(&format!("{domain}/memory/target"), &memory);
    writer.value(&format!("{domain}/store/port"), &facts.store_port.to_string());
    writer.value(&format!("{domain}/store/ring-ref"), &STORE_GFN.to_string());
    console(&mut writer, &format!("{domain}/console"), facts.console_port);
    writer.calls
}

fn console(writer: &mut Writer, path: &str, port: u32) {
    for (name, value) in [
        ("backend-id", CONSOLE_OWNER.to_string().as_str()),
        ("limit", CONSOLE_LIMIT),
        ("type", "xenconsoled"),
        ("output", "pty"),
        ("tty", ""),
        ("port", port.to_string().as_str()),
        ("ring-ref", CONSOLE_GFN.to_string().as_str()),
    ] {
        writer.value(&format!("{path}/{name}"), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_stable_marked_and_different_for_each_guest() {
        let uuid = Uuid::of(7, 16).to_string();
        assert_eq!(uuid, Uuid::of(7, 16).to_string());
        assert_eq!((uuid.len(), &uuid[14..15]), (36, "4"));
        assert!(matches!(&uuid[19..20], "8" | "9" | "a" | "b"), "{uuid}");
        assert_ne!(uuid, Uuid::of(7, 17).to_string());
        assert_ne!(uuid, Uuid::of(8, 16).to_string());
    }
}
