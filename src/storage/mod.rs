//! What an administrator thinks in: RAM disks, caches, NVMe targets, the
//! resources of the machine, and what is in use by what. Knows no HTTP.
//!
//! The kernel is the only memory: nothing here is remembered that the kernel
//! does not hold, but for which objects are being changed right now.

mod cache;
mod error;
mod locks;
mod names;
mod node;
mod nvme_names;
mod port;
mod ramdisk;
mod resources;
mod stats;
mod target;
mod undo;
mod usage;

use std::thread;
use std::time::{Duration, Instant};

pub use cache::{Cache, CacheDriver, Driver, NewCache};
pub use error::{Error, Result};
pub use names::{CacheName, DiskName, Policy, Size, SourceName};
pub use nvme_names::{Nqn, Place, PortId, Ports, Protocol, ServiceId, Volume};
pub use ramdisk::{RamDisk, Volumes};
pub use resources::{Disk, Resources};
pub use stats::{CacheStats, Metadata};
pub use target::Target;

use rustix::io::Errno;

pub use crate::kernel::nvmet::Port;
use crate::kernel::{self, Root, process};
use locks::{Held, Key, Locks};
use ramdisk::Gate;

/// How long udev's rules may look into a device that has just changed.
const PROBING: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// How much memory the RAM disks may claim together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// This many bytes.
    Bytes(u64),
    /// This part of the machine's memory, 1 to 100.
    Percent(u8),
}

/// The storage of this machine.
pub struct Storage {
    root: Root,
    limit: MemoryLimit,
    cache_driver: CacheDriver,
    locks: Locks,
    gate: Gate,
}

impl Storage {
    /// The storage that the kernel shows at `root`.
    pub fn new(root: Root, limit: MemoryLimit, cache_driver: CacheDriver) -> Storage {
        Storage { root, limit, cache_driver, locks: Locks::default(), gate: Gate::default() }
    }

    /// Takes what a change is about, or says that another change keeps it.
    fn hold(&self, keys: Vec<Key>) -> Result<Held<'_>> {
        let busy =
            || Error::Conflict(format!("another change of {} is still running; try again", named(&keys)));
        self.locks.hold(keys.clone()).ok_or_else(busy)
    }

    /// The memory limit in bytes.
    fn memory_limit(&self) -> u64 {
        match self.limit {
            MemoryLimit::Bytes(bytes) => bytes,
            MemoryLimit::Percent(percent) => {
                let total = u128::from(process::memory().total);
                (total * u128::from(percent) / 100) as u64
            }
        }
    }
}

fn named(keys: &[Key]) -> String {
    let name = |key: &Key| match key {
        Key::Memory => "the RAM disks".to_owned(),
        Key::Nvme => "the NVMe targets".to_owned(),
        Key::Device(name) | Key::Mapping(name) => name.clone(),
    };
    keys.iter().map(name).collect::<Vec<_>>().join(" or ")
}

/// Asks again until `done` or until `patience` is over; whether it was done.
fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(PAUSE);
    }
}

/// Tries again while the kernel says EBUSY, as long as udev's rules may be looking.
fn retry_busy<T>(mut attempt: impl FnMut() -> kernel::Result<T>) -> kernel::Result<T> {
    let deadline = Instant::now() + PROBING;
    loop {
        match attempt() {
            Err(error) if error.is(Errno::BUSY) && Instant::now() < deadline => thread::sleep(PAUSE),
            settled => return settled,
        }
    }
}
