//! The head that goes on to the app or to a peer.

use std::net::IpAddr;

use ring::wire::header;

use super::RequestHead;
use super::raw::Line;

const FORWARDED_FOR: &str = "X-Forwarded-For";

/// What is changed in a head that is passed on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Edit<'a> {
    /// The client's address, where it entered the pool: it is appended to X-Forwarded-For.
    pub forwarded_for: Option<IpAddr>,
    /// Headers of ours, added at the end.
    pub add: &'a [(&'static str, String)],
}

impl RequestHead {
    /// The same head, byte for byte, but for what `edit` says, and without the client's own headers in our name.
    pub fn rewrite(&self, edit: &Edit<'_>) -> Vec<u8> {
        let named = |(name, _): (&str, &[u8])| name.eq_ignore_ascii_case(FORWARDED_FOR);
        let last = self.raw.fields().enumerate().filter(|(_, field)| named(*field)).map(|(index, _)| index).last();
        let mut copy = self.raw.copy_lines(|copy, line| match edit.forwarded_for {
            _ if is_ours(line.name) => {}
            Some(ip) if Some(line.index) == last => append(copy, &line, ip),
            _ => copy.extend_from_slice(line.bytes),
        });
        if let (Some(ip), None) = (edit.forwarded_for, last) {
            copy.extend_from_slice(format!("{FORWARDED_FOR}: {ip}\r\n").as_bytes());
        }
        for (name, value) in edit.add {
            copy.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        copy.extend_from_slice(b"\r\n");
        copy
    }
}

fn append(copy: &mut Vec<u8>, line: &Line<'_>, ip: IpAddr) {
    let separator = if line.value.is_empty() { "" } else { ", " };
    copy.extend_from_slice(line.name.as_bytes());
    copy.extend_from_slice(b": ");
    copy.extend_from_slice(line.value);
    copy.extend_from_slice(format!("{separator}{ip}\r\n").as_bytes());
}

/// Whether a header is for sidecars only. Many servers read `_` in a name as `-`.
pub(crate) fn is_ours(name: &str) -> bool {
    let is_same = |(own, byte): (u8, &u8)| own.eq_ignore_ascii_case(if *byte == b'_' { &b'-' } else { byte });
    let start = name.as_bytes().get(..header::PREFIX.len());
    start.is_some_and(|start| header::PREFIX.bytes().zip(start).all(is_same))
}
