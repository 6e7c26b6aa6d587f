//! The end of the machine: exports end, and what only memory holds gets to its disk.

use std::thread;

use super::cache::{report, writeback};
use super::{CacheName, Error, Policy, Result, Storage, Volume};

impl Storage {
    /// Ends the exports made here and removes the writeback caches, each by itself, so
    /// that a disk that does not answer keeps no other waiting. A cache that is in use
    /// stays, and has its data written so far. Tells each thing done (`Ok`) or not.
    pub fn quiesce(&self, tell: impl Fn(Result<String>) + Sync) {
        let names = self.volume_names().unwrap_or_else(|error| {
            tell(Err(error));
            Vec::new()
        });
        thread::scope(|scope| {
            for volume in &names {
                scope.spawn(|| self.quiesce_volume(volume, &tell));
            }
        });
    }

    /// What the kernel says of each writeback cache: it changes while their data gets to
    /// the sources. Asks no device. Empty where it cannot be had.
    pub fn writeback_state(&self) -> Vec<(String, String)> {
        let Ok(control) = self.control() else { return Vec::new() };
        let caches = control.list().unwrap_or_default();
        let caches = caches.iter().filter_map(|mapped| CacheName::parse(&mapped.name));
        let written_back = caches.filter(|cache| cache.policy() == Policy::Writeback);
        written_back.filter_map(|cache| Some((cache.to_string(), report(&control, &cache).ok()?.1))).collect()
    }

    fn quiesce_volume(&self, volume: &Volume, tell: &(impl Fn(Result<String>) + Sync)) {
        let writeback = match volume {
            Volume::Cache(cache) if cache.policy() == Policy::Writeback => Some(cache),
            _ => None,
        };
        // First what matters most: ending an export may wait for a device for ever, and
        // for the end of another export. The removal tells whether it worked.
        if let (Some(cache), Ok(control)) = (writeback, self.control()) {
            let _ = writeback::write_back(&control, cache);
        }
        match self.remove_target(volume, None) {
            Ok(()) => tell(Ok(format!("{volume} is not exported any more"))),
            // Never exported, or no NVMe targets in this kernel.
            Err(Error::NotFound(_) | Error::Unavailable(_)) => {}
            Err(error) => tell(Err(error)),
        }
        if let Some(cache) = writeback {
            tell(self.quiesce_cache(cache));
        }
    }

    /// By the names alone: a device that hangs may not tell more.
    fn volume_names(&self) -> Result<Vec<Volume>> {
        let disks = self.devices()?.into_iter().map(|(name, ..)| Volume::Disk(name));
        let mapped = match self.control() {
            Ok(control) => control.list()?,
            Err(Error::Unavailable(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        let caches = mapped.iter().filter_map(|mapped| CacheName::parse(&mapped.name)).map(Volume::Cache);
        Ok(disks.chain(caches).collect())
    }

    fn quiesce_cache(&self, cache: &CacheName) -> Result<String> {
        match self.remove_cache(cache) {
            Ok(()) => Ok(format!("{cache} is removed, all of its data is on its source")),
            Err(Error::Conflict(in_use)) => {
                writeback::write_back(&self.control()?, cache)?;
                Err(Error::Conflict(format!("{in_use}; only what was written so far is on its source")))
            }
            Err(error) => Err(error),
        }
    }
}
