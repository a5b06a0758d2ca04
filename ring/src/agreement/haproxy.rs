//! HAProxy: SDBM and Bob Jenkins' integer mix, 16 points for each unit of weight.

use std::net::IpAddr;

use xxhash_rust::xxh32::xxh32;

use super::{HashKey, Server};
use crate::SlotId;

const POINTS_PER_WEIGHT: u32 = 16;
/// The most points of a server: the distance between the keys of servers that are known by their numbers.
const MOST_POINTS: u32 = 4_096;

pub(super) fn hash(key: &[u8]) -> u32 {
    mix(sdbm(key))
}

pub(super) fn points(servers: &[Server], hash_key: HashKey, weight: u16) -> Vec<(u64, SlotId)> {
    let mut points = Vec::new();
    for server in servers {
        let base = server_key(server, hash_key);
        let count = u32::from(server.weight) * u32::from(weight) * POINTS_PER_WEIGHT;
        points.extend((0..count).map(|point| (u64::from(mix(base.wrapping_add(point))), server.slot)));
    }
    points
}

/// A server without an address is known by its number, whatever is asked for.
fn server_key(server: &Server, hash_key: HashKey) -> u32 {
    let by_address = match hash_key {
        HashKey::Id => None,
        HashKey::Addr => server.address.map(|address| (address.ip(), 0)),
        HashKey::AddrPort => server.address.map(|address| (address.ip(), mix(u32::from(address.port())))),
    };
    match by_address {
        None => (server.slot.0.wrapping_add(1)).wrapping_mul(MOST_POINTS),
        // In memory an address is in network order, and its number is read from there on little-endian machines.
        Some((IpAddr::V4(ip), port)) => mix(port.wrapping_add(u32::from_le_bytes(ip.octets()))),
        Some((IpAddr::V6(ip), port)) => xxh32(&ip.octets(), port),
    }
}

fn sdbm(key: &[u8]) -> u32 {
    key.iter().fold(0_u32, |hash, byte| hash.wrapping_mul(65_599).wrapping_add(u32::from(*byte)))
}

/// <http://burtleburtle.net/bob/hash/integer.html>, times a prime close to three quarters of 2^32.
const fn mix(mut a: u32) -> u32 {
    a = a.wrapping_add(0x7ed5_5d16).wrapping_add(a << 12);
    a = (a ^ 0xc761_c23c) ^ (a >> 19);
    a = a.wrapping_add(0x1656_67b1).wrapping_add(a << 5);
    a = a.wrapping_add(0xd3a2_646c) ^ (a << 9);
    a = a.wrapping_add(0xfd70_46c5).wrapping_add(a << 3);
    a = (a ^ 0xb55a_4f09) ^ (a >> 16);
    a.wrapping_mul(3_221_225_473)
}
