//! A small HTTP client: one call over TCP or a Unix socket. The watchdog asks the daemon itself
//! with it, and the tests ask with it too.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::http::Listen;

/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: u64 = 64 << 20;

/// Calls one server. Each call has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    server: Listen,
    token: Option<String>,
    patience: Duration,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The header fields in their order, the names in lower case.
    pub fields: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first header field of this name, which is given in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    /// A client of the server that listens at `server`. Connecting, and each read and write, may
    /// take as long as `patience`.
    pub fn new(server: &Listen, patience: Duration) -> Client {
        let server = match server {
            Listen::Tcp(address) => Listen::Tcp(SocketAddr::new(reachable(address.ip()), address.port())),
            Listen::Unix(path) => Listen::Unix(path.clone()),
        };
        Client { server, token: None, patience }
    }

    /// The same client with a token, which goes into each request.
    pub fn with_token(self, token: &str) -> Client {
        Client { token: Some(token.to_owned()), ..self }
    }

    /// Sends a request without a body and reads the answer.
    ///
    /// # Errors
    /// There is no connection, it broke or was too slow, or what came is no complete HTTP answer.
    pub fn call(&self, method: &str, target: &str) -> io::Result<Reply> {
        match &self.server {
            Listen::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, self.patience)?;
                stream.set_read_timeout(Some(self.patience))?;
                stream.set_write_timeout(Some(self.patience))?;
                self.talk(stream.into(), method, target)
            }
            Listen::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(self.patience))?;
                stream.set_write_timeout(Some(self.patience))?;
                self.talk(stream.into(), method, target)
            }
        }
    }

    fn talk(&self, connection: OwnedFd, method: &str, target: &str) -> io::Result<Reply> {
        let mut stream = File::from(connection);
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if let Some(token) = &self.token {
            request += &format!("Authorization: Bearer {token}\r\n");
        }
        request += "\r\n";
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
        let broken = |what| io::Error::other(format!("{what} HTTP answer to {method} {target}"));
        let reply = parse(&answer).ok_or_else(|| broken("no"))?;
        // An answer to HEAD names the length of a body that it does not have.
        let length = reply.field("content-length").filter(|_| method != "HEAD");
        match length.is_none_or(|length| length.parse() == Ok(reply.body.len())) {
            true => Ok(reply),
            false => Err(broken("an incomplete")),
        }
    }
}

/// Reads an answer that ends with its connection.
fn parse(answer: &[u8]) -> Option<Reply> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let mut lines = std::str::from_utf8(&answer[..end]).ok()?.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let fields = lines.map(field).collect::<Option<_>>()?;
    Some(Reply { status, fields, body: answer[end + 4..].to_vec() })
}

/// The address at which this machine reaches a server that listens at `address`.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn an_answer_is_read_and_anything_else_is_not() {
        let reply =
            parse(b"HTTP/1.1 404 Not Found\r\nContent-Type: a\r\nX: b:c\r\n\r\nbody\r\n\r\n").unwrap();
        assert_eq!(reply.status, 404);
        assert_eq!(reply.field("content-type"), Some("a"));
        assert_eq!(reply.field("x"), Some("b:c"));
        assert_eq!(reply.field("y"), None);
        assert_eq!(reply.body, b"body\r\n\r\n");
        for wrong in
            ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 2\r\n\r\n", "x\r\n\r\n", "HTTP/1.1 200\r\nx\r\n\r\n"]
        {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    /// Answers one call of this method with these bytes.
    fn answer(method: &str, answer: &str) -> io::Result<Reply> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = Listen::Tcp(listener.local_addr().unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = listener.accept().unwrap().0;
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                stream.write_all(answer.as_bytes()).unwrap();
            });
            Client::new(&server, Duration::from_secs(10)).call(method, "/")
        })
    }

    #[test]
    fn an_answer_that_ends_early_is_an_error() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(answer("GET", &format!("{head}abc")).unwrap().body, b"abc");
        assert_eq!(answer("HEAD", head).unwrap().body, b"");
        assert!(answer("GET", &format!("{head}ab")).unwrap_err().to_string().contains("incomplete"));
    }

    #[test]
    fn a_server_that_listens_everywhere_is_reached_at_the_loopback() {
        let server =
            |text: &str| match Client::new(&Listen::Tcp(text.parse().unwrap()), Duration::ZERO).server {
                Listen::Tcp(address) => address.to_string(),
                Listen::Unix(path) => panic!("{path:?}"),
            };
        assert_eq!(server("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(server("[::]:1"), "[::1]:1");
        assert_eq!(server("192.0.2.1:1"), "192.0.2.1:1");
    }
}
