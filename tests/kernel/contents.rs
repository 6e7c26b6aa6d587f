//! What is on a source can be used through a cache: the logical blocks of the cache are never larger than
//! those of the file system there.

use std::fs;

use crate::source::make_partition;
use crate::support::data::{MIB, assert_same_data, noise, read, write};
use crate::support::kernel::{attribute, device, mappings, policies, ram_driver, settle};
use crate::support::{Guest, guest, guest_with, sh};

/// Something on a source.
struct Case {
    what: &'static str,
    /// Makes it on the disk `$1`.
    make: &'static str,
    /// Its type as a file system, if it is one.
    kind: Option<&'static str>,
    /// Bytes in the blocks of a writeback cache in front of it.
    block: u64,
}

const CASES: [Case; 7] = [
    Case { what: "ext4, 1 KiB", make: "mke2fs -q -F -t ext4 -b 1024", kind: Some("ext4"), block: 1024 },
    Case { what: "ext4, 4 KiB", make: "mke2fs -q -F -t ext4 -b 4096", kind: Some("ext4"), block: 4096 },
    // The disk is smaller than what mkfs.xfs supports.
    Case {
        what: "XFS, 512",
        make: "mkfs.xfs -q -f --unsupported -s size=512",
        kind: Some("xfs"),
        block: 512,
    },
    Case {
        what: "XFS, 4096",
        make: "mkfs.xfs -q -f --unsupported -s size=4096",
        kind: Some("xfs"),
        block: 4096,
    },
    Case { what: "FAT", make: "mkfs.vfat", kind: Some("vfat"), block: 512 },
    Case { what: "a partition table", make: TABLE, kind: None, block: 512 },
    Case { what: "nothing", make: "true", kind: None, block: 4096 },
];

/// One partition, in a table at the start of the disk.
const TABLE: &str = "table() { printf '\\0\\0\\0\\0\\203\\0\\0\\0\\0\\10\\0\\0\\0\\100\\0\\0' |
    dd of=$1 bs=1 seek=446 conv=notrunc; printf '\\125\\252' | dd of=$1 bs=1 seek=510 conv=notrunc; }; table";

/// Overwrites the disk `sda` with zeros where superblocks may be, its own and those of a first partition.
fn clear() {
    write("/dev/sda", 0, &vec![0; 2 * MIB as usize]);
    settle();
}

/// Makes a cache of `sda` and gives its node, which must have blocks of this size.
fn cached(guest: &Guest, disk: &str, policy: &str, block: u64) -> String {
    let cache = guest.cache(disk, "sda", policy);
    let node = fs::canonicalize(format!("/dev/mapper/{cache}")).expect("its node");
    let name = node.file_name().expect("a name").to_string_lossy();
    let logical = attribute(&name, "queue/logical_block_size");
    assert_eq!(logical, Some(block.to_string()), "{policy} on {disk}");
    settle();
    cache
}

/// A RAM disk of each driver that this guest has.
fn a_disk_of_each_driver(guest: &mut Guest) -> Vec<String> {
    sh("modprobe loop");
    let drivers: &[&str] = match ram_driver() {
        "rapiddisk" => &["rapiddisk", "loop"],
        "brd" => &["brd"],
        _ => &["loop"],
    };
    let disk = |driver: &&str| {
        guest.daemon().kill();
        guest.daemon().restart_with(&["--ram-driver", driver]).disk(16)
    };
    drivers.iter().map(disk).collect()
}

#[test]
fn what_is_on_a_source_can_be_used_through_any_cache() {
    let mut guest = guest();
    let disks = a_disk_of_each_driver(&mut guest);
    for Case { what, make, kind, block } in CASES {
        clear();
        sh(&format!("{make} /dev/sda"));
        settle();
        let Some(kind) = kind else {
            let start = read("/dev/sda", 0, MIB as usize);
            for policy in policies() {
                let block = if *policy == "writeback" { block } else { 512 };
                let cache = cached(&guest, &disks[0], policy, block);
                assert_same_data(what, &read(&format!("/dev/mapper/{cache}"), 0, start.len()), &start);
                settle();
                guest.change(&format!("removeRapidDiskCache/{cache}"));
            }
            continue;
        };
        let mount = |device: &str| sh(&format!("mount -t {kind} {device} /mnt"));
        let file = |n: usize| format!("/mnt/file-{n}");
        let data = |n: usize| noise(n as u64, 256 << 10);
        mount("/dev/sda");
        fs::write(file(0), data(0)).expect("a file");
        sh("umount /mnt");
        settle();
        let ways = disks.iter().flat_map(|disk| policies().iter().map(move |policy| (disk, *policy)));
        for (n, (disk, policy)) in ways.enumerate() {
            let block = if policy == "writeback" { block } else { 512 };
            let cache = cached(&guest, disk, policy, block);
            mount(&format!("/dev/mapper/{cache}"));
            for n in 0..=n {
                assert_same_data(what, &fs::read(file(n)).expect("a file"), &data(n));
            }
            fs::write(file(n + 1), data(n + 1)).expect("a file");
            sh("umount /mnt");
            settle();
            guest.change(&format!("removeRapidDiskCache/{cache}"));
            mount("/dev/sda");
            assert_same_data(what, &fs::read(file(n + 1)).expect("the file"), &data(n + 1));
            sh("umount /mnt");
            settle();
        }
    }
    clear();
}

#[test]
fn the_size_of_a_block_can_be_given_and_fits_the_source() {
    let guest = guest();
    let disk = guest.disk(16);
    clear();
    for block in [512, 1024, 2048, 4096] {
        let path = format!("createRapidDiskCache/{disk}/sda/writeback?block={block}");
        let made = guest.change(&path);
        let words = if block == 512 { "512 bytes".to_owned() } else { format!("{} KiB", block >> 10) };
        assert!(made["message"].as_str().expect("a message").contains(&words), "{made}");
        settle();
        guest.change("removeRapidDiskCache/rc-wb_sda");
    }
    let path = format!("createRapidDiskCache/{disk}/sda");
    guest.refuses(&format!("{path}/writeback?block=8192"), 400, &["8192", "4096"]);
    guest.refuses(&format!("{path}/writeback?block=512&block=512"), 400, &["twice"]);
    guest.refuses(&format!("{path}/write-through?block=512"), 400, &["writeback"]);
    // A size that is no multiple of 4096 bytes has smaller blocks.
    make_partition("sda", 2048, 20_482);
    let path = format!("createRapidDiskCache/{disk}/sda1/writeback");
    guest.refuses(&format!("{path}?block=2048"), 409, &["sda1", "no multiple of 2048 bytes"]);
    let made = guest.change(&path);
    assert!(made["message"].as_str().expect("a message").contains("1 KiB"), "{made}");
}

#[test]
fn a_disk_whose_blocks_are_too_large_for_the_source_is_refused() {
    let guest = guest_with(&["--ram-driver", "loop"]);
    sh("modprobe loop");
    let disk = guest.disk(16);
    // No driver makes such a RAM disk now. This is as if one did.
    sh(&format!("/usr/sbin/losetup --sector-size 4096 /dev/{}", device(&disk)));
    clear();
    sh("mkfs.xfs -q -f --unsupported -s size=512 /dev/sda");
    settle();
    for policy in policies() {
        let path = format!("createRapidDiskCache/{disk}/sda/{policy}");
        guest.refuses(&path, 409, &["sda", "XFS", "512", &disk, "4096"]);
    }
    clear();
    guest.refuses(
        &format!("createRapidDiskCache/{disk}/sda/writeback?block=512"),
        409,
        &["sda", "512", "4096"],
    );
    let cache = cached(&guest, &disk, "writeback", 4096);
    guest.change(&format!("removeRapidDiskCache/{cache}"));
    assert_eq!(mappings(), [""; 0]);
}
