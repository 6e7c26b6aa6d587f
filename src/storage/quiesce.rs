//! The end of the machine: exports end, and what only memory holds is written to its disk.

use std::thread;

use super::caches::Caches;
use super::disks::Disks;
use super::error::{Error, Result};
use super::exports::Exports;
use super::names::{CacheName, Policy};
use super::nvme_names::Volume;

/// What has to end before the machine does.
pub struct Quiesce<'a> {
    /// The RAM disks.
    pub disks: &'a Disks,
    /// The caches.
    pub caches: &'a Caches,
    /// The exports.
    pub exports: &'a Exports,
}

impl Quiesce<'_> {
    /// Ends the exports made here and removes the writeback caches. Each has a thread of its own, so
    /// that a disk that does not answer keeps no other waiting. A cache that is in use stays, and has
    /// its data written so far. `tell` is called for each thing that was done (`Ok`) or not.
    pub fn run(&self, tell: impl Fn(Result<String>) + Sync) {
        let volumes = self.volumes(&tell);
        thread::scope(|scope| {
            let mut others = Vec::new();
            for volume in &volumes {
                let work = || self.end(volume, &tell);
                if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    others.push(work);
                }
            }
            // Where there is no memory for more threads, in turn: what is not written is lost.
            others.into_iter().for_each(|work| work());
        });
    }

    /// Every volume, by its name alone: a device that hangs may not tell more. Where one kind cannot be
    /// listed, the other is all the same: a cache may have data that its disk has not.
    fn volumes(&self, tell: &impl Fn(Result<String>)) -> Vec<Volume> {
        let mut found = Vec::new();
        match self.caches.names() {
            Ok(caches) => found.extend(caches.into_iter().map(Volume::Cache)),
            Err(error) => tell(Err(error)),
        }
        match self.disks.devices() {
            Ok(disks) => found.extend(disks.into_iter().map(|(name, ..)| Volume::Disk(name))),
            Err(error) => tell(Err(error)),
        }
        found
    }

    fn end(&self, volume: &Volume, tell: &(impl Fn(Result<String>) + Sync)) {
        let writeback = match volume {
            Volume::Cache(cache) if cache.policy() == Policy::Writeback => Some(cache),
            _ => None,
        };
        // The data is written first, since it matters most: ending an export may wait for ever, for a
        // device or for another export's end. Whether it worked is told by the removal below.
        if let Volume::Cache(cache) = volume {
            // Nobody else will, and what it holds would be lost.
            let _ = self.caches.resume(cache);
        }
        if let Some(cache) = writeback {
            let _ = self.caches.write_back(cache);
        }
        match self.exports.remove(volume, None) {
            Ok(()) => tell(Ok(format!("{volume} is not exported any more"))),
            // It was never exported, or this kernel has no NVMe targets.
            Err(Error::NotFound(_) | Error::Unavailable(_)) => {}
            Err(error) => tell(Err(error)),
        }
        if let Some(cache) = writeback {
            tell(self.remove_cache(cache));
        }
    }

    fn remove_cache(&self, cache: &CacheName) -> Result<String> {
        match self.caches.remove(cache) {
            Ok(left) => {
                Ok(left.told_after(format_args!("{cache} is removed, all of its data is on its source")))
            }
            Err(Error::Conflict(in_use)) => {
                self.caches.write_back(cache)?;
                Err(Error::Conflict(format!("{in_use}; only what was written so far is on its source")))
            }
            Err(error) => Err(error),
        }
    }
}
