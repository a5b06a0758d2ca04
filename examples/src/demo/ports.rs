//! Free ports.

use std::net::{SocketAddr, TcpListener};

use super::Error;

/// Free loopback ports, each given once.
///
/// They lie below the range that systems take the ports of outgoing connections from: otherwise one of a thousand
/// clients may sit on the port of a server that is about to be started again.
#[derive(Debug)]
pub struct Ports {
    next: u16,
}

impl Ports {
    const FIRST: u16 = 20_000;
    const LAST: u16 = 32_000;

    /// Begins at a random port, so that two demos seldom meet.
    pub fn new() -> Self {
        Self { next: rand::random_range(Self::FIRST..Self::LAST - 1_000) }
    }

    /// The next free port.
    pub fn free(&mut self) -> Result<SocketAddr, Error> {
        while self.next < Self::LAST {
            let address = SocketAddr::from(([127, 0, 0, 1], self.next));
            self.next += 1;
            if TcpListener::bind(address).is_ok() {
                return Ok(address);
            }
        }
        Err(Error::Machine(format!("no free port below {} on 127.0.0.1", Self::LAST)))
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self::new()
    }
}
