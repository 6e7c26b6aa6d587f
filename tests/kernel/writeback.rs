//! A writeback cache holds the only copy of what was written. Either the data reaches the
//! source, or the cache is not removed.

use std::path::Path;

use rapiddiskd::kernel::dm::Report;

use crate::support::data::{PAGE, Random, assert_same_data, fingerprint, noise, read, write};
use crate::support::kernel::{
    Process, attribute, eventually, is_suspended, map, mappings, put, settle, target,
};
use crate::support::{Guest, MIB, guest, guest_with, sh, sys};

/// How many blocks have not been written to the source yet.
fn dirty(guest: &Guest, cache: &str) -> u64 {
    let stats = guest.stats(cache);
    stats["num_blocks"].as_u64().expect("a number") - stats["num_free_blocks"].as_u64().expect("a number")
}

#[test]
fn nothing_is_lost_when_a_cache_full_of_unwritten_data_is_removed() {
    let guest = guest();
    guest.disk(48);
    write("/dev/sda", 0, &noise(9, 64 * MIB as usize));
    settle();
    guest.cache("rd0", "sda", "writeback");
    // 32 MiB in pieces of 64 KiB, in random order.
    let mut wanted = noise(9, 64 * MIB as usize);
    let data = noise(1, 32 * MIB as usize);
    let mut places: Vec<u64> = (0..1024).collect();
    let mut random = Random::new(7);
    for i in (1..places.len()).rev() {
        places.swap(i, random.below(i as u64 + 1) as usize);
    }
    for (piece, place) in data.chunks(64 << 10).zip(places) {
        let at = place * (64 << 10);
        write("/dev/mapper/rc-wb_sda", at, piece);
        wanted[at as usize..][..piece.len()].copy_from_slice(piece);
    }
    assert!(dirty(&guest, "rc-wb_sda") > 4096, "nothing was held back: {}", guest.stats("rc-wb_sda"));
    assert!(read("/dev/sda", 0, 64 * MIB as usize) != wanted, "nothing was held back");
    assert_same_data("through the cache", &read("/dev/mapper/rc-wb_sda", 0, 64 * MIB as usize), &wanted);
    settle();
    guest.change("removeRapidDiskCache/rc-wb_sda");
    assert_same_data("the source", &read("/dev/sda", 0, 64 * MIB as usize), &wanted);
    // The disk does not look as if it held unwritten data.
    guest.cache("rd0", "sdb", "writeback");
    settle();
    guest.change("removeRapidDiskCache/rc-wb_sdb");
    assert_same_data("the source", &read("/dev/sda", 0, 64 * MIB as usize), &wanted);
}

#[test]
fn more_data_than_the_cache_holds_is_not_lost_either() {
    let guest = guest();
    guest.disk(2);
    guest.cache("rd0", "sda", "writeback");
    let data = noise(2, 5 * MIB as usize);
    write("/dev/mapper/rc-wb_sda", 8 * MIB, &data);
    settle();
    guest.change("removeRapidDiskCache/rc-wb_sda");
    assert_same_data("the source", &read("/dev/sda", 8 * MIB, data.len()), &data);
}

#[test]
fn a_cache_that_is_open_keeps_what_it_holds() {
    let guest = guest();
    guest.disk(16);
    guest.cache("rd0", "sda", "writeback");
    let data = noise(3, 2 * MIB as usize);
    write("/dev/mapper/rc-wb_sda", 0, &data);
    settle();
    let dirty_before = dirty(&guest, "rc-wb_sda");
    assert!(dirty_before > 0);
    let reader = Process::asleep("</dev/mapper/rc-wb_sda");
    guest.refuses("removeRapidDiskCache/rc-wb_sda", 409, &["rc-wb_sda", "open in sleep"]);
    assert!(!is_suspended("rc-wb_sda"));
    assert_same_data("the cache", &read("/dev/mapper/rc-wb_sda", 0, data.len()), &data);
    drop(reader);
    guest.change("removeRapidDiskCache/rc-wb_sda");
    assert_same_data("the source", &read("/dev/sda", 0, data.len()), &data);
}

/// A source of 32 MiB that can be made to fail.
fn failing_source() {
    map("weak", "0 65536 linear /dev/sda 0");
}

fn reload(table: &str) {
    sh(&format!(
        "echo '{table}' | dmsetup load weak && dmsetup suspend --noflush --nolockfs weak && dmsetup resume weak"
    ));
    settle();
}

#[test]
fn a_cache_whose_source_fails_is_not_removed() {
    let guest = guest();
    failing_source();
    guest.disk(16);
    // With the blocks that the rescue below takes.
    guest.cache("rd0", "mapper%2Fweak", "writeback?block=4096");
    let data = noise(4, 4 * MIB as usize);
    write("/dev/mapper/rc-wb_weak", 0, &data);
    settle();
    reload("0 65536 error");
    for _ in 0..2 {
        guest.post("removeRapidDiskCache/rc-wb_weak").failure(500, &["rc-wb_weak", "source", "stays mapped"]);
        assert_eq!(mappings(), ["rc-wb_weak", "weak"]);
        assert!(!is_suspended("rc-wb_weak"), "it was left suspended");
        assert_eq!(guest.caches()[0]["source"], "mapper/weak");
    }
    assert_ne!(guest.stats("rc-wb_weak")["errors"], 0);
    // The disk with the only copy cannot be removed either.
    for path in ["removeRapidDisk/rd0", "flushRapidDisk/rd0", "resizeRapidDisk/rd0/1"] {
        guest.post(path).failure(409, &["rd0", "rc-wb_weak"]);
    }
    // If somebody removes the mapping, the RAM disk still has the data.
    let held = fingerprint("/dev/rd0");
    reload("0 65536 linear /dev/sda 0");
    sh("dmsetup remove --retry rc-wb_weak");
    settle();
    assert_eq!(fingerprint("/dev/rd0"), held);
    guest.refuses("createRapidDiskCache/rd0/sdb/writeback", 409, &["rd0", "unwritten"]);
    guest.refuses("createRapidDiskCache/rd0/mapper%2Fweak/writeback", 409, &["rd0", "unwritten"]);
    sh("echo '0 65536 writecache s /dev/mapper/weak /dev/rd0 4096 0' | dmsetup create rescue");
    settle();
    sh("dmsetup message rescue 0 flush; dmsetup remove --retry rescue");
    assert_same_data("the source, rescued", &read("/dev/sda", 0, data.len()), &data);
}

#[test]
fn a_source_that_fails_for_writes_alone_does_not_lose_them() {
    let guest = guest();
    sh("modprobe dm-flakey");
    guest.disk(16);
    let data = noise(5, 2 * MIB as usize);
    for block in [512, 4096] {
        failing_source();
        guest.cache("rd0", "mapper%2Fweak", &format!("writeback?block={block}"));
        write("/dev/mapper/rc-wb_weak", 0, &data);
        settle();
        reload("0 65536 flakey /dev/sda 0 0 60 1 error_writes");
        guest.post("removeRapidDiskCache/rc-wb_weak").failure(500, &["rc-wb_weak", "stays mapped"]);
        assert_eq!(mappings(), ["rc-wb_weak", "weak"]);
        assert!(!is_suspended("rc-wb_weak"));
        assert_same_data("the cache", &read("/dev/mapper/rc-wb_weak", 0, data.len()), &data);
        let lost = dirty(&guest, "rc-wb_weak");
        assert!(lost * block >= data.len() as u64, "{lost}");
        let made = guest.change("removeRapidDiskCache/rc-wb_weak?discard=1");
        assert_eq!(made["lost_blocks"], lost);
        assert_eq!(mappings(), ["weak"]);
        sh("dmsetup remove --retry weak; blkdiscard -z /dev/sda");
    }
}

/// Data that was not written yet is there after a suspension that no removal follows.
#[test]
fn a_cache_that_was_only_suspended_keeps_what_it_holds() {
    let guest = guest();
    guest.disk(16);
    let data = noise(6, 2 * MIB as usize);
    for block in [512, 4096] {
        let cache = guest.cache("rd0", "sda", &format!("writeback?block={block}"));
        for message in
            ["", "dmsetup message rc-wb_sda 0 flush_on_suspend;", "dmsetup message rc-wb_sda 0 flush;"]
        {
            write("/dev/mapper/rc-wb_sda", 0, &data);
            sh(&format!("{message} dmsetup suspend {cache} && dmsetup resume {cache}"));
            assert_same_data(message, &read("/dev/mapper/rc-wb_sda", 0, data.len()), &data);
        }
        guest.change(&format!("removeRapidDiskCache/{cache}"));
        assert_same_data("the source", &read("/dev/sda", 0, data.len()), &data);
        sh("blkdiscard -z /dev/sda");
    }
}

/// A disk `sdc`, which ends with its host when this is dropped.
struct Extra(bool);

const HOSTS: &str = "/sys/bus/pseudo/drivers/scsi_debug/add_host";

impl Extra {
    fn new() -> Extra {
        put(HOSTS, "1");
        eventually("the disk", || Path::new("/dev/sdc").exists());
        settle();
        write("/dev/sdc", 0, &vec![0; MIB as usize]);
        settle();
        Extra(true)
    }

    /// Whoever uses it loses it.
    fn pull_out(&mut self) {
        put(HOSTS, "-1");
        eventually("the disk is gone", || !Path::new("/sys/block/sdc").exists());
        self.0 = false;
        settle();
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        if self.0 {
            put(HOSTS, "-1");
        }
    }
}

/// As if the kernel had given the number of a disk that is gone to another one.
struct Renumbered;

impl Renumbered {
    fn new(gone: &str, other: &str) -> Renumbered {
        sh(&format!(
            "mkdir /tmp/test/block; cp -a /sys/dev/block/. /tmp/test/block; cd /tmp/test/block
             ln -s $(readlink {other}) {gone}; mount --bind /tmp/test/block /sys/dev/block"
        ));
        Renumbered
    }
}

impl Drop for Renumbered {
    fn drop(&mut self) {
        sh("umount /sys/dev/block");
    }
}

#[test]
fn a_cache_whose_source_was_pulled_out_is_given_up_only_if_the_call_says_so() {
    let guest = guest_with(&["--cache-driver", "dm-cache"]);
    guest.disk(16);
    let mut source = Extra::new();
    let cache = guest.cache("rd0", "sdc", "writeback");
    write("/dev/mapper/rc-wb_sdc", 0, &noise(1, MIB as usize));
    settle();
    let lost = dirty(&guest, &cache);
    assert!(lost >= MIB / PAGE as u64, "{lost}");
    let dev = attribute("sdc", "dev").expect("a number");
    source.pull_out();
    guest.post("removeRapidDiskCache/rc-wb_sdc").failure(500, &["stays mapped", "rc-wb_sdc?discard=1"]);
    assert_eq!(guest.caches()[0]["source"], dev.as_str());
    {
        let _renumbered = Renumbered::new(&dev, "8:0");
        assert_eq!(sh(&format!("basename $(readlink /sys/dev/block/{dev})")), "sda");
        assert_eq!(guest.caches()[0]["source"], dev.as_str());
    }
    let reader = Process::asleep("</dev/mapper/rc-wb_sdc");
    guest.post("removeRapidDiskCache/rc-wb_sdc?discard=1").failure(409, &["rc-wb_sdc", "open in sleep"]);
    drop(reader);
    let made = guest.change("removeRapidDiskCache/rc-wb_sdc?discard=1");
    assert_eq!(made["lost_blocks"], lost, "{made}");
    assert_eq!(mappings(), [""; 0]);
    let log = sys("/tmp/daemon.log").expect("the log");
    assert!(
        log.contains(r#"action="POST /v1/removeRapidDiskCache/rc-wb_sdc?discard=1" status=200"#),
        "{log}"
    );
    // The RAM disk is free again. From a source that is there nothing is lost.
    let data = noise(2, MIB as usize);
    guest.cache("rd0", "sda", "writeback");
    write("/dev/mapper/rc-wb_sda", 0, &data);
    settle();
    assert_eq!(guest.change("removeRapidDiskCache/rc-wb_sda?discard=1")["lost_blocks"], 0);
    assert_same_data("the source", &read("/dev/sda", 0, data.len()), &data);
    // A dm-cache has nothing that its source has not.
    let mut source = Extra::new();
    guest.cache("rd0", "sdc", "write-through");
    write("/dev/mapper/rc-wt_sdc", 0, &data);
    settle();
    source.pull_out();
    guest.change("removeRapidDiskCache/rc-wt_sdc");
    assert_eq!(mappings(), [""; 0]);
}

#[test]
fn a_disk_with_unwritten_data_of_another_cache_is_refused() {
    let guest = guest();
    guest.disk(16);
    // As if another program had made and removed a cache.
    map("other", "0 131072 writecache s /dev/sda /dev/rd0 4096 0");
    write("/dev/mapper/other", 0, &noise(6, 64 * PAGE));
    settle();
    sh("dmsetup remove --retry other");
    settle();
    let held = fingerprint("/dev/rd0");
    guest.refuses("createRapidDiskCache/rd0/sdb/writeback", 409, &["rd0", "flush"]);
    assert_eq!(fingerprint("/dev/rd0"), held);
    // The message says how to go on: flush the disk.
    guest.change("flushRapidDisk/rd0");
    guest.cache("rd0", "sdb", "writeback");
}

#[test]
fn old_contents_of_the_disk_are_neither_read_nor_a_hindrance() {
    let guest = guest();
    guest.disk(16);
    write("/dev/rd0", 0, &noise(7, 16 * MIB as usize));
    write("/dev/sda", 0, &noise(8, 16 * MIB as usize));
    settle();
    guest.cache("rd0", "sda", "writeback");
    assert_same_data(
        "the cache",
        &read("/dev/mapper/rc-wb_sda", 0, 16 * MIB as usize),
        &noise(8, 16 * MIB as usize),
    );
    let (kind, table) = target("rc-wb_sda", Report::Table);
    assert_eq!((kind.as_str(), table.split(' ').next()), ("writecache", Some("s")));
    settle();
    guest.change("removeRapidDiskCache/rc-wb_sda");
    assert_same_data("the source", &read("/dev/sda", 0, 16 * MIB as usize), &noise(8, 16 * MIB as usize));
}

#[test]
fn a_mapping_of_another_kind_under_the_name_is_not_flushed() {
    let guest = guest();
    guest.disk(8);
    sh("echo '0 2048 linear /dev/sda 0' | dmsetup create rc-wb_sda");
    guest.refuses("removeRapidDiskCache/rc-wb_sda", 404, &["rc-wb_sda"]);
    guest.get("showRapidDiskCacheStats/rc-wb_sda").failure(404, &["rc-wb_sda"]);
    assert_eq!(mappings(), ["rc-wb_sda"]);
}
