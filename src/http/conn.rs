//! One connection: what state it is in, what was read of it, and what is still to be written.
//!
//! Idle → Reading → Waiting (for or at a worker) → Writing → Idle, or Lingering at the end. Every
//! state but that of a running request has an absolute deadline. Nothing here knows of epoll.

use super::render::Shape;
use super::workers::Line;
use super::{Limits, Peer, Share};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use std::sync::Arc;
use std::time::Instant;

/// A read buffer larger than this is given back between requests.
const KEPT_BUFFER: usize = 1 << 10;

/// What a client may still send after the last answer before it is cut off.
const LINGER_BYTES: usize = 64 << 10;

/// Where a connection stands. The order is the one in which connections give way to new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// The last answer is written; what still comes is dropped until the client closes.
    Lingering,
    /// No byte of a request is here.
    Idle,
    /// Part of a request is here.
    Reading,
    /// An answer is being written that the socket did not take at once.
    Writing,
    /// A request waits for a worker.
    Queued,
    /// A worker has the request.
    Running,
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

/// One client.
pub(super) struct Conn {
    pub line: Arc<Line>,
    pub peer: Peer,
    pub share: Share,
    pub state: State,
    /// When it was accepted.
    pub admitted: Instant,
    /// It was answered at least once.
    pub answered: bool,
    /// It is in the list of those that can go on without an event.
    pub listed: bool,
    /// When it came into its state, or last got on in it.
    pub since: Instant,
    /// When its state ends it.
    pub deadline: Option<Instant>,
    /// Bytes received and not yet understood.
    pub input: Vec<u8>,
    /// `input` has grown since it was last looked at.
    pub fresh: bool,
    /// The socket may have more to read.
    pub readable: bool,
    /// The client has ended its side, or the connection is broken: reading comes to an end.
    pub hangup: bool,
    /// The form of the current answer.
    pub shape: Shape,
    /// Nothing of the client's can be left unread that would break the connection when it is
    /// closed: it said itself that this was its last request.
    pub quiet: bool,
    output: Vec<u8>,
    written: usize,
    dropped: usize,
}

impl Conn {
    /// A new connection, from which nothing was read.
    pub fn new(line: Line, peer: Peer, now: Instant, limits: &Limits) -> Conn {
        Conn {
            line: Arc::new(line),
            peer,
            share: peer.share(),
            state: State::Idle,
            admitted: now,
            answered: false,
            listed: false,
            since: now,
            deadline: Some(now + limits.idle_time),
            input: Vec::new(),
            fresh: false,
            readable: false,
            hangup: false,
            shape: Shape::default(),
            quiet: false,
            output: Vec::new(),
            written: 0,
            dropped: 0,
        }
    }

    /// Whether a request of it is queued or running.
    pub fn is_busy(&self) -> bool {
        matches!(self.state, State::Queued | State::Running)
    }

    /// Comes into a state.
    pub fn enter(&mut self, state: State, now: Instant, deadline: Option<Instant>) {
        self.state = state;
        self.since = now;
        self.deadline = deadline;
    }

    /// Reads once, at most until `longest` bytes are here.
    pub fn receive(&mut self, scratch: &mut [u8], longest: usize) -> Received {
        let room = scratch.len().min(longest.saturating_sub(self.input.len()));
        let (received, length) = self.read(&mut scratch[..room]);
        self.input.extend_from_slice(&scratch[..length]);
        self.fresh |= length > 0;
        received
    }

    /// Reads once and drops it; `End` also once the client has sent too much.
    pub fn discard(&mut self, scratch: &mut [u8]) -> Received {
        let (received, length) = self.read(scratch);
        self.dropped += length;
        if self.dropped > LINGER_BYTES { Received::End } else { received }
    }

    fn read(&mut self, into: &mut [u8]) -> (Received, usize) {
        match retry_on_intr(|| recv(&self.line.socket, &mut *into, RecvFlags::DONTWAIT)) {
            Ok((0, _)) => (Received::End, 0),
            Ok((length, _)) => {
                // Fewer bytes than asked for: there are no more now, and epoll tells of new ones.
                // Of the end of the stream it has told already, and does so only once.
                self.readable = length == into.len() || self.hangup;
                (Received::Some, length)
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                (Received::Nothing, 0)
            }
            Err(_) => (Received::End, 0),
        }
    }

    /// Drops a request that was understood from the front of `input`.
    pub fn consume(&mut self, length: usize) {
        self.input.drain(..length);
        if self.input.is_empty() && self.input.capacity() > KEPT_BUFFER {
            self.input = Vec::new();
        }
        self.fresh = !self.input.is_empty();
    }

    /// Takes over an answer of which `written` bytes went out already.
    pub fn put_output(&mut self, output: Vec<u8>, written: usize) {
        self.answered = true;
        self.output = output;
        self.written = written;
    }

    /// How much memory the answer takes.
    pub fn held(&self) -> usize {
        self.output.len()
    }

    /// Writes what the socket takes. True once all is written.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&mut self, now: Instant) -> std::io::Result<bool> {
        while self.written < self.output.len() {
            match self.line.write(&self.output[self.written..])? {
                0 => return Ok(false),
                length => {
                    self.written += length;
                    self.since = now;
                }
            }
        }
        self.output = Vec::new();
        self.written = 0;
        Ok(true)
    }

    /// Tells the client that no more comes.
    pub fn end_of_answers(&self) {
        // It fails where the connection is broken, and then there is nobody to tell.
        let _ = shutdown(&self.line.socket, Shutdown::Write);
    }
}
