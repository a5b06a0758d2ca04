//! Servers that say their own address, in the form in which proxies and members files name it: one nginx plays them all.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use tempfile::TempDir;

use crate::nginx::Nginx;
use harness::ports;

/// A server, and its share of the keys.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) weight: u8,
}

/// All servers of a test.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    all: Vec<SocketAddr>,
}

impl Servers {
    /// Servers of these weights, at one port of 127.0.1.1, 127.0.1.2 and so on.
    pub(crate) fn v4(&mut self, weights: &[u8]) -> Vec<Server> {
        let addresses = |port| {
            (1..=weights.len()).map(move |octet| {
                let octet = u8::try_from(octet).expect("fewer than 256");
                SocketAddr::from((Ipv4Addr::new(127, 0, 1, octet), port))
            })
        };
        let is_free = |port: &u16| addresses(*port).all(|address| TcpListener::bind(address).is_ok());
        let port = std::iter::repeat_with(|| ports::free().port()).find(is_free).expect("endless");
        self.all.extend(addresses(port));
        addresses(port).zip(weights).map(|(address, weight)| Server { address, weight: *weight }).collect()
    }

    /// Servers of these weights, at ports of ::1.
    pub(crate) fn v6(&mut self, weights: &[u8]) -> Vec<Server> {
        let ports = std::iter::repeat_with(|| SocketAddr::from((Ipv6Addr::LOCALHOST, ports::free().port())));
        let free = ports.filter(|address| TcpListener::bind(address).is_ok());
        let servers: Vec<_> = free.zip(weights).map(|(address, weight)| Server { address, weight: *weight }).collect();
        self.all.extend(servers.iter().map(|server| server.address));
        servers
    }

    /// Servers of these weights, whose addresses differ and are of IPv6 although the machine has only ::1: they are
    /// addresses of IPv4 in the clothes of IPv6.
    pub(crate) fn mapped(&mut self, weights: &[u8]) -> Vec<Server> {
        let mut servers = self.v4(weights);
        let plain = self.all.len() - servers.len();
        for (server, listens) in servers.iter_mut().zip(&mut self.all[plain..]) {
            let IpAddr::V4(v4) = listens.ip() else { unreachable!("it has just been made of IPv4") };
            *listens = SocketAddr::from((v4.to_ipv6_mapped(), listens.port()));
            server.address = *listens;
        }
        servers
    }

    /// Starts them.
    pub(crate) async fn start(self, folder: &TempDir) -> Nginx {
        let mut config = String::new();
        for address in &self.all {
            let both = if address.to_string().contains("::ffff:") { " ipv6only=off" } else { "" };
            writeln!(config, "server {{ listen {address}{both}; location / {{ return 200 '<{address}>'; }} }}")
                .expect("memory");
        }
        Nginx::start(folder, "servers", &config, self.all[0]).await
    }
}
