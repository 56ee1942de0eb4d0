//! Golden vectors of the wire formats, and the promise that no bytes make a parser panic.

use proptest::prelude::*;
use wire::ring::{self, INTERFACE_LEN};
use wire::{Errno, HEADER_LEN, Header, Operation, PayloadTooLong, Permission, text};

/// A READ of `domid` outside a transaction, as a Linux guest sends it first of all.
const READ_DOMID: [u8; 22] = [
    2, 0, 0, 0, // READ
    0x10, 0x32, 0x54, 0x76, // request id
    0, 0, 0, 0, // no transaction
    6, 0, 0, 0, // length
    b'd', b'o', b'm', b'i', b'd', 0,
];

/// A refusal in transaction 7.
const ERROR_ENOENT: [u8; 23] = [
    16, 0, 0, 0, // ERROR
    1, 0, 0, 0, // request id
    7, 0, 0, 0, // transaction
    7, 0, 0, 0, // length
    b'E', b'N', b'O', b'E', b'N', b'T', 0,
];

fn split(message: &[u8]) -> (Header, &[u8]) {
    let (header, payload) = message.split_first_chunk::<HEADER_LEN>().expect("a whole header");
    (Header::parse(header), payload)
}

#[test]
fn a_request() {
    let (header, payload) = split(&READ_DOMID);
    let expected =
        Header { operation: Operation::Read, request: 0x7654_3210, transaction: 0, len: 6 };
    assert_eq!(header, expected);
    assert_eq!(header.payload_len(), Ok(6));
    assert_eq!(text::only(payload), Some(&b"domid"[..]));
    assert_eq!(header.emit(), READ_DOMID[..HEADER_LEN]);
}

#[test]
fn a_refusal() {
    let (header, payload) = split(&ERROR_ENOENT);
    assert_eq!(header.operation, Operation::Error);
    assert_eq!(header.transaction, 7);
    assert_eq!(payload, Errno::NotFound.payload());
    assert_eq!(text::only(payload).and_then(Errno::from_name), Some(Errno::NotFound));
}

#[test]
fn a_payload_beyond_the_limit() {
    let mut message = READ_DOMID;
    message[12..16].copy_from_slice(&4097u32.to_le_bytes());
    let (header, _) = split(&message);
    assert_eq!(header.payload_len(), Err(PayloadTooLong { announced: 4097 }));
    message[12..16].copy_from_slice(&4096u32.to_le_bytes());
    assert_eq!(split(&message).0.payload_len(), Ok(4096));
}

#[test]
fn permissions() {
    for (string, domid, read, write) in
        [("n0", 0, false, false), ("r5", 5, true, false), ("b16", 16, true, true)]
    {
        let entry = Permission::parse(string.as_bytes()).expect("a good entry");
        assert_eq!((entry.domid, entry.access.read, entry.access.write), (domid, read, write));
    }
}

/// Offsets of Xen's `io/xs_wire.h`, computed from the C structure.
#[test]
fn the_ring_page() {
    assert_eq!(ring::REQUESTS, 0);
    assert_eq!(ring::RESPONSES, 0x400);
    assert_eq!(ring::REQUEST_CONSUMER, 0x800);
    assert_eq!(ring::REQUEST_PRODUCER, 0x804);
    assert_eq!(ring::RESPONSE_CONSUMER, 0x808);
    assert_eq!(ring::RESPONSE_PRODUCER, 0x80c);
    assert_eq!(ring::SERVER_FEATURES, 2064);
    assert_eq!(ring::CONNECTION, 2068);
    assert_eq!(ring::ERROR, 2072);
    assert_eq!(ring::EVENT_PORT, 2076);
    assert_eq!(INTERFACE_LEN, 2080);
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes: Vec<u8>, words: [u32; 4]) {
        if let Some(header) = bytes.first_chunk::<HEADER_LEN>() {
            let header = Header::parse(header);
            prop_assert_eq!(&header.emit()[..], &bytes[..HEADER_LEN]);
            let _ = header.payload_len();
        }
        let _ = (text::only(&bytes), text::exactly::<3>(&bytes), text::frame(&bytes));
        prop_assert_eq!(text::strings(&bytes).count(), text::count(&bytes));
        if let Some(entry) = Permission::parse(&bytes) {
            // Leading zeros are read but not written.
            entry.emit(|text| assert_eq!(Permission::parse(text), Some(entry)));
        }
        if let Ok(len) = ring::filled(words[0], words[1]) {
            let [first, second] = ring::stretches(words[1], len);
            prop_assert_eq!(first.1 + second.1, len);
        }
    }
}
