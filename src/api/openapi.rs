//! The specification of the API in the form of OpenAPI 3.1, made from the tables: the endpoints and parameters
//! in `routes.rs`, the answers in `schemas.rs`, the codes in `errors.rs`.
//!
//! `UPDATE_API_PAGE=1 cargo test --lib api::` writes it to `src/api/openapi.json` as well, where a change of it is
//! seen.
//!
//! What is called often is not inlined: this need not be fast, but small.

use super::errors::CODES;
use super::parameters::{Kind, Values};
use super::routes::{KINDS, OPTIONS, ROUTES, Route, Verb};
use super::schemas::SCHEMAS;

const DESCRIPTION: &str = "RAM disks, RAM caches and NVMe targets of a Linux machine. HEAD is answered like GET, \
                           without the body. A later version may add fields to an answer.";

const TOKEN: &str =
    "Needed if the service has a token file. A viewer's token may read, an admin's may change as well.";

/// The specification, on one line; `None` if there is no memory for it.
pub fn specification() -> Option<Vec<u8>> {
    let mut text = Text::default();
    text.put(
        r#"{"openapi":"3.1.0","info":{"title":"rapiddiskd","version":"@","description":"@","license":{"name":"MIT or Apache 2.0","identifier":"MIT OR Apache-2.0"}},"security":[{},{"token":[]}],"paths":{"#,
        &[env!("CARGO_PKG_VERSION"), DESCRIPTION],
    );
    let mut before = "";
    for route in &*ROUTES {
        put_path(&mut text, before, route);
        before = route.template[1];
    }
    text.close("}");
    text.put(
        r#""components":{"securitySchemes":{"token":{"type":"http","scheme":"bearer","description":"@"}},"parameters":{"#,
        &[TOKEN],
    );
    for kind in KINDS {
        put_parameter(&mut text, kind, r#""path","required":true"#);
    }
    for kind in OPTIONS {
        put_parameter(&mut text, kind, r#""query","required":false"#);
    }
    text.close("}");
    text.raw(r#""schemas":{"#);
    for (name, fields) in SCHEMAS {
        put_schema(&mut text, name, fields);
    }
    text.close("}");
    text.raw(r#""responses":{"#);
    for code in CODES.iter().filter(|code| !code.message.is_empty()) {
        text.put(r#""@":{"description":"@","#, &[&code.number.to_string(), code.meaning]);
        if let Some(field) = code.field {
            text.put(r#""headers":{"@":{"schema":{"type":"string"}}},"#, &[field]);
        }
        put_content(&mut text, "Failed");
        text.put(r#"{"message":"@","status":"Failed"}}}},"#, &[code.message]);
    }
    text.close("}}}");
    // Behind the whole no comma follows.
    text.bytes.pop();
    text.raw("\n");
    (!text.is_cut).then_some(text.bytes)
}

/// A path; `before` is the call of the path before it.
fn put_path(text: &mut Text, before: &str, Route { template, endpoint }: &Route) {
    let mut last = "";
    text.raw("\"");
    for part in template {
        match part.strip_prefix('@') {
            Some(name) => {
                text.put("/{@}", &[name]);
                last = name;
            }
            None => text.put("/@", &[part]),
        }
    }
    let (verb, call) = (if endpoint.verb == Verb::Get { "get" } else { "post" }, template[1]);
    text.put(r#"":{"@":{"summary":"@","operationId":"@"#, &[verb, endpoint.summary, call]);
    // A call with another path, too, is named after what it has more.
    if before == call {
        text.put("_@", &[last]);
    }
    text.raw(r#"","parameters":["#);
    for name in template.iter().filter_map(|part| part.strip_prefix('@')) {
        put_reference(text, "parameters", name);
    }
    for option in endpoint.options {
        put_reference(text, "parameters", option.name);
    }
    text.close("]");
    text.raw(r#""responses":{"#);
    for code in CODES {
        if code.number == 200 {
            text.put(r#""200":{"description":"@","#, &[code.meaning]);
            put_content(text, endpoint.answer.schema);
            text.raw(endpoint.answer.example);
            text.close("}}}");
        } else if code.is_general || endpoint.answer.refused.contains(&code.number) {
            let number = code.number.to_string();
            text.put("\"@\":", &[&number]);
            put_reference(text, "responses", &number);
        }
    }
    text.close("}}}");
}

#[inline(never)]
fn put_reference(text: &mut Text, place: &str, name: &str) {
    text.put(r##"{"$ref":"#/components/@/@"},"##, &[place, name]);
}

/// The rest of an answer, but for its example and the end of it.
fn put_content(text: &mut Text, schema: &str) {
    text.raw(r#""content":{"application/json":{"schema":"#);
    put_reference(text, "schemas", schema);
    text.raw(r#""example":"#);
}

fn put_parameter(text: &mut Text, kind: &Kind, place: &str) {
    text.put(r#""@":{"name":"@","in":"#, &[kind.name, kind.name]);
    text.raw(place);
    text.put(
        r#","description":"@","example":"@","schema":{"type":"string","#,
        &[kind.description, kind.example],
    );
    match kind.values {
        Values::Pattern(pattern) => text.put(r#""pattern":"^(@)$""#, &[pattern]),
        Values::OneOf(values) => {
            text.raw(r#""enum":["#);
            for value in values {
                text.put(r#""@","#, &[value]);
            }
            text.close("]");
        }
    }
    text.close("}}");
}

fn put_schema(text: &mut Text, name: &str, fields: &str) {
    text.put(r#""@":{"type":"object","required":["#, &[name]);
    let fields = cut(fields, ',');
    for field in &fields {
        let (name, _) = halves(field);
        if !name.ends_with('?') && name != "*" {
            text.put(r#""@","#, &[name]);
        }
    }
    text.close("]");
    text.raw(r#""properties":{"#);
    for field in &fields {
        let (name, holds) = halves(field);
        if name != "*" {
            text.put(r#""@":"#, &[cut(name, '?')[0]]);
            put_holds(text, holds);
        }
    }
    text.close("}");
    // They come last.
    if let ("*", holds) = halves(fields[fields.len() - 1]) {
        text.raw(r#""additionalProperties":"#);
        put_holds(text, holds);
    }
    text.close("}");
}

/// The name of a field, and what it holds.
fn halves(field: &str) -> (&str, &str) {
    let parts = cut(field, ' ');
    (parts[parts.len() - 2], parts[parts.len() - 1])
}

/// What a field may hold: the word for it, how its schema begins, what it has for each name, and how it ends.
const HOLDS: &[(&str, &str, &str, &str)] = &[
    ("text", r#"{"type":"string""#, "", "}"),
    ("texts", r#"{"type":"array","items":{"type":"string"}"#, "", "}"),
    ("text/null", r#"{"type":["string","null"]"#, "", "}"),
    ("number/null", r#"{"type":["number","null"]"#, "", "}"),
    ("count", r#"{"type":"integer","minimum":0"#, "", "}"),
    ("flag", r#"{"type":"boolean""#, "", "}"),
    ("object", r#"{"type":"object""#, "", "}"),
    ("one", r#"{"type":"string","enum":["#, r#""@","#, "]}"),
    ("list", r#"{"type":"array","items":"#, REFERENCE, "}"),
    ("pair", r#"{"type":"array","minItems":2,"maxItems":2,"prefixItems":["#, REFERENCE, "]}"),
];

/// A reference to a schema.
const REFERENCE: &str = r##"{"$ref":"#/components/schemas/@"},"##;

/// The schema of a field.
fn put_holds(text: &mut Text, holds: &str) {
    let parts = cut(holds, ':');
    for (_, begin, each, end) in HOLDS.iter().filter(|(word, ..)| *word == parts[0]) {
        text.raw(begin);
        for names in &parts[1..] {
            for name in cut(names, '/') {
                text.put(each, &[name]);
            }
        }
        text.close(end);
    }
}

/// Cuts a text.
#[inline(never)]
fn cut(text: &str, at: char) -> Vec<&str> {
    text.split(at).collect()
}

/// JSON that grows as far as there is memory.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// There was no memory for some of it.
    is_cut: bool,
}

impl Text {
    #[inline(never)]
    fn raw(&mut self, text: &str) {
        match self.bytes.try_reserve(text.len()) {
            Ok(()) => self.bytes.extend_from_slice(text.as_bytes()),
            Err(_) => self.is_cut = true,
        }
    }

    /// `template` with these texts, escaped, in the places of its `@`.
    fn put(&mut self, template: &str, texts: &[&str]) {
        for (number, part) in cut(template, '@').into_iter().enumerate() {
            if number > 0 {
                self.raw(&texts[number - 1].replace('\\', r"\\").replace('"', r#"\""#));
            }
            self.raw(part);
        }
    }

    /// Ends objects or lists, the last entry of which may have a comma behind it, and is an entry itself.
    #[inline(never)]
    fn close(&mut self, brackets: &str) {
        if self.bytes.last() == Some(&b',') {
            self.bytes.pop();
        }
        self.raw(brackets);
        self.raw(",");
    }
}

#[cfg(test)]
mod tests;
