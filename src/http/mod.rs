//! The HTTP front: connections, bounds, parsing and workers. It knows no storage.
//!
//! One thread owns every socket and does nothing that can block; a fixed pool of workers runs the
//! handlers. A slow or hostile client costs a bounded buffer for a bounded time, never a thread.
//! The vocabulary (method, status, header, response) is `tiny_http`'s; the connections are ours.

mod access;
mod audit;
mod conn;
mod listen;
mod parse;
mod render;
mod server;
mod slots;
mod tokens;
mod workers;

pub use access::{Access, Policy};
pub use server::Server;
pub use tiny_http::{Header, Method, StatusCode};

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What a handler answers with; the body's length is always known.
pub type Answer = tiny_http::Response<std::io::Cursor<Vec<u8>>>;

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
    fn share(&self) -> Share {
        match self {
            Peer::Unix => Share::Unix,
            Peer::Ip(address) => match address.ip().to_canonical() {
                IpAddr::V4(ip) => Share::V4(ip.to_bits()),
                IpAddr::V6(ip) => Share::V6((ip.to_bits() >> 64) as u64),
            },
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    V4(u32),
    V6(u64),
    Unix,
}

/// One complete request, within the bounds.
#[derive(Debug)]
pub struct Request {
    /// The method; one this server does not know is `NonStandard`.
    pub method: Method,
    /// As received: starts with `/`, printable ASCII, still percent-encoded, with its query.
    pub target: String,
    /// Where it came from.
    pub peer: Peer,
    /// The body; empty unless `Limits::body_bytes` allows one.
    pub body: Vec<u8>,
    /// The name of the token it was authenticated with.
    pub caller: Option<Arc<str>>,
}

/// What the server asks of the program behind it.
pub trait Service: Send + Sync + 'static {
    /// Does this request change anything? Asked on the I/O thread: quick, touches nothing.
    /// False for unknown paths and for GET and HEAD.
    fn is_change(&self, method: &Method, target: &str) -> bool;

    /// May `answer` be called on the I/O thread itself? Only for what is answered out of memory,
    /// without any call that could wait: it then costs no hand-over to a worker, and is served
    /// even while every worker is held by a slow kernel call. Never true for a change.
    fn is_instant(&self, _method: &Method, _target: &str) -> bool {
        false
    }

    /// The answer to a request. To one that is no change it depends on method, target and body
    /// alone: one answer may go to several that wait for the same. A panic in it is answered with
    /// 500. HEAD is answered like GET: the server leaves the body out and keeps its length.
    fn answer(&self, request: &Request) -> Answer;

    /// The answer for what the server itself refuses: a status and a sentence.
    fn refusal(&self, status: u16, message: &str) -> Answer;
}

/// The bounds within which clients are served.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once; fewer where the limit of open files asks for it.
    pub connections: usize,
    /// Connections at once from one address (IPv6: from one /64).
    pub per_address: usize,
    /// Bytes of request line and header fields together.
    pub head_bytes: usize,
    /// Header fields of a request; no more than 64 have effect.
    pub header_fields: usize,
    /// Bytes of the request target.
    pub target_bytes: usize,
    /// Bytes of a request's body. A body of up to 1 KiB is read and dropped even if this is 0.
    pub body_bytes: usize,
    /// From a request's first byte to its last.
    pub head_time: Duration,
    /// From a connection's start, or its last answer, to the next request's first byte.
    pub idle_time: Duration,
    /// From an answer's first byte to its last.
    pub write_time: Duration,
    /// From the last answer to the end of the connection, for a client that goes on sending.
    pub linger_time: Duration,
    /// How long a request waits for a worker before it is refused.
    pub queue_time: Duration,
    /// Requests that wait for a worker.
    pub queue: usize,
    /// Threads that run handlers; at least two.
    pub workers: usize,
    /// Changes under way at once; always fewer than workers, so that reads find one.
    pub changes: usize,
    /// Bytes of answers that clients have not taken yet, all together; while there are more, new
    /// requests are refused.
    pub unsent_bytes: usize,
    /// How long running requests may take to finish once the server is told to stop.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 256,
            per_address: 128,
            head_bytes: 8 << 10,
            header_fields: parse::MOST_FIELDS,
            target_bytes: 2 << 10,
            body_bytes: 0,
            head_time: Duration::from_secs(5),
            idle_time: Duration::from_secs(10),
            write_time: Duration::from_secs(10),
            linger_time: Duration::from_secs(1),
            queue_time: Duration::from_secs(5),
            queue: 128,
            workers: 16,
            changes: 12,
            unsent_bytes: 16 << 20,
            grace: Duration::from_secs(4),
        }
    }
}

/// What the request parser makes of received bytes: `None` to wait for more, else how many bytes
/// the first request takes, or the status of the error that ends the connection. For tests.
#[doc(hidden)]
pub fn examine(bytes: &[u8], limits: &Limits) -> Option<Result<usize, u16>> {
    match parse::parse(bytes, limits) {
        parse::Outcome::Wait => None,
        parse::Outcome::Request(head) => Some(Ok(head.head_length + head.body_length)),
        parse::Outcome::Error(refusal) => Some(Err(refusal.status)),
    }
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address. `[::]` serves IPv4 as well, and alone where the kernel has no IPv6.
    Tcp(SocketAddr),
    /// A Unix socket, for its owner only.
    Unix(PathBuf),
}

/// What the server does after its `wake` descriptor became readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Nothing.
    Continue,
    /// Read the files it depends on again.
    Reload,
    /// Finish what runs, then return.
    Stop,
}
