//! How often one client address may ask: the answer tells where a key lives.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// How many addresses are remembered. When so many ask at once, further ones are let in unseen: a limit for each address
/// is none for whoever has that many.
const MOST: usize = 65_536;
/// How often the addresses that have been quiet are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// The client addresses that have asked lately.
#[derive(Debug, Default)]
pub struct Visitors {
    /// When each would have been quiet for long enough to have all its questions back: the generic cell rate algorithm.
    until: HashMap<IpAddr, Instant>,
    swept: Option<Instant>,
}

impl Visitors {
    /// Counts a question; an error says how long to wait with the next. An address may ask so often within a second in
    /// one go; 0 means no limit. Of an IPv6 address the network counts, which one client has to itself (RFC 6177).
    pub fn admit(&mut self, address: IpAddr, per_second: u32, now: Instant) -> Result<(), Duration> {
        if per_second == 0 {
            return Ok(());
        }
        let address = network(address);
        if self.until.len() >= MOST && !self.until.contains_key(&address) && !self.sweep(now) {
            return Ok(());
        }
        let gap = Duration::from_secs(1) / per_second;
        let until = self.until.entry(address).or_insert(now);
        let next = (*until).max(now) + gap;
        match next.checked_duration_since(now + Duration::from_secs(1)) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                *until = next;
                Ok(())
            }
        }
    }

    /// Forgets who has been quiet; answers whether there is room.
    fn sweep(&mut self, now: Instant) -> bool {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP) {
            self.swept = Some(now);
            self.until.retain(|_, until| *until > now);
        }
        self.until.len() < MOST
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The client's address: the one that the outermost of so many trusted proxies has appended to `X-Forwarded-For`. Where
/// that is not to be found, the address that the connection came from.
pub(super) fn address<'a>(remote: IpAddr, forwarded: impl Iterator<Item = &'a [u8]>, trusted_hops: u8) -> IpAddr {
    if trusted_hops == 0 {
        return remote;
    }
    let all: Vec<&[u8]> = forwarded.flat_map(|line| line.split(|byte| *byte == b',')).collect();
    let client = all.iter().rev().nth(usize::from(trusted_hops) - 1);
    client.and_then(|client| parse(client.trim_ascii())).unwrap_or(remote)
}

fn parse(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    text.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_asks_so_often_in_a_second_and_others_are_not_held_up() {
        let (mut visitors, now) = (Visitors::default(), Instant::now());
        let (greedy, other) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let admitted = (0..50).filter(|_| visitors.admit(greedy, 10, now).is_ok()).count();
        assert_eq!(admitted, 10);
        assert_eq!(visitors.admit(greedy, 10, now), Err(Duration::from_millis(100)));
        assert_eq!(visitors.admit(other, 10, now), Ok(()));
        let later = now + Duration::from_millis(350);
        let admitted = (0..50).filter(|_| visitors.admit(greedy, 10, later).is_ok()).count();
        assert_eq!(admitted, 3);
        assert!((0..1000).all(|_| visitors.admit(greedy, 0, now).is_ok()), "0 means no limit");
    }

    #[test]
    fn a_network_of_ipv6_is_one_visitor() {
        let (mut visitors, now) = (Visitors::default(), Instant::now());
        assert!(visitors.admit(ip("2001:db8::1"), 1, now).is_ok());
        assert!(visitors.admit(ip("2001:db8::2"), 1, now).is_err());
        assert!(visitors.admit(ip("2001:db8:0:1::2"), 1, now).is_ok());
        assert!(visitors.admit(ip("192.0.2.1"), 1, now).is_ok());
        assert!(visitors.admit(ip("::ffff:192.0.2.1"), 1, now).is_err(), "it is the same");
    }

    #[test]
    fn memory_is_bounded_and_whoever_was_quiet_is_forgotten() {
        let (mut visitors, now) = (Visitors::default(), Instant::now());
        let many = || (0..70_000_u32).map(|number| IpAddr::from(std::net::Ipv4Addr::from_bits(number)));
        assert!(many().all(|address| visitors.admit(address, 1, now).is_ok()));
        assert_eq!(visitors.until.len(), MOST);
        let later = now + Duration::from_secs(5);
        assert_eq!(visitors.admit(ip("192.0.2.1"), 1, later), Ok(()));
        assert_eq!(visitors.until.len(), 1);
    }

    #[test]
    fn only_what_trusted_proxies_have_appended_is_believed() {
        let remote = ip("10.0.0.1");
        let found = |lines: &[&str], hops| address(remote, lines.iter().map(|line| line.as_bytes()), hops);
        assert_eq!(found(&["203.0.113.9"], 0), remote, "anybody may write the header");
        assert_eq!(found(&["6.6.6.6, 203.0.113.9"], 1), ip("203.0.113.9"));
        assert_eq!(found(&["6.6.6.6", "203.0.113.9:4711, 10.0.0.2"], 2), ip("203.0.113.9"));
        assert_eq!(found(&["[2001:db8::1]:80"], 1), ip("2001:db8::1"));
        for lines in [&["unknown"][..], &[], &["10.0.0.2"]] {
            assert_eq!(found(lines, 2), remote, "{lines:?}");
        }
    }
}
