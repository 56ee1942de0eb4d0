//! XenStore messages: headers, strings, numbers, permissions, paths.

use store::path::{self, Special};
use wire::{ABSOLUTE_PATH_MAX, HEADER_LEN, Header, Permission, RELATIVE_PATH_MAX, text};

use super::Target;
use crate::Bytes;

pub const TARGET: Target = Target {
    name: "wire",
    run,
    seeds,
    words: &[b"/local/domain/", b"@releaseDomain", b"65535", b"4294967295", b"\0"],
};

fn run(input: &[u8]) {
    if let Some(head) = input.first_chunk::<HEADER_LEN>() {
        let header = Header::parse(head);
        assert_eq!(&header.emit(), head);
        assert_eq!(header.payload_len().is_ok(), header.len <= 4096);
    }
    let mut bytes = Bytes::new(input);
    let (from, len) = (bytes.u32(), usize::from(bytes.u16()));
    let stretches = wire::ring::stretches(from, len);
    assert!(stretches.iter().all(|(start, count)| start + count <= 1024));
    assert_eq!(stretches[0].1 + stretches[1].1, len.min(1024));
    let domid = bytes.u16();
    strings(bytes.rest());
    numbers(bytes.rest());
    paths(bytes.rest(), domid);
}

fn strings(payload: &[u8]) {
    let all: Vec<&[u8]> = text::strings(payload).collect();
    assert_eq!(all.len(), text::count(payload));
    let joined: Vec<u8> = all.iter().flat_map(|string| [string, &b"\0"[..]].concat()).collect();
    assert!(payload.starts_with(&joined) && !payload[joined.len()..].contains(&0));
    let is_whole = joined.len() == payload.len();
    assert_eq!(text::only(payload).is_some(), is_whole && all.len() == 1);
    assert_eq!(text::exactly::<2>(payload).is_some(), is_whole && all.len() == 2);
    assert_eq!(text::split(payload).map(|(first, _)| first), all.first().copied());
}

fn numbers(string: &[u8]) {
    let digits = std::str::from_utf8(string).ok();
    let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let number: Option<u32> = digits.and_then(|digits| digits.parse().ok());
    assert_eq!(text::decimal(string), number);
    assert_eq!(text::domid(string), number.and_then(|number| number.try_into().ok()));
    if let Some(frame) = text::frame(string) {
        let mut buffer = [0; text::DECIMAL_MAX];
        let written = text::format_decimal(frame, &mut buffer);
        assert_eq!(text::frame(written), Some(frame));
    }
    if let Some(permission) = Permission::parse(string) {
        permission.emit(|written| assert_eq!(Permission::parse(written), Some(permission)));
    }
}

fn paths(sent: &[u8], domid: u16) {
    for special in [Special::Allowed, Special::Refused] {
        let mut scratch = path::Buffer::new();
        let resolved = path::resolve(sent, domid, special, RELATIVE_PATH_MAX, &mut scratch);
        let Ok(name) = resolved else { continue };
        assert!(name.path.len() <= ABSOLUTE_PATH_MAX && name.path.ends_with(sent));
        assert_eq!(name.implicit, name.path.len() - sent.len());
        if name.is_special() {
            assert!(special == Special::Allowed);
            continue;
        }
        let mut again = Vec::new();
        for component in path::components(name.path) {
            assert!(!component.is_empty());
            again.push(b'/');
            again.extend_from_slice(component);
        }
        assert!(again == name.path || name.path == b"/");
        assert!(name.path.starts_with(path::parent(name.path)));
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let head = Header { operation: wire::Operation::Write, request: 1, transaction: 2, len: 9 };
    let seed = |tail: &[u8]| [&[0; 8][..], tail].concat();
    vec![
        [&head.emit()[..], b"/a/b\0value"].concat(),
        seed(b"/local/domain/5/name"),
        seed(b"device/vif/0\0token\0"),
        seed(b"r12"),
        seed(b"-18446744073709551615"),
        seed(b"@releaseDomain"),
    ]
}
