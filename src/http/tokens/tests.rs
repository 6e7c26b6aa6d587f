//! Token files and their tokens.

use super::*;
use rustix::fs::{CWD, chmod, mknodat};
use rustix::process::geteuid;
use std::path::PathBuf;

fn parsed(text: &str) -> Tokens {
    Tokens::parse(text.as_bytes()).unwrap()
}

fn names(tokens: &Tokens, candidate: &str) -> Option<(Role, String)> {
    tokens.find(candidate.as_bytes()).map(|(role, name)| (role, name.to_string()))
}

#[test]
fn holders_are_found_by_their_token() {
    let tokens = parsed("# who\n\nadmin ops 0123456789abcdef\r\n\tviewer  grafana\tfedcba9876543210  \n");
    assert_eq!(names(&tokens, "0123456789abcdef"), Some((Role::Admin, "ops".to_owned())));
    assert_eq!(names(&tokens, "fedcba9876543210"), Some((Role::Viewer, "grafana".to_owned())));
    for wrong in
        ["", "0", "0123456789abcde", "0123456789abcdefg", "0123456789abcdeg", "1123456789abcdef", "ops"]
    {
        assert_eq!(names(&tokens, wrong), None, "{wrong}");
    }
}

#[test]
fn wrong_lines_are_named_and_tokens_are_not() {
    for (text, line) in [
        ("admin ops", "line 1: "),
        ("admin ops secret1 more", "line 1: "),
        ("# c\nroot ops secret1", "line 2: "),
        ("Admin ops secret1", "line 1: "),
        ("admin o/ps secret1", "line 1: "),
        ("admin ops secr\u{e9}t1", "line 1: "),
        ("admin ops secret1\x07", "line 1: "),
        ("admin ops secret1\nviewer ops secret2", "line 2: "),
        ("admin ops secret1\nviewer two secret1", "line 2: "),
        ("", "no token"),
        ("# admin ops secret1\n", "no token"),
    ] {
        let error = Tokens::parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(line) && !error.contains("secret"), "{text:?}: {error}");
    }
    Tokens::parse(format!("admin {} secret1", "n".repeat(65)).as_bytes()).unwrap_err();
}

#[test]
fn debug_output_has_no_token() {
    assert_eq!(format!("{:?}", parsed("admin ops 0123456789abcdef")), "1 tokens");
}

struct TokenFile(PathBuf);

impl TokenFile {
    fn new(name: &str, text: &[u8], mode: u32) -> TokenFile {
        let path = std::env::temp_dir().join(format!("rapiddiskd-tokens-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        chmod(&path, Mode::from_raw_mode(mode)).unwrap();
        TokenFile(path)
    }

    fn error(&self) -> String {
        Tokens::read_owned_by(&self.0, geteuid().as_raw()).unwrap_err().to_string()
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn a_file_that_others_may_read_is_refused() {
    let text = b"admin ops 0123456789abcdef";
    let private = TokenFile::new("private", text, 0o600);
    Tokens::read_owned_by(&private.0, geteuid().as_raw()).unwrap();
    let error = Tokens::read_owned_by(&private.0, geteuid().as_raw() + 1).unwrap_err();
    assert!(error.to_string().contains("must belong to root"), "{error}");
    for mode in [0o640, 0o604, 0o620, 0o602, 0o700, 0o644] {
        let error = TokenFile::new("shared", text, mode).error();
        assert!(error.contains("0600") && error.contains("tokens-"), "{mode:o}: {error}");
    }
}

#[test]
fn what_is_no_token_file_is_refused() {
    let error = Tokens::read(Path::new("/nonexistent/tokens")).unwrap_err().to_string();
    assert!(error.starts_with("token file /nonexistent/tokens: "), "{error}");
    Tokens::read(&std::env::temp_dir()).unwrap_err();
    let fifo = TokenFile::new("fifo", b"", 0o600);
    std::fs::remove_file(&fifo.0).unwrap();
    mknodat(CWD, &fifo.0, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert!(fifo.error().contains("not a regular file"));
    assert!(TokenFile::new("bad", b"admin", 0o600).error().contains("line 1"));
    let long = [b"#".repeat(70_000), b"\nadmin ops 0123456789abcdef".to_vec()].concat();
    assert!(TokenFile::new("long", &long, 0o600).error().contains("64 KiB"));
}
