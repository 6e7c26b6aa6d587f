//! Requests and responses.

use super::peer::Peer;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

pub use tiny_http::Method;

/// The most bytes of one piece of a body.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// The `Cache-Control` of what no cache may keep.
pub(super) const NO_STORE: &str = "no-store";

/// Who asks for what: a request without its body, as the audit log tells it.
#[derive(Debug)]
pub(super) struct Request {
    /// The method; one this server does not know is `NonStandard`.
    pub method: Method,
    /// As received: starts with `/`, printable ASCII, still percent-encoded, with its query.
    pub target: String,
    /// Where it came from.
    pub peer: Peer,
    /// The name of the token it was authenticated with.
    pub caller: Option<Arc<str>>,
}

/// A status code and a sentence for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: u16,
    pub message: Cow<'static, str>,
}

impl Refusal {
    /// A refusal whose sentence is always the same.
    pub const fn new(status: u16, message: &'static str) -> Refusal {
        Refusal { status, message: Cow::Borrowed(message) }
    }
}

/// What a handler answers with. The server adds the fields that every answer has.
#[derive(Debug)]
pub struct Response {
    pub(super) status: u16,
    pub(super) content_type: Option<&'static str>,
    pub(super) caching: &'static str,
    pub(super) fields: Vec<(&'static str, Cow<'static, str>)>,
    pub(super) body: Body,
}

impl Response {
    /// A response with a body, which no cache may keep: see [`Response::cached`].
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Body>) -> Response {
        Response { content_type: Some(content_type), body: body.into(), ..Response::empty(status) }
    }

    /// A response without a body, such as a 204.
    pub fn empty(status: u16) -> Response {
        Response {
            status,
            content_type: None,
            caching: NO_STORE,
            fields: Vec::new(),
            body: Body::Static(b""),
        }
    }

    /// Adds a header field. Those about the connection, the body's length and type, caching and
    /// the date are the server's.
    ///
    /// # Panics
    /// The value has a character that is not printable ASCII, and could forge another field. In a
    /// handler this is answered with 500.
    pub fn with_field(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Response {
        let value = value.into();
        let is_printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        assert!(value.bytes().all(is_printable), "the value of {name} is not printable ASCII: {value:?}");
        self.fields.push((name, value));
        self
    }

    /// Sets another `Cache-Control` than `no-store`.
    pub fn cached(mut self, policy: &'static str) -> Response {
        self.caching = policy;
        self
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The content type, if there is a body.
    pub fn content_type(&self) -> Option<&'static str> {
        self.content_type
    }

    /// The header fields that were added.
    pub fn fields(&self) -> &[(&'static str, Cow<'static, str>)] {
        &self.fields
    }

    /// The body.
    pub fn body(&self) -> &Body {
        &self.body
    }
}

/// The body of a response.
#[derive(Debug)]
pub enum Body {
    /// Bytes made for this response.
    Bytes(Vec<u8>),
    /// Bytes that are part of the program.
    Static(&'static [u8]),
    /// A body of unknown length, made while it is sent.
    Pieces(Pieces),
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Body::Bytes(bytes)
    }
}

impl From<String> for Body {
    fn from(text: String) -> Body {
        Body::Bytes(text.into_bytes())
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Body {
        Body::Static(bytes)
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Body {
        Body::Static(text.as_bytes())
    }
}

impl From<Pieces> for Body {
    fn from(pieces: Pieces) -> Body {
        Body::Pieces(pieces)
    }
}

/// A body that is made piece by piece: the next one only when the client has taken the one before.
///
/// Clients of HTTP/1.1 get it as chunks; for clients of HTTP/1.0 it ends with the connection. One
/// answer may go to several clients, each of which takes the pieces at its own speed.
#[derive(Clone)]
pub struct Pieces(Arc<dyn Fn(usize) -> Vec<u8> + Send + Sync>);

impl Pieces {
    /// A body of the pieces that `make` gives for 0, 1, 2 and so on; an empty piece is the end.
    ///
    /// `make` runs on the I/O thread: it must be quick, and no piece may be longer than 64 KiB. If
    /// a piece is longer or `make` panics, the connection is broken off, so that the client sees
    /// that the body is not whole.
    pub fn new(make: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static) -> Pieces {
        Pieces(Arc::new(make))
    }

    /// Makes a piece.
    pub(super) fn make(&self, number: usize) -> Vec<u8> {
        (self.0)(number)
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pieces")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_what_it_was_made_of() {
        let response = Response::new(405, "text/plain", "no").with_field("Allow", "GET").cached("no-cache");
        assert_eq!((response.status(), response.content_type), (405, Some("text/plain")));
        assert_eq!((response.caching, response.fields.len()), ("no-cache", 1));
        assert_eq!(Response::empty(204).content_type, None);
    }

    #[test]
    #[should_panic(expected = "not printable ASCII")]
    fn a_field_cannot_smuggle_in_another() {
        let _ = Response::empty(204).with_field("Location", "/a\r\nSet-Cookie: b");
    }
}
