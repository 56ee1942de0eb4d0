//! What is written is read again, and whatever is read, nothing panics.

use proptest::prelude::*;

use super::*;

fn mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac)
}

fn segment() -> impl Strategy<Value = Segment> {
    any::<(u32, u32)>().prop_map(|(offset, length)| Segment { offset, length })
}

fn config() -> impl Strategy<Value = Config> {
    let groups = proptest::collection::vec(mac(), 0..=GROUPS_MAX);
    (proptest::option::of(mac()), any::<u16>(), any::<bool>(), groups).prop_map(
        |(address, mtu, is_promiscuous, groups)| Config {
            address,
            mtu,
            is_promiscuous,
            groups: groups.into_iter().collect(),
        },
    )
}

fn offload() -> impl Strategy<Value = TxOffload> {
    let cut = proptest::option::of(any::<(u16, u16)>());
    (any::<[u16; 3]>(), any::<[bool; 2]>(), cut).prop_map(
        |([network, start, field], [is_v6, is_tcp], cut)| TxOffload {
            network,
            is_v6,
            start,
            field,
            is_tcp,
            cut: cut.map(|(size, headers)| Cut { size, headers }),
        },
    )
}

fn command() -> impl Strategy<Value = Command> {
    let segments = proptest::collection::vec(segment(), 0..=SEGMENTS_MAX);
    prop_oneof![
        config().prop_map(Command::Start),
        config().prop_map(Command::Configure),
        (any::<u32>(), segments, proptest::option::of(offload())).prop_map(
            |(id, segments, offload)| Command::Transmit(TxFrame {
                id: FrameId(id),
                segments: segments.into_iter().collect(),
                offload,
            })
        ),
        (any::<u32>(), segment())
            .prop_map(|(id, segment)| Command::Post(RxBuffer { id: BufferId(id), segment })),
    ]
}

fn ring() -> impl Strategy<Value = RingId> {
    prop_oneof![Just(RingId::Rx), Just(RingId::Tx)]
}

fn window() -> impl Strategy<Value = Window> {
    prop_oneof![Just(Window::Main), Just(Window::Isr), Just(Window::Device), Just(Window::Notify)]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    prop_oneof![
        (segment(), any::<u32>()).prop_map(|(segment, bits)| Descriptor::Bytes { segment, bits }),
        any::<(u32, u32)>().prop_map(|(length, bits)| Descriptor::Scratch { length, bits }),
        any::<[u8; 16]>().prop_map(Descriptor::Context),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let tso = prop_oneof![Just(None), Just(Some(TsoStyle::Whole)), Just(Some(TsoStyle::Zeroed))];
    let started = (mac(), any::<bool>(), tso, any::<[u16; 3]>()).prop_map(
        |(address, has_checksum, tso, [tx_slots, tx_extra, rx_slots])| {
            Event::Started(Features { address, has_checksum, tso, tx_slots, tx_extra, rx_slots })
        },
    );
    let sum = prop_oneof![Just(Checksum::Unknown), Just(Checksum::Valid), Just(Checksum::Blank)];
    let received =
        (any::<u32>(), any::<[u16; 2]>(), sum).prop_map(|(id, [offset, length], checksum)| {
            Event::Received { buffer: BufferId(id), offset, length, checksum }
        });
    let failure = prop_oneof![
        Just(Failure::Silent),
        Just(Failure::Refused),
        Just(Failure::Nonsense),
        Just(Failure::Overrun)
    ];
    prop_oneof![
        any::<u32>().prop_map(Event::Wait),
        started,
        any::<u32>().prop_map(|id| Event::Sent(FrameId(id))),
        received,
        any::<bool>().prop_map(Event::Link),
        failure.prop_map(Event::Failed),
    ]
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        (window(), any::<(u32, u8)>()).prop_map(|(w, (at, value))| Said::Write8(w, at, value)),
        (window(), any::<(u32, u16)>()).prop_map(|(w, (at, value))| Said::Write16(w, at, value)),
        (window(), any::<(u32, u32)>()).prop_map(|(w, (at, value))| Said::Write32(w, at, value)),
        ring().prop_map(Said::SetUp),
        (ring(), any::<u16>(), descriptor())
            .prop_map(|(ring, index, descriptor)| Said::Place(ring, index, descriptor)),
        (ring(), any::<u16>(), any::<[u8; 16]>())
            .prop_map(|(ring, index, bytes)| Said::Scratch(ring, index, bytes)),
        (ring(), any::<u16>()).prop_map(|(ring, value)| Said::Publish(ring, value)),
        ring().prop_map(Said::Doorbell),
        event().prop_map(Said::Event),
    ]
}

/// Mostly heads that exist.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), (0..40_u32, 0..4_u32).prop_map(|(kind, byte)| kind | byte << 8)]
}

proptest! {
    #[test]
    fn commands_come_back(commands in proptest::collection::vec(command(), 0..20)) {
        let mut words = Vec::new();
        write_commands(&commands, &mut words);
        let mut rest = &words[..];
        let read: Result<Vec<Command>, Garbled> =
            std::iter::from_fn(|| read_command(&mut rest)).collect();
        prop_assert_eq!(read, Ok(commands));
    }

    #[test]
    fn what_a_driver_says_comes_back(all in proptest::collection::vec(said(), 0..40)) {
        let mut words = Vec::new();
        for said in &all {
            write_said(said, |message| words.extend_from_slice(message));
        }
        let mut rest = &words[..];
        let read: Result<Vec<Said>, Garbled> =
            std::iter::from_fn(|| read_said(&mut rest)).collect();
        prop_assert_eq!(read, Ok(all));
    }

    #[test]
    fn any_words_end(words in proptest::collection::vec(word(), 0..200)) {
        let mut rest = &words[..];
        let said = std::iter::from_fn(|| read_said(&mut rest)).count();
        prop_assert!(said <= words.len());
        let mut rest = &words[..];
        let commands = std::iter::from_fn(|| read_command(&mut rest)).count();
        prop_assert!(commands <= words.len());
    }
}
