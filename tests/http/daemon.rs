//! A server over the stub service, and a client.

use crate::access::until;
use crate::audit;
use crate::stub::{Seen, Stub};
use rapiddiskd::http::{Access, Limits, Listen, Server, Wake};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What is written to the descriptor that wakes the server.
const STOP: u64 = 1;
const RELOAD: u64 = 2;
/// An order at which the program's part of the I/O thread panics.
pub const NONSENSE: u64 = 3;

pub const LOOPBACK: Listen = Listen::Tcp(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)));

pub struct Daemon {
    pub address: SocketAddr,
    /// Lets one handler go that waits at the gate.
    pub gate: Sender<()>,
    pub seen: Arc<Seen>,
    orders: OwnedFd,
    pub thread: Option<JoinHandle<io::Result<()>>>,
}

pub fn start(limits: Limits) -> Daemon {
    start_at(&[Listen::Tcp("[::]:0".parse().unwrap())], limits)
}

pub fn start_at(listen: &[Listen], limits: Limits) -> Daemon {
    start_with(listen, limits, Access::default())
}

pub fn start_with(listen: &[Listen], limits: Limits, access: Access) -> Daemon {
    let server = Server::bind(listen, limits, access).unwrap();
    let port = server.local_addrs().first().map_or(0, SocketAddr::port);
    let (gate, receiver) = channel();
    let orders = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let wake = orders.try_clone().unwrap();
    audit::install();
    let seen = Arc::new(Seen::default());
    let service = Arc::new(Stub::new(receiver, Arc::clone(&seen)));
    let taken = Arc::clone(&seen);
    let thread = thread::spawn(move || {
        let mut take = || {
            let mut order = [0; 8];
            rustix::io::read(&wake, &mut order).unwrap();
            taken.orders.fetch_add(1, Ordering::SeqCst);
            match u64::from_ne_bytes(order) {
                RELOAD => Wake::Reload,
                STOP => Wake::Stop,
                order => panic!("no such order: {order}"),
            }
        };
        server.run(service, wake.as_fd(), &mut take)
    });
    Daemon { address: ([127, 0, 0, 1], port).into(), gate, seen, orders, thread: Some(thread) }
}

impl Daemon {
    pub fn connect(&self) -> Client<TcpStream> {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client::new(stream)
    }

    pub fn get(&self, target: &str) -> Reply {
        let mut client = self.connect();
        client.send(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        client.reply()
    }

    /// Waits until so many handlers came to the gate in all.
    pub fn until_at_gate(&self, handlers: usize) {
        until(|| self.seen.at_gate.load(Ordering::SeqCst) == handlers);
    }

    /// Waits until so many requests for this target in all were answered or are at the workers.
    pub fn until_taken(&self, target: &str, requests: usize) {
        until(|| self.seen.routed(target) == requests);
        // The I/O thread answers this one after it has seen to those.
        assert_eq!(self.get("/instant").status, 200);
    }

    /// Tells the server to read its files again, and waits until it does.
    pub fn reload(&self) {
        let before = self.seen.orders.load(Ordering::SeqCst);
        self.tell(Wake::Reload);
        // It sees to no request between taking the order and carrying it out.
        until(|| self.seen.orders.load(Ordering::SeqCst) > before);
    }

    pub fn tell(&self, order: Wake) {
        self.order(if order == Wake::Reload { RELOAD } else { STOP });
    }

    pub fn order(&self, order: u64) {
        rustix::io::write(&self.orders, &order.to_ne_bytes()).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.tell(Wake::Stop);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

pub struct Client<S> {
    pub stream: S,
    input: Vec<u8>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl<S: Read + Write> Client<S> {
    pub fn new(stream: S) -> Client<S> {
        Client { stream, input: Vec::new() }
    }

    pub fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        let length = self.stream.read(&mut chunk).unwrap();
        self.input.extend_from_slice(&chunk[..length]);
        length > 0
    }

    pub fn head(&mut self) -> (String, usize) {
        let head = self.bare_head();
        let length = head.split("Content-Length: ").nth(1).unwrap();
        let length = length.lines().next().unwrap().parse().unwrap();
        (head, length)
    }

    /// Chunks up to the last one, put together.
    pub fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = self.take_through(b"\r\n");
            let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
            while self.input.len() < length + 2 {
                assert!(self.fill(), "the connection ended within a chunk");
            }
            body.extend(self.input.drain(..length));
            assert_eq!(self.take_through(b"\r\n"), "\r\n");
            if length == 0 {
                return body;
            }
        }
    }

    /// All that comes until the server closes.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.input)
    }

    pub fn bare_head(&mut self) -> String {
        self.take_through(b"\r\n\r\n")
    }

    fn take_through(&mut self, mark: &[u8]) -> String {
        loop {
            if let Some(end) = self.input.windows(mark.len()).position(|bytes| bytes == mark) {
                let head: Vec<u8> = self.input.drain(..end + mark.len()).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.fill(), "the connection ended within a head: {:?}", self.input);
        }
    }

    pub fn reply(&mut self) -> Reply {
        let (head, length) = self.head();
        while self.input.len() < length {
            assert!(self.fill(), "the connection ended within a body");
        }
        let body = String::from_utf8(self.input.drain(..length).collect()).unwrap();
        assert!(head.starts_with("HTTP/1.1 "), "{head}");
        Reply { status: head[9..12].parse().unwrap(), head, body }
    }

    /// The server closes, with nothing more to read, and without breaking the connection.
    pub fn ends(&mut self) {
        assert!(self.input.is_empty() && !self.fill(), "more came: {:?}", self.input);
    }
}

/// A directory of the test's own, removed at its end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("rapiddiskd-http-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}
