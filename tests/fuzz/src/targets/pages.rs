//! Pages of the fabric that another unit, or damage, has written.

use fabric::control::{self, Command, Control, ControlReader, ControlWriter, Order, Rung};
use fabric::domains::{
    self, Domain, DomainKind, DomainState, DomainsError, DomainsReader, DomainsWriter,
};
use fabric::health::{HealthReader, HealthWriter, Panic, RecoveryReport, State};
use fabric::log::{CELL_TEXT, Level, Line, LogReader, LogWriter};
use fabric::record::{Kind, Record};
use fabric::{HeapMemory, PAGE_SIZE};

use super::Target;
use crate::Bytes;

pub const TARGET: Target =
    Target { name: "pages", run, seeds, words: &[b"PVts", b"PVrr", b"PVpn"] };

const KIND: Kind = Kind { magic: *b"PVts", version: 2 };
const CAPACITY: usize = 200;

fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let kind = bytes.u8();
    let page = HeapMemory::new(PAGE_SIZE);
    match kind % 5 {
        0 => control(&page, &mut bytes),
        1 => health(&page, &mut bytes),
        2 => domains(&page, &mut bytes),
        3 => log(&page, &mut bytes),
        _ => record(&page, &mut bytes),
    }
}

/// What is left of the input damages the page. Answers whether there was any damage.
fn damage(page: &HeapMemory, bytes: &mut Bytes<'_>) -> bool {
    let is_damaged = !bytes.is_empty();
    while !bytes.is_empty() {
        bytes.damage(page);
    }
    is_damaged
}

fn control(page: &HeapMemory, bytes: &mut Bytes<'_>) {
    let (number, command) = (bytes.u32(), Command::Dump);
    let written = Control {
        epoch: bytes.u32(),
        rung: Rung::Microreboot,
        handed: u64::from(bytes.u32()),
        ping: 2,
        relay: 6,
        order: Some(Order { number, command }),
        nonce: bytes.u64(),
        is_distrusted: bytes.u32() % 2 == 1,
    };
    ControlWriter::new(page).write(&written);
    let reader = ControlReader::new(page);
    if !damage(page, bytes) {
        // Order 0 stands for none.
        let order = written.order.filter(|_| number != 0);
        assert!(reader.read().is_ok_and(|read| read == written || read.order == order));
    }
    match reader.read() {
        Ok(read) => assert_eq!(reader.handed(), Ok(read.handed)),
        Err(why) => assert!(why != control::ControlError::Handed || reader.handed().is_err()),
    }
}

fn health(page: &HeapMemory, bytes: &mut Bytes<'_>) {
    let (epoch, writer, reader) = (bytes.u32(), HealthWriter::new(page), HealthReader::new(page));
    let report = RecoveryReport { rung: bytes.u32(), kept: 1, reloaded: 2, dropped: 3, resumed: 4 };
    writer.start(epoch);
    writer.set_recovery(epoch, &report);
    writer.set_panic(epoch, &Panic::new(format_args!("no slot left"), "src/slots.rs", 31));
    if !damage(page, bytes) {
        assert!(reader.read().is_ok_and(|read| read.state == State::Panicked));
        assert_eq!(reader.recovery(epoch), Some(report));
        assert!(reader.panic(epoch).is_some_and(|panic| panic.line == 31));
    }
    let shown = reader.panic(epoch).map(|panic| panic.to_string());
    assert!(shown.is_none_or(|text| text.is_ascii()));
    // The next life begins on the same page, whatever it has become.
    writer.start(epoch.wrapping_add(1));
    assert!(reader.read().is_ok_and(|read| read.state == State::Starting));
}

fn domains(page: &HeapMemory, bytes: &mut Bytes<'_>) {
    let (writer, reader) = (DomainsWriter::new(page), DomainsReader::new(page));
    writer.initialise();
    let slot = bytes.below(domains::SLOTS);
    let domain = Domain {
        domid: bytes.u16(),
        kind: DomainKind::Guest,
        state: DomainState::Shutdown,
        shutdown_code: bytes.u8(),
        life: bytes.u32(),
    };
    writer.set(slot, Some(domain));
    if !damage(page, bytes) {
        assert_eq!(reader.get(slot), Ok(Some(domain)));
    }
    for slot in 0..domains::SLOTS {
        if reader.get(slot) == Err(DomainsError::Corrupt) {
            reader.hint(slot);
        }
    }
    writer.set(slot, Some(domain));
    assert_eq!(reader.get(slot), Ok(Some(domain)), "a slot written again is repaired");
}

fn log(page: &HeapMemory, bytes: &mut Bytes<'_>) {
    let mut reader = LogReader::new(page);
    for _ in 0..4 {
        let mut writer = LogWriter::new(page);
        for _ in 0..bytes.below(40) {
            writer.line(7, Level::Warning, format_args!("{:?}", bytes.string(200)));
        }
        for _ in 0..bytes.below(4) {
            bytes.damage(page);
        }
        for _ in 0..bytes.below(64) {
            let Some(line) = reader.next_line() else { break };
            assert!(line.text.as_bytes().len() <= CELL_TEXT);
        }
        let mut last = [Line::EMPTY; 8];
        let count = reader.latest(&mut last);
        assert!(last[..count].is_sorted_by_key(|line| line.number));
    }
}

fn record(page: &HeapMemory, bytes: &mut Bytes<'_>) {
    let record = Record::new(page, KIND, CAPACITY);
    let (mut scratch, mut read) = ([0; CAPACITY], [0; CAPACITY]);
    let mut written: Vec<Vec<u8>> = Vec::new();
    while !bytes.is_empty() {
        if bytes.u8().is_multiple_of(2) {
            written.push(bytes.string(CAPACITY).to_vec());
            record.write(bytes.u32(), &written[written.len() - 1], &mut scratch);
        } else {
            bytes.damage(page);
        }
        if let Ok(found) = record.read(&mut read) {
            let known = written.iter().any(|value| value == &read[..found.length]);
            assert!(known, "a record that nobody wrote");
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let kinds = 0..5u8;
    let with = |kind: u8, rest: &[u8]| [&[kind][..], rest].concat();
    let mut seeds: Vec<Vec<u8>> = kinds.clone().map(|kind| with(kind, &[])).collect();
    seeds.extend(kinds.map(|kind| with(kind, &[5, 3, 1, 2, 0, 7, 9, 3, 0, 64, 2, 1, 3, 5, 7, 6])));
    seeds.push(with(
        4,
        b"\x00\x03old\x07\x00\x00\x00\x00\x06fabric\x08\x00\x00\x00\x01\x20\x00\x41",
    ));
    seeds
}
