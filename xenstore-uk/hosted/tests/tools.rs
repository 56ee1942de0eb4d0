//! Debian's real XenStore tools against the hosted server, also while its engine dies again and
//! again. Where the tools are not installed the tests say so and pass.
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
        let output = Command::new("timeout")
            .args(["20", tool])
            .args(arguments)
            .env("XENSTORED_PATH", &self.socket)
            .output()
            .expect("the tool starts");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
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

const TEST_XENSTORE: &str = "/usr/lib/xen-4.17/bin/test-xenstore";
const XENSTORE_CONTROL: &str = "/usr/lib/xen-4.17/bin/xenstore-control";

fn is_there(tool: &str) -> bool {
    let found = match Path::new(tool).is_absolute() {
        true => Path::new(tool).exists(),
        false => std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).exists())),
    };
    if !found {
        eprintln!(
            "\n*** SKIPPED: {tool} is not installed (Debian: xenstore-utils, xen-utils-4.17)"
        );
    }
    found
}

fn drive(server: &Server) {
    assert_eq!(server.good("xenstore-write", &["/a/b", "hello", "/a/c", "world"]), "");
    assert_eq!(server.good("xenstore-read", &["/a/b", "/a/c"]), "hello\nworld\n");
    assert_eq!(server.good("xenstore-list", &["/a"]), "b\nc\n");
    assert_eq!(
        server.good("xenstore-ls", &["-f"]),
        "/a = \"\"\n/a/b = \"hello\"\n/a/c = \"world\"\n/tool = \"\"\n/tool/xenstored = \"\"\n"
    );
    server.good("xenstore-chmod", &["/a/b", "n0", "r5", "b7"]);
    assert!(server.good("xenstore-ls", &["-p", "/a"]).contains("(n0,r5,b7)"));
    server.good("xenstore-exists", &["/a/b"]);
    assert!(!server.run("xenstore-exists", &["/nope"]).0);
    // More children than one DIRECTORY reply holds: the tool has to use DIRECTORY_PART.
    for chunk in 0..60 {
        let paths: Vec<String> =
            (0..20).map(|leaf| format!("/many/child-number-{chunk:03}-{leaf:03}")).collect();
        let arguments: Vec<&str> = paths.iter().flat_map(|path| [path.as_str(), "x"]).collect();
        server.good("xenstore-write", &arguments);
    }
    let listed = server.good("xenstore-ls", &["-f", "/many"]);
    assert_eq!(listed.lines().count(), 1200);
    assert_eq!(listed.lines().last(), Some("/many/child-number-059-019 = \"x\""));
    server.good("xenstore-rm", &["/many"]);
    server.good("xenstore-rm", &["/a"]);
    assert!(!server.run("xenstore-read", &["/a/b"]).0);
}

#[test]
fn the_tools() {
    if is_there("xenstore-write") {
        drive(&Server::start("tools", 0));
    }
}

#[test]
fn the_tools_while_the_engine_dies() {
    if is_there("xenstore-write") {
        // The tool writes in transactions, here of up to 22 requests, and begins them again when
        // the engine's death ends them.
        drive(&Server::start("dying", 53));
    }
}

#[test]
fn a_watch() {
    if !is_there("xenstore-watch") {
        return;
    }
    let server = Server::start("watch", 3);
    let watcher = Command::new("timeout")
        .args(["20", "xenstore-watch", "-n", "4", "/w"])
        .env("XENSTORED_PATH", &server.socket)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tool starts");
    std::thread::sleep(Duration::from_millis(300));
    server.good("xenstore-write", &["/w/x", "1"]);
    server.good("xenstore-write", &["/v", "1"]);
    server.good("xenstore-chmod", &["/w/x", "r0"]);
    server.good("xenstore-rm", &["/w"]);
    let output = watcher.wait_with_output().expect("the watcher ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/w\n/w/x\n/w/x\n/w\n");
}

#[test]
fn the_test_program() {
    if is_there(TEST_XENSTORE) {
        let server = Server::start("test", 0);
        assert!(!server.good(TEST_XENSTORE, &["-i", "300"]).is_empty());
        server.good(TEST_XENSTORE, &["-r", "1"]);
        // Its transactions do not survive the engine, and it does not begin them again.
        let server = Server::start("test-dying", 7);
        for test in ["read 1", "read 2000", "write 1", "write 2000", "dir", "rm node"] {
            server.good(TEST_XENSTORE, &["-i", "100", "-t", test]);
        }
    }
}

#[test]
fn control() {
    if !is_there(XENSTORE_CONTROL) {
        return;
    }
    let server = Server::start("control", 0);
    server.good(XENSTORE_CONTROL, &["check"]);
    assert!(server.good(XENSTORE_CONTROL, &["quota"]).contains("nodes            :     1000 "));
    server.good(XENSTORE_CONTROL, &["quota", "set", "nodes", "77"]);
    assert!(server.good(XENSTORE_CONTROL, &["quota"]).contains("nodes            :       77 "));
    assert!(server.good(XENSTORE_CONTROL, &["help"]).contains("memreport"));
    assert!(!server.run(XENSTORE_CONTROL, &["nonsense"]).0);
}
