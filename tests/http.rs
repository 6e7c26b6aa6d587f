//! The HTTP front over real loopback sockets, with a service that stands in for the API.

use rapiddiskd::http::{Answer, Limits, Listen, Method, Peer, Request, Server, Service, Wake};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Handlers block on `gate` where their path says so, until the test lets them go.
struct Stub {
    gate: Mutex<Receiver<()>>,
}

impl Service for Stub {
    fn is_change(&self, method: &Method, target: &str) -> bool {
        assert_ne!(target, "/panic-in-routing");
        *method == Method::Post
    }

    fn is_instant(&self, _method: &Method, target: &str) -> bool {
        target.starts_with("/instant")
    }

    fn answer(&self, request: &Request) -> Answer {
        let target = request.target.as_str();
        if target.ends_with("/panic") {
            panic!("a handler's fault");
        }
        if target.starts_with("/wait") {
            self.gate.lock().unwrap().recv().unwrap();
        }
        if target.starts_with("/sleep") {
            thread::sleep(Duration::from_millis(300));
        }
        match target {
            "/large" => Answer::from_data(vec![b'x'; 8 << 20]),
            "/peer" => Answer::from_string(request.peer.to_string()),
            "/body" => Answer::from_data(request.body.clone()),
            _ => Answer::from_string(format!("{} {target}", request.method)),
        }
    }

    fn refusal(&self, status: u16, message: &str) -> Answer {
        assert_ne!(message, "");
        Answer::from_string(message).with_status_code(status)
    }
}

struct Daemon {
    address: SocketAddr,
    gate: Sender<()>,
    stop: OwnedFd,
    thread: Option<JoinHandle<io::Result<()>>>,
}

fn start(limits: Limits) -> Daemon {
    start_at(&[Listen::Tcp("[::]:0".parse().unwrap())], limits)
}

fn start_at(listen: &[Listen], limits: Limits) -> Daemon {
    let server = Server::bind(listen, limits).unwrap();
    let port = server.local_addrs().first().map_or(0, SocketAddr::port);
    let (gate, receiver) = channel();
    let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let wake = stop.try_clone().unwrap();
    let service = Arc::new(Stub { gate: Mutex::new(receiver) });
    let thread = thread::spawn(move || server.run(service, wake.as_fd(), &mut || Wake::Stop));
    Daemon { address: ([127, 0, 0, 1], port).into(), gate, stop, thread: Some(thread) }
}

impl Daemon {
    fn connect(&self) -> Client<TcpStream> {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, input: Vec::new() }
    }

    fn get(&self, target: &str) -> Reply {
        let mut client = self.connect();
        client.send(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.reply()
    }

    fn tell_to_stop(&self) {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.tell_to_stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

struct Client<S> {
    stream: S,
    input: Vec<u8>,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl<S: Read + Write> Client<S> {
    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        let length = self.stream.read(&mut chunk).unwrap();
        self.input.extend_from_slice(&chunk[..length]);
        length > 0
    }

    fn head(&mut self) -> (String, usize) {
        loop {
            if let Some(end) = self.input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head: Vec<u8> = self.input.drain(..end + 4).collect();
                let head = String::from_utf8(head).unwrap();
                let length = head.split("Content-Length: ").nth(1).unwrap();
                let length = length.lines().next().unwrap().parse().unwrap();
                return (head, length);
            }
            assert!(self.fill(), "the connection ended within a head: {:?}", self.input);
        }
    }

    fn reply(&mut self) -> Reply {
        let (head, length) = self.head();
        while self.input.len() < length {
            assert!(self.fill(), "the connection ended within a body");
        }
        let body = String::from_utf8(self.input.drain(..length).collect()).unwrap();
        assert!(head.starts_with("HTTP/1.1 "), "{head}");
        Reply { status: head[9..12].parse().unwrap(), head, body }
    }

    /// The server closes, with nothing more to read, and without breaking the connection.
    fn ends(&mut self) {
        assert!(self.input.is_empty() && !self.fill(), "more came: {:?}", self.input);
    }
}

#[test]
fn requests_are_answered_by_workers_and_at_once() {
    let daemon = start(Limits::default());
    for target in ["/a", "/instant"] {
        let reply = daemon.get(target);
        assert_eq!((reply.status, reply.body), (200, format!("GET {target}")));
        assert!(reply.head.contains("\r\nConnection: keep-alive\r\n"));
    }
}

#[test]
fn a_connection_serves_many_requests() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    for number in 0..200 {
        let target = if number % 3 == 0 { "/instant" } else { "/worker" };
        client.send(&format!("GET {target}/{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.reply().body, format!("GET {target}/{number}"));
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    let targets: Vec<_> =
        (0..500).map(|n| format!("/{}{n}", ["", "instant", "sleep"][(n + 1) % 499 % 2])).collect();
    let requests: String =
        targets.iter().map(|target| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(&requests);
    for target in targets {
        assert_eq!(client.reply().body, format!("GET {target}"));
    }
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    for byte in "POST /slowly HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}".chars() {
        client.send(&byte.to_string());
    }
    assert_eq!(client.reply().body, "POST /slowly");
}

#[test]
fn head_is_answered_like_get_without_the_body() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    for target in ["/instant", "/worker"] {
        client.send(&format!("HEAD {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let (_, length) = client.head();
        assert_eq!(length, format!("HEAD {target}").len());
    }
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.reply().body, "GET /next");
}

#[test]
fn connections_end_when_the_client_says_so() {
    let daemon = start(Limits::default());
    for target in ["/instant", "/worker"] {
        for request in [
            format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
            format!("GET {target} HTTP/1.0\r\n\r\n"),
        ] {
            let mut client = daemon.connect();
            client.send(&request);
            let reply = client.reply();
            assert!(reply.head.contains("\r\nConnection: close\r\n"), "{}", reply.head);
            client.ends();
        }
    }
}

#[test]
fn a_client_that_has_closed_its_side_is_still_answered() {
    let daemon = start(Limits::default());
    for target in ["/instant", "/sleep"] {
        let mut client = daemon.connect();
        client.send(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.reply().body, format!("GET {target}"));
        client.ends();
    }
}

#[test]
fn an_error_is_answered_and_ends_the_connection_without_breaking_it() {
    let daemon = start(Limits::default());
    for (request, status) in [
        ("GET /\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/2.0\r\n\r\n".to_owned(), 505),
        (format!("GET /{} HTTP/1.1\r\n", "a".repeat(3000)), 414),
        (format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(60_000)), 431),
        (format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n{}", "a".repeat(50_000)), 413),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 501),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n".to_owned(), 417),
    ] {
        let mut client = daemon.connect();
        client.send(&request);
        let reply = client.reply();
        assert_eq!(reply.status, status, "{request:.60}");
        assert!(reply.head.contains("\r\nConnection: close\r\n"));
        client.ends();
    }
}

#[test]
fn a_small_body_that_nobody_wants_is_dropped() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    client.send(
        "POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(client.reply().body, "");
    assert_eq!(client.reply().body, "GET /b");
}

#[test]
fn a_body_is_handed_over_where_one_is_allowed() {
    let daemon = start(Limits { body_bytes: 64 << 10, ..Limits::default() });
    let mut client = daemon.connect();
    let body = "0123456789abcdef".repeat(4096);
    client.send(&format!("POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(client.reply().body, body);
}

#[test]
fn a_panic_is_answered_with_500_and_costs_nothing_else() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    for target in ["/panic", "/instant/panic", "/panic-in-routing"] {
        for _ in 0..20 {
            client.send(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(client.reply().status, 500, "{target}");
        }
    }
    client.send("GET /after HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.reply().body, "GET /after");
}

#[test]
fn changes_are_bounded_and_reads_go_on() {
    let daemon = start(Limits { workers: 4, changes: 2, ..Limits::default() });
    let mut held: Vec<_> = (0..2).map(|_| daemon.connect()).collect();
    for client in &mut held {
        client.send("POST /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let mut third = daemon.connect();
    thread::sleep(Duration::from_millis(200));
    third.send("POST /third HTTP/1.1\r\nHost: a\r\n\r\n");
    let reply = third.reply();
    assert_eq!(reply.status, 503);
    assert!(reply.head.contains("\r\nRetry-After: 1\r\n"), "{}", reply.head);
    for number in 0..50 {
        assert_eq!(daemon.get(&format!("/read/{number}")).status, 200);
    }
    for client in &mut held {
        daemon.gate.send(()).unwrap();
        assert_eq!(client.reply().status, 200);
    }
    // The connection that was refused is as good as before.
    third.send("POST /third HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(third.reply().status, 200);
}

#[test]
fn with_every_worker_held_requests_are_refused_in_time_and_instant_ones_answered() {
    let limits = Limits { workers: 2, queue: 1, queue_time: Duration::from_millis(300), ..Limits::default() };
    let daemon = start(limits);
    let mut held: Vec<_> = (0..2).map(|_| daemon.connect()).collect();
    for client in &mut held {
        client.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
        // Until a worker has it, it takes the one place in the queue.
        thread::sleep(Duration::from_millis(100));
    }
    let begin = Instant::now();
    let mut queued = daemon.connect();
    queued.send("GET /queued HTTP/1.1\r\nHost: a\r\n\r\n");
    thread::sleep(Duration::from_millis(50));
    assert_eq!(daemon.get("/too-many").status, 503);
    assert_eq!(daemon.get("/instant").status, 200);
    assert!(begin.elapsed() < Duration::from_millis(300));
    assert_eq!(queued.reply().status, 503);
    assert!(begin.elapsed() >= Duration::from_millis(300));
    for client in &mut held {
        daemon.gate.send(()).unwrap();
        assert_eq!(client.reply().status, 200);
    }
    queued.send("GET /again HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(queued.reply().status, 200);
}

#[test]
fn every_state_has_its_deadline() {
    let time = Duration::from_millis(300);
    let limits = Limits { head_time: time, idle_time: time * 2, write_time: time * 2, ..Limits::default() };
    let daemon = start(limits);
    let begin = Instant::now();
    let mut idle = daemon.connect();
    let mut part = daemon.connect();
    part.send("GET / HTTP/1.1\r\nHost:");
    let mut body = daemon.connect();
    body.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    for client in [&mut part, &mut body] {
        assert_eq!(client.reply().status, 408);
        client.ends();
    }
    assert!(begin.elapsed() >= time);
    idle.ends();
    assert!(begin.elapsed() >= time * 2);
    // A worker need not ring after an answer, and the time that runs from there holds all the same.
    let begin = Instant::now();
    let mut kept = daemon.connect();
    kept.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    kept.reply();
    kept.ends();
    assert!(begin.elapsed() >= time * 2 && begin.elapsed() < time * 2 + Duration::from_millis(1500));
    let mut lazy = daemon.connect();
    lazy.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    thread::sleep(time * 4);
    lazy.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut all = Vec::new();
    let read = lazy.stream.read_to_end(&mut all);
    assert!(all.len() < 8 << 20, "the whole answer came: {read:?}");
}

#[test]
fn a_large_answer_arrives_whole_at_a_slow_reader() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    thread::sleep(Duration::from_millis(300));
    assert_eq!(client.reply().body.len(), 8 << 20);
    assert_eq!(client.reply().body, "GET /next");
}

#[test]
fn too_many_unsent_answers_make_for_refusals_until_they_are_gone() {
    let daemon = start(Limits { unsent_bytes: 1 << 20, ..Limits::default() });
    let mut lazy = daemon.connect();
    lazy.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    thread::sleep(Duration::from_millis(300));
    assert_eq!(daemon.get("/a").status, 503);
    assert_eq!(daemon.get("/instant").status, 200);
    drop(lazy);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(daemon.get("/a").status, 200);
}

#[test]
fn when_full_the_oldest_idle_connection_gives_way_and_never_a_busy_one() {
    let daemon = start(Limits { connections: 4, per_address: 4, ..Limits::default() });
    let mut busy = daemon.connect();
    busy.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut reading = daemon.connect();
    reading.send("GET");
    let mut idle: Vec<_> = (0..2).map(|_| daemon.connect()).collect();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(daemon.get("/instant").status, 200);
    assert_eq!(idle[0].stream.read(&mut [0]).unwrap(), 0);
    // Three more take the places of all but the busy one.
    let more: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(idle[1].stream.read(&mut [0]).unwrap(), 0);
    drop(more);
    daemon.gate.send(()).unwrap();
    assert_eq!(busy.reply().status, 200);
}

#[test]
fn one_address_has_no_more_than_its_share() {
    let daemon = start(Limits { connections: 8, per_address: 2, ..Limits::default() });
    let mut clients: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(clients[0].stream.read(&mut [0]).unwrap(), 0);
    let other = SocketAddr::new("::1".parse().unwrap(), daemon.address.port());
    let mut other = Client { stream: TcpStream::connect(other).unwrap(), input: Vec::new() };
    thread::sleep(Duration::from_millis(200));
    other.send("GET /peer HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(other.reply().body.starts_with("[::1]:"));
    for client in &mut clients[1..] {
        client.send("GET /peer HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.reply().body.starts_with("127.0.0.1:"));
    }
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let daemon = start(Limits { connections: 4, per_address: 4, ..Limits::default() });
    for target in ["/sleep", "/instant", "/large"] {
        for _ in 0..6 {
            let mut client = daemon.connect();
            client.send(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            // Unread data or a pending answer: the kernel sends a reset.
            rustix::net::sockopt::set_socket_linger(&client.stream, Some(Duration::ZERO)).unwrap();
        }
        thread::sleep(Duration::from_millis(700));
        for _ in 0..10 {
            assert_eq!(daemon.get("/a").status, 200);
        }
    }
}

#[test]
fn stopping_lets_what_runs_finish_and_takes_nothing_new() {
    let mut daemon = start(Limits::default());
    let mut idle = daemon.connect();
    let mut busy = daemon.connect();
    busy.send("POST /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    thread::sleep(Duration::from_millis(200));
    daemon.tell_to_stop();
    idle.ends();
    assert_eq!(TcpStream::connect(daemon.address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    daemon.gate.send(()).unwrap();
    assert_eq!(busy.reply().body, "POST /wait");
    busy.ends();
    drop(busy);
    daemon.thread.take().unwrap().join().unwrap().unwrap();
}

#[test]
fn stopping_does_not_wait_for_ever() {
    let mut daemon = start(Limits { grace: Duration::from_millis(500), ..Limits::default() });
    let mut busy = daemon.connect();
    busy.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    daemon.tell_to_stop();
    daemon.thread.take().unwrap().join().unwrap().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
    daemon.gate.send(()).unwrap();
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let daemon = start(Limits::default());
    let error = Server::bind(&[Listen::Tcp(daemon.address)], Limits::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&daemon.address.to_string()), "{error}");
}

/// A directory of the test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
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

fn get_over_unix(path: &Path) -> Reply {
    let mut client = Client { stream: UnixStream::connect(path).unwrap(), input: Vec::new() };
    client.send("GET /peer HTTP/1.1\r\nHost: a\r\n\r\n");
    client.reply()
}

#[test]
fn a_unix_socket_is_private_and_replaced_only_when_stale() {
    let scratch = Scratch::new("unix");
    let path = scratch.0.join("socket");
    let listen = [Listen::Unix(path.clone())];
    // Dropping the listener leaves a stale socket behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let daemon = start_at(&listen, Limits::default());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(get_over_unix(&path).body, "unix");
    let error = Server::bind(&listen, Limits::default()).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(get_over_unix(&path).status, 200);
    drop(daemon);
    assert!(!path.exists());
    std::fs::write(&path, "no socket").unwrap();
    Server::bind(&listen, Limits::default()).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"no socket");
}

#[test]
fn peers_are_shown_short() {
    let ip = |text: &str| Peer::Ip(text.parse().unwrap()).to_string();
    assert_eq!(ip("[::ffff:192.0.2.1]:80"), "192.0.2.1:80");
    assert_eq!(ip("[2001:db8::1]:80"), "[2001:db8::1]:80");
    assert_eq!(Peer::Unix.to_string(), "unix");
}
