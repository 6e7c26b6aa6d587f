//! What a RAM-disk driver has to do.

use std::fs::File;

use rustix::io::Errno;

use crate::kernel::block::Dev;
use crate::kernel::{self, Root};
use crate::storage::error::{Error, Left, Result};
use crate::storage::locks::Held;
use crate::storage::names::{Algorithm, DiskName};
use crate::storage::usage::{self, User};

/// A RAM disk, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamDisk {
    /// Its name.
    pub name: DiskName,
    /// Its size in bytes.
    pub size: u64,
    /// The memory that it holds, in bytes.
    pub usage: u64,
    /// Whether that was measured. Else the kernel does not say, and `usage` is the most that it can hold.
    pub is_measured: bool,
    /// Whether it is read-only.
    pub locked: bool,
    /// The name of its driver.
    pub driver: &'static str,
    /// How it compresses, if it does.
    pub compressed: Option<Compressed>,
    /// What is wrong with it, if anything is; completes "rd0 …".
    pub fault: Option<String>,
}

impl RamDisk {
    /// The memory that it may take beyond what it holds, in bytes.
    pub fn still_claims(&self) -> u64 {
        let most = self.compressed.as_ref().map_or(self.size, |compressed| compressed.limit);
        most.saturating_sub(self.usage)
    }
}

/// How a RAM disk compresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Bytes of the blocks that have data.
    pub stored: u64,
    /// The most memory that they may take, in bytes.
    pub limit: u64,
    /// The kernel's name of how.
    pub algorithm: String,
}

/// What a new RAM disk shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct New {
    /// Its size in bytes.
    pub bytes: u64,
    /// How it compresses.
    pub algorithm: Option<Algorithm>,
    /// The most memory that its data may take, in bytes.
    pub limit: Option<u64>,
}

/// A RAM disk, as the kernel has it.
pub struct Device<'a> {
    /// Its name.
    pub name: DiskName,
    /// The kernel's name of it: `rdN`, or that of a loop device.
    pub device: String,
    /// Its device number.
    pub dev: Dev,
    /// Its size in bytes.
    pub size: u64,
    /// What serves it.
    pub driver: &'a dyn Driver,
}

/// What the disks of a driver claim, those included that are being made or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// The names that are taken.
    pub names: Vec<DiskName>,
    /// The memory that they may take together, in bytes.
    pub bytes: u64,
}

/// What became of a disk that was to shrink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shrunk {
    /// It has its new size.
    Done(Left),
    /// There is data above the new end by now, and nothing has changed.
    DataAbove,
}

/// One way to make RAM disks. Each function expects that its caller has checked what it asks for,
/// and holds the disk's key.
pub trait Driver: Send + Sync {
    /// Its name, which is that of the kernel module it takes, and the one on the command line.
    fn name(&self) -> &'static str;

    /// Whether it makes disks only for those who name it.
    fn is_only_taken_by_name(&self) -> bool {
        false
    }

    /// Why none of its disks serves as a cache; completes "rd0 …". `None` if they do.
    fn why_no_cache(&self) -> Option<&'static str> {
        None
    }

    /// What the kernel lacks for it, and how to get that; `None` if it can make disks now.
    fn lacks(&self, root: &Root) -> Result<Option<String>>;

    /// The kernel's name of one of its disks; `None` if it has no such disk. Where the disk is as this driver makes
    /// it, no other disk is looked at.
    fn find(&self, root: &Root, name: DiskName) -> Result<Option<String>>;

    /// Its disks and the kernel's names of them, in no order.
    fn devices(&self, root: &Root) -> Result<Vec<(DiskName, String)>>;

    /// Its disks, as a list shows them, in no order.
    fn list(&self, root: &Root) -> Result<Vec<RamDisk>>;

    /// The disk of this driver that the kernel knows by the name `device`, if it is one.
    fn name_of(&self, root: &Root, device: &str) -> Result<Option<DiskName>>;

    /// Whether a device is a disk of this driver, or a part of one that is being made or removed.
    fn owns(&self, root: &Root, device: &str) -> Result<bool> {
        Ok(self.name_of(root, device)?.is_some())
    }

    /// Gives a disk those of its parts again that others took away. Does nothing where there is no such disk.
    fn repair(&self, _root: &Root, _name: DiskName) -> Result<()> {
        Ok(())
    }

    /// Refuses a disk that another program has suspended: whatever reads or writes it would hang.
    fn check_running(&self, _root: &Root, _name: DiskName) -> Result<()> {
        Ok(())
    }

    /// Whether nothing is in the place of a new disk, or of its node, that cannot be replaced.
    fn is_free(&self, root: &Root, name: DiskName) -> Result<bool>;

    /// What its disks claim.
    fn claims(&self, root: &Root) -> Result<Claims>;

    /// How many disks it serves at most, and the advice for whoever wants more.
    fn most(&self, root: &Root) -> Result<(u32, &'static str)>;

    /// Refuses what none of its disks can be.
    fn check_new(&self, new: &New) -> Result<()> {
        if new.algorithm.is_none() && new.limit.is_none() {
            return Ok(());
        }
        let name = self.name();
        Err(Error::Invalid(format!(
            "a RAM disk of {name} does not compress; add driver=zram for one that does"
        )))
    }

    /// The most memory that a new disk takes, in bytes.
    fn memory_of_new(&self, new: &New) -> u64 {
        new.bytes
    }

    /// The most memory that a disk takes, in bytes: now, and with a size of `bytes`.
    fn memory_of(&self, _root: &Root, disk: &Device<'_>, bytes: u64) -> Result<(u64, u64)> {
        Ok((disk.size, bytes))
    }

    /// Makes a disk; all disks together never have more than `limit` bytes.
    fn attach(&self, root: &Root, name: DiskName, new: &New, limit: u64) -> Result<()>;

    /// Destroys a disk that the caller has claimed. EBUSY: the kernel counts another opener, and the
    /// disk stays as it is.
    fn detach(&self, root: &Root, disk: &Device<'_>, claim: File) -> Result<Left>;

    /// Gives a disk a new size, larger than the one it has.
    fn grow(&self, root: &Root, disk: &Device<'_>, bytes: u64, limit: u64) -> Result<Left>;

    /// The fewest bytes that hold all data of a disk.
    fn least_size(&self, root: &Root, disk: &Device<'_>, claim: &File) -> kernel::Result<u64>;

    /// Gives a claimed disk a new size, smaller than the one it has. EBUSY as for `detach`.
    fn shrink(&self, root: &Root, disk: &Device<'_>, claim: File, bytes: u64) -> Result<Shrunk>;

    /// Frees the memory of a claimed disk: the disk reads as zero afterwards. EBUSY as for `detach`.
    fn free(&self, root: &Root, disk: &Device<'_>, claim: File) -> Result<Left>;

    /// Finishes or takes back what a daemon that was killed during a change left. `hold` takes a disk's
    /// key; a disk whose key is taken is left alone. Returns a line for each thing that was done or could
    /// not be done.
    fn recover<'a>(
        &self,
        _root: &Root,
        _limit: u64,
        _hold: &dyn Fn(DiskName) -> Option<Held<'a>>,
    ) -> Vec<String> {
        Vec::new()
    }

    /// Removes what its disks left that costs nothing but a look: it is called every few moments.
    fn tidy(&self, _root: &Root) -> Result<()> {
        Ok(())
    }
}

/// The refusal of a change that only happens while nobody else has the disk open.
pub fn refused(name: DiskName, what: &str, error: kernel::Error) -> Error {
    match error.is(Errno::BUSY) {
        true => usage::in_use(name, &User::Opener),
        false => Error::Kernel(format!("cannot {what} {name}"), error),
    }
}

/// What a driver lacks whose module is not loaded.
pub fn not_loaded(module: &str, parameters: &str) -> String {
    format!("the kernel module {module} is not loaded; load it with: modprobe {module}{parameters}")
}
