//! A guest's console ring.

use fabric::keys::{Key, KeyReader, KeyWriter};
use fabric::{HeapMemory, SharedMemory};
use tool_engine::console::{Console, MAX_LINE};

use super::Target;
use crate::Bytes;

pub const TARGET: Target = Target { name: "console", run, seeds, words: &[b"\r\n"] };

/// Bytes of the guest's ring of output.
const OUTPUT_LEN: u32 = 2048;

fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let page = HeapMemory::new(4096);
    let (mut now_ns, mut console) = (0, Console::new(page.clone(), 0));
    while !bytes.is_empty() {
        match bytes.u8() % 6 {
            0 => bytes.damage(&page),
            1 => {
                let index = 3072 + 4 * bytes.below(4);
                page.store_u32(index, bytes.u32());
            }
            2 => print(&page, bytes.string(255)),
            3 => now_ns += u64::from(bytes.u32()),
            4 => type_keys(&mut console, bytes.string(255)),
            _ => console = Console::new(page.clone(), now_ns),
        }
        let mut longest = 0;
        let pumped = console.pump(now_ns, |line| longest = longest.max(line.len()));
        assert!(pumped.taken <= OUTPUT_LEN && pumped.dropped <= pumped.taken);
        assert!(longest <= MAX_LINE);
    }
    console.flush(|line| assert!(line.len() <= MAX_LINE));
}

fn type_keys(console: &mut Console<HeapMemory>, text: &[u8]) {
    let (keys, taken) = (HeapMemory::new(4096), HeapMemory::new(16));
    let mut reader = KeyReader::new(taken.clone(), keys.clone());
    let mut writer = KeyWriter::new(keys, taken);
    for byte in text {
        writer.push(Key { domid: 16, byte: *byte }).expect("a string fits the ring");
    }
    while let Some(key) = reader.peek() {
        console.type_first(key.byte, &mut reader);
    }
}

fn print(page: &HeapMemory, text: &[u8]) {
    let mut produced = page.load_u32(3084);
    for byte in text {
        page.write(1024 + (produced % OUTPUT_LEN) as usize, &[*byte]);
        produced = produced.wrapping_add(1);
    }
    page.store_u32(3084, produced);
}

fn seeds() -> Vec<Vec<u8>> {
    vec![
        b"\x02\x06hello\n\x04\x03key\x05".to_vec(),
        b"\x02\x0chalf a line.\x05\x02\x03\r\n!\x03\xff\xff\xff\xff".to_vec(),
        b"\x01\x03\xff\xff\xff\xff\x01\x02\xf0\xff\xff\xff\x02\x1fround the end of numbers...\n"
            .to_vec(),
    ]
}
