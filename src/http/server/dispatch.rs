//! What becomes of a complete request: answered here, handed to a worker, or refused.

use super::Front;
use crate::http::access::{Decision, preflight_answer};
use crate::http::conn::State;
use crate::http::parse::Refusal;
use crate::http::render::Rendered;
use crate::http::workers::{Job, PANICKED, respond};
use crate::http::{Header, Method, Request, Service};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What the service says of a request before it answers it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub is_instant: bool,
    pub is_change: bool,
}

/// Asks the service; `None` if that panics.
pub(super) fn kind(service: &dyn Service, method: &Method, target: &str) -> Option<Kind> {
    let ask = || {
        let is_change = service.is_change(method, target);
        Kind { is_instant: !is_change && service.is_instant(method, target), is_change }
    };
    catch_unwind(AssertUnwindSafe(ask)).ok()
}

/// A header field that says how to do better.
fn advice(status: u16) -> Option<Header> {
    let (name, value) = match status {
        401 => ("WWW-Authenticate", "Bearer realm=\"rapiddiskd\""),
        // In seconds: what is full now can be empty in a moment.
        503 => ("Retry-After", "1"),
        _ => return None,
    };
    Header::from_bytes(name, value).ok()
}

impl Front {
    /// A complete request, and what was found out about it.
    pub(super) fn dispatch(&mut self, token: u64, request: Request, kind: Option<Kind>, decision: Decision) {
        let Some(conn) = self.slots.get(token) else { return };
        let service = Arc::clone(&self.service);
        let Some(kind) = kind else {
            return self.refuse(token, Refusal { status: 500, message: PANICKED });
        };
        match decision {
            Decision::Pass => {}
            Decision::Preflight => {
                let answer = respond(&*service, &conn.shape, preflight_answer);
                return self.answer_now(token, answer);
            }
            Decision::Refuse(refusal) => {
                // A wrong token is worth a line whatever it was shown for.
                if kind.is_change || refusal.status == 401 {
                    self.refusals.log(&request, refusal.status, self.now);
                }
                return self.refuse(token, refusal);
            }
        }
        if kind.is_instant {
            let answer = respond(&*service, &conn.shape, || service.answer(&request));
            return self.answer_now(token, answer);
        }
        let share = conn.share;
        let room = if self.unsent > self.limits.unsent_bytes {
            Err("Too many answers wait for clients to take them; try again.")
        } else if !self.has_room_for_requests(share) {
            Err("Too many connections wait for answers; try again.")
        } else {
            self.pool.room(kind.is_change)
        };
        if let Err(message) = room {
            return self.no_room(token, &request, kind.is_change, message);
        }
        let Some(conn) = self.slots.get(token) else { return };
        let awaited = conn.shape.close || conn.readable || conn.fresh;
        let deadline = self.now + self.limits.queue_time;
        conn.enter(State::Queued, self.now, Some(deadline));
        let job = Job {
            token,
            line: Arc::clone(&conn.line),
            request,
            is_change: kind.is_change,
            leads: true,
            shape: conn.shape.clone(),
            since: self.now,
        };
        self.pool.submit(job, awaited);
        self.busy += 1;
        self.due_at(deadline);
    }

    /// Refuses a request for which there is no room now.
    pub(super) fn no_room(&mut self, token: u64, request: &Request, is_change: bool, message: &'static str) {
        if is_change {
            self.refusals.log(request, 503, self.now);
        }
        self.refuse(token, Refusal { status: 503, message });
    }

    /// Answers with a refusal.
    pub(super) fn refuse(&mut self, token: u64, refusal: Refusal) {
        let Some(conn) = self.slots.get(token) else { return };
        let service = Arc::clone(&self.service);
        let answer = respond(&*service, &conn.shape, || {
            let answer = service.refusal(refusal.status, refusal.message);
            advice(refusal.status).into_iter().fold(answer, |answer, field| answer.with_header(field))
        });
        self.answer_now(token, answer);
    }

    fn answer_now(&mut self, token: u64, answer: Option<Rendered>) {
        match answer {
            Some(Rendered { bytes, .. }) => self.put_answer(token, bytes, 0, self.now),
            None => self.remove(token),
        }
    }
}
