//! Tests that compare the page `src/api/README.md` with the sources: its tables and its examples.
//!
//! `UPDATE_API_PAGE=1 cargo test --lib api::` writes the tables into the page.

use std::fmt::Write;
use std::fs;

use serde_json::Value;

use super::errors::CODES;
use super::parameters::{Kind, Values};
use super::routes::{ENDPOINTS, KINDS, Verb};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/README.md");

/// Set to write the tables into the page instead of comparing them.
pub const UPDATE: &str = "UPDATE_API_PAGE";

fn page() -> String {
    fs::read_to_string(PAGE).unwrap()
}

/// What is below the heading of a call.
fn section(call: &str) -> String {
    let page = page();
    let rest = page.split(&format!("\n### {call}\n")).nth(1);
    let rest = rest.unwrap_or_else(|| panic!("the page has no section {call}"));
    rest.split("\n## ").next().and_then(|rest| rest.split("\n### ").next()).unwrap_or_default().to_owned()
}

/// The first JSON example below the heading of a call.
pub fn example(call: &str) -> Value {
    let section = section(call);
    let text = section.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
    serde_json::from_str(text.unwrap_or_default()).unwrap_or_else(|error| panic!("{call}: {error}"))
}

fn endpoints() -> String {
    let mut table = "| | path | what it does | example |\n| --- | --- | --- | --- |\n".to_owned();
    for endpoint in ENDPOINTS {
        let (method, option) = match endpoint.verb {
            Verb::Get => ("GET", ""),
            Verb::Post => ("POST", "-X POST "),
        };
        let (path, summary, example) = (endpoint.path, endpoint.summary, endpoint.example);
        writeln!(table, "| {method} | `{path}` | {summary} | `curl -s {option}H{example}` |").unwrap();
    }
    table
}

fn codes() -> String {
    let mut table = "| code | meaning |\n| --- | --- |\n".to_owned();
    for code in CODES {
        writeln!(table, "| {} | {} |", code.number, code.meaning).unwrap();
    }
    table
}

fn options() -> String {
    let mut table = "| option | of | what it is | example |\n| --- | --- | --- | --- |\n".to_owned();
    for endpoint in ENDPOINTS {
        let call = call_of(endpoint.path);
        for kind in endpoint.options {
            let (name, example, what) = (kind.name, kind.example, what_it_is(kind));
            writeln!(table, "| `{name}` | `{call}` | {what} | `{}?{name}={example}` |", endpoint.example)
                .unwrap();
        }
    }
    table
}

/// What a parameter is and, if they are few, which values it has.
fn what_it_is(kind: &Kind) -> String {
    match kind.values {
        Values::Pattern(_) => kind.description.to_owned(),
        Values::OneOf(texts) => {
            let texts: Vec<_> = texts.iter().map(|text| format!("`{text}`")).collect();
            format!("{} One of {}.", kind.description, texts.join(", "))
        }
    }
}

/// The name of the call with this path.
fn call_of(path: &str) -> &str {
    path.split('/').nth(2).unwrap_or_default()
}

fn parameters() -> String {
    let mut table = "| parameter | what it is | example |\n| --- | --- | --- |\n".to_owned();
    for kind in KINDS {
        let example = kind.example.replace('/', "%2F");
        writeln!(table, "| `@{}` | {} | `{example}` |", kind.name, what_it_is(kind)).unwrap();
    }
    table
}

#[test]
fn the_tables_of_the_page_are_those_of_the_sources() {
    let mut page = page();
    for (name, table) in
        [("codes", codes()), ("endpoints", endpoints()), ("parameters", parameters()), ("options", options())]
    {
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
        let (before, rest) = page.split_once(&begin).expect("the comment before the table");
        let (found, after) = rest.split_once(&end).expect("the comment after the table");
        if std::env::var_os(UPDATE).is_some() {
            page = format!("{before}{begin}{table}{end}{after}");
            continue;
        }
        assert_eq!(
            found, table,
            "the table of {name} in src/api/README.md is another; write it with: \
             {UPDATE}=1 cargo test --lib api::"
        );
    }
    if std::env::var_os(UPDATE).is_some() {
        // At once, since other tests read it meanwhile.
        let new = format!("{PAGE}.new");
        fs::write(&new, page).unwrap();
        fs::rename(new, PAGE).unwrap();
    }
}

#[test]
fn each_call_has_a_section_with_its_example_answer() {
    for endpoint in ENDPOINTS {
        let answer: Value = serde_json::from_str(endpoint.answer.example).unwrap();
        assert_eq!(example(call_of(endpoint.path)), answer, "{}", endpoint.path);
    }
}

#[test]
fn each_call_refuses_with_the_codes_of_the_table_in_its_section() {
    for endpoint in ENDPOINTS {
        let section = section(call_of(endpoint.path));
        let rows = section.split("| refused with | when |\n| --- | --- |\n").nth(1).unwrap_or_default();
        let rows = rows.lines().map_while(|row| row.strip_prefix("| ")?.split_once(" | "));
        let mut codes: Vec<u16> = rows.map(|(code, _)| code.parse().unwrap()).collect();
        codes.dedup();
        assert_eq!(codes, endpoint.answer.refused, "{}", endpoint.path);
    }
}
