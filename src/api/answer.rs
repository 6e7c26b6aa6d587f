//! What the answers of all nouns have in common: JSON, and what a change says.

use std::fmt::Display;
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::http::Response;

const JSON: &str = "application/json";

/// The body where there is no memory for the one that was meant.
const NO_MEMORY: &str = "{\"message\":\"there is no memory for the answer at the moment; a change may have been made: look \
                         before you try again\",\"status\":\"Failed\"}\n";

/// An answer with a JSON body. A list can be long: without memory for it the answer is a 503.
pub fn json(status: u16, body: &Value) -> Response {
    let mut text = Text(Vec::new());
    // So that a terminal's prompt begins on a line of its own after curl.
    let written = serde_json::to_writer(&mut text, body).is_ok() && text.write_all(b"\n").is_ok();
    made_text(status, written.then_some(text.0))
}

/// The same, where the text is there already.
pub fn json_line(status: u16, line: String) -> Response {
    Response::new(status, JSON, line)
}

/// The same, where the text was made as far as there was memory.
pub fn made_text(status: u16, text: Option<Vec<u8>>) -> Response {
    match text {
        Some(text) => Response::new(status, JSON, text),
        None => Response::new(503, JSON, NO_MEMORY),
    }
}

/// JSON as it goes out: a terminal's prompt begins on a line of its own after curl.
pub fn line(body: &Value) -> String {
    let mut text = body.to_string();
    text.push('\n');
    text
}

/// Grows as far as there is memory.
struct Text(Vec<u8>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_reserve(bytes.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The body for a change that was made.
pub fn done(message: String) -> Value {
    json!({"status": "Success", "message": message})
}

/// The same, with what was made as a field of its own.
pub fn made(field: &str, name: &impl Display, message: String) -> Value {
    let mut body = done(message);
    body[field] = Value::String(name.to_string());
    body
}

/// An object with one field, an array. `json!` would copy the values.
pub fn list(field: &str, values: impl IntoIterator<Item = Value>) -> Value {
    Value::Object([(field.to_owned(), values.into_iter().collect())].into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body;
    use crate::storage::DiskName;

    #[test]
    fn a_change_answers_with_these_bytes() {
        assert_eq!(
            done("rd0 is empty".into()).to_string(),
            r#"{"message":"rd0 is empty","status":"Success"}"#
        );
        assert_eq!(
            made("device", &DiskName(0), "rd0 has 64 MiB".into()).to_string(),
            r#"{"device":"rd0","message":"rd0 has 64 MiB","status":"Success"}"#
        );
    }

    #[test]
    fn an_answer_is_json_and_one_line() {
        let answer = json(200, &done("rd0 is empty".into()));
        assert_eq!((answer.status(), answer.content_type()), (200, Some("application/json")));
        assert!(answer.fields().is_empty());
        let Body::Bytes(text) = answer.body() else { panic!("{answer:?}") };
        assert_eq!(text, b"{\"message\":\"rd0 is empty\",\"status\":\"Success\"}\n");
    }
}
