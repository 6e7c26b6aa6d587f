//! The audit log: one line for each change, done or refused, and for each request without a valid
//! token where one is needed.
//!
//! A request's target is printable ASCII, as the parser checks, and is escaped here as well, so that
//! no client can forge a line.

use super::message::Request;
use std::time::{Duration, Instant};

/// How many refused requests are logged in a second: anybody can send any number of them.
const REFUSED_A_SECOND: u32 = 20;

const SECOND: Duration = Duration::from_secs(1);

/// Logs a change, with how long it took.
pub(super) fn done(request: &Request, status: u16, took: Duration) {
    log::info!(target: "audit", "{} ms={}", line(request, status), took.as_millis());
}

fn line(request: &Request, status: u16) -> String {
    let Request { method, target, peer, caller, .. } = request;
    let action = format!("{method} {target}");
    let caller = caller.as_deref().unwrap_or("-");
    format!("peer={peer} caller={caller} action={action:?} status={status}")
}

/// Logs requests that were refused before they reached a worker, only so many in a second.
#[derive(Default)]
pub(super) struct RefusalLog {
    second: Option<Instant>,
    logged: u32,
    left_out: u64,
}

impl RefusalLog {
    /// Logs one, or counts it as left out.
    pub fn log(&mut self, request: &Request, status: u16, now: Instant) {
        if self.second.is_none_or(|begin| now.duration_since(begin) >= SECOND) {
            self.say_left_out();
            *self = RefusalLog { second: Some(now), ..RefusalLog::default() };
        }
        if self.logged < REFUSED_A_SECOND {
            self.logged += 1;
            log::info!(target: "audit", "{} ms=0", line(request, status));
        } else {
            self.left_out += 1;
        }
    }

    /// When the log should say how many lines it lacks.
    pub fn due(&self) -> Option<Instant> {
        self.second.filter(|_| self.left_out > 0).map(|begin| begin + SECOND)
    }

    /// Says how many lines the log lacks, if any.
    pub fn say_left_out(&mut self) {
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            log::info!(target: "audit", "{left_out} more requests were refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::message::Method;
    use crate::http::peer::Peer;

    #[test]
    fn a_line_says_who_did_what_and_cannot_be_forged() {
        let mut request =
            Request { method: Method::Post, target: r#"/v1/a"\"#.to_owned(), peer: Peer::Unix, caller: None };
        assert_eq!(line(&request, 404), r#"peer=unix caller=- action="POST /v1/a\"\\" status=404"#);
        request.peer = Peer::Ip("[::ffff:192.0.2.7]:80".parse().unwrap());
        request.caller = Some("ops".into());
        assert!(line(&request, 200).starts_with("peer=192.0.2.7:80 caller=ops action="));
    }

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_logged() {
        let request =
            Request { method: Method::Post, target: "/".to_owned(), peer: Peer::Unix, caller: None };
        let mut refusals = RefusalLog::default();
        let now = Instant::now();
        for _ in 0..100 {
            refusals.log(&request, 401, now);
        }
        assert_eq!((refusals.logged, refusals.left_out), (REFUSED_A_SECOND, 80));
        assert_eq!(refusals.due(), Some(now + SECOND));
        refusals.say_left_out();
        assert_eq!(refusals.due(), None);
        // This does not begin a new second.
        refusals.log(&request, 401, now);
        assert_eq!((refusals.logged, refusals.left_out), (REFUSED_A_SECOND, 1));
        refusals.log(&request, 401, now + SECOND);
        assert_eq!((refusals.logged, refusals.left_out), (1, 0));
    }
}
