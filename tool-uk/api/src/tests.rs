//! Golden vectors, round trips, hostile bytes, every refusal.

use proptest::prelude::*;

use super::*;

const GUEST: GuestId = GuestId(16);

fn request(operation: Operation<'_>) -> Request<'_> {
    Request { epoch: 2, sequence: 300, operation }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The vector of this name on the page of formats.
fn golden(name: &str) -> &'static str {
    const PAGE: &str = include_str!("../../FORMATS.md");
    let (_, block) = PAGE.split_once("```golden messages\n").expect("the block is there");
    let vector = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    vector.unwrap_or_else(|| panic!("no vector for {name}"))
}

fn create() -> Operation<'static> {
    let limits = GuestLimits { pages: 65536, vcpus: 1, max_port: 1023, grant_frames: 32 };
    Operation::Create { guest: GUEST, limits }
}

fn grants(list: &[(u32, u16, u32)]) -> Operation<'static> {
    let grants = list.iter().map(|&(reference, to, gfn)| Grant { reference, to, gfn }).collect();
    Operation::SeedGrants { guest: GUEST, grants }
}

/// One operation of each kind and its name on the page. A change of its encoding is a new
/// [`VERSION`].
fn golden_requests() -> Vec<(Operation<'static>, &'static str)> {
    let load =
        Operation::Load { guest: GUEST, entry: "vmlinux", offset: 4096, address: 1 << 24, len: 9 };
    let populate = Operation::Populate { guest: GUEST, before: 512, first_gfn: 512, pages: 512 };
    let read = Operation::ReadArchive { entry: "initrd", offset: 0, len: 64 };
    let param = Operation::SetParam { guest: GUEST, param: Param::ConsolePort, value: 2 };
    vec![
        (create(), "create"),
        (populate, "populate"),
        (load, "load"),
        (Operation::Zero { guest: GUEST, address: 16, len: 5 }, "zero"),
        (Operation::Write { guest: GUEST, address: 16, bytes: b"ab" }, "write"),
        (read, "read archive"),
        (param, "set parameter"),
        (Operation::ConnectStore { guest: GUEST }, "connect XenStore"),
        (Operation::ConnectConsole { guest: GUEST }, "connect console"),
        (grants(&[(1, 1, 0xfeffc)]), "seed grants"),
        (Operation::SetEntry { guest: GUEST, rip: 1, start_info: 2 }, "set entry"),
        (Operation::Pause { guest: GUEST }, "pause"),
        (Operation::Unpause { guest: GUEST }, "unpause"),
        (Operation::Destroy { guest: GUEST }, "destroy"),
        (Operation::Query { guest: GUEST }, "query"),
        (Operation::List { from: GUEST }, "list"),
        (Operation::Host { power: Power::Reboot }, "host"),
    ]
}

#[test]
fn golden_requests_keep_their_encoding() {
    for (operation, name) in golden_requests() {
        let request = request(operation);
        let mut bytes = [0; MAX_MESSAGE];
        let len = request.encode(&mut bytes).unwrap();
        assert_eq!(hex(&bytes[..len]), golden(name), "{request:?}");
        assert_eq!(Request::decode(&bytes[..len]).unwrap(), request);
        assert_eq!(validate(&request.operation, &Limits::default()), Ok(()));
    }
}

#[test]
fn golden_replies_keep_their_encoding() {
    let status = GuestStatus {
        guest: GUEST,
        state: GuestState::Shutdown(3),
        pages: 2,
        cpu_time_ns: 1_000_000,
    };
    let two = [status, GuestStatus { state: GuestState::Running, ..status }];
    let cases = [
        (Outcome::Done, "done"),
        (Outcome::Port(5), "port"),
        (Outcome::Bytes { entry_len: 300, bytes: b"xy" }, "bytes"),
        (Outcome::Guest(status), "guest"),
        (Outcome::Guests { guests: two.into_iter().collect(), more: true }, "guests"),
        (Outcome::Refused(Refusal::NotAGuest(1)), "refused"),
        (Outcome::Failed(Failure::EntryEnds { len: 7 }), "failed"),
        (Outcome::Failed(Failure::Xen(-22)), "failed with an error number"),
    ];
    for (outcome, name) in cases {
        let reply = Reply { epoch: 2, sequence: 300, outcome };
        let mut bytes = [0; MAX_MESSAGE];
        let len = reply.encode(&mut bytes).unwrap();
        assert_eq!(hex(&bytes[..len]), golden(name), "{reply:?}");
        assert_eq!(Reply::decode(&bytes[..len]).unwrap(), reply);
    }
}

#[test]
fn the_largest_messages_fit() {
    let bytes = [0xff; MAX_BYTES];
    let name = "x".repeat(MAX_NAME);
    let operations = [
        Operation::Write { guest: GuestId(0x7fef), address: 0xffff_0000, bytes: &bytes },
        Operation::Load {
            guest: GuestId(0x7fef),
            entry: &name,
            offset: 0xf000_0000,
            address: 0xf000_0000,
            len: MAX_LOAD_LEN,
        },
        grants(&[(7, 5, 0xfefff); MAX_GRANTS]),
    ];
    let mut buffer = [0; MAX_MESSAGE];
    for operation in operations {
        assert_eq!(validate(&operation, &Limits::default()), Ok(()));
        Request { epoch: u32::MAX, sequence: u64::MAX, operation }.encode(&mut buffer).unwrap();
    }
    let status = GuestStatus {
        guest: GuestId(0x7fef),
        state: GuestState::Shutdown(255),
        pages: u32::MAX,
        cpu_time_ns: u64::MAX,
    };
    let guests = [status; MAX_STATUSES].into_iter().collect();
    for outcome in [
        Outcome::Bytes { entry_len: u32::MAX, bytes: &bytes },
        Outcome::Guests { guests, more: true },
    ] {
        Reply { epoch: u32::MAX, sequence: u64::MAX, outcome }.encode(&mut buffer).unwrap();
    }
}

#[test]
fn only_whole_messages_of_this_version_are_decoded() {
    let mut bytes = [0; MAX_MESSAGE];
    let len = request(create()).encode(&mut bytes).unwrap();
    assert!(Request::decode(&bytes[..len]).is_ok());
    assert_eq!(Request::decode(&bytes[..len + 1]), Err(CodecError::Malformed));
    assert_eq!(Request::decode(&bytes[..len - 1]), Err(CodecError::Malformed));
    assert_eq!(Request::decode(&[]), Err(CodecError::Malformed));
    bytes[0] = 9;
    assert_eq!(Request::decode(&bytes[..len]), Err(CodecError::Version(9)));
    assert_eq!(request(create()).encode(&mut [0; 4]), Err(CodecError::TooLong));
}

#[test]
fn what_is_not_allowed_is_refused() {
    let refused = |operation: Operation<'_>| validate(&operation, &Limits::default()).unwrap_err();
    for id in [0, 1, 5, 15, 0x7ff0, 0xffff] {
        let guest = GuestId(id);
        assert_eq!(refused(Operation::Destroy { guest }), Refusal::NotAGuest(id));
        assert_eq!(refused(Operation::Query { guest }), Refusal::NotAGuest(id));
    }
    let limits = |pages, vcpus, max_port, grant_frames| {
        let limits = GuestLimits { pages, vcpus, max_port, grant_frames };
        refused(Operation::Create { guest: GUEST, limits })
    };
    assert_eq!(limits(0, 1, 1, 1), Refusal::Pages(0));
    assert_eq!(limits(u32::MAX, 1, 1, 1), Refusal::Pages(u32::MAX));
    assert_eq!(limits(1, 2, 1, 1), Refusal::Vcpus(2));
    assert_eq!(limits(1, 1, 4096, 1), Refusal::MaxPort(4096));
    assert_eq!(limits(1, 1, 1, 0), Refusal::GrantFrames(0));

    let populate = |before, first_gfn, pages| {
        refused(Operation::Populate { guest: GUEST, before, first_gfn, pages })
    };
    assert_eq!(populate(0, 0, 513), Refusal::Pages(513));
    assert_eq!(populate(u32::MAX, 0, 1), Refusal::Pages(u32::MAX));
    assert_eq!(populate(0, 0xf0000, 1), Refusal::Frames(0xf0000));
    assert_eq!(populate(0, 0xfffff, 2), Refusal::Frames(0xfffff));
    assert_eq!(populate(0, u32::MAX, 2), Refusal::Frames(u32::MAX));

    let load = |entry, offset, address, len| {
        refused(Operation::Load { guest: GUEST, entry, offset, address, len })
    };
    assert_eq!(load("", 0, 0, 1), Refusal::Name);
    assert_eq!(load("a b", 0, 0, 1), Refusal::Name);
    assert_eq!(load("x", 0, 0, 0), Refusal::Length(0));
    assert_eq!(load("x", 0, 0, MAX_LOAD_LEN + 1), Refusal::Length(MAX_LOAD_LEN + 1));
    assert_eq!(load("x", u32::MAX, 0, 1), Refusal::Length(1));
    assert_eq!(load("x", 0, u32::MAX, 1), Refusal::Address(u32::MAX));
    let long = [0; MAX_BYTES + 1];
    assert_eq!(
        refused(Operation::Write { guest: GUEST, address: 0, bytes: &long }),
        Refusal::Length(long.len() as u32)
    );
    let read = Operation::ReadArchive { entry: "x", offset: 0, len: MAX_BYTES as u32 + 1 };
    assert_eq!(refused(read), Refusal::Length(MAX_BYTES as u32 + 1));

    assert_eq!(refused(grants(&[])), Refusal::Empty);
    assert_eq!(refused(grants(&[(0, 5, 1), (0, 0, 1)])), Refusal::Grantee(0));
    assert_eq!(refused(grants(&[(0, 16, 1)])), Refusal::Grantee(16));
    assert_eq!(refused(grants(&[(8, 1, 1)])), Refusal::Reference(8));
    assert_eq!(refused(grants(&[(1, 1, 1 << 20)])), Refusal::Frames(1 << 20));
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic_and_never_reach_a_service(
        mut bytes in proptest::collection::vec(any::<u8>(), 1..80),
    ) {
        bytes[0] = VERSION;
        let _ = Reply::decode(&bytes);
        let Ok(request) = Request::decode(&bytes) else { return Ok(()) };
        if validate(&request.operation, &Limits::default()).is_ok() {
            let guest = request.operation.guest();
            prop_assert!(guest.is_none_or(|guest| (16..0x7ff0).contains(&guest.0)));
        }
    }

    #[test]
    fn patched_requests_decode_to_themselves_or_not_at_all(
        which in 0usize..17, at in 0usize..40, byte: u8,
    ) {
        let (operation, _) = golden_requests().swap_remove(which);
        let mut bytes = [0; MAX_MESSAGE];
        let len = request(operation).encode(&mut bytes).unwrap();
        bytes[at % len] = byte;
        if let Ok(request) = Request::decode(&bytes[..len]) {
            let mut again = [0; MAX_MESSAGE];
            let len = request.encode(&mut again).unwrap();
            prop_assert_eq!(Request::decode(&again[..len]), Ok(request));
        }
    }
}
