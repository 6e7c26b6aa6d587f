//! Whether the specification is whole, and its examples are what it says.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::super::page::UPDATE;
use super::super::routes::{ENDPOINTS, Endpoint};
use super::*;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/openapi.json");

fn document() -> Value {
    serde_json::from_slice(&specification().unwrap()).unwrap()
}

/// The objects and lists in a value, and itself.
fn all<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    found.push(value);
    match value {
        Value::Array(values) => values.iter().for_each(|value| all(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| all(value, found)),
        _ => {}
    }
}

#[test]
fn the_file_in_the_repository_is_the_specification() {
    let text = format!("{:#}\n", document());
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(GOLDEN, &text).unwrap();
    }
    assert!(
        std::fs::read_to_string(GOLDEN).is_ok_and(|golden| golden == text),
        "src/api/openapi.json is another; write it with: {UPDATE}=1 cargo test --lib api::"
    );
}

#[test]
fn it_is_one_line_whose_objects_have_each_field_once() {
    let text = String::from_utf8(specification().unwrap()).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert!(text.ends_with("}\n"));
    // What is there twice is read once.
    assert_eq!(text.len(), document().to_string().len() + 1);
}

#[test]
fn it_has_every_endpoint_with_its_parameters_and_answers() {
    let document = document();
    let mut names = HashSet::new();
    let mut calls = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, call) in item.as_object().unwrap() {
            let is_it = |it: &&Endpoint| it.path.replace('@', "") == path.replace(['{', '}'], "");
            let endpoint = ENDPOINTS.iter().find(is_it).unwrap();
            assert_eq!(method == "post", endpoint.verb == Verb::Post, "{path}");
            assert!(names.insert(call["operationId"].to_string()), "{path}: another has its operationId");
            let in_path = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
            let options = endpoint.options.iter().map(|option| option.name);
            let refer = |name| format!("#/components/parameters/{name}");
            let expected: Vec<_> = in_path.chain(options).map(refer).collect();
            let parameters = call["parameters"].as_array().unwrap();
            let parameters: Vec<_> =
                parameters.iter().map(|parameter| parameter["$ref"].as_str().unwrap()).collect();
            assert_eq!(parameters, expected, "{path}");
            for code in endpoint.answer.refused {
                assert!(call["responses"].get(code.to_string()).is_some(), "{path}: {code}");
            }
            calls += 1;
        }
    }
    assert_eq!(calls, ENDPOINTS.len());
}

#[test]
fn what_it_refers_to_is_there_and_all_that_is_there_is_referred_to() {
    let document = document();
    let mut values = Vec::new();
    all(&document, &mut values);
    let used: HashSet<_> = values.iter().filter_map(|value| value.get("$ref")?.as_str()).collect();
    let mut there = HashSet::new();
    for place in ["parameters", "schemas", "responses"] {
        let names = document["components"][place].as_object().unwrap().keys();
        there.extend(names.map(|name| format!("#/components/{place}/{name}")));
    }
    assert_eq!(used, there.iter().map(String::as_str).collect());
}

/// Fails if a value is not as the schema says. A field that the schema does not name is one that was forgotten.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = document.pointer(name.trim_start_matches('#')).unwrap();
        return check(document, schema, value, &format!("{place} {name}"));
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if schema["type"] == "integer" => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds = &schema["type"];
    let is_allowed = kinds == kind || kinds.as_array().is_some_and(|kinds| kinds.contains(&kind.into()));
    assert!(is_allowed, "{place}: {value} is no {kinds}");
    let is_one = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    assert!(is_one, "{place}: {value} is none of {}", schema["enum"]);
    for (number, item) in value.as_array().into_iter().flatten().enumerate() {
        let of = schema.get("items").unwrap_or_else(|| &schema["prefixItems"][number]);
        check(document, of, item, &format!("{place}/{number}"));
    }
    let none = Map::new();
    let fields = value.as_object().unwrap_or(&none);
    let required = schema["required"].as_array().into_iter().flatten();
    let missing: Vec<_> =
        required.filter(|name| !fields.contains_key(name.as_str().unwrap_or_default())).collect();
    assert!(missing.is_empty(), "{place}: {value} lacks {missing:?}");
    for (name, value) in fields.iter().filter(|_| schema.get("properties").is_some()) {
        let of = schema["properties"].get(name).or(schema.get("additionalProperties"));
        let of = of.unwrap_or_else(|| panic!("{place} has no {name}"));
        check(document, of, value, &format!("{place}/{name}"));
    }
}

#[test]
fn each_example_is_as_its_schema_says() {
    let document = document();
    let mut values = Vec::new();
    all(&document, &mut values);
    let mut examples = 0;
    for content in values {
        if let (Some(schema), Some(example)) = (content.get("schema"), content.get("example")) {
            check(&document, schema, example, "");
            examples += 1;
        }
    }
    assert!(examples > ENDPOINTS.len(), "only {examples} examples found");
}

#[test]
fn quotes_and_backslashes_are_escaped() {
    let mut text = Text::default();
    text.put(r#"["@","@"]"#, &[r#"\d"\"#, "@"]);
    assert_eq!(String::from_utf8(text.bytes).unwrap(), r#"["\\d\"\\","@"]"#);
}
