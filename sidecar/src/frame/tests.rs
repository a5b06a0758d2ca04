use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader, FrameSocket};

use super::*;

/// A text message for a client.
fn text(message: &str) -> Vec<u8> {
    super::message(Message::text(message))
}

fn fed(bytes: &[u8]) -> Follower {
    let mut follower = Follower::default();
    follower.feed(bytes);
    follower
}

#[test]
fn a_follower_is_small_enough_to_have_two_in_every_connection() {
    assert!(size_of::<Follower>() <= 24);
}

#[test]
fn a_follower_begins_between_messages() {
    assert!(fed(&[]).between_messages());
}

#[test]
fn a_message_ends_with_the_last_byte_of_its_payload() {
    let frame = text("hello");
    for cut in 1..frame.len() {
        assert!(!fed(&frame[..cut]).between_frames(), "after {cut} bytes");
    }
    assert!(fed(&frame).between_messages());
}

#[test]
fn an_empty_message_ends_with_its_header() {
    assert!(!fed(&[0x81]).between_frames());
    assert!(fed(&[0x81, 0]).between_messages());
}

#[test]
fn a_masked_frame_is_four_bytes_longer() {
    let masked = [0x82, 0x81, 1, 2, 3, 4, 9];
    assert!(!fed(&masked[..6]).between_frames());
    assert!(fed(&masked).between_messages());
}

#[test]
fn between_fragments_is_not_between_messages_whatever_control_frames_come() {
    let begun = fed(&[0x01, 1, b'a']);
    assert!(begun.between_frames() && !begun.between_messages());
    let pinged = fed(&[0x01, 1, b'a', 0x89, 0]);
    assert!(pinged.between_frames() && !pinged.between_messages());
    assert!(fed(&[0x01, 1, b'a', 0x89, 0, 0x80, 1, b'b']).between_messages());
}

#[test]
fn reserved_bits_and_opcodes_belong_to_extensions() {
    let compressed = fed(&[0xc1, 2, 0xaa, 0]);
    assert!(compressed.between_messages());
    assert!(fed(&[0x83, 0]).between_messages());
    assert!(fed(&[0x8b, 0]).between_messages());
}

#[test]
fn a_payload_of_any_size_is_skipped() {
    let mut follower = fed(&[0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0]);
    let block = vec![0; 1 << 20];
    for _ in 0..4096 {
        assert!(!follower.between_frames());
        follower.feed(&block);
    }
    assert!(follower.between_messages());
}

#[test]
fn what_leaves_the_next_boundary_in_doubt_is_malformed_for_good() {
    let length_with_top_bit = [0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
    let long_ping = [0x89, 126, 0, 126];
    let fragmented_ping = [0x09, 0];
    for bytes in [&length_with_top_bit[..], &long_ping, &fragmented_ping] {
        let mut follower = fed(bytes);
        assert!(follower.malformed(), "{bytes:02x?}");
        follower.feed(&text("a frame that looks well"));
        assert!(follower.malformed() && !follower.between_frames(), "{bytes:02x?}");
    }
    assert!(!fed(&[0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).malformed());
}

#[test]
fn a_close_is_seen_with_its_header() {
    assert!(!fed(&[0x88]).closed());
    assert!(fed(&[0x88, 2]).closed());
}

#[test]
fn a_close_is_found_before_its_first_byte_also_at_the_very_start() {
    let close = close(1000, "");
    let stream = [text("a"), close.clone()].concat();
    assert_eq!(Follower::default().feed_to_close(&stream), Some(3));
    assert_eq!(Follower::default().feed_to_close(&close), Some(0));
    let mut follower = Follower::default();
    assert_eq!(follower.feed_to_close(&stream[..2]), None);
    assert_eq!(follower.feed_to_close(&stream[2..]), Some(1));
    assert!(follower.between_frames() && !follower.closed());
}

#[test]
fn a_byte_of_a_payload_is_not_taken_for_a_close() {
    assert_eq!(Follower::default().feed_to_close(&[0x82, 2, 0x88, 0x88]), None);
}

#[test]
fn the_end_of_a_message_is_found_behind_the_ends_of_its_fragments() {
    let stream = [0x01, 1, b'a', 0x89, 0, 0x80, 1, b'b', 0x81, 0];
    assert_eq!(Follower::default().feed_to_frame_end(&stream), Some(3));
    assert_eq!(Follower::default().feed_to_message_end(&stream), Some(8));
}

#[test]
fn a_reason_that_is_too_long_is_cut_at_a_character() {
    let frame = close(1012, &"ä".repeat(100));
    assert_eq!(frame.len(), 2 + 2 + 122);
    assert!(std::str::from_utf8(&frame[4..]).is_ok());
}

/// Reads frames with tungstenite.
fn read_frames(bytes: Vec<u8>) -> Vec<Frame> {
    let mut socket = FrameSocket::new(std::io::Cursor::new(bytes));
    std::iter::from_fn(|| socket.read(None).expect("frames that tungstenite reads")).collect()
}

#[test]
fn tungstenite_reads_what_is_written_for_clients_and_for_servers() {
    for length in [0, 1, 125, 126, 0xffff, 0x1_0000] {
        let message = "m".repeat(length);
        let frames = read_frames(text(&message));
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].payload(), message.as_bytes());
        assert_eq!(frames[0].header().opcode, OpCode::Data(Data::Text));
    }
    let frames = read_frames([close(1012, "moved"), masked_close(1001, [7, 77, 177, 250])].concat());
    assert_eq!(frames[0].payload(), [&1012u16.to_be_bytes()[..], b"moved"].concat());
    assert_eq!(frames[1].header().opcode, OpCode::Control(Control::Close));
    assert_eq!(frames[1].header().mask, Some([7, 77, 177, 250]));
    let unmasked: Vec<u8> = frames[1].payload().iter().zip([7, 77]).map(|(byte, mask)| byte ^ mask).collect();
    assert_eq!(unmasked, u16::from(CloseCode::Away).to_be_bytes());
}

/// One frame on the wire, and what must be true after it.
#[derive(Clone, Debug)]
struct Expected {
    bytes: Vec<u8>,
    between_messages: bool,
}

prop_compose! {
    fn control()(opcode in prop::sample::select(vec![Control::Ping, Control::Pong]), size in 0..126usize)
        -> (OpCode, usize)
    {
        (OpCode::Control(opcode), size)
    }
}

fn message() -> impl Strategy<Value = Vec<(OpCode, bool, usize)>> {
    let sizes = prop::collection::vec(prop_oneof![0..200usize, 60_000..70_000usize], 1..4);
    let between = prop::collection::vec(prop::option::of(control()), 4);
    (sizes, between).prop_map(|(sizes, between)| {
        let last = sizes.len() - 1;
        let mut frames = Vec::new();
        for (index, size) in sizes.into_iter().enumerate() {
            let opcode = if index == 0 { Data::Binary } else { Data::Continue };
            frames.push((OpCode::Data(opcode), index == last, size));
            frames.extend(between[index].map(|(opcode, size)| (opcode, true, size)));
        }
        frames
    })
}

fn stream() -> impl Strategy<Value = Vec<Expected>> {
    let messages = prop::collection::vec((message(), prop::option::of(any::<[u8; 4]>()), any::<bool>()), 1..5);
    messages.prop_map(|messages| {
        let mut stream = Vec::new();
        for (frames, mask, compressed) in messages {
            let mut open = false;
            for (opcode, is_final, size) in frames {
                let data = matches!(opcode, OpCode::Data(_));
                let header = FrameHeader { is_final, rsv1: compressed && data, opcode, mask, ..Default::default() };
                let mut bytes = Vec::new();
                let payload = vec![0x88; size];
                Frame::from_payload(header, payload.into()).format(&mut bytes).expect("a vector takes it");
                open = if data { !is_final } else { open };
                stream.push(Expected { bytes, between_messages: !open });
            }
        }
        stream
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_follower_agrees_with_tungstenites_frames_however_they_are_cut(
        frames in stream(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes.clone()).collect();
        // Where each frame ends, and whether a message ends there too.
        let ends: std::collections::BTreeMap<usize, bool> = frames.iter().scan(0, |at, frame| {
            *at += frame.bytes.len();
            Some((*at, frame.between_messages))
        }).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        // Always look just before, at and just behind each end.
        cuts.extend(ends.keys().flat_map(|end| [end - 1, *end, end + 1]));
        cuts.retain(|cut| *cut <= bytes.len());
        cuts.sort_unstable();
        let mut follower = Follower::default();
        let mut at = 0;
        for cut in cuts {
            follower.feed(&bytes[at..cut]);
            at = cut;
            let end = if at == 0 { Some(&true) } else { ends.get(&at) };
            prop_assert_eq!(follower.between_frames(), end.is_some(), "at {}", at);
            prop_assert_eq!(follower.between_messages(), end == Some(&true), "at {}", at);
        }
        prop_assert!(!follower.closed() && !follower.malformed());
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2_000), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(bytes.len() + 1);
        let mut follower = fed(&bytes[..cut]);
        follower.feed(&bytes[cut..]);
        prop_assert_eq!(follower, fed(&bytes));
    }
}

#[test]
fn the_kind_of_a_message_is_that_of_its_first_frame() {
    assert_eq!(fed(&[]).message_kind(), None);
    assert_eq!(fed(&text("a")).message_kind(), Some(MessageKind::Text));
    let binary = super::message(Message::binary(&[1]));
    assert_eq!(fed(&[text("a"), binary.clone()].concat()).message_kind(), Some(MessageKind::Binary));
    let (ping, end_of_fragments) = ([0x89, 0], [0x80, 1, 7]);
    let fragmented = [&[0x01, 1, 7][..], &ping, &end_of_fragments].concat();
    assert_eq!(fed(&[binary, fragmented].concat()).message_kind(), Some(MessageKind::Text));
}

#[test]
fn the_longest_data_frame_is_known_once_and_control_frames_are_none() {
    let mut follower = Follower::default();
    follower.feed(&[0x89, 3, 1, 2, 3, 0x8a, 0]);
    assert_eq!(follower.take_longest(), None, "a ping and a pong");
    follower.feed(&[0x81, 1, b'2', 0x81, 0]);
    assert_eq!((follower.take_longest(), follower.take_longest()), (Some(1), None));
    follower.feed(&[0xc1, 1, 0]);
    assert_eq!(follower.take_longest(), Some(254), "what is compressed may have been of any length");
    follower.feed(&[0x82, 126, 0xff, 0xff]);
    assert_eq!(follower.take_longest(), Some(254), "as much as a byte holds");
}
