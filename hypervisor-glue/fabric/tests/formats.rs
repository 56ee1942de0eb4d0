//! The golden vectors of `docs/FORMATS.md` are what this crate writes, byte for byte.

mod golden;

use fabric::HeapMemory;
use fabric::archive::ArchiveBuilder;
use fabric::control::{Command, ControlWriter, Order, Rung};
use fabric::domains::{Domain, DomainKind, DomainState, DomainsWriter};
use fabric::health::{HealthWriter, Panic, RecoveryReport, State};
use fabric::keys::{Key, KeyReader, KeyWriter};
use fabric::kick::KickWriter;
use fabric::log::{Level, LogWriter};
use fabric::message::{MessageId, MessageWriter};
use fabric::record::{Kind, Record};
use golden::{bytes_of, compare};

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
