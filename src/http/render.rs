//! From a response to the bytes that go out.

use super::date;
use super::message::{Body, PIECE_BYTES, Pieces, Response};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tiny_http::StatusCode;

/// Room for the status line and the fields of nearly every answer.
const USUAL_HEAD: usize = 512;

/// What an answer's form depends on besides the response itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// The body is left out, but not its length.
    pub head_only: bool,
    /// This is the last answer on the connection, and the client is told so.
    pub close: bool,
    /// The client understands chunked transfer coding.
    pub chunks: bool,
    /// The origin whose pages may read it.
    pub origin: Option<Arc<str>>,
}

/// An answer as it goes over the wire.
#[derive(Debug)]
pub(super) struct Rendered {
    pub status: u16,
    pub bytes: Arc<Vec<u8>>,
    /// What follows the bytes.
    pub rest: Option<Rest>,
}

/// How the client is told where a body ends.
#[derive(Debug)]
enum Framing {
    Length(usize),
    Chunks,
    /// By the end of the connection.
    Close,
    /// There is none.
    Nothing,
}

/// Writes an answer down.
pub(super) fn render(response: Response, shape: &Shape) -> Rendered {
    let Response { status, content_type, caching, fields, body } = response;
    let content = match &body {
        _ if shape.head_only => &[],
        Body::Bytes(bytes) => &bytes[..],
        Body::Static(bytes) => bytes,
        Body::Pieces(_) => &[],
    };
    let framing = framing(status, &body, shape);
    let close = shape.close || matches!(framing, Framing::Close);
    let mut bytes = Vec::with_capacity(USUAL_HEAD + content.len());
    put_status_line(&mut bytes, status);
    put_field(&mut bytes, "X-Content-Type-Options", b"nosniff");
    put_field(&mut bytes, "Cache-Control", caching.as_bytes());
    put_field(&mut bytes, "Connection", if close { b"close" } else { b"keep-alive" });
    put_field(&mut bytes, "Date", &date::now());
    put_field(&mut bytes, "Server", b"rapiddiskd");
    if let Some(content_type) = content_type {
        put_field(&mut bytes, "Content-Type", content_type.as_bytes());
    }
    for (name, value) in &fields {
        put_field(&mut bytes, name, value.as_bytes());
    }
    if let Some(origin) = &shape.origin {
        put_field(&mut bytes, "Access-Control-Allow-Origin", origin.as_bytes());
        put_field(&mut bytes, "Access-Control-Expose-Headers", b"Retry-After");
        put_field(&mut bytes, "Vary", b"Origin");
    }
    match framing {
        Framing::Length(length) => {
            put_field(&mut bytes, "Content-Length", length.to_string().as_bytes());
        }
        Framing::Chunks => put_field(&mut bytes, "Transfer-Encoding", b"chunked"),
        Framing::Close | Framing::Nothing => {}
    }
    bytes.extend_from_slice(b"\r\n");
    if !matches!(framing, Framing::Nothing) {
        bytes.extend_from_slice(content);
    }
    let rest = rest(body, &framing, shape);
    Rendered { status, bytes: Arc::new(bytes), rest }
}

fn framing(status: u16, body: &Body, shape: &Shape) -> Framing {
    match body {
        // These have no body, and no field that is about one.
        _ if matches!(status, 100..200 | 204 | 304) => Framing::Nothing,
        Body::Bytes(bytes) => Framing::Length(bytes.len()),
        Body::Static(bytes) => Framing::Length(bytes.len()),
        Body::Pieces(_) if shape.chunks => Framing::Chunks,
        // The answer to HEAD ends with its head.
        Body::Pieces(_) if shape.head_only => Framing::Nothing,
        Body::Pieces(_) => Framing::Close,
    }
}

fn rest(body: Body, framing: &Framing, shape: &Shape) -> Option<Rest> {
    let Body::Pieces(pieces) = body else { return None };
    let chunks = match framing {
        _ if shape.head_only => return None,
        Framing::Chunks => true,
        Framing::Close => false,
        Framing::Length(_) | Framing::Nothing => return None,
    };
    Some(Rest { pieces, next: 0, chunks })
}

fn put_status_line(bytes: &mut Vec<u8>, status: u16) {
    bytes.extend_from_slice(b"HTTP/1.1 ");
    bytes.extend_from_slice(status.to_string().as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(StatusCode(status).default_reason_phrase().as_bytes());
    bytes.extend_from_slice(b"\r\n");
}

fn put_field(bytes: &mut Vec<u8>, name: &str, value: &[u8]) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(b": ");
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(b"\r\n");
}

/// The part of an answer that is made when the part before it is sent.
#[derive(Debug, Clone)]
pub(super) struct Rest {
    pieces: Pieces,
    next: usize,
    chunks: bool,
}

/// What comes next of an answer.
#[derive(Debug)]
pub(super) enum Next {
    /// These bytes, and then more.
    Piece(Vec<u8>),
    /// These bytes, perhaps none, and then nothing.
    Last(Vec<u8>),
    /// The body cannot be made: the client must not believe that it is whole.
    Broken,
}

impl Rest {
    /// Whether the client knows the end of the body by the end of the connection.
    pub fn ends_with_connection(&self) -> bool {
        !self.chunks
    }

    /// Makes the next piece, as it goes out.
    pub fn next(&mut self) -> Next {
        let number = self.next;
        self.next += 1;
        let Ok(piece) = catch_unwind(AssertUnwindSafe(|| self.pieces.make(number))) else {
            return Next::Broken;
        };
        if piece.len() > PIECE_BYTES {
            log::error!("a piece of an answer has {} bytes, more than {PIECE_BYTES}", piece.len());
            return Next::Broken;
        }
        match (piece.is_empty(), self.chunks) {
            (true, true) => Next::Last(b"0\r\n\r\n".to_vec()),
            (true, false) => Next::Last(Vec::new()),
            (false, true) => Next::Piece(chunk(&piece)),
            (false, false) => Next::Piece(piece),
        }
    }
}

fn chunk(piece: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{:x}\r\n", piece.len()).into_bytes();
    bytes.reserve_exact(piece.len() + 2);
    bytes.extend_from_slice(piece);
    bytes.extend_from_slice(b"\r\n");
    bytes
}

#[cfg(test)]
mod tests;
