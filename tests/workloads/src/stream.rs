//! A seeded stream of requests by several parties, each a domain, that take turns: what each was
//! answered, and told by watches, is printed, so that two servers can be compared line by line.
//!
//! Party 0 is privileged and makes the tree; party `k` is domain `k`. Whose turn it is follows from
//! the seed; the number of the turn lies in a node that each passes on. Nothing here judges.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use crate::client::{Answer, Client};
use crate::connect;
use crate::options::Options;
use crate::random::Random;
use crate::wire::{self, Op};

/// Where the number of the turn lies; nobody watches it.
const TURN: &str = "/stream-turn";

/// Requests in one turn, at most.
const BATCH_MAX: usize = 12;

/// Turns of a round. Each round has a tree of its own, named by its number, so that a difference
/// does not grow, and an event tells its round.
const ROUND: u64 = 64;

/// One round of this many is wild: its transactions stay open while others, and their own party,
/// change what they look at. In the other rounds a transaction is alone.
const WILD_EVERY: u64 = 8;

/// How long a party sleeps between two looks at the turn.
const LOOK: Duration = Duration::from_millis(1);

/// Transactions that one party has open, at most.
const OPEN_MAX: usize = 3;

/// Answers longer than this are shown by length and hash.
const SHOWN_MAX: usize = 100;

/// Runs a party to the stream's end.
pub fn run(options: &Options) -> io::Result<bool> {
    let client = connect(options, options.seed, &Arc::new(AtomicU64::new(0)))?;
    let mut party = Party {
        client,
        number: options.party,
        round: 0,
        is_wild: false,
        watched: BTreeSet::new(),
        open: Vec::new(),
        told: 0,
    };
    let (mut turn, mut requests) = (0u64, 0u64);
    while requests < options.requests {
        let mut random = Random::new(options.seed ^ (turn + 1).wrapping_mul(0x5851_f42d_4c95_7f2d));
        let owner = if turn.is_multiple_of(ROUND) { 0 } else { random.below(options.parties) };
        let batch = 1 + random.below(BATCH_MAX);
        if owner == options.party {
            party.wait_for(turn)?;
            party.enter(turn / ROUND)?;
            if turn.is_multiple_of(ROUND) {
                party.make_tree(options.parties)?;
            }
            for number in 0..batch {
                let request = party.request(&mut random, options.parties);
                party.send(&format!("{}.{turn}.{number}", party.round), &request)?;
            }
            if !party.is_wild {
                party.end_all()?;
            }
            party.pass_on(turn + 1)?;
        }
        requests += batch as u64;
        turn += 1;
    }
    party.wait_for(turn)?;
    // A guest's kernel hands events over in a thread of its own.
    thread::sleep(100 * LOOK);
    let _ = party.call(Op::Read, 0, &format!("{TURN}\0"))?;
    party.tell();
    println!("STREAM party={} turns={turn} requests={requests}", options.party);
    Ok(true)
}

/// A request of the stream.
struct Request {
    op: Op,
    /// Which of the open transactions it belongs to.
    transaction: Option<usize>,
    payload: String,
}

struct Party {
    client: Client,
    number: usize,
    round: u64,
    is_wild: bool,
    /// Watches that it has: a guest's kernel would take one twice.
    watched: BTreeSet<String>,
    open: Vec<u32>,
    /// Events printed.
    told: u64,
}

impl Party {
    fn call(&mut self, op: Op, transaction: u32, payload: &str) -> io::Result<Answer> {
        self.client.call(op, transaction, payload.as_bytes())
    }

    fn wait_for(&mut self, turn: u64) -> io::Result<()> {
        let wanted = turn.to_string();
        if turn == 0 && self.number == 0 {
            return Ok(());
        }
        loop {
            let now = self.call(Op::Read, 0, &format!("{TURN}\0"))?;
            match now {
                Ok(value) if value == wanted.as_bytes() => return Ok(()),
                Ok(_) => thread::sleep(LOOK),
                // The stream has not begun; other guests are being made.
                Err(_) => thread::sleep(100 * LOOK),
            }
        }
    }

    fn pass_on(&mut self, turn: u64) -> io::Result<()> {
        self.tell();
        self.accept(Op::Write, 0, &format!("{TURN}\0{turn}"))
    }

    /// Begins a round with nothing left of the one before.
    fn enter(&mut self, round: u64) -> io::Result<()> {
        if round == self.round {
            return Ok(());
        }
        self.end_all()?;
        for watch in std::mem::take(&mut self.watched) {
            self.accept(Op::Unwatch, 0, &watch)?;
        }
        self.round = round;
        self.is_wild = round % WILD_EVERY == WILD_EVERY - 1;
        if self.is_wild {
            println!("W {round}");
        }
        Ok(())
    }

    /// Drops every open transaction.
    fn end_all(&mut self) -> io::Result<()> {
        for id in std::mem::take(&mut self.open) {
            self.accept(Op::TransactionEnd, id, "F\0")?;
        }
        Ok(())
    }

    /// A request that must be taken.
    fn accept(&mut self, op: Op, transaction: u32, payload: &str) -> io::Result<()> {
        let answer = self.call(op, transaction, payload)?;
        answer.map(drop).map_err(|error| io::Error::other(format!("{op:?} {payload}: {error}")))
    }

    /// A tree in which each party owns a directory, one is everybody's, one is nobody's.
    fn make_tree(&mut self, parties: usize) -> io::Result<()> {
        let home = |party: usize| format!("/local/domain/{party}");
        let mut kept = vec![(TURN.to_owned(), "b0".to_owned())];
        kept.extend((0..parties).map(|party| (home(party), format!("n0\0r{party}"))));
        let (last, round) = (parties - 1, self.round);
        let base = base(round);
        let mut nodes = vec![(base.clone(), "r0".to_owned())];
        nodes.extend((0..parties).map(|party| (format!("{base}/d{party}"), format!("n{party}"))));
        nodes.push((format!("{base}/all"), "b0".into()));
        nodes.push((format!("{base}/none"), "n0".into()));
        nodes.push((format!("{}{base}", home(last)), format!("r{last}")));
        if let Some(former) = round.checked_sub(1).map(self::base) {
            for path in [former.clone(), format!("{}{former}", home(last))] {
                self.accept(Op::Rm, 0, &format!("{path}\0"))?;
            }
        }
        for (path, permissions) in kept.into_iter().chain(nodes) {
            self.accept(Op::Mkdir, 0, &format!("{path}\0"))?;
            self.accept(Op::SetPerms, 0, &format!("{path}\0{permissions}\0"))?;
        }
        Ok(())
    }

    /// Sends a request and prints its answer.
    fn send(&mut self, place: &str, request: &Request) -> io::Result<()> {
        let id = request.transaction.map_or(0, |index| self.open[index]);
        let answer = self.call(request.op, id, &request.payload)?;
        let shown = match (&answer, request.op) {
            (Ok(id), Op::TransactionStart) => {
                let id = wire::strings(id).concat().parse().map_err(io::Error::other)?;
                self.open.push(id);
                "ok:transaction".to_owned()
            }
            (Ok(payload), _) => format!("ok:{}", show(payload)),
            (Err(error), _) => error.clone(),
        };
        if request.op == Op::TransactionEnd
            && let Some(index) = request.transaction
        {
            self.open.remove(index);
        }
        let inside = request.transaction.map_or(String::new(), |index| format!(" in {index}"));
        let (op, payload) = (request.op, show(request.payload.as_bytes()));
        println!("R {place} {op:?}{inside} {payload} -> {shown}");
        Ok(())
    }

    /// Prints the events that have come.
    fn tell(&mut self) {
        while let Some(event) = self.client.take_event() {
            self.told += 1;
            println!("E {} {} {}", self.told, event.path, event.token);
        }
    }

    /// The next request of this party.
    fn request(&mut self, random: &mut Random, parties: usize) -> Request {
        let path = path(random, parties, &base(self.round));
        let is_inside = !self.open.is_empty() && (random.chance(50) || !self.is_wild);
        let transaction = is_inside.then(|| random.below(self.open.len()));
        let plain = |op, payload| Request { op, transaction, payload };
        match random.below(100) {
            0..20 => plain(Op::Read, format!("{path}\0")),
            20..30 => plain(Op::Directory, format!("{path}\0")),
            30..36 => plain(Op::GetPerms, format!("{path}\0")),
            36..60 => plain(Op::Write, format!("{path}\0{}", value(random))),
            60..66 => plain(Op::Mkdir, format!("{path}\0")),
            66..72 => plain(Op::Rm, format!("{path}\0")),
            72..80 => plain(Op::SetPerms, format!("{path}\0{}", permissions(random, parties))),
            80..86 => self.watch(path, random),
            86..90 => self.unwatch(random),
            90..94 if self.open.len() < self.open_max() => {
                Request { op: Op::TransactionStart, transaction: None, payload: "\0".into() }
            }
            90..94 => plain(Op::Read, format!("{path}\0")),
            94..98 if !self.open.is_empty() => {
                let transaction = Some(random.below(self.open.len()));
                let payload = if random.chance(80) { "T\0" } else { "F\0" };
                Request { op: Op::TransactionEnd, transaction, payload: payload.into() }
            }
            _ => malformed(random, &path),
        }
    }

    fn open_max(&self) -> usize {
        if self.is_wild { OPEN_MAX } else { 1 }
    }

    fn watch(&mut self, path: String, random: &mut Random) -> Request {
        let token = format!("t{}", random.below(3));
        let payload = format!("{path}\0{token}\0");
        // A guest's kernel names its watches itself, so that the server would see two.
        let op = if self.watched.insert(payload.clone()) { Op::Watch } else { Op::Unwatch };
        if op == Op::Unwatch {
            self.watched.remove(&payload);
        }
        Request { op, transaction: None, payload }
    }

    fn unwatch(&mut self, random: &mut Random) -> Request {
        let index = random.below(self.watched.len());
        let payload = match self.watched.iter().nth(index).cloned() {
            Some(payload) => payload,
            // A guest's kernel takes any token back.
            None if self.number == 0 => format!("{}\0no-such-token\0", base(self.round)),
            None => return Request { op: Op::Read, transaction: None, payload: "/\0".into() },
        };
        self.watched.remove(&payload);
        Request { op: Op::Unwatch, transaction: None, payload }
    }
}

/// Where the parties work in a round.
fn base(round: u64) -> String {
    format!("/stream{round}")
}

/// A path: mostly one of few, so that the parties meet.
fn path(random: &mut Random, parties: usize, base: &str) -> String {
    let mut path = match random.below(10) {
        0..4 => format!("{base}/all"),
        4..7 => format!("{base}/d{}", random.below(parties)),
        7 => format!("{base}/none"),
        8 => base[1..].to_owned(),
        _ => base.to_owned(),
    };
    for _ in 0..random.below(4) {
        path.push_str(["/a", "/b", "/longer-name"][random.below(3)]);
    }
    path
}

fn value(random: &mut Random) -> String {
    let length = [0, 1, 8, 60, 700, 1500, 2100][random.below(7)];
    let digit = char::from(b'0' + random.below(10) as u8);
    digit.to_string().repeat(length)
}

fn permissions(random: &mut Random, parties: usize) -> String {
    let mut list = String::new();
    for _ in 0..=random.below(3) {
        let letter = ["n", "r", "w", "b"][random.below(4)];
        list.push_str(&format!("{letter}{}\0", random.below(parties)));
    }
    list
}

/// Requests that a server has to refuse.
fn malformed(random: &mut Random, path: &str) -> Request {
    let (op, payload) = match random.below(10) {
        0 => (Op::Read, path.to_owned()),
        1 => (Op::Read, format!("{path}/\0")),
        2 => (Op::Read, "/stream//a\0".to_owned()),
        3 => (Op::Write, "\0value".to_owned()),
        4 => (Op::Mkdir, format!("{path}/with space\0")),
        5 => (Op::SetPerms, format!("{path}\0x0\0")),
        6 => (Op::Read, format!("/{}\0", "long".repeat(900))),
        7 => (Op::Directory, "@releaseDomain\0".to_owned()),
        8 => (Op::Write, format!("{path}/{}\0v", "n".repeat(300))),
        _ => (Op::Rm, "/\0".to_owned()),
    };
    Request { op, transaction: None, payload }
}

/// Bytes as text without blanks at its ends; long ones by length and hash (FNV-1a).
fn show(bytes: &[u8]) -> String {
    let escape = |byte: &u8| match byte {
        0 => "|".to_owned(),
        b'!'..=b'~' => char::from(*byte).to_string(),
        other => format!("\\x{other:02x}"),
    };
    if bytes.len() <= SHOWN_MAX {
        return bytes.iter().map(escape).collect();
    }
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let start: String = bytes[..SHOWN_MAX / 4].iter().map(escape).collect();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold);
    format!("{start}...{}:{hash:016x}", bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_on_one_line() {
        assert_eq!(show(b"a\0b c\0"), "a|b\\x20c|");
        let long = show(&[b'x'; 200]);
        assert!(long.starts_with("xxx") && long.contains("...200:") && long.len() < SHOWN_MAX);
        assert_ne!(long, show(&[b'y'; 200]));
    }
}
