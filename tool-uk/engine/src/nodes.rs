//! The XenStore nodes of a guest: those that Xen's own toolstack writes for a PVH guest
//! (`libxl__domain_make`, `libxl__build_post`, `libxl__device_generic_add`,
//! `libxl__device_console_add`, `libxl__set_xenstore_nic`), with its permissions.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use builder::pvh::{CONSOLE_GFN, CONSOLE_OWNER, STORE_GFN};
use store_client::Call;

/// Bytes of console output that a console daemon is asked to keep, what `xl` writes.
const CONSOLE_LIMIT: &str = "1048576";

/// What the console's bytes are, in libxl's words.
const CONSOLE_PROTOCOL: &str = "vt100";

/// `XenbusStateInitialising` (`xen/io/xenbus.h`): where both ends of a device begin.
const INITIALISING: &str = "1";

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
    let own = [format!("/local/domain/{domid}"), format!("/vm/{uuid}"), own_root(domid)];
    let served = servers(net).map(|(kind, server)| format!("{}/{domid}", backends(kind, server)));
    own.into_iter().chain(served).collect()
}

/// What only the toolstack may see of a guest.
fn own_root(domid: u16) -> String {
    format!("/libxl/{domid}")
}

/// The kinds of devices, and who serves each.
fn servers(net: Option<u16>) -> impl Iterator<Item = (&'static str, u16)> {
    [("console", CONSOLE_OWNER)].into_iter().chain(net.map(|net| ("vif", net)))
}

/// Where the unit that serves devices of a kind finds those of all guests.
fn backends(kind: &str, server: u16) -> String {
    format!("/local/domain/{server}/backend/{kind}")
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

    /// A device has an end for the guest, one for its server, and a copy of the latter for the
    /// toolstack, which need not believe the server then.
    fn device(&mut self, device: &Device<'_>) {
        let Device { kind, number, server, ref front, .. } = *device;
        let domid = self.domid.to_string();
        let back = format!("{}/{domid}/{number}", backends(kind, server));
        let own = format!("{}/device/{kind}/{number}", own_root(self.domid));
        self.directory(&back, Rights::ServiceOwns(server));
        for end in [&back, &own] {
            self.value(&format!("{end}/frontend"), front);
            self.value(&format!("{end}/frontend-id"), &domid);
            self.value(&format!("{end}/online"), "1");
            self.value(&format!("{end}/state"), INITIALISING);
            self.values(end, device.back_values);
        }
        self.value(&format!("{own}/backend"), &back);
        self.directory(front, device.front_rights);
        self.value(&format!("{front}/backend"), &back);
        self.value(&format!("{front}/backend-id"), &server.to_string());
        self.values(front, device.front_values);
    }

    fn values(&mut self, directory: &str, values: &[(&str, &str)]) {
        for (name, value) in values {
            self.value(&format!("{directory}/{name}"), value);
        }
    }
}

/// A device of a guest.
struct Device<'a> {
    kind: &'a str,
    number: u8,
    /// Who serves it.
    server: u16,
    /// The directory of the guest's end, and who may use it.
    front: String,
    front_rights: Rights,
    /// What the guest learns beside who serves it.
    front_values: &'a [(&'a str, &'a str)],
    /// What the server learns beside whom it serves.
    back_values: &'a [(&'a str, &'a str)],
}

/// The requests that write the nodes of a new guest, all but those of its devices.
pub fn create(facts: &Facts<'_>) -> Vec<Call> {
    let mut writer = Writer { domid: facts.domid, calls: Vec::new() };
    let all = roots(facts.domid, facts.uuid, facts.net);
    let [domain, vm, libxl] = [&all[0], &all[1], &all[2]];
    for root in &all {
        // What a former guest of that number left is not the new one's.
        writer.calls.push(Call::make_directory(root));
        writer.calls.push(Call::remove(root));
    }
    for (kind, server) in servers(facts.net) {
        // The directories above belong to nobody else, and are made before the first guest's.
        let backends = backends(kind, server);
        writer.directory(&backends, Rights::ServiceOwns(server));
        writer.directory(&format!("{backends}/{}", facts.domid), Rights::ServiceOwns(server));
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
    writer.calls
}

/// The requests that write the nodes of its device number `index`: the console, then its network
/// interfaces. `None`: it has no more.
pub fn device(facts: &Facts<'_>, index: u8) -> Option<Vec<Call>> {
    let mut writer = Writer { domid: facts.domid, calls: Vec::new() };
    match index.checked_sub(1) {
        None => console(&mut writer, facts.console_port),
        Some(handle) => vif(&mut writer, facts.net.filter(|_| handle < facts.vifs)?, handle),
    }
    Some(writer.calls)
}

/// The address of a guest's interface: Xen's prefix, the guest's number, the interface's.
fn vif_address(domid: u16, handle: u8) -> String {
    let [high, low] = domid.to_be_bytes();
    format!("00:16:3e:{high:02x}:{low:02x}:{handle:02x}")
}

fn vif(writer: &mut Writer, net: u16, handle: u8) {
    let (number, address) = (handle.to_string(), vif_address(writer.domid, handle));
    let (number, address) = (("handle", &*number), ("mac", &*address));
    writer.device(&Device {
        kind: "vif",
        number: handle,
        server: net,
        front: format!("/local/domain/{}/device/vif/{handle}", writer.domid),
        front_rights: Rights::GuestOwnsFor(net),
        front_values: &[("state", INITIALISING), number, address],
        back_values: &[number, ("type", "vif"), address],
    });
}

/// The first console has its place aside of the other devices, and no state at the guest's end:
/// its page and port are there from the start.
fn console(writer: &mut Writer, port: u32) {
    let front = format!("/local/domain/{}/console", writer.domid);
    let server = format!("{front}/backend-id");
    writer.device(&Device {
        kind: "console",
        number: 0,
        server: CONSOLE_OWNER,
        front,
        front_rights: Rights::ServiceOwns(CONSOLE_OWNER),
        front_values: &[
            ("limit", CONSOLE_LIMIT),
            ("type", "xenconsoled"),
            ("output", "pty"),
            ("tty", ""),
            ("port", &port.to_string()),
            ("ring-ref", &CONSOLE_GFN.to_string()),
        ],
        back_values: &[("protocol", CONSOLE_PROTOCOL)],
    });
    writer.protect(&server, Rights::GuestOwnsFor(CONSOLE_OWNER));
}

#[cfg(test)]
mod tests {
    use wire::Operation;

    use super::*;

    const FACTS: Facts<'_> = Facts {
        domid: 0x123,
        name: "guest",
        uuid: Uuid(1),
        memory_kib: 1024,
        vcpus: 1,
        vifs: 3,
        net: Some(4),
        store_port: 1,
        console_port: 2,
    };

    /// The nodes that requests write below a directory, in their order.
    fn written(calls: &[Call], directory: &str) -> Vec<(String, String)> {
        let text = |call: &Call| String::from_utf8(call.payload.clone()).unwrap();
        let pair = |text: String| {
            let (path, value) = text.split_once('\0')?;
            let name = path.strip_prefix(directory)?.strip_prefix('/')?;
            Some((name.to_string(), value.to_string()))
        };
        let writes = calls.iter().filter(|call| call.operation == Operation::Write);
        writes.filter_map(|call| pair(text(call))).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn an_interface_has_both_ends_a_copy_and_an_address_of_its_own() {
        let calls = device(&FACTS, 3).unwrap();
        let back = "/local/domain/4/backend/vif/291/2";
        let front = "/local/domain/291/device/vif/2";
        let mac = ("mac", "00:16:3e:01:23:02");
        let told = [
            ("frontend", front),
            ("frontend-id", "291"),
            ("online", "1"),
            ("state", "1"),
            ("handle", "2"),
            ("type", "vif"),
            mac,
        ];
        assert_eq!(written(&calls, back), pairs(&told));
        let copy = written(&calls, "/libxl/291/device/vif/2");
        assert_eq!(copy, pairs(&[&told[..], &[("backend", back)]].concat()));
        assert_eq!(
            written(&calls, front),
            pairs(&[("backend", back), ("backend-id", "4"), ("state", "1"), ("handle", "2"), mac])
        );
        assert!(calls.contains(&Call::set_permissions(back, &["n4", "r291"])));
        assert!(calls.contains(&Call::set_permissions(front, &["n291", "r4"])));
        assert_eq!(device(&FACTS, 4), None);
        assert_eq!(device(&Facts { net: None, ..FACTS }, 1), None);
    }

    #[test]
    fn the_console_has_both_ends_and_a_copy() {
        let calls = device(&FACTS, 0).unwrap();
        let back = "/local/domain/5/backend/console/291/0";
        let front = "/local/domain/291/console";
        let told = [
            ("frontend", front),
            ("frontend-id", "291"),
            ("online", "1"),
            ("state", "1"),
            ("protocol", "vt100"),
        ];
        assert_eq!(written(&calls, back), pairs(&told));
        let copy = written(&calls, "/libxl/291/device/console/0");
        assert_eq!(copy, pairs(&[&told[..], &[("backend", back)]].concat()));
        assert_eq!(
            written(&calls, front),
            pairs(&[
                ("backend", back),
                ("backend-id", "5"),
                ("limit", "1048576"),
                ("type", "xenconsoled"),
                ("output", "pty"),
                ("tty", ""),
                ("port", "2"),
                ("ring-ref", "1044479"),
            ])
        );
        assert!(calls.contains(&Call::set_permissions(back, &["n5", "r291"])));
        assert!(calls.contains(&Call::set_permissions(front, &["n5", "r291"])));
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
