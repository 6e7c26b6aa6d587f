//! What an administrator thinks in: RAM disks, caches, NVMe exports, the resources of the machine, and
//! what is in use by what. Knows no HTTP.
//!
//! The kernel is the only memory: nothing is remembered here that the kernel does not hold, but for
//! which objects are being changed right now.

mod caches;
mod disks;
mod error;
mod exports;
mod locks;
mod machine;
mod mapping;
mod names;
mod nvme_names;
mod quiesce;
mod resources;
mod undo;
mod usage;
mod wait;
mod watch;

use std::sync::Arc;

pub use caches::{Cache, CacheDriver, CacheStats, Caches, Metadata, NewCache};
pub use disks::{Compressed, Disks, NewDisk, RamDisk, RamDriver};
pub use error::{Error, Left, Result};
pub use exports::{Export, Exports};
pub use machine::{Machine, MemoryLimit};
pub use names::{Algorithm, BlockSize, CacheName, DiskName, Policy, Size, SourceName};
pub use nvme_names::{Nqn, PortAddress, PortId, Ports, Protocol, ServiceId, Volume};
pub use quiesce::Quiesce;
use resources::LastDisks;
pub use resources::{Disk, Resources};
pub use watch::{Health, Shortage, Watch};

pub use crate::kernel::nvmet::Port;

/// The storage of a machine: the owner of each kind of object.
pub struct Storage {
    machine: Arc<Machine>,
    /// The RAM disks.
    pub disks: Arc<Disks>,
    /// The caches.
    pub caches: Arc<Caches>,
    /// The NVMe ports and exports.
    pub exports: Exports,
    /// What the kernel offers, and whether the memory is enough.
    pub watch: Watch,
    last_disks: LastDisks,
}

impl Storage {
    /// The storage of `machine`. New RAM disks and write-through caches are made by the given drivers,
    /// or by the first of each kind that the kernel has.
    pub fn new(machine: Machine, ram: Option<RamDriver>, cache: Option<CacheDriver>) -> Storage {
        let machine = Arc::new(machine);
        let disks = Arc::new(Disks::new(Arc::clone(&machine), ram));
        let caches = Arc::new(Caches::new(Arc::clone(&machine), Arc::clone(&disks), cache));
        Storage {
            exports: Exports::new(Arc::clone(&machine), Arc::clone(&disks), Arc::clone(&caches)),
            watch: Watch::new(Arc::clone(&machine), Arc::clone(&disks), Arc::clone(&caches)),
            machine,
            disks,
            caches,
            last_disks: LastDisks::default(),
        }
    }

    /// The machine's memory and its real disks.
    pub fn resources(&self) -> Result<Resources> {
        self.last_disks.resources(&self.machine, &self.disks)
    }

    /// Repairs what a daemon that was killed during a change left. Returns a line for each thing that
    /// was done or could not be done.
    pub fn recover(&self) -> Vec<String> {
        let mut said = self.disks.recover();
        said.extend(self.caches.recover());
        said
    }

    /// What has to end before the machine does.
    pub fn quiesce(&self) -> Quiesce<'_> {
        Quiesce { disks: &self.disks, caches: &self.caches, exports: &self.exports }
    }
}
