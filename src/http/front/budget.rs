//! What all connections together may take: counts that are released by dropping what was counted.

use crate::http::limits::Limits;
use std::cell::Cell;
use std::rc::Rc;

/// Requests of an address that are let in when the other addresses have taken all but the last.
const HARDLY_ANY: usize = 4;

/// A sum of what is held at the moment.
#[derive(Debug, Default, Clone)]
struct Count(Rc<Cell<usize>>);

impl Count {
    fn hold(&self, amount: usize) -> Held {
        self.0.set(self.0.get() + amount);
        Held { count: self.clone(), amount }
    }
}

/// A part of a sum, for as long as this lives.
#[derive(Debug)]
pub(in crate::http) struct Held {
    count: Count,
    amount: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.0.set(self.count.0.get() - self.amount);
    }
}

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
        self.busy.0.get()
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
        if self.unsent.0.get() > limits.unsent_bytes {
            return Err("Too many answers wait for clients to take them; try again.");
        }
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
    fn what_is_dropped_is_not_counted_any_more() {
        let budget = Budget::default();
        let requests: Vec<_> = (0..3).map(|_| budget.hold_request()).collect();
        let bytes = budget.hold_unsent(100);
        assert_eq!((budget.busy(), budget.unsent.0.get()), (3, 100));
        drop((requests, bytes));
        assert_eq!((budget.busy(), budget.unsent.0.get()), (0, 0));
    }

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
