//! Scenarios: text commands with the trace that they leave. `UPDATE_SCENARIOS=1 cargo test -p store
//! --test scenarios` writes the traces anew; then review the difference.
//!
//! ```text
//! # remark
//! introduce 16                 a new domain with a ring
//! 16 WRITE data/x =value       a request of domain 16; its strings, each with a NUL; =… is the
//!                              rest of the payload without one; "" is an empty string
//! 16 @1 READ data/x            in transaction 1
//! gone 16 / shutdown 16        what the orchestrator reports
//! restart                      the server dies and reads everything back
//! sweep                        background work until there is none
//! ```
//! Below each command stand its reply (`->`) and the events that anybody received (`16!`).
#![allow(missing_docs)]

mod common;

use std::fmt::Write as _;
use std::path::Path;

use common::{Guest, Host};
use wire::Operation;

fn operation(name: &str) -> Operation {
    let found = Operation::ALL.into_iter().find(|operation| operation.name() == name);
    found.unwrap_or_else(|| panic!("no operation {name}"))
}

fn request(host: &mut Host, words: &[&str]) -> String {
    let domid: u16 = words[0].parse().expect("a domain id");
    let (transaction, rest) = match words[1].strip_prefix('@') {
        Some(id) => (id.parse().expect("a transaction id"), &words[2..]),
        None => (0, &words[1..]),
    };
    let mut payload = Vec::new();
    for word in &rest[1..] {
        match word.strip_prefix('=') {
            Some(value) => payload.extend_from_slice(value.as_bytes()),
            None if *word == "\"\"" => payload.push(0),
            None => {
                payload.extend_from_slice(word.as_bytes());
                payload.push(0);
            }
        }
    }
    let reply = host.request(domid, operation(rest[0]), transaction, &payload);
    let error = if reply.operation == Operation::Error { "error " } else { "" };
    format!("-> {error}{}\n", reply.text().replace('\n', "\\n"))
}

fn command(host: &mut Host, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = || words[1].parse::<u16>().expect("a domain id");
    let mut trace = String::new();
    match words[0] {
        "introduce" => host.introduce(number()),
        "shutdown" => host.server.domain_shut_down(number()),
        "gone" => {
            host.server.domain_gone(number());
            host.actions();
        }
        "restart" => {
            let report = host.restart();
            assert_eq!((report.load.missing_slots, report.load.damaged_slots), (0, 0));
        }
        "sweep" => {
            while host.server.state().needs_sweep() {
                host.now_ns = host.server.next_deadline(host.now_ns);
                host.server.idle_step(host.now_ns);
            }
        }
        _ => trace += &request(host, &words),
    }
    host.settle();
    let domids: Vec<u16> = host.guests.keys().copied().collect();
    for domid in domids {
        for event in host.events(domid) {
            writeln!(trace, "   {domid}! {event}").expect("a string takes everything");
        }
    }
    trace
}

fn play(script: &str) -> String {
    let mut host = Host::new();
    host.guests.entry(common::TOOL).or_insert_with(Guest::new);
    let mut trace = String::new();
    for line in script.lines() {
        let is_trace = line.starts_with("->") || line.starts_with("   ");
        if is_trace {
            continue;
        }
        trace += line;
        trace.push('\n');
        if !line.is_empty() && !line.starts_with('#') {
            trace += &command(&mut host, line);
        }
    }
    trace
}

#[test]
fn all() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the folder of scenarios") {
        let path = entry.expect("an entry").path();
        let script = std::fs::read_to_string(&path).expect("a scenario");
        let trace = play(&script);
        if std::env::var_os("UPDATE_SCENARIOS").is_some() {
            std::fs::write(&path, &trace).expect("written");
        } else {
            assert_eq!(trace, script, "{}", path.display());
        }
        count += 1;
    }
    assert!(count >= 4, "{count} scenarios");
}
