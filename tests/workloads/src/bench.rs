//! Latency of one kind of request, one at a time, nothing else going on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use crate::client::{Answer, Client};
use crate::connect;
use crate::latency::Histogram;
use crate::options::Options;
use crate::wire::{Op, strings};

/// Requests made before the first one counts.
const WARM_UP: u64 = 50;

/// Requests measured unless told otherwise: twenty lie beyond the 99th percentile.
const REQUESTS: u64 = 2000;

/// Measures; says whether every request was accepted.
pub fn run(options: &Options) -> io::Result<bool> {
    let answered = Arc::new(AtomicU64::new(0));
    let mut client = connect(options, options.seed, &answered)?;
    let path = format!("{}-bench\0", options.base);
    let count = if options.requests == 0 { REQUESTS } else { options.requests };
    let mut latency = Histogram::new();
    let mut refused = 0u64;
    accept(client.call(Op::Write, 0, path.as_bytes())?)?;
    for number in 0..WARM_UP + count {
        let value = format!("{path}{number:08}");
        let begin = Instant::now();
        let answer = match options.operation.as_str() {
            "read" => client.call(Op::Read, 0, path.as_bytes())?,
            "write" => client.call(Op::Write, 0, value.as_bytes())?,
            "transaction" => transaction(&mut client, path.as_bytes(), value.as_bytes())?,
            other => return Err(io::Error::other(format!("no operation is called {other}"))),
        };
        let spent = begin.elapsed();
        refused += u64::from(answer.is_err());
        if number >= WARM_UP {
            latency.add(spent.as_nanos() as u64);
        }
    }
    let show = |value: Option<u64>| value.map_or("null".into(), |v| v.to_string());
    println!(
        "@{{\"event\":\"bench\",\"operation\":\"{}\",\"requests\":{},\"refused\":{refused},\
         \"mean_ns\":{},\"p50_ns\":{},\"p99_ns\":{},\"max_ns\":{}}}",
        options.operation,
        latency.count(),
        latency.mean(),
        show(latency.per_mille(500)),
        show(latency.per_mille(990)),
        latency.max()
    );
    Ok(refused == 0)
}

/// The usual use of a transaction: read a value, write it anew.
fn transaction(client: &mut Client, path: &[u8], value: &[u8]) -> io::Result<Answer> {
    let begun = accept(client.call(Op::TransactionStart, 0, b"\0")?)?;
    let id = strings(&begun).first().and_then(|text| text.parse().ok());
    let id = id.ok_or_else(|| io::Error::other("a transaction without a number"))?;
    accept(client.call(Op::Read, id, path)?)?;
    accept(client.call(Op::Write, id, value)?)?;
    client.call(Op::TransactionEnd, id, b"T\0")
}

fn accept(answer: Answer) -> io::Result<Vec<u8>> {
    answer.map_err(|name| io::Error::other(format!("refused: {name}")))
}
