//! Caches: what the kernel has after each change, and that a change that failed leaves
//! nothing.

use std::fs;
use std::path::Path;

use rapiddiskd::kernel::dm::{Name, Report};

use crate::export;
use crate::support::data::{assert_same_data, fingerprint, noise, read, write};
use crate::support::kernel::{
    dm, dm_of, has_udev, holders, is_stock, mappings, put, settle, size, target, works,
};
use crate::support::{MIB, PAGE, clean, guest, sh, sys};

/// A policy, the prefix of its cache's names, its target, and a part of that target's table.
type Way = (&'static str, &'static str, &'static str, &'static str);

const RAPIDDISK: [Way; 4] = [
    ("write-through", "rc-wt_", "rapiddisk-cache", "(/dev/rd0), disk dev (/dev/sda) mode (WRITETHROUGH)"),
    ("write-around", "rc-wa_", "rapiddisk-cache", "(/dev/rd0), disk dev (/dev/sda) mode (WRITE_AROUND)"),
    ("writeback", "rc-wb_", "writecache", "s 8:0 "),
    ("write-back", "rc-wb_", "writecache", "s 8:0 "),
];

const STOCK: [Way; 3] = [
    ("write-through", "rc-wt_", "cache", " 8:0 64 "),
    ("writeback", "rc-wb_", "writecache", "s 8:0 "),
    ("write-back", "rc-wb_", "writecache", "s 8:0 "),
];

/// All ways to ask for a cache: one policy has two names.
fn ways() -> &'static [Way] {
    if is_stock() { &STOCK } else { &RAPIDDISK }
}

/// Every policy once.
fn each() -> &'static [Way] {
    &ways()[..ways().len() - 1]
}

#[test]
fn a_cache_is_there_in_full_when_the_answer_comes_and_gone_in_full_after_removal() {
    let guest = guest();
    guest.disk(16);
    for &(policy, prefix, kind, table) in ways() {
        let cache = guest.cache("rd0", "sda", policy);
        assert_eq!(cache, format!("{prefix}sda"));
        let node = format!("/dev/mapper/{cache}");
        let path = fs::canonicalize(&node).expect("the node");
        let leads_to = path.file_name().and_then(|name| name.to_str()).expect("dm-N");
        // dmsetup must see the same as our own ioctls.
        let told = target(&cache, Report::Table);
        assert_eq!(told.0, kind);
        assert!(told.1.contains(table), "{told:?}");
        let same = sh(&format!("dmsetup table {cache}"));
        assert_eq!(same, format!("0 131072 {} {}", told.0, told.1).trim_end());
        let info = dm().expect("device-mapper").info(&Name::new(&cache).expect("a name")).expect("info");
        assert!(info.active && !info.suspended, "{info:?}");
        assert_eq!(holders("sda"), [leads_to]);
        // dm-cache uses two mappings, which use the disk.
        assert_eq!(holders("rd0").len(), if kind == "cache" { 2 } else { 1 });
        assert_eq!(size(leads_to), size("sda"));
        settle();
        guest.change(&format!("removeRapidDiskCache/{cache}"));
        assert!(fs::symlink_metadata(&node).is_err(), "{node} is left");
        assert_eq!(mappings(), [""; 0]);
        assert_eq!(holders("rd0"), [""; 0]);
        assert_eq!(guest.caches().len(), 0);
        guest.post(&format!("removeRapidDiskCache/{cache}")).failure(404, &[&cache]);
    }
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn caches_come_and_go_without_a_pause() {
    let guest = guest();
    guest.disk(8);
    for i in 0..12 {
        let (policy, ..) = each()[i % each().len()];
        let cache = guest.cache("rd0", "sda", policy);
        let node = format!("/dev/mapper/{cache}");
        if i % 2 == 0 {
            write(&node, 0, &noise(i as u64, PAGE));
        }
        guest.change(&format!("removeRapidDiskCache/{cache}"));
        assert!(fs::symlink_metadata(&node).is_err(), "{node} is left");
    }
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn what_is_written_is_on_the_source_at_once_but_with_writeback() {
    let guest = guest();
    guest.disk(16);
    for (policy, ..) in &ways()[..ways().len() - 2] {
        let data = noise(policy.len() as u64, 6 * MIB as usize);
        let cache = guest.cache("rd0", "sda", policy);
        write(&format!("/dev/mapper/{cache}"), 20 * MIB, &data);
        assert_same_data(policy, &read("/dev/sda", 20 * MIB, data.len()), &data);
        assert_same_data(policy, &read(&format!("/dev/mapper/{cache}"), 20 * MIB, data.len()), &data);
        // This time from memory.
        assert_same_data(policy, &read(&format!("/dev/mapper/{cache}"), 20 * MIB, data.len()), &data);
        settle();
        guest.change(&format!("removeRapidDiskCache/{cache}"));
        assert_same_data(policy, &read("/dev/sda", 20 * MIB, data.len()), &data);
    }
}

#[test]
fn a_cache_knows_nothing_of_an_earlier_one_on_the_same_disk() {
    let guest = guest();
    guest.disk(16);
    for (i, (policy, ..)) in ways().iter().enumerate() {
        let old = noise(i as u64, 4 * MIB as usize);
        let cache = guest.cache("rd0", "sda", policy);
        let node = format!("/dev/mapper/{cache}");
        write(&node, 0, &old);
        read(&node, 0, old.len());
        settle();
        guest.change(&format!("removeRapidDiskCache/{cache}"));
        // The source can be used without the cache.
        let new = noise(50 + i as u64, 4 * MIB as usize);
        write("/dev/sda", 0, &new);
        settle();
        let cache = guest.cache("rd0", "sda", policy);
        assert_same_data(policy, &read(&node, 0, new.len()), &new);
        settle();
        guest.change(&format!("removeRapidDiskCache/{cache}"));
        assert_same_data(policy, &read("/dev/sda", 0, new.len()), &new);
    }
}

#[test]
fn a_dangling_link_in_the_place_of_the_node_does_not_matter() {
    let guest = guest();
    guest.disk(8);
    for link in ["../dm-77", "../sdb", "nowhere"] {
        sh(&format!("ln -sf {link} /dev/mapper/rc-wt_sda"));
        guest.cache("rd0", "sda", "write-through");
        let node = fs::canonicalize("/dev/mapper/rc-wt_sda").expect("the node");
        assert_eq!(node, Path::new("/dev").join(&holders("sda")[0]));
        settle();
        guest.change("removeRapidDiskCache/rc-wt_sda");
        assert!(fs::symlink_metadata("/dev/mapper/rc-wt_sda").is_err());
    }
}

#[test]
fn a_file_in_the_place_of_the_node_is_left_alone_and_nothing_is_begun() {
    let guest = guest();
    guest.disk(8);
    write("/dev/rd0", 0, &noise(1, 4 * PAGE));
    for (policy, prefix, ..) in each() {
        let node = format!("/dev/mapper/{prefix}sda");
        fs::write(&node, "somebody's").expect("a file");
        guest.refuses(&format!("createRapidDiskCache/rd0/sda/{policy}"), 409, &[&node]);
        assert_eq!(fs::read_to_string(&node).expect("the file"), "somebody's");
        fs::remove_file(&node).expect("the file");
    }
}

#[test]
fn a_creation_that_fails_in_its_last_step_is_undone() {
    let guest = guest();
    guest.disk(8);
    write("/dev/rd0", 0, &noise(1, 4 * PAGE));
    write("/dev/sda", 0, &noise(2, 4 * PAGE));
    settle();
    let source = fingerprint("/dev/sda");
    // The last step of a creation makes the node. Here it fails.
    sh("mount --bind /dev/mapper /dev/mapper && mount -o remount,ro,bind /dev/mapper");
    for (policy, prefix, ..) in each() {
        let words = [&format!("{prefix}sda"), "Read-only"];
        guest.post(&format!("createRapidDiskCache/rd0/sda/{policy}")).failure(500, &words);
        assert_eq!(mappings(), [""; 0]);
        assert_eq!(holders("rd0"), [""; 0]);
    }
    assert_eq!(fingerprint("/dev/sda"), source);
    // The disk was part of a cache for a moment. It must not look as if it held somebody's
    // data, so that another attempt is not refused.
    sh("umount /dev/mapper");
    settle();
    for (policy, ..) in each() {
        let cache = guest.cache("rd0", "sda", policy);
        settle();
        guest.change(&format!("removeRapidDiskCache/{cache}"));
    }
}

#[test]
fn a_creation_that_the_kernel_refuses_leaves_everything_as_it_was() {
    let guest = guest();
    guest.disk(8);
    write("/dev/rd0", 0, &noise(1, 4 * PAGE));
    settle();
    // The target is not loaded, and the kernel cannot load it.
    let helper = sys("/proc/sys/kernel/modprobe").expect("the kernel's helper");
    put("/proc/sys/kernel/modprobe", "/nowhere");
    sh("rmmod rapiddisk-cache; rmmod dm-writecache; rmmod dm-cache-smq dm-cache 2>/dev/null || true");
    for (policy, .., kind, _) in each() {
        guest.refuses(&format!("createRapidDiskCache/rd0/sda/{policy}"), 503, &[kind, "modprobe"]);
    }
    assert_same_data("rd0", &read("/dev/rd0", 0, 4 * PAGE), &noise(1, 4 * PAGE));
    put("/proc/sys/kernel/modprobe", &helper);
    sh(&format!("modprobe -a {}", clean::modules()));
    for (policy, ..) in each() {
        let cache = guest.cache("rd0", "sda", policy);
        settle();
        guest.change(&format!("removeRapidDiskCache/{cache}"));
    }
}

#[test]
fn the_node_of_a_cache_is_a_link_whoever_makes_it() {
    let guest = guest();
    guest.disk(8);
    guest.cache("rd0", "sda", "write-through");
    settle();
    let link = fs::read_link("/dev/mapper/rc-wt_sda").expect("a link");
    let dm = format!("../{}", holders("sda")[0]);
    assert_eq!(link, Path::new(&dm), "udev: {}", has_udev());
}

/// With RapidDisk's modules only.
mod rapiddisk {
    use super::*;

    #[test]
    fn a_disk_too_small_for_a_cache_is_refused() {
        let guest = guest();
        guest.disk(1);
        guest.refuses("createRapidDiskCache/rd0/sda/write-through", 409, &["rd0", "2 MiB"]);
        guest.refuses("createRapidDiskCache/rd0/sda/write-around", 409, &["rd0", "2 MiB"]);
        // The target of writeback needs less, and loses no data.
        let data = noise(1, 4 * MIB as usize);
        guest.cache("rd0", "sda", "writeback");
        write("/dev/mapper/rc-wb_sda", 0, &data);
        settle();
        guest.change("removeRapidDiskCache/rc-wb_sda");
        assert_same_data("sda", &read("/dev/sda", 0, data.len()), &data);
    }
}

#[test]
fn a_cache_is_exported_whatever_somebody_made_of_its_link() {
    let guest = export::guest_with_port();
    guest.disk(16);
    let cache = guest.cache("rd0", "sda", "write-through");
    let link = format!("/dev/mapper/{cache}");
    for spoil in [format!("rm {link}"), format!("ln -sfn /dev/sdb {link}")] {
        sh(&spoil);
        guest.change(&format!("createNVMeTarget/{cache}/1"));
        assert!(works(&format!("readlink -f {link} | grep -qx /dev/{}", dm_of(&cache))));
        guest.change(&format!("removeNVMeTarget/{cache}"));
    }
    sh(&format!("rm {link}; echo of a script >{link}"));
    guest.post(&format!("createNVMeTarget/{cache}/1")).failure(409, &[&link]);
    sh(&format!("rm {link}"));
    guest.change(&format!("removeRapidDiskCache/{cache}"));
}
