//! What all connections together may take.

use crate::http::count::{Count, Held};
use crate::http::limits::Limits;

/// An address with fewer requests than this gets one of the last places, when others took the rest.
const HARDLY_ANY: usize = 4;

/// The sums of a server.
#[derive(Debug, Default)]
pub(super) struct Budget {
    busy: Count,
    unsent: Count,
}

impl Budget {
    /// Counts one request that waits for a worker or is at one, until its result is taken.
    pub fn hold_request(&self) -> Held {
        self.busy.hold(1)
    }

    /// Counts bytes of an answer that a connection holds.
    pub fn hold_unsent(&self, bytes: usize) -> Held {
        self.unsent.hold(bytes)
    }

    /// Requests that wait for a worker or are at one.
    pub fn busy(&self) -> usize {
        self.busy.sum()
    }

    /// Whether one more answer may be held.
    ///
    /// # Errors
    /// Those that are held are too large: the reason, as a sentence for the client.
    pub fn memory(&self, limits: &Limits) -> Result<(), &'static str> {
        if self.unsent.sum() > limits.unsent_bytes {
            return Err("Too many answers wait for clients to take them; try again.");
        }
        Ok(())
    }

    /// Whether one more request may wait for a worker. `busy_of_share` counts those of the same
    /// address.
    ///
    /// Of an address's connections, and of all, a quarter stays without a request, so that a new
    /// connection always finds one to replace. Half of that quarter is for addresses that have
    /// hardly any requests, when the others have taken the rest.
    ///
    /// # Errors
    /// There is no room: the reason, as a sentence for the client.
    pub fn room(&self, limits: &Limits, busy_of_share: impl Fn() -> usize) -> Result<(), &'static str> {
        self.memory(limits)?;
        let most = |connections: usize| (connections - connections.div_ceil(4)).max(1);
        let of_share = most(limits.per_address);
        let (busy, all) = (self.busy(), limits.connections);
        let has_room = if busy >= most(all) {
            busy < all - all.div_ceil(8) && busy_of_share() < HARDLY_ANY
        } else {
            // Counted only where it matters: no address has more than all have.
            busy < of_share || busy_of_share() < of_share
        };
        if has_room { Ok(()) } else { Err("Too many connections wait for answers; try again.") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_connections_stays_without_a_request() {
        let limits = Limits { connections: 16, per_address: 8, ..Limits::default() };
        let budget = Budget::default();
        let mut held = Vec::new();
        let mut room = |busy: usize, of_share: usize| {
            held.resize_with(busy, || budget.hold_request());
            budget.room(&limits, || of_share).is_ok()
        };
        assert!(room(5, 5) && room(8, 5) && !room(8, 6));
        // Three quarters of all: only for those who have hardly any.
        assert!(room(12, 3) && !room(12, 4) && room(13, 0) && !room(14, 0));
    }

    #[test]
    fn too_many_unsent_bytes_leave_no_room() {
        let limits = Limits { unsent_bytes: 10, ..Limits::default() };
        let budget = Budget::default();
        let ten = budget.hold_unsent(10);
        assert!(budget.room(&limits, || 0).is_ok());
        let one = budget.hold_unsent(1);
        assert!(budget.room(&limits, || 0).is_err());
        drop((ten, one));
        assert!(budget.room(&limits, || 0).is_ok());
    }
}
