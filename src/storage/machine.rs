//! What every kind of object in this layer needs: the kernel's root, the locks, the memory limit.

use super::locks::{Held, Key, Locks};
use super::{Error, Result};
use crate::kernel::{Root, machine};

/// How much memory the RAM disks may claim together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// This many bytes.
    Bytes(u64),
    /// This part of the machine's memory, 1 to 100, but never what leaves less than 64 MiB.
    Percent(u8),
}

/// What a limit in percent leaves to everything but RAM disks, in bytes.
const RESERVE: u64 = 64 << 20;

/// The machine on which this program runs.
pub struct Machine {
    /// Where the kernel's file systems are.
    pub root: Root,
    /// The objects that are being changed at the moment.
    pub locks: Locks,
    limit: MemoryLimit,
}

impl Machine {
    /// The machine that the kernel shows at `root`.
    pub fn new(root: Root, limit: MemoryLimit) -> Machine {
        Machine { root, locks: Locks::default(), limit }
    }

    /// Takes the objects that a change is about.
    ///
    /// # Errors
    /// Another change holds one of them for too long.
    pub fn hold(&self, keys: Vec<Key>) -> Result<Held<'_>> {
        self.locks.hold(keys.clone()).ok_or_else(|| {
            let names: Vec<_> = keys.iter().map(Key::to_string).collect();
            Error::Conflict(format!("another change of {} is still running; try again", names.join(" or ")))
        })
    }

    /// The memory limit in bytes.
    pub fn memory_limit(&self) -> u64 {
        match self.limit {
            MemoryLimit::Bytes(bytes) => bytes,
            MemoryLimit::Percent(percent) => part_of(machine::memory().total, percent),
        }
    }
}

fn part_of(total: u64, percent: u8) -> u64 {
    let part = u128::from(total) * u128::from(percent) / 100;
    (part as u64).min(total.saturating_sub(RESERVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_in_percent_leaves_64_mib() {
        assert_eq!(part_of(1000 << 20, 80), 800 << 20);
        assert_eq!(part_of(1000 << 20, 100), 936 << 20);
        assert_eq!(part_of(100 << 20, 80), 36 << 20);
        assert_eq!(part_of(32 << 20, 50), 0);
        assert_eq!(part_of(u64::MAX, 100), u64::MAX - RESERVE);
    }
}
