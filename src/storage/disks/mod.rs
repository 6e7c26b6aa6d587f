//! RAM disks, whichever driver serves them.

mod driver;
mod drivers;

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

pub use driver::{Claims, Compressed, Device, Driver, New, RamDisk, Shrunk};
pub use drivers::{Drivers, RamDriver};

use super::error::{Cannot, Error, Left, Result};
use super::locks::{Held, Key};
use super::machine::Machine;
use super::names::{Algorithm, CacheName, DiskName, Size};
use super::undo::Undo;
use super::usage::{self, User};
use super::wait::wait_until;
use crate::kernel::block::{self, Mode};
use crate::kernel::nvmet::build::Item;
use crate::kernel::{self};

/// How long the kernel may take to make or remove a device node.
const NODE_PATIENCE: Duration = Duration::from_secs(2);

/// A RAM disk that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDisk {
    /// Its size.
    pub size: Size,
    /// What serves it.
    pub driver: Option<RamDriver>,
    /// How it compresses.
    pub algorithm: Option<Algorithm>,
    /// The most memory that its data may take.
    pub limit: Option<Size>,
}

/// The RAM disks of a machine.
pub struct Disks {
    machine: Arc<Machine>,
    /// What serves them.
    pub drivers: Drivers,
}

impl Disks {
    /// The RAM disks of `machine`. New ones are made by the chosen driver, or by the first that the
    /// kernel has.
    pub fn new(machine: Arc<Machine>, chosen: Option<RamDriver>) -> Disks {
        Disks { machine, drivers: Drivers::new(chosen) }
    }

    /// All RAM disks, by number.
    ///
    /// # Errors
    /// There is none, and the kernel has no driver that could make one.
    pub fn list(&self) -> Result<Vec<RamDisk>> {
        let root = &self.machine.root;
        let mut disks = Vec::new();
        for driver in self.drivers.iter() {
            disks.extend(driver.list(root)?);
        }
        if disks.is_empty() {
            self.drivers.for_new(root)?;
        }
        disks.sort_by_key(|disk| disk.name);
        for disk in disks.iter_mut().filter(|disk| disk.fault.is_some()) {
            // A change may have taken it apart for this moment.
            if self.machine.locks.try_hold(vec![Key::disk(disk.name)]).is_none() {
                disk.fault = None;
            }
        }
        Ok(disks)
    }

    /// Makes a RAM disk under the lowest free number, by the chosen driver or by that of new disks.
    pub fn create(&self, asked: &NewDisk) -> Result<DiskName> {
        let root = &self.machine.root;
        let new = New {
            bytes: asked.size.bytes(),
            algorithm: asked.algorithm.clone(),
            limit: asked.limit.map(Size::bytes),
        };
        let driver = self.drivers.for_this(root, asked.driver)?;
        driver.check_new(&new)?;
        let _memory = self.machine.hold(vec![Key::Memory])?;
        let claims = self.claims()?;
        self.check_memory(&claims, driver.memory_of_new(&new), 0)?;
        let (name, _held) = self.free_name(driver, &claims)?;
        Undo::run(|undo| {
            driver.attach(root, name, &new, self.machine.memory_limit())?;
            undo.push(format!("making {name}"), move || {
                let disk = self.existing(name)?;
                let claim =
                    block::open(root, &disk.device, Mode::Claim).cannot(format_args!("open {name}"))?;
                disk.driver.detach(root, &disk, claim).map(drop)
            });
            let is_ready = || {
                let found = self.existing(name).ok().filter(|disk| disk.size == new.bytes);
                found.is_some_and(|disk| self.check_node(&disk).is_ok())
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

    /// The lowest number that a new disk of a driver can have, and the lock on it.
    fn free_name(
        &self,
        driver: &dyn Driver,
        claims: &[(&dyn Driver, Claims)],
    ) -> Result<(DiskName, Held<'_>)> {
        let (most, advice) = driver.most(&self.machine.root)?;
        let own = claims.iter().filter(|(by, _)| by.name() == driver.name());
        let served: usize = own.map(|(_, claims)| claims.names.len()).sum();
        if served as u64 >= u64::from(most) {
            return Err(Error::Conflict(format!("there are {served} RAM disks and {advice}")));
        }
        let taken: HashSet<_> = claims.iter().flat_map(|(_, claims)| &claims.names).collect();
        // A disk that is being removed at this moment still has its number.
        let hold = |name| self.machine.locks.try_hold(vec![Key::disk(name)]).map(|held| (name, held));
        for name in (0..most).map(DiskName).filter(|name| !taken.contains(name)) {
            // Nor can a disk have the number of a file that somebody left in /dev.
            if let Some(free) = hold(name)
                && driver.is_free(&self.machine.root, name)?
            {
                return Ok(free);
            }
        }
        Err(Error::Conflict("all numbers are taken by RAM disks that are being changed; try again".into()))
    }

    /// Gives a RAM disk a new size.
    pub fn resize(&self, name: DiskName, size: Size) -> Result<Left> {
        let root = &self.machine.root;
        let _held = self.machine.hold(vec![Key::Memory, Key::disk(name)])?;
        let disk = self.repaired(name)?;
        if let Some(cache) =
            usage::holders(root, disk.dev)?.into_iter().find(|it| CacheName::parse(it).is_some())
        {
            return Err(usage::in_use(name, &User::Holder(cache)));
        }
        let new = size.bytes();
        // Giving memory back is always allowed.
        if new > disk.size {
            let (now, then) = disk.driver.memory_of(root, &disk, new)?;
            self.check_memory(&self.claims()?, then, now)?;
        }
        let mut left = Left::default();
        if new > disk.size {
            left.add(disk.driver.grow(root, &disk, new, self.machine.memory_limit())?);
        } else if new < disk.size {
            left.add(self.shrink(&disk, new)?);
        }
        self.tell_initiators(&disk, &mut left);
        Ok(left)
    }

    fn shrink(&self, disk: &Device<'_>, new: u64) -> Result<Left> {
        let (root, name) = (&self.machine.root, disk.name);
        // Nobody may write above the new end from here on.
        let claim = self.claim_unused(disk, Mode::Claim)?;
        sync(name, &claim)?;
        let least = disk.driver.least_size(root, disk, &claim).cannot(format_args!("resize {name}"))?;
        let too_small = || {
            Error::Conflict(format!("{name} has data up to byte {least}; it can shrink to no less than that"))
        };
        if new < least {
            return Err(too_small());
        }
        // The driver looks again, since somebody may have written in this moment.
        match disk.driver.shrink(root, disk, claim, new)? {
            Shrunk::DataAbove => Err(too_small()),
            Shrunk::Done(left) => Ok(left),
        }
    }

    /// Tells the NVMe namespaces that export a disk of its new size: they do not notice by themselves.
    fn tell_initiators(&self, disk: &Device<'_>, left: &mut Left) {
        match usage::exports(&self.machine.root, &[disk.dev]) {
            Ok(users) => users.iter().for_each(|user| left.note(self.tell_initiator(user))),
            Err(error) => left.note(Err(error)),
        }
    }

    fn tell_initiator(&self, user: &User) -> Result<()> {
        let root = &self.machine.root;
        let User::Namespace { nqn, id } = user else { return Ok(()) };
        let namespace = Item::namespace(nqn, *id);
        // Kernels before 5.8 cannot be told.
        if namespace.has(root, "revalidate_size") == Ok(false) {
            return Ok(());
        }
        match namespace.set(root, "revalidate_size", "1") {
            // A namespace that is not enabled reads the size when it is enabled.
            Err(error) if error.is(Errno::INVAL) => Ok(()),
            told => told.cannot(format_args!("tell namespace {id} of {nqn} of the new size")),
        }
    }

    /// Frees the memory of a RAM disk: its contents are gone.
    pub fn flush(&self, name: DiskName) -> Result<Left> {
        let root = &self.machine.root;
        let _held = self.machine.hold(vec![Key::disk(name)])?;
        let disk = self.repaired(name)?;
        if block::is_read_only(root, disk.dev).cannot(format_args!("look at {name}"))? {
            return Err(Error::Conflict(format!("{name} is locked; unlock it first")));
        }
        let claim = self.claim_unused(&disk, Mode::Claim)?;
        // The kernel would write later what a program wrote and did not sync.
        sync(name, &claim)?;
        disk.driver.free(root, &disk, claim)
    }

    /// Removes a RAM disk.
    pub fn remove(&self, name: DiskName) -> Result<Left> {
        let root = &self.machine.root;
        let _held = self.machine.hold(vec![Key::disk(name)])?;
        let disk = self.repaired(name)?;
        let claim = self.claim_unused(&disk, Mode::Claim)?;
        let left = disk.driver.detach(root, &disk, claim)?;
        wait_until(NODE_PATIENCE, || self.existing(name).is_err());
        Ok(left)
    }

    /// Makes a RAM disk read-only (locked) or read-write.
    pub fn set_locked(&self, name: DiskName, locked: bool) -> Result<()> {
        let root = &self.machine.root;
        let _held = self.machine.hold(vec![Key::disk(name)])?;
        let disk = self.repaired(name)?;
        // Held until the disk is locked, so that nobody mounts it for writing in between.
        let _claim = if locked { self.claim_from_writers(&disk)? } else { None };
        block::open(root, &disk.device, Mode::Read)
            .and_then(|disk| block::set_read_only(&disk, locked))
            .cannot(format_args!("change the lock of {name}"))
    }

    /// Refuses a disk that somebody may write to. A disk without users is claimed. Where it is mounted
    /// read-only, the kernel's count says nothing: then nobody else may be seen.
    fn claim_from_writers(&self, disk: &Device<'_>) -> Result<Option<File>> {
        let refusal = match self.claim_unused(disk, Mode::Claim) {
            Ok(claim) => return Ok(Some(claim)),
            Err(refusal) => refusal,
        };
        let users = usage::settled_users(&self.machine.root, disk.dev)?;
        let may_write = |user: &&User| !matches!(user, User::Mount { read_only: true, .. });
        match users.iter().find(may_write) {
            _ if !matches!(users.first(), Some(User::Mount { .. })) => Err(refusal),
            Some(user) => Err(usage::in_use(disk.name, user)),
            None => Ok(None),
        }
    }

    /// A RAM disk that must exist and run, and that the caller holds. It has those of its parts again that others
    /// took away.
    pub fn repaired(&self, name: DiskName) -> Result<Device<'_>> {
        let root = &self.machine.root;
        let repaired = self.drivers.iter().try_for_each(|driver| driver.repair(root, name));
        // What could not be repaired matters only if it is missed.
        let disk = self.existing(name).map_err(|missing| repaired.err().unwrap_or(missing))?;
        self.check_running(name)?;
        Ok(disk)
    }

    /// Refuses a RAM disk that another program has suspended, if there is one of this name.
    pub fn check_running(&self, name: DiskName) -> Result<()> {
        self.drivers.iter().try_for_each(|driver| driver.check_running(&self.machine.root, name))
    }

    /// A RAM disk that must exist.
    pub fn existing(&self, name: DiskName) -> Result<Device<'_>> {
        let root = &self.machine.root;
        let mut found = Vec::new();
        for driver in self.drivers.iter() {
            found.extend(driver.find(root, name)?.map(|device| (device, driver)));
        }
        let mut found = found.into_iter();
        let Some((device, driver)) = found.next() else {
            // Where no RAM disk can be, that is the reason.
            self.drivers.for_new(root)?;
            return Err(no_disk(name));
        };
        if let Some((other, _)) = found.next() {
            return Err(Error::Conflict(format!(
                "there are two RAM disks {name}: {device} and {other}; remove one where it was made"
            )));
        }
        let look = format!("look at {name}");
        let dev = block::dev_of(root, &device).cannot(&look)?;
        let size = block::size_of_disk(root, &device).cannot(&look)?;
        let (dev, size) = dev.zip(size).ok_or_else(|| no_disk(name))?;
        Ok(Device { name, device, dev, size, driver })
    }

    /// Every RAM disk: its name, the kernel's name of it, and its driver.
    pub fn devices(&self) -> Result<Vec<(DiskName, String, &dyn Driver)>> {
        let mut all = Vec::new();
        for driver in self.drivers.iter() {
            let devices = driver.devices(&self.machine.root)?;
            all.extend(devices.into_iter().map(|(name, device)| (name, device, driver)));
        }
        Ok(all)
    }

    /// The RAM disk that the kernel knows by the name `device`; `None` if that is no RAM disk.
    pub fn name_of(&self, device: &str) -> Result<Option<DiskName>> {
        for driver in self.drivers.iter() {
            if let Some(name) = driver.name_of(&self.machine.root, device)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Whether a device is a RAM disk, or a part of one.
    pub fn owns(&self, device: &str) -> Result<bool> {
        for driver in self.drivers.iter() {
            if driver.owns(&self.machine.root, device)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Refuses a disk if `/dev/rdN` does not lead to it: the kernel would take what the path leads to.
    pub fn check_node(&self, disk: &Device<'_>) -> Result<()> {
        usage::check_node(
            &self.machine.root,
            disk.dev,
            &disk.name.to_string(),
            format_args!("{} ({})", disk.name, disk.device),
        )
    }

    /// Repairs what a daemon that was killed during a change left. Returns a line for each thing that
    /// was done or could not be done.
    pub fn recover(&self) -> Vec<String> {
        let machine = &self.machine;
        let hold = |name| machine.locks.try_hold(vec![Key::disk(name)]);
        let recover = |driver: &dyn Driver| driver.recover(&machine.root, machine.memory_limit(), &hold);
        self.drivers.iter().flat_map(recover).collect()
    }

    /// Removes what the disks left that does no harm. Says why it cannot.
    pub fn tidy(&self) -> Result<()> {
        self.drivers.iter().try_for_each(|driver| driver.tidy(&self.machine.root))
    }

    fn claim_unused(&self, disk: &Device<'_>, mode: Mode) -> Result<File> {
        let claim = usage::claim_unused(&self.machine.root, disk.dev, disk.name, mode)?;
        // The kernel gives the numbers of loop devices to others again.
        if self.existing(disk.name)?.dev != disk.dev {
            return Err(Error::Conflict(format!("{} has just been changed; try again", disk.name)));
        }
        Ok(claim)
    }

    /// What the disks of each driver claim.
    fn claims(&self) -> Result<Vec<(&dyn Driver, Claims)>> {
        let root = &self.machine.root;
        self.drivers.iter().map(|driver| Ok((driver, driver.claims(root)?))).collect()
    }

    /// Refuses `wanted` bytes, of which `given_up` are the caller's already, where all disks together
    /// would have more than the limit allows.
    fn check_memory(&self, claims: &[(&dyn Driver, Claims)], wanted: u64, given_up: u64) -> Result<()> {
        let limit = self.machine.memory_limit();
        let sum = claims.iter().map(|(_, claims)| claims.bytes).fold(0, u64::saturating_add);
        let others = sum.saturating_sub(given_up);
        if others.saturating_add(wanted) <= limit {
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

fn no_disk(name: DiskName) -> Error {
    Error::NotFound(format!("there is no RAM disk {name}"))
}

/// Writes what the page cache holds to the disk.
fn sync(name: DiskName, disk: &File) -> Result<()> {
    disk.sync_all().map_err(|error| kernel::Error::new("fsync", &error)).cannot(format_args!("sync {name}"))
}
