//! Who is at the other end of a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP client.
    Ip(SocketAddr),
    /// A client of the Unix socket.
    Unix,
}

impl Peer {
    /// Peers with equal keys share one allowance of connections: an IPv4 address, or a /64 of
    /// IPv6, since that is what one host is usually given.
    pub(super) fn share(&self) -> Share {
        match self {
            Peer::Unix => Share::Unix,
            Peer::Ip(address) => match address.ip().to_canonical() {
                IpAddr::V4(ip) => Share::V4(ip.to_bits()),
                IpAddr::V6(ip) => Share::V6((ip.to_bits() >> 64) as u64),
            },
        }
    }

    /// Whether it is on this machine. An IPv4 address may come written as an IPv6 one.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Peer::Unix => true,
            Peer::Ip(address) => address.ip().to_canonical().is_loopback(),
        }
    }
}

/// The address alone (an IPv4-mapped one as IPv4) and the port, or `unix`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Unix => f.write_str("unix"),
            Peer::Ip(address) => SocketAddr::new(address.ip().to_canonical(), address.port()).fmt(f),
        }
    }
}

/// Those who share one allowance of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    V4(u32),
    V6(u64),
    Unix,
}
