//! Sums of what is held at the moment. Each part is released by dropping it.

use std::cell::Cell;
use std::rc::Rc;

/// A sum of what is held at the moment.
#[derive(Debug, Default, Clone)]
pub(super) struct Count(Rc<Cell<usize>>);

impl Count {
    /// Adds an amount, for as long as what is returned lives.
    pub fn hold(&self, amount: usize) -> Held {
        self.0.set(self.0.get() + amount);
        Held { count: self.clone(), amount }
    }

    /// The sum.
    pub fn sum(&self) -> usize {
        self.0.get()
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
        self.count.0.set(self.count.0.get() - self.amount);
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
