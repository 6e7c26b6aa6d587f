//! Which devices can be the source of a cache, and which cannot.

use std::path::Path;

use serde_json::json;

use crate::support::data::{assert_same_data, noise, read, write};
use crate::support::kernel::{
    cache_driver, dm_of, eventually, is_stock, map, mappings, names, policies, settle, size,
};
use crate::support::{Guest, MIB, PAGE, guest, sh, sys};

/// Gives a disk one partition, in sectors.
pub fn make_partition(disk: &str, start: u32, sectors: u32) {
    let mut sector = vec![0; 512];
    sector[446 + 4] = 0x83;
    sector[446 + 8..446 + 12].copy_from_slice(&start.to_le_bytes());
    sector[446 + 12..446 + 16].copy_from_slice(&sectors.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    write(&format!("/dev/{disk}"), 0, &sector);
    settle();
    sh(&format!("blockdev --rereadpt /dev/{disk}"));
    settle();
    eventually("the partition", || Path::new(&format!("/dev/{disk}1")).exists());
}

/// A loop device over a file of this many MiB, with blocks of this many bytes.
pub fn make_loop(mib: u64, block: u64) -> String {
    let file = format!("/tmp/test/image-{}", names("/tmp/test").len());
    sh(&format!("modprobe loop; truncate -s {mib}M {file}"));
    let device = sh(&format!("/usr/sbin/losetup -b {block} -f --show {file}"));
    settle();
    device.trim_start_matches("/dev/").to_owned()
}

/// Caches a source with each policy, writes all over it through the cache and
/// compares: through the cache, and on the source once the cache is removed.
pub fn assert_cacheable(guest: &Guest, disk_mib: u64, source: &str, policies: &[&str]) {
    let device = format!("/dev/{}", source.replace("%2F", "/"));
    let bytes: u64 = sh(&format!("blockdev --getsize64 {device}")).parse().expect("a size");
    // Whole pages in the middle, and the very end.
    let step = (bytes / 24 / PAGE as u64).max(1) * PAGE as u64;
    let places: Vec<_> = (0..24).map(|i| i * step).filter(|place| place + PAGE as u64 <= bytes).collect();
    let end = bytes - 512;
    for (seed, policy) in (1..).zip(policies) {
        let before = noise(100 + seed, 24 * PAGE);
        for (i, &place) in places.iter().enumerate() {
            write(&device, place, &before[i * PAGE..][..PAGE]);
        }
        settle();
        let disk = guest.disk(disk_mib);
        let cache = guest.cache(&disk, source, policy);
        let node = format!("/dev/mapper/{cache}");
        assert_eq!(size(&dm_of(&cache)), Some(bytes), "{policy} of {source}");
        let after = noise(seed, 24 * PAGE);
        for (i, &place) in places.iter().enumerate() {
            let was = &before[i * PAGE..][..PAGE];
            assert_same_data(&format!("old data of {source}, {policy}"), &read(&node, place, PAGE), was);
            // Every second page.
            if i % 2 == 0 {
                write(&node, place, &after[i * PAGE..][..PAGE]);
                let is = &after[i * PAGE..][..PAGE];
                assert_same_data(&format!("new data of {source}, {policy}"), &read(&node, place, PAGE), is);
            }
        }
        // The source holds noise, so that the cache has blocks of 512 bytes.
        write(&node, end, &noise(900 + seed, 512));
        assert_same_data("the last sector, cached", &read(&node, end, 512), &noise(900 + seed, 512));
        settle();
        guest.change(&format!("removeRapidDiskCache/{cache}"));
        for (i, &place) in places.iter().enumerate().filter(|(_, place)| *place + (PAGE as u64) < end) {
            let wanted = if i % 2 == 0 { &after } else { &before };
            let what = format!("page {i} of {source} after {policy}");
            assert_same_data(&what, &read(&device, place, PAGE), &wanted[i * PAGE..][..PAGE]);
        }
        assert_same_data("the last sector", &read(&device, end, 512), &noise(900 + seed, 512));
        guest.change(&format!("removeRapidDisk/{disk}"));
    }
}

#[test]
fn a_whole_disk_is_cached() {
    assert_cacheable(&guest(), 16, "sda", policies());
}

#[test]
fn a_cache_of_any_size_keeps_the_data_right() {
    let guest = guest();
    for mib in [2, 3, 5, 7, 128] {
        assert_cacheable(&guest, mib, "sdb", policies());
    }
}

#[test]
fn a_partition_is_cached() {
    let guest = guest();
    make_partition("sda", 2048, 20_480);
    assert_cacheable(&guest, 8, "sda1", policies());
}

#[test]
fn a_source_that_ends_within_a_page_is_cached_to_its_last_sector() {
    let guest = guest();
    make_partition("sda", 2048, 20_483);
    assert_cacheable(&guest, 8, "sda1", policies());
    // A mapping with larger blocks would leave out the end.
    let disk = guest.disk(8);
    let path = format!("createRapidDiskCache/{disk}/sda1/writeback?block=4096");
    guest.refuses(&path, 409, &["sda1", "4096"]);
}

#[test]
fn a_loop_device_is_cached() {
    let guest = guest();
    let source = make_loop(24, 512);
    assert_cacheable(&guest, 8, &source, policies());
}

#[test]
fn a_mapping_is_cached_by_its_name_below_dev_mapper() {
    let guest = guest();
    map("vg0-home", "0 65536 linear /dev/sda 2048");
    assert_cacheable(&guest, 8, "mapper%2Fvg0-home", policies());
    let disk = guest.disk(8);
    assert_eq!(guest.cache(&disk, "mapper%2Fvg0-home", "write-through"), "rc-wt_vg0-home");
    assert_eq!(
        guest.caches(),
        [
            json!({"device": "rc-wt_vg0-home", "cache": "rd0", "source": "mapper/vg0-home", "mode": "write-through", "driver": cache_driver()})
        ]
    );
}

#[test]
fn a_link_to_a_device_is_a_name_of_it() {
    let guest = guest();
    sh("mkdir -p /dev/disk/by-test; ln -sf ../../sda /dev/disk/by-test/the-disk");
    assert_cacheable(&guest, 8, "disk%2Fby-test%2Fthe-disk", &["write-through", "writeback"]);
    sh("rm -r /dev/disk/by-test");
}

#[test]
fn a_source_whose_node_leads_to_another_device_is_refused() {
    let guest = guest();
    guest.disk(16);
    let other = sys("/sys/block/sda/dev").expect("its number").replace(':', " ");
    sh(&format!("mkdir -p /dev/disk/by-id && mv /dev/sdb /dev/disk/by-id/same && mknod /dev/sdb b {other}"));
    let path = |policy: &&str| format!("createRapidDiskCache/rd0/disk%2Fby-id%2Fsame/{policy}");
    let paths: Vec<_> = policies().iter().map(path).collect();
    guest.refuses_each(&paths, 409, &["/dev/sdb does not lead to disk/by-id/same"]);
    sh("mv -f /dev/disk/by-id/same /dev/sdb");
}

#[test]
fn blocks_of_4096_bytes_are_refused_where_the_target_cannot_do_them() {
    let guest = guest();
    let source = make_loop(24, 4096);
    let disk = guest.disk(8);
    // RapidDisk's target cannot do it; the kernel's own can.
    let (cannot, can) = policies().split_at(if is_stock() { 0 } else { 2 });
    for policy in cannot {
        guest.refuses(
            &format!("createRapidDiskCache/{disk}/{source}/{policy}"),
            409,
            &[&source, "4096", "writeback"],
        );
    }
    for (policy, seed) in can.iter().zip(1..) {
        let data = noise(seed, 64 * PAGE);
        let cache = guest.cache(&disk, &source, policy);
        let node = format!("/dev/mapper/{cache}");
        write(&node, 3 * MIB, &data);
        assert_same_data("through the cache", &read(&node, 3 * MIB, data.len()), &data);
        settle();
        guest.change(&format!("removeRapidDiskCache/{cache}"));
        assert_same_data("on the source", &read(&format!("/dev/{source}"), 3 * MIB, data.len()), &data);
    }
}

#[test]
fn a_read_only_source_is_refused() {
    let guest = guest();
    let disk = guest.disk(8);
    sh("blockdev --setro /dev/sda");
    for policy in policies() {
        guest.refuses(&format!("createRapidDiskCache/{disk}/sda/{policy}"), 409, &["sda", "read-only"]);
    }
    sh("blockdev --setrw /dev/sda");
    guest.cache(&disk, "sda", "write-through");
}

#[test]
fn a_source_without_a_size_is_refused() {
    let guest = guest();
    sh("modprobe loop; [ -e /dev/loop7 ]");
    let disk = guest.disk(8);
    guest.refuses(&format!("createRapidDiskCache/{disk}/loop7/write-through"), 409, &["loop7"]);
}

#[test]
fn what_is_no_block_device_is_no_source() {
    let guest = guest();
    let disk = guest.disk(8);
    for source in ["sdz", "null", "mapper", "mapper%2Fcontrol", "mapper%2Fnothing", "stdin", "sda1"] {
        for policy in policies() {
            guest.post(&format!("createRapidDiskCache/{disk}/{source}/{policy}")).failure(404, &[]);
        }
    }
    assert_eq!(mappings(), [""; 0]);
    // A cache of a RAM disk would not be faster than the disk.
    guest.disk(8);
    guest.refuses("createRapidDiskCache/rd0/rd1/write-through", 400, &["rd1"]);
    guest.refuses("createRapidDiskCache/rd0/rd0/writeback", 400, &["rd0"]);
}

#[test]
fn two_sources_of_the_same_last_name_do_not_share_a_cache_name() {
    let guest = guest();
    map("sda", "0 65536 linear /dev/sdb 0");
    let (one, two) = (guest.disk(8), guest.disk(8));
    guest.cache(&one, "mapper%2Fsda", "write-through");
    guest.refuses(&format!("createRapidDiskCache/{two}/sda/write-through"), 409, &["rc-wt_sda"]);
    guest.change("removeRapidDiskCache/rc-wt_sda");
    guest.cache(&two, "sda", "write-through");
    guest.refuses(&format!("createRapidDiskCache/{one}/mapper%2Fsda/write-through"), 409, &["rc-wt_sda"]);
}

#[test]
fn a_refusal_says_how_to_name_a_source_whose_cache_name_is_taken() {
    let guest = guest();
    for (group, disk) in [("vg0", "sda"), ("vg1", "sdb")] {
        map(&format!("{group}-root"), &format!("0 65536 linear /dev/{disk} 0"));
        sh(&format!("mkdir -p /dev/{group}; ln -sfn ../mapper/{group}-root /dev/{group}/root"));
    }
    let (one, two) = (guest.disk(8), guest.disk(8));
    assert_eq!(guest.cache(&one, "vg0%2Froot", "write-through"), "rc-wt_root");
    let advice = ["rc-wt_root", "vg0", "ask for vg1/root as mapper%2Fvg1-root"];
    guest.refuses(&format!("createRapidDiskCache/{two}/vg1%2Froot/write-through"), 409, &advice);
    assert_eq!(guest.cache(&two, "mapper%2Fvg1-root", "write-through"), "rc-wt_vg1-root");
    sh("rm -r /dev/vg0 /dev/vg1");
}

#[test]
fn the_name_of_a_cache_fits_into_127_bytes() {
    let guest = guest();
    let link = |length: usize| {
        let name = "x".repeat(length);
        sh(&format!("ln -sf sda /dev/{name}"));
        name
    };
    let disk = guest.disk(8);
    let too_long = link(122);
    guest.refuses(&format!("createRapidDiskCache/{disk}/{too_long}/write-through"), 400, &["too long"]);
    let longest = link(121);
    let cache = guest.cache(&disk, &longest, "write-through");
    assert_eq!(cache.len(), 127);
    assert_eq!(guest.caches()[0]["device"], cache.as_str());
    settle();
    guest.change(&format!("removeRapidDiskCache/{cache}"));
    sh(&format!("rm /dev/{too_long} /dev/{longest}"));
}

#[test]
fn what_a_list_or_the_kernel_calls_a_source_is_taken() {
    let guest = guest();
    let disk = guest.disk(8);
    sh("dmsetup --manglename none create 'my disk' --table '0 65536 linear /dev/sda 0'");
    settle();
    let remove = |cache: &str| {
        settle();
        guest.change(&format!("removeRapidDiskCache/{cache}"));
    };
    for source in ["mapper%2Fmy%20disk", "mapper%2Fmy%5Cx20disk"] {
        assert_eq!(guest.cache(&disk, source, "write-through"), "rc-wt_my_disk");
        assert_eq!(guest.caches()[0]["source"], "mapper/my disk");
        remove("rc-wt_my_disk");
    }
    // Another one whose cache would have this name.
    sh("dmsetup create my_disk --table '0 65536 linear /dev/sdb 0'");
    settle();
    guest.cache(&disk, "mapper%2Fmy_disk", "write-through");
    let other = guest.disk(8);
    let path = format!("createRapidDiskCache/{other}/mapper%2Fmy%20disk/write-through");
    guest.refuses(&path, 409, &["rc-wt_my_disk", "in front of mapper/my_disk"]);
    remove("rc-wt_my_disk");
    // It is named as it was asked for, and not by the name that the kernel has for it.
    sh(&format!("blockdev --setro /dev/{}", dm_of("my_disk")));
    guest.refuses(
        &format!("createRapidDiskCache/{disk}/mapper%2Fmy_disk/write-through"),
        409,
        &["mapper/my_disk is"],
    );
    sh("dmsetup remove --retry my_disk; dmsetup --manglename none remove --retry 'my disk'");
    settle();
    // A slash in a kernel's name is a `!` in sysfs.
    sh("mkdir -p /dev/cciss; mknod /dev/cciss/c0d0 b 8 0");
    for source in ["cciss!c0d0", "cciss%2Fc0d0"] {
        let cache = guest.cache(&disk, source, "writeback");
        assert_eq!(guest.caches()[0]["source"], "sda");
        remove(&cache);
    }
    sh("rm -r /dev/cciss");
}
