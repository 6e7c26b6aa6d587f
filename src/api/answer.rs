//! What the answers of all nouns have in common: JSON, and what a change says.

use std::fmt::Display;

use serde_json::{Value, json};

use super::seam::Response;
use crate::storage::Left;

/// An answer with a JSON body.
pub fn json(status: u16, body: &Value) -> Response {
    let mut text = body.to_string();
    // So that a terminal's prompt begins on a line of its own after curl.
    text.push('\n');
    Response::new(status, "application/json", text)
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

/// The message of a change that is done, with what it left over.
pub fn with_left(done: String, left: Left) -> String {
    match left {
        Some(left) => format!("{done}, but {left}"),
        None => done,
    }
}

/// An object with one field, an array. `json!` would copy the values.
pub fn list(field: &str, values: impl IntoIterator<Item = Value>) -> Value {
    Value::Object([(field.to_owned(), values.into_iter().collect())].into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
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
        use std::io::Read;
        let answer = json(200, &done("rd0 is empty".into())).into_answer();
        assert_eq!(answer.status_code().0, 200);
        let fields: Vec<_> = answer.headers().iter().map(ToString::to_string).collect();
        assert_eq!(fields, ["Content-Type: application/json"]);
        let mut text = String::new();
        answer.into_reader().read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"message\":\"rd0 is empty\",\"status\":\"Success\"}\n");
    }
}
