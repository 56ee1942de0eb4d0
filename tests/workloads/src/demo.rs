//! A calm loop for people to watch: write a number, read it back, say how long it took.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use crate::connect;
use crate::options::Options;
use crate::wire::Op;

/// One line a second can be read along.
const PACE: Duration = Duration::from_secs(1);

/// Runs until the duration is over (for ever without one); says whether all answers were right.
pub fn run(options: &Options) -> io::Result<bool> {
    let answered = Arc::new(AtomicU64::new(0));
    let mut client = connect(options, 0, &answered)?;
    let path = format!("{}-demo\0", options.base);
    let begin = Instant::now();
    let mut all_right = true;
    for number in 1u64.. {
        let text = number.to_string();
        let mut request = path.clone().into_bytes();
        request.extend_from_slice(text.as_bytes());
        let written = client.call(Op::Write, 0, &request)?;
        let write = client.latency;
        let read = client.call(Op::Read, 0, path.as_bytes())?;
        let right = written.is_ok() && read.as_deref() == Ok(text.as_bytes());
        all_right &= right;
        let verdict = if right { "read it back" } else { "WRONG ANSWER" };
        let show = |time: Duration| format!("{:.3} ms", time.as_secs_f64() * 1e3);
        println!("demo: wrote {number}, {verdict} ({}, {})", show(write), show(client.latency));
        if !right {
            println!("demo: write answered {written:?}, read answered {read:?}");
        }
        if !options.duration.is_zero() && begin.elapsed() + PACE > options.duration {
            break;
        }
        thread::sleep(PACE);
    }
    Ok(all_right)
}
