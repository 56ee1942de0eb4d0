//! PpVMM's XenStore behind a Unix socket, for real clients without Xen: the same engine and the
//! same connection layer as in the unikernel, each socket bridged to a ring page in memory.
//!
//! ```text
//! xenstore-hosted --socket /tmp/xs &
//! XENSTORED_PATH=/tmp/xs xenstore-ls
//! xenstore-hosted --socket /tmp/xs --domain 7=/tmp/xs7     # a guest's view at /tmp/xs7
//! ```
#![forbid(unsafe_code)]

mod bridge;
mod engine;

use std::path::PathBuf;
use std::sync::mpsc;

use anyhow::{Context, Result};
use clap::Parser;

/// Serves XenStore on a Unix socket.
#[derive(Parser)]
struct Arguments {
    /// Path of the socket; a file that is there is replaced. It appears when the server listens.
    #[arg(long)]
    socket: PathBuf,
    /// A further socket, whose clients are of this domain (may be given again).
    #[arg(long, value_name = "DOMID=PATH", value_parser = domain)]
    domain: Vec<(u16, PathBuf)>,
    /// Most connections at once.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Megabytes for durable records.
    #[arg(long, default_value_t = 16)]
    megabytes: usize,
    /// Kills the engine after this many requests, again and again, and lets a new one read
    /// everything back; 0 for never.
    #[arg(long, default_value_t = 0)]
    restart_every: u64,
}

fn domain(text: &str) -> Result<(u16, PathBuf), String> {
    let (domid, path) = text.split_once('=').ok_or("write DOMID=PATH")?;
    Ok((domid.parse().map_err(|_| format!("{domid:?} is no domain id"))?, path.into()))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (inbox, events) = mpsc::channel();
    // The privileged socket comes last: who sees it may use all of them.
    let domains = arguments.domain.into_iter();
    for (domid, path) in domains.chain([(engine::PRIVILEGED, arguments.socket)]) {
        bridge::listen(&path, domid, inbox.clone())
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        println!("listening on {} for domain {domid}", path.display());
    }
    drop(inbox);
    engine::run(
        &engine::Options {
            clients: arguments.clients,
            slots_len: arguments.megabytes << 20,
            restart_every: arguments.restart_every,
        },
        &events,
    );
    Ok(())
}
