//! The ACPI tables of a guest: just enough to describe its vCPU (ACPI 5.0, chapters 5.2.5 to
//! 5.2.12). Linux takes timer interrupts only from a local APIC that a MADT describes.
//!
//! The hardware is *reduced*: no timer, no power button, no legacy device. All tables lie in one
//! page of their own, which the guest's memory map calls ACPI memory.

use super::ACPI_ADDRESS;

/// Bytes of a table's common header.
const HEADER_LEN: usize = 36;
const RSDP_LEN: usize = 36;
const FADT_LEN: usize = 268;
const LOCAL_APIC_LEN: usize = 8;
const MADT_LEN: usize = HEADER_LEN + 8 + LOCAL_APIC_LEN;
const XSDT_LEN: usize = HEADER_LEN + 2 * 8;

const XSDT_AT: usize = 64;
const FADT_AT: usize = 128;
const DSDT_AT: usize = 448;
const MADT_AT: usize = 512;
/// Bytes of all tables together.
pub const TABLES_LEN: usize = MADT_AT + MADT_LEN;

/// FADT: no VGA (2), no real-time clock (5).
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;
/// FADT: WBINVD works (0), a halted CPU idles (2), the hardware is reduced (20).
const FLAGS: u32 = 1 | 1 << 2 | 1 << 20;
/// Where each CPU finds its local APIC.
const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;

// No table reaches into the next.
const _: () = assert!(RSDP_LEN <= XSDT_AT && XSDT_AT + XSDT_LEN <= FADT_AT);
const _: () = assert!(FADT_AT + FADT_LEN <= DSDT_AT && DSDT_AT + HEADER_LEN <= MADT_AT);

/// The tables, to be written at [`ACPI_ADDRESS`], where the RSDP is the first.
pub fn tables() -> [u8; TABLES_LEN] {
    let mut page = [0; TABLES_LEN];
    let address = |at: usize| u64::from(ACPI_ADDRESS) + at as u64;
    page[..8].copy_from_slice(b"RSD PTR ");
    page[9..15].copy_from_slice(b"PpVMM ");
    page[15] = 2;
    put(&mut page, 20, &(RSDP_LEN as u32).to_le_bytes());
    put(&mut page, 24, &address(XSDT_AT).to_le_bytes());
    page[8] = checksum(&page[..20]);
    page[32] = checksum(&page[..RSDP_LEN]);

    put(&mut page, XSDT_AT + HEADER_LEN, &address(FADT_AT).to_le_bytes());
    put(&mut page, XSDT_AT + HEADER_LEN + 8, &address(MADT_AT).to_le_bytes());
    finish(&mut page[XSDT_AT..XSDT_AT + XSDT_LEN], b"XSDT", 1);

    put(&mut page, FADT_AT + 109, &BOOT_ARCHITECTURE.to_le_bytes());
    put(&mut page, FADT_AT + 112, &FLAGS.to_le_bytes());
    put(&mut page, FADT_AT + 140, &address(DSDT_AT).to_le_bytes());
    finish(&mut page[FADT_AT..FADT_AT + FADT_LEN], b"FACP", 5);

    // No definitions at all: the header is the whole table.
    finish(&mut page[DSDT_AT..DSDT_AT + HEADER_LEN], b"DSDT", 2);

    put(&mut page, MADT_AT + 36, &LOCAL_APIC_ADDRESS.to_le_bytes());
    // One processor: number 0, local APIC 0, enabled.
    let processor = [0, LOCAL_APIC_LEN as u8, 0, 0, 1, 0, 0, 0];
    put(&mut page, MADT_AT + HEADER_LEN + 8, &processor);
    finish(&mut page[MADT_AT..MADT_AT + MADT_LEN], b"APIC", 3);
    page
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The byte that makes the sum of all of them 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

/// Writes a table's header, its checksum last.
fn finish(table: &mut [u8], signature: &[u8; 4], revision: u8) {
    let len = table.len() as u32;
    put(table, 0, signature);
    put(table, 4, &len.to_le_bytes());
    table[8] = revision;
    put(table, 10, b"PpVMM ");
    put(table, 16, b"PVHGUEST");
    put(table, 24, &1u32.to_le_bytes());
    put(table, 28, b"PpVM");
    put(table, 32, &1u32.to_le_bytes());
    table[9] = checksum(table);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn each_table_is_found_from_the_root_and_adds_up() {
        let page = tables();
        let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        let table = |address: u64| {
            let at = (address - u64::from(ACPI_ADDRESS)) as usize;
            let len = u32::from_le_bytes(page[at + 4..at + 8].try_into().unwrap()) as usize;
            assert_eq!(sum(&page[at..at + len]), 0);
            (at, &page[at..at + 4], len)
        };
        assert_eq!((sum(&page[..20]), sum(&page[..36])), (0, 0));
        let (xsdt, name, len) = table(word(24));
        assert_eq!((name, len), (&b"XSDT"[..], 52));
        let (fadt, name, len) = table(word(xsdt + 36));
        assert_eq!((name, len), (&b"FACP"[..], 268));
        assert_eq!(table(word(fadt + 140)).1, b"DSDT");
        let (madt, name, len) = table(word(xsdt + 44));
        assert_eq!((name, len), (&b"APIC"[..], 52));
        assert_eq!(page[madt + 44..madt + 52], [0, 8, 0, 0, 1, 0, 0, 0]);
    }
}
