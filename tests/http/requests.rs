//! Requests and their answers.

use crate::daemon::*;
use rapiddiskd::http::Limits;

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
        ("GET / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n".to_owned(), 417),
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
