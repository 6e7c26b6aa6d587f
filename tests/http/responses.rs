//! Bodies of requests that a route takes, and bodies of responses that are made in pieces.

use crate::access::{PATIENCE, until};
use crate::daemon::*;
use crate::stub::{DOCUMENT, PIECE, PIECES};
use rapiddiskd::http::Limits;
use std::sync::atomic::Ordering;

fn post(target: &str, body: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_route_takes_a_body_up_to_its_own_bound_and_others_do_not() {
    let daemon = start(Limits::default());
    let longest = "0123456789abcdef".repeat(DOCUMENT / 16);
    let mut client = daemon.connect();
    for body in ["", "{}", longest.as_str()] {
        client.send(&post("/document", body));
        assert_eq!(client.reply().body, body);
    }
    for (target, length) in [("/document", DOCUMENT + 1), ("/body", 1025)] {
        let mut client = daemon.connect();
        client.send(&post(target, &"x".repeat(length)));
        assert_eq!(client.reply().status, 413, "{target}");
        client.ends();
    }
}

#[test]
fn a_body_may_come_in_parts_and_its_head_is_looked_at_once() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    let body = "0123456789abcdef".repeat(DOCUMENT / 16);
    let request = post("/document", &body);
    for (number, part) in request.as_bytes().chunks(100).enumerate() {
        client.send(std::str::from_utf8(part).unwrap());
        // Parts that come together would be no parts.
        until(|| number == 0 || daemon.seen.routed("/document") == 1);
        assert_eq!(daemon.get("/instant").status, 200);
    }
    client.send("GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.reply().body, body);
    assert_eq!(client.reply().body, "GET /next");
    assert_eq!(daemon.seen.routed("/document"), 1);
}

#[test]
fn a_refused_request_with_a_long_body_leaves_the_connection_in_order() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    let body = "x".repeat(DOCUMENT);
    client.send(&post("/document", &body).replace("Host: localhost", "Host: evil.example"));
    assert_eq!(client.reply().status, 403);
    client.send("GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.reply().body, "GET /next");
}

/// The resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn the_body_of_a_refused_request_takes_no_memory() {
    const BODY: usize = 16 << 20;
    let daemon = start(Limits { body_bytes: BODY, request_time: PATIENCE * 4, ..Limits::default() });
    let before = resident();
    let request = format!("POST /a HTTP/1.1\r\nHost: evil.example\r\nContent-Length: {BODY}\r\n\r\n");
    let part = "x".repeat(64 << 10);
    let mut clients: Vec<_> = (0..12).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        client.send(&request);
        (1..BODY / part.len()).for_each(|_| client.send(&part));
        client.send(&part[1..]);
    }
    // Half of what came would show beside what other tests take.
    assert!(resident() < before + 6 * BODY, "{before} bytes became {}", resident());
    for client in &mut clients {
        client.send("x");
        assert_eq!(client.reply().status, 403);
        client.send("GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.reply().body, "GET /next");
    }
}

#[test]
fn a_body_in_pieces_is_chunked() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    for target in ["/pieces", "/instant/pieces"] {
        client.send(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let head = client.bare_head();
        assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
        assert!(!head.contains("Content-Length"), "{head}");
        assert_eq!(client.chunks(), vec![b'p'; PIECES * PIECE]);
        client.send(&format!("HEAD {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(client.bare_head().lines().next(), head.lines().next());
    }
    client.send("GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.reply().body, "GET /next");
}

#[test]
fn a_body_in_pieces_ends_with_the_connection_for_old_clients() {
    let daemon = start(Limits::default());
    for fields in ["", "Connection: keep-alive\r\n"] {
        let mut client = daemon.connect();
        client.send(&format!("GET /pieces HTTP/1.0\r\n{fields}\r\n"));
        let head = client.bare_head();
        assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
        assert!(!head.contains("Transfer-Encoding") && !head.contains("Content-Length"), "{head}");
        assert_eq!(client.rest(), vec![b'p'; PIECES * PIECE]);
    }
}

#[test]
fn pieces_are_made_only_as_the_client_takes_them() {
    let daemon = start(Limits { unsent_bytes: 1 << 20, ..Limits::default() });
    let mut lazy = daemon.connect();
    lazy.send("GET /pieces HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let made = || daemon.seen.pieces.load(Ordering::SeqCst);
    // Until the socket is full: twice the same number, with requests between.
    let mut before = 0;
    until(|| {
        (0..20).for_each(|_| assert_eq!(daemon.get("/instant").status, 200));
        made() > 0 && made() == std::mem::replace(&mut before, made())
    });
    assert!(made() < PIECES, "all were made");
    // One piece is far less than the bound of unsent bytes.
    assert_eq!(daemon.get("/a").status, 200);
    lazy.bare_head();
    assert_eq!(lazy.chunks().len(), PIECES * PIECE);
    assert_eq!(made(), PIECES + 1);
}

#[test]
fn equal_reads_get_the_same_pieces() {
    let daemon = start(Limits { workers: 2, ..Limits::default() });
    let ask = |target: &str| {
        let mut client = daemon.connect();
        client.send(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        client
    };
    let _held = ["/wait/1", "/wait/2"].map(ask);
    daemon.until_at_gate(2);
    let mut equal = ["/pieces"; 3].map(ask);
    daemon.until_taken("/pieces", 3);
    (0..2).for_each(|_| daemon.gate.send(()).unwrap());
    for client in &mut equal {
        client.bare_head();
        assert_eq!(client.chunks().len(), PIECES * PIECE);
    }
}

#[test]
fn pieces_that_fail_break_the_connection_off() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    client.send("GET /broken-pieces HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.bare_head();
    assert_eq!(client.rest(), b"5\r\npiece\r\n");
    assert_eq!(daemon.get("/a").status, 200);
}
