//! Requests and their answers.

use crate::access::{PATIENCE, until};
use crate::daemon::*;
use crate::stub::DOCUMENT;
use rapiddiskd::http::Limits;
use std::sync::atomic::Ordering;

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
        client.send(&format!("GET {target}/{number} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
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
        targets.iter().map(|target| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).collect();
    client.send(&requests);
    for target in targets {
        assert_eq!(client.reply().body, format!("GET {target}"));
    }
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    for byte in "POST /slowly HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}".chars() {
        client.send(&byte.to_string());
    }
    assert_eq!(client.reply().body, "POST /slowly");
    let mut client = daemon.connect();
    // It was looked at, without a byte to read, before the first byte comes.
    assert_eq!(daemon.get("/instant").status, 200);
    for byte in "GET /slowly HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".chars() {
        client.send(&byte.to_string());
    }
    assert_eq!(client.reply().body, "GET /slowly");
    client.ends();
}

#[test]
fn head_is_answered_like_get_without_the_body() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    for target in ["/instant", "/worker"] {
        client.send(&format!("HEAD {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let (_, length) = client.head();
        assert_eq!(length, format!("HEAD {target}").len());
    }
    client.send("GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.reply().body, "GET /next");
}

#[test]
fn connections_end_when_the_client_says_so() {
    let daemon = start(Limits::default());
    for target in ["/instant", "/worker"] {
        for request in [
            format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
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
        for field in ["", "Connection: close\r\n"] {
            let mut client = daemon.connect();
            client.send(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{field}\r\n"));
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(client.reply().body, format!("GET {target}"));
            client.ends();
        }
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
        (
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000\r\n\r\n{}",
                "a".repeat(50_000)
            ),
            413,
        ),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 501),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nExpect: 102-processing\r\n\r\n".to_owned(), 417),
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
        "POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    assert_eq!(client.reply().body, "");
    assert_eq!(client.reply().body, "GET /b");
}

#[test]
fn a_body_is_handed_over_where_one_is_allowed() {
    let daemon = start(Limits { body_bytes: 64 << 10, ..Limits::default() });
    let mut client = daemon.connect();
    let body = "0123456789abcdef".repeat(4096);
    client.send(&format!(
        "POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert_eq!(client.reply().body, body);
}

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

/// A head whose client keeps the body back until it is asked for it.
fn expecting(request: &str, length: usize) -> String {
    format!("{request}\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
}

#[test]
fn a_body_that_is_held_back_is_asked_for_once_where_it_is_needed() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    let body = "b".repeat(DOCUMENT);
    for _ in 0..3 {
        client.send(&expecting("POST /document HTTP/1.1", body.len()));
        assert_eq!(client.bare_head(), CONTINUE);
        let (first, rest) = body.split_at(1);
        client.send(first);
        client.send(rest);
        assert_eq!(client.reply().body, body);
    }
    // Nobody is asked whose body has begun to arrive, or is not there, or who speaks HTTP/1.0. The next
    // answer would come after the "100 Continue".
    let next = "GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (length, sent) in [(2, "{}"), (0, "")] {
        client.send(&format!("{}{sent}{next}", expecting("POST /document HTTP/1.1", length)));
        assert_eq!(client.reply().body, sent);
        assert_eq!(client.reply().body, "GET /next");
    }
    client.send(&expecting("POST /document HTTP/1.0", 2));
    assert_eq!(daemon.get("/instant").status, 200);
    client.send("{}");
    assert_eq!(client.reply().body, "{}");
    client.ends();
}

#[test]
fn a_body_that_is_held_back_and_not_needed_is_not_waited_for() {
    // The connections are there for longer than this test takes.
    let daemon = start(Limits { linger_time: PATIENCE, ..Limits::default() });
    for (request, length, status) in [
        ("POST /a HTTP/1.1", 2, 200),
        ("GET /instant HTTP/1.1", 1024, 200),
        // Its length alone refuses it.
        ("POST /document HTTP/1.1", DOCUMENT + 1, 413),
        // Refused, whatever the body is.
        ("POST /document HTTP/1.1\r\nOrigin: https://evil.example", 2, 403),
    ] {
        // The client may send the body later all the same, and the answer is not lost by that.
        for sent in ["", "GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
            let mut client = daemon.connect();
            client.send(&expecting(request, length));
            let (head, length) = client.head();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
            assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
            client.send(sent);
            assert_eq!(client.rest().len(), length, "{request}: more than one answer");
        }
    }
    assert_eq!(daemon.seen.routed("/b"), 0);
}

#[test]
fn a_panic_is_answered_with_500_and_costs_nothing_else() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    for target in ["/panic", "/instant/panic", "/panic-in-routing"] {
        for _ in 0..20 {
            client.send(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            assert_eq!(client.reply().status, 500, "{target}");
        }
    }
    // Now and then a worker takes it. The thread that serves all connections must have taken it, too.
    until(|| {
        client.send("GET /panic HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.reply().status, 500);
        daemon.seen.by_io_thread.load(Ordering::SeqCst) > 0
    });
    client.send("GET /after HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.reply().body, "GET /after");
}

#[test]
fn equal_reads_that_wait_together_get_one_answer() {
    let daemon = start(Limits { workers: 2, ..Limits::default() });
    let ask = |request: &str| {
        let mut client = daemon.connect();
        client.send(&format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        client
    };
    let mut held = ["GET /wait/1", "POST /wait/2"].map(ask);
    daemon.until_at_gate(2);
    let mut equal = ["GET /wait/3"; 3].map(ask);
    let mut other = ask("HEAD /wait/3");
    daemon.until_taken("/wait/3", 4);
    // Each takes one: the two that run, the three together, and the other one.
    for _ in 0..4 {
        daemon.gate.send(()).unwrap();
    }
    assert_eq!(held.each_mut().map(|client| client.reply().body), ["GET /wait/1", "POST /wait/2"]);
    assert_eq!(equal.each_mut().map(|client| client.reply().body), ["GET /wait/3"; 3]);
    assert!(other.bare_head().starts_with("HTTP/1.1 200 "));
}
