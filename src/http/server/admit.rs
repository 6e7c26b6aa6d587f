//! Who gets in: accepting connections, making room for them, and resting where the system has none.

use super::{Front, LISTENERS};
use crate::http::conn::{Conn, State};
use crate::http::workers::Line;
use crate::http::{Limits, Peer, Share};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Arc;
use std::time::Duration;

/// Connections accepted before those that are there get their turn. Where an address may have
/// few, it is half of these: a new one must not go before its request could be read.
const ACCEPTS: usize = 64;

/// How long accepting rests when the system has no descriptor or memory for one more.
const PAUSE: Duration = Duration::from_millis(100);

/// Descriptors that are not connections': standard ones, epoll, listeners, and for each worker
/// what a handler opens.
const OTHER_FILES: usize = 16;
const WORKER_FILES: usize = 2;
const FEWEST_CONNECTIONS: usize = 8;

/// How often the log says that accepting rests.
const WARN_AGAIN: Duration = Duration::from_secs(10);

impl Front {
    /// Takes in who waits at the listeners.
    pub(super) fn accept_all(&mut self) {
        let most = ACCEPTS.min(self.limits.per_address.div_ceil(2));
        for index in 0..self.listeners.len() {
            for _ in 0..most {
                match self.listeners[index].accept() {
                    Ok((socket, peer)) => self.admit(socket, peer),
                    Err(Errno::AGAIN) => break,
                    Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                        if !self.make_room(None) {
                            self.rest(error);
                            return;
                        }
                    }
                    // The client went away, or the network had something to say about it. What
                    // else there may be must not turn into a busy loop.
                    Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => {}
                    Err(error) => {
                        self.rest(error);
                        return;
                    }
                }
            }
        }
    }

    /// Takes a new connection in, if need be in the place of another.
    fn admit(&mut self, socket: OwnedFd, peer: Peer) {
        let share = peer.share();
        let of_share = self.slots.iter().filter(|(_, conn)| conn.share == share).count();
        let room = if of_share >= self.limits.per_address {
            self.make_room(Some(share))
        } else {
            self.slots.len() < self.limits.connections || self.make_room(None)
        };
        if !room {
            return;
        }
        let conn = Conn::new(Line::new(socket), peer, self.now, &self.limits);
        let line = Arc::clone(&conn.line);
        self.due_at(self.now + self.limits.idle_time);
        let token = self.slots.insert(Box::new(conn));
        // Registered once, for everything: no further call for this connection.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if epoll::add(&self.epoll, &line.socket, EventData::new_u64(token), flags).is_err() {
            self.remove(token);
        }
    }

    /// Closes the connection that can best be spared, of one share or of all: the oldest of the
    /// most sparable state. One that is being answered never goes, except where its client has
    /// long stopped taking the answer.
    fn make_room(&mut self, share: Option<Share>) -> bool {
        let stuck = self.now.checked_sub(self.limits.linger_time);
        let sparable = |conn: &Conn| match conn.state {
            State::Lingering | State::Idle | State::Reading => true,
            State::Writing => stuck.is_some_and(|stuck| conn.since < stuck),
            State::Queued | State::Running => false,
        };
        let oldest = self
            .slots
            .iter()
            .filter(|(_, conn)| share.is_none_or(|share| conn.share == share) && sparable(conn))
            .min_by_key(|(_, conn)| (conn.state, conn.since))
            .map(|(token, _)| token);
        oldest.map(|token| self.remove(token)).is_some()
    }

    /// Stops accepting for a moment; says so in the log, but not all the time.
    fn rest(&mut self, error: Errno) {
        if self.accept_warned.is_none_or(|at| self.now.duration_since(at) >= WARN_AGAIN) {
            log::warn!("cannot accept a connection: {error}; trying again every {PAUSE:?}");
            self.accept_warned = Some(self.now);
        }
        self.accept_again = Some(self.now + PAUSE);
        self.listen_for(EventFlags::empty());
    }

    /// Turns accepting on or off.
    pub(super) fn listen_for(&self, flags: EventFlags) {
        for (listener, token) in self.listeners.iter().zip(LISTENERS..) {
            // Of a registered descriptor, only lack of memory can make this fail. Then accepting
            // either rests a little less or goes on with the next attempt.
            let _ = epoll::modify(&self.epoll, &listener.socket, EventData::new_u64(token), flags);
        }
    }
}

/// Sees that connections leave enough of the open files for the rest of the process: raises the
/// soft limit if that helps, else allows fewer connections.
pub(super) fn fit_to_files(limits: &mut Limits) {
    let others = OTHER_FILES + limits.workers * WORKER_FILES;
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
