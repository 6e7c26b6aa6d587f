//! Answers as they go over the wire.

use super::*;

const TEXT: &str = "text/plain; charset=UTF-8";

fn plain(body: impl Into<Body>) -> Response {
    Response::new(200, TEXT, body)
}

fn text_in(response: Response, shape: &Shape) -> String {
    let text = String::from_utf8(render(response, shape).unwrap().bytes.to_vec()).unwrap();
    // The date is the one part that changes.
    assert_eq!(text.matches("\r\nDate: ").count(), 1, "{text}");
    let lines = text.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: "));
    lines.collect()
}

fn text(response: Response, head_only: bool, close: bool) -> String {
    text_in(response, &Shape { head_only, close, ..Shape::default() })
}

#[test]
fn an_answer_goes_out_with_its_length_and_our_fields() {
    let got = text(plain("hello"), false, false);
    let want = "HTTP/1.1 200 OK\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n\
                Connection: keep-alive\r\nServer: rapiddiskd\r\n\
                Content-Type: text/plain; charset=UTF-8\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(got, want);
}

#[test]
fn head_has_the_length_but_no_body_and_close_says_so() {
    for body in [Body::Static(b"hello"), Body::Bytes(b"hello".to_vec())] {
        let got = text(plain(body), true, true);
        assert!(got.contains("\r\nConnection: close\r\n"), "{got}");
        assert!(got.ends_with("\r\nContent-Length: 5\r\n\r\n"), "{got}");
    }
}

#[test]
fn a_large_answer_is_not_chunked() {
    let got = text(plain(vec![b'x'; 100_000]), false, false);
    assert!(!got.contains("Transfer-Encoding"));
    assert!(got.contains("\r\nContent-Length: 100000\r\n\r\nxxx"));
}

#[test]
fn a_body_with_line_ends_is_left_alone() {
    let got = text(plain("a\nb\r\n"), false, false);
    assert!(got.ends_with("\r\n\r\na\nb\r\n"), "{got}");
    assert_eq!(got.matches("no-store").count(), 1);
}

#[test]
fn an_allowed_origin_is_told() {
    let shape = Shape { origin: Some("https://console.example".into()), ..Shape::default() };
    let text = text_in(plain("x"), &shape);
    assert!(text.contains("\r\nAccess-Control-Allow-Origin: https://console.example\r\n"), "{text}");
    assert!(text.contains("\r\nVary: Origin\r\n"), "{text}");
}

#[test]
fn an_answer_without_content_has_no_length() {
    let got = text(Response::empty(204), false, false);
    assert!(got.ends_with("\r\nServer: rapiddiskd\r\n\r\n"), "{got}");
    assert!(text(Response::empty(200), false, false).ends_with("\r\nContent-Length: 0\r\n\r\n"));
}

#[test]
fn type_caching_and_fields_are_the_responses_own() {
    let response = Response::new(405, "text/html", "").with_field("Allow", "GET, HEAD").cached("max-age=60");
    let got = text(response, false, false);
    assert!(got.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{got}");
    for field in ["Allow: GET, HEAD", "Content-Type: text/html", "Cache-Control: max-age=60"] {
        assert_eq!(got.matches(&format!("\r\n{field}\r\n")).count(), 1, "{got}");
    }
    assert!(!got.contains("no-store"), "{got}");
    // For pages of an allowed origin it would be another answer.
    assert_eq!(got.matches("\r\nVary: Origin\r\n").count(), 1, "{got}");
    assert!(!text(plain("x"), false, false).contains("Vary"));
}

#[test]
fn a_large_part_of_the_program_is_not_copied() {
    static LARGE: [u8; COPIED + 1] = [b's'; COPIED + 1];
    let rendered = |head_only| render(plain(&LARGE[..]), &Shape { head_only, ..Shape::default() }).unwrap();
    let Rendered { bytes, rest, .. } = rendered(false);
    assert!(bytes.ends_with(format!("\r\nContent-Length: {}\r\n\r\n", LARGE.len()).as_bytes()));
    let mut rest = rest.unwrap();
    assert!(!rest.ends_with_connection());
    let Next::Last(body) = rest.next() else { panic!("{rest:?}") };
    assert_eq!(body.as_ptr(), LARGE.as_ptr());
    assert_eq!((*rendered(true).bytes).len(), bytes.len());
    assert!(rendered(true).rest.is_none());
}

/// The head, and what the pieces add to it; `None` if that breaks off.
fn whole(
    make: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static,
    shape: &Shape,
) -> Option<(String, Vec<u8>)> {
    let Rendered { bytes, rest, .. } = render(plain(Pieces::new(make)), shape).unwrap();
    let head = String::from_utf8(bytes.to_vec()).unwrap();
    let Some(mut rest) = rest else { return Some((head, Vec::new())) };
    assert_eq!(rest.ends_with_connection(), head.contains("\r\nConnection: close\r\n"), "{head}");
    let mut body = Vec::new();
    loop {
        match rest.next() {
            Next::Piece(bytes) => body.extend(bytes),
            Next::Last(bytes) => {
                body.extend(bytes);
                return Some((head, body));
            }
            Next::Broken => return None,
        }
    }
}

fn two(number: usize) -> Vec<u8> {
    [&b"sixteen bytes..."[..], b"!", b""][number.min(2)].to_vec()
}

#[test]
fn pieces_are_chunks_or_end_with_the_connection() {
    let new = Shape { chunks: true, ..Shape::default() };
    let (head, body) = whole(two, &new).unwrap();
    assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
    assert!(!head.contains("Content-Length"), "{head}");
    assert_eq!(body, b"10\r\nsixteen bytes...\r\n1\r\n!\r\n0\r\n\r\n");
    let (head, body) = whole(two, &Shape::default()).unwrap();
    assert!(!head.contains("Transfer-Encoding") && !head.contains("Content-Length"), "{head}");
    assert_eq!(body, b"sixteen bytes...!");
    for chunks in [true, false] {
        let shape = Shape { chunks, head_only: true, ..Shape::default() };
        let (head, body) = whole(two, &shape).unwrap();
        assert!(head.ends_with("\r\n\r\n") && body.is_empty(), "{head}");
        assert!(head.contains("\r\nConnection: keep-alive\r\n"), "{head}");
    }
}

#[test]
fn a_piece_that_is_too_long_or_panics_breaks_the_answer_off() {
    let shape = Shape { chunks: true, ..Shape::default() };
    assert!(whole(|_| vec![0; PIECE_BYTES + 1], &shape).is_none());
    assert!(whole(|number| if number == 0 { vec![1] } else { panic!("a fault") }, &shape).is_none());
    let longest = |number| if number == 0 { vec![0; PIECE_BYTES] } else { Vec::new() };
    assert!(whole(longest, &shape).unwrap().1.len() > PIECE_BYTES);
}
