//! A XenStore connection: one request at a time, watch events kept aside.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::watchdog::Pulse;
use crate::wire::{self, ERROR, Op, WATCH_EVENT};

/// Watch events kept until somebody takes them: far more than one request can cause.
const EVENTS_MAX: usize = 4096;

/// Where the server is.
#[derive(Clone, Debug)]
pub enum Server {
    /// The guest kernel's device: the kernel answers WATCH and UNWATCH itself.
    Device(String),
    /// A server's Unix socket.
    Socket(String),
}

enum Stream {
    Device(File),
    Socket(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Device(file) => file.read(buffer),
            Stream::Socket(socket) => socket.read(buffer),
        }
    }
}

/// A watch event: the path that changed and the watch's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The changed path, as the watch was registered (relative or absolute).
    pub path: String,
    /// The watch's token.
    pub token: String,
}

/// What the server answered.
pub type Answer = Result<Vec<u8>, String>;

/// A connection.
pub struct Client {
    stream: Stream,
    pulse: Arc<Pulse>,
    request: u32,
    events: VecDeque<Event>,
    /// Answers to requests that had been answered before.
    pub repeated: u64,
    /// The latest request's time from its first byte to its answer's last.
    pub latency: Duration,
}

impl Client {
    /// Connects; `pulse` says to a watchdog whether an answer is awaited.
    pub fn open(server: &Server, pulse: Arc<Pulse>) -> io::Result<Client> {
        let stream = match server {
            Server::Device(path) => {
                Stream::Device(OpenOptions::new().read(true).write(true).open(Path::new(path))?)
            }
            Server::Socket(path) => Stream::Socket(UnixStream::connect(path)?),
        };
        Ok(Client {
            stream,
            pulse,
            request: 0,
            events: VecDeque::new(),
            repeated: 0,
            latency: Duration::ZERO,
        })
    }

    /// Sends one request and waits for its answer: the payload, or the error's name.
    pub fn call(&mut self, op: Op, transaction: u32, payload: &[u8]) -> io::Result<Answer> {
        self.request = self.request.wrapping_add(1);
        let bytes = wire::encode(op, self.request, transaction, payload);
        let begin = Instant::now();
        self.pulse.awaiting();
        match &mut self.stream {
            Stream::Device(file) => file.write_all(&bytes)?,
            Stream::Socket(socket) => socket.write_all(&bytes)?,
        }
        let answer = self.answer(op)?;
        self.latency = begin.elapsed();
        self.pulse.answered();
        Ok(answer)
    }

    fn answer(&mut self, op: Op) -> io::Result<Answer> {
        loop {
            let message = wire::read(&mut self.stream)?;
            if message.kind == WATCH_EVENT {
                self.keep_event(&message.payload)?;
                continue;
            }
            if message.request != self.request {
                self.repeated += 1;
                continue;
            }
            if message.kind == ERROR {
                return Ok(Err(wire::strings(&message.payload).concat()));
            }
            if message.kind == op as u32 {
                return Ok(Ok(message.payload));
            }
            return Ok(Err(format!("an answer of kind {}", message.kind)));
        }
    }

    fn keep_event(&mut self, payload: &[u8]) -> io::Result<()> {
        let mut parts = wire::strings(payload).into_iter();
        let (Some(path), Some(token)) = (parts.next(), parts.next()) else {
            return Err(io::Error::other("a watch event without path and token"));
        };
        if self.events.len() == EVENTS_MAX {
            return Err(io::Error::other("more watch events than anything here could cause"));
        }
        self.events.push_back(Event { path, token });
        Ok(())
    }

    /// The next watch event that has arrived.
    pub fn take_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}
