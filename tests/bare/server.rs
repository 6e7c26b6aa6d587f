//! The upper bound for `tests/bench`: a server that does nothing but answer. A
//! thread for each connection, one fixed answer, no bounds, no parser.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

const BODY: &str = concat!("{\"status\":\"OK\",\"version\":\"", env!("CARGO_PKG_VERSION"), "\"}\n");

fn main() {
    let address = std::env::args().nth(1).expect("usage: bare ADDRESS:PORT");
    let listener = TcpListener::bind(&address).expect("cannot listen");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream));
    }
}

/// Answers until the client is gone. A request ends with an empty line and comes
/// in one piece, as wrk sends it.
fn serve(mut stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).ok().filter(|&length| length > 0)?;
        let request = &buffer[..length];
        let close = request.windows(17).any(|window| window == b"Connection: close");
        let connection = if close { "close" } else { "keep-alive" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n\
             Connection: {connection}\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
             Content-Type: application/json\r\nServer: bare\r\nContent-Length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        stream.write_all(answer.as_bytes()).ok()?;
        if close {
            return None;
        }
    }
}
