//! Listening, and stopping.

use crate::access::PATIENCE;
use crate::audit::word_about;
use crate::daemon::*;
use rapiddiskd::http::{Access, Limits, Listen, Peer, Server, Wake};
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn stopping_lets_what_runs_finish_and_takes_nothing_new() {
    let mut daemon = start(Limits::default());
    let mut idle = daemon.connect();
    let mut busy = daemon.connect();
    busy.send("POST /wait HTTP/1.1\r\nHost: localhost\r\n\r\n");
    daemon.until_at_gate(1);
    daemon.tell(Wake::Stop);
    idle.ends();
    assert_eq!(TcpStream::connect(daemon.address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    daemon.gate.send(()).unwrap();
    assert_eq!(busy.reply().body, "POST /wait");
    busy.ends();
    drop(busy);
    daemon.thread.take().unwrap().join().unwrap().unwrap();
}

#[test]
fn stopping_lets_an_answer_out_that_is_half_taken() {
    let mut daemon = start(Limits::default());
    let mut slow = daemon.connect();
    slow.send("GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n");
    slow.stream.peek(&mut [0]).unwrap();
    daemon.tell(Wake::Stop);
    assert_eq!(slow.reply().body.len(), 8 << 20);
    slow.ends();
    drop(slow);
    daemon.thread.take().unwrap().join().unwrap().unwrap();
}

#[test]
fn stopping_does_not_wait_for_ever() {
    let mut daemon = start(Limits { grace: Duration::from_millis(500), ..Limits::default() });
    let mut busy = daemon.connect();
    busy.send("GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n");
    daemon.until_at_gate(1);
    let begin = Instant::now();
    daemon.tell(Wake::Stop);
    daemon.thread.take().unwrap().join().unwrap().unwrap();
    assert!(begin.elapsed() < PATIENCE);
    busy.ends();
    daemon.gate.send(()).unwrap();
}

/// There is nobody to serve without this thread: its end must be that of the process.
#[test]
fn a_panic_of_the_io_thread_is_not_swallowed() {
    let mut daemon = start(Limits::default());
    let mut busy = daemon.connect();
    busy.send("GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n");
    daemon.until_at_gate(1);
    daemon.order(NONSENSE);
    daemon.thread.take().unwrap().join().unwrap_err();
    busy.ends();
    daemon.gate.send(()).unwrap();
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let daemon = start(Limits::default());
    let error =
        Server::bind(&[Listen::Tcp(daemon.address)], Limits::default(), Access::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&daemon.address.to_string()), "{error}");
}

fn post_over_unix(path: &Path, target: &str) -> Reply {
    let mut client = Client::new(UnixStream::connect(path).unwrap());
    client.send(&format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
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
    assert_eq!(post_over_unix(&path, "/over-unix").status, 200);
    assert_eq!(word_about("/over-unix", "peer"), "unix");
    let error = Server::bind(&listen, Limits::default(), Access::default()).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(post_over_unix(&path, "/still-there").status, 200);
    drop(daemon);
    assert!(!path.exists());
    std::fs::write(&path, "no socket").unwrap();
    Server::bind(&listen, Limits::default(), Access::default()).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"no socket");
}

#[test]
fn peers_are_shown_short() {
    let ip = |text: &str| Peer::Ip(text.parse().unwrap()).to_string();
    assert_eq!(ip("[::ffff:192.0.2.1]:80"), "192.0.2.1:80");
    assert_eq!(ip("[2001:db8::1]:80"), "[2001:db8::1]:80");
    assert_eq!(Peer::Unix.to_string(), "unix");
}
