//! Sockets: a thread that accepts, and per connection one that reads and one that writes, so that
//! the engine never waits for a client.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

/// What happens at the sockets.
pub enum Event {
    /// A client of this domain connected.
    Opened(u64, u16, Outlet),
    /// A client sent bytes.
    Received(u64, Vec<u8>),
    /// A client has taken what it was sent.
    Drained(u64),
    /// A client is gone.
    Closed(u64),
}

/// Where the engine puts bytes for a client.
pub struct Outlet {
    bytes: Sender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    stream: UnixStream,
}

/// Bytes that may wait for a client which does not read, beside those in its ring.
const WAITING_MAX: usize = 64 * 1024;

impl Outlet {
    /// Whether the client keeps up.
    pub fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Acquire) < WAITING_MAX
    }

    /// Sends bytes.
    pub fn send(&self, bytes: Vec<u8>) {
        self.waiting.fetch_add(bytes.len(), Ordering::AcqRel);
        // A closed client is told by its reader.
        let _ = self.bytes.send(bytes);
    }

    /// Ends the connection.
    pub fn close(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Numbers of connections, unique over all sockets.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// Listens on the socket of a domain and reports what happens there.
///
/// Binding makes the file, but only listening makes it answer. The socket gets its name when it
/// listens, so that whoever sees the file can connect.
pub fn listen(path: &Path, domid: u16, inbox: Sender<Event>) -> std::io::Result<()> {
    let mut nascent = path.as_os_str().to_owned();
    nascent.push(format!(".{}", std::process::id()));
    // A file of that name is left from a process that is gone.
    match std::fs::remove_file(&nascent) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&nascent)?;
    std::fs::rename(&nascent, path)?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            match stream.and_then(|stream| connect(domid, stream, &inbox)) {
                Ok(()) => {}
                Err(error) => eprintln!("cannot serve a client: {error}"),
            }
        }
    });
    Ok(())
}

fn connect(domid: u16, stream: UnixStream, inbox: &Sender<Event>) -> std::io::Result<()> {
    let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let (sender, receiver) = mpsc::channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let outlet = Outlet { bytes: sender, waiting: waiting.clone(), stream: stream.try_clone()? };
    let reader = stream.try_clone()?;
    let _ = inbox.send(Event::Opened(number, domid, outlet));
    let reports = inbox.clone();
    thread::spawn(move || read(number, reader, &reports));
    let reports = inbox.clone();
    thread::spawn(move || write(number, stream, &receiver, &waiting, &reports));
    Ok(())
}

fn read(number: u64, mut stream: UnixStream, inbox: &Sender<Event>) {
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if inbox.send(Event::Received(number, buffer[..count].to_vec())).is_err() {
            return;
        }
    }
    let _ = inbox.send(Event::Closed(number));
}

fn write(
    number: u64,
    mut stream: UnixStream,
    outgoing: &Receiver<Vec<u8>>,
    waiting: &AtomicUsize,
    inbox: &Sender<Event>,
) {
    for bytes in outgoing {
        if stream.write_all(&bytes).is_err() {
            return;
        }
        let before = waiting.fetch_sub(bytes.len(), Ordering::AcqRel);
        if before >= WAITING_MAX {
            let _ = inbox.send(Event::Drained(number));
        }
    }
}
