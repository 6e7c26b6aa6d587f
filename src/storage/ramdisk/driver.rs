//! What serves RAM disks: the `rapiddisk` module, or loop devices over a tmpfs.

use std::fs::File;

use super::{Device, RamDisk};
use crate::kernel::{self, Root, block};
use crate::storage::{DiskName, Result};

/// One kind of RAM disk. Everything here expects a caller who has checked, and who
/// holds the disk's key.
pub trait Driver: Sync {
    /// Its name: that of the kernel module it takes, and on the command line.
    fn name(&self) -> &'static str;

    /// Whether the kernel has it now.
    fn is_loaded(&self, root: &Root) -> bool;

    /// The disks it serves and the kernel's names of them, in no order.
    fn devices(&self, root: &Root) -> Result<Vec<(DiskName, String)>>;

    /// What there is to say of them, in no order.
    fn list(&self, root: &Root) -> Result<Vec<RamDisk>>;

    /// Names that are taken besides those of the disks it serves.
    fn leftovers(&self, _root: &Root) -> Result<Vec<DiskName>> {
        Ok(Vec::new())
    }

    /// What its disks may claim together, in bytes, with what is left of disks that are
    /// being made or removed.
    fn promised(&self, root: &Root) -> Result<u64> {
        let size = |(_, device): &(DiskName, String)| block::size_of_disk(root, device).unwrap_or(0);
        Ok(self.devices(root)?.iter().map(size).fold(0, u64::saturating_add))
    }

    /// How many it serves at most, and what says so.
    fn most(&self, root: &Root) -> (u32, &'static str);

    /// Makes a disk of `bytes` bytes, within `limit` bytes for all together.
    fn attach(&self, root: &Root, name: DiskName, bytes: u64, limit: u64) -> Result<()>;

    /// Destroys a disk that the caller has claimed. EBUSY: somebody has it open who
    /// does not show himself; it stays.
    fn detach(&self, root: &Root, disk: &Device<'_>, claim: File) -> kernel::Result<()>;

    /// Gives a disk its new size, more than it has.
    fn grow(&self, root: &Root, disk: &Device<'_>, bytes: u64, limit: u64) -> Result<()>;

    /// The fewest bytes that hold all data of a disk.
    fn least_size(&self, root: &Root, disk: &Device<'_>, claim: &File) -> kernel::Result<u64>;

    /// Gives a claimed disk its new size, less than it has. EINVAL: there is data
    /// above it by now; nothing has changed.
    fn shrink(&self, root: &Root, disk: &Device<'_>, claim: &File, bytes: u64) -> kernel::Result<()>;

    /// Frees the memory of a claimed disk, open for writing: it reads as zero. EBUSY
    /// as for `detach`.
    fn free(&self, disk: &Device<'_>, claim: &File) -> kernel::Result<()>;

    /// Finishes or takes back what a daemon that was killed in the middle of a change
    /// left. Returns what was done or could not be, a line each.
    fn recover(&self, _root: &Root, _limit: u64) -> Vec<String> {
        Vec::new()
    }
}
