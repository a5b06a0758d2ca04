//! One message for clients: its frame, made once however many get it.

use bytes::Bytes;
use ring::notice::MessageKind;

use crate::frame;

/// The largest message, in bytes.
pub const LARGEST: usize = 256 * 1024;

/// A message, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    kind: MessageKind,
    frame: Bytes,
    /// Where its payload begins.
    payload: usize,
}

/// Why something is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMessage {
    /// Clients would have to close the connection.
    #[error("the body is sent as text, and is not UTF-8; send application/octet-stream for a binary message")]
    NotUtf8,
    /// It is longer than [`LARGEST`].
    #[error("the body is longer than {LARGEST} bytes; send less, or where to get it")]
    TooLong,
}

impl Message {
    /// A message with this payload.
    pub fn new(kind: MessageKind, payload: &[u8]) -> Result<Self, NoMessage> {
        if payload.len() > LARGEST {
            return Err(NoMessage::TooLong);
        }
        if kind == MessageKind::Text && std::str::from_utf8(payload).is_err() {
            return Err(NoMessage::NotUtf8);
        }
        let frame: Bytes = frame::message(ring::notice::Message { kind, payload }).into();
        Ok(Self { kind, payload: frame.len() - payload.len(), frame })
    }

    /// How it is sent.
    pub fn kind(&self) -> MessageKind {
        self.kind
    }

    /// The frame around the payload.
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// What it says.
    pub fn payload(&self) -> Bytes {
        self.frame.slice(self.payload..)
    }

    /// What it takes up, in bytes.
    pub fn size(&self) -> usize {
        self.frame.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_its_payload_behind_its_header() {
        for length in [0, 125, 126, 0xffff, 0x1_0000] {
            let payload = vec![b'a'; length];
            let message = Message::new(MessageKind::Text, &payload).unwrap();
            assert_eq!(message.payload(), payload);
            assert!(message.size() > length);
        }
    }

    #[test]
    fn what_a_client_could_not_bear_is_no_message() {
        assert_eq!(Message::new(MessageKind::Text, &[0xff]), Err(NoMessage::NotUtf8));
        assert!(Message::new(MessageKind::Binary, &[0xff]).is_ok());
        assert_eq!(Message::new(MessageKind::Binary, &vec![0; LARGEST + 1]), Err(NoMessage::TooLong));
    }
}
