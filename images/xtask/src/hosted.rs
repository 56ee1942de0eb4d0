//! The checked script against the real engine behind a Unix socket, while the engine is killed
//! again and again: the fastest proof that nothing acknowledged is lost, without any Xen.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::Tool;

/// Compiling both programs.
const COMPILE_LIMIT: Duration = Duration::from_secs(600);

/// One script takes a second.
const SCRIPT_LIMIT: Duration = Duration::from_secs(120);

/// The server makes its socket at once.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Requests between two deaths of the engine: a prime, so that each kind of request is hit.
const RESTART_EVERY: &str = "37";

/// Seeds, each with this many requests.
const SEEDS: u64 = 4;
const REQUESTS: &str = "3000";

/// A running server; dropping it ends it.
pub struct Server {
    process: Child,
    socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // A failure means that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Builds server and client.
pub fn build() -> Result<()> {
    Tool::new("cargo")
        .args(["build", "--release", "--package", "xenstore-hosted", "--package", "workloads"])
        .named("build-hosted")
        .limit(COMPILE_LIMIT)
        .run()
}

/// The client's program.
pub fn client() -> PathBuf {
    paths::target().join("release/xsload")
}

/// Runs the scripts; the last line of each must say that all was right.
pub fn run() -> Result<String> {
    build()?;
    let socket = std::env::temp_dir().join(format!("ppvmm-xenstore-{}", std::process::id()));
    let server = start(&socket, &["--restart-every".into(), RESTART_EVERY.into()])?;
    for seed in 1..=SEEDS {
        let seed = seed.to_string();
        Tool::new(client())
            .args(["script", "--requests", REQUESTS, "--clients", "2", "--forgive-doomed", "1"])
            .args(["--seed", &seed, "--socket"])
            .arg(&socket)
            .named(&format!("hosted-script-{seed}"))
            .limit(SCRIPT_LIMIT)
            .run()
            .with_context(|| format!("seed {seed}"))?;
    }
    drop(server);
    Ok(format!("{SEEDS} seeds of {REQUESTS} requests, a death every {RESTART_EVERY}: all right"))
}

/// Starts the server and waits for its socket, which appears when it listens.
pub fn start(socket: &Path, arguments: &[String]) -> Result<Server> {
    let program = paths::target().join("release/xenstore-hosted");
    let process = Command::new(&program)
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let server = Server { process, socket: socket.to_owned() };
    let begin = Instant::now();
    while !socket.exists() {
        if begin.elapsed() > START_LIMIT {
            bail!("{} made no socket", program.display());
        }
        sleep(Duration::from_millis(10));
    }
    Ok(server)
}
