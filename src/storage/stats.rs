//! What the caches count, read from the text that their targets report.

use rustix::io::Errno;

use super::{CacheName, Driver, Error, Result, Storage, cache};
use crate::kernel;
use crate::kernel::block::SECTOR;

/// A cache's counters under the names of the API, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheStats {
    /// The cache.
    pub name: CacheName,
    /// The counters.
    pub counters: Counters,
    /// Those of them that its driver does not count and that are 0 for it.
    pub not_counted: Vec<&'static str>,
    /// The state of its metadata, where it has some.
    pub metadata: Option<Metadata>,
}

/// The state of a dm-cache's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Whether the kernel has stopped writing it.
    pub read_only: bool,
    /// Whether it met an error in it.
    pub needs_check: bool,
}

/// Names and values.
pub type Counters = Vec<(&'static str, u64)>;

/// Labels of rapiddisk-cache's status; with `_` for blanks they are the names.
const RAPIDDISK_CACHE: [&str; 13] = [
    "reads",
    "writes",
    "cache_hits",
    "replacement",
    "write_replacement",
    "read_invalidates",
    "write_invalidates",
    "uncached_reads",
    "uncached_writes",
    "disk_reads",
    "disk_writes",
    "cache_reads",
    "cache_writes",
];

/// The numbers of writecache's status, in its order. Kernels before 5.15 have the
/// first four (Documentation/admin-guide/device-mapper/writecache.rst).
const WRITECACHE: [&str; 14] = [
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
const WRITECACHE_OLD: usize = 4;

/// The numbers of dm-cache's status, in its order; the sizes of blocks in bytes
/// rather than sectors (Documentation/admin-guide/device-mapper/cache.rst).
const DM_CACHE: [&str; 13] = [
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

/// What dm-cache reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmCacheStatus {
    /// rapiddisk-cache's counters as far as they follow from it, and its own.
    pub counters: Counters,
    /// Those of rapiddisk-cache's that do not.
    pub not_counted: Vec<&'static str>,
    /// Blocks that the source has not.
    pub dirty: u64,
    /// The state of the metadata.
    pub metadata: Metadata,
}

impl Storage {
    /// The counters of a cache.
    pub fn cache_stats(&self, name: &CacheName) -> Result<CacheStats> {
        let (driver, text) = cache::report(&self.control()?, name)?;
        let stats =
            |counters| CacheStats { name: name.clone(), counters, not_counted: vec![], metadata: None };
        match driver {
            Driver::RapidDiskCache => rapiddisk_cache(&text).map(stats),
            Driver::Writecache => writecache(&text).map(stats),
            Driver::DmCache => dm_cache(name, &text).map(|status| CacheStats {
                not_counted: status.not_counted,
                metadata: Some(status.metadata),
                ..stats(status.counters)
            }),
        }
    }
}

/// Reads prose such as "reads(1108), writes(297349)": by whole label, since one
/// label may end another ("disk reads").
fn rapiddisk_cache(text: &str) -> Result<Counters> {
    let counts: Vec<_> = text.split([',', '\n']).filter_map(labelled).collect();
    let count = |name: &'static str| {
        let found = counts.iter().find(|(label, _)| label.replace(' ', "_") == name);
        found.map(|&(_, count)| (name, count)).ok_or(not_understood("rapiddisk-cache", text))
    };
    RAPIDDISK_CACHE.into_iter().map(count).collect()
}

fn labelled(item: &str) -> Option<(&str, u64)> {
    let (label, count) = item.trim().strip_suffix(')')?.split_once('(')?;
    Some((label, count.parse().ok()?))
}

/// Reads the numbers of a writecache.
pub fn writecache(text: &str) -> Result<Counters> {
    let counts: std::result::Result<Vec<u64>, _> = text.split_ascii_whitespace().map(str::parse).collect();
    match counts {
        Ok(counts) if counts.len() >= WRITECACHE_OLD => Ok(WRITECACHE.into_iter().zip(counts).collect()),
        _ => Err(not_understood("writecache", text)),
    }
}

/// Reads the status of a dm-cache: numbers, and words each list of which says its
/// length; a cache whose metadata failed has none of them.
pub fn dm_cache(name: &CacheName, text: &str) -> Result<DmCacheStatus> {
    if text.trim() == "Fail" {
        let what = format!("{name} has failed; its source has all that was written, remove the cache");
        return Err(Error::Kernel(what, kernel::Error::new("dm-cache status", &Errno::IO.into())));
    }
    dm_cache_status(text).ok_or(not_understood("dm-cache", text))
}

fn dm_cache_status(text: &str) -> Option<DmCacheStatus> {
    let mut words = text.split_ascii_whitespace();
    let mut own = Vec::new();
    // "used/total" is two numbers in one word.
    while own.len() < DM_CACHE.len() {
        for number in words.next()?.split('/') {
            own.push(number.parse::<u64>().ok()?);
        }
    }
    let [metadata_block, .., dirty] = own[..] else { return None };
    let [hits, misses, write_hits, write_misses, demotions, promotions] = own[6..12] else { return None };
    own[0] = metadata_block.checked_mul(SECTOR)?;
    own[3] = own[3].checked_mul(SECTOR)?;
    // Features and core arguments, then the policy's after its name.
    skip_list(&mut words)?;
    skip_list(&mut words)?;
    words.next()?;
    skip_list(&mut words)?;
    let metadata = Metadata {
        read_only: one_of(words.next()?, "rw", "ro")?,
        needs_check: one_of(words.next()?, "-", "needs_check")?,
    };
    let derived = |name| {
        let (one, other) = match name {
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
    let counters = RAPIDDISK_CACHE.into_iter().map(|name| (name, derived(name).unwrap_or(0)));
    let counters = counters.chain(DM_CACHE.into_iter().zip(own)).collect();
    let not_counted = RAPIDDISK_CACHE.into_iter().filter(|&name| derived(name).is_none()).collect();
    Some(DmCacheStatus { counters, not_counted, dirty, metadata })
}

/// Whether it is the second word, if it is one of the two.
fn one_of(word: &str, first: &str, second: &str) -> Option<bool> {
    (word == first || word == second).then_some(word == second)
}

fn skip_list<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<()> {
    let count: usize = words.next()?.parse().ok()?;
    (0..count).try_for_each(|_| words.next().map(drop))
}

fn not_understood(target: &str, text: &str) -> Error {
    kernel::Error::strange(format!("{target} reports {text:?}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As rapiddisk-cache 9.0.0 writes it.
    const PROSE: &str = "stats:\n\treads(1108), writes(297349)\n\
        \tcache hits(18446744073709551615), replacement(3), write replacement(4)\n\
        \tread invalidates(5), write invalidates(6)\n\tuncached reads(7), uncached writes(8)\n\
        \tdisk reads(9), disk writes(10)\n\tcache reads(11), cache writes(12)\n";

    #[test]
    fn prose_is_read_by_label_with_all_64_bits() {
        let counters = rapiddisk_cache(PROSE).unwrap();
        let expected =
            [1108, 297349, u64::MAX, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12].into_iter().zip(RAPIDDISK_CACHE);
        assert_eq!(counters, expected.map(|(count, name)| (name, count)).collect::<Vec<_>>());
    }

    #[test]
    fn the_order_of_the_prose_does_not_matter() {
        let turned: Vec<_> = PROSE.trim_end().rsplit(['\n']).collect();
        assert_eq!(rapiddisk_cache(&turned.join("\n")), rapiddisk_cache(PROSE));
    }

    #[test]
    fn a_missing_counter_is_an_error_not_a_zero() {
        assert!(rapiddisk_cache(&PROSE.replace("disk writes(10)", "")).is_err());
        assert!(rapiddisk_cache(&PROSE.replace("(10)", "(ten)")).is_err());
        assert!(rapiddisk_cache("").is_err());
    }

    #[test]
    fn writecache_has_4_or_14_numbers() {
        let old = writecache("0 16320 16319 1").unwrap();
        assert_eq!(
            old,
            [("errors", 0), ("num_blocks", 16320), ("num_free_blocks", 16319), ("num_wb_blocks", 1)]
        );
        let new = writecache("0 4080 3080 0 1500 1000 1010 0 10 0 1000 0 0 2").unwrap();
        assert_eq!(new.len(), 14);
        assert_eq!(new[4], ("num_read_req", 1500));
        assert_eq!(new[13], ("num_discard_req", 2));
        for wrong in ["", "0 1 2", "0 1 2 x", "Error", "0 -1 2 3"] {
            assert!(writecache(wrong).is_err(), "{wrong:?}");
        }
    }
    /// As Linux 6.1 writes it.
    const STATUS: &str = "8 2074/6400 64 17/1047776 1108 140 4294967295 2 3 17 0 2 writethrough \
        no_discard_passdown 2 migration_threshold 2048 smq 0 rw - ";

    #[test]
    fn dm_cache_has_its_own_numbers_and_what_follows_from_them() {
        let cache = CacheName::parse("rc-wt_sda").unwrap();
        let status = dm_cache(&cache, STATUS).unwrap();
        let derived = [1248, 4294967297, 1108, 3, 0, 0, 0, 0, 0, 157, 4294967297, 1108, 4294967312];
        let own = [4096, 2074, 6400, 32768, 17, 1047776, 1108, 140, 4294967295, 2, 3, 17, 0];
        let names = RAPIDDISK_CACHE.into_iter().chain(DM_CACHE);
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
        assert_eq!(status.metadata, Metadata { read_only: false, needs_check: false });
        let failing = dm_cache(&cache, &STATUS.replace("rw -", "ro needs_check")).unwrap();
        assert_eq!(failing.metadata, Metadata { read_only: true, needs_check: true });
        assert_eq!(dm_cache(&cache, &STATUS.replace(" 17 0 2 ", " 17 5 2 ")).unwrap().dirty, 5);
    }

    #[test]
    fn a_dm_cache_that_failed_says_so_and_what_is_not_understood_is_an_error() {
        let cache = CacheName::parse("rc-wt_sda").unwrap();
        assert!(dm_cache(&cache, "Fail").unwrap_err().to_string().contains("remove the cache"));
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
            assert!(dm_cache(&cache, wrong).is_err(), "{wrong:?}");
        }
    }
}
