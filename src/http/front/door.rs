//! Who gets in: accepting connections, making room for them, and resting where the system has none.

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

/// Connections accepted, at all listeners together, before those that are there get their turn.
const ACCEPTS: usize = 64;

/// For how long a new connection goes after all others, if its first request is not there yet:
/// the kernel may hand us a connection before what its client sent right after.
const YOUNG: Duration = Duration::from_millis(250);

/// For how long such a one does not go at all: time for its client to send and for us to read.
const FRESH: Duration = Duration::from_millis(5);

/// How long accepting rests when the system has no descriptor or memory for one more.
const PAUSE: Duration = Duration::from_millis(100);

/// How often the log says that accepting rests.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// Descriptors that are neither connections' nor listeners': standard ones, epoll, what wakes us,
/// one at the door, and for each worker what a handler opens.
const OTHER_FILES: usize = 16;
const WORKER_FILES: usize = 3;
const FEWEST_CONNECTIONS: usize = 8;

/// The listeners, and what waits at them.
pub(super) struct Door {
    listeners: Vec<Listener>,
    /// Which listener has its turn to be asked for a connection.
    next: usize,
    state: State,
    warned: Option<Instant>,
}

/// Whether connections are accepted.
enum State {
    Open,
    /// Not before this time.
    Resting(Instant),
    /// Neither, but in this time there is room for this connection, if ever.
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

    /// When accepting goes on, if it rests.
    pub fn again(&self) -> Option<Instant> {
        match self.state {
            State::Open => None,
            State::Resting(at) | State::Full(at, ..) => Some(at),
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

    /// Whether accepting rested until now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.again().is_some_and(|at| at <= now)
    }

    /// Goes on accepting, after a rest.
    pub fn wake(&self, epoll: &OwnedFd) {
        self.listen_for(epoll, EventFlags::IN);
    }

    /// Accepts the connections that wait at the listeners.
    pub fn accept_all<S: Service>(&mut self, epoll: &OwnedFd, connections: &mut Connections<S>) {
        if let State::Full(_, socket, peer) = std::mem::replace(&mut self.state, State::Open) {
            // The newcomers for which it waited are fresh no more. If there is no room even so,
            // everybody is being answered.
            let _ = admit(epoll, connections, socket, peer);
        }
        // One from each listener in turn: a flood at one must not close the others.
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
                    if let Err((socket, peer)) = admit(epoll, connections, socket, peer) {
                        return self.rest(epoll, State::Full(connections.now + FRESH, socket, peer));
                    }
                }
                Err(Errno::AGAIN) => without += 1,
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                    if !make_room(connections, None) {
                        return self.rest_after(epoll, error, connections.now);
                    }
                }
                Err(error) if concerns_one_client(error) => {}
                // What else there may be must not turn into a busy loop.
                Err(error) => return self.rest_after(epoll, error, connections.now),
            }
        }
    }

    /// Stops accepting for a moment; says so in the log, but not all the time.
    fn rest_after(&mut self, epoll: &OwnedFd, error: Errno, now: Instant) {
        if self.warned.is_none_or(|at| now.duration_since(at) >= WARN_AGAIN) {
            log::warn!("cannot accept a connection: {error}; trying again every {PAUSE:?}");
            self.warned = Some(now);
        }
        self.rest(epoll, State::Resting(now + PAUSE));
    }

    fn rest(&mut self, epoll: &OwnedFd, state: State) {
        self.state = state;
        self.listen_for(epoll, EventFlags::empty());
    }

    /// Turns accepting on or off.
    fn listen_for(&self, epoll: &OwnedFd, flags: EventFlags) {
        for (listener, token) in self.listeners.iter().zip(LISTENERS..) {
            // Of a registered descriptor, only lack of memory can make this fail. Then accepting
            // either rests a little less or goes on with the next attempt.
            let _ = epoll::modify(epoll, &listener.socket, EventData::new_u64(token), flags);
        }
    }
}

/// Takes a new connection in, if need be in the place of another, or gives it back.
fn admit<S: Service>(
    epoll: &OwnedFd,
    connections: &mut Connections<S>,
    socket: OwnedFd,
    peer: Peer,
) -> Result<(), (OwnedFd, Peer)> {
    let share = peer.share();
    let limits = &connections.desk.limits;
    let of_share = connections.slots.iter().filter(|(_, conn)| conn.share == share).count();
    let has_room = if of_share >= limits.per_address {
        make_room(connections, Some(share))
    } else {
        connections.slots.len() < limits.connections || make_room(connections, None)
    };
    if !has_room {
        return Err((socket, peer));
    }
    let (token, line) = connections.add(Line::new(socket), peer);
    // Registered once, for everything: no further call for this connection.
    let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    if epoll::add(epoll, &line.socket, EventData::new_u64(token), flags).is_err() {
        connections.slots.remove(token);
    }
    Ok(())
}

/// Closes the connection that can best be spared, of one share or of all: the oldest of the most
/// sparable state, and those that are new after all others. One whose request is queued or running
/// never goes, nor does a fresh one. `Budget::room` sees to it that some are neither, at the latest
/// when the fresh ones are no longer so.
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
        .min_by_key(|(_, conn)| (is_new(conn, YOUNG), conn.worth(), conn.since))
        .map(|(token, _)| token);
    oldest.and_then(|token| connections.slots.remove(token)).is_some()
}

/// Errors of the one connection that accept(2) would have returned: its client went away, a rule
/// of the firewall is against it, or the network had something to say about it.
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

/// Sees that connections leave enough of the open files for the rest of the process: raises the
/// soft limit if that helps, else allows fewer connections.
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
