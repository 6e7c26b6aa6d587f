//! What the kernel offers, and whether its memory lasts: looked at every few
//! moments, so that a status costs no call into the kernel.

use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use log::{info, warn};

use super::{Driver, Policy, Result, Storage};
use crate::kernel::dm::Control;
use crate::kernel::proc;

/// How old the last look is at most.
const INTERVAL: Duration = Duration::from_secs(2);

/// The last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// What makes new RAM disks.
    pub ram_driver: Option<&'static str>,
    /// What could, in this kernel as it is now.
    pub ram_drivers: Vec<&'static str>,
    /// The policies that a new cache can have, each with what makes it.
    pub policies: Vec<(Policy, Driver)>,
    /// What makes caches and is loaded; others the kernel may load by itself.
    pub cache_drivers: Vec<Driver>,
    /// Memory that the RAM disks may run out of.
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

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the RAM disks may still claim {} MiB, and the machine has {} MiB; remove or shrink some, or programs \
             are killed for memory",
            self.promised >> 20,
            self.available >> 20
        )
    }
}

impl Storage {
    /// The last look.
    pub fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks, and logs a warning when memory gets short, and when that ends.
    pub fn look(&self) {
        let loaded = |driver: &&dyn super::ramdisk::Driver| driver.is_loaded(&self.root);
        let control = Control::open(&self.root).ok();
        let mut now = Health {
            ram_driver: self.drivers.for_new(&self.root).ok().map(|driver| driver.name()),
            ram_drivers: self.drivers.all().into_iter().filter(loaded).map(|driver| driver.name()).collect(),
            policies: control.as_ref().map(|it| self.cache_driver.policies(it)).unwrap_or_default(),
            cache_drivers: control.as_ref().map(Driver::loaded).unwrap_or_default(),
            shortage: None,
        };
        let shortage = self.shortage();
        let mut last = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be read is no reason to warn, nor one to stop.
        now.shortage = shortage.unwrap_or(last.shortage);
        match (&last.shortage, &now.shortage) {
            (None, Some(shortage)) => warn!("{shortage}"),
            (Some(_), None) => info!("the memory is enough for the RAM disks again"),
            _ => {}
        }
        *last = now;
    }

    /// Looks again and again, for ever.
    pub fn watch(&self) -> ! {
        loop {
            thread::sleep(INTERVAL);
            self.look();
        }
    }

    fn shortage(&self) -> Result<Option<Shortage>> {
        let disks = self.disks()?;
        let promised = disks.iter().map(|disk| disk.size - disk.usage).fold(0, u64::saturating_add);
        let available = proc::available_memory(&self.root)?;
        Ok((available < promised).then_some(Shortage { available, promised }))
    }
}
