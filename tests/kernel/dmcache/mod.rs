//! Write-through caches of dm-cache, on a RAM disk that is divided into metadata and data. The
//! daemon is told to use dm-cache, so that these tests run beside RapidDisk's modules as well.

mod data;
mod failure;
mod parts;
mod rapiddisk;
mod sources;

use serde_json::json;

use crate::support::data::read;
use crate::support::kernel::{all_mappings, dm_of, eventually, is_suspended, names, settle, size};
use crate::support::{Client, Guest, MIB, guest_with};

const FORCED: [&str; 2] = ["--cache-driver", "dm-cache"];
const CACHE: &str = "rc-wt_sda";
const ALL: [&str; 3] = ["rc-wd_sda", "rc-wm_sda", CACHE];
const CREATE: &str = "createRapidDiskCache/rd0/sda/write-through";
const REMOVE: &str = "removeRapidDiskCache/rc-wt_sda";
const NODE: &str = "/dev/mapper/rc-wt_sda";

fn forced() -> Guest {
    guest_with(&FORCED)
}

/// These are all mappings, none is suspended, and the listing says the same.
fn assert_there(client: &Client, wanted: &[&str]) {
    settle();
    assert_eq!(all_mappings(), wanted);
    assert!(all_mappings().iter().all(|name| !is_suspended(name)));
    let is_cached = wanted.contains(&CACHE);
    let listed = json!([{"device": CACHE, "cache": "rd0", "source": "sda", "mode": "write-through", "driver": "dm-cache"}]);
    assert_eq!(client.caches(), listed.as_array().expect("a list")[..usize::from(is_cached)]);
    let nodes: Vec<_> = names("/dev/mapper").into_iter().filter(|name| name != "control").collect();
    assert_eq!(nodes, &[CACHE][..usize::from(is_cached)]);
    if is_cached {
        assert_eq!(size(&dm_of(CACHE)), size("sda"));
    }
}

/// Reads a MiB until dm-cache has it in memory. dm-cache decides once a second what is read
/// often enough.
fn heat(client: &Client) {
    eventually("it is cached", || {
        read(NODE, 0, MIB as usize);
        client.stats(CACHE)["promotions"].as_u64() >= Some(16)
    });
}
