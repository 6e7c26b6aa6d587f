//! From an answer to the bytes that go out.

use super::Answer;
use std::io::{self, Write};
use std::sync::Arc;
use tiny_http::{HTTPVersion, Header};

/// What every answer carries. Answers are about this moment and for the one who asked; and a
/// browser shall not guess at what they are.
const ALWAYS: &str = "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n";

const NO_LENGTH: &[u8] = b"Content-Length: 0\r\n\r\n";

/// What an answer's form depends on besides the answer itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// The body is left out, but not its length.
    pub head_only: bool,
    /// This is the last answer on the connection, and the client is told so.
    pub close: bool,
    /// The origin whose pages may read it.
    pub origin: Option<Arc<str>>,
}

/// An answer as it goes over the wire.
pub(super) struct Rendered {
    pub status: u16,
    pub bytes: Vec<u8>,
}

/// Writes an answer down.
///
/// # Errors
/// Only what reading the answer's body gives, which is never an error for one in memory.
pub(super) fn render(mut answer: Answer, shape: &Shape) -> io::Result<Rendered> {
    let mut add = |name: &str, value: &str| {
        if let Ok(field) = Header::from_bytes(name, value) {
            answer.add_header(field);
        }
    };
    add("Server", "rapiddiskd");
    if let Some(origin) = &shape.origin {
        add("Access-Control-Allow-Origin", origin);
        add("Access-Control-Expose-Headers", "Retry-After");
        add("Vary", "Origin");
    }
    let status = answer.status_code().0;
    let connection = if shape.close { "Connection: close\r\n" } else { "Connection: keep-alive\r\n" };
    let mut bytes = Vec::with_capacity(320 + answer.data_length().unwrap_or(0));
    let to = AfterFirstLine { to: &mut bytes, insert: &[ALWAYS, connection] };
    // As HTTP/1.0, since that is never answered in chunks; the version we speak is put right after.
    answer.raw_print(to, HTTPVersion(1, 0), &[], shape.head_only, None)?;
    if let Some(minor) = bytes.get_mut(b"HTTP/1.".len()) {
        *minor = b'1';
    }
    // It may not be there in this one case, and raw_print puts it last.
    if status == 204 && bytes.ends_with(NO_LENGTH) {
        bytes.truncate(bytes.len() - NO_LENGTH.len());
        bytes.extend_from_slice(b"\r\n");
    }
    Ok(Rendered { status, bytes })
}

/// Puts lines of ours below the status line: `tiny_http` drops a `Connection` that is set on an
/// answer.
struct AfterFirstLine<'a> {
    to: &'a mut Vec<u8>,
    insert: &'a [&'a str],
}

impl Write for AfterFirstLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match bytes.iter().position(|&byte| byte == b'\n') {
            Some(end) if !self.insert.is_empty() => {
                self.to.extend_from_slice(&bytes[..=end]);
                for line in std::mem::take(&mut self.insert) {
                    self.to.extend_from_slice(line.as_bytes());
                }
                self.to.extend_from_slice(&bytes[end + 1..]);
            }
            _ => self.to.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(answer: Answer, head_only: bool, close: bool) -> String {
        let shape = Shape { head_only, close, origin: None };
        let text = String::from_utf8(render(answer, &shape).unwrap().bytes).unwrap();
        // The date is the one part that changes.
        let lines = text.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: "));
        lines.collect()
    }

    #[test]
    fn an_answer_goes_out_with_its_length_and_our_fields() {
        let got = text(Answer::from_string("hello"), false, false);
        let want = "HTTP/1.1 200 OK\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n\
                    Connection: keep-alive\r\nContent-Type: text/plain; charset=UTF-8\r\n\
                    Server: rapiddiskd\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(got, want);
    }

    #[test]
    fn head_has_the_length_but_no_body_and_close_says_so() {
        let got = text(Answer::from_data("hello"), true, true);
        assert!(got.contains("\r\nConnection: close\r\n"), "{got}");
        assert!(got.ends_with("\r\nContent-Length: 5\r\n\r\n"), "{got}");
    }

    #[test]
    fn a_large_answer_is_not_chunked() {
        let got = text(Answer::from_data(vec![b'x'; 100_000]), false, false);
        assert!(!got.contains("Transfer-Encoding"));
        assert!(got.contains("\r\nContent-Length: 100000\r\n\r\nxxx"));
    }

    #[test]
    fn a_body_with_line_ends_is_left_alone() {
        let got = text(Answer::from_data("a\nb\r\n"), false, false);
        assert!(got.ends_with("\r\n\r\na\nb\r\n"), "{got}");
        assert_eq!(got.matches("no-store").count(), 1);
    }

    #[test]
    fn an_allowed_origin_is_told() {
        let shape = Shape { origin: Some("https://console.example".into()), ..Shape::default() };
        let bytes = render(Answer::from_data("x"), &shape).unwrap().bytes;
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("\r\nAccess-Control-Allow-Origin: https://console.example\r\n"), "{text}");
        assert!(text.contains("\r\nVary: Origin\r\n"), "{text}");
    }

    #[test]
    fn an_answer_without_content_has_no_length() {
        let got = text(Answer::from_data([]).with_status_code(204), false, false);
        assert!(got.ends_with("\r\nServer: rapiddiskd\r\n\r\n"), "{got}");
    }
}
