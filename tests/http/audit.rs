//! What the log says of changes.

use crate::access::PATIENCE;
use crate::daemon::*;
use log::{LevelFilter, Log, Metadata, Record};
use rapiddiskd::http::Limits;
use std::sync::{Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

struct Sink(Mutex<Vec<String>>);

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.target() == "audit" {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

static SINK: Sink = Sink(Mutex::new(Vec::new()));

/// From now on audit lines are kept.
pub fn install() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        log::set_logger(&SINK).unwrap();
        log::set_max_level(LevelFilter::Info);
    });
}

/// A word of the one line about a target that no other test asks for: what follows `name=`.
pub fn word_about(target: &str, name: &str) -> String {
    let line = line_about(target);
    let word = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no {name} in {line}")).to_owned()
}

/// The one line about a target that no other test asks for.
fn line_about(target: &str) -> String {
    let begin = Instant::now();
    loop {
        let lines: Vec<_> =
            SINK.0.lock().unwrap().iter().filter(|line| line.contains(target)).cloned().collect();
        if let [line] = &lines[..] {
            return line.clone();
        }
        assert!(lines.is_empty() && begin.elapsed() < PATIENCE, "{target}: {lines:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_change_has_one_line_done_or_not() {
    let daemon = start(Limits::default());
    let mut client = daemon.connect();
    let peer = client.stream.local_addr().unwrap();
    let mut ask = |request: &str, fields: &str| {
        client.send(&format!("{request} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"));
        client.reply().status
    };
    assert_eq!(ask("POST /audit-done\"\\%0a?x", ""), 200);
    let line = line_about("audit-done");
    let begin = format!("peer={peer} caller=- action=\"POST /audit-done\\\"\\\\%0a?x\" status=200 ms=");
    let (head, milliseconds) = line.split_at(begin.len());
    assert_eq!(head, begin);
    milliseconds.parse::<u64>().unwrap();

    assert_eq!(ask("POST /sleep/audit-slow", ""), 200);
    let line = line_about("audit-slow");
    let (_, milliseconds) = line.split_once(" ms=").unwrap();
    assert!((300..5000).contains(&milliseconds.parse::<u64>().unwrap()), "{line}");

    assert_eq!(ask("POST /audit-fails/panic", ""), 500);
    assert!(line_about("audit-fails").contains(" status=500 "));
    assert_eq!(ask("POST /audit-refused", "Origin: http://evil.example\r\n"), 403);
    assert!(line_about("audit-refused").contains(" status=403 "));

    assert_eq!(ask("GET /audit-read", ""), 200);
    assert_eq!(ask("POST /audit-last", ""), 200);
    line_about("audit-last");
    assert!(!SINK.0.lock().unwrap().iter().any(|line| line.contains("audit-read")));
}
