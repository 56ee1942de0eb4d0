use alloc::vec;

use proptest::prelude::*;

use super::*;

fn message(kind: MessageKind) -> Message<'static> {
    Message {
        kind,
        from: Ident::new(1, 0),
        to: Some(Ident::new(2, 7)),
        from_boot: 3,
        to_boot: 9,
        term: 5,
        position: Position { index: 11, term: 4 },
        commit: 10,
        number: 77,
        flags: 0,
        count: 0,
        body: &[],
    }
}

fn sealed(message: &Message<'_>, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    begin(&mut bytes);
    bytes.extend_from_slice(body);
    message.seal(&mut bytes);
    bytes
}

fn record(index: u64, term: u64, kind: Kind) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (epoch, connection, sequence, payload) = (1, 2, 3, &b"x"[..]);
    Record { index, term, kind, epoch, connection, sequence, payload }.encode(&mut bytes);
    bytes
}

#[test]
fn golden_vector() {
    let bytes = sealed(&message(MessageKind::AppendReply), &[]);
    let mut expected = vec![0x50, 0x52, 1, 7, 72, 0, 0, 0, 0, 1, 2, 0];
    for half in [0_u32, 7, 3, 9, 77] {
        expected.extend(half.to_le_bytes());
    }
    for word in [5_u64, 11, 4, 10] {
        expected.extend(word.to_le_bytes());
    }
    assert_eq!(bytes[..64], expected);
    assert_eq!(bytes[64..68], GOLDEN_CRC.to_le_bytes(), "{:#x}", u32_at(&bytes, 64));
    assert_eq!(bytes[68..], [0; 4]);
    assert_eq!(Message::decode(&bytes), Ok(message(MessageKind::AppendReply)));
}

/// CRC of the golden message; FORMAT.md prints the whole vector.
const GOLDEN_CRC: u32 = 0x7326_af93;

#[test]
fn records_must_continue_the_position_and_each_other() {
    let mut append = message(MessageKind::Append);
    append.count = 2;
    let check = |first: Vec<u8>, second: Vec<u8>| {
        let body = [first, second].concat();
        let bytes = sealed(&append, &body);
        let message = Message::decode(&bytes).unwrap();
        let mut seen = 0;
        message.records(|_| seen += 1).map(|()| seen)
    };
    let command = |index, term| record(index, term, Kind::Command);
    assert_eq!(check(command(12, 4), command(13, 4)), Ok(2));
    assert_eq!(check(command(12, 4), record(13, 5, Kind::Term)), Ok(2));
    let refused = Err(Refusal::Malformed);
    assert_eq!(check(command(13, 4), command(14, 4)), refused, "a gap before");
    assert_eq!(check(command(12, 4), command(14, 4)), refused, "a gap between");
    assert_eq!(check(command(12, 3), command(13, 3)), refused, "another term than before");
    assert_eq!(check(command(12, 4), record(13, 4, Kind::Term)), refused, "not a new term");
    assert_eq!(check(command(12, 4), record(13, 6, Kind::Term)), refused, "beyond the sender's");
    assert_eq!(check(command(12, 4), vec![0; 40]), refused, "not a record");
}

#[test]
fn only_appends_and_chunks_have_a_body() {
    for kind in [MessageKind::Hello, MessageKind::Vote, MessageKind::ChunkAck] {
        assert_eq!(Message::decode(&sealed(&message(kind), &[0; 8])), Err(Refusal::Malformed));
    }
    let chunk = sealed(&message(MessageKind::Chunk), &[1, 2, 3]);
    assert_eq!(Message::decode(&chunk).unwrap().body, [1, 2, 3]);
}

#[test]
fn numbers_that_could_overflow_are_refused() {
    let mut huge = message(MessageKind::Vote);
    huge.term = u64::MAX;
    assert_eq!(Message::decode(&sealed(&huge, &[])), Err(Refusal::Malformed));
}

proptest! {
    #[test]
    fn a_flipped_bit_is_seen(bit in 0..((MESSAGE_HEADER + 48) * 8)) {
        let mut append = message(MessageKind::Append);
        append.count = 1;
        let mut bytes = sealed(&append, &record(12, 4, Kind::Command));
        bytes[bit / 8] ^= 1 << (bit % 8);
        let seen = Message::decode(&bytes).and_then(|message| message.records(|_| {}));
        prop_assert_eq!(seen, Err(Refusal::Malformed));
    }

    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Message::decode(&bytes).is_err());
    }

    #[test]
    fn a_cut_message_is_refused(keep in 0..MESSAGE_HEADER + 48) {
        let mut append = message(MessageKind::Append);
        append.count = 1;
        let bytes = sealed(&append, &record(12, 4, Kind::Command));
        prop_assert!(Message::decode(&bytes[..keep]).is_err());
    }
}
