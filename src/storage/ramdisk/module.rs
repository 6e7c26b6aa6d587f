//! RAM disks of the `rapiddisk` module.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::driver::Driver;
use super::{Device, RamDisk};
use crate::kernel::block::{self, SECTOR};
use crate::kernel::rapiddisk::{self, Look};
use crate::kernel::{self, Root};
use crate::storage::{DiskName, Error, Result, retry_busy};

/// The module.
///
/// Readers are kept off a disk that is being destroyed. The module frees its own
/// structures at once, so that an ioctl on a descriptor opened before would read
/// freed memory; and it counts a reader as a user when it is told to free pages. The
/// lock on the list of such disks is held for microseconds; the destruction itself
/// runs outside it.
#[derive(Default)]
pub struct Module {
    closed: Mutex<Vec<DiskName>>,
}

impl Module {
    fn closed(&self) -> MutexGuard<'_, Vec<DiskName>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `destroy` while no reader looks at the disk.
    fn close_for<T>(&self, disk: DiskName, destroy: impl FnOnce() -> T) -> T {
        struct Reopen<'a>(&'a Module, DiskName);
        impl Drop for Reopen<'_> {
            fn drop(&mut self) {
                self.0.closed().retain(|&disk| disk != self.1);
            }
        }
        self.closed().push(disk);
        let _reopen = Reopen(self, disk);
        destroy()
    }

    /// What the module lists by itself. It does so under a lock that it holds
    /// while it frees a disk, so while one is being destroyed nothing is listed
    /// and each disk is looked at instead: a read does not wait for a change.
    fn listed(&self, root: &Root) -> Result<HashMap<DiskName, rapiddisk::Row>> {
        let closed = self.closed();
        if !closed.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = rapiddisk::devices(root)?;
        Ok(rows.into_iter().map(|row| (DiskName(row.number), row)).collect())
    }

    /// Asks the device itself; `None` if it is gone. One that is being destroyed right
    /// now counts as empty.
    fn look_at(&self, root: &Root, name: DiskName) -> Option<Look> {
        let closed = self.closed();
        if closed.contains(&name) {
            let read_only = block::is_disk_read_only(root, &name.to_string());
            // One that is being removed loses its size before its name.
            let size = block::size_of_disk(root, &name.to_string()).filter(|&size| size > 0)?;
            return Some(Look { size, used: 0, read_only });
        }
        rapiddisk::look_at(root, name.0).ok()
    }
}

impl Driver for Module {
    fn name(&self) -> &'static str {
        "rapiddisk"
    }

    fn is_loaded(&self, root: &Root) -> bool {
        rapiddisk::is_loaded(root)
    }

    fn devices(&self, root: &Root) -> Result<Vec<(DiskName, String)>> {
        let named = |name: String| Some((DiskName::parse(&name)?, name));
        Ok(block::disks(root)?.into_iter().filter_map(named).collect())
    }

    fn list(&self, root: &Root) -> Result<Vec<RamDisk>> {
        if !self.is_loaded(root) {
            return Ok(Vec::new());
        }
        let mut listed = self.listed(root)?;
        let mut disks = Vec::new();
        for (name, device) in self.devices(root)? {
            let look = match listed.remove(&name) {
                Some(row) => {
                    let read_only = block::is_disk_read_only(root, &device);
                    Some(Look { size: row.size, used: row.used, read_only })
                }
                None => self.look_at(root, name),
            };
            // One that went away meanwhile is not there.
            if let Some(Look { size, used, read_only }) = look {
                // The module's count of pages may run wild: it does not look whether
                // what is discarded was there.
                let usage = used.min(size);
                disks.push(RamDisk { name, size, usage, locked: read_only, driver: self.name() });
            }
        }
        Ok(disks)
    }

    fn most(&self, root: &Root) -> (u32, &'static str) {
        (
            rapiddisk::max_disks(root),
            "the rapiddisk module takes no more; remove one, or load it with a larger rd_max_nr",
        )
    }

    fn attach(&self, root: &Root, name: DiskName, bytes: u64, _limit: u64) -> Result<()> {
        rapiddisk::attach(root, name.0, bytes).map_err(Error::kernel(format!("cannot make {name}")))
    }

    fn detach(&self, root: &Root, disk: &Device<'_>, claim: File) -> kernel::Result<()> {
        self.close_for(disk.name, || {
            // The module knows openers that do not show themselves anywhere, and
            // heeds them when it frees pages, though not when it detaches.
            retry_busy(|| rapiddisk::free_pages(&claim))?;
            // The claim is held until the disk is gone: no mount or mapping slips in.
            rapiddisk::detach(root, disk.name.0)
        })
    }

    fn grow(&self, root: &Root, disk: &Device<'_>, bytes: u64, _limit: u64) -> Result<()> {
        rapiddisk::resize(root, disk.name.0, bytes)
            .map_err(Error::kernel(format!("cannot resize {}", disk.name)))
    }

    /// The module takes no size that ends at the highest block either.
    fn least_size(&self, _root: &Root, _disk: &Device<'_>, claim: &File) -> kernel::Result<u64> {
        let highest = rapiddisk::highest_sector(claim)?;
        Ok(if highest == 0 { 0 } else { highest.saturating_add(1).saturating_mul(SECTOR) })
    }

    fn shrink(&self, root: &Root, disk: &Device<'_>, _claim: &File, bytes: u64) -> kernel::Result<()> {
        rapiddisk::resize(root, disk.name.0, bytes)
    }

    fn free(&self, disk: &Device<'_>, claim: &File) -> kernel::Result<()> {
        self.close_for(disk.name, || retry_busy(|| rapiddisk::free_pages(claim)))
    }
}
