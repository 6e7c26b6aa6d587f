//! The I/O thread: one epoll loop that owns every socket.

mod admit;
mod dispatch;

use super::conn::{Conn, Received, State};
use super::listen::Listener;
use super::parse::{self, Outcome, Refusal};
use super::render::Shape;
use super::slots::Slots;
use super::workers::{Done, Pool};
use super::{Access, Limits, Listen, Method, Peer, Request, Service, Wake, audit};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of what is no connection; those of connections are below.
const LISTENERS: u64 = 1 << 63;
const WAKE: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;

/// Steps for one connection before it is the others' turn.
const TURN: usize = 16;

/// The longest sleep while requests are being answered: a worker that need not ring leaves its
/// result in the list, and a deadline may begin with that.
const NAP: Duration = Duration::from_secs(1);

/// A server that listens and has not begun to serve.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    limits: Limits,
    access: Access,
}

impl Server {
    /// Opens all of the given places.
    ///
    /// # Errors
    /// What the kernel said to the first that could not be opened, with its name.
    pub fn bind(listen: &[Listen], limits: Limits, access: Access) -> io::Result<Server> {
        let open = |place| Listener::open(place, listen);
        let listeners = listen.iter().map(open).collect::<io::Result<Vec<_>>>()?;
        Ok(Server { listeners, limits, access })
    }

    /// The places it listens on, with the ports the kernel chose.
    pub fn places(&self) -> Vec<Listen> {
        self.listeners.iter().filter_map(Listener::place).collect()
    }

    /// The TCP addresses among them.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(Listener::address).collect()
    }

    /// Serves on the calling thread until `wake` is readable and `on_wake`, which must make it
    /// unreadable again, says stop. Then there are no new connections, running requests finish,
    /// and their answers go out, all within `Limits::grace`.
    ///
    /// # Errors
    /// The threads or the event loop could not be set up, or the loop failed beyond repair.
    pub fn run(
        self,
        service: Arc<dyn Service>,
        wake: BorrowedFd<'_>,
        on_wake: &mut dyn FnMut() -> Wake,
    ) -> io::Result<()> {
        let mut front = Front::new(self, service, wake)?;
        front.serve(on_wake)?;
        epoll::delete(&front.epoll, wake)?;
        front.finish()
    }
}

/// The running server.
struct Front {
    epoll: OwnedFd,
    listeners: Vec<Listener>,
    limits: Limits,
    access: Access,
    refusals: audit::Refusals,
    service: Arc<dyn Service>,
    pool: Pool,
    slots: Slots,
    now: Instant,
    /// No connection's deadline is before this.
    next_deadline: Option<Instant>,
    /// Connections that can go on without an event, each once.
    ready: Vec<u64>,
    done: Vec<Done>,
    /// Connections whose request is queued or running, results not yet taken included.
    busy: usize,
    /// Bytes of answers that connections hold.
    unsent: usize,
    /// Which listener has its turn to be asked for a connection.
    next_listener: usize,
    /// A new connection for which there is no room at this very moment.
    at_door: Option<(OwnedFd, Peer)>,
    /// When accepting goes on, if it rests.
    accept_again: Option<Instant>,
    accept_warned: Option<Instant>,
    stopping: bool,
    scratch: Vec<u8>,
}

/// A worker that is held keeps its client's socket open, beyond the end of the process where the
/// kernel holds it: the client is told all the same.
impl Drop for Front {
    fn drop(&mut self) {
        self.slots.iter().for_each(|(_, conn)| conn.end_of_answers());
    }
}

impl Front {
    fn new(server: Server, service: Arc<dyn Service>, wake: BorrowedFd<'_>) -> io::Result<Front> {
        let Server { listeners, mut limits, access } = server;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        // Edge-triggered: each ring is one event, and nobody has to read the counter.
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        for (listener, token) in listeners.iter().zip(LISTENERS..) {
            epoll::add(&epoll, &listener.socket, EventData::new_u64(token), EventFlags::IN)?;
        }
        admit::fit_to_files(&mut limits, listeners.len());
        let pool = Pool::start(Arc::clone(&service), bell, limits.workers, limits.changes, limits.queue)?;
        Ok(Front {
            epoll,
            listeners,
            access,
            refusals: audit::Refusals::default(),
            service,
            pool,
            slots: Slots::default(),
            now: Instant::now(),
            next_deadline: None,
            ready: Vec::new(),
            done: Vec::new(),
            busy: 0,
            unsent: 0,
            next_listener: 0,
            at_door: None,
            accept_again: None,
            accept_warned: None,
            stopping: false,
            scratch: vec![0; parse::longest_request(&limits).min(16 << 10)],
            limits,
        })
    }

    fn serve(&mut self, on_wake: &mut dyn FnMut() -> Wake) -> io::Result<()> {
        let mut events = Vec::with_capacity(256);
        loop {
            self.wait(&mut events, None)?;
            if self.turn(&events) {
                match on_wake() {
                    Wake::Continue => {}
                    Wake::Reload => self.access.reload(),
                    Wake::Stop => return Ok(()),
                }
            }
        }
    }

    /// Lets what runs come to its end.
    fn finish(mut self) -> io::Result<()> {
        let end = self.now + self.limits.grace;
        self.stopping = true;
        self.listeners.clear();
        self.at_door = None;
        self.accept_again = None;
        let mut quiet = Vec::new();
        for (token, conn) in self.slots.iter() {
            if matches!(conn.state, State::Idle | State::Reading) {
                quiet.push(token);
            }
        }
        for token in quiet {
            self.remove(token);
        }
        let mut events = Vec::with_capacity(256);
        while self.slots.len() > 0 && self.now < end {
            self.wait(&mut events, Some(end))?;
            self.turn(&events);
        }
        self.refusals.say_left_out();
        Ok(())
    }

    /// Sleeps until something happens or is due.
    fn wait(&mut self, events: &mut Vec<epoll::Event>, end: Option<Instant>) -> io::Result<()> {
        events.clear();
        let timeout = self.timeout(end);
        match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("epoll_wait: {error}"))),
        }
        self.now = Instant::now();
        Ok(())
    }

    fn timeout(&self, end: Option<Instant>) -> Option<Timespec> {
        let left = |at: Instant| at.saturating_duration_since(self.now);
        let times = [
            self.next_deadline.map(left),
            self.accept_again.map(left),
            self.refusals.due().map(left),
            end.map(left),
            (self.busy > 0).then_some(if self.stopping { NAP / 20 } else { NAP }),
            (!self.ready.is_empty()).then_some(Duration::ZERO),
        ];
        let shortest = times.into_iter().flatten().min()?;
        // Rounded up to a hundredth of a second, so that many deadlines close to each other
        // cost one look at the table. Who is at the door has waited long enough already.
        let step = if self.at_door.is_some() { 1 } else { 10 };
        let milliseconds = shortest.as_nanos().div_ceil(step * 1_000_000) as i64 * step as i64;
        Some(Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 })
    }

    /// Handles what happened and what is due. True if the caller's descriptor is readable.
    fn turn(&mut self, events: &[epoll::Event]) -> bool {
        let mut woken = false;
        let mut accepting = false;
        if self.busy > 0 {
            self.take_done();
        }
        for event in events {
            match event.data.u64() {
                WAKE => woken = true,
                // It only had to wake us: the results are taken in every turn.
                BELL => {}
                token if token >= LISTENERS => accepting = true,
                token => self.on_event(token, event.flags),
            }
        }
        for token in std::mem::take(&mut self.ready) {
            if let Some(conn) = self.slots.get(token) {
                conn.listed = false;
                self.advance(token);
            }
        }
        self.expire();
        if self.refusals.due().is_some_and(|at| at <= self.now) {
            self.refusals.say_left_out();
        }
        if self.accept_again.is_some_and(|at| at <= self.now) {
            self.accept_again = None;
            self.listen_for(EventFlags::IN);
            accepting = true;
        }
        self.pool.wake();
        // Last, so that nothing gives way to a new connection that has just brought a request.
        if accepting {
            self.accept_all();
        }
        woken
    }

    fn on_event(&mut self, token: u64, flags: EventFlags) {
        let Some(conn) = self.slots.get(token) else { return };
        let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        conn.hangup |= ended;
        conn.readable |= ended || flags.contains(EventFlags::IN);
        if conn.is_busy() && conn.readable && !conn.line.wait_for_end() {
            self.take_done();
        }
        self.advance(token);
    }

    /// Takes the workers' results.
    fn take_done(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        self.pool.take_done(&mut done);
        for Done { token, at, answer } in done.drain(..) {
            self.busy -= 1;
            match answer {
                Some((bytes, written)) => self.put_answer(token, bytes, written, at),
                None => self.remove(token),
            }
            self.list(token);
        }
        self.done = done;
    }

    /// Notes that a connection can go on without an event.
    fn list(&mut self, token: u64) {
        if let Some(conn) = self.slots.get(token).filter(|conn| !conn.listed) {
            conn.listed = true;
            self.ready.push(token);
        }
    }

    /// An answer is there, `written` bytes of it on their way; what follows from that is done by
    /// `advance`.
    fn put_answer(&mut self, token: u64, bytes: Vec<u8>, written: usize, at: Instant) {
        let Some(conn) = self.slots.get(token) else { return };
        let deadline = at + self.limits.write_time;
        self.unsent += bytes.len();
        conn.put_output(bytes, written);
        conn.enter(State::Writing, at, Some(deadline));
        self.due_at(deadline);
    }

    /// Goes on with a connection as far as it can go now.
    fn advance(&mut self, token: u64) {
        for _ in 0..TURN {
            let Some(conn) = self.slots.get(token) else { return };
            let goes_on = match conn.state {
                State::Idle | State::Reading => self.advance_reading(token),
                State::Writing => self.advance_writing(token),
                State::Lingering => self.advance_lingering(token),
                State::Queued | State::Running => false,
            };
            if !goes_on {
                return;
            }
        }
        self.list(token);
    }

    fn advance_reading(&mut self, token: u64) -> bool {
        let Some(conn) = self.slots.get(token) else { return false };
        if !conn.fresh {
            if !conn.readable {
                return false;
            }
            return match conn.receive(&mut self.scratch, parse::longest_request(&self.limits)) {
                Received::Some => true,
                Received::Nothing => false,
                Received::End => {
                    self.remove(token);
                    false
                }
            };
        }
        match parse::parse(&conn.input, &self.limits) {
            Outcome::Wait => {
                conn.fresh = false;
                if conn.state == State::Idle {
                    let deadline = self.now + self.limits.head_time;
                    conn.enter(State::Reading, self.now, Some(deadline));
                    self.due_at(deadline);
                }
            }
            Outcome::Error(refusal) => {
                // What follows cannot be told from the request that is wrong.
                conn.shape = Shape { close: true, ..Shape::default() };
                self.refuse(token, refusal);
            }
            Outcome::Request(head) => {
                let kind = dispatch::kind(&*self.service, &head.method, head.target);
                let is_change = kind.is_some_and(|kind| kind.is_change);
                let verdict = self.access.judge(&conn.peer, &head.method, &head.fields, is_change);
                let body = match self.limits.body_bytes {
                    0 => &[],
                    _ => &conn.input[head.head_length..head.head_length + head.body_length],
                };
                let request = Request {
                    target: head.target.to_owned(),
                    body: body.to_owned(),
                    peer: conn.peer,
                    caller: verdict.caller,
                    method: head.method,
                };
                let (keep_alive, length) = (head.keep_alive, head.head_length + head.body_length);
                conn.shape = Shape {
                    head_only: request.method == Method::Head,
                    close: !keep_alive || self.stopping,
                    origin: verdict.origin,
                };
                conn.consume(length);
                conn.quiet = !keep_alive && conn.input.is_empty() && !conn.readable;
                self.dispatch(token, request, kind, verdict.decision);
            }
        }
        true
    }

    fn advance_writing(&mut self, token: u64) -> bool {
        let Some(conn) = self.slots.get(token) else { return false };
        let held = conn.held();
        match conn.flush(self.now) {
            Ok(false) => return false,
            Err(_) => {
                self.remove(token);
                return false;
            }
            Ok(true) => {}
        }
        self.unsent -= held;
        let close = conn.shape.close || self.stopping;
        if close && conn.quiet {
            self.remove(token);
            return false;
        }
        let (state, time) = if close {
            conn.end_of_answers();
            conn.input = Vec::new();
            (State::Lingering, self.limits.linger_time)
        } else {
            (State::Idle, self.limits.idle_time)
        };
        let deadline = conn.since + time;
        conn.enter(state, conn.since, Some(deadline));
        self.due_at(deadline);
        true
    }

    fn advance_lingering(&mut self, token: u64) -> bool {
        let Some(conn) = self.slots.get(token) else { return false };
        if !conn.readable {
            return false;
        }
        match conn.discard(&mut self.scratch) {
            Received::Some => true,
            Received::Nothing => false,
            Received::End => {
                self.remove(token);
                false
            }
        }
    }

    fn remove(&mut self, token: u64) {
        if let Some(conn) = self.slots.remove(token) {
            self.unsent -= conn.held();
        }
    }

    fn due_at(&mut self, deadline: Instant) {
        self.next_deadline = Some(self.next_deadline.map_or(deadline, |next| next.min(deadline)));
    }

    /// Sees to the connections whose time is over.
    fn expire(&mut self) {
        if self.next_deadline.is_none_or(|next| next > self.now) {
            return;
        }
        let is_due = |conn: &Conn| conn.deadline.is_some_and(|deadline| deadline <= self.now);
        let due: Vec<_> =
            self.slots.iter().filter(|(_, conn)| is_due(conn)).map(|(token, _)| token).collect();
        for token in due {
            self.expire_one(token);
            self.advance(token);
        }
        self.next_deadline = self.slots.iter().filter_map(|(_, conn)| conn.deadline).min();
    }

    fn expire_one(&mut self, token: u64) {
        let Some(conn) = self.slots.get(token) else { return };
        match conn.state {
            State::Reading => {
                conn.shape = Shape { close: true, ..Shape::default() };
                let message = "The request did not arrive in time.";
                self.refuse(token, Refusal { status: 408, message });
            }
            State::Queued => match self.pool.cancel(token) {
                Some(job) => {
                    self.busy -= 1;
                    let message = "No worker became free in time; try again.";
                    self.no_room(token, &job.request, job.is_change, message);
                }
                // A worker has it, or is just through with it. It has all the time it needs.
                None => conn.enter(State::Running, self.now, None),
            },
            State::Running => {}
            State::Idle | State::Writing | State::Lingering => self.remove(token),
        }
    }
}
