//! RAM disks of the `rapiddisk` module.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::kernel::block::{self, SECTOR};
use crate::kernel::links::{self, Entry};
use crate::kernel::rapiddisk::{self, Look};
use crate::kernel::{self, Root, unless_gone};
use crate::storage::disks::driver::{Claims, Device, Driver, New, RamDisk, Shrunk, not_loaded, refused};
use crate::storage::error::{Cannot, Error, Left, Result};
use crate::storage::names::DiskName;
use crate::storage::wait::retry_busy;

/// The module.
///
/// No list looks at a disk that is being destroyed. The module frees its own structures at once, so
/// that an ioctl on a descriptor that was opened before would read freed memory. It also counts a
/// reader as a user when it is told to free pages. The lock on the list of such disks is held for
/// microseconds only: the destruction itself runs outside it.
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

    /// What the module lists by itself. The module holds a lock of its own while it lists, and while
    /// it frees a disk. So while a disk is being destroyed this list is not asked for, and each disk
    /// is looked at instead: a read does not wait for a change. `None` if the module is not loaded. Says also
    /// whether these are all.
    fn listed(&self, root: &Root) -> Result<Option<(HashMap<DiskName, rapiddisk::Row>, bool)>> {
        let closed = self.closed();
        if !closed.is_empty() {
            return Ok(Some((HashMap::new(), false)));
        }
        let listed = rapiddisk::devices(root).cannot("list the RAM disks")?;
        let by_name = |row: rapiddisk::Row| (DiskName(row.number), row);
        Ok(listed.map(|(rows, is_whole)| (rows.into_iter().map(by_name).collect(), is_whole)))
    }

    /// Asks the device itself; `None` if it is gone. A disk that is being destroyed right now counts
    /// as empty.
    fn look_at(&self, root: &Root, name: DiskName) -> Result<Option<Look>> {
        let what = "list the RAM disks";
        let closed = self.closed();
        if closed.contains(&name) {
            let read_only = block::is_disk_read_only(root, &name.to_string()).cannot(what)?;
            // A disk that is being removed loses its size before its name.
            let size = block::size_of_disk(root, &name.to_string()).cannot(what)?.filter(|&size| size > 0);
            return Ok(size.map(|size| Look { size, used: 0, read_only }));
        }
        unless_gone(rapiddisk::look_at(root, name.0)).cannot(what)
    }
}

fn is_loaded(root: &Root) -> Result<bool> {
    rapiddisk::is_loaded(root).cannot("look for the module rapiddisk")
}

impl Driver for Module {
    fn name(&self) -> &'static str {
        "rapiddisk"
    }

    fn lacks(&self, root: &Root) -> Result<Option<String>> {
        Ok((!is_loaded(root)?).then(|| not_loaded("rapiddisk", "")))
    }

    fn find(&self, root: &Root, name: DiskName) -> Result<Option<String>> {
        let dev = block::dev_of(root, &name.to_string()).cannot(format_args!("look for {name}"))?;
        Ok(dev.map(|_| name.to_string()))
    }

    fn devices(&self, root: &Root) -> Result<Vec<(DiskName, String)>> {
        // Most hosts without the module have many other devices.
        if !is_loaded(root)? {
            return Ok(Vec::new());
        }
        named_as_disks(root)
    }

    fn list(&self, root: &Root) -> Result<Vec<RamDisk>> {
        let Some((mut listed, is_whole)) = self.listed(root)? else { return Ok(Vec::new()) };
        let names: Vec<_> = match is_whole {
            true => listed.keys().copied().collect(),
            false => named_as_disks(root)?.into_iter().map(|(name, _)| name).collect(),
        };
        let mut disks = Vec::new();
        for name in names {
            let look = match listed.remove(&name) {
                Some(row) => {
                    let read_only = block::is_disk_read_only(root, &name.to_string());
                    let read_only = read_only.cannot("list the RAM disks")?;
                    Some(Look { size: row.size, used: row.used, read_only })
                }
                None => self.look_at(root, name)?,
            };
            // A disk that went away in the meantime is not listed.
            if let Some(Look { size, used, read_only }) = look {
                // The module's count of pages can be too high: it does not look whether a
                // discarded page was there.
                let usage = used.min(size);
                let (locked, driver) = (read_only, self.name());
                disks.push(RamDisk {
                    name,
                    size,
                    usage,
                    is_measured: true,
                    locked,
                    driver,
                    compressed: None,
                    fault: None,
                });
            }
        }
        Ok(disks)
    }

    fn name_of(&self, _root: &Root, device: &str) -> Result<Option<DiskName>> {
        Ok(DiskName::parse(device))
    }

    fn claims(&self, root: &Root) -> Result<Claims> {
        let mut claims = Claims::default();
        for (name, device) in self.devices(root)? {
            let size =
                block::size_of_disk(root, &device).cannot(format_args!("ask for the size of {name}"))?;
            claims.bytes = claims.bytes.saturating_add(size.unwrap_or(0));
            claims.names.push(name);
        }
        Ok(claims)
    }

    fn most(&self, root: &Root) -> Result<(u32, &'static str)> {
        Ok((
            rapiddisk::max_disks(root).cannot("ask how many disks the module takes")?,
            "the rapiddisk module takes no more; remove one, or load it with a larger rd_max_nr",
        ))
    }

    /// Makes the node that somebody removed.
    fn repair(&self, root: &Root, name: DiskName) -> Result<()> {
        let device = name.to_string();
        let dev = block::dev_of(root, &device).cannot(format_args!("look at {name}"))?;
        match dev {
            Some(dev) if self.is_free(root, name)? => {
                block::make_node(root, &device, dev).cannot(format_args!("make /dev/{name}"))
            }
            _ => Ok(()),
        }
    }

    /// The kernel makes no node where anything is.
    fn is_free(&self, root: &Root, name: DiskName) -> Result<bool> {
        let node = block::node(root, &name.to_string());
        let entry = links::look(&node).cannot(format_args!("look at {}", node.display()))?;
        Ok(entry == Entry::Missing)
    }

    fn attach(&self, root: &Root, name: DiskName, new: &New, _limit: u64) -> Result<()> {
        rapiddisk::attach(root, name.0, new.bytes).cannot(format_args!("make {name}"))
    }

    fn detach(&self, root: &Root, disk: &Device<'_>, claim: File) -> Result<Left> {
        let refused = |error| refused(disk.name, "remove", error);
        self.close_for(disk.name, || {
            // The module counts all openers. It refuses to free pages while there is another one,
            // but it does not refuse to detach.
            retry_busy(|| rapiddisk::free_pages(&claim)).map_err(refused)?;
            // The claim is held until the disk is gone: no mount or mapping slips in.
            rapiddisk::detach(root, disk.name.0).map_err(|error| {
                Error::NotUndone(Box::new(refused(error)), vec![format!("emptying {}", disk.name)])
            })
        })?;
        let mut left = Left::default();
        let removed = block::remove_node(root, &disk.device, disk.dev);
        left.note(removed.cannot(format_args!("remove the node of {}", disk.name)));
        Ok(left)
    }

    fn grow(&self, root: &Root, disk: &Device<'_>, bytes: u64, _limit: u64) -> Result<Left> {
        let resized = rapiddisk::resize(root, disk.name.0, bytes);
        resized.map(|()| Left::default()).cannot(format_args!("resize {}", disk.name))
    }

    /// The module refuses a size that ends right behind the highest block, too.
    fn least_size(&self, _root: &Root, _disk: &Device<'_>, claim: &File) -> kernel::Result<u64> {
        let highest = rapiddisk::highest_sector(claim)?;
        Ok(if highest == 0 { 0 } else { highest.saturating_add(1).saturating_mul(SECTOR) })
    }

    fn shrink(&self, root: &Root, disk: &Device<'_>, _claim: File, bytes: u64) -> Result<Shrunk> {
        match rapiddisk::resize(root, disk.name.0, bytes) {
            Err(error) if error.is(Errno::INVAL) => Ok(Shrunk::DataAbove),
            resized => resized
                .map(|()| Shrunk::Done(Left::default()))
                .map_err(|error| refused(disk.name, "resize", error)),
        }
    }

    fn free(&self, _root: &Root, disk: &Device<'_>, claim: File) -> Result<Left> {
        let freed = self.close_for(disk.name, || retry_busy(|| rapiddisk::free_pages(&claim)));
        freed.map(|()| Left::default()).map_err(|error| refused(disk.name, "free the memory of", error))
    }
}

/// The whole disks that are named as those of the module.
fn named_as_disks(root: &Root) -> Result<Vec<(DiskName, String)>> {
    let named = |name: String| Some((DiskName::parse(&name)?, name));
    Ok(block::disks(root).cannot("list the RAM disks")?.into_iter().filter_map(named).collect())
}
