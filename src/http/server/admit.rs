//! Who gets in: accepting connections, making room for them, and resting where the system has none.

use super::{Front, LISTENERS};
use crate::http::conn::Conn;
use crate::http::workers::Line;
use crate::http::{Limits, Peer, Share};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Arc;
use std::time::Duration;

/// Requests of a share for which there is room when the others have taken theirs.
const HARDLY_ANY: usize = 4;

/// Connections accepted, at all listeners together, before those that are there get their turn.
const ACCEPTS: usize = 64;

/// For how long a new connection goes after all others, if its first request is not there yet:
/// the kernel may hand us a connection before what its client sent right after.
const YOUNG: Duration = Duration::from_millis(250);

/// For how long such a one does not go at all: time for its client to send and for us to read.
const FRESH: Duration = Duration::from_millis(5);

/// How long accepting rests when the system has no descriptor or memory for one more.
const PAUSE: Duration = Duration::from_millis(100);

/// Descriptors that are neither connections' nor listeners': standard ones, epoll, what wakes us,
/// one at the door, and for each worker what a handler opens.
const OTHER_FILES: usize = 16;
const WORKER_FILES: usize = 3;
const FEWEST_CONNECTIONS: usize = 8;

/// How often the log says that accepting rests.
const WARN_AGAIN: Duration = Duration::from_secs(10);

impl Front {
    /// Takes in who waits at the listeners.
    pub(super) fn accept_all(&mut self) {
        if let Some((socket, peer)) = self.at_door.take() {
            // The newcomers for which it waited are fresh no more. If there is no room even so,
            // everybody is being answered.
            let _ = self.admit(socket, peer);
        }
        // One from each listener in turn: a flood at one must not close the others.
        let mut without = 0;
        for _ in 0..ACCEPTS {
            if without == self.listeners.len() {
                return;
            }
            let index = self.next_listener % self.listeners.len();
            self.next_listener = index + 1;
            match self.listeners[index].accept() {
                Ok((socket, peer)) => {
                    without = 0;
                    self.at_door = self.admit(socket, peer).err();
                    if self.at_door.is_some() {
                        return self.pause(FRESH);
                    }
                }
                Err(Errno::AGAIN) => without += 1,
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                    if !self.make_room(None) {
                        return self.rest(error);
                    }
                }
                Err(error) if concerns_one_client(error) => {}
                // What else there may be must not turn into a busy loop.
                Err(error) => return self.rest(error),
            }
        }
    }

    /// Takes a new connection in, if need be in the place of another, or gives it back.
    fn admit(&mut self, socket: OwnedFd, peer: Peer) -> Result<(), (OwnedFd, Peer)> {
        let share = peer.share();
        let of_share = self.slots.iter().filter(|(_, conn)| conn.share == share).count();
        let room = if of_share >= self.limits.per_address {
            self.make_room(Some(share))
        } else {
            self.slots.len() < self.limits.connections || self.make_room(None)
        };
        if !room {
            return Err((socket, peer));
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
        Ok(())
    }

    /// Closes the connection that can best be spared, of one share or of all: the oldest of the
    /// most sparable state, and those that are new after all others. One whose request is queued
    /// or running never goes, nor does a fresh one. `has_room_for_requests` sees to it that some
    /// are neither, at the latest when the fresh ones are no longer so.
    fn make_room(&mut self, share: Option<Share>) -> bool {
        let is_new = |conn: &Conn, time| !conn.answered && self.now.duration_since(conn.admitted) < time;
        let sparable = |conn: &Conn| {
            share.is_none_or(|share| conn.share == share) && !conn.is_busy() && !is_new(conn, FRESH)
        };
        let oldest = self
            .slots
            .iter()
            .filter(|(_, conn)| sparable(conn))
            .min_by_key(|(_, conn)| (is_new(conn, YOUNG), conn.state, conn.since))
            .map(|(token, _)| token);
        oldest.map(|token| self.remove(token)).is_some()
    }

    /// Whether one more request of this share may be queued. Of its connections, and of all, a
    /// quarter stays without one, so that a new connection always finds one to replace. Half of
    /// that quarter is for shares that have hardly any, when the others have taken the rest.
    pub(super) fn has_room_for_requests(&self, share: Share) -> bool {
        let most = |connections: usize| (connections - connections.div_ceil(4)).max(1);
        let of_share = most(self.limits.per_address);
        let own = || self.slots.iter().filter(|(_, conn)| conn.share == share && conn.is_busy()).count();
        let connections = self.limits.connections;
        if self.busy >= most(connections) {
            return self.busy < connections - connections.div_ceil(8) && own() < HARDLY_ANY;
        }
        // Counted only where it matters: no share has more than all have.
        self.busy < of_share || own() < of_share
    }

    /// Stops accepting for a moment; says so in the log, but not all the time.
    fn rest(&mut self, error: Errno) {
        if self.accept_warned.is_none_or(|at| self.now.duration_since(at) >= WARN_AGAIN) {
            log::warn!("cannot accept a connection: {error}; trying again every {PAUSE:?}");
            self.accept_warned = Some(self.now);
        }
        self.pause(PAUSE);
    }

    fn pause(&mut self, time: Duration) {
        self.accept_again = Some(self.now + time);
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
