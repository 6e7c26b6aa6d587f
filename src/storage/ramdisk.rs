//! RAM disks, served by the `rapiddisk` module.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::locks::Key;
use super::undo::Undo;
use super::usage::{self, User};
use super::{Cache, CacheName, DiskName, Error, Result, Size, Storage, retry_busy, wait_until};
use crate::kernel::block::{self, Access, Dev, SECTOR};
use crate::kernel::nvmet::build::Item;
use crate::kernel::rapiddisk::Look;
use crate::kernel::{self, Root, rapiddisk};

/// How long the kernel may take to make or remove a device node.
const NODE_PATIENCE: Duration = Duration::from_secs(2);

/// A RAM disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamDisk {
    /// Its name.
    pub name: DiskName,
    /// Its size in bytes.
    pub size: u64,
    /// Memory it holds, in bytes.
    pub usage: u64,
    /// Whether it is read-only.
    pub locked: bool,
}

/// The RAM disks and the caches, in natural order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volumes {
    /// The RAM disks.
    pub disks: Vec<RamDisk>,
    /// The caches.
    pub caches: Vec<Cache>,
}

/// Keeps readers off a disk that is being destroyed. The module frees its own
/// structures at once, so that an ioctl on a descriptor opened before would read
/// freed memory; and it counts a reader as a user when it is told to free pages.
/// The lock is held for microseconds; the destruction itself runs outside it.
#[derive(Default)]
pub struct Gate(Mutex<Vec<DiskName>>);

impl Gate {
    fn closed(&self) -> MutexGuard<'_, Vec<DiskName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `destroy` while no reader looks at the disk.
    fn close_for<T>(&self, disk: DiskName, destroy: impl FnOnce() -> T) -> T {
        struct Reopen<'a>(&'a Gate, DiskName);
        impl Drop for Reopen<'_> {
            fn drop(&mut self) {
                self.0.closed().retain(|&disk| disk != self.1);
            }
        }
        self.closed().push(disk);
        let _reopen = Reopen(self, disk);
        destroy()
    }
}

impl Storage {
    /// All RAM disks and caches.
    pub fn volumes(&self) -> Result<Volumes> {
        Ok(Volumes { disks: self.disks()?, caches: self.caches()? })
    }

    fn disks(&self) -> Result<Vec<RamDisk>> {
        require_module(&self.root)?;
        let mut listed = self.listed()?;
        let mut disks = Vec::new();
        for name in numbers(&self.root)? {
            let look = match listed.remove(&name) {
                Some(row) => {
                    let read_only = block::is_disk_read_only(&self.root, &name.to_string());
                    Some(Look { size: row.size, used: row.used, read_only })
                }
                None => self.look_at(name),
            };
            // One that went away meanwhile is not there.
            if let Some(Look { size, used, read_only }) = look {
                // The module's count of pages may run wild: it does not look whether
                // what is discarded was there.
                disks.push(RamDisk { name, size, usage: used.min(size), locked: read_only });
            }
        }
        Ok(disks)
    }

    /// What the module lists by itself. It does so under a lock that it holds
    /// while it frees a disk, so while one is being destroyed nothing is listed
    /// and each disk is looked at instead: a read does not wait for a change.
    fn listed(&self) -> Result<HashMap<DiskName, rapiddisk::Row>> {
        let closed = self.gate.closed();
        if !closed.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = rapiddisk::devices(&self.root)?;
        Ok(rows.into_iter().map(|row| (DiskName(row.number), row)).collect())
    }

    /// Asks the device itself; `None` if it is gone. One that is being destroyed right
    /// now counts as empty.
    fn look_at(&self, name: DiskName) -> Option<Look> {
        let closed = self.gate.closed();
        if closed.contains(&name) {
            let read_only = block::is_disk_read_only(&self.root, &name.to_string());
            // One that is being removed loses its size before its name.
            let size = self.size_of(name).filter(|&size| size > 0)?;
            return Some(Look { size, used: 0, read_only });
        }
        rapiddisk::look_at(&self.root, name.0).ok()
    }

    /// Makes a RAM disk under the lowest free number.
    pub fn create_disk(&self, size: Size) -> Result<DiskName> {
        require_module(&self.root)?;
        let _memory = self.hold(vec![Key::Memory])?;
        let taken = numbers(&self.root)?;
        self.check_memory(size.bytes(), 0)?;
        let max = rapiddisk::max_disks(&self.root);
        if taken.len() as u64 >= u64::from(max) {
            return Err(Error::Conflict(format!(
                "there are {} RAM disks and the rapiddisk module takes no more; remove one, or load it with a \
                 larger rd_max_nr",
                taken.len()
            )));
        }
        let free = (0..).map(DiskName).filter(|name| taken.binary_search(name).is_err());
        // A disk that is just being removed still has its number.
        let held = |name: DiskName| self.locks.try_hold(vec![device_key(name)]).map(|held| (name, held));
        let (name, _held) = free.take_while(|name| name.0 < max).find_map(held).ok_or_else(|| {
            Error::Conflict("all numbers are taken by RAM disks that are being changed; try again".into())
        })?;
        Undo::run(|undo| {
            rapiddisk::attach(&self.root, name.0, size.bytes())
                .map_err(Error::kernel(format!("cannot make {name}")))?;
            undo.push(format!("making {name}"), || {
                self.gate
                    .close_for(name, || rapiddisk::detach(&self.root, name.0))
                    .map_err(Error::kernel(format!("cannot remove {name}")))
            });
            let ready =
                || self.size_of(name) == Some(size.bytes()) && open(&self.root, name, Access::Read).is_ok();
            if wait_until(NODE_PATIENCE, ready) {
                Ok(name)
            } else {
                Err(Error::Unavailable(format!(
                    "the kernel made {name} but no usable /dev/{name}; is devtmpfs mounted on /dev?"
                )))
            }
        })
    }

    /// Gives a RAM disk a new size.
    pub fn resize_disk(&self, name: DiskName, size: Size) -> Result<()> {
        require_module(&self.root)?;
        let _held = self.hold(vec![Key::Memory, device_key(name)])?;
        let (dev, old) = self.existing(name)?;
        let holders = block::holders(&self.root, dev)?;
        let mut holders = holders.iter().map(|holder| usage::shown_name(&self.root, holder));
        if let Some(cache) = holders.find(|holder| CacheName::parse(holder).is_some()) {
            return Err(usage::in_use(name, &User::Holder(cache)));
        }
        let new = size.bytes();
        self.check_memory(new, old)?;
        let resize = || rapiddisk::resize(&self.root, name.0, new);
        let failed = Error::kernel(format!("cannot resize {name}"));
        if new > old {
            resize().map_err(failed)?;
        } else if new < old {
            // Above the new end is nothing, now and until it is done.
            let claim = usage::claim_unused(&self.root, dev, &name.to_string(), Access::Claim)?;
            sync(&claim)?;
            let highest = rapiddisk::highest_sector(&claim)?.saturating_mul(SECTOR);
            let too_small = || {
                Error::Conflict(format!(
                    "{name} has data up to byte {highest}; it can shrink to more than that, or be flushed first"
                ))
            };
            if new <= highest {
                return Err(too_small());
            }
            // Somebody may have written in this moment: the module looks for itself.
            resize().map_err(|error| if error.is(Errno::INVAL) { too_small() } else { failed(error) })?;
        }
        self.tell_initiators(name, dev)
    }

    /// A namespace learns of its device's new size only when it is told.
    fn tell_initiators(&self, name: DiskName, dev: Dev) -> Result<()> {
        for user in usage::exports(&self.root, &[dev])? {
            let User::Namespace { nqn, id } = user else { continue };
            let namespace = Item::namespace(&nqn, id);
            // Kernels before 5.8 cannot be told.
            if !namespace.has(&self.root, "revalidate_size") {
                continue;
            }
            match namespace.set(&self.root, "revalidate_size", "1") {
                // A namespace that is not enabled reads the size when it is.
                Err(error) if !error.is(Errno::INVAL) => {
                    let what = format!("{name} has its new size, but namespace {id} of {nqn} was not told");
                    return Err(Error::Kernel(what, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Frees the memory of a RAM disk: its contents are gone.
    pub fn flush_disk(&self, name: DiskName) -> Result<()> {
        require_module(&self.root)?;
        let _held = self.hold(vec![device_key(name)])?;
        let (dev, _) = self.existing(name)?;
        if block::is_read_only(&self.root, dev) {
            return Err(Error::Conflict(format!("{name} is locked; unlock it first")));
        }
        let claim = usage::claim_unused(&self.root, dev, &name.to_string(), Access::Claim)?;
        // What a program wrote and did not sync would come back by itself.
        sync(&claim)?;
        self.gate
            .close_for(name, || retry_busy(|| rapiddisk::free_pages(&claim)))
            .map_err(|error| destruction_refused(name, error))
    }

    /// Removes a RAM disk.
    pub fn remove_disk(&self, name: DiskName) -> Result<()> {
        require_module(&self.root)?;
        let _held = self.hold(vec![device_key(name)])?;
        let (dev, _) = self.existing(name)?;
        // The claim is held until the disk is gone: no mount or mapping slips in.
        let claim = usage::claim_unused(&self.root, dev, &name.to_string(), Access::Claim)?;
        self.gate
            .close_for(name, || {
                // The module knows openers that do not show themselves anywhere, and
                // heeds them when it frees pages, though not when it detaches.
                retry_busy(|| rapiddisk::free_pages(&claim))?;
                rapiddisk::detach(&self.root, name.0)
            })
            .map_err(|error| destruction_refused(name, error))?;
        // The claim is held until the disk is gone: no mount or mapping slips in.
        drop(claim);
        wait_until(NODE_PATIENCE, || block::dev_of(&self.root, &name.to_string()).is_none());
        Ok(())
    }

    /// Makes a RAM disk read-only (locked) or read-write.
    pub fn lock_disk(&self, name: DiskName, lock: bool) -> Result<()> {
        require_module(&self.root)?;
        let _held = self.hold(vec![device_key(name)])?;
        let (dev, _) = self.existing(name)?;
        if lock {
            let may_write = |user: &User| !matches!(user, User::Mount { read_only: true, .. });
            let users = usage::settled_users(&self.root, dev)?;
            if let Some(user) = users.iter().find(|user| may_write(user)) {
                return Err(usage::in_use(name, user));
            }
            if users.is_empty() {
                // A mount that cannot be seen from here shows in the claim alone.
                usage::claim_unused(&self.root, dev, &name.to_string(), Access::Claim)?;
            }
        }
        open(&self.root, name, Access::Read)
            .and_then(|disk| block::set_read_only(&disk, lock))
            .map_err(Error::kernel(format!("cannot change the lock of {name}")))
    }

    /// The device number and the size in bytes of a disk that must exist.
    pub(super) fn existing(&self, name: DiskName) -> Result<(Dev, u64)> {
        block::dev_of(&self.root, &name.to_string())
            .zip(self.size_of(name))
            .ok_or_else(|| Error::NotFound(format!("there is no RAM disk {name}")))
    }

    fn size_of(&self, name: DiskName) -> Option<u64> {
        block::size_of_disk(&self.root, &name.to_string())
    }

    /// Whether `wanted` bytes more, less `given_up`, stay within the limit.
    fn check_memory(&self, wanted: u64, given_up: u64) -> Result<()> {
        let limit = self.memory_limit();
        let sizes = numbers(&self.root)?.into_iter().filter_map(|name| self.size_of(name));
        let others = sizes.fold(0, u64::saturating_add).saturating_sub(given_up);
        // Giving memory back is always allowed.
        if wanted <= given_up || others.saturating_add(wanted) <= limit {
            return Ok(());
        }
        Err(Error::NoMemory(format!(
            "{} MiB do not fit: the RAM disks may take {} MiB together, the others have {} MiB; ask for less, remove \
             one, or raise --memory-limit",
            wanted >> 20,
            limit >> 20,
            others >> 20
        )))
    }
}

/// The key of a RAM disk.
pub(super) fn device_key(name: DiskName) -> Key {
    Key::Device(name.to_string())
}

pub(super) fn require_module(root: &Root) -> Result<()> {
    if rapiddisk::is_loaded(root) {
        return Ok(());
    }
    Err(Error::Unavailable(
        "the kernel module rapiddisk is not loaded; load it with: modprobe rapiddisk".into(),
    ))
}

/// The RAM disks there are, in order.
fn numbers(root: &Root) -> Result<Vec<DiskName>> {
    let mut names: Vec<_> = block::disks(root)?.iter().filter_map(|name| DiskName::parse(name)).collect();
    names.sort_unstable();
    Ok(names)
}

fn open(root: &Root, name: DiskName, access: Access) -> kernel::Result<File> {
    block::open(root, &name.to_string(), access)
}

/// What is in the page cache goes to the disk.
fn sync(disk: &File) -> Result<()> {
    disk.sync_all().map_err(|error| Error::from(kernel::Error::new("fsync of the disk", &error)))
}

fn destruction_refused(name: DiskName, error: kernel::Error) -> Error {
    if error.is(Errno::BUSY) {
        return Error::Conflict(format!(
            "{name} is open in a program that does not show itself; end that first (until {name} is flushed, its \
             usage is not known)"
        ));
    }
    Error::Kernel(format!("cannot free the memory of {name}"), error)
}
