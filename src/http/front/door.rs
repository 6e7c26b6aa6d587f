//! Accepting connections: which others are closed to make room for them, and when accepting pauses.

use super::connections::Connections;
use crate::http::conn::Conn;
use crate::http::limits::Limits;
use crate::http::listen::Listener;
use crate::http::peer::{Peer, Share};
use crate::http::service::Service;
use crate::http::workers::Line;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::{Duration, Instant};

/// Tokens of listeners begin here; those of connections are below.
pub(super) const LISTENERS: u64 = 1 << 63;

/// How many connections are accepted, at all listeners together, before the others get their turn.
const ACCEPTS: usize = 64;

/// During this time a new connection is closed only after all others, if its first request is not here
/// yet: the kernel may hand us a connection before what its client sent right after.
const YOUNG: Duration = Duration::from_millis(250);

/// For so long such a connection is not closed at all: its client needs time to send, and we to read.
const FRESH: Duration = Duration::from_millis(5);

/// How long accepting pauses when the system has no descriptor or memory for one more connection.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the log does not repeat that accepting pauses.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// Descriptors besides those of connections and listeners: the standard ones, epoll, those that wake
/// us, and a connection that waits for room.
const OTHER_FILES: usize = 16;

/// Descriptors that a handler opens at once.
const WORKER_FILES: usize = 3;

/// So many connections are allowed even where the limit of open files is too low for them.
const FEWEST_CONNECTIONS: usize = 8;

/// The listeners, and whether connections are accepted.
pub(super) struct Door {
    listeners: Vec<Listener>,
    /// The listener that is asked next for a connection.
    next: usize,
    state: State,
    warned: Option<Instant>,
}

/// Whether connections are accepted.
enum State {
    Open,
    /// Not until this time: the system has no resources.
    Paused(Instant),
    /// Not until this time: this connection is accepted already, and there is no room for it yet.
    Full(Instant, OwnedFd, Peer),
}

impl Door {
    /// Opens the door: from now on epoll tells of new connections.
    pub fn new(epoll: &OwnedFd, listeners: Vec<Listener>) -> io::Result<Door> {
        for (listener, token) in listeners.iter().zip(LISTENERS..) {
            epoll::add(epoll, &listener.socket, EventData::new_u64(token), EventFlags::IN)?;
        }
        Ok(Door { listeners, next: 0, state: State::Open, warned: None })
    }

    /// When accepting goes on, if it pauses.
    pub fn again(&self) -> Option<Instant> {
        match self.state {
            State::Open => None,
            State::Paused(at) | State::Full(at, ..) => Some(at),
        }
    }

    /// Whether an accepted connection waits for room.
    pub fn is_full(&self) -> bool {
        matches!(self.state, State::Full(..))
    }

    /// Closes the door for good.
    pub fn close(&mut self) {
        self.listeners.clear();
        self.state = State::Open;
    }

    /// Whether it is time to go on accepting after a pause.
    pub fn is_due(&self, now: Instant) -> bool {
        self.again().is_some_and(|at| at <= now)
    }

    /// Accepts the connections that wait at the listeners.
    pub fn accept_all<S: Service>(&mut self, epoll: &OwnedFd, connections: &mut Connections<S>) {
        let state = std::mem::replace(&mut self.state, State::Open);
        if !matches!(state, State::Open) {
            self.listen_for(epoll, EventFlags::IN);
        }
        if let State::Full(_, socket, peer) = state {
            // It waited until the other new connections were fresh no longer. If there still is no
            // room, all connections are being answered, and this one is closed.
            let _ = admit(connections, socket, peer);
        }
        // One from each listener in turn: a flood at one must not keep the others waiting.
        let mut without = 0;
        for _ in 0..ACCEPTS {
            if without == self.listeners.len() {
                return;
            }
            let index = self.next % self.listeners.len();
            self.next = index + 1;
            match self.listeners[index].accept() {
                Ok((socket, peer)) => {
                    without = 0;
                    if let Err((socket, peer)) = admit(connections, socket, peer) {
                        return self.pause(epoll, State::Full(connections.now + FRESH, socket, peer));
                    }
                }
                Err(Errno::AGAIN) => without += 1,
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                    if !make_room(connections, None) {
                        return self.pause_after(epoll, error, connections.now);
                    }
                }
                Err(error) if concerns_one_client(error) => {}
                // Any other error must not turn into a busy loop.
                Err(error) => return self.pause_after(epoll, error, connections.now),
            }
        }
    }

    /// Stops accepting for a moment; says so in the log, but not all the time.
    fn pause_after(&mut self, epoll: &OwnedFd, error: Errno, now: Instant) {
        if self.warned.is_none_or(|at| now.duration_since(at) >= WARN_AGAIN) {
            log::warn!("cannot accept a connection: {error}; trying again every {PAUSE:?}");
            self.warned = Some(now);
        }
        self.pause(epoll, State::Paused(now + PAUSE));
    }

    fn pause(&mut self, epoll: &OwnedFd, state: State) {
        self.state = state;
        self.listen_for(epoll, EventFlags::empty());
    }

    /// Turns accepting on or off.
    fn listen_for(&self, epoll: &OwnedFd, flags: EventFlags) {
        for (listener, token) in self.listeners.iter().zip(LISTENERS..) {
            // With a registered descriptor, only lack of memory can make this fail. Then accepting
            // pauses for a shorter time, or goes on after the next pause.
            let _ = epoll::modify(epoll, &listener.socket, EventData::new_u64(token), flags);
        }
    }
}

/// Adds a new connection, if need be in the place of another. Where there is no room, returns it.
fn admit<S: Service>(
    connections: &mut Connections<S>,
    socket: OwnedFd,
    peer: Peer,
) -> Result<(), (OwnedFd, Peer)> {
    if connections.are_many_busy() {
        // Those that have their answer by now take no place.
        connections.settle();
    }
    let share = peer.share();
    let limits = &connections.limits();
    let of_share = connections.slots.iter().filter(|(_, conn)| conn.share == share).count();
    let has_room = if of_share >= limits.per_address {
        make_room(connections, Some(share))
    } else {
        connections.slots.len() < limits.connections || make_room(connections, None)
    };
    if !has_room {
        return Err((socket, peer));
    }
    connections.add(Line::new(socket), peer);
    Ok(())
}

/// Closes a connection, of one share or of all: of those in the state of the lowest rank the one
/// that is longest in it, and a new connection only if there is no other. One whose request waits
/// for a worker or is at one is never closed, nor is a fresh one. `Budget::room` makes sure that
/// some are neither, at the latest when the fresh ones are fresh no longer.
fn make_room<S: Service>(connections: &mut Connections<S>, share: Option<Share>) -> bool {
    let now = connections.now;
    let is_new =
        |conn: &Conn<_>, time| conn.new_since.is_some_and(|accepted| now.duration_since(accepted) < time);
    let sparable = |conn: &Conn<_>| {
        share.is_none_or(|share| conn.share == share) && !conn.is_busy() && !is_new(conn, FRESH)
    };
    let oldest = connections
        .slots
        .iter()
        .filter(|(_, conn)| sparable(conn))
        .min_by_key(|(_, conn)| (is_new(conn, YOUNG), conn.rank(), conn.since))
        .map(|(token, _)| token);
    oldest.and_then(|token| connections.slots.remove(token)).is_some()
}

/// Whether an error is about the one connection that accept(2) would have returned: its client is
/// gone, the firewall forbids it, or the network reported an error.
fn concerns_one_client(error: Errno) -> bool {
    matches!(
        error,
        Errno::CONNABORTED
            | Errno::INTR
            | Errno::PERM
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET
    )
}

/// Makes sure that connections leave enough open files for the rest of the process: raises the soft
/// limit if that helps, else allows fewer connections.
pub(super) fn fit_to_files(limits: &mut Limits, listeners: usize) {
    let others = OTHER_FILES + listeners + limits.workers * WORKER_FILES;
    let wanted = (limits.connections + others) as u64;
    let files = getrlimit(Resource::Nofile);
    if files.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = Rlimit { current: Some(files.maximum.map_or(wanted, |most| most.min(wanted))), ..files };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => files.current,
    };
    let current = current.map_or(usize::MAX, |current| current as usize);
    let room = current.saturating_sub(others).max(FEWEST_CONNECTIONS);
    if room < limits.connections {
        log::warn!("open files are limited to {current}: at most {room} connections at once");
        limits.connections = room;
        limits.per_address = limits.per_address.min(room.div_ceil(2));
    }
}
