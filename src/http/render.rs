//! From a response to the bytes that go out.

use super::date;
use super::message::{Body, NO_STORE, PIECE_BYTES, Pieces, Response};
use std::collections::TryReserveError;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tiny_http::StatusCode;

/// Room for the status line and the fields of nearly every answer.
const USUAL_HEAD: usize = 512;

/// Bytes of the program up to this length are sent in one piece with the head. More are not copied.
const COPIED: usize = 2 << 10;

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
    pub bytes: Bytes,
    /// What follows the bytes.
    pub rest: Option<Rest>,
}

/// Bytes that go out.
#[derive(Debug, Clone)]
pub(super) enum Bytes {
    /// Made for this answer. Equal reads that had one answer share them.
    Made(Arc<Vec<u8>>),
    /// Part of the program.
    Static(&'static [u8]),
}

impl Bytes {
    /// How many of them take memory for this answer.
    pub fn in_memory(&self) -> usize {
        match self {
            Bytes::Made(bytes) => bytes.len(),
            Bytes::Static(_) => 0,
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Made(bytes) => bytes,
            Bytes::Static(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes::Made(Arc::new(bytes))
    }
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
///
/// # Errors
/// There is no memory for a copy of its body.
pub(super) fn render(response: Response, shape: &Shape) -> Result<Rendered, TryReserveError> {
    let Response { status, content_type, caching, fields, body } = response;
    let content = match &body {
        _ if shape.head_only => &[],
        Body::Bytes(bytes) => &bytes[..],
        Body::Static(bytes) if bytes.len() <= COPIED => bytes,
        Body::Static(_) | Body::Pieces(_) => &[],
    };
    let framing = framing(status, &body, shape);
    let close = shape.close || matches!(framing, Framing::Close);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(USUAL_HEAD + content.len())?;
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
    }
    // Where a cache may keep it, those for other origins and for none differ, too.
    if shape.origin.is_some() || caching != NO_STORE {
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
    Ok(Rendered { status, bytes: bytes.into(), rest })
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
    if shape.head_only {
        return None;
    }
    match (body, framing) {
        (Body::Static(bytes), Framing::Length(_)) if bytes.len() > COPIED => Some(Rest::Static(bytes)),
        (Body::Pieces(pieces), Framing::Chunks) => Some(Rest::Pieces { pieces, next: 0, chunks: true }),
        (Body::Pieces(pieces), Framing::Close) => Some(Rest::Pieces { pieces, next: 0, chunks: false }),
        _ => None,
    }
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

/// The part of an answer that comes when the part before it is sent.
#[derive(Debug, Clone)]
pub(super) enum Rest {
    /// Bytes of the program.
    Static(&'static [u8]),
    /// Made piece by piece, from `next` on.
    Pieces { pieces: Pieces, next: usize, chunks: bool },
}

/// What comes next of an answer.
#[derive(Debug)]
pub(super) enum Next {
    /// These bytes, and then more.
    Piece(Vec<u8>),
    /// These bytes, perhaps none, and then nothing.
    Last(&'static [u8]),
    /// The body cannot be made: the client must not believe that it is whole.
    Broken,
}

impl Rest {
    /// Whether the client knows the end of the body by the end of the connection.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self, Rest::Pieces { chunks: false, .. })
    }

    /// Makes the next piece, as it goes out.
    pub fn next(&mut self) -> Next {
        let (pieces, next, chunks) = match self {
            Rest::Static(bytes) => return Next::Last(bytes),
            Rest::Pieces { pieces, next, chunks } => (pieces, next, *chunks),
        };
        let number = *next;
        *next += 1;
        let Ok(piece) = catch_unwind(AssertUnwindSafe(|| pieces.make(number))) else {
            return Next::Broken;
        };
        if piece.len() > PIECE_BYTES {
            log::error!("a piece of an answer has {} bytes, more than {PIECE_BYTES}", piece.len());
            return Next::Broken;
        }
        match (piece.is_empty(), chunks) {
            (true, true) => Next::Last(b"0\r\n\r\n"),
            (true, false) => Next::Last(b""),
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
