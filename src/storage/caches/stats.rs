//! What a cache counts, under the names of the API.

use crate::kernel;
use crate::storage::error::{Error, Result};
use crate::storage::names::CacheName;

/// A cache's counters, in the order of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheStats {
    /// The cache.
    pub name: CacheName,
    /// The counters.
    pub counters: Counters,
    /// Those of them that its driver does not count. They are 0.
    pub not_counted: Vec<&'static str>,
    /// The state of its metadata, where it has some.
    pub metadata: Option<Metadata>,
}

/// The state of a cache's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Whether the kernel has stopped writing it.
    pub read_only: bool,
    /// Whether the kernel met an error in it.
    pub needs_check: bool,
}

/// Names and values.
pub type Counters = Vec<(&'static str, u64)>;

/// The counters that clients of the API know of caches that are not writeback. They are those of
/// rapiddisk-cache.
pub const CLIENT: [&str; 13] = [
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

impl CacheStats {
    /// Counters without anything else.
    pub fn new(name: &CacheName, counters: Counters) -> CacheStats {
        CacheStats { name: name.clone(), counters, not_counted: Vec::new(), metadata: None }
    }

    /// The value of a counter; `None` if there is none of this name.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.counters.iter().find(|(counter, _)| *counter == name).map(|&(_, count)| count)
    }
}

/// The error for a status that cannot be read.
pub fn not_understood<T>(name: &CacheName, target: &str, text: &str) -> Result<T> {
    Err(Error::Kernel(
        format!("cannot read the counters of {name}"),
        kernel::Error::strange(format!("{target} reports {text:?}")),
    ))
}
