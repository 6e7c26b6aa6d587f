//! Beside RapidDisk's own modules.

use std::path::Path;

use serde_json::Value;

use super::{ALL, CACHE, CREATE, FORCED, REMOVE, assert_there, forced};
use crate::support::kernel::{State, all_mappings, eventually, put, settle};
use crate::support::{Daemon, clean, guest, sh};

#[test]
fn a_disk_that_is_too_small_is_refused() {
    let guest = forced();
    put("/sys/kernel/rapiddisk/mgmt", "rapiddisk attach 1 524288");
    eventually("rd1", || Path::new("/dev/rd1").exists());
    guest.refuses("createRapidDiskCache/rd1/sda/write-through", 409, &["rd1", "1 MiB"]);
}

#[test]
fn both_drivers_stand_side_by_side_and_each_daemon_knows_both() {
    let guest = guest();
    let other = Daemon::start(&FORCED);
    let (modules, stock) = (*guest, other.client());
    guest.disk(8);
    guest.disk(8);
    modules.cache("rd0", "sda", "write-through");
    stock.cache("rd1", "sdb", "write-through");
    settle();
    for client in [modules, stock] {
        let drivers: Vec<_> = client.caches().iter().map(|cache| cache["driver"].clone()).collect();
        assert_eq!(drivers, ["rapiddisk-cache", "dm-cache"]);
        assert_eq!(client.beside_stats(CACHE)["not_counted"], Value::Null);
        assert!(client.beside_stats("rc-wt_sdb")["not_counted"].is_array());
    }
    stock.change(REMOVE);
    modules.change("removeRapidDiskCache/rc-wt_sdb");
    assert_eq!(all_mappings(), [""; 0]);
    // Without the module the daemon takes dm-cache by itself.
    sh("rmmod rapiddisk-cache");
    modules.change(CREATE);
    let state = State::now();
    assert_there(&modules, &ALL);
    modules.post("createRapidDiskCache/rd1/sdb/write-around").failure(503, &["modprobe rapiddisk-cache"]);
    state.assert_unchanged("write-around");
    modules.change(REMOVE);
    sh(&format!("modprobe -a {}", clean::modules()));
}
