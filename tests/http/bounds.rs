//! What clients may take, and what becomes of those that take more.

use crate::access::until;
use crate::audit::word_about;
use crate::daemon::*;
use crate::stub::PROGRAM;
use rapiddiskd::http::Limits;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn changes_are_bounded_and_reads_go_on() {
    let daemon = start(Limits { workers: 4, changes: 2, ..Limits::default() });
    let mut held: Vec<_> = (0..2).map(|_| daemon.connect()).collect();
    for client in &mut held {
        client.send("POST /wait HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
    let mut third = daemon.connect();
    daemon.until_taken("/wait", 2);
    third.send("POST /third HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let reply = third.reply();
    assert_eq!(reply.status, 503);
    assert!(reply.head.contains("\r\nRetry-After: 1\r\n"), "{}", reply.head);
    for number in 0..50 {
        assert_eq!(daemon.get(&format!("/read/{number}")).status, 200);
    }
    // Whichever of the two came to the gate first.
    for _ in &held {
        daemon.gate.send(()).unwrap();
    }
    for client in &mut held {
        assert_eq!(client.reply().status, 200);
    }
    // The connection that was refused is as good as before.
    third.send("POST /third HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(third.reply().status, 200);
}

#[test]
fn with_every_worker_held_requests_are_refused_in_time_and_instant_ones_answered() {
    // Much longer than the requests below take on a slow machine.
    let time = Duration::from_secs(5);
    let limits = Limits { workers: 2, queue: 1, queue_time: time, ..Limits::default() };
    let daemon = start(limits);
    let mut held: Vec<_> = (0..2).map(|_| daemon.connect()).collect();
    for (client, number) in held.iter_mut().zip(1..) {
        // Equal ones could share a worker.
        client.send(&format!("GET /wait/{number} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        // Until a worker has it, it takes the one place in the queue.
        daemon.until_at_gate(number);
    }
    let begin = Instant::now();
    let mut queued = daemon.connect();
    queued.send("GET /queued HTTP/1.1\r\nHost: localhost\r\n\r\n");
    daemon.until_taken("/queued", 1);
    assert_eq!(daemon.get("/too-many").status, 503);
    assert_eq!(daemon.get("/instant").status, 200);
    assert!(begin.elapsed() < time);
    assert_eq!(queued.reply().status, 503);
    assert!(begin.elapsed() >= time);
    for _ in &held {
        daemon.gate.send(()).unwrap();
    }
    for client in &mut held {
        assert_eq!(client.reply().status, 200);
    }
    queued.send("GET /again HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(queued.reply().status, 200);
}

/// Workers ring no bell for most answers, so that the loop learns of them late.
#[test]
fn a_connection_that_has_its_answer_takes_no_place_of_a_new_one() {
    let daemon = start(Limits { workers: 4, connections: 32, per_address: 16, ..Limits::default() });
    // Holds the loop until all others wait to be accepted in one turn of it.
    let mut first = daemon.connect();
    first.send("GET /instant/wait HTTP/1.1\r\nHost: localhost\r\n\r\n");
    daemon.until_at_gate(1);
    let mut others: Vec<_> = (0..40).map(|_| daemon.connect()).collect();
    for (number, client) in others.iter_mut().enumerate() {
        // The workers are woken for four at a time. The answer of the first counts, too.
        let before = 1 + number - number % 4;
        client.send(&format!(
            "GET /after/{before}/{number} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ));
    }
    daemon.gate.send(()).unwrap();
    assert_eq!(first.reply().status, 200);
    for client in &mut others {
        let reply = client.reply();
        assert_eq!(reply.status, 200, "{}", reply.head);
    }
}

#[test]
fn every_state_has_its_deadline() {
    let time = Duration::from_millis(300);
    let limits =
        Limits { request_time: time, idle_time: time * 2, write_time: time * 2, ..Limits::default() };
    let daemon = start(limits);
    let begin = Instant::now();
    let mut idle = daemon.connect();
    let mut part = daemon.connect();
    part.send("GET / HTTP/1.1\r\nHost:");
    let mut body = daemon.connect();
    body.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n");
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
    kept.send("GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n");
    kept.reply();
    kept.ends();
    assert!(begin.elapsed() >= time * 2);
    let mut lazy = daemon.connect();
    lazy.send("GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // The server gives up on a client that takes nothing, which this one would see only by reading.
    thread::sleep(time * 4);
    lazy.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut all = Vec::new();
    let read = lazy.stream.read_to_end(&mut all);
    assert!(all.len() < 8 << 20, "the whole answer came: {read:?}");
}

/// The thread that runs the loop carries a single read out itself. Meanwhile the other one sees to all else.
#[test]
fn a_read_that_hangs_holds_up_neither_deadlines_nor_requests() {
    let daemon = start(Limits { request_time: Duration::from_millis(300), ..Limits::default() });
    // Now and then a worker takes it, where the other thread was not standing by yet.
    let by_io_thread = || daemon.seen.by_io_thread.load(Ordering::SeqCst);
    let mut hung = 0;
    for number in 1..100 {
        if hung == 3 {
            return;
        }
        let mut part = daemon.connect();
        part.send("GET / HTTP/1.1\r\nHost:");
        // It is here before the read begins, so that no event tells of its end.
        assert_eq!(daemon.get("/instant").status, 200);
        let mut held = daemon.connect();
        let before = by_io_thread();
        held.send(&format!("GET /wait/{number} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        daemon.until_at_gate(number);
        hung += by_io_thread() - before;
        assert_eq!(part.reply().status, 408);
        for target in ["/instant", "/read", "/instant"] {
            assert_eq!(daemon.get(target).status, 200);
        }
        daemon.gate.send(()).unwrap();
        assert_eq!(held.reply().status, 200);
        held.send("GET /read HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(held.reply().status, 200);
    }
    panic!("no I/O thread hung three times");
}

#[test]
fn a_large_answer_arrives_whole_at_a_slow_reader() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    client
        .send("GET /large HTTP/1.1\r\nHost: localhost\r\n\r\nGET /next HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // Nothing is read until the socket is full.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(client.reply().body.len(), 8 << 20);
    assert_eq!(client.reply().body, "GET /next");
    // As the last answer: its connection is not watched before it has to wait for the reader.
    let mut client = daemon.connect();
    client.send("GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    thread::sleep(Duration::from_millis(300));
    assert_eq!(client.reply().body.len(), 8 << 20);
    client.ends();
}

#[test]
fn too_many_unsent_answers_make_for_refusals_until_they_are_gone() {
    let daemon = start(Limits { unsent_bytes: 1 << 20, ..Limits::default() });
    let mut lazy = daemon.connect();
    lazy.send("GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n");
    until(|| daemon.get("/a").status == 503);
    // Small ones take next to nothing, and parts of the program take nothing.
    assert_eq!(daemon.get("/instant").status, 200);
    assert_eq!(daemon.get("/instant/large").status, 503);
    assert_eq!(daemon.get("/public/large").body.len(), PROGRAM.len());
    drop(lazy);
    until(|| daemon.get("/a").status == 200);
    assert_eq!(daemon.get("/instant/large").status, 200);
    let mut lazy = daemon.connect();
    lazy.send("GET /public/large HTTP/1.1\r\nHost: localhost\r\n\r\n");
    lazy.stream.peek(&mut [0]).unwrap();
    assert_eq!(daemon.get("/a").status, 200);
    assert_eq!(lazy.reply().body.as_bytes(), PROGRAM);
}

/// Whether the server has read all that this client sent (`/proc/net/tcp6`, whose fifth word is the queues).
fn is_read(client: &TcpStream) -> bool {
    let place = |address: SocketAddr| format!(":{:04X}", address.port());
    let (own, server) = (place(client.local_addr().unwrap()), place(client.peer_addr().unwrap()));
    let sockets = std::fs::read_to_string("/proc/net/tcp6").unwrap();
    sockets.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>()).any(|words| {
        words[1].ends_with(&server) && words[2].ends_with(&own) && words[4].ends_with(":00000000")
    })
}

#[test]
fn when_full_the_oldest_idle_connection_gives_way_and_never_a_busy_one() {
    let daemon = start(Limits { connections: 4, per_address: 4, ..Limits::default() });
    let mut busy = daemon.connect();
    busy.send("GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n");
    daemon.until_at_gate(1);
    // One that was answered is new no longer.
    let answered = || {
        let mut client = daemon.connect();
        client.send("GET /instant HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.reply().status, 200);
        client
    };
    let mut reading = answered();
    reading.send("GET");
    until(|| is_read(&reading.stream));
    let mut idle = [answered(), answered()];
    assert_eq!(daemon.get("/instant").status, 200);
    assert_eq!(idle[0].stream.read(&mut [0]).unwrap(), 0);
    // Three more take the places of all but the busy one.
    let more: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    assert_eq!(idle[1].stream.read(&mut [0]).unwrap(), 0);
    drop(more);
    daemon.gate.send(()).unwrap();
    assert_eq!(busy.reply().status, 200);
}

#[test]
fn one_address_has_no_more_than_its_share() {
    let daemon = start(Limits { connections: 8, per_address: 2, ..Limits::default() });
    let mut clients: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    assert_eq!(clients[0].stream.read(&mut [0]).unwrap(), 0);
    let other = SocketAddr::new("::1".parse().unwrap(), daemon.address.port());
    let mut other = Client::new(TcpStream::connect(other).unwrap());
    other.send("POST /from-another HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(other.reply().status, 200);
    assert!(word_about("/from-another", "peer").starts_with("[::1]:"));
    for client in &mut clients[1..] {
        // Of two connections one may have a request at a worker, and that may not have come back yet.
        client.send("GET /instant HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let daemon = start(Limits { connections: 4, per_address: 4, ..Limits::default() });
    for target in ["/sleep", "/instant", "/large"] {
        for field in ["", "Connection: close\r\n"].repeat(3) {
            let mut client = daemon.connect();
            client.send(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{field}\r\n"));
            // Unread data or a pending answer: the kernel sends a reset.
            rustix::net::sockopt::set_socket_linger(&client.stream, Some(Duration::ZERO)).unwrap();
        }
        until(|| (0..10).all(|_| daemon.get("/a").status == 200));
    }
}
