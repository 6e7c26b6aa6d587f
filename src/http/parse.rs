//! Finds in received bytes a request or an error with a status code, or that more bytes are needed.
//!
//! `httparse` does the grammar; this module adds the bounds and the stricter rules. The outcome
//! depends on the bytes alone, never on how they were split into reads: whatever is wrong first
//! in the stream decides, and a longer buffer cannot turn an error into something else. How long
//! a body may be depends on the request's route, so that is checked once the route is known.

use super::limits::{Limits, MOST_FIELDS};
use super::message::{Method, Refusal};
use std::mem::MaybeUninit;
use std::str::FromStr;

/// A body up to this length is read and dropped where none is wanted: a client that sends `{}`
/// with a request has done nothing wrong.
const IGNORED_BODY: usize = 1 << 10;

/// A request's head, and how long it and its body are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head<'b> {
    pub method: Method,
    pub target: &'b str,
    /// Whether it is a request of HTTP/1.1, not of HTTP/1.0.
    pub is_1_1: bool,
    /// Whether the client may send another request on this connection.
    pub keep_alive: bool,
    pub head_length: usize,
    pub body_length: usize,
    /// The client may keep the body back until it is told to go on (`Expect: 100-continue`).
    pub expects_continue: bool,
    pub fields: Fields<'b>,
}

/// The header fields that decide on access.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fields<'b> {
    /// The characters of a host and port, not more closely examined.
    pub host: Option<&'b str>,
    pub origin: Option<&'b [u8]>,
    pub authorization: Option<&'b [u8]>,
    /// There is an `Access-Control-Request-Method`.
    pub preflight: bool,
}

/// The longest a request may be whose route takes no body: unless a route allows more, no more than
/// this is ever buffered of one.
pub(super) fn longest_request(limits: &Limits) -> usize {
    limits.head_bytes + longest_body(limits, 0)
}

/// The longest body of a request whose route takes this many bytes.
fn longest_body(limits: &Limits, of_route: usize) -> usize {
    of_route.max(limits.body_bytes).max(IGNORED_BODY)
}

fn refuse<T>(status: u16, message: &'static str) -> Result<T, Refusal> {
    Err(Refusal::new(status, message))
}

/// Checks the length of a body against what the request's route takes and what is allowed anyway.
///
/// # Errors
/// The body is too long.
pub(super) fn check_body(length: usize, of_route: usize, limits: &Limits) -> Result<(), Refusal> {
    if length > longest_body(limits, of_route) { refuse(413, "The body is too long.") } else { Ok(()) }
}

/// What the server makes of received bytes if no route takes a body: `None` to wait for more, else
/// how many bytes the first request takes, or the status of the error that ends the connection.
/// For tests.
#[doc(hidden)]
pub fn examine(buffer: &[u8], limits: &Limits) -> Option<Result<usize, u16>> {
    match parse(buffer, limits) {
        Ok(None) => None,
        Ok(Some(head)) => Some(Ok(head.head_length + head.body_length)),
        Err(refusal) => Some(Err(refusal.status)),
    }
}

/// The same, with all that is found out about the request.
fn parse<'b>(buffer: &'b [u8], limits: &Limits) -> Result<Option<Head<'b>>, Refusal> {
    let Some(head) = head(buffer, limits)? else { return Ok(None) };
    check_body(head.body_length, 0, limits)?;
    let is_whole = buffer.len() >= head.head_length + head.body_length;
    Ok(is_whole.then_some(head))
}

/// Looks at the start of `buffer`, which begins where a request begins: a complete head, or `None`
/// if it is not complete and nothing is wrong so far.
///
/// # Errors
/// Something is wrong, which ends the connection.
pub(super) fn head<'b>(buffer: &'b [u8], limits: &Limits) -> Result<Option<Head<'b>>, Refusal> {
    let window = &buffer[..buffer.len().min(limits.head_bytes)];
    // httparse sees no further than the first byte that breaks one of our own rules, so that an
    // earlier fault is found first and a later one does not matter.
    let (end, fault) = first_fault(window, limits);
    let text = &window[..end];
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let fields = &mut fields[..limits.header_fields.min(MOST_FIELDS)];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(text, fields) {
        Ok(httparse::Status::Complete(length)) => understand(&request, length).map(Some),
        Ok(httparse::Status::Partial) => match fault {
            Some(fault) => Err(fault),
            None if window.len() == limits.head_bytes => {
                refuse(431, "The request line and header fields are too long.")
            }
            None => Ok(None),
        },
        Err(error) => Err(explain(error, text)),
    }
}

/// How many bytes precede the first fault that httparse would let pass, and what it is.
fn first_fault(window: &[u8], limits: &Limits) -> (usize, Option<Refusal>) {
    if matches!(window.first(), Some(b'\r' | b'\n')) {
        return (0, Some(Refusal::new(400, "The request starts with an empty line.")));
    }
    let is_bare = |&(at, &byte): &(usize, &u8)| byte == b'\n' && window[at - 1] != b'\r';
    let bare = window.iter().enumerate().find(is_bare).map(|(at, _)| at);
    let target = window.iter().position(|&byte| byte == b' ').map(|at| at + 1);
    let too_long = target.and_then(|start| {
        let end = start + limits.target_bytes + 1;
        let ends = |byte: &u8| matches!(byte, b' ' | b'\r' | b'\n');
        (window.len() >= end && !window[start..end].iter().any(ends)).then_some(end)
    });
    let bare = bare.map(|at| (at, 400, "A line ends without CR."));
    let too_long = too_long.map(|at| (at, 414, "The request target is too long."));
    // If both are at one place, the target is at fault: the bad line end comes right after it.
    match too_long.into_iter().chain(bare).min_by_key(|&(at, ..)| at) {
        Some((at, status, message)) => (at, Some(Refusal::new(status, message))),
        None => (window.len(), None),
    }
}

fn explain(error: httparse::Error, text: &[u8]) -> Refusal {
    use httparse::Error;
    let (status, message) = match error {
        Error::TooManyHeaders => (431, "The request has too many header fields."),
        Error::Version => {
            let version = text.split(|&byte| byte == b' ').nth(2);
            if version.is_some_and(|version| version.starts_with(b"HTTP/")) {
                (505, "This server speaks HTTP/1.1 and HTTP/1.0.")
            } else {
                (400, "The request line is not METHOD, target and HTTP version.")
            }
        }
        Error::HeaderName => (400, "A header field's name is malformed."),
        Error::HeaderValue => (400, "A header field's value has a character that may not be there."),
        Error::NewLine | Error::Token | Error::Status => {
            (400, "The request line is not METHOD, target and HTTP version.")
        }
    };
    Refusal::new(status, message)
}

/// Reads the fields of a complete head.
fn understand<'b>(request: &httparse::Request<'_, 'b>, head_length: usize) -> Result<Head<'b>, Refusal> {
    let method = Method::from_str(request.method.unwrap_or_default());
    let target = request.path.unwrap_or_default();
    let Ok(method) = method else {
        return refuse(400, "The method is not a word.");
    };
    if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse(400, "The request target is not a path in printable ASCII.");
    }
    let newer = request.version == Some(1);
    let mut fields = Fields::default();
    let mut length = None;
    let mut close = false;
    let mut stay = newer;
    let mut expects_continue = false;
    for field in request.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("host") {
            let host = std::str::from_utf8(field.value).ok();
            let Some(host) = host.filter(|host| host.bytes().all(is_host_byte)) else {
                return refuse(400, "The Host is malformed.");
            };
            if fields.host.replace(host).is_some() {
                return refuse(400, "The request has more than one Host.");
            }
        } else if is("origin") {
            if fields.origin.replace(field.value).is_some() {
                return refuse(400, "The request has more than one Origin.");
            }
        } else if is("authorization") {
            if fields.authorization.replace(field.value).is_some() {
                return refuse(400, "The request has more than one Authorization.");
            }
        } else if is("access-control-request-method") {
            fields.preflight = true;
        } else if is("content-length") {
            if length.replace(content_length(field.value)?).is_some() {
                return refuse(400, "The request has more than one Content-Length.");
            }
        } else if is("transfer-encoding") {
            return refuse(501, "Transfer-Encoding is not supported; send a Content-Length.");
        } else if is("expect") {
            if !field.value.eq_ignore_ascii_case(b"100-continue") {
                return refuse(417, "The only Expect that is supported is 100-continue.");
            }
            // A client of HTTP/1.0 would take the interim answer for the final one (RFC 9110, 10.1.1).
            expects_continue = newer;
        } else if is("connection") {
            for option in field.value.split(|&byte| byte == b',') {
                let option = option.trim_ascii();
                if option.eq_ignore_ascii_case(b"close") {
                    close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    stay = true;
                }
            }
        }
    }
    if newer && fields.host.is_none() {
        return refuse(400, "The request has no Host.");
    }
    Ok(Head {
        method,
        target,
        is_1_1: newer,
        keep_alive: stay && !close,
        head_length,
        body_length: length.unwrap_or(0),
        expects_continue,
        fields,
    })
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]".contains(&byte)
}

/// A length too large for `usize` is too large for any bound as well.
fn content_length(value: &[u8]) -> Result<usize, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return refuse(400, "The Content-Length is not a number.");
    }
    let digit = |total: usize, &byte: &u8| total.saturating_mul(10).saturating_add(usize::from(byte - b'0'));
    Ok(value.iter().fold(0, digit))
}

#[cfg(test)]
mod tests;
