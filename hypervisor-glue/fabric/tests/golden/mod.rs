//! The golden vectors of the pages on formats, to compare with what code writes.

use fabric::{HeapMemory, SharedMemory};

const PAGES: [&str; 2] =
    [include_str!("../../../../docs/FORMATS.md"), include_str!("../../../../docs/NET-FORMATS.md")];

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

/// Compares with the block of a page that is marked `golden NAME`.
pub fn compare(name: &str, bytes: &[u8]) {
    let start = format!("```golden {name}\n");
    let written = dump(bytes);
    let found = PAGES.iter().find_map(|page| page.split_once(&start));
    let block = found.and_then(|(_, rest)| rest.split_once("```"));
    let (block, _) = block.unwrap_or_else(|| panic!("no block {start}{written}```"));
    assert_eq!(block, written, "golden {name}");
}

/// All that a memory holds.
pub fn bytes_of(memory: &HeapMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    bytes
}
