//! nginx and ingress-nginx: CRC-32, 160 points for each unit of weight.

use crc32fast::Hasher;

use super::Server;
use crate::SlotId;

const POINTS_PER_WEIGHT: usize = 160;

/// The points of all servers. Each is the CRC of the one before, continued from the base of its server.
pub(super) fn points(servers: &[Server], base: fn(&str) -> u32) -> Vec<(u64, SlotId)> {
    let mut points = Vec::new();
    for server in servers {
        let base = base(server.text);
        let mut point = 0_u32;
        for _ in 0..usize::from(server.weight) * POINTS_PER_WEIGHT {
            let mut hasher = Hasher::new_with_initial(base);
            hasher.update(&point.to_le_bytes());
            point = hasher.finalize();
            points.push((u64::from(point), server.slot));
        }
    }
    points
}

/// nginx's base: host and port with a zero between them.
pub(super) fn ketama(address: &str) -> u32 {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let mut hasher = Hasher::new();
    hasher.update(host.as_bytes());
    hasher.update(&[0]);
    hasher.update(port.as_bytes());
    hasher.finalize()
}

/// ingress-nginx's base: the address as it is.
pub(super) fn whole(address: &str) -> u32 {
    crc32fast::hash(address.as_bytes())
}
