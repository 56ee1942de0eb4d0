//! The golden vectors of `docs/FORMATS.md` are what this crate writes, byte for byte.

use fabric::archive::ArchiveBuilder;
use fabric::control::{Command, ControlWriter, Order, Rung};
use fabric::domains::{Domain, DomainKind, DomainState, DomainsWriter};
use fabric::health::{HealthWriter, Panic, RecoveryReport, State};
use fabric::keys::{Key, KeyReader, KeyWriter};
use fabric::kick::KickWriter;
use fabric::log::{Level, LogWriter};
use fabric::message::{MessageId, MessageWriter};
use fabric::record::{Kind, Record};
use fabric::{HeapMemory, SharedMemory};

const PAGE: &str = include_str!("../../../docs/FORMATS.md");

/// The lines of 16 bytes that are not all zero, each with its offset.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, line) in bytes.chunks(16).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            text.push_str(&format!("{:04x}: {}\n", 16 * index, hex.join(" ")));
        }
    }
    text
}

/// Compares with the block of the page that is marked `golden NAME`.
fn compare(name: &str, bytes: &[u8]) {
    let start = format!("```golden {name}\n");
    let written = dump(bytes);
    let block = PAGE.split_once(&start).and_then(|(_, rest)| rest.split_once("```"));
    let (block, _) = block.unwrap_or_else(|| panic!("no block {start}{written}```"));
    assert_eq!(block, written, "docs/FORMATS.md, golden {name}");
}

fn bytes_of(memory: &HeapMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    bytes
}

#[test]
fn record() {
    let memory = HeapMemory::new(Record::<HeapMemory>::size(8));
    let record = Record::new(memory.clone(), Kind { magic: *b"PVts", version: 2 }, 8);
    record.write(7, b"old", &mut [0; 8]);
    record.write(7, b"fabric", &mut [0; 8]);
    compare("record", &bytes_of(&memory));
}

#[test]
fn control() {
    let memory = HeapMemory::new(4096);
    let writer = ControlWriter::new(&memory);
    writer.initialise(0x0123_4567_89ab_cdef);
    writer.set_life(3, Rung::Microreboot, false);
    writer.set_handed(10);
    writer.set_ping(2);
    writer.set_relay(6);
    writer.set_order(Order { number: 1, command: Command::Dump });
    compare("control", &bytes_of(&memory));
}

#[test]
fn health() {
    let memory = HeapMemory::new(4096);
    let writer = HealthWriter::new(&memory);
    writer.start(3);
    writer.set_taken(9);
    writer.add_progress(0x1_0002);
    writer.set_pong(2);
    let report = RecoveryReport { rung: 2, kept: 1, reloaded: 1000, dropped: 3, resumed: 4 };
    writer.set_recovery(3, &report);
    writer.set_state(3, State::Serving);
    compare("health", &bytes_of(&memory));
    writer.set_panic(3, &Panic::new(format_args!("no slot left"), "src/slots.rs", 31));
    compare("health-panic", &bytes_of(&memory)[1024..]);
}

#[test]
fn kick() {
    let (own, peer) = (HeapMemory::new(192), HeapMemory::new(192));
    let mut writer = KickWriter::<_, _, 16>::new(&own, &peer);
    writer.push(3);
    writer.push(15);
    compare("kick", &bytes_of(&own));
}

#[test]
fn message() {
    let (own, peer) = (HeapMemory::new(8192), HeapMemory::new(8192));
    let mut writer = MessageWriter::new(&own, &peer);
    writer.send(MessageId { epoch: 3, sequence: 0x0102 }, b"hello").unwrap();
    compare("message", &bytes_of(&own));
}

#[test]
fn log() {
    let memory = HeapMemory::new(512);
    let mut writer = LogWriter::new(memory.clone());
    writer.line(0x0102, Level::Information, format_args!("ready"));
    compare("log", &bytes_of(&memory));
}

#[test]
fn keys() {
    let (typed, taken) = (HeapMemory::new(4096), HeapMemory::new(4096));
    let mut writer = KeyWriter::new(&typed, &taken);
    let mut reader = KeyReader::new(&taken, &typed);
    writer.attach(Some(17));
    for (byte, position) in [(b'k', 5), (b'e', 6)] {
        writer.push(Key { domid: 17, byte }).unwrap();
        reader.peek().unwrap();
        reader.place(position);
        if byte == b'k' {
            reader.consume();
        }
    }
    compare("keys", &bytes_of(&typed));
    compare("keys-taken", &bytes_of(&taken));
}

#[test]
fn domains() {
    let memory = HeapMemory::new(4096);
    let writer = DomainsWriter::new(&memory);
    writer.initialise();
    let (kind, state) = (DomainKind::Guest, DomainState::Shutdown);
    writer.set(1, Some(Domain { domid: 17, kind, state, shutdown_code: 3, life: 4 }));
    compare("domains", &bytes_of(&memory)[..96]);
}

#[test]
fn archive() {
    let mut builder = ArchiveBuilder::new();
    builder.add("check", b"123456789").unwrap();
    compare("archive", &builder.build());
}
