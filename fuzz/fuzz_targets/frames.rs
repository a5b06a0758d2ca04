//! The follower of frames: wherever a stream is cut into reads, it is at the same place afterwards.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidecar::frame::Follower;

fn place(follower: &Follower) -> (bool, bool, bool, bool) {
    (follower.between_frames(), follower.between_messages(), follower.closed(), follower.malformed())
}

// The first byte says how long the reads are; the rest is the stream.
fuzz_target!(|bytes: &[u8]| {
    let Some((length, stream)) = bytes.split_first() else { return };
    let mut whole = Follower::default();
    whole.feed(stream);
    let mut in_pieces = Follower::default();
    for piece in stream.chunks(usize::from(*length).max(1)) {
        in_pieces.feed(piece);
    }
    assert_eq!(place(&whole), place(&in_pieces));

    let mut by_frames = Follower::default();
    let mut left = stream;
    while let Some(end) = by_frames.feed_to_frame_end(left) {
        assert!(by_frames.between_frames() && end > 0);
        left = &left[end..];
    }
    assert_eq!(place(&whole), place(&by_frames));

    let mut to_close = Follower::default();
    if let Some(at) = to_close.feed_to_close(stream) {
        assert!(to_close.between_frames() && !to_close.closed() && stream[at] & 0x0f == 8);
    }
});
