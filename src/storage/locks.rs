//! Which objects are being changed: changes of the same object never interleave,
//! changes of others do not wait for them.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::DiskName;

/// How long a change waits for another of the same object.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a change holds while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The sum of all RAM disks' sizes, which the memory limit bounds.
    Memory,
    /// A block device: a RAM disk by its own name, any other by the kernel's.
    Device(String),
    /// A cache mapping, by its device-mapper name.
    Mapping(String),
    /// The NVMe target's tree, whose objects refer to each other.
    Nvme,
}

impl Key {
    /// The key of a RAM disk.
    pub fn disk(name: DiskName) -> Key {
        Key::Device(name.to_string())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Memory => f.write_str("the RAM disks"),
            Key::Nvme => f.write_str("the NVMe targets"),
            Key::Device(name) | Key::Mapping(name) => f.write_str(name),
        }
    }
}

/// The keys held at the moment.
#[derive(Default)]
pub struct Locks {
    held: Mutex<HashSet<Key>>,
    released: Condvar,
}

/// Holds its keys until dropped.
pub struct Held<'a> {
    locks: &'a Locks,
    keys: Vec<Key>,
}

impl Locks {
    /// Takes all of `keys` at once, so that no two changes can wait for each other for ever. `None`
    /// if one of them stays held for too long.
    pub fn hold(&self, keys: Vec<Key>) -> Option<Held<'_>> {
        self.hold_within(keys, PATIENCE)
    }

    /// Takes `keys` if they are free now.
    pub fn try_hold(&self, keys: Vec<Key>) -> Option<Held<'_>> {
        self.hold_within(keys, Duration::ZERO)
    }

    fn hold_within(&self, keys: Vec<Key>, patience: Duration) -> Option<Held<'_>> {
        let deadline = Instant::now() + patience;
        let mut held = self.held();
        while keys.iter().any(|key| held.contains(key)) {
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            held = self.released.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        held.extend(keys.iter().cloned());
        Some(Held { locks: self, keys })
    }

    /// A panic leaves the set valid, since each change of it is a single step.
    fn held(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        for key in &self.keys {
            held.remove(key);
        }
        drop(held);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn device(name: &str) -> Key {
        Key::Device(name.into())
    }

    #[test]
    fn a_held_key_is_not_taken_again_until_released() {
        let locks = Locks::default();
        let held = locks.try_hold(vec![device("rd0"), Key::Memory]).unwrap();
        assert!(locks.try_hold(vec![device("rd0")]).is_none());
        assert!(locks.try_hold(vec![device("sda"), Key::Memory]).is_none());
        // The refused attempt left nothing behind.
        assert!(locks.try_hold(vec![device("sda")]).is_some());
        drop(held);
        assert!(locks.try_hold(vec![device("rd0"), Key::Memory]).is_some());
    }

    #[test]
    fn a_key_is_free_again_after_a_panic() {
        let locks = Locks::default();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = locks.try_hold(vec![device("rd0")]).unwrap();
            panic!("in the middle of a change");
        }));
        assert!(result.is_err());
        assert!(locks.try_hold(vec![device("rd0")]).is_some());
    }

    #[test]
    fn changes_of_one_object_never_overlap_and_all_come_through() {
        let locks = Locks::default();
        let inside = Mutex::new(());
        thread::scope(|scope| {
            for i in 0..8 {
                let (locks, inside) = (&locks, &inside);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let _held = locks.hold(vec![device("rd0"), device(&format!("sd{i}"))]).unwrap();
                        drop(inside.try_lock().expect("two changes at once"));
                    }
                });
            }
        });
    }
}
