//! RAM disks, whatever serves them.

mod driver;
mod loops;
mod module;

use std::fs::File;
use std::time::Duration;

use rustix::io::Errno;

use super::locks::Key;
use super::undo::Undo;
use super::usage::{self, User};
use super::{Cache, CacheName, DiskName, Error, Result, Size, Storage, wait_until};
use crate::kernel::block::{self, Access, Dev};
use crate::kernel::nvmet::build::Item;
use crate::kernel::{self, Root, pool};
pub(super) use driver::Driver;
use loops::Loops;
use module::Module;

/// How long the kernel may take to make or remove a device node.
const NODE_PATIENCE: Duration = Duration::from_secs(2);

/// What may serve RAM disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamDriver {
    /// The `rapiddisk` module.
    Rapiddisk,
    /// Loop devices over a tmpfs, which every kernel has.
    Loop,
}

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
    /// What serves it.
    pub driver: &'static str,
}

/// The RAM disks and the caches, in natural order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volumes {
    /// The RAM disks.
    pub disks: Vec<RamDisk>,
    /// The caches.
    pub caches: Vec<Cache>,
}

/// A RAM disk as the kernel has it.
pub(super) struct Device<'a> {
    pub name: DiskName,
    /// The kernel's name: `rdN`, or that of a loop device.
    pub device: String,
    pub dev: Dev,
    /// In bytes.
    pub size: u64,
    pub driver: &'a dyn Driver,
}

/// The drivers, and which of them makes new disks, if that was said.
pub(super) struct Drivers {
    module: Module,
    loops: Loops,
    chosen: Option<RamDriver>,
}

impl Drivers {
    pub fn new(chosen: Option<RamDriver>) -> Drivers {
        Drivers { module: Module::default(), loops: Loops, chosen }
    }

    /// All of them, the preferred one first.
    pub fn all(&self) -> [&dyn Driver; 2] {
        [&self.module, &self.loops]
    }

    /// The one that makes new disks.
    pub fn for_new(&self, root: &Root) -> Result<&dyn Driver> {
        let [module, loops] = self.all();
        let allowed = match self.chosen {
            None => vec![module, loops],
            Some(RamDriver::Rapiddisk) => vec![module],
            Some(RamDriver::Loop) => vec![loops],
        };
        let missing = || {
            let names: Vec<_> = allowed.iter().map(|driver| driver.name()).collect();
            let (is_or_neither, load) = match names.len() {
                1 => (format!("the kernel module {} is not loaded", names[0]), names[0].to_owned()),
                _ => (
                    format!("neither of the kernel modules {} is loaded", names.join(" and ")),
                    names.join(" (or: modprobe ") + ")",
                ),
            };
            Error::Unavailable(format!("{is_or_neither}; load it with: modprobe {load}"))
        };
        allowed.iter().find(|driver| driver.is_loaded(root)).copied().ok_or_else(missing)
    }
}

impl Storage {
    /// All RAM disks and caches.
    pub fn volumes(&self) -> Result<Volumes> {
        Ok(Volumes { disks: self.disks()?, caches: self.caches()? })
    }

    pub(super) fn disks(&self) -> Result<Vec<RamDisk>> {
        let mut disks = Vec::new();
        for driver in self.drivers.all() {
            disks.extend(driver.list(&self.root)?);
        }
        if disks.is_empty() {
            self.drivers.for_new(&self.root)?;
        }
        disks.sort_by_key(|disk| disk.name);
        Ok(disks)
    }

    /// Makes a RAM disk under the lowest free number.
    pub fn create_disk(&self, size: Size) -> Result<DiskName> {
        let driver = self.drivers.for_new(&self.root)?;
        let _memory = self.hold(vec![Key::Memory])?;
        let there = self.devices()?;
        self.check_memory(size.bytes(), 0)?;
        let (most, why) = driver.most(&self.root);
        let served = there.iter().filter(|(.., by)| by.name() == driver.name()).count();
        if served as u64 >= u64::from(most) {
            return Err(Error::Conflict(format!("there are {served} RAM disks and {why}")));
        }
        let mut taken: Vec<_> = there.into_iter().map(|(name, ..)| name).collect();
        for driver in self.drivers.all() {
            taken.extend(driver.leftovers(&self.root)?);
        }
        // A disk that is just being removed still has its number.
        let held = |name: DiskName| self.locks.try_hold(vec![device_key(name)]).map(|held| (name, held));
        let mut free = (0..most).map(DiskName).filter(|name| !taken.contains(name));
        let (name, _held) = free.find_map(held).ok_or_else(|| {
            Error::Conflict("all numbers are taken by RAM disks that are being changed; try again".into())
        })?;
        Undo::run(|undo| {
            driver.attach(&self.root, name, size.bytes(), self.memory_limit())?;
            undo.push(format!("making {name}"), move || {
                let disk = self.existing(name)?;
                let claim = block::open(&self.root, &disk.device, Access::Claim)?;
                let failed = Error::kernel(format!("cannot remove {name}"));
                disk.driver.detach(&self.root, &disk, claim).map_err(failed)
            });
            let is_ready = || {
                let found = self.existing(name).ok().filter(|disk| disk.size == size.bytes());
                found.is_some_and(|disk| block::open(&self.root, &disk.device, Access::Read).is_ok())
            };
            if wait_until(NODE_PATIENCE, is_ready) {
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
        let _held = self.hold(vec![Key::Memory, device_key(name)])?;
        let disk = self.existing(name)?;
        let holders = block::holders(&self.root, disk.dev)?;
        let mut holders = holders.iter().map(|holder| usage::shown_name(&self.root, holder));
        if let Some(cache) = holders.find(|holder| CacheName::parse(holder).is_some()) {
            return Err(usage::in_use(name, &User::Holder(cache)));
        }
        let new = size.bytes();
        self.check_memory(new, disk.size)?;
        if new > disk.size {
            disk.driver.grow(&self.root, &disk, new, self.memory_limit())?;
        } else if new < disk.size {
            // Above the new end is nothing, now and until it is done.
            let claim = self.claim_unused(&disk, Access::Claim)?;
            sync(&claim)?;
            let least = disk.driver.least_size(&self.root, &disk, &claim)?;
            let too_small = || {
                Error::Conflict(format!(
                    "{name} has data up to byte {least}; it can shrink to no less than that, or be flushed first"
                ))
            };
            if new < least {
                return Err(too_small());
            }
            // Somebody may have written in this moment: the driver looks for itself.
            disk.driver.shrink(&self.root, &disk, &claim, new).map_err(|error| {
                match error.is(Errno::INVAL) {
                    true => too_small(),
                    false => Error::Kernel(format!("cannot resize {name}"), error),
                }
            })?;
        }
        self.tell_initiators(name, disk.dev)
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
        let _held = self.hold(vec![device_key(name)])?;
        let disk = self.existing(name)?;
        if block::is_read_only(&self.root, disk.dev) {
            return Err(Error::Conflict(format!("{name} is locked; unlock it first")));
        }
        let claim = self.claim_unused(&disk, Access::ClaimWrite)?;
        // What a program wrote and did not sync would come back by itself.
        sync(&claim)?;
        disk.driver.free(&disk, &claim).map_err(|error| destruction_refused(name, error))
    }

    /// Removes a RAM disk.
    pub fn remove_disk(&self, name: DiskName) -> Result<()> {
        let _held = self.hold(vec![device_key(name)])?;
        let disk = self.existing(name)?;
        let claim = self.claim_unused(&disk, Access::Claim)?;
        disk.driver.detach(&self.root, &disk, claim).map_err(|error| destruction_refused(name, error))?;
        wait_until(NODE_PATIENCE, || self.existing(name).is_err());
        Ok(())
    }

    /// Makes a RAM disk read-only (locked) or read-write.
    pub fn lock_disk(&self, name: DiskName, lock: bool) -> Result<()> {
        let _held = self.hold(vec![device_key(name)])?;
        let disk = self.existing(name)?;
        // Held until it is done: nobody mounts it for writing in between.
        let mut _claim = None;
        if lock {
            let may_write = |user: &User| !matches!(user, User::Mount { read_only: true, .. });
            let users = usage::settled_users(&self.root, disk.dev)?;
            if let Some(user) = users.iter().find(|user| may_write(user)) {
                return Err(usage::in_use(name, user));
            }
            if users.is_empty() {
                // A mount that cannot be seen from here shows in the claim alone.
                _claim = Some(self.claim_unused(&disk, Access::Claim)?);
            }
        }
        block::open(&self.root, &disk.device, Access::Read)
            .and_then(|disk| block::set_read_only(&disk, lock))
            .map_err(Error::kernel(format!("cannot change the lock of {name}")))
    }

    /// A RAM disk that must exist.
    pub(super) fn existing(&self, name: DiskName) -> Result<Device<'_>> {
        let mut found = self.devices()?.into_iter().filter(|(found, ..)| *found == name);
        let Some((_, device, driver)) = found.next() else {
            // Where none can be, that is the reason.
            self.drivers.for_new(&self.root)?;
            return Err(no_disk(name));
        };
        if let Some((_, other, _)) = found.next() {
            return Err(Error::Conflict(format!(
                "there are two RAM disks {name}: {device} and {other}; remove one where it was made"
            )));
        }
        let about = block::dev_of(&self.root, &device).zip(block::size_of_disk(&self.root, &device));
        let (dev, size) = about.ok_or_else(|| no_disk(name))?;
        Ok(Device { name, device, dev, size, driver })
    }

    /// Every RAM disk: its name, the kernel's name of it, and what serves it.
    pub(super) fn devices(&self) -> Result<Vec<(DiskName, String, &dyn Driver)>> {
        let mut all = Vec::new();
        for driver in self.drivers.all() {
            let devices = driver.devices(&self.root)?;
            all.extend(devices.into_iter().map(|(name, device)| (name, device, driver)));
        }
        Ok(all)
    }

    /// Whether a loop device is a RAM disk, or is becoming one.
    pub(super) fn is_ram_disk(&self, device: &str) -> bool {
        let over = || block::loop_backing(&self.root, device).ok().flatten();
        device.starts_with("loop") && over().is_some_and(|file| pool::name_in(&self.root, &file).is_some())
    }

    /// The RAM disk that the kernel knows by this name; `None` if it is none.
    pub(super) fn disk_name_of(&self, device: &str) -> Option<DiskName> {
        let over = || block::loop_backing(&self.root, device).ok().flatten();
        DiskName::parse(device).or_else(|| loops::name_of(&self.root, &over()?))
    }

    fn claim_unused(&self, disk: &Device<'_>, access: Access) -> Result<File> {
        let claim = usage::claim_unused(&self.root, disk.dev, disk.name, access)?;
        // Numbers of loop devices are used again.
        if self.existing(disk.name)?.dev != disk.dev {
            return Err(Error::Conflict(format!("{} has just been changed; try again", disk.name)));
        }
        Ok(claim)
    }

    /// Refuses a disk that is not where `/dev/rdN` leads: the kernel would take what is.
    pub(super) fn check_node(&self, disk: &Device<'_>) -> Result<()> {
        let node = block::node(&self.root, &disk.name.to_string());
        if block::dev_of_node(&node) == Some(disk.dev) {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{} does not lead to {} ({}); restart this service, which puts that right",
            node.display(),
            disk.name,
            disk.device
        )))
    }

    /// Puts right what a daemon that was killed in the middle of a change left.
    pub(super) fn recover_disks(&self) -> Vec<String> {
        let recover = |driver: &dyn Driver| driver.recover(&self.root, self.memory_limit());
        self.drivers.all().into_iter().flat_map(recover).collect()
    }

    /// Whether `wanted` bytes more, less `given_up`, stay within the limit.
    fn check_memory(&self, wanted: u64, given_up: u64) -> Result<()> {
        let limit = self.memory_limit();
        let mut others: u64 = 0;
        for driver in self.drivers.all() {
            others = others.saturating_add(driver.promised(&self.root)?);
        }
        let others = others.saturating_sub(given_up);
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

fn no_disk(name: DiskName) -> Error {
    Error::NotFound(format!("there is no RAM disk {name}"))
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
