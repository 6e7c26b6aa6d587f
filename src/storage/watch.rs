//! What the kernel offers, and whether the memory is enough for the RAM disks. A thread looks every few
//! moments, so that a status costs no call into the kernel.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use log::{info, warn};

use super::caches::Caches;
use super::disks::{Disks, RamDisk};
use super::error::{Cannot, Result};
use super::machine::Machine;
use super::names::Policy;
use crate::kernel::machine;

/// How old the last look is at most.
const INTERVAL: Duration = Duration::from_secs(2);

/// What was found by the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The driver of new RAM disks.
    pub ram_driver: Option<&'static str>,
    /// The drivers of RAM disks that the kernel has at the moment.
    pub ram_drivers: Vec<&'static str>,
    /// The others, and what the kernel lacks for each.
    pub missing_ram_drivers: Vec<(&'static str, String)>,
    /// The policies that a new cache can have, each with its driver.
    pub policies: Vec<(Policy, &'static str)>,
    /// The drivers of caches that the kernel has at the moment. It may load others by itself.
    pub cache_drivers: Vec<&'static str>,
    /// Set where the memory may not be enough for the RAM disks.
    pub shortage: Option<Shortage>,
}

/// Less memory than the RAM disks may still claim, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What the machine has for new claims (`MemAvailable`).
    pub available: u64,
    /// What the RAM disks have promised and do not hold yet.
    pub promised: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the RAM disks may still claim {} MiB, and the machine has {} MiB; remove or shrink some, or programs \
             are killed for memory",
            self.promised >> 20,
            self.available >> 20
        )
    }
}

/// Looks at the machine, and keeps what it found.
pub struct Watch {
    machine: Arc<Machine>,
    disks: Arc<Disks>,
    caches: Arc<Caches>,
    last: Mutex<Arc<Health>>,
}

impl Watch {
    /// A watch that has not looked yet.
    pub fn new(machine: Arc<Machine>, disks: Arc<Disks>, caches: Arc<Caches>) -> Watch {
        Watch { machine, disks, caches, last: Mutex::default() }
    }

    /// What the last look found. Each look is an object of its own.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.last.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks again. Logs a warning when the memory gets short, and a line when it is enough again.
    pub fn refresh_health(&self) {
        let root = &self.machine.root;
        let drivers = &self.disks.drivers;
        let (policies, cache_drivers) = self.caches.offers();
        let (ram_drivers, missing_ram_drivers) = drivers.offers(root);
        let mut now = Health {
            ram_driver: drivers.for_new(root).ok().map(|driver| driver.name()),
            ram_drivers,
            missing_ram_drivers,
            policies,
            cache_drivers,
            shortage: None,
        };
        let shortage = self.shortage();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Where it cannot be read, nothing is known to have changed.
        now.shortage = shortage.unwrap_or(last.shortage);
        match (&last.shortage, &now.shortage) {
            (None, Some(shortage)) => warn!("{shortage}"),
            (Some(_), None) => info!("the memory is enough for the RAM disks again"),
            _ => {}
        }
        *last = Arc::new(now);
    }

    /// Looks again and again, for ever.
    pub fn keep_health_fresh(&self) -> ! {
        loop {
            thread::sleep(INTERVAL);
            self.refresh_health();
        }
    }

    fn shortage(&self) -> Result<Option<Shortage>> {
        let disks = self.disks.list()?;
        let promised = disks.iter().map(RamDisk::still_claims).fold(0, u64::saturating_add);
        let available = machine::available_memory(&self.machine.root).cannot("ask for the free memory")?;
        Ok((available < promised).then_some(Shortage { available, promised }))
    }
}
