//! One connection: what state it is in, what was read of it, and what is still to be written.
//!
//! ```text
//! Idle → Head → Body → Waiting (for a worker, or at one) → Writing → Idle, or Lingering at the end
//! ```
//! A request without a body, or whose body comes with its head, skips `Body`; one that is answered
//! by the I/O thread skips `Waiting`. Every state has an absolute deadline, but for that of a
//! request that a worker has.

use super::count::Held;
use super::limits::Limits;
use super::message::{Refusal, Request};
use super::peer::{Peer, Share};
use super::render::{Bytes, Next, Rest, Shape};
use super::service::Call;
use super::workers::{Line, Unsent};
use rustix::event::epoll::EventFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use std::sync::Arc;
use std::time::Instant;

/// A read buffer larger than this is given back between requests.
const KEPT_BUFFER: usize = 1 << 10;

/// Asks a client for the body that it keeps back.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a client may still send after the last answer before it is cut off.
const LINGER_BYTES: usize = 64 << 10;

/// Where a connection stands, with what it has only there.
pub(super) enum State<A> {
    /// No byte of a request is here.
    Idle,
    /// Part of a request's head is here.
    Head,
    /// A request's head was read, and part of its body is here.
    Body(Pending<A>),
    /// A request waits for a worker, or a worker has it.
    Waiting { then: Then, _counted: Held },
    /// An answer is being written.
    Writing { then: Then, output: Output },
    /// The last answer is written; so many bytes that still came were dropped.
    Lingering { dropped: usize },
}

/// A request whose head is complete.
pub(super) struct Pending<A> {
    pub request: Request,
    pub plan: Plan<A>,
    /// The form of its answer.
    pub shape: Shape,
    /// Bytes of its body that are still to come or to be taken.
    pub body_length: usize,
    /// Nobody wants the body: it is dropped as it comes.
    pub drops_body: bool,
    /// The client keeps the body back until it is asked for it, or has an answer.
    pub is_held_back: bool,
}

impl<A> Pending<A> {
    /// Whether the body is needed for the answer.
    pub fn needs_body(&self) -> bool {
        matches!(self.plan, Plan::Call(Call { body: 1.., .. }))
    }
}

/// What is to be done with a request once it is complete.
pub(super) enum Plan<A> {
    /// It is carried out.
    Call(Call<A>),
    /// A browser asks whether it may send a request, and it may.
    Preflight,
    /// It is refused.
    Refuse {
        refusal: Refusal,
        /// The audit log tells of it.
        audited: bool,
    },
}

/// What follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The next request.
    Stay,
    /// The end of the connection, once the client has closed its side: to close it while there is
    /// something to read would break it, and the client might lose the answer.
    Linger,
    /// The end of the connection at once: the client said itself that this was its last request,
    /// and there is nothing left to read.
    Close,
}

/// An answer that is being written.
pub(super) struct Output {
    unsent: Unsent,
    /// The bytes that are in memory for it.
    _counted: Held,
}

/// How far writing an answer got.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The socket takes no more now.
    Full,
    /// All there was is written, and the next piece is here.
    More,
    /// The whole answer is written.
    Done,
    /// The connection is broken, or the answer cannot be completed.
    Broken,
}

/// What epoll has told of a socket and is not yet used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// There is nothing to read.
    Drained,
    /// There may be something to read.
    Readable,
    /// The client has ended its side, or the connection is broken: reading comes to an end.
    Ending,
}

/// What reading brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// At least one byte.
    Some,
    /// Nothing now.
    Nothing,
    /// The client sends no more, or the connection is broken.
    End,
}

/// Bytes received that are not yet used.
#[derive(Default)]
pub(super) struct Input {
    pub bytes: Vec<u8>,
    /// How many of them were looked at, without finding a complete head.
    examined: usize,
}

impl Input {
    /// Whether it has grown since it was last looked at.
    pub fn is_fresh(&self) -> bool {
        self.bytes.len() > self.examined
    }

    /// Notes that what is here is not enough.
    pub fn wait_for_more(&mut self) {
        self.examined = self.bytes.len();
    }

    /// Drops at most so much from the front. Returns how much that was.
    pub fn drop_some(&mut self, most: usize) -> usize {
        let length = most.min(self.bytes.len());
        self.consume(length);
        length
    }

    /// Takes what is used from the front, or drops it.
    pub fn take(&mut self, length: usize, drops: bool) -> Vec<u8> {
        let taken = if drops { Vec::new() } else { self.bytes[..length].to_owned() };
        self.consume(length);
        taken
    }

    /// Drops what is used from the front.
    pub fn consume(&mut self, length: usize) {
        self.bytes.drain(..length);
        self.examined = 0;
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_BUFFER {
            self.bytes = Vec::new();
        }
    }
}

/// One client.
pub(super) struct Conn<A> {
    pub line: Arc<Line>,
    pub peer: Peer,
    pub share: Share,
    pub state: State<A>,
    /// When it was accepted, until it is answered for the first time.
    pub new_since: Option<Instant>,
    /// When it came into its state, or last got on in it.
    pub since: Instant,
    /// When its state ends it.
    pub deadline: Option<Instant>,
    pub input: Input,
    pub readiness: Readiness,
    /// What epoll tells of its socket. Most connections with a single request end before that is needed.
    pub watched: EventFlags,
}

impl<A> Conn<A> {
    /// A new connection, from which nothing was read.
    pub fn new(line: Line, peer: Peer, now: Instant, limits: &Limits) -> Conn<A> {
        Conn {
            line: Arc::new(line),
            peer,
            share: peer.share(),
            state: State::Idle,
            new_since: Some(now),
            since: now,
            deadline: Some(now + limits.idle_time),
            input: Input::default(),
            // Its first request may have come with it.
            readiness: Readiness::Readable,
            watched: EventFlags::empty(),
        }
    }

    /// Whether a request of it waits for a worker or is at one.
    pub fn is_busy(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// Its state's place in the order in which connections give way to new ones.
    pub fn rank(&self) -> u8 {
        match self.state {
            State::Lingering { .. } => 0,
            State::Idle => 1,
            State::Head | State::Body(_) => 2,
            State::Writing { .. } => 3,
            State::Waiting { .. } => 4,
        }
    }

    /// Whether the client may have sent something that is not used yet.
    pub fn has_more(&self) -> bool {
        self.readiness != Readiness::Drained || !self.input.bytes.is_empty()
    }

    /// What follows the answer to the request that was just taken from the input.
    pub fn then(&self, shape: &Shape) -> Then {
        match (shape.close, self.has_more()) {
            (false, _) => Then::Stay,
            (true, true) => Then::Linger,
            (true, false) => Then::Close,
        }
    }

    /// Comes into a state.
    pub fn enter(&mut self, state: State<A>, now: Instant, deadline: Option<Instant>) {
        self.state = state;
        self.since = now;
        self.deadline = deadline;
    }

    /// Reads once, at most until `longest` bytes are here.
    pub fn receive(&mut self, scratch: &mut [u8], longest: usize) -> Received {
        let room = scratch.len().min(longest.saturating_sub(self.input.bytes.len()));
        let (received, length) = self.read(&mut scratch[..room]);
        self.input.bytes.extend_from_slice(&scratch[..length]);
        received
    }

    /// Reads once and drops it; `End` also once the client has sent too much.
    pub fn discard(&mut self, scratch: &mut [u8]) -> Received {
        let (received, length) = self.read(scratch);
        let State::Lingering { dropped } = &mut self.state else { return received };
        *dropped += length;
        if *dropped > LINGER_BYTES { Received::End } else { received }
    }

    fn read(&mut self, into: &mut [u8]) -> (Received, usize) {
        match retry_on_intr(|| recv(&self.line.socket, &mut *into, RecvFlags::DONTWAIT)) {
            Ok((0, _)) => (Received::End, 0),
            Ok((length, _)) => {
                // Fewer bytes than asked for: there are no more now, and epoll tells of new ones.
                // Of the end of the stream it has told already, and does so only once.
                if length < into.len() && self.readiness == Readiness::Readable {
                    self.readiness = Readiness::Drained;
                }
                (Received::Some, length)
            }
            Err(Errno::AGAIN) => {
                self.readiness = Readiness::Drained;
                (Received::Nothing, 0)
            }
            Err(_) => (Received::End, 0),
        }
    }

    /// Asks the client for the body that it keeps back. False if the connection is broken.
    pub fn ask_for_body(&self) -> bool {
        match self.line.write(CONTINUE) {
            // The client does not take the answers before. It can send the body all the same.
            Ok(0) => true,
            Ok(length) => length == CONTINUE.len(),
            Err(_) => false,
        }
    }

    /// Writes what the socket takes of the answer, and makes its next piece when all is written.
    /// `count` counts the bytes that are in memory.
    pub fn write(&mut self, now: Instant, count: impl Fn(usize) -> Held) -> Progress {
        let State::Writing { output, .. } = &mut self.state else { return Progress::Done };
        while let Some(bytes) = output.unwritten() {
            match self.line.write(bytes) {
                Ok(0) => return Progress::Full,
                Ok(length) => {
                    output.unsent.written += length;
                    self.since = now;
                }
                Err(_) => return Progress::Broken,
            }
        }
        output.go_on(count)
    }

    /// Tells the client that no more comes.
    pub fn end_of_answers(&self) {
        // It fails where the connection is broken, and then there is nobody to tell.
        let _ = shutdown(&self.line.socket, Shutdown::Write);
    }
}

impl Output {
    /// An answer of which some may be written already. `count` counts bytes in memory.
    pub fn new(unsent: Unsent, count: impl Fn(usize) -> Held) -> Output {
        let _counted = count(unsent.bytes.in_memory());
        Output { unsent, _counted }
    }

    fn unwritten(&self) -> Option<&[u8]> {
        Some(&self.unsent.bytes[self.unsent.written..]).filter(|bytes| !bytes.is_empty())
    }

    /// Makes the next piece, all before it being written.
    fn go_on(&mut self, count: impl Fn(usize) -> Held) -> Progress {
        let bytes = match self.unsent.rest.as_mut().map(Rest::next) {
            None => return Progress::Done,
            Some(Next::Broken) => return Progress::Broken,
            Some(Next::Piece(bytes)) => Bytes::from(bytes),
            Some(Next::Last(bytes)) => {
                self.unsent.rest = None;
                Bytes::Static(bytes)
            }
        };
        self._counted = count(bytes.in_memory());
        self.unsent.bytes = bytes;
        self.unsent.written = 0;
        Progress::More
    }
}
