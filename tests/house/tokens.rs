//! Rust's text as its tokens, as far as the rules of the house need them.

/// The names and signs of a file: no comments, no texts, no numbers' parts, and nothing of an
/// item that only the unit tests have.
pub fn tokens(text: &str) -> Vec<&str> {
    without_tests(&all_tokens(text))
}

fn all_tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let (length, is_kept) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if let Some(length) = text_length(rest) {
            (length, false)
        } else if is_name(first) {
            (rest.find(|c| !is_name(c)).unwrap_or(rest.len()), true)
        } else if rest.starts_with("::") {
            (2, true)
        } else {
            (first.len_utf8(), !first.is_whitespace())
        };
        if is_kept {
            tokens.push(&rest[..length]);
        }
        rest = &rest[length..];
    }
    tokens
}

/// The length of the text or character in quotes that begins here, if one does.
fn text_length(rest: &str) -> Option<usize> {
    if let Some(raw) = rest.strip_prefix("br").or(rest.strip_prefix('r')) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let end = format!("\"{}", &raw[..hashes]);
        let inner = raw[hashes..].strip_prefix('"')?;
        let start = rest.len() - inner.len();
        return Some(start + inner.find(&end)? + end.len());
    }
    let quoted = rest.strip_prefix('b').unwrap_or(rest);
    let quote = quoted.chars().next().filter(|c| ['"', '\''].contains(c))?;
    let start = rest.len() - quoted.len() + 1;
    let mut characters = rest[start..].char_indices();
    let mut count = 0;
    while let Some((at, character)) = characters.next() {
        // The quote of a lifetime, `'a`, has no second one.
        if quote == '\'' && (count == 1) != (character == '\'') {
            return None;
        }
        match character {
            '\\' if quote == '\'' => return Some(start + at + 2 + rest[start + at + 2..].find('\'')? + 1),
            '\\' => drop(characters.next()),
            _ if character == quote => return Some(start + at + 1),
            _ => {}
        }
        count += 1;
    }
    None
}

/// Leaves out each item under `#[cfg(test)]`.
fn without_tests<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&MARK) {
            at += MARK.len();
            let mut depth = 0;
            while at < tokens.len() {
                depth += i32::from(tokens[at] == "{") - i32::from(tokens[at] == "}");
                at += 1;
                let is_use_tree = tokens.get(at) == Some(&";");
                if depth == 0 && (tokens[at - 1] == ";" || tokens[at - 1] == "}" && !is_use_tree) {
                    break;
                }
            }
        } else {
            kept.push(tokens[at]);
            at += 1;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_comments_and_unit_tests_are_no_tokens() {
        let text = r###"a("b\"", 'c', '\'', '\u{1F}', &'d e, b"f", r#"g"h"#) // i
            #[cfg(test)] use j::{k};
            #[cfg(test)] mod l { fn m() {} }
            n::o"###;
        assert_eq!(tokens(text).join(" "), "a ( , , , , & ' d e , , ) n :: o");
    }
}
