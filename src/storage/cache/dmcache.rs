//! Write-through on a stock kernel: dm-cache, whose metadata and data are two
//! mappings cut out of the one RAM disk
//! (Documentation/admin-guide/device-mapper/cache.rst).

use super::{made_meanwhile, uuid};
use crate::kernel::block::{self, Access, Dev, SECTOR};
use crate::kernel::dm::{Control, Report, Target};
use crate::kernel::{self};
use crate::storage::names::Part;
use crate::storage::stats::{self, DmCacheStatus};
use crate::storage::undo::Undo;
use crate::storage::usage::{self, User};
use crate::storage::{CacheName, DiskName, Error, Result, Storage, retry_busy};

/// The smallest RAM disk in use, in bytes. A quarter of it is metadata; below, it
/// would soon be most of it.
const DISK_MIN: u64 = 1 << 20;
/// dm-cache's limits for a cache block, in bytes.
const BLOCK_MIN: u64 = 32 << 10;
const BLOCK_MAX: u64 = 1 << 30;
/// The kernel warns of more blocks than this.
const BLOCKS_MAX: u64 = 1 << 20;

/// Bytes in a block of dm-cache's metadata, the first of which is the superblock.
const METADATA_BLOCK: u64 = 4096;
/// What fits into a metadata block after its header: the 8 bytes that say where a
/// cache block belongs, and the policy's 4 bytes of hint for it.
const MAPPINGS: u64 = (METADATA_BLOCK - 24) / 8;
const HINTS: u64 = (METADATA_BLOCK - 24) / 4;
/// Metadata blocks for what does not grow with the cache: superblock, space map,
/// roots, the bitset of discarded blocks (at most 2^14 bits), and their copies.
const FIXED: u64 = 32;

/// How a RAM disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes in a cache block.
    pub block: u64,
    /// Bytes for the metadata, at the start of the disk. The rest is for the data.
    metadata: u64,
}

impl Layout {
    /// The layout of a RAM disk of this many bytes.
    pub fn of(disk: DiskName, size: u64) -> Result<Layout> {
        if size < DISK_MIN {
            return Err(Error::Conflict(format!("{disk} is too small for a cache; dm-cache takes 1 MiB")));
        }
        let block = size.div_ceil(BLOCKS_MAX).next_power_of_two().clamp(BLOCK_MIN, BLOCK_MAX);
        let blocks = size / block;
        let arrays = blocks.div_ceil(MAPPINGS) + blocks.div_ceil(HINTS);
        // The arrays are the leaves of trees of more than 64 children a node, and a
        // transaction writes what it changes, at most everything, to new blocks.
        let metadata = (FIXED + 2 * (arrays + arrays / 64)) * METADATA_BLOCK;
        Ok(Layout { block, metadata })
    }
}

/// Makes the two parts of a cache on a RAM disk of `size` bytes, and gives the
/// table of the cache that stands on them in front of `source`.
pub fn make_parts<'a>(
    control: &'a Control,
    name: &CacheName,
    (disk, size): (Dev, u64),
    (source, length): (Dev, u64),
    layout: Layout,
    undo: &mut Undo<'a>,
) -> Result<Target> {
    let mut make = |part: Part, start: u64, end: u64| {
        let part = part.of(name);
        let dev =
            control.create(&part, &uuid(&part)).map_err(|error| made_meanwhile(part.as_str(), error))?;
        let removed = part.clone();
        undo.push(format!("making {part}"), move || Ok(retry_busy(|| control.remove(&removed))?));
        let table = Target {
            start: 0,
            length: (end - start) / SECTOR,
            kind: "linear".into(),
            text: format!("{disk} {}", start / SECTOR),
        };
        control
            .load(&part, &table)
            .and_then(|()| control.resume(&part))
            .map_err(Error::kernel(format!("cannot map {part}")))?;
        Ok::<_, Error>(dev)
    };
    let metadata = make(Part::Metadata, 0, layout.metadata)?;
    let data = make(Part::Data, layout.metadata, size)?;
    let block = layout.block / SECTOR;
    // Below 8 blocks there is never room for the next one to be moved.
    let threshold = (8 * block).max(2048);
    let text =
        format!("{metadata} {data} {source} {block} 1 writethrough smq 2 migration_threshold {threshold}");
    Ok(Target { start: 0, length, kind: "cache".into(), text })
}

/// Suspends a cache and makes sure that its source has everything.
pub fn suspend_written(control: &Control, name: &CacheName) -> Result<()> {
    control.suspend(name.as_dm()).map_err(Error::kernel(format!("cannot suspend {name}")))?;
    let [table, status] = [Report::Table, Report::Status].map(|what| control.report(name.as_dm(), what));
    let text = |targets: kernel::Result<Vec<Target>>| Ok::<_, Error>(targets?.swap_remove(0).text);
    let status = stats::dm_cache(name, &text(status)?);
    let is_write_through = text(table)?.split(' ').any(|word| word == "writethrough");
    match status {
        Ok(DmCacheStatus { dirty: 0, .. }) => Ok(()),
        // One whose RAM disk failed does not count any more. What was written is on
        // the source all the same, or its writer was told.
        Err(_) if is_write_through => Ok(()),
        _ => Err(Error::Kernel(
            format!("{name} has data that its source has not; it stays mapped"),
            kernel::Error::strange("dm-cache status"),
        )),
    }
}

/// Whether there is a part of ours, whatever has become of the cache.
pub fn has_parts(control: &Control, name: &CacheName) -> bool {
    let is_ours =
        |part: &Part| control.info(&part.of(name)).is_ok_and(|info| info.uuid == uuid(&part.of(name)));
    control.info(name.as_dm()).is_err() && Part::ALL.iter().any(is_ours)
}

impl Storage {
    /// Refuses a cache one of whose parts somebody but the cache itself has open.
    pub(super) fn check_parts_closed(&self, control: &Control, name: &CacheName) -> Result<()> {
        for part in Part::ALL.map(|part| part.of(name)) {
            let users = usage::settled_users(&self.root, control.info(&part)?.dev)?;
            let own = User::Holder(name.to_string());
            if let Some(user) = users.iter().find(|user| **user != own) {
                return Err(usage::in_use(&part, user));
            }
        }
        Ok(())
    }

    /// Removes the parts of a cache that is gone itself, as far as they are there
    /// and ours, and its superblock.
    pub(super) fn remove_parts(&self, name: &CacheName) -> Result<()> {
        let control = self.control()?.for_parts();
        let mut outcome = Ok(());
        for part in Part::ALL {
            let dm_name = part.of(name);
            let Ok(info) = control.info(&dm_name) else { continue };
            if info.uuid != uuid(&dm_name) {
                continue;
            }
            if part == Part::Metadata && info.active && !info.suspended {
                outcome = outcome.and(self.clear(info.dev));
            }
            let removed = retry_busy(|| control.remove(&dm_name));
            outcome = outcome.and(removed.map_err(Error::kernel(format!("cannot remove {dm_name}"))));
        }
        outcome
    }

    /// Nothing is to take what was a cache's metadata for one's.
    fn clear(&self, dev: Dev) -> Result<()> {
        let name = block::name_of(&self.root, dev).unwrap_or_default();
        block::open(&self.root, &name, Access::ClaimWrite)
            .and_then(|metadata| block::write_start(&metadata, &[0; METADATA_BLOCK as usize]))
            .map_err(Error::kernel("cannot clear the cache's metadata"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: u64) -> Layout {
        Layout::of(DiskName(0), size).unwrap()
    }

    #[test]
    fn blocks_grow_with_the_disk_within_the_kernels_limits() {
        for (size, block) in [
            (1 << 20, 32 << 10),
            (1 << 30, 32 << 10),
            (32 << 30, 32 << 10),
            ((32 << 30) + (1 << 20), 64 << 10),
            (1 << 40, 1 << 20),
            (1 << 50, 1 << 30),
            (1 << 59, 1 << 30),
        ] {
            assert_eq!(layout(size).block, block, "{size}");
        }
        assert!(Layout::of(DiskName(0), (1 << 20) - 512).is_err());
    }

    #[test]
    fn most_of_any_disk_is_for_data() {
        let mut size = 1 << 20;
        while size < 1 << 60 {
            let Layout { block, metadata } = layout(size);
            let blocks = (size - metadata) / block;
            assert!(metadata % METADATA_BLOCK == 0 && metadata < size / 4, "{size}: {metadata}");
            assert!(blocks > 16 && size / block <= BLOCKS_MAX.max(size >> 30), "{size}: {blocks}");
            size += (size / 3).next_multiple_of(1 << 20);
        }
        // As measured for a table of this many blocks in Linux 6.1, of which at most
        // two generations are there at once.
        assert!(layout(32 << 30).metadata >= 2 * 3111 * METADATA_BLOCK);
    }
}
