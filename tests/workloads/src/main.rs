//! `xsload`: drives a XenStore server through the guest's `/dev/xen/xenbus` (or a Unix socket), or
//! an echo server through its network interface, and checks every answer.
#![forbid(unsafe_code)]

mod bench;
mod client;
mod demo;
mod latency;
mod model;
mod net;
mod options;
mod random;
mod script;
mod stream;
mod tally;
mod transaction;
mod watchdog;
mod watches;
mod wire;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use client::{Client, Server};
use latency::Histogram;
use options::{Options, USAGE};
use script::{Script, Settings};
use tally::Tally;
use watchdog::Pulse;

/// Exit code when an answer was wrong, lost or repeated.
const EXIT_FAULTY: u8 = 1;
/// Exit code when the server could not be used at all.
const EXIT_UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let verb = words.first().map_or("", String::as_str);
    if verb == "net" {
        return match net::Options::parse(words.get(1..).unwrap_or_default()) {
            Ok(options) => exit(net::run(&options)),
            Err(text) => usage(&text),
        };
    }
    let options = match Options::parse(words.get(1..).unwrap_or_default()) {
        Ok(options) => options,
        Err(text) => return usage(&text),
    };
    let result = match verb {
        "demo" => demo::run(&options),
        "script" => script(&options),
        "bench" => bench::run(&options),
        "stream" => stream::run(&options),
        _ => return usage(&format!("{verb:?} is not a verb")),
    };
    exit(result)
}

fn exit(result: io::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAULTY),
        Err(error) => {
            println!("xsload: cannot go on: {error}");
            ExitCode::from(EXIT_UNUSABLE)
        }
    }
}

fn usage(text: &str) -> ExitCode {
    println!("xsload: {text}\n{USAGE}");
    ExitCode::from(EXIT_UNUSABLE)
}

/// A connection whose unanswered requests end the program with a line that says so.
pub fn connect(options: &Options, seed: u64, answered: &Arc<AtomicU64>) -> io::Result<Client> {
    let pulse = Arc::new(Pulse::new());
    let answered = answered.clone();
    watchdog::watch(pulse.clone(), options.reply_limit, move || {
        let requests = answered.load(Ordering::Relaxed);
        let tally = Tally { requests, lost: 1, ..Tally::default() };
        println!("{}", tally.line("script", &head(seed, "lost"), None));
        std::process::exit(EXIT_FAULTY.into());
    });
    Client::open(&options.server, pulse).map_err(|error| match &options.server {
        Server::Device(path) | Server::Socket(path) => io::Error::other(format!("{path}: {error}")),
    })
}

fn head(seed: u64, phase: &str) -> String {
    format!("\"phase\":\"{phase}\",\"seed\":{seed},")
}

/// Runs the checked script on each connection; says whether all of it was right.
fn script(options: &Options) -> io::Result<bool> {
    let clients: Vec<_> = (0..options.clients)
        .map(|index| {
            let options = options.clone();
            thread::spawn(move || script_client(&options, options.seed + index))
        })
        .collect();
    let mut total = Tally::default();
    for client in clients {
        let tally = client.join().map_err(|_| io::Error::other("a client panicked"))??;
        total.add(&tally);
    }
    println!("{}", total.line("script-total", &head(options.seed, "end"), None));
    Ok(total.is_clean())
}

fn script_client(options: &Options, seed: u64) -> io::Result<Tally> {
    let answered = Arc::new(AtomicU64::new(0));
    let mut client = connect(options, seed, &answered)?;
    fill(&mut client, options)?;
    let settings = Settings {
        seed,
        base: format!("{}-{seed}", options.base),
        event_limit: options.event_limit,
        forgives_doomed: options.forgives_doomed,
        behind_kernel: matches!(options.server, Server::Device(_)),
    };
    let mut script = Script::new(client, settings)?;
    let begin = Instant::now();
    let mut shown = begin;
    while !is_over(options, &script, begin.elapsed()) {
        script.step()?;
        answered.store(script.tally().requests, Ordering::Relaxed);
        if shown.elapsed() >= options.every {
            shown = Instant::now();
            let at_ns = begin.elapsed().as_nanos();
            let head = head(seed, "progress") + &format!("\"at_ns\":{at_ns},");
            println!("{}", script.tally().line("script", &head, Some(&script.latency)));
            if options.windows {
                script.latency = Histogram::new();
            }
        }
        if !options.pause.is_zero() {
            thread::sleep(options.pause);
        }
    }
    script.finish()?;
    println!("{}", script.tally().line("script", &head(seed, "end"), Some(&script.latency)));
    Ok(script.tally())
}

/// Makes the nodes that only have to be there.
fn fill(client: &mut Client, options: &Options) -> io::Result<()> {
    let per_directory = options.fill_per_directory;
    for node in 0..options.fill {
        let (directory, name) = (node / per_directory, node % per_directory);
        let payload = format!("{}-fill/{directory}/{name}\0{node}", options.base);
        if let Err(errno) = client.call(wire::Op::Write, 0, payload.as_bytes())? {
            return Err(io::Error::other(format!("{errno} at node {node} of {}", options.fill)));
        }
    }
    Ok(())
}

fn is_over(options: &Options, script: &Script, elapsed: Duration) -> bool {
    let time = !options.duration.is_zero() && elapsed >= options.duration;
    let requests = options.requests > 0 && script.tally().requests >= options.requests;
    time || requests
}
