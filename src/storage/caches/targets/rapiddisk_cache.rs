//! RapidDisk's own target, `rapiddisk-cache`, for write-through and write-around. It keeps no
//! superblock, and takes the whole RAM disk.

use crate::kernel::block::{Dev, SECTOR};
use crate::kernel::dm::{self, Control};
use crate::storage::caches::stats::{CLIENT, CacheStats, not_understood};
use crate::storage::caches::target::{Devices, New, Source, Target};
use crate::storage::disks::Device;
use crate::storage::error::{Error, Result};
use crate::storage::names::{BlockSize, CacheName, Policy};
use crate::storage::undo::Undo;

/// Bytes in a block.
const BLOCK: u64 = 4096;
/// The smallest RAM disk that it can use, in bytes: one set of 512 blocks.
const DISK_MIN: u64 = 512 * BLOCK;

/// The target.
pub struct RapidDiskCache;

impl Target for RapidDiskCache {
    fn name(&self) -> &'static str {
        "rapiddisk-cache"
    }

    fn kind(&self) -> &'static str {
        "rapiddisk-cache"
    }

    fn serves(&self, policy: Policy) -> bool {
        policy != Policy::Writeback
    }

    fn is_stock(&self) -> bool {
        false
    }

    fn has_superblock(&self) -> bool {
        false
    }

    fn check_source(&self, source: &Source) -> Result<()> {
        if source.block == SECTOR {
            return Ok(());
        }
        Err(source.refused(format_args!(
            "has blocks of {} bytes, and this policy takes 512 alone; use writeback",
            source.block
        )))
    }

    fn block(&self, disk: &Device<'_>, _source: &Source, _given: Option<BlockSize>) -> Result<u64> {
        if disk.size < DISK_MIN {
            return Err(Error::Conflict(format!("{} is too small for a cache; it takes 2 MiB", disk.name)));
        }
        Ok(BLOCK)
    }

    /// `SOURCE CACHE CACHE_SECTORS MODE`, mode 0 for write-through and 1 for write-around.
    fn build<'a>(&self, new: &New<'a>, _undo: &mut Undo<'a>) -> Result<dm::Target> {
        let mode = if new.policy == Policy::WriteThrough { 0 } else { 1 };
        let sectors = new.disk.size / SECTOR;
        let text = format!("{} {} {sectors} {mode}", new.source_node(), new.disk_node());
        Ok(dm::Target { start: 0, length: new.source.sectors, kind: self.kind().into(), text })
    }

    fn devices(&self, _control: &Control, _name: &CacheName, deps: &[Dev]) -> Result<Option<Devices>> {
        let &[disk, source] = deps else { return Ok(None) };
        Ok(Some(Devices { disk, source }))
    }

    /// Reads prose such as "reads(1108), writes(297349)". A counter is found by its whole label, since
    /// one label may be the end of another ("disk reads").
    fn stats(&self, name: &CacheName, status: &str) -> Result<CacheStats> {
        let counts: Vec<_> = status.split([',', '\n']).filter_map(labelled).collect();
        let count = |counter: &'static str| {
            let found = counts.iter().find(|(label, _)| label.replace(' ', "_") == counter);
            found.map(|&(_, count)| (counter, count))
        };
        match CLIENT.into_iter().map(count).collect() {
            Some(counters) => Ok(CacheStats::new(name, counters)),
            None => not_understood(name, self.kind(), status),
        }
    }

    fn is_suspended_first(&self) -> bool {
        false
    }
}

fn labelled(item: &str) -> Option<(&str, u64)> {
    let (label, count) = item.trim().strip_suffix(')')?.split_once('(')?;
    Some((label, count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As rapiddisk-cache 9.0.0 writes it.
    const PROSE: &str = "stats:\n\treads(1108), writes(297349)\n\
        \tcache hits(18446744073709551615), replacement(3), write replacement(4)\n\
        \tread invalidates(5), write invalidates(6)\n\tuncached reads(7), uncached writes(8)\n\
        \tdisk reads(9), disk writes(10)\n\tcache reads(11), cache writes(12)\n";

    fn stats(prose: &str) -> Result<CacheStats> {
        RapidDiskCache.stats(&CacheName::parse("rc-wt_sda").unwrap(), prose)
    }

    #[test]
    fn prose_is_read_by_label_with_all_64_bits() {
        let counters = stats(PROSE).unwrap().counters;
        let expected = [1108, 297349, u64::MAX, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12].into_iter().zip(CLIENT);
        assert_eq!(counters, expected.map(|(count, name)| (name, count)).collect::<Vec<_>>());
    }

    #[test]
    fn the_order_of_the_prose_does_not_matter() {
        let turned: Vec<_> = PROSE.trim_end().rsplit(['\n']).collect();
        assert_eq!(stats(&turned.join("\n")), stats(PROSE));
    }

    #[test]
    fn a_missing_counter_is_an_error_not_a_zero() {
        assert!(stats(&PROSE.replace("disk writes(10)", "")).is_err());
        assert!(stats(&PROSE.replace("(10)", "(ten)")).is_err());
        assert!(stats("").is_err());
    }
}
