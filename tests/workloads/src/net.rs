//! A checked stream: bytes of a fixed pattern go to an echo server over TCP and have to come back,
//! each once and in order, while pings go to the gateway. What the guest's kernel counted of
//! retransmissions in the meantime is told, too.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes on their way at most: less than the smallest of the buffers between here and the server.
const WINDOW: u64 = 32 << 10;
/// Bytes written at once.
const CHUNK: usize = 4096;
/// The interface comes up within this, or not at all.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// A stream on which nothing comes for so long is broken.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// What a ping may take, and the time between two.
const PING_LIMIT_S: u64 = 10;
const PINGS_PER_SECOND: u64 = 10;

/// Where to, for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The echo server.
    pub server: String,
    /// Who answers pings.
    pub gateway: String,
    /// How long bytes are sent.
    pub duration: Duration,
}

impl Options {
    /// Reads `SERVER:PORT GATEWAY SECONDS`.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let [server, gateway, seconds] = words else {
            return Err("net wants SERVER:PORT GATEWAY SECONDS".into());
        };
        let seconds = seconds.parse().map_err(|_| format!("{seconds:?} is no number"))?;
        let duration = Duration::from_secs(seconds);
        Ok(Self { server: server.clone(), gateway: gateway.clone(), duration })
    }
}

/// The byte at a place of the stream: no run of it is like another for 2⁴⁰ bytes.
fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// What came back.
#[derive(Debug, Default)]
struct Echoed {
    bytes: u64,
    wrong: u64,
    longest_gap: Duration,
}

/// Runs; says whether every byte and every ping came back.
///
/// # Errors
/// The server cannot be reached.
pub fn run(options: &Options) -> io::Result<bool> {
    let before = Timeouts::read();
    let stream = connect(&options.server)?;
    let pings = start_pings(options)?;
    let (sent, echoed) = echo(&stream, options.duration)?;
    let (pinged, answered) =
        count_pings(&String::from_utf8_lossy(&pings.wait_with_output()?.stdout));
    let after = Timeouts::read();
    let timeouts = after.timeouts.saturating_sub(before.timeouts);
    let retransmitted = after.retransmitted.saturating_sub(before.retransmitted);
    let lost = sent - echoed.bytes.min(sent);
    let pings_lost = pinged.saturating_sub(answered);
    println!(
        "@{{\"event\":\"net-total\",\"sent\":{sent},\"wrong\":{},\"lost\":{lost},\
         \"pings\":{pinged},\"pings_lost\":{pings_lost},\"timeouts\":{timeouts},\
         \"retransmitted\":{retransmitted},\"longest_gap_ns\":{}}}",
        echoed.wrong,
        echoed.longest_gap.as_nanos(),
    );
    Ok(lost + echoed.wrong + pings_lost + timeouts == 0 && pinged > 0)
}

fn connect(server: &str) -> io::Result<TcpStream> {
    let begin = Instant::now();
    loop {
        match TcpStream::connect(server) {
            Ok(stream) => return Ok(stream),
            Err(error) if begin.elapsed() > CONNECT_LIMIT => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn start_pings(options: &Options) -> io::Result<std::process::Child> {
    let count = options.duration.as_secs() * PINGS_PER_SECOND;
    let interval = format!("{:.3}", 1.0 / PINGS_PER_SECOND as f64);
    Command::new("ping")
        .args(["-q", "-c", &count.to_string(), "-i", &interval, "-W", &PING_LIMIT_S.to_string()])
        .arg(&options.gateway)
        .stdout(Stdio::piped())
        .spawn()
}

/// Sends for `duration`, and takes back what comes until nothing is owed.
fn echo(stream: &TcpStream, duration: Duration) -> io::Result<(u64, Echoed)> {
    stream.set_read_timeout(Some(READ_LIMIT))?;
    let back = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let (reader, count, over) = (stream.try_clone()?, back.clone(), is_over.clone());
    let reading = thread::spawn(move || read(reader, &count, &over));
    let begin = Instant::now();
    let mut sent = 0;
    let mut writer = stream;
    while begin.elapsed() < duration && !is_over.load(Ordering::Relaxed) {
        if sent - back.load(Ordering::Relaxed) > WINDOW - CHUNK as u64 {
            thread::sleep(Duration::from_micros(200));
            continue;
        }
        let bytes: Vec<u8> = (sent..sent + CHUNK as u64).map(pattern).collect();
        if writer.write_all(&bytes).is_err() {
            break;
        }
        sent += CHUNK as u64;
    }
    // The server ends when it has sent everything back; an error here shows as bytes lost.
    let _ = stream.shutdown(Shutdown::Write);
    let echoed = reading.join().map_err(|_| io::Error::other("the reader panicked"))?;
    Ok((sent, echoed))
}

fn read(mut stream: TcpStream, count: &AtomicU64, is_over: &AtomicBool) -> Echoed {
    let mut echoed = Echoed::default();
    let mut chunk = [0; CHUNK];
    let mut last = Instant::now();
    while let Ok(len @ 1..) = stream.read(&mut chunk) {
        echoed.longest_gap = echoed.longest_gap.max(last.elapsed());
        last = Instant::now();
        for (at, byte) in (echoed.bytes..).zip(&chunk[..len]) {
            echoed.wrong += u64::from(*byte != pattern(at));
        }
        echoed.bytes += len as u64;
        count.store(echoed.bytes, Ordering::Relaxed);
    }
    is_over.store(true, Ordering::Relaxed);
    echoed
}

/// Pings sent and answered, from busybox's last lines.
fn count_pings(text: &str) -> (u64, u64) {
    let number = |before: &str| {
        let line = text.lines().find(|line| line.contains(before))?;
        line.split(before).next()?.trim().rsplit(' ').next()?.parse().ok()
    };
    (number(" packets transmitted").unwrap_or(0), number(" packets received").unwrap_or(0))
}

/// What the kernel counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Timeouts {
    timeouts: u64,
    retransmitted: u64,
}

impl Timeouts {
    fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let (netstat, snmp) = (text("/proc/net/netstat"), text("/proc/net/snmp"));
        Self {
            timeouts: counter(&netstat, "TcpExt:", "TCPTimeouts").unwrap_or(0),
            retransmitted: counter(&snmp, "Tcp:", "RetransSegs").unwrap_or(0),
        }
    }
}

/// A counter of a file of two lines per group: names, then values.
fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split(' ').position(|word| word == name)?;
    values.split(' ').nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn counters_and_pings_are_read() {
        let text = "Tcp: A RetransSegs\nTcp: 3 5\nTcpExt: X TCPTimeouts Y\nTcpExt: 1 7 2\n";
        assert_eq!(counter(text, "TcpExt:", "TCPTimeouts"), Some(7));
        assert_eq!(counter(text, "Tcp:", "RetransSegs"), Some(5));
        assert_eq!(counter(text, "Udp:", "X"), None);
        let text = "--- h ping statistics ---\n\
                    50 packets transmitted, 49 packets received, 2% packet loss\n";
        assert_eq!(count_pings(text), (50, 49));
        assert_eq!(count_pings(""), (0, 0));
    }

    #[test]
    fn bytes_that_are_swapped_or_missing_are_noticed() {
        for (damage, is_right) in [(0, true), (1, false), (2, false)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = vec![0; 3 * CHUNK];
                stream.read_exact(&mut bytes).unwrap();
                match damage {
                    1 => bytes.swap(CHUNK, CHUNK + 1),
                    2 => drop(bytes.pop()),
                    _ => {}
                }
                stream.write_all(&bytes).unwrap();
                // The rest, for which this test does not care how much it is, comes back as it is.
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).unwrap();
                stream.write_all(&rest).unwrap();
            });
            let stream = TcpStream::connect(address).unwrap();
            let (sent, echoed) = echo(&stream, Duration::from_millis(100)).unwrap();
            assert_eq!(sent == echoed.bytes && echoed.wrong == 0, is_right, "{damage} {echoed:?}");
        }
    }
}
