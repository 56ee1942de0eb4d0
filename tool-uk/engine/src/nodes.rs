//! The XenStore nodes of a guest: those that Xen's own toolstack writes for a PVH guest
//! (`libxl__domain_make`, `libxl__build_post`, `libxl__device_console_add`,
//! `libxl__device_vif_add`), with its permissions.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use builder::pvh::{CONSOLE_GFN, CONSOLE_OWNER, STORE_GFN};
use store_client::Call;

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
    /// Its network interfaces.
    pub vifs: u8,
    /// Who serves them.
    pub net: Option<u16>,
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
    /// The guest; this service may read.
    GuestOwnsFor(u16),
    /// This service; the guest may read.
    ServiceOwns(u16),
}

/// The paths below which a guest's nodes lie.
pub fn roots(domid: u16, uuid: Uuid, net: Option<u16>) -> Vec<String> {
    let own = [format!("/local/domain/{domid}"), format!("/vm/{uuid}"), format!("/libxl/{domid}")];
    own.into_iter().chain(net.map(|net| vif_root(net, domid))).collect()
}

/// Where the unit that serves network interfaces finds those of a guest.
fn vif_root(net: u16, domid: u16) -> String {
    format!("{}/{domid}", vif_backends(net))
}

fn vif_backends(net: u16) -> String {
    format!("/local/domain/{net}/backend/vif")
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
            Rights::GuestOwnsFor(service) => &[&owner, &format!("r{service}")],
            Rights::ServiceOwns(service) => &[&format!("n{service}"), &reader],
        };
        self.calls.push(Call::set_permissions(path, permissions));
    }
}

/// The requests that write all nodes of a new guest.
pub fn create(facts: &Facts<'_>) -> Vec<Call> {
    let mut writer = Writer { domid: facts.domid, calls: Vec::new() };
    let all = roots(facts.domid, facts.uuid, facts.net);
    let [domain, vm, libxl] = [&all[0], &all[1], &all[2]];
    for root in &all {
        // What a former guest of that number left is not the new one's.
        writer.calls.push(Call::make_directory(root));
        writer.calls.push(Call::remove(root));
    }
    writer.directory(domain, Rights::GuestReads);
    writer.directory(vm, Rights::GuestReads);
    writer.directory(libxl, Rights::Hidden);
    writer.value(&format!("{libxl}/type"), "pvh");
    writer.value(&format!("{vm}/name"), facts.name);
    writer.value(&format!("{vm}/uuid"), &facts.uuid.to_string());

    writer.value(&format!("{domain}/vm"), vm);
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

/// The requests that write the nodes of its network interfaces.
pub fn interfaces(facts: &Facts<'_>) -> Vec<Call> {
    let mut writer = Writer { domid: facts.domid, calls: Vec::new() };
    if let Some(net) = facts.net {
        // The directories above belong to nobody else, and are made before the first guest's.
        writer.directory(&vif_backends(net), Rights::ServiceOwns(net));
        writer.directory(&vif_root(net, facts.domid), Rights::ServiceOwns(net));
        (0..facts.vifs).for_each(|handle| vif(&mut writer, net, handle));
    }
    writer.calls
}

/// The address of a guest's interface: Xen's prefix, the guest's number, the interface's.
fn vif_address(domid: u16, handle: u8) -> String {
    let [high, low] = domid.to_be_bytes();
    format!("00:16:3e:{high:02x}:{low:02x}:{handle:02x}")
}

fn vif(writer: &mut Writer, net: u16, handle: u8) {
    let domid = writer.domid;
    let front = format!("/local/domain/{domid}/device/vif/{handle}");
    let back = format!("{}/{handle}", vif_root(net, domid));
    let address = vif_address(domid, handle);
    let number = handle.to_string();
    writer.directory(&back, Rights::ServiceOwns(net));
    for (name, value) in [
        ("frontend", front.as_str()),
        ("frontend-id", &domid.to_string()),
        ("online", "1"),
        ("state", "1"),
        ("handle", &number),
        ("type", "vif"),
        ("mac", &address),
    ] {
        writer.value(&format!("{back}/{name}"), value);
    }
    writer.directory(&front, Rights::GuestOwnsFor(net));
    for (name, value) in [
        ("backend", back.as_str()),
        ("backend-id", &net.to_string()),
        ("state", "1"),
        ("handle", &number),
        ("mac", &address),
    ] {
        writer.value(&format!("{front}/{name}"), value);
    }
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
    fn an_interface_has_both_ends_and_an_address_of_its_own() {
        let mut writer = Writer { domid: 0x123, calls: Vec::new() };
        vif(&mut writer, 4, 2);
        let back = "/local/domain/4/backend/vif/291/2";
        let front = "/local/domain/291/device/vif/2";
        let has = |call: Call| writer.calls.contains(&call);
        assert!(has(Call::write(&format!("{back}/frontend"), front)));
        assert!(has(Call::write(&format!("{front}/backend"), back)));
        assert!(has(Call::write(&format!("{front}/mac"), "00:16:3e:01:23:02")));
        assert!(has(Call::set_permissions(back, &["n4", "r291"])));
        assert!(has(Call::set_permissions(front, &["n291", "r4"])));
    }

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
