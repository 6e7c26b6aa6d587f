//! What the caches count, read from the text that their targets report.

use super::{CacheName, Policy, Result, Storage, cache};
use crate::kernel;

/// A cache's counters under the names of the API, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheStats {
    /// The cache.
    pub name: CacheName,
    /// The counters.
    pub counters: Counters,
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

impl Storage {
    /// The counters of a cache.
    pub fn cache_stats(&self, name: &CacheName) -> Result<CacheStats> {
        let text = cache::report(&self.control()?, name)?;
        let counters = match name.policy() {
            Policy::WriteThrough | Policy::WriteAround => rapiddisk_cache(&text),
            Policy::Writeback => writecache(&text),
        };
        Ok(CacheStats { name: name.clone(), counters: counters? })
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

fn not_understood(target: &str, text: &str) -> super::Error {
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
}
