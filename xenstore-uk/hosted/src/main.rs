//! PpVMM's XenStore behind a Unix socket, for real clients without Xen: the same engine and the
//! same connection layer as in the unikernel, each socket bridged to a ring page in memory.
//!
//! ```text
//! xenstore-hosted --socket /tmp/xs &
//! XENSTORED_PATH=/tmp/xs xenstore-ls
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

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (inbox, events) = mpsc::channel();
    bridge::listen(&arguments.socket, inbox)
        .with_context(|| format!("cannot listen on {}", arguments.socket.display()))?;
    println!("listening on {}", arguments.socket.display());
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
