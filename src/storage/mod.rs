//! What an administrator thinks in: RAM disks, caches, NVMe targets, the
//! resources of the machine, and what is in use by what. Knows no HTTP.
//!
//! The kernel is the only memory: nothing here is remembered that the kernel
//! does not hold, but for which objects are being changed right now.

mod cache;
mod error;
mod health;
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

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

pub use cache::{Cache, CacheDriver, Driver, NewCache};
pub use error::{Error, Result};
pub use health::{Health, Shortage};
pub use names::{CacheName, DiskName, Policy, Size, SourceName};
pub use nvme_names::{Nqn, Place, PortId, Ports, Protocol, ServiceId, Volume};
pub use ramdisk::{RamDisk, RamDriver, Volumes};
pub use resources::{Disk, Resources};
pub use stats::{CacheStats, Metadata};
pub use target::Target;

use rustix::io::Errno;

pub use crate::kernel::nvmet::Port;
use crate::kernel::{self, Root, process};
use locks::{Held, Key, Locks};
use ramdisk::Drivers;

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
    drivers: Drivers,
    health: Mutex<Health>,
}

impl Storage {
    /// The storage that the kernel shows at `root`. New RAM disks are made by `ram`, or
    /// by the first of the drivers that the kernel has.
    pub fn new(root: Root, limit: MemoryLimit, ram: Option<RamDriver>, cache: CacheDriver) -> Storage {
        let (drivers, health) = (Drivers::new(ram), Mutex::default());
        Storage { root, limit, cache_driver: cache, locks: Locks::default(), drivers, health }
    }

    /// Repairs what a daemon that was killed in the middle of a change left. Returns
    /// what was done or could not be, a line each.
    pub fn recover(&self) -> Vec<String> {
        let mut said = self.recover_disks();
        said.extend(self.recover_caches());
        said
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
