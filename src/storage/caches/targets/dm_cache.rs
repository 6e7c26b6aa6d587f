//! Write-through on a stock kernel: dm-cache, whose metadata and data are two mappings cut out of the
//! one RAM disk (Documentation/admin-guide/device-mapper/cache.rst).

use rustix::io::Errno;

use crate::kernel::block::{self, Dev, Mode, SECTOR};
use crate::kernel::dm::{self, Control, Report};
use crate::kernel::{self, Root, modules};
use crate::storage::caches::mapping::{self, not_made, uuid};
use crate::storage::caches::stats::{CLIENT, CacheStats, Metadata, not_understood};
use crate::storage::caches::target::{Devices, New, Source, Target};
use crate::storage::disks::Device;
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::names::{BlockSize, CacheName, DiskName, Part, Policy};
use crate::storage::undo::Undo;
use crate::storage::wait::retry_busy;

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

/// The numbers of dm-cache's status, in its order; the sizes of blocks in bytes
/// rather than sectors (Documentation/admin-guide/device-mapper/cache.rst).
const COUNTERS: [&str; 13] = [
    "metadata_block_size",
    "used_metadata_blocks",
    "total_metadata_blocks",
    "cache_block_size",
    "used_cache_blocks",
    "total_cache_blocks",
    "read_hits",
    "read_misses",
    "write_hits",
    "write_misses",
    "demotions",
    "promotions",
    "dirty",
];

/// How a RAM disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Bytes in a cache block.
    block: u64,
    /// Bytes for the metadata, at the start of the disk. All else is for the data.
    metadata: u64,
}

impl Layout {
    /// The layout of a RAM disk of this many bytes.
    fn of(disk: DiskName, size: u64) -> Result<Layout> {
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

/// The target.
pub struct DmCache;

impl Target for DmCache {
    fn name(&self) -> &'static str {
        "dm-cache"
    }

    fn kind(&self) -> &'static str {
        "cache"
    }

    fn serves(&self, policy: Policy) -> bool {
        policy == Policy::WriteThrough
    }

    fn check_source(&self, _source: &Source) -> Result<()> {
        Ok(())
    }

    fn block(&self, disk: &Device<'_>, _source: &Source, _given: Option<BlockSize>) -> Result<u64> {
        Ok(Layout::of(disk.name, disk.size)?.block)
    }

    /// `METADATA DATA SOURCE BLOCK_SECTORS #FEATURES FEATURE POLICY #ARGUMENTS ARGUMENT…`.
    fn build<'a>(&self, new: &New<'a>, undo: &mut Undo<'a>) -> Result<dm::Target> {
        let layout = Layout::of(new.disk.name, new.disk.size)?;
        let metadata = make_part(new, Part::Metadata, 0, layout.metadata, undo)?;
        let data = make_part(new, Part::Data, layout.metadata, new.disk.size, undo)?;
        let (source, block) = (new.source.dev, layout.block / SECTOR);
        // Below 8 blocks there is never room for the next one to be moved.
        let threshold = (8 * block).max(2048);
        let text = format!(
            "{metadata} {data} {source} {block} 1 writethrough smq 2 migration_threshold {threshold}"
        );
        Ok(dm::Target { start: 0, length: new.source.sectors, kind: self.kind().into(), text })
    }

    fn missing_module(&self, root: &Root) -> Option<(&'static str, &'static str)> {
        // Where that is not known, the kernel's own refusal is told.
        (modules::is_loaded(root, "dm-cache-smq") == Ok(false))
            .then_some(("policy for dm-cache", "dm-cache-smq"))
    }

    fn devices(&self, control: &Control, name: &CacheName, deps: &[Dev]) -> Result<Option<Devices>> {
        // The kernel lists the device that it took last first: the source.
        let &[source, _, _] = deps else { return Ok(None) };
        // A cache of others may stand on other devices.
        let data = Part::Data.of(name);
        match control.deps(&data) {
            Err(error) if dm::is_missing(&error) => Ok(None),
            on => match on.cannot(format_args!("ask what {data} stands on"))?[..] {
                [disk] => Ok(Some(Devices { disk, source })),
                _ => Ok(None),
            },
        }
    }

    /// Numbers, and words of which each list says its length. A cache whose metadata failed has none
    /// of them.
    fn stats(&self, name: &CacheName, status: &str) -> Result<CacheStats> {
        if status.trim() == "Fail" {
            let what = format!("{name} has failed; its source has all that was written, remove the cache");
            return Err(Error::Kernel(what, kernel::Error::new("dm-cache status", &Errno::IO.into())));
        }
        match read_status(name, status) {
            Some(stats) => Ok(stats),
            None => not_understood(name, "dm-cache", status),
        }
    }

    fn check_parts(&self, root: &Root, control: &Control, name: &CacheName) -> Result<()> {
        for part in Part::ALL.map(|part| part.of(name)) {
            mapping::check_running(control, &part)?;
            mapping::check_closed(root, control, &part, Some(name))?;
        }
        Ok(())
    }

    fn check_written(&self, control: &Control, name: &CacheName) -> Result<()> {
        let table = mapping::report(control, name, Report::Table)?;
        let stats = self.stats(name, &mapping::report(control, name, Report::Status)?.text);
        let is_write_through = table.text.split(' ').any(|word| word == "writethrough");
        match stats {
            Ok(stats) if stats.count("dirty") == Some(0) => Ok(()),
            // A cache whose RAM disk failed does not count any more. What was written is on the
            // source all the same, or its writer was told that it is not.
            Err(_) if is_write_through => Ok(()),
            _ => Err(Error::Kernel(
                format!("{name} has data that its source has not; it stays mapped"),
                kernel::Error::strange("dm-cache status"),
            )),
        }
    }

    /// A part of this very cache, made here.
    fn has_leftovers(&self, control: &Control, name: &CacheName) -> Result<bool> {
        // The parts are named after the source, and only a write-through cache has them.
        if !self.serves(name.policy()) || mapping::info_of(control, name.as_dm())?.is_some() {
            return Ok(false);
        }
        for part in Part::ALL {
            if mapping::ours(control, &part.of(name))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn remove_leftovers(&self, root: &Root, name: &CacheName) -> Result<()> {
        remove_parts(root, name)
    }

    fn clean_up(&self, root: &Root, name: &CacheName, _disk: Option<&str>) -> Result<()> {
        remove_parts(root, name)
    }
}

/// Maps the bytes from `start` to `end` of the RAM disk as a part of the cache.
fn make_part<'a>(new: &New<'a>, part: Part, start: u64, end: u64, undo: &mut Undo<'a>) -> Result<Dev> {
    let (control, part) = (new.control, part.of(new.name));
    let dev = control.create(&part, &uuid(&part)).map_err(|error| not_made(&part, error))?;
    let removed = part.clone();
    undo.push(format!("making {part}"), move || {
        retry_busy(|| control.remove(&removed)).cannot(format_args!("remove {removed}"))
    });
    let table = dm::Target {
        start: 0,
        length: (end - start) / SECTOR,
        kind: "linear".into(),
        text: format!("{} {}", new.disk.dev, start / SECTOR),
    };
    control.load(&part, &[table]).and_then(|()| control.resume(&part)).cannot(format_args!("map {part}"))?;
    Ok(dev)
}

/// Removes the parts of a cache that is gone itself, as far as they are there and were made here. The
/// superblock in the metadata is cleared before.
fn remove_parts(root: &Root, name: &CacheName) -> Result<()> {
    let control = mapping::control(root)?.for_parts();
    let mut outcome = Ok(());
    for part in Part::ALL {
        let dm_name = part.of(name);
        let info = match mapping::ours(&control, &dm_name) {
            Ok(Some(info)) => info,
            Ok(None) => continue,
            Err(error) => {
                outcome = outcome.and(Err(error));
                continue;
            }
        };
        if part == Part::Metadata && info.active && !info.suspended {
            outcome = outcome.and(clear(root, info.dev));
        }
        let removed = retry_busy(|| control.remove(&dm_name));
        outcome = outcome.and(removed.cannot(format_args!("remove {dm_name}")));
    }
    outcome
}

/// Clears the superblock, so that nothing takes what was a cache's metadata for a cache's metadata.
fn clear(root: &Root, dev: Dev) -> Result<()> {
    block::name_of(root, dev)
        .and_then(|name| block::open(root, &name.unwrap_or_default(), Mode::ClaimWrite))
        .and_then(|metadata| block::write_start(&metadata, &[0; METADATA_BLOCK as usize]))
        .cannot("clear the cache's metadata")
}

fn read_status(name: &CacheName, status: &str) -> Option<CacheStats> {
    let mut words = status.split_ascii_whitespace();
    let own = own_counters(&mut words)?;
    // The features and the core arguments, then the policy's arguments after its name.
    skip_list(&mut words)?;
    skip_list(&mut words)?;
    words.next()?;
    skip_list(&mut words)?;
    let metadata = Metadata {
        read_only: one_of(words.next()?, "rw", "ro")?,
        needs_check: one_of(words.next()?, "-", "needs_check")?,
    };
    let [hits, misses, write_hits, write_misses, demotions, promotions] = own[6..12] else { return None };
    let derived = |counter| {
        let (one, other) = match counter {
            "reads" => (hits, misses),
            "writes" | "disk_writes" => (write_hits, write_misses),
            "cache_hits" | "cache_reads" => (hits, 0),
            "replacement" => (demotions, 0),
            "disk_reads" => (misses, promotions),
            "cache_writes" => (write_hits, promotions),
            _ => return None,
        };
        Some(one.saturating_add(other))
    };
    let counters = CLIENT.into_iter().map(|counter| (counter, derived(counter).unwrap_or(0)));
    let counters = counters.chain(COUNTERS.into_iter().zip(own)).collect();
    let not_counted = CLIENT.into_iter().filter(|&counter| derived(counter).is_none()).collect();
    Some(CacheStats { name: name.clone(), counters, not_counted, metadata: Some(metadata) })
}

/// Reads the numbers of [`COUNTERS`]: "used/total" is two of them in one word.
fn own_counters<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Vec<u64>> {
    let mut own = Vec::new();
    while own.len() < COUNTERS.len() {
        for number in words.next()?.split('/') {
            own.push(number.parse::<u64>().ok()?);
        }
    }
    if own.len() != COUNTERS.len() {
        return None;
    }
    for size in ["metadata_block_size", "cache_block_size"] {
        let at = COUNTERS.iter().position(|&counter| counter == size)?;
        own[at] = own[at].checked_mul(SECTOR)?;
    }
    Some(own)
}

/// Whether a word is the second of two; `None` if it is neither.
fn one_of(word: &str, first: &str, second: &str) -> Option<bool> {
    (word == first || word == second).then_some(word == second)
}

fn skip_list<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<()> {
    let count: usize = words.next()?.parse().ok()?;
    (0..count).try_for_each(|_| words.next().map(drop))
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

    fn stats(status: &str) -> Result<CacheStats> {
        DmCache.stats(&CacheName::parse("rc-wt_sda").unwrap(), status)
    }

    /// As Linux 6.1 writes it.
    const STATUS: &str = "8 2074/6400 64 17/1047776 1108 140 4294967295 2 3 17 0 2 writethrough \
        no_discard_passdown 2 migration_threshold 2048 smq 0 rw - ";

    #[test]
    fn dm_cache_has_its_own_numbers_and_what_follows_from_them() {
        let status = stats(STATUS).unwrap();
        let derived = [1248, 4294967297, 1108, 3, 0, 0, 0, 0, 0, 157, 4294967297, 1108, 4294967312];
        let own = [4096, 2074, 6400, 32768, 17, 1047776, 1108, 140, 4294967295, 2, 3, 17, 0];
        let names = CLIENT.into_iter().chain(COUNTERS);
        assert_eq!(status.counters, names.zip(derived.into_iter().chain(own)).collect::<Vec<_>>());
        assert_eq!(
            status.not_counted,
            [
                "write_replacement",
                "read_invalidates",
                "write_invalidates",
                "uncached_reads",
                "uncached_writes"
            ]
        );
        assert_eq!(status.metadata, Some(Metadata { read_only: false, needs_check: false }));
        let failing = stats(&STATUS.replace("rw -", "ro needs_check")).unwrap();
        assert_eq!(failing.metadata, Some(Metadata { read_only: true, needs_check: true }));
        assert_eq!(stats(&STATUS.replace(" 17 0 2 ", " 17 5 2 ")).unwrap().count("dirty"), Some(5));
    }

    #[test]
    fn a_dm_cache_that_failed_says_so_and_what_is_not_understood_is_an_error() {
        assert!(stats("Fail").unwrap_err().to_string().contains("remove the cache"));
        for wrong in [
            "",
            "Error",
            "8 7/12 64 0/30 0 0 0 0 0 0 0",
            &STATUS.replace("1108", "-1"),
            &STATUS.replace("2074/6400", "2074"),
            &STATUS.replace("2 writethrough", "9 writethrough"),
            &STATUS.replace("rw -", "rw"),
            &STATUS.replace("rw -", "xx -"),
            &STATUS.replace("8 2074", "18446744073709551615 2074"),
        ] {
            assert!(stats(wrong).is_err(), "{wrong:?}");
        }
    }
}
