//! What each connection does next. It goes on as far as it can: until it has to wait for an event or
//! a worker, until it is the other connections' turn, or until its time is over.

use super::dispatch::{Dispatcher, Outcome};
use crate::http::conn::{Conn, Output, Pending, Progress, Readiness, Received, State, Then};
use crate::http::count::Held;
use crate::http::limits::Limits;
use crate::http::message::Refusal;
use crate::http::parse;
use crate::http::peer::{Peer, Share};
use crate::http::render::{Rendered, Rest, Shape};
use crate::http::service::Service;
use crate::http::slots::Slots;
use crate::http::workers::{Done, Job, Line, Task, Unsent};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// Steps for one connection before it is the others' turn.
const STEPS: usize = 16;

/// The form of an answer that ends the connection: what follows a request that is wrong or not
/// complete cannot be told from it.
const LAST: Shape = Shape { head_only: false, close: true, chunks: false, origin: None };

/// Whether a connection can take one more step now.
type GoesOn = bool;

/// All connections, and what it takes to go on with them.
pub(super) struct Connections<S: Service> {
    epoll: Arc<OwnedFd>,
    pub slots: Slots<S::Action>,
    dispatcher: Dispatcher<S>,
    /// The time of this turn of the loop.
    pub now: Instant,
    /// No more requests are taken: every answer is the last on its connection.
    stopping: bool,
    /// No connection's deadline is before this.
    next_deadline: Option<Instant>,
    done: Vec<Done>,
    scratch: Vec<u8>,
}

/// A worker that does not return keeps its client's socket open, even after the process has ended if
/// the kernel holds it. The client is told all the same that no more comes.
impl<S: Service> Drop for Connections<S> {
    fn drop(&mut self) {
        self.slots.iter().for_each(|(_, conn)| conn.end_of_answers());
    }
}

impl<S: Service> Connections<S> {
    /// No connections yet.
    pub fn new(epoll: Arc<OwnedFd>, dispatcher: Dispatcher<S>) -> Connections<S> {
        Connections {
            epoll,
            slots: Slots::new(),
            now: Instant::now(),
            stopping: false,
            next_deadline: None,
            done: Vec::new(),
            scratch: vec![0; parse::longest_request(&dispatcher.limits).min(16 << 10)],
            dispatcher,
        }
    }

    /// Takes a new connection in, and goes on with it: its first request is often here already.
    pub fn add(&mut self, line: Line, peer: Peer) {
        // Many may have been answered since the turn began, and a new one has its time from now.
        self.now = Instant::now();
        let conn = Conn::new(line, peer, self.now, &self.dispatcher.limits);
        self.due_at(conn.deadline);
        let token = self.slots.insert(Box::new(conn));
        self.advance(token);
    }

    /// Has epoll tell of a connection that has to wait for its client. One that ends after the answer it
    /// waits for need not be watched.
    fn watch(&mut self, token: u64) {
        let Some(conn) = self.slots.get(token) else { return };
        if matches!(conn.state, State::Waiting { then: Then::Close, .. }) {
            return;
        }
        // Each event once: no further call is needed. Room in the socket is news only once it was full.
        let mut flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        flags.set(EventFlags::OUT, matches!(conn.state, State::Writing { .. }));
        if conn.watched.contains(flags) {
            return;
        }
        let (socket, data) = (&conn.line.socket, EventData::new_u64(token));
        // Both report what has happened before.
        let watched = if conn.watched.is_empty() {
            epoll::add(&self.epoll, socket, data, flags)
        } else {
            epoll::modify(&self.epoll, socket, data, flags)
        };
        if watched.is_ok() {
            conn.watched = flags;
        } else if !conn.is_busy() {
            self.slots.remove(token);
        } else if !conn.line.wait_for_end() {
            // A worker has its request, and the client gets the answer. Then the next attempt is due.
            self.take_done();
        }
    }

    /// When something is due: a connection's time may be over, or the log lacks a line.
    pub fn next_due(&self) -> Option<Instant> {
        self.next_deadline.into_iter().chain(self.dispatcher.refusals.due()).min()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.len() == 0
    }

    /// Whether a request waits for a worker or is at one.
    pub fn is_busy(&self) -> bool {
        self.dispatcher.budget.busy() > 0
    }

    /// Whether so many requests wait, or are at workers, that one address may be near its bound.
    pub fn are_many_busy(&self) -> bool {
        self.dispatcher.budget.busy() >= self.limits().per_address / 2
    }

    /// Whether any can go on without an event.
    pub fn has_ready(&self) -> bool {
        self.slots.has_ready()
    }

    /// The bounds, as they are on this machine.
    pub fn limits(&self) -> &Limits {
        &self.dispatcher.limits
    }

    /// Reads the token file again.
    pub fn reload(&mut self) {
        self.dispatcher.access.reload();
    }

    /// Says how many refusals the log lacks, if any.
    pub fn tell_refusals(&mut self) {
        self.dispatcher.refusals.say_left_out();
    }

    /// Wakes workers for the requests that wait.
    pub fn wake_workers(&mut self) {
        self.dispatcher.pool.wake();
    }

    /// A read to be carried out by the calling thread, if a single one waits and nothing else.
    pub fn take_read(&mut self) -> Option<Task<S>> {
        if self.slots.has_ready() { None } else { self.dispatcher.pool.take_read() }
    }

    fn due_at(&mut self, deadline: Option<Instant>) {
        self.next_deadline = self.next_deadline.into_iter().chain(deadline).min();
    }

    /// What epoll says of a connection.
    pub fn on_event(&mut self, token: u64, flags: EventFlags) {
        let Some(conn) = self.slots.get(token) else { return };
        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            conn.readiness = Readiness::Ending;
        } else if flags.contains(EventFlags::IN) && conn.readiness == Readiness::Drained {
            conn.readiness = Readiness::Readable;
        }
        let is_readable = conn.readiness != Readiness::Drained;
        if conn.is_busy() && is_readable && !conn.line.wait_for_end() {
            self.take_done();
        }
        self.advance(token);
    }

    /// Takes the workers' results.
    pub fn take_done(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        self.dispatcher.pool.take_done(&mut done);
        for Done { token, at, answer } in done.drain(..) {
            let Some(conn) = self.slots.get(token) else { continue };
            let State::Waiting { then, .. } = conn.state else { continue };
            match answer {
                Some(unsent) => self.put_answer(token, then, unsent, at),
                None => drop(self.slots.remove(token)),
            }
            self.slots.list(token);
        }
        self.done = done;
    }

    /// Takes the results that are there now, and goes on with what follows from them.
    pub fn settle(&mut self) {
        self.take_done();
        self.advance_ready();
    }

    /// Goes on with those that can go on without an event.
    pub fn advance_ready(&mut self) {
        for token in self.slots.take_ready() {
            self.advance(token);
        }
    }

    /// Goes on with a connection as far as it can go now.
    fn advance(&mut self, token: u64) {
        for _ in 0..STEPS {
            let Some(conn) = self.slots.get(token) else { return };
            let goes_on = match conn.state {
                State::Idle | State::Head => self.advance_head(token),
                State::Body(_) => self.advance_body(token),
                State::Writing { .. } => self.advance_writing(token),
                State::Lingering { .. } => self.advance_lingering(token),
                State::Waiting { .. } => false,
            };
            if !goes_on {
                return self.watch(token);
            }
        }
        self.slots.list(token);
    }

    fn advance_head(&mut self, token: u64) -> GoesOn {
        let longest = parse::longest_request(&self.dispatcher.limits);
        let Some(conn) = self.slots.get(token) else { return false };
        if !conn.input.is_fresh() {
            return self.receive(token, longest);
        }
        match parse::head(&conn.input.bytes, &self.dispatcher.limits) {
            Ok(None) => {
                conn.input.wait_for_more();
                self.begin(token, State::Head);
            }
            Ok(Some(head)) => {
                let length = head.head_length;
                match self.dispatcher.plan(conn.peer, head) {
                    Ok(mut pending) => {
                        conn.input.consume(length);
                        pending.is_held_back &= conn.input.bytes.is_empty();
                        if pending.is_held_back && pending.needs_body() {
                            pending.is_held_back = false;
                            if !conn.ask_for_body() {
                                self.slots.remove(token);
                                return false;
                            }
                        }
                        if !pending.is_held_back && conn.input.bytes.len() < pending.body_length {
                            self.begin(token, State::Body(pending));
                        } else {
                            self.dispatch(token, pending);
                        }
                    }
                    Err(refusal) => self.refuse_last(token, refusal),
                }
            }
            Err(refusal) => self.refuse_last(token, refusal),
        }
        true
    }

    /// Comes into a state in which part of a request is here. Its time runs from its first byte.
    fn begin(&mut self, token: u64, state: State<S::Action>) {
        let now = self.now;
        let deadline = Some(now + self.dispatcher.limits.request_time);
        let Some(conn) = self.slots.get(token) else { return };
        if matches!(conn.state, State::Idle) {
            conn.enter(state, now, deadline);
            self.due_at(deadline);
        } else {
            conn.state = state;
        }
    }

    fn advance_body(&mut self, token: u64) -> GoesOn {
        let longest = parse::longest_request(&self.dispatcher.limits);
        let Some(conn) = self.slots.get(token) else { return false };
        let State::Body(pending) = &mut conn.state else { return false };
        if pending.drops_body {
            pending.body_length -= conn.input.drop_some(pending.body_length);
        }
        let missing = pending.body_length;
        if conn.input.bytes.len() < missing {
            return self.receive(token, longest.max(missing));
        }
        if let State::Body(pending) = std::mem::replace(&mut conn.state, State::Idle) {
            self.dispatch(token, pending);
        }
        true
    }

    fn receive(&mut self, token: u64, longest: usize) -> GoesOn {
        let Some(conn) = self.slots.get(token) else { return false };
        if conn.readiness == Readiness::Drained {
            return false;
        }
        match conn.receive(&mut self.scratch, longest) {
            Received::Some => true,
            Received::Nothing => false,
            Received::End => {
                self.slots.remove(token);
                false
            }
        }
    }

    /// Goes on with a request that is complete.
    fn dispatch(&mut self, token: u64, mut pending: Pending<S::Action>) {
        let Some(conn) = self.slots.get(token) else { return };
        let share = conn.share;
        let (body, then) = if pending.is_held_back {
            // The answer comes without the body. Whether that still comes cannot be known.
            pending.shape.close = true;
            (Vec::new(), Then::Linger)
        } else {
            let body = conn.input.take(pending.body_length, pending.drops_body);
            (body, conn.then(&pending.shape))
        };
        let busy_of_share = || busy_of(&self.slots, share);
        match self.dispatcher.decide(pending, body, busy_of_share, self.now) {
            Outcome::Answer(answer) => self.answer_now(token, then, answer),
            Outcome::Work(work) => {
                let _counted = self.dispatcher.budget.hold_request();
                let deadline = Some(self.now + self.dispatcher.limits.queue_time);
                let Some(conn) = self.slots.get(token) else { return };
                // In these cases something is to be done as soon as the answer is there.
                let awaited = then != Then::Stay || conn.has_more();
                conn.enter(State::Waiting { then, _counted }, self.now, deadline);
                let job = Job { token, line: Arc::clone(&conn.line), work };
                self.dispatcher.pool.submit(job, awaited);
                self.due_at(deadline);
            }
        }
    }

    /// Refuses something after which the connection ends.
    fn refuse_last(&mut self, token: u64, refusal: Refusal) {
        let answer = self.dispatcher.refuse(&LAST, refusal);
        self.answer_now(token, Then::Linger, answer);
    }

    fn answer_now(&mut self, token: u64, then: Then, answer: Option<Rendered>) {
        match answer {
            Some(rendered) => self.put_answer(token, then, rendered.into(), self.now),
            None => drop(self.slots.remove(token)),
        }
    }

    /// An answer is there, some of it perhaps sent already; what follows from that is done by
    /// `advance`.
    fn put_answer(&mut self, token: u64, then: Then, unsent: Unsent, at: Instant) {
        let deadline = Some(at + self.dispatcher.limits.write_time);
        let Some(conn) = self.slots.get(token) else { return };
        let ends = unsent.rest.as_ref().is_some_and(Rest::ends_with_connection);
        let then = if ends && then == Then::Stay { Then::Linger } else { then };
        let output = Output::new(unsent, |bytes| self.dispatcher.budget.hold_unsent(bytes));
        conn.new_since = None;
        conn.enter(State::Writing { then, output }, at, deadline);
        self.due_at(deadline);
    }

    fn advance_writing(&mut self, token: u64) -> GoesOn {
        let Some(conn) = self.slots.get(token) else { return false };
        let count = |bytes| -> Held { self.dispatcher.budget.hold_unsent(bytes) };
        match conn.write(self.now, count) {
            Progress::Full => false,
            Progress::More => true,
            Progress::Done => self.end_answer(token),
            Progress::Broken => {
                self.slots.remove(token);
                false
            }
        }
    }

    /// What follows an answer that is written.
    fn end_answer(&mut self, token: u64) -> GoesOn {
        let limits = &self.dispatcher.limits;
        let Some(conn) = self.slots.get(token) else { return false };
        let State::Writing { then, .. } = conn.state else { return false };
        let (state, time) = match then {
            Then::Close => {
                self.slots.remove(token);
                return false;
            }
            Then::Stay if !self.stopping => (State::Idle, limits.idle_time),
            Then::Stay | Then::Linger => {
                conn.end_of_answers();
                conn.input = Default::default();
                (State::Lingering { dropped: 0 }, limits.linger_time)
            }
        };
        let deadline = Some(conn.since + time);
        conn.enter(state, conn.since, deadline);
        self.due_at(deadline);
        true
    }

    fn advance_lingering(&mut self, token: u64) -> GoesOn {
        let Some(conn) = self.slots.get(token) else { return false };
        if conn.readiness == Readiness::Drained {
            return false;
        }
        match conn.discard(&mut self.scratch) {
            Received::Some => true,
            Received::Nothing => false,
            Received::End => {
                self.slots.remove(token);
                false
            }
        }
    }

    /// Ends the states whose time is over, and says what the log lacks.
    pub fn expire(&mut self) {
        if self.dispatcher.refusals.due().is_some_and(|at| at <= self.now) {
            self.tell_refusals();
        }
        if self.next_deadline.is_none_or(|next| next > self.now) {
            return;
        }
        let is_due = |conn: &Conn<_>| conn.deadline.is_some_and(|deadline| deadline <= self.now);
        let due = self.slots.iter().filter(|(_, conn)| is_due(conn)).map(|(token, _)| token);
        for token in due.collect::<Vec<_>>() {
            self.expire_one(token);
            self.advance(token);
        }
        self.next_deadline = self.slots.iter().filter_map(|(_, conn)| conn.deadline).min();
    }

    fn expire_one(&mut self, token: u64) {
        let Some(conn) = self.slots.get(token) else { return };
        match conn.state {
            State::Head | State::Body(_) => {
                let message = "The request did not arrive in time.";
                self.refuse_last(token, Refusal::new(408, message));
            }
            State::Waiting { then, .. } => match self.dispatcher.pool.cancel(token) {
                Some(work) => {
                    let message = "No worker became free in time; try again.";
                    let answer = self.dispatcher.refuse_work(&work, message, self.now);
                    self.answer_now(token, then, answer);
                }
                // A worker has it, or has just finished. It may take all the time it needs.
                None => conn.deadline = None,
            },
            State::Idle | State::Writing { .. } | State::Lingering { .. } => {
                self.slots.remove(token);
            }
        }
    }

    /// Takes no more requests: closes the connections that wait for one.
    pub fn stop(&mut self) {
        self.stopping = true;
        let waits_for_client =
            |conn: &Conn<_>| matches!(conn.state, State::Idle | State::Head | State::Body(_));
        let quiet = self.slots.iter().filter(|(_, conn)| waits_for_client(conn)).map(|(token, _)| token);
        for token in quiet.collect::<Vec<_>>() {
            self.slots.remove(token);
        }
    }
}

/// How many requests of a share wait for workers or are at them.
fn busy_of<A>(slots: &Slots<A>, share: Share) -> usize {
    slots.iter().filter(|(_, conn)| conn.share == share && conn.is_busy()).count()
}
