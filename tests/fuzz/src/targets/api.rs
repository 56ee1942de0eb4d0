//! Requests of tool-uk and replies of the orchestrator.

use api::{
    Grant, GuestId, GuestLimits, Limits, MAX_MESSAGE, Operation, Outcome, Reply, Request, validate,
};

use super::Target;

pub const TARGET: Target = Target { name: "api", run, seeds, words: &[] };

fn run(input: &[u8]) {
    let mut buffer = [0; 2 * MAX_MESSAGE];
    if let Ok(request) = Request::decode(input) {
        let is_valid = validate(&request.operation, &Limits::default()).is_ok();
        if let Ok(len) = request.encode(&mut buffer) {
            assert_eq!(Request::decode(&buffer[..len]).as_ref(), Ok(&request));
            assert!(!is_valid || len <= MAX_MESSAGE, "a valid request fits a message");
        }
        let guest = request.operation.guest();
        let is_guests = guest.is_none_or(|GuestId(id)| (16..0x7ff0).contains(&id));
        assert!(!is_valid || is_guests, "only guests may be named");
    }
    if let Ok(reply) = Reply::decode(input)
        && let Ok(len) = reply.encode(&mut buffer)
    {
        assert_eq!(Reply::decode(&buffer[..len]).as_ref(), Ok(&reply));
    }
}

fn operations() -> Vec<Operation<'static>> {
    let guest = GuestId(16);
    let limits = GuestLimits { pages: 65536, vcpus: 1, max_port: 1023, grant_frames: 32 };
    let grants = [Grant { reference: 1, to: 1, gfn: 0xfeffc }].into_iter().collect();
    vec![
        Operation::Create { guest, limits },
        Operation::Populate { guest, before: 512, first_gfn: 512, pages: 512 },
        Operation::Load { guest, entry: "kernel", offset: 4096, address: 1 << 24, len: 9 },
        Operation::Write { guest, address: 16, bytes: b"ab" },
        Operation::ReadArchive { entry: "kernel", offset: 0, len: 64 },
        Operation::SeedGrants { guest, grants },
        Operation::List { from: guest },
    ]
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut buffer = [0; MAX_MESSAGE];
    for operation in operations() {
        let request = Request { epoch: 2, sequence: 300, operation };
        let len = request.encode(&mut buffer).expect("it fits");
        seeds.push(buffer[..len].to_vec());
    }
    for outcome in [Outcome::Port(7), Outcome::Bytes { entry_len: 90, bytes: b"abc" }] {
        let reply = Reply { epoch: 2, sequence: 300, outcome };
        let len = reply.encode(&mut buffer).expect("it fits");
        seeds.push(buffer[..len].to_vec());
    }
    seeds
}
