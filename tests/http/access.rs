//! Tokens, origins and names, from the outside. Which request gets what is a matter of the unit
//! tests; these show that the decision reaches the wire.

use crate::audit::word_about;
use crate::daemon::*;
use rapiddiskd::http::{Access, AccessRules, Limits};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const TOKENS: &str = "admin ops 0123456789abcdef\nviewer eye fedcba9876543210\n";

pub fn write_tokens(path: &Path, text: &str) {
    let _ = std::fs::remove_file(path);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn ask(daemon: &Daemon, request: &str, fields: &str) -> Reply {
    let mut client = daemon.connect();
    client.send(&format!("{request} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"));
    client.reply()
}

#[test]
fn tokens_are_asked_for_and_read_again() {
    let scratch = Scratch::new("tokens");
    let path = scratch.0.join("tokens");
    write_tokens(&path, TOKENS);
    let rules = AccessRules { token_file: Some(path.clone()), ..AccessRules::default() };
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root, "token files belong to root: this test has to run as root");
    let daemon = start_with(&[LOOPBACK], Limits::default(), Access::new(rules).unwrap());
    let admin = "Authorization: Bearer 0123456789abcdef\r\n";
    let viewer = "Authorization: Bearer fedcba9876543210\r\n";
    for target in ["/a", "/instant"] {
        let reply = ask(&daemon, &format!("GET {target}"), "");
        assert_eq!(reply.status, 401);
        assert!(reply.head.contains("\r\nWWW-Authenticate: Bearer realm="), "{}", reply.head);
        assert_eq!(ask(&daemon, &format!("GET {target}"), viewer).status, 200);
    }
    assert_eq!(ask(&daemon, "POST /a", viewer).status, 403);
    assert_eq!(ask(&daemon, "POST /caller-old", admin).status, 200);
    assert_eq!(word_about("/caller-old", "caller"), "ops");

    write_tokens(&path, "admin new 00112233445566778899\n");
    daemon.reload();
    assert_eq!(ask(&daemon, "GET /a", admin).status, 401);
    let new = "Authorization: Bearer 00112233445566778899\r\n";
    assert_eq!(ask(&daemon, "POST /caller-new", new).status, 200);
    assert_eq!(word_about("/caller-new", "caller"), "new");

    write_tokens(&path, "nonsense\n");
    daemon.reload();
    assert_eq!(ask(&daemon, "POST /a", new).status, 200);
}

/// How long a test waits for what must happen, however slow the machine is.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn until(mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_public_page_is_for_everybody_and_the_rest_is_not() {
    let scratch = Scratch::new("public");
    let path = scratch.0.join("tokens");
    write_tokens(&path, TOKENS);
    let rules = AccessRules { token_file: Some(path), ..AccessRules::default() };
    let daemon = start_with(&[LOOPBACK], Limits::default(), Access::new(rules).unwrap());
    for fields in ["", "Authorization: Bearer wrong\r\n", "Origin: https://evil.example\r\n"] {
        let reply = ask(&daemon, "GET /public/page", fields);
        assert_eq!((reply.status, reply.body.as_str()), (200, "<p>"), "{fields}");
        assert!(reply.head.contains("\r\nContent-Type: text/html\r\n"), "{}", reply.head);
        assert!(reply.head.contains("\r\nCache-Control: max-age=60\r\n"), "{}", reply.head);
        assert!(!reply.head.contains("no-store"), "{}", reply.head);
    }
    assert_eq!(ask(&daemon, "GET /a", "").status, 401);
    assert_eq!(ask(&daemon, "POST /public/page", "").status, 401);
}

#[test]
fn a_public_page_is_not_for_names_that_are_not_ours() {
    let daemon = start(Limits::default());
    for (host, status) in [("localhost", 200), ("evil.example", 403)] {
        let mut client = daemon.connect();
        client.send(&format!("GET /public/page HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let reply = client.reply();
        assert_eq!(reply.status, status, "{host}");
        // Whoever reached the daemon by a name of its own learns which one to allow.
        assert_eq!(reply.body.contains("\"evil.example\""), status == 403, "{}", reply.body);
    }
    let mut client = daemon.connect();
    client.send(&format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "h".repeat(4000)));
    let reply = client.reply();
    assert_eq!(reply.status, 403);
    assert!(reply.body.contains("hhh") && reply.body.len() < 400, "{}", reply.body);
}

#[test]
fn a_refused_head_request_leaves_the_connection_in_order() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    client.send("HEAD /a HTTP/1.1\r\nHost: evil.example\r\n\r\nGET /b HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(client.head().0.starts_with("HTTP/1.1 403 "));
    assert_eq!(client.reply().body, "GET /b");
}

#[test]
fn pages_are_kept_out_unless_their_origin_is_allowed() {
    let allow_origins = vec!["https://console.example".to_owned()];
    let rules = AccessRules { allow_origins, ..AccessRules::default() };
    let daemon = start_with(&[LOOPBACK], Limits::default(), Access::new(rules).unwrap());
    let from = |origin: &str| format!("Origin: {origin}\r\n");
    assert_eq!(ask(&daemon, "POST /a", &from("https://evil.example")).status, 403);
    let question = "Access-Control-Request-Method: POST\r\n";
    let allow = "\r\nAccess-Control-Allow-Origin: https://console.example\r\n";

    let mut client = daemon.connect();
    for target in ["/a", "/instant"] {
        client.send(&format!(
            "OPTIONS {target} HTTP/1.1\r\nHost: localhost\r\n{}{question}\r\n",
            from("https://console.example")
        ));
        let head = client.bare_head();
        assert!(head.starts_with("HTTP/1.1 204 ") && head.contains(allow), "{head}");
        assert!(head.contains("\r\nAccess-Control-Allow-Methods: GET, HEAD, POST\r\n"), "{head}");
        assert!(!head.contains("Content-Length"), "{head}");
        let reply = ask(&daemon, &format!("POST {target}"), &from("https://console.example"));
        assert_eq!(reply.status, 200);
        assert!(reply.head.contains(allow), "{}", reply.head);
    }
    let reply = ask(&daemon, "OPTIONS /a", &(from("https://evil.example") + question));
    assert_eq!(reply.status, 403);
    assert!(!reply.head.contains("Access-Control"), "{}", reply.head);
}

#[test]
fn every_answer_tells_browsers_what_not_to_do() {
    let daemon = start(Limits::default());
    for request in ["GET /a", "GET /instant", "GET /panic", "GET a"] {
        let reply = ask(&daemon, request, "");
        for field in ["X-Content-Type-Options: nosniff", "Cache-Control: no-store"] {
            assert_eq!(reply.head.matches(field).count(), 1, "{request}: {}", reply.head);
        }
    }
}
