//! Debian's real XenStore tools against the hosted server, also while its engine dies again and
//! again. Where the tools are not unpacked (`build.rs`) these tests are ignored.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    fn start(name: &str, restart_every: u64) -> Self {
        let socket = std::env::temp_dir().join(format!("xs-{name}-{}", std::process::id()));
        let process = Command::new(env!("CARGO_BIN_EXE_xenstore-hosted"))
            .arg("--socket")
            .arg(&socket)
            .args(["--restart-every", &restart_every.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .expect("the server starts");
        // The socket appears when the server listens.
        let until = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            assert!(Instant::now() < until, "no socket at {}", socket.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, socket }
    }

    /// Runs a tool for at most 20 s; answers its exit status and its output.
    fn run(&self, tool: &str, arguments: &[&str]) -> (bool, String) {
        let output = self.command(tool).args(arguments).output().expect("the tool starts");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A tool by its path below `target/`, with the loader and libraries of its own Debian.
    fn command(&self, tool: &str) -> Command {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let folder = |tree: &&str| LIBRARY_DIRS.map(|dir| target.join(tree).join(dir));
        let folders: Vec<PathBuf> = LIBRARY_TREES.iter().flat_map(folder).collect();
        let loader = folders.iter().map(|dir| dir.join(LOADER)).find(|path| path.exists());
        let mut command = Command::new("timeout");
        command
            .arg("20")
            .arg(loader.expect("a loader beside the libraries"))
            .arg("--library-path")
            .arg(std::env::join_paths(folders).expect("folders without colons"))
            .arg(target.join(tool))
            .env("XENSTORED_PATH", &self.socket);
        command
    }

    fn good(&self, tool: &str, arguments: &[&str]) -> String {
        let (success, output) = self.run(tool, arguments);
        assert!(success, "{tool} {arguments:?}: {output}");
        output
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Trees of the libraries that the tools need. The first one with a loader has its libc, too.
const LIBRARY_TREES: [&str; 5] = [
    "debian/libc6",
    "debian/libxenstore4",
    "debian/libxentoolcore1",
    "debian/libgcc-s1",
    "peer-host/root",
];
const LIBRARY_DIRS: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";

const TEST_XENSTORE: &str = "debian/xen-utils-4.17/usr/lib/xen-4.17/bin/test-xenstore";
const XENSTORE_CONTROL: &str = "peer-host/root/usr/lib/xen-4.17/bin/xenstore-control";

/// One of the tools for the command line.
fn utility(name: &str) -> String {
    format!("debian/xenstore-utils/usr/bin/xenstore-{name}")
}

fn drive(server: &Server) {
    assert_eq!(server.good(&utility("write"), &["/a/b", "hello", "/a/c", "world"]), "");
    assert_eq!(server.good(&utility("read"), &["/a/b", "/a/c"]), "hello\nworld\n");
    assert_eq!(server.good(&utility("list"), &["/a"]), "b\nc\n");
    assert_eq!(
        server.good(&utility("ls"), &["-f"]),
        "/a = \"\"\n/a/b = \"hello\"\n/a/c = \"world\"\n/tool = \"\"\n/tool/xenstored = \"\"\n"
    );
    server.good(&utility("chmod"), &["/a/b", "n0", "r5", "b7"]);
    assert!(server.good(&utility("ls"), &["-p", "/a"]).contains("(n0,r5,b7)"));
    server.good(&utility("exists"), &["/a/b"]);
    assert!(!server.run(&utility("exists"), &["/nope"]).0);
    // More children than one DIRECTORY reply holds: the tool has to use DIRECTORY_PART.
    for chunk in 0..60 {
        let paths: Vec<String> =
            (0..20).map(|leaf| format!("/many/child-number-{chunk:03}-{leaf:03}")).collect();
        let arguments: Vec<&str> = paths.iter().flat_map(|path| [path.as_str(), "x"]).collect();
        server.good(&utility("write"), &arguments);
    }
    let listed = server.good(&utility("ls"), &["-f", "/many"]);
    assert_eq!(listed.lines().count(), 1200);
    assert_eq!(listed.lines().last(), Some("/many/child-number-059-019 = \"x\""));
    server.good(&utility("rm"), &["/many"]);
    server.good(&utility("rm"), &["/a"]);
    assert!(!server.run(&utility("read"), &["/a/b"]).0);
}

#[test]
#[cfg_attr(not(has_xenstore_tools), ignore = "needs Debian's tools: cargo xtask setup")]
fn the_tools() {
    drive(&Server::start("tools", 0));
}

#[test]
#[cfg_attr(not(has_xenstore_tools), ignore = "needs Debian's tools: cargo xtask setup")]
fn the_tools_while_the_engine_dies() {
    // The tool writes in transactions, here of up to 22 requests, and begins them again when the
    // engine's death ends them.
    drive(&Server::start("dying", 53));
}

#[test]
#[cfg_attr(not(has_xenstore_tools), ignore = "needs Debian's tools: cargo xtask setup")]
fn a_watch() {
    let server = Server::start("watch", 3);
    let watcher = server
        .command(&utility("watch"))
        .args(["-n", "4", "/w"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tool starts");
    std::thread::sleep(Duration::from_millis(300));
    server.good(&utility("write"), &["/w/x", "1"]);
    server.good(&utility("write"), &["/v", "1"]);
    server.good(&utility("chmod"), &["/w/x", "r0"]);
    server.good(&utility("rm"), &["/w"]);
    let output = watcher.wait_with_output().expect("the watcher ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/w\n/w/x\n/w/x\n/w\n");
}

#[test]
#[cfg_attr(not(has_test_xenstore), ignore = "needs Debian's tools: cargo xtask setup")]
fn the_test_program() {
    let server = Server::start("test", 0);
    assert!(!server.good(TEST_XENSTORE, &["-i", "300"]).is_empty());
    server.good(TEST_XENSTORE, &["-r", "1"]);
    // Its transactions do not survive the engine, and it does not begin them again.
    let server = Server::start("test-dying", 7);
    for test in ["read 1", "read 2000", "write 1", "write 2000", "dir", "rm node"] {
        server.good(TEST_XENSTORE, &["-i", "100", "-t", test]);
    }
}

#[test]
#[cfg_attr(not(has_xenstore_control), ignore = "needs Debian's dom0: cargo xtask peer")]
fn control() {
    let server = Server::start("control", 0);
    server.good(XENSTORE_CONTROL, &["check"]);
    assert!(server.good(XENSTORE_CONTROL, &["quota"]).contains("nodes            :     1000 "));
    server.good(XENSTORE_CONTROL, &["quota", "set", "nodes", "77"]);
    assert!(server.good(XENSTORE_CONTROL, &["quota"]).contains("nodes            :       77 "));
    assert!(server.good(XENSTORE_CONTROL, &["help"]).contains("memreport"));
    assert!(!server.run(XENSTORE_CONTROL, &["nonsense"]).0);
}
