//! A client at its ring: it knows what every answer must be.

use std::collections::VecDeque;

use fabric::{HeapMemory, SharedMemory};
use wire::ring as layout;
use wire::{HEADER_LEN, Header, Operation};

/// What the client is about to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Watch,
    Write,
    Read,
    Remove,
    Begin,
    ReadCount,
    WriteCount,
    End,
}

/// A client.
pub struct Client {
    pub domid: u16,
    pub page: HeapMemory,
    stream: Vec<u8>,
    unsent: VecDeque<u8>,
    step: Step,
    request: u32,
    waiting: bool,
    transaction: u32,
    /// Writes so far; the value of the key.
    writes: u32,
    /// Transactions that were committed: what the counter must be.
    pub counted: u32,
    read_count: u32,
    /// Events of the key that came, of the writes that were asked for.
    events: u32,
    /// Transactions that have to be begun again.
    pub again: u32,
    pub is_stopped: bool,
}

impl Client {
    pub fn new(domid: u16) -> Self {
        Self {
            domid,
            page: HeapMemory::new(4096),
            stream: Vec::new(),
            unsent: VecDeque::new(),
            step: Step::Watch,
            request: 0,
            waiting: false,
            transaction: 0,
            writes: 0,
            counted: 0,
            read_count: 0,
            events: 0,
            again: 0,
            is_stopped: false,
        }
    }

    pub fn ask(&mut self, operation: Operation, transaction: u32, payload: &[u8]) {
        assert!(!self.waiting, "one request at a time");
        self.request += 1;
        self.waiting = true;
        let len = payload.len() as u32;
        let header = Header { operation, request: self.request, transaction, len };
        self.unsent.extend(header.emit());
        self.unsent.extend(payload);
    }

    /// Where it stands, for messages.
    pub fn describe(&self) -> String {
        let words = [layout::REQUEST_CONSUMER, layout::REQUEST_PRODUCER]
            .map(|index| self.page.load_u32(index));
        let Self { domid, step, request, counted, again, .. } = self;
        format!("d{domid}: {step:?} {request}, {counted} counted, {again} again, {words:?}")
    }

    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Moves bytes both ways, at most `limit` each; answers a reply's operation and payload.
    pub fn exchange(&mut self, limit: usize) -> Option<(Operation, Vec<u8>)> {
        let produced = self.page.load_u32(layout::REQUEST_PRODUCER);
        let consumed = self.page.load_u32(layout::REQUEST_CONSUMER);
        let room = 1024 - produced.wrapping_sub(consumed) as usize;
        let count = room.min(self.unsent.len()).min(limit);
        for offset in 0..count as u32 {
            let at = produced.wrapping_add(offset) as usize % 1024;
            self.page.write(layout::REQUESTS + at, &[self.unsent.pop_front().unwrap()]);
        }
        self.page.store_u32(layout::REQUEST_PRODUCER, produced.wrapping_add(count as u32));
        let produced = self.page.load_u32(layout::RESPONSE_PRODUCER);
        let consumed = self.page.load_u32(layout::RESPONSE_CONSUMER);
        let count = (produced.wrapping_sub(consumed) as usize).min(limit);
        assert!(count <= 1024, "the server overran the ring");
        for offset in 0..count as u32 {
            let mut byte = [0];
            let at = consumed.wrapping_add(offset) as usize % 1024;
            self.page.read(layout::RESPONSES + at, &mut byte);
            self.stream.push(byte[0]);
        }
        self.page.store_u32(layout::RESPONSE_CONSUMER, consumed.wrapping_add(count as u32));
        self.take_message()
    }

    fn take_message(&mut self) -> Option<(Operation, Vec<u8>)> {
        let header = Header::parse(self.stream.first_chunk::<HEADER_LEN>()?);
        let len = HEADER_LEN + header.payload_len().unwrap();
        if self.stream.len() < len {
            return None;
        }
        let payload = self.stream[HEADER_LEN..len].to_vec();
        self.stream.drain(..len);
        if header.operation == Operation::WatchEvent {
            assert_eq!(payload, [self.key().as_bytes(), b"\0token\0"].concat());
            self.events += 1;
            return None;
        }
        assert_eq!(header.request, self.request, "d{}: an answer to another request", self.domid);
        assert!(core::mem::take(&mut self.waiting), "d{}: a second answer", self.domid);
        Some((header.operation, payload))
    }

    fn key(&self) -> String {
        format!("/work/{}/key", self.domid)
    }

    fn count_key(&self) -> String {
        format!("/count/{}", self.domid)
    }

    /// Goes on with the script.
    pub fn go_on(&mut self, limit: usize) {
        if let Some((operation, payload)) = self.exchange(limit) {
            self.judge(operation, &payload);
        }
        if self.waiting || self.is_stopped {
            return;
        }
        let (key, count) = (self.key(), self.count_key());
        let inside = self.transaction;
        match self.step {
            Step::Watch => self.ask(Operation::Watch, 0, format!("{key}\0token\0").as_bytes()),
            Step::Write => {
                self.writes += 1;
                let payload = format!("{key}\0value {}", self.writes);
                self.ask(Operation::Write, 0, payload.as_bytes());
            }
            Step::Read => self.ask(Operation::Read, 0, format!("{key}\0").as_bytes()),
            Step::Remove => self.ask(Operation::Remove, 0, format!("{key}\0").as_bytes()),
            Step::Begin => self.ask(Operation::TransactionStart, 0, b"\0"),
            Step::ReadCount => self.ask(Operation::Read, inside, format!("{count}\0").as_bytes()),
            Step::WriteCount => {
                let payload = format!("{count}\0{}", self.read_count + 1);
                self.ask(Operation::Write, inside, payload.as_bytes());
            }
            Step::End => self.ask(Operation::TransactionEnd, inside, b"T\0"),
        }
    }

    fn judge(&mut self, operation: Operation, payload: &[u8]) {
        let text = String::from_utf8_lossy(payload).replace('\0', "");
        let about = format!("d{} {:?} request {}: {text}", self.domid, self.step, self.request);
        let is_error = operation == Operation::Error;
        self.step = match self.step {
            Step::Watch => Step::Write,
            Step::Write => {
                assert_eq!(text, "OK", "{about}");
                Step::Read
            }
            Step::Read => {
                assert_eq!(text, format!("value {}", self.writes), "{about}");
                assert!(self.events >= 1, "{about}: the event of the write comes before");
                self.events = 0;
                if self.writes.is_multiple_of(3) { Step::Remove } else { Step::Begin }
            }
            Step::Remove => {
                // Executed twice it would be ENOENT.
                assert_eq!(text, "OK", "{about}");
                Step::Begin
            }
            Step::Begin => {
                assert!(!is_error, "{about}");
                self.transaction = text.parse().unwrap();
                Step::ReadCount
            }
            Step::ReadCount => {
                // In a transaction that was lost any state may be seen: its end tells.
                self.read_count = text.parse().unwrap_or(0);
                Step::WriteCount
            }
            Step::WriteCount => {
                assert_eq!(text, "OK", "{about}");
                Step::End
            }
            Step::End if text == "EAGAIN" => {
                self.again += 1;
                Step::Begin
            }
            Step::End => {
                assert_eq!(text, "OK", "{about}");
                self.counted += 1;
                assert_eq!(self.read_count + 1, self.counted, "{about}: the counter");
                Step::Write
            }
        };
    }
}
