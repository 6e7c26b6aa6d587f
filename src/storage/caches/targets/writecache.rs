//! Writeback: dm-writecache (Documentation/admin-guide/device-mapper/writecache.rst). The data of a
//! cache is on its source before the cache goes, and a RAM disk that may hold the only copy of some is
//! not used again.

use rustix::io::Errno;

use crate::kernel::block::{self, Dev, Mode, SECTOR};
use crate::kernel::dm::{self, Control, Report};
use crate::kernel::{self, Root};
use crate::storage::caches::mapping;
use crate::storage::caches::stats::{CacheStats, not_understood};
use crate::storage::caches::target::{Devices, New, Source, Target};
use crate::storage::disks::Device;
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::names::{BlockSize, CacheName, DiskName, Policy};
use crate::storage::undo::Undo;

/// Bytes in a block, the largest first. The target's own table takes some 64 bytes of memory a block.
const BLOCKS: [u64; 4] = [4096, 2048, 1024, 512];
/// Bytes in the superblock at the start of the RAM disk.
const SUPERBLOCK: usize = 4096;
/// The first bytes of a superblock.
const MAGIC: [u8; 4] = 0x2348_9321u32.to_le_bytes();

/// The numbers of the status, in their order. Kernels before 5.15 have the first four.
const COUNTERS: [&str; 14] = [
    "errors",
    "num_blocks",
    "num_free_blocks",
    "num_wb_blocks",
    "num_read_req",
    "num_read_cache_hits",
    "num_write_req",
    "num_write_uncommitted_blk_hits",
    "num_write_committed_blk_hits",
    "num_write_cache_bypass",
    "num_write_cache_alloc",
    "num_write_freelist_blocked",
    "num_flush_req",
    "num_discard_req",
];
const OLD_COUNTERS: usize = 4;

/// The target.
pub struct Writecache;

impl Target for Writecache {
    fn name(&self) -> &'static str {
        "dm-writecache"
    }

    fn kind(&self) -> &'static str {
        "writecache"
    }

    fn serves(&self, policy: Policy) -> bool {
        policy == Policy::Writeback
    }

    fn check_source(&self, source: &Source) -> Result<()> {
        if source.block > BLOCKS[0] {
            return Err(source.refused(format_args!(
                "has blocks of {} bytes, and writeback takes {} at most",
                source.block, BLOCKS[0]
            )));
        }
        Ok(())
    }

    /// A block is a logical block of the cache. So it is the largest that what is on the source can be used
    /// with. The size of the source is a multiple of it.
    fn block(&self, disk: &Device<'_>, source: &Source, given: Option<BlockSize>) -> Result<u64> {
        let divides = |block: u64| (source.sectors * SECTOR).is_multiple_of(block);
        let least = *source.blocks.start();
        match given.map(BlockSize::bytes) {
            Some(block) if block < least => Err(source.refused(format_args!(
                "can have no cache on {} with blocks of {block} bytes: one of the two has blocks of {least} bytes",
                disk.name
            ))),
            Some(block) if !divides(block) => {
                Err(source.refused(format_args!("has a size that is no multiple of {block} bytes")))
            }
            Some(block) => Ok(block),
            None => {
                let fits = |block: &u64| source.blocks.contains(block) && divides(*block);
                BLOCKS.into_iter().find(fits).ok_or_else(|| {
                    source.refused(format_args!(
                        "has a size that is no multiple of {least} bytes, the blocks of {}",
                        disk.name
                    ))
                })
            }
        }
    }

    /// `s SOURCE CACHE BLOCK_SIZE #OPTIONAL`, with `s` for a cache that is no persistent memory.
    fn build<'a>(&self, new: &New<'a>, _undo: &mut Undo<'a>) -> Result<dm::Target> {
        let text = format!("s {} {} {} 0", new.source_node(), new.disk_node(), new.block);
        Ok(dm::Target { start: 0, length: new.source.sectors, kind: self.kind().into(), text })
    }

    fn devices(&self, _control: &Control, _name: &CacheName, deps: &[Dev]) -> Result<Option<Devices>> {
        let &[disk, source] = deps else { return Ok(None) };
        Ok(Some(Devices { disk, source }))
    }

    fn stats(&self, name: &CacheName, status: &str) -> Result<CacheStats> {
        let counts: std::result::Result<Vec<u64>, _> =
            status.split_ascii_whitespace().map(str::parse).collect();
        match counts {
            Ok(counts) if counts.len() >= OLD_COUNTERS => {
                Ok(CacheStats::new(name, COUNTERS.into_iter().zip(counts).collect()))
            }
            _ => not_understood(name, self.kind(), status),
        }
    }

    fn write_back(&self, control: &Control, name: &CacheName) -> Result<()> {
        let what = not_written(name);
        control.message(name.as_dm(), "flush").cannot(&what)?;
        // The suspension flushes what is written from here on.
        control.message(name.as_dm(), "flush_on_suspend").cannot(&what)
    }

    /// After an error the target writes nothing any more, and keeps what it has.
    fn lost(&self, control: &Control, name: &CacheName) -> Result<Option<u64>> {
        let state = self.stats(name, &mapping::report(control, name, Report::Status)?.text)?;
        let count = |counter| state.count(counter).unwrap_or(0);
        Ok((count("errors") != 0).then(|| count("num_blocks").saturating_sub(count("num_free_blocks"))))
    }

    fn check_written(&self, control: &Control, name: &CacheName) -> Result<()> {
        let state = self.stats(name, &mapping::report(control, name, Report::Status)?.text)?;
        if state.count("errors") == Some(0) && state.count("num_free_blocks") == state.count("num_blocks") {
            return Ok(());
        }
        Err(kernel::Error::new("writecache status", &Errno::IO.into())).cannot(not_written(name))
    }

    /// A superblock does not name the source of its cache.
    fn check_start(&self, disk: DiskName, first_block: &[u8]) -> Result<()> {
        if !first_block.starts_with(&MAGIC) {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{disk} may still hold unwritten data of an earlier writeback cache that was not removed by this \
             service; flush {disk} first if that data is of no use any more"
        )))
    }

    /// The RAM disk holds no data any more, and must not look as if it did.
    fn clean_up(&self, root: &Root, _name: &CacheName, disk: Option<&str>) -> Result<()> {
        let Some(disk) = disk else { return Ok(()) };
        block::open(root, disk, Mode::ClaimWrite)
            .and_then(|disk| block::write_start(&disk, &[0; SUPERBLOCK]))
            .cannot(format_args!("write the first block of {disk}"))
    }
}

/// Completes "cannot …".
fn not_written(name: &CacheName) -> String {
    format!(
        "write the data of {name} to its source; it stays mapped (if the source is gone for good, \
         removeRapidDiskCache/{name}?discard=1 removes it, and what is not written is lost)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(status: &str) -> Result<Vec<(&'static str, u64)>> {
        Ok(Writecache.stats(&CacheName::parse("rc-wb_sda").unwrap(), status)?.counters)
    }

    #[test]
    fn writecache_has_4_or_14_numbers() {
        let old = counters("0 16320 16319 1").unwrap();
        assert_eq!(
            old,
            [("errors", 0), ("num_blocks", 16320), ("num_free_blocks", 16319), ("num_wb_blocks", 1)]
        );
        let new = counters("0 4080 3080 0 1500 1000 1010 0 10 0 1000 0 0 2").unwrap();
        assert_eq!(new.len(), 14);
        assert_eq!(new[4], ("num_read_req", 1500));
        assert_eq!(new[13], ("num_discard_req", 2));
        for wrong in ["", "0 1 2", "0 1 2 x", "Error", "0 -1 2 3"] {
            assert!(counters(wrong).is_err(), "{wrong:?}");
        }
    }
}
