//! The classic Xen host: stock Xen, Debian's Linux as dom0 with xl and C xenstored, all from Debian
//! packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guest::is_newer;
use crate::peer::pick::Picker;
use crate::process::Tool;
use crate::progress::Steps;
use crate::{paths, setup};

/// What makes the tree, and what orders its kernel modules.
const PACKAGES: [&str; 2] = ["mmdebstrap", "kmod"];

/// Debian's release with Xen 4.17.
const RELEASE: &str = "bookworm";

/// What dom0 is made of; apt adds what these depend on.
const INCLUDED: [&str; 13] = [
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "linux-image-amd64",
    "busybox-static",
    "bash",
    "kmod",
    "util-linux",
    "iproute2",
    "bridge-utils",
    "iperf3",
    "apache2-utils",
    "ethtool",
];

/// Parts of those packages that nothing here reads: 600 MB become 200 MB on the disk.
const LEFT_OUT: [&str; 10] = [
    "./usr/share/*",
    "./usr/lib/python3*",
    "./usr/lib/xen-4.17/boot/*",
    "./lib/modules/*/kernel/sound/*",
    "./lib/modules/*/kernel/fs/*",
    "./lib/modules/*/kernel/drivers/gpu/*",
    "./lib/modules/*/kernel/drivers/media/*",
    "./lib/modules/*/kernel/drivers/staging/*",
    "./lib/modules/*/kernel/drivers/net/wireless/*",
    "./lib/modules/*/kernel/drivers/infiniband/*",
];

/// Programs of Xen, by their names in its own folder.
const XEN_PROGRAMS: [&str; 13] = [
    "xl",
    "xenstored",
    "oxenstored",
    "xenconsoled",
    "xenconsole",
    "xen-init-dom0",
    "xenctx",
    "libxl-save-helper",
    "lsevtchn",
    "xenstore-control",
    "init-xenstore-domain",
    "test-xenstore",
    "xentop",
];

/// Where those lie, and where hosts look for them.
const XEN_BIN: &str = "usr/lib/xen-4.17/bin";

/// Other programs and files of the tree.
const PLACED: [&str; 27] = [
    "bin/bash",
    "bin/kmod",
    "sbin/modprobe",
    "sbin/rmmod",
    "sbin/insmod",
    "bin/busybox",
    "bin/ip",
    "sbin/bridge",
    "sbin/brctl",
    "sbin/ethtool",
    "usr/bin/iperf3",
    "usr/bin/ab",
    "usr/bin/flock",
    "usr/bin/xenstore",
    "usr/bin/xenstore-read",
    "usr/bin/xenstore-write",
    "usr/bin/xenstore-ls",
    "usr/bin/xenstore-list",
    "usr/bin/xenstore-rm",
    "usr/bin/xenstore-exists",
    "usr/bin/xenstore-chmod",
    "usr/bin/xenstore-watch",
    "etc/xen",
    "etc/passwd.default",
    "etc/modprobe.d",
    "lib/modprobe.d",
    "lib/x86_64-linux-gnu/libgcc_s.so.1",
];

/// Kernel modules that dom0 may load: Xen's devices, the bridge, NICs of the emulator.
const MODULES: [&str; 14] = [
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xenfs",
    "xen-netback",
    "xen-blkback",
    "bridge",
    "tun",
    "dummy",
    "e1000",
    "e1000e",
    "virtio_net",
    "virtio_pci",
];

/// Downloading 120 MB of packages over a slow line and unpacking them.
const TREE_LIMIT: Duration = Duration::from_secs(1200);

/// Unpacking the tree's archive takes seconds.
const UNPACK_LIMIT: Duration = Duration::from_secs(300);

/// The host's parts, ready to boot.
pub struct Host {
    /// Stock Xen.
    pub xen: PathBuf,
    /// Debian's Linux, as dom0 and as its guests boot it.
    pub kernel: PathBuf,
    /// dom0's initial file system.
    pub base: PathBuf,
}

/// `target/peer-host`.
pub fn folder() -> PathBuf {
    paths::target().join("peer-host")
}

/// Makes the host, unless it is there; a set-up machine needs no network for it.
pub fn build(steps: &Steps) -> Result<Host> {
    setup::tools(steps)?;
    setup::packages(steps, &PACKAGES)?;
    setup::xen(steps)?;
    let root = folder().join("root");
    let complete = root.join(".complete");
    if !complete.exists() {
        steps.step("Debian packages of a classic dom0", || tree(&root))?;
        fs::write(&complete, "")?;
    }
    let release = only_name(&root.join("lib/modules"))?;
    let kernel = root.join(format!("boot/vmlinuz-{release}"));
    let base = folder().join("dom0.cpio");
    let sources =
        [complete, init_source(), try_source(), std::env::current_exe().context("own path")?];
    if !is_newer(&base, &sources) {
        steps.step("dom0's file system", || {
            let bytes = pack(&root, &release)?;
            fs::write(&base, &bytes)?;
            Ok(format!("Linux {release}, {} KiB", bytes.len() / 1024))
        })?;
    }
    Ok(Host { xen: paths::xen(), kernel, base })
}

fn init_source() -> PathBuf {
    paths::root().join("images/peer/init")
}

fn try_source() -> PathBuf {
    paths::root().join("images/peer/try")
}

/// Downloads the packages and unpacks what is wanted of them.
fn tree(root: &Path) -> Result<String> {
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    fs::create_dir_all(root)?;
    let archive = folder().join("root.tar");
    let mut tool = Tool::new("mmdebstrap")
        .args(["--variant=extract", "--aptopt=APT::Install-Recommends \"false\"", "--format=tar"])
        .arg(format!("--include={}", INCLUDED.join(",")))
        .arg(RELEASE)
        .arg(&archive)
        .limit(TREE_LIMIT);
    if let Some(sources) = apt_sources() {
        tool = tool.arg(sources);
    }
    tool.run()?;
    let mut tar = Tool::new("tar").args(["-x", "--no-same-owner", "--wildcards"]);
    for pattern in LEFT_OUT {
        tar = tar.arg(format!("--exclude={pattern}"));
    }
    // Device nodes need a privilege, and the kernel makes its own.
    tar.args(["--exclude=./dev/*", "-f"])
        .arg(&archive)
        .arg("-C")
        .arg(root)
        .named("unpack-peer")
        .limit(UNPACK_LIMIT)
        .run()?;
    fs::remove_file(&archive)?;
    let release = only_name(&root.join("lib/modules"))?;
    Tool::new("depmod").arg("-b").arg(root).arg(&release).run()?;
    Ok(format!("{RELEASE}, Linux {release}"))
}

/// Where this machine takes its Debian packages from; without an answer, Debian's own servers.
fn apt_sources() -> Option<PathBuf> {
    ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"]
        .iter()
        .map(PathBuf::from)
        .find(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 0))
}

/// The name of the only entry of a folder.
fn only_name(dir: &Path) -> Result<String> {
    let entry = fs::read_dir(dir)
        .with_context(|| format!("list {}", dir.display()))?
        .next()
        .with_context(|| format!("{} is empty", dir.display()))??;
    entry.file_name().into_string().ok().context("a name that is no text")
}

/// dom0's initial file system.
fn pack(root: &Path, release: &str) -> Result<Vec<u8>> {
    let mut picker = Picker::new(root);
    for folder in ["proc", "sys", "dev", "run", "tmp", "root", "var/log", "var/lib"] {
        picker.folder(folder);
    }
    // The kernel opens its console before the first program can mount anything.
    picker.device("dev/console", 5, 1);
    for path in PLACED {
        if root.join(path).symlink_metadata().is_ok() {
            picker.place(path)?;
        }
    }
    for program in XEN_PROGRAMS {
        picker.place(&format!("{XEN_BIN}/{program}"))?;
        picker.link(&format!("usr/sbin/{program}"), &format!("../lib/xen-4.17/bin/{program}"));
    }
    picker.modules(release, &MODULES)?;
    let busybox = root.join("bin/busybox");
    let applets = String::from_utf8(Tool::new(busybox).arg("--list").output()?)?;
    // busybox's own shell prefers its applets to Debian's programs of the same names.
    picker.link("bin/sh", "bash");
    for applet in applets.lines() {
        if !picker.has_program(applet) {
            picker.link(&format!("bin/{applet}"), "busybox");
        }
    }
    picker.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    picker.file("etc/group", 0o644, b"root:x:0:\n");
    picker.file("init", 0o755, &fs::read(init_source())?);
    picker.file("usr/bin/try", 0o755, &fs::read(try_source())?);
    let kernel = fs::read(root.join(format!("boot/vmlinuz-{release}")))?;
    picker.file("root/vmlinuz", 0o644, &kernel);
    Ok(picker.finish())
}
