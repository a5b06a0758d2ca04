//! Free ports.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports below those that systems give to outgoing connections: otherwise a client of one test may sit on the port of
/// a process that another is about to start again.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A free loopback address, given once. Test programs begin at random places, so that two of them seldom meet.
pub fn free() -> SocketAddr {
    let _ = NEXT.compare_exchange(0, rand::random_range(RANGE), Ordering::Relaxed, Ordering::Relaxed);
    for _ in RANGE {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = RANGE.start + port.wrapping_sub(RANGE.start) % (RANGE.end - RANGE.start);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port in {RANGE:?} on 127.0.0.1");
}
