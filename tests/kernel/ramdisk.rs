//! RAM disks: made, resized, flushed, locked and removed, with data in them.

use std::fs;
use std::path::Path;

use crate::support::data::{assert_zero, fingerprint, try_write};
use crate::support::kernel::{attribute, policies, put, ram_disks, size, used, works};
use crate::support::{
    Guest, MIB, PAGE, assert_same_data, clean, eventually, guest, guest_after, guest_with, noise, read, sh,
    sys, write,
};

#[test]
fn a_new_disk_is_what_the_kernel_says_and_has_the_lowest_free_number() {
    let guest = guest();
    for (size_in_mib, name) in [(8, "rd0"), (3, "rd1"), (16, "rd2")] {
        assert_eq!(guest.disk(size_in_mib), name);
        assert_eq!(size(name), Some(size_in_mib * MIB));
        assert_zero(name, &read(&format!("/dev/{name}"), 0, (size_in_mib * MIB) as usize));
    }
    guest.change("removeRapidDisk/rd1");
    guest.change("removeRapidDisk/rd0");
    assert_eq!(ram_disks(), ["rd2"]);
    assert_eq!(guest.disk(4), "rd0");
    assert_eq!(guest.disk(4), "rd1");
    assert_eq!(guest.disk(4), "rd3");
}

#[test]
fn a_number_whose_place_in_dev_is_taken_is_passed_over() {
    let guest = guest();
    fs::write("/dev/rd0", "of a script").expect("a file");
    assert_eq!(guest.disk(8), "rd1");
    assert_eq!(fs::read("/dev/rd0").expect("the file"), b"of a script");
    fs::remove_file("/dev/rd0").expect("the file");
    assert_eq!(guest.disk(8), "rd0");
}

#[test]
fn a_size_may_have_a_unit() {
    let guest = guest_with(&["--memory-limit", "8T"]);
    let units = [
        ("5", 5 * MIB),
        ("6M", 6 * MIB),
        ("7MiB", 7 * MIB),
        ("2G", 2048 * MIB),
        ("3GiB", 3072 * MIB),
        ("1T", 1 << 40),
        ("2TiB", 2 << 40),
        ("%38", 8 * MIB),
    ];
    for (text, bytes) in units {
        let made = guest.change(&format!("createRapidDisk/{text}"));
        let name = made["device"].as_str().expect("its name");
        assert_eq!(size(name), Some(bytes), "{text}");
        assert_eq!(guest.listed(name)["size"], bytes, "{text}");
    }
    guest.change("resizeRapidDisk/rd0/1G");
    assert_eq!(size("rd0"), Some(1024 * MIB));
}

#[test]
fn usage_is_the_memory_that_was_written_to() {
    let guest = guest();
    guest.disk(16);
    assert_eq!(guest.listed("rd0")["usage"], 0);
    write("/dev/rd0", 2 * MIB, &noise(1, 5 * MIB as usize));
    assert_eq!(guest.listed("rd0")["usage"], 5 * MIB);
    assert_eq!(used("rd0"), Some(5 * MIB));
    // Writing to the same pages again takes no more memory, and reading takes none.
    write("/dev/rd0", 2 * MIB, &noise(2, MIB as usize));
    read("/dev/rd0", 0, 16 * MIB as usize);
    assert_eq!(guest.listed("rd0")["usage"], 5 * MIB);
}

#[test]
fn a_flushed_disk_holds_no_memory_and_reads_as_zero() {
    let guest = guest();
    guest.disk(16);
    write("/dev/rd0", 0, &noise(1, 16 * MIB as usize));
    sh("cat /dev/rd0 >/dev/null");
    guest.change("flushRapidDisk/rd0");
    assert_eq!((used("rd0"), size("rd0")), (Some(0), Some(16 * MIB)));
    assert_eq!(guest.listed("rd0")["usage"], 0);
    assert_zero("rd0", &read("/dev/rd0", 0, 16 * MIB as usize));
    // The same through the page cache.
    assert_zero("rd0", &fs::read("/dev/rd0").expect("rd0"));
    write("/dev/rd0", 8 * MIB, &noise(2, PAGE));
    assert_eq!(guest.listed("rd0")["usage"], PAGE);
    // A disk that holds nothing can be flushed as well.
    guest.change("flushRapidDisk/rd0");
    guest.change("flushRapidDisk/rd0");
}

#[test]
fn a_removed_disk_gives_its_memory_back() {
    let guest = guest();
    let free = || {
        guest.read("listAllResources")["resources"][0]["memory"][0]["mem_free"].as_u64().expect("a number")
    };
    guest.disk(128);
    write("/dev/rd0", 0, &noise(1, 128 * MIB as usize));
    let full = free();
    guest.change("removeRapidDisk/rd0");
    assert_eq!(ram_disks(), [""; 0]);
    assert!(!Path::new("/dev/rd0").exists());
    // Not exactly 128 MiB, because other processes take or free a little.
    eventually("128 MiB are free again", || free() > full + 120 * MIB);
    guest.post("removeRapidDisk/rd0").failure(404, &["rd0"]);
    // The next disk of that name has nothing of the earlier one.
    guest.disk(8);
    assert_zero("rd0", &read("/dev/rd0", 0, 8 * MIB as usize));
}

#[test]
fn a_disk_grows_while_it_is_mounted() {
    let guest = guest();
    guest.disk(16);
    sh("mke2fs -q -F -O ^has_journal /dev/rd0 && mount -t ext4 /dev/rd0 /mnt");
    let data = noise(3, 4 * MIB as usize);
    fs::write("/mnt/file", &data).expect("a file on the disk");
    guest.change("resizeRapidDisk/rd0/48");
    assert_eq!(size("rd0"), Some(48 * MIB));
    assert_eq!(guest.listed("rd0")["size"], 48 * MIB);
    sh("umount /mnt && mount -t ext4 /dev/rd0 /mnt");
    assert_same_data("the file", &fs::read("/mnt/file").expect("the file"), &data);
    sh("umount /mnt");
    write("/dev/rd0", 47 * MIB, &noise(4, MIB as usize));
    assert_same_data("the new end", &read("/dev/rd0", 47 * MIB, MIB as usize), &noise(4, MIB as usize));
}

#[test]
fn a_disk_shrinks_down_to_what_was_written_and_no_further() {
    let guest = guest();
    guest.disk(32);
    let data = noise(5, 2 * MIB as usize);
    write("/dev/rd0", 9 * MIB, &data);
    for too_small in [1, 9, 10] {
        guest.refuses(&format!("resizeRapidDisk/rd0/{too_small}"), 409, &["rd0"]);
    }
    guest.change("resizeRapidDisk/rd0/12");
    assert_eq!(size("rd0"), Some(12 * MIB));
    assert_same_data("rd0", &read("/dev/rd0", 9 * MIB, data.len()), &data);
    guest.change("resizeRapidDisk/rd0/32");
    assert_same_data("rd0", &read("/dev/rd0", 9 * MIB, data.len()), &data);
    assert_zero("rd0", &read("/dev/rd0", 12 * MIB, 20 * MIB as usize));
    // An empty disk can have the smallest size.
    guest.change("flushRapidDisk/rd0");
    guest.change("resizeRapidDisk/rd0/1");
    assert_eq!(size("rd0"), Some(MIB));
    guest.change("resizeRapidDisk/rd0/1");
    assert_eq!(size("rd0"), Some(MIB));
}

#[test]
fn a_disk_full_of_data_keeps_it_when_it_is_to_shrink() {
    let guest = guest();
    guest.disk(8);
    write("/dev/rd0", 0, &noise(6, 8 * MIB as usize));
    guest.refuses("resizeRapidDisk/rd0/7", 409, &["rd0"]);
    guest.change("resizeRapidDisk/rd0/8");
    assert_same_data("rd0", &read("/dev/rd0", 0, 8 * MIB as usize), &noise(6, 8 * MIB as usize));
}

#[test]
fn a_disk_with_data_in_its_last_block_is_not_cut() {
    let guest = guest();
    guest.disk(16);
    // The last page below the new end, and the first one above.
    write("/dev/rd0", 8 * MIB - PAGE as u64, &noise(7, PAGE));
    let highest = fingerprint("/dev/rd0");
    // The module only takes a size above the highest block that was written.
    guest.post("resizeRapidDisk/rd0/9").success();
    assert_eq!(size("rd0"), Some(9 * MIB));
    guest.change("resizeRapidDisk/rd0/16");
    assert_eq!(fingerprint("/dev/rd0"), highest);
    write("/dev/rd0", 8 * MIB, &noise(8, PAGE));
    guest.refuses("resizeRapidDisk/rd0/8", 409, &["rd0"]);
    assert_same_data("rd0", &read("/dev/rd0", 8 * MIB, PAGE), &noise(8, PAGE));
}

#[test]
fn a_locked_disk_cannot_be_written_until_it_is_unlocked() {
    let guest = guest();
    guest.disk(8);
    write("/dev/rd0", 0, &noise(1, PAGE));
    for _ in 0..2 {
        guest.change("lockRapidDisk/rd0");
        assert_eq!(attribute("rd0", "ro").as_deref(), Some("1"));
        assert_eq!(guest.listed("rd0")["status"], "locked");
        assert!(try_write("/dev/rd0", 0, &noise(2, PAGE)).is_err());
    }
    assert_same_data("rd0", &read("/dev/rd0", 0, PAGE), &noise(1, PAGE));
    guest.refuses("flushRapidDisk/rd0", 409, &["rd0", "locked"]);
    for policy in policies() {
        guest.refuses(&format!("createRapidDiskCache/rd0/sda/{policy}"), 409, &["rd0", "locked"]);
    }
    for _ in 0..2 {
        guest.change("unlockRapidDisk/rd0");
        assert_eq!(attribute("rd0", "ro").as_deref(), Some("0"));
        assert_eq!(guest.listed("rd0")["status"], "unlocked");
        write("/dev/rd0", 0, &noise(2, PAGE));
    }
}

#[test]
fn a_disk_is_locked_right_after_it_was_written() {
    let guest = guest();
    guest.disk(8);
    for i in 0..15 {
        write("/dev/rd0", 0, &noise(i, PAGE));
        guest.change("lockRapidDisk/rd0");
        guest.change("unlockRapidDisk/rd0");
    }
}

#[test]
fn what_is_mounted_read_only_may_be_locked_and_what_is_writable_may_not() {
    let guest = guest();
    guest.disk(16);
    sh("mke2fs -q -F -O ^has_journal /dev/rd0 && mount -t ext4 /dev/rd0 /mnt");
    guest.refuses("lockRapidDisk/rd0", 409, &["rd0", "/mnt"]);
    // A read-only view of it does not make the disk read-only.
    sh(
        "mkdir -p /tmp/test/view && mount --bind /mnt /tmp/test/view && mount -o remount,ro,bind /tmp/test/view",
    );
    guest.refuses("lockRapidDisk/rd0", 409, &["rd0", "/mnt"]);
    sh("umount /tmp/test/view && umount /mnt && mount -t ext4 -o ro /dev/rd0 /mnt");
    guest.change("lockRapidDisk/rd0");
    assert_eq!(attribute("rd0", "ro").as_deref(), Some("1"));
    assert!(!works("mount -o remount,rw /mnt"), "a locked disk was mounted for writing");
    guest.change("unlockRapidDisk/rd0");
}

#[test]
fn the_sizes_of_all_disks_stay_below_the_limit() {
    let guest = guest_with(&["--memory-limit", "64"]);
    guest.disk(40);
    guest.refuses("createRapidDisk/25", 507, &["25 MiB", "64 MiB", "40 MiB", "--memory-limit"]);
    assert_eq!(guest.disk(24), "rd1");
    guest.refuses("createRapidDisk/1", 507, &["1 MiB"]);
    guest.refuses("resizeRapidDisk/rd0/41", 507, &["41 MiB"]);
    guest.refuses("resizeRapidDisk/rd0/18446744073709551615", 507, &[]);
    guest.change("resizeRapidDisk/rd1/4");
    guest.change("resizeRapidDisk/rd0/60");
    guest.change("removeRapidDisk/rd0");
    guest.disk(60);
}

#[test]
fn without_an_option_the_limit_is_four_fifths_of_the_memory() {
    let guest = guest();
    let total =
        guest.read("listAllResources")["resources"][0]["memory"][0]["mem_total"].as_u64().expect("a number");
    let most = total * 80 / 100 / MIB;
    guest.refuses(&format!("createRapidDisk/{}", most + 1), 507, &["--memory-limit"]);
    guest.disk(most);
    guest.refuses("createRapidDisk/1", 507, &[]);
    guest.change("removeRapidDisk/rd0");
    let absurd = [
        "17592186044415",
        "17592186044416",
        "18446744073709551615T",
        "99999999999999999999999999",
        "16777216T",
    ];
    for size in absurd {
        guest.refuses(&format!("createRapidDisk/{size}"), 507, &[]);
    }
}

#[test]
fn half_of_the_memory_is_a_limit_too() {
    let guest = guest_with(&["--memory-limit", "50%"]);
    let total =
        guest.read("listAllResources")["resources"][0]["memory"][0]["mem_total"].as_u64().expect("a number");
    guest.refuses(&format!("createRapidDisk/{}", total / 2 / MIB + 1), 507, &[]);
    guest.disk(total / 2 / MIB);
}

/// With RapidDisk's modules only.
mod rapiddisk {
    use super::*;

    #[test]
    fn a_disk_without_its_node_can_be_used_and_removed() {
        let guest = guest();
        guest.disk(16);
        write("/dev/rd0", 0, &noise(1, PAGE));
        let node = "/sys/block/rd0/dev";
        for place in ["rm /dev/rd0", "rm /dev/rd0; echo of a script >/dev/rd0"] {
            sh(place);
            assert_eq!(guest.listed("rd0")["usage"], PAGE);
            for change in [
                "lockRapidDisk/rd0",
                "unlockRapidDisk/rd0",
                "resizeRapidDisk/rd0/8",
                "resizeRapidDisk/rd0/16",
            ] {
                guest.change(change);
            }
        }
        let cache = guest.post("createRapidDiskCache/rd0/sda/writeback");
        cache.failure(409, &["/dev/rd0 does not lead to rd0"]);
        guest.change("flushRapidDisk/rd0");
        guest.change("removeRapidDisk/rd0");
        assert_eq!((sys(node), fs::read("/dev/rd0").expect("the file")), (None, b"of a script\n".to_vec()));
        // The node that a change made goes with the disk.
        assert_eq!(guest.disk(8), "rd1");
        sh("rm /dev/rd0 /dev/rd1");
        guest.change("flushRapidDisk/rd1");
        guest.cache("rd1", "sda", "write-through");
        guest.change("removeRapidDiskCache/rc-wt_sda");
        guest.change("removeRapidDisk/rd1");
        assert!(!Path::new("/dev/rd1").exists());
    }

    #[test]
    fn disks_that_are_over_the_limit_already_may_still_shrink() {
        let guest = guest_with(&["--memory-limit", "16"]);
        // A disk that the daemon did not make counts as well.
        put("/sys/kernel/rapiddisk/mgmt", "rapiddisk attach 5 33554432");
        guest.refuses("createRapidDisk/1", 507, &["32 MiB"]);
        guest.refuses("resizeRapidDisk/rd5/33", 507, &[]);
        guest.change("resizeRapidDisk/rd5/20");
        assert_eq!(size("rd5"), Some(20 * MIB));
    }

    /// The module has a limit for the number of disks.
    fn with_three_disks_at_most() -> Guest {
        guest_after(&[], || {
            sh("modprobe rapiddisk rd_max_nr=3");
            sh(&format!("modprobe -a {}", clean::RAPIDDISK));
        })
    }

    #[test]
    fn a_disk_more_than_the_module_takes_is_refused() {
        let guest = with_three_disks_at_most();
        for name in ["rd0", "rd1", "rd2"] {
            assert_eq!(guest.disk(1), name);
        }
        guest.refuses("createRapidDisk/1", 409, &["rd_max_nr"]);
        guest.change("removeRapidDisk/rd1");
        assert_eq!(guest.disk(1), "rd1");
        drop(guest);
        let _alone = crate::support::begin();
        clean::unload();
    }

    #[test]
    fn disks_that_the_module_made_itself_are_disks_like_any_other() {
        let guest = guest_after(&[], || {
            // The unit of rd_size is 2 KiB, although its description says MiB.
            sh("modprobe rapiddisk rd_nr=2 rd_size=4096");
            sh(&format!("modprobe -a {}", clean::RAPIDDISK));
        });
        let sizes: Vec<_> =
            guest.disks().iter().map(|disk| (disk["device"].clone(), disk["size"].clone())).collect();
        assert_eq!(sizes, [("rd0".into(), (8 * MIB).into()), ("rd1".into(), (8 * MIB).into())]);
        assert_eq!(guest.disk(4), "rd2");
        guest.change("resizeRapidDisk/rd1/9");
        guest.change("removeRapidDisk/rd0");
        assert_eq!(ram_disks(), ["rd1", "rd2"]);
        drop(guest);
        let _alone = crate::support::begin();
        clean::unload();
    }
}
