//! WebSocket frames as bytes (RFC 6455, 5.2), for tests that need each bit as they say it.

/// Opcodes.
pub mod opcode {
    /// Goes on with a message.
    pub const CONTINUATION: u8 = 0;
    /// Begins a text message.
    pub const TEXT: u8 = 1;
    /// Begins a binary message.
    pub const BINARY: u8 = 2;
    /// Ends the connection.
    pub const CLOSE: u8 = 8;
    /// Asks for a sign of life.
    pub const PING: u8 = 9;
    /// Gives it.
    pub const PONG: u8 = 10;
}

/// The mask of every masked frame here.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A whole message or control frame, from a server.
pub fn plain(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(true, opcode, payload, false)
}

/// A whole message or control frame, from a client.
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(true, opcode, payload, true)
}

/// Any frame.
pub fn frame(last: bool, opcode: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let mut bytes = vec![u8::from(last) << 7 | opcode];
    let mask_bit = u8::from(masked) << 7;
    match payload.len() {
        short @ 0..=125 => bytes.push(mask_bit | u8::try_from(short).expect("short")),
        medium @ 126..=0xffff => {
            bytes.push(mask_bit | 0x7e);
            bytes.extend(u16::try_from(medium).expect("medium").to_be_bytes());
        }
        long => {
            bytes.push(mask_bit | 0x7f);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    if masked {
        bytes.extend(MASK);
        bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        bytes.extend(payload);
    }
    bytes
}

/// Takes the first whole frame of a server off bytes: its first byte, and its payload as it was sent.
pub fn take(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (length, head) = match *bytes.get(1)? {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        short => (short.into(), 2),
    };
    let end = head + usize::try_from(length).ok()?;
    let payload = bytes.get(head..end)?.to_vec();
    let first = bytes[0];
    bytes.drain(..end);
    Some((first, payload))
}

/// The payload of a Close frame.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// What a short masked Close frame says: its code.
pub fn masked_close_code(frame: &[u8]) -> Option<u16> {
    let [0x88, length, mask @ ..] = frame else { return None };
    let (mask, payload) = mask.split_at_checked(4)?;
    let said = length & 0x80 != 0 && usize::from(length & 0x7f) == payload.len() && payload.len() >= 2;
    said.then(|| u16::from_be_bytes([payload[0] ^ mask[0], payload[1] ^ mask[1]]))
}
