//! Sources of any kind and disks of any size.

use serde_json::json;

use super::{CACHE, REMOVE, forced};
use crate::source::{assert_cacheable, make_loop, make_partition};
use crate::support::data::{assert_same_data, noise, read, write};
use crate::support::kernel::settle;
use crate::support::{MIB, PAGE, guest_with, sh};

#[test]
fn a_source_of_any_kind_is_cached_on_a_disk_of_any_size() {
    let guest = forced();
    for mib in [1, 2, 3, 70] {
        assert_cacheable(&guest, mib, "sdb", &["write-through"]);
    }
    make_partition("sda", 2048, 20_483);
    assert_cacheable(&guest, 8, "sda1", &["write-through"]);
    // dm-cache takes a source with blocks of 4096 bytes; RapidDisk's target does not.
    let large = make_loop(24, 4096);
    let cache = guest.cache(&guest.disk(8), &large, "write-through");
    let (node, data) = (format!("/dev/mapper/{cache}"), noise(1, 64 * PAGE));
    write(&node, 3 * MIB, &data);
    (0..20).for_each(|_| assert_same_data("cached", &read(&node, 3 * MIB, data.len()), &data));
    settle();
    guest.change(&format!("removeRapidDiskCache/{cache}"));
    assert_same_data("the source", &read(&format!("/dev/{large}"), 3 * MIB, data.len()), &data);
}

#[test]
fn a_source_smaller_than_a_block_is_complete() {
    let guest = forced();
    make_partition("sda", 2048, 33);
    guest.disk(8);
    write("/dev/sda1", 0, &noise(1, 33 * 512));
    settle();
    let cache = guest.cache("rd0", "sda1", "write-through");
    let node = format!("/dev/mapper/{cache}");
    assert_same_data("through the cache", &read(&node, 0, 33 * 512), &noise(1, 33 * 512));
    write(&node, 0, &noise(2, 33 * 512));
    settle();
    guest.change(&format!("removeRapidDiskCache/{cache}"));
    assert_same_data("the source", &read("/dev/sda1", 0, 33 * 512), &noise(2, 33 * 512));
}

#[test]
fn the_largest_disks_are_divided_as_the_kernel_wants_it() {
    let guest = guest_with(&["--cache-driver", "dm-cache", "--memory-limit", "100T"]);
    for (gib, block) in [(32, 32), (64, 64), (65, 128), (16 << 10, 16 << 10)] {
        let disk = guest.disk(gib << 10);
        let made = guest.change(&format!("createRapidDiskCache/{disk}/sda/write-through"));
        let message = made["message"].as_str().expect("a message");
        assert!(message.contains(&format!("blocks of {block} KiB")), "{gib} GiB: {message}");
        let stats = guest.stats(CACHE);
        let total = |what: &str| stats[what].as_u64().expect("a number");
        assert!((1 << 19..=1 << 20).contains(&total("total_cache_blocks")), "{stats}");
        settle();
        // Twice: at each suspension the kernel writes its metadata of every block.
        sh(
            "dmsetup suspend rc-wt_sda; dmsetup resume rc-wt_sda; dmsetup suspend rc-wt_sda; dmsetup resume rc-wt_sda",
        );
        let stats = guest.stats(CACHE);
        let total = |what: &str| stats[what].as_u64().expect("a number");
        assert!(total("used_metadata_blocks") < total("total_metadata_blocks") * 2 / 3, "{stats}");
        let beside = guest.beside_stats(CACHE);
        assert_eq!((&beside["metadata_mode"], &beside["needs_check"]), (&json!("rw"), &json!(false)));
        guest.change(REMOVE);
        guest.change(&format!("removeRapidDisk/{disk}"));
    }
    let complaint = "individual cache blocks";
    assert!(!sh("dmesg").contains(complaint), "the kernel warns of {complaint}");
}
