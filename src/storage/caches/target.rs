//! What a driver of caches has to do. Each stands for one device-mapper target.

use std::ops::RangeInclusive;

use crate::kernel::Root;
use crate::kernel::block::{self, Dev};
use crate::kernel::dm::{self, Control};
use crate::storage::caches::stats::CacheStats;
use crate::storage::disks::Device;
use crate::storage::error::{Error, Result};
use crate::storage::names::{BlockSize, CacheName, DiskName, Policy, SourceName};
use crate::storage::undo::Undo;

/// The device that is cached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, as it was asked for.
    pub name: SourceName,
    /// Its device number.
    pub dev: Dev,
    /// The kernel's name of it.
    pub device: String,
    /// Its size in sectors.
    pub sectors: u64,
    /// Bytes in one of its logical blocks.
    pub block: u64,
    /// Bytes that a logical block of the cache may have: from the larger of its own and those of the RAM disk
    /// up to the largest that what is on the source can be used with.
    pub blocks: RangeInclusive<u64>,
}

impl Source {
    /// The refusal of a source that cannot be cached.
    pub fn refused(&self, why: impl std::fmt::Display) -> Error {
        Error::Conflict(format!("{} {why}", self.name))
    }
}

/// A cache that is being made.
pub struct New<'a> {
    /// Where the kernel is.
    pub root: &'a Root,
    /// device-mapper, for the mappings that are parts of the cache.
    pub control: &'a Control,
    /// The cache's name.
    pub name: &'a CacheName,
    /// The RAM disk that caches.
    pub disk: &'a Device<'a>,
    /// The device that is cached.
    pub source: &'a Source,
    /// Bytes in a block of the cache.
    pub block: u64,
    /// How it treats writes.
    pub policy: Policy,
}

impl New<'_> {
    /// The path of the RAM disk, `/dev/rdN`.
    pub fn disk_node(&self) -> String {
        block::node(self.root, &self.disk.name.to_string()).display().to_string()
    }

    /// The path of the source.
    pub fn source_node(&self) -> String {
        block::node(self.root, &self.source.device).display().to_string()
    }
}

/// What a cache stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Devices {
    /// The RAM disk.
    pub disk: Dev,
    /// The device that is cached.
    pub source: Dev,
}

/// A device-mapper target that makes caches: its table, its status and its tear-down.
pub trait Target: Send + Sync {
    /// The driver's name, which is that of the kernel module.
    fn name(&self) -> &'static str;

    /// The name of the target in tables.
    fn kind(&self) -> &'static str;

    /// Whether it makes caches of this policy.
    fn serves(&self, policy: Policy) -> bool;

    /// Whether it is part of the stock kernel, which loads its module when a table asks for it.
    fn is_stock(&self) -> bool {
        true
    }

    /// Whether its first block on the RAM disk holds a superblock, which must be zero before.
    fn has_superblock(&self) -> bool {
        true
    }

    /// Refuses a source that it cannot cache.
    fn check_source(&self, source: &Source) -> Result<()>;

    /// Refuses a RAM disk that is too small, else gives the bytes in a block of the cache: `given` ones, where
    /// these can be chosen.
    fn block(&self, disk: &Device<'_>, source: &Source, given: Option<BlockSize>) -> Result<u64>;

    /// Makes the mappings that the cache stands on, if it takes any, and gives the table of the cache.
    fn build<'a>(&self, new: &New<'a>, undo: &mut Undo<'a>) -> Result<dm::Target>;

    /// A further kernel module that it takes and that is not loaded, and what that is: asked when
    /// the kernel refused a table with EINVAL.
    fn missing_module(&self, _root: &Root) -> Option<(&'static str, &'static str)> {
        None
    }

    /// What a cache stands on, given its dependencies in the kernel's order; `None` if that is no
    /// cache as it is made here.
    fn devices(&self, control: &Control, name: &CacheName, deps: &[Dev]) -> Result<Option<Devices>>;

    /// Reads the status that the target reports.
    fn stats(&self, name: &CacheName, status: &str) -> Result<CacheStats>;

    /// Refuses a removal while somebody has one of the cache's parts open, or has suspended it.
    fn check_parts(&self, _root: &Root, _control: &Control, _name: &CacheName) -> Result<()> {
        Ok(())
    }

    /// Writes to the source what only the cache has.
    fn write_back(&self, _control: &Control, _name: &CacheName) -> Result<()> {
        Ok(())
    }

    /// Whether the mapping is suspended before it is removed, so that `check_written` can be sure.
    fn is_suspended_first(&self) -> bool {
        true
    }

    /// Refuses the removal of a suspended cache that has data which its source has not.
    fn check_written(&self, _control: &Control, _name: &CacheName) -> Result<()> {
        Ok(())
    }

    /// How many blocks a cache has that cannot be written to its source; `None` if nothing keeps it from
    /// writing them.
    fn lost(&self, _control: &Control, _name: &CacheName) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Refuses a RAM disk, given its first block, that may hold data of an earlier cache which that cache's
    /// source has not. Asked whatever the disk shall become.
    fn check_start(&self, _disk: DiskName, _first_block: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Whether something of this driver's is there under the name of a cache, but no cache.
    fn has_leftovers(&self, _control: &Control, _name: &CacheName) -> Result<bool> {
        Ok(false)
    }

    /// Removes what a removal that was cut short may have left under the name of a cache.
    fn remove_leftovers(&self, _root: &Root, _name: &CacheName) -> Result<()> {
        Ok(())
    }

    /// Removes what a removed cache leaves behind. `disk` is the kernel's name of the device that cached,
    /// if that is a RAM disk.
    fn clean_up(&self, _root: &Root, _name: &CacheName, _disk: Option<&str>) -> Result<()> {
        Ok(())
    }
}
