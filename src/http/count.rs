//! Sums of what is held at the moment. Each part is released by dropping it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A sum of what is held at the moment. One thread at a time counts, so that no order is needed.
#[derive(Debug, Default, Clone)]
pub(super) struct Count(Arc<AtomicUsize>);

impl Count {
    /// Adds an amount, for as long as what is returned lives.
    pub fn hold(&self, amount: usize) -> Held {
        self.0.fetch_add(amount, Ordering::Relaxed);
        Held { count: self.clone(), amount }
    }

    /// The sum.
    pub fn sum(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A part of a sum, for as long as this lives.
#[derive(Debug)]
pub(super) struct Held {
    count: Count,
    amount: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.0.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_not_counted_any_more() {
        let count = Count::default();
        let (one, three) = (count.hold(1), count.hold(3));
        assert_eq!(count.sum(), 4);
        drop(one);
        assert_eq!(count.sum(), 3);
        drop(three);
        assert_eq!(count.sum(), 0);
    }
}
