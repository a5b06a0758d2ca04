//! What the beginning of a connection says of the messages of ours that it can bear.

use ring::notice::{MessageKind, Spoken};

/// The longest beginning of an MQTT CONNECT up to its level: its type, its length, its protocol's name.
const ENOUGH: usize = 1 + 4 + 6 + 1;

/// What is known of a connection since its handshake, when there is more to know than of most.
#[derive(Debug)]
pub enum Opening {
    /// The client's first messages are looked at, for the level of its MQTT CONNECT.
    Mqtt(Connect),
    /// The level has been seen.
    Level(u8),
    /// An extension that we do not know was agreed on: it may count messages, or change them.
    Opaque,
}

/// The beginning of an MQTT CONNECT, as far as it has come. Clients may spread it over frames of few bytes each.
#[derive(Debug, Default)]
pub struct Connect {
    /// Of the frame that is being read, as far as it has come; empty behind it.
    header: Vec<u8>,
    mask: [u8; 4],
    /// Bytes of the frame's payload that have come, and that are to come.
    taken: usize,
    left: u64,
    packet: Vec<u8>,
}

impl Opening {
    /// Looks at what the client sends. False when there is nothing to be learnt any more.
    pub(super) fn see(&mut self, bytes: &[u8]) -> bool {
        let Self::Mqtt(connect) = self else { return true };
        for byte in bytes {
            match connect.step(*byte) {
                Look::More => {}
                Look::Level(level) => {
                    *self = Self::Level(level);
                    return true;
                }
                Look::Other => return false,
            }
        }
        true
    }

    /// What a notice may go by, with the kind of the app's last message; `None` when there is no place for a message.
    pub(super) fn spoken(&self, app: Option<MessageKind>) -> Option<Spoken> {
        match self {
            Self::Opaque => None,
            Self::Level(level) => Some(Spoken { app, mqtt_level: Some(*level) }),
            Self::Mqtt(_) => Some(Spoken { app, mqtt_level: None }),
        }
    }
}

/// What a byte has shown.
enum Look {
    More,
    Level(u8),
    /// This is no CONNECT.
    Other,
}

impl Connect {
    fn step(&mut self, byte: u8) -> Look {
        if self.left == 0 {
            self.header.push(byte);
            return self.read_header();
        }
        self.packet.push(byte ^ self.mask[self.taken % 4]);
        self.taken += 1;
        self.left -= 1;
        match level(&self.packet) {
            Some(level) => Look::Level(level),
            None if self.packet.len() == ENOUGH => Look::Other,
            None => Look::More,
        }
    }

    /// Reads the header of a client's frame (RFC 6455, 5.2) once all of it is there.
    fn read_header(&mut self) -> Look {
        let &[first, second, ref rest @ ..] = self.header.as_slice() else { return Look::More };
        if first & 0x08 != 0 || second & 0x80 == 0 {
            return Look::Other;
        }
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some((length, mask)) = rest.split_at_checked(extended) else { return Look::More };
        let Ok(mask) = mask.try_into() else { return Look::More };
        self.left = match extended {
            0 => u64::from(second & 0x7f),
            _ => length.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        (self.mask, self.taken) = (mask, 0);
        self.header.clear();
        Look::More
    }
}

/// The level in the beginning of a CONNECT (MQTT 5.0, 3.1): its type, its length in up to four bytes of which all but the
/// last have their top bit set, its protocol's name, its level.
fn level(packet: &[u8]) -> Option<u8> {
    let (0x10, rest) = packet.split_first()? else { return None };
    let more = rest.iter().take(3).take_while(|byte| **byte & 0x80 != 0).count();
    rest.get(more + 1..)?.strip_prefix(b"\0\x04MQTT")?.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CONNECT of this level, whose length takes so many bytes.
    fn connect(level: u8, length_bytes: usize) -> Vec<u8> {
        let mut packet = vec![0x10];
        packet.extend(std::iter::repeat_n(0xff, length_bytes - 1));
        packet.push(0x0a);
        packet.extend(b"\0\x04MQTT");
        packet.extend([level, 2, 0, 60]);
        packet
    }

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first, 0x80 | u8::try_from(payload.len()).unwrap()];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// The level that is known after these bytes came in pieces of this size.
    fn seen(bytes: &[u8], size: usize) -> Option<u8> {
        let mut opening = Opening::Mqtt(Connect::default());
        let goes_on = bytes.chunks(size).all(|bytes| opening.see(bytes));
        opening.spoken(None).filter(|_| goes_on).and_then(|spoken| spoken.mqtt_level)
    }

    #[test]
    fn the_level_of_a_connect_is_seen_however_it_arrives() {
        for level in [4, 5] {
            for length_bytes in 1..=4 {
                let packet = connect(level, length_bytes);
                let scattered: Vec<u8> = packet.chunks(1).flat_map(|byte| frame(0x82, byte)).collect();
                let fragments = [frame(0x02, &packet[..7]), frame(0x00, &[]), frame(0x80, &packet[7..])].concat();
                for bytes in [frame(0x82, &packet), scattered, fragments] {
                    assert_eq!((seen(&bytes, 1), seen(&bytes, 1_000)), (Some(level), Some(level)), "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn a_connect_behind_a_longer_frame_header_is_seen() {
        let short = frame(0x82, &connect(5, 2));
        for (code, extended) in [(126, 2), (127, 8)] {
            let mut long = vec![0x82, 0x80 | code];
            long.extend(std::iter::repeat_n(0, extended - 1));
            long.push(short[1] & 0x7f);
            long.extend(&short[2..]);
            assert_eq!(seen(&long, 1), Some(5));
        }
    }

    #[test]
    fn what_is_no_connect_says_nothing_of_the_level() {
        for bytes in [
            frame(0x82, b"\x20\x0a\0\x04MQTT\x05......"),
            frame(0x82, b"\x10\x0c\0\x06MQIsdp\x03......"),
            frame(0x89, &connect(5, 1)),
            vec![0x82, 0x05, 0x10],
        ] {
            let mut opening = Opening::Mqtt(Connect::default());
            assert!(!opening.see(&bytes), "{bytes:?}");
        }
        assert_eq!(seen(&frame(0x82, &connect(5, 1)[..8]), 1), None);
    }

    #[test]
    fn a_connection_with_an_unknown_extension_bears_no_message() {
        assert_eq!(Opening::Opaque.spoken(Some(MessageKind::Text)), None);
    }
}
