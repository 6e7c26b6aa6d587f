//! Caches: their parameters, what is done with them, and their JSON.

use serde_json::{Map, Value, json};

use super::answer::{done, made};
use super::parameters::{Kind, Parameter, Parameters, Parsed, Values};
use crate::storage::{
    BlockSize, Cache, CacheName, CacheStats, DiskName, Policy, Result, SourceName, Storage,
};

/// What is done with caches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheAction {
    /// Put a RAM disk as a cache in front of a source, with blocks of this size if one is given.
    Create(DiskName, SourceName, Policy, Option<BlockSize>),
    /// Remove one.
    Remove(CacheName, Discard),
    /// The counters of one.
    Stats(CacheName),
}

/// Whether a writeback cache is removed although its source does not take its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discard(pub bool);

impl CacheAction {
    /// Reads the action that makes a cache.
    ///
    /// # Errors
    /// A parameter is wrong, or the policy has no size of blocks to choose.
    pub fn create(parameters: &mut Parameters<'_>) -> Parsed<CacheAction> {
        let (disk, source, policy) = (parameters.take()?, parameters.take()?, parameters.take()?);
        let block = parameters.option()?;
        if block.is_some() && policy != Policy::Writeback {
            return Err("only writeback has blocks whose size can be chosen".into());
        }
        Ok(CacheAction::Create(disk, source, policy, block))
    }
}

impl Parameter for CacheName {
    const KIND: Kind = Kind {
        name: "cache",
        description: "A cache, as `listRapidDiskVolumes` names it.",
        values: Values::Pattern("rc-w[tab]_[0-9A-Za-z#+.:=@_-]{1,121}"),
        example: "rc-wt_sdb",
        expected: "the name of a cache, such as rc-wt_sdb",
    };

    fn read(text: &str) -> Option<CacheName> {
        CacheName::parse(text)
    }
}

impl Parameter for SourceName {
    const KIND: Kind = Kind {
        name: "source",
        description: "The device that is cached: a disk, a partition, an md, loop or device-mapper device, named \
                      as below `/dev` or as a list shows it. A slash in the name is written `%2F`.",

        values: Values::Pattern(
            "([^/.\\x00-\\x1f\\x7f-\\x9f][^/\\x00-\\x1f\\x7f-\\x9f]*/)*[^/.\\x00-\\x1f\\x7f-\\x9f][^/\\x00-\\x1f\\x7f-\\x9f]*",
        ),
        example: "mapper/vg0-home",
        expected: "the name of a device below /dev, such as sdb or mapper%2Fvg0-home",
    };

    fn read(text: &str) -> Option<SourceName> {
        SourceName::parse(text)
    }
}

impl Parameter for Policy {
    const KIND: Kind = Kind {
        name: "policy",
        description: "What the cache does with writes. `write-back` is another name for `writeback`.",
        values: Values::OneOf(&["write-through", "write-around", "writeback", "write-back"]),
        example: "write-through",
        expected: "a policy; there are write-through, write-around and writeback",
    };

    fn read(text: &str) -> Option<Policy> {
        Policy::parse(text)
    }
}

impl Parameter for BlockSize {
    const KIND: Kind = Kind {
        name: "block",
        description: "The bytes in a block of a writeback cache. If it is not given, it follows what is on the \
                      source.",
        values: Values::OneOf(&["512", "1024", "2048", "4096"]),
        example: "512",
        expected: "a block size; there are 512, 1024, 2048 and 4096",
    };

    fn read(text: &str) -> Option<BlockSize> {
        BlockSize::parse(text)
    }
}

impl Parameter for Discard {
    const KIND: Kind = Kind {
        name: "discard",
        description: "With `1`, a writeback cache is removed although its source is gone or fails. **What could \
                      not be written to the source is lost.**",
        values: Values::OneOf(&["1", "0"]),
        example: "1",
        expected: "1 or 0",
    };

    fn read(text: &str) -> Option<Discard> {
        ["0", "1"].iter().position(|value| *value == text).map(|at| Discard(at == 1))
    }
}

/// Does what `action` asks for. Returns the answer's body.
pub fn execute(storage: &Storage, action: &CacheAction) -> Result<Value> {
    Ok(match action {
        CacheAction::Create(disk, source, policy, block) => {
            let cache = storage.caches.create(*disk, source, *policy, *block)?;
            let (name, driver) = (&cache.name, cache.driver);
            let block = match cache.block {
                512 => "512 bytes".to_owned(),
                block => format!("{} KiB", block >> 10),
            };
            let message =
                format!("{disk} caches {source} ({driver}, blocks of {block}); use it as /dev/mapper/{name}");
            made("device", name, message)
        }
        CacheAction::Remove(cache, Discard(false)) => {
            let left = storage.caches.remove(cache)?;
            done(left.told_after(format_args!("{cache} is removed")))
        }
        CacheAction::Remove(cache, Discard(true)) => {
            let (lost, left) = storage.caches.discard(cache)?;
            let blocks = match lost {
                0 => "nothing is".to_owned(),
                1 => "1 block of data is".to_owned(),
                lost => format!("{lost} blocks of data are"),
            };
            let mut body = done(left.told_after(format_args!("{cache} is removed, and {blocks} lost")));
            body["lost_blocks"] = lost.into();
            body
        }
        CacheAction::Stats(cache) => statistics(&storage.caches.stats(cache)?),
    })
}

/// A cache in a list.
pub fn entry(cache: &Cache) -> Value {
    json!({
        "device": cache.name.to_string(),
        "cache": cache.disk,
        "source": cache.source,
        "mode": cache.policy.as_str(),
        "driver": cache.driver,
    })
}

/// `showRapidDiskCacheStats`. Clients draw every field of `cache_stats` but the device, so that each of them
/// is a number. What is none stands beside them.
fn statistics(stats: &CacheStats) -> Value {
    let mut fields = Map::new();
    fields.insert("device".into(), stats.name.to_string().into());
    fields.extend(stats.counters.iter().map(|&(name, count)| (name.to_owned(), count.into())));
    let mut entry = json!({"cache_stats": [fields]});
    if let Some(metadata) = stats.metadata {
        entry["metadata_mode"] = if metadata.read_only { "ro" } else { "rw" }.into();
        entry["needs_check"] = metadata.needs_check.into();
    }
    if !stats.not_counted.is_empty() {
        entry["not_counted"] = stats.not_counted.clone().into();
    }
    json!({"statistics": [entry]})
}

#[cfg(test)]
mod tests {
    use super::super::page;
    use super::*;
    use crate::storage::Metadata;

    #[test]
    fn the_counters_are_those_of_the_reference() {
        let stats = CacheStats {
            name: CacheName::parse("rc-wb_sdd").unwrap(),
            counters: vec![
                ("errors", 0),
                ("num_blocks", 16320),
                ("num_free_blocks", 16320),
                ("num_wb_blocks", 0),
            ],
            not_counted: vec![],
            metadata: None,
        };
        assert_eq!(
            statistics(&stats),
            json!({"statistics": [{"cache_stats": [
                {"device": "rc-wb_sdd", "errors": 0, "num_blocks": 16320, "num_free_blocks": 16320, "num_wb_blocks": 0}
            ]}]})
        );
    }

    #[test]
    fn the_page_shows_the_counters_of_a_rapiddisk_cache() {
        let counters = [
            ("reads", 527),
            ("writes", 1),
            ("cache_hits", 264),
            ("replacement", 0),
            ("write_replacement", 0),
            ("read_invalidates", 1),
            ("write_invalidates", 1),
            ("uncached_reads", 1),
            ("uncached_writes", 0),
            ("disk_reads", 263),
            ("disk_writes", 1),
            ("cache_reads", 264),
            ("cache_writes", 263),
        ];
        let stats = CacheStats {
            name: CacheName::parse("rc-wt_sdb").unwrap(),
            counters: counters.to_vec(),
            not_counted: vec![],
            metadata: None,
        };
        assert_eq!(page::example("showRapidDiskCacheStats"), statistics(&stats));
    }

    #[test]
    fn what_a_cache_does_not_count_is_named() {
        let stats = CacheStats {
            name: CacheName::parse("rc-wt_sda").unwrap(),
            counters: vec![("reads", 7), ("uncached_reads", 0)],
            not_counted: vec!["uncached_reads"],
            metadata: Some(Metadata { read_only: true, needs_check: false }),
        };
        let body = statistics(&stats);
        assert_eq!(
            body["statistics"][0],
            json!({
                "cache_stats": [{"device": "rc-wt_sda", "reads": 7, "uncached_reads": 0}],
                "not_counted": ["uncached_reads"], "metadata_mode": "ro", "needs_check": false
            })
        );
        assert_eq!(
            body.to_string(),
            concat!(
                r#"{"statistics":[{"cache_stats":[{"device":"rc-wt_sda","reads":7,"uncached_reads":0}],"#,
                r#""metadata_mode":"ro","needs_check":false,"not_counted":["uncached_reads"]}]}"#
            )
        );
    }

    #[test]
    fn a_cache_in_a_list_has_these_bytes() {
        let cache = Cache {
            name: CacheName::parse("rc-wt_sdb").unwrap(),
            disk: "rd0".into(),
            source: "sdb".into(),
            policy: Policy::WriteThrough,
            driver: "rapiddisk-cache",
        };
        assert_eq!(
            entry(&cache).to_string(),
            concat!(
                r#"{"cache":"rd0","device":"rc-wt_sdb","driver":"rapiddisk-cache","mode":"write-through","#,
                r#""source":"sdb"}"#
            )
        );
    }
}
