//! What becomes of a request: answered here, handed to a worker, or refused.

use super::budget::Budget;
use crate::http::access::{Access, Decision, preflight_answer};
use crate::http::audit::RefusalLog;
use crate::http::conn::{Pending, Plan};
use crate::http::limits::Limits;
use crate::http::message::{Method, Refusal, Request, Response};
use crate::http::parse::{self, Head};
use crate::http::peer::Peer;
use crate::http::render::{Rendered, Shape};
use crate::http::service::{Call, Class, Service};
use crate::http::workers::{PANICKED, Pool, Work, respond};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// An answer at once of no more bytes than this may always be made: there are never more of them than
/// connections.
const SMALL: usize = 4 << 10;

/// What decides on requests.
pub(super) struct Dispatcher<S: Service> {
    pub service: Arc<S>,
    pub pool: Pool<S>,
    pub access: Access,
    pub refusals: RefusalLog,
    pub budget: Budget,
    pub limits: Limits,
}

/// What becomes of a complete request.
pub(super) enum Outcome<A> {
    /// The answer is here; `None` if even the answer to a failure could not be made.
    Answer(Option<Rendered>),
    /// There is room for it at the workers.
    Work(Work<A>),
}

impl<S: Service> Dispatcher<S> {
    /// Finds out what a request asks for and whether it may, as soon as its head is complete.
    ///
    /// # Errors
    /// Its body is longer than its route takes, which ends the connection.
    pub fn plan(&self, peer: Peer, head: Head<'_>) -> Result<Pending<S::Action>, Refusal> {
        let route = || self.service.route(&head.method, head.target);
        let call = catch_unwind(AssertUnwindSafe(route)).ok();
        let (class, body) = call.as_ref().map_or((Class::Read, 0), |call| (call.class, call.body));
        parse::check_body(head.body_length, body, &self.limits)?;
        let verdict = self.access.judge(&peer, &head.method, &head.fields, class);
        let plan = match (call, verdict.decision) {
            (None, _) => {
                let refusal = Refusal::new(500, PANICKED);
                Plan::Refuse { refusal, audited: false }
            }
            (Some(call), Decision::Pass) => Plan::Call(call),
            (Some(_), Decision::Preflight) => Plan::Preflight,
            (Some(_), Decision::Refuse(refusal)) => {
                // A wrong token is worth a line whatever it was shown for.
                let audited = class == Class::Change || refusal.status == 401;
                Plan::Refuse { refusal, audited }
            }
        };
        let shape = Shape {
            head_only: head.method == Method::Head,
            close: !head.keep_alive,
            chunks: head.is_1_1,
            origin: verdict.origin,
        };
        let target = head.target.to_owned();
        let request = Request { method: head.method, target, peer, caller: verdict.caller };
        let takes_body = |call: &Call<_>| call.body > 0 || self.limits.body_bytes > 0;
        let drops_body = !matches!(&plan, Plan::Call(call) if takes_body(call));
        let is_held_back = head.expects_continue && head.body_length > 0;
        let body_length = head.body_length;
        Ok(Pending { request, plan, shape, body_length, drops_body, is_held_back })
    }

    /// Goes on with a request that is complete. `busy_of_share` counts the requests of the same
    /// address that wait for workers or are at them.
    pub fn decide(
        &mut self,
        pending: Pending<S::Action>,
        body: Vec<u8>,
        busy_of_share: impl Fn() -> usize,
        now: Instant,
    ) -> Outcome<S::Action> {
        let Pending { request, plan, shape, .. } = pending;
        let Call { action, class, .. } = match plan {
            Plan::Call(call) => call,
            Plan::Preflight => {
                return Outcome::Answer(respond(&*self.service, &shape, preflight_answer));
            }
            Plan::Refuse { refusal, audited } => {
                if audited {
                    self.refusals.log(&request, refusal.status, now);
                }
                return Outcome::Answer(self.refuse(&shape, refusal));
            }
        };
        if matches!(class, Class::Public | Class::Instant) {
            let answer = respond(&*self.service, &shape, || self.service.answer(&action, &body));
            let is_small = answer.as_ref().is_none_or(|answer| answer.bytes.len() <= SMALL);
            return Outcome::Answer(match self.budget.memory(&self.limits) {
                Err(message) if !is_small => {
                    self.refuse(&shape, Refusal { status: 503, message: message.into() })
                }
                _ => answer,
            });
        }
        let work = Work { request, action, class, body, shape, since: now };
        let room = self.budget.room(&self.limits, busy_of_share);
        match room.and_then(|()| self.pool.room(work.is_change())) {
            Ok(()) => Outcome::Work(work),
            Err(message) => Outcome::Answer(self.refuse_work(&work, message, now)),
        }
    }

    /// Refuses work for which there is no room, or no worker in time.
    pub fn refuse_work(
        &mut self,
        work: &Work<S::Action>,
        message: &'static str,
        now: Instant,
    ) -> Option<Rendered> {
        if work.is_change() {
            self.refusals.log(&work.request, 503, now);
        }
        self.refuse(&work.shape, Refusal::new(503, message))
    }

    /// The answer that refuses a request.
    pub fn refuse(&self, shape: &Shape, refusal: Refusal) -> Option<Rendered> {
        let Refusal { status, message } = refusal;
        respond(&*self.service, shape, || with_advice(self.service.refusal(status, &message), status))
    }
}

/// Adds a header field that says how to do better.
fn with_advice(response: Response, status: u16) -> Response {
    match status {
        401 => response.with_field("WWW-Authenticate", "Bearer realm=\"rapiddiskd\""),
        // In seconds: what is full now can be empty in a moment.
        503 => response.with_field("Retry-After", "1"),
        _ => response,
    }
}
