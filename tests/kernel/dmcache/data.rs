//! What is read and written through a cache, and what its source has of it.

use std::fs;

use serde_json::json;

use super::{ALL, CACHE, CREATE, NODE, REMOVE, assert_there, forced, heat};
use crate::support::data::{assert_same_data, fingerprint, noise, read, try_write, write};
use crate::support::kernel::{map, settle};
use crate::support::{MIB, PAGE, sh, sys};

/// What the source has read, in sectors.
fn source_reads() -> u64 {
    let stat = sys("/sys/block/sda/stat").expect("its counters");
    stat.split_whitespace().nth(2).and_then(|count| count.parse().ok()).expect("a number")
}

#[test]
fn what_is_read_again_comes_from_memory() {
    let guest = forced();
    sh("modprobe dm-delay");
    map("slow", "0 131072 delay /dev/sda 0 10");
    let data = noise(1, 2 * MIB as usize);
    write("/dev/sda", 8 * MIB, &data);
    guest.disk(16);
    let cache = guest.cache("rd0", "mapper%2Fslow", "write-through");
    let node = format!("/dev/mapper/{cache}");
    let pass = || {
        let before = source_reads();
        for page in 0..data.len() / PAGE {
            let at = page * PAGE;
            assert_same_data("read", &read(&node, 8 * MIB + at as u64, PAGE), &data[at..][..PAGE]);
        }
        source_reads() - before
    };
    let first = pass();
    // Once a second the policy decides what is read often, and copies it.
    let mut passes = Vec::new();
    while passes.len() < 20 || passes[passes.len() - 1] >= first / 10 {
        assert!(passes.len() < 500, "sectors read from the source: {first}, then {passes:?}");
        passes.push(pass());
    }
    assert!(first > 0, "nothing was read from the source");
    let stats = guest.stats(&cache);
    let count = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("no {name} in {stats}"));
    // More reads than ours: whoever examines a new device reads it, too.
    assert!(count("reads") >= 21 * 512 && count("cache_hits") > 512, "{stats}");
    assert_eq!(count("reads"), count("read_hits") + count("read_misses"));
    assert_eq!((count("writes"), count("dirty"), count("uncached_reads")), (0, 0, 0));
    assert!(count("promotions") >= 60 && count("used_cache_blocks") == count("promotions"), "{stats}");
    let not_counted =
        ["write_replacement", "read_invalidates", "write_invalidates", "uncached_reads", "uncached_writes"];
    assert_eq!(guest.beside_stats(&cache)["not_counted"], json!(not_counted));
    let counters = stats.as_object().expect("counters").iter().filter(|(name, _)| *name != "device");
    assert!(counters.clone().count() > 20 && counters.clone().all(|(_, count)| count.is_u64()), "{stats}");
    // A write to a cached block goes to the cache and to the source.
    write(&node, 8 * MIB, &noise(2, PAGE));
    assert_same_data("the source", &read("/dev/sda", 8 * MIB, PAGE), &noise(2, PAGE));
    let before = source_reads();
    assert_same_data("the cache", &read(&node, 8 * MIB, PAGE), &noise(2, PAGE));
    assert_eq!(source_reads(), before);
    assert_eq!(
        (guest.stats(&cache)["write_hits"].clone(), guest.stats(&cache)["writes"].clone()),
        (json!(1), json!(1))
    );
}

#[test]
fn a_file_system_on_the_source_is_the_same_byte_for_byte() {
    let guest = forced();
    let data = noise(1, 3 * MIB as usize);
    sh("mke2fs -q -F /dev/sda && mount -t ext4 /dev/sda /mnt");
    fs::write("/mnt/before", &data).expect("a file");
    sh("umount /mnt");
    settle();
    let before = fingerprint("/dev/sda");
    guest.disk(8);
    guest.change(CREATE);
    assert_eq!(fingerprint(NODE), before, "through the cache");
    heat(&guest);
    settle();
    guest.change(REMOVE);
    assert_eq!(fingerprint("/dev/sda"), before, "after a cache that was read");
    guest.change(CREATE);
    sh(&format!("mount -t ext4 {NODE} /mnt"));
    assert_same_data("before", &fs::read("/mnt/before").expect("the file"), &data);
    fs::write("/mnt/through", &data).expect("a file");
    guest.post(REMOVE).failure(409, &[CACHE, "/mnt"]);
    sh("umount /mnt");
    settle();
    guest.change(REMOVE);
    sh("e2fsck -fn /dev/sda >/dev/null 2>&1 || [ ! -x /sbin/e2fsck ]; mount -t ext4 -o ro /dev/sda /mnt");
    assert_same_data("through", &fs::read("/mnt/through").expect("the file"), &data);
}

#[test]
fn a_cache_knows_nothing_of_an_earlier_one_however_that_ended() {
    let guest = forced();
    guest.disk(16);
    for seed in 0..4 {
        guest.change(CREATE);
        heat(&guest);
        settle();
        match seed % 2 {
            0 => drop(guest.change(REMOVE)),
            _ => drop(sh(
                "for name in rc-wt_sda rc-wm_sda rc-wd_sda; do dmsetup remove --retry $name; done; rm -f /dev/mapper/rc-wt_sda",
            )),
        }
        let new = noise(seed, MIB as usize);
        write("/dev/sda", 0, &new);
        settle();
        guest.change(CREATE);
        assert_same_data("through the new one", &read(NODE, 0, new.len()), &new);
        settle();
        guest.change(REMOVE);
    }
}

#[test]
fn a_ram_disk_that_dies_takes_nothing_of_the_source_with_it() {
    let guest = forced();
    guest.disk(8);
    guest.change(CREATE);
    let data = noise(1, MIB as usize);
    write(NODE, 0, &data);
    heat(&guest);
    settle();
    for part in &ALL[..2] {
        // The part keeps its device, but every access to it fails from now on.
        sh(&format!(
            "modprobe dm-flakey; dead=$(dmsetup table {part} | sed 's/linear \\(.*\\)/flakey \\1 0 3600/');
             dmsetup suspend --noflush --nolockfs {part}; echo $dead | dmsetup load {part}; dmsetup resume {part}"
        ));
    }
    assert!(
        try_write(NODE, 0, &noise(2, PAGE)).is_err(),
        "the RAM disk is not dead: this test proves nothing"
    );
    // dm-cache notices when it writes its metadata the next time. Then the daemon says so.
    sh("dmsetup suspend rc-wt_sda; dmsetup resume rc-wt_sda || true");
    let stats = guest.get(&format!("showRapidDiskCacheStats/{CACHE}"));
    let is_told = stats.status == 500 && stats.text.contains("remove the cache");
    let is_shown = || stats.json()["statistics"][0]["metadata_mode"] == "ro";
    assert!(is_told || is_shown(), "{stats:?}");
    let reply = guest.post(REMOVE);
    assert!(reply.status == 200 || reply.text.contains("is removed, but"), "{reply:?}");
    assert_there(&guest, &[]);
    assert_same_data("the source", &read("/dev/sda", PAGE as u64, data.len() - PAGE), &data[PAGE..]);
}
