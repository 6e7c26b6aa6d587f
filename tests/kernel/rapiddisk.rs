//! RapidDisk's modules together with the kernel's own drivers.

use crate::support::data::{MIB, PAGE, assert_zero, noise, read, write};
use crate::support::kernel::{mappings, put, ram_disks, settle, size};
use crate::support::{Guest, guest, guest_with, sh};

/// A guest with both, where the daemon makes RAM disks behind loop devices.
fn loop_guest(options: &[&str]) -> Guest {
    let guest = guest_with(&[&["--ram-driver", "loop"], options].concat());
    sh("modprobe loop");
    guest
}

#[test]
fn both_kinds_of_disks_stand_side_by_side() {
    let guest = guest();
    sh("modprobe loop");
    assert_eq!((guest.disk(8), &guest.listed("rd0")["driver"]), ("rd0".into(), &"rapiddisk".into()));
    drop(guest);
    // A new guest, since the end of the first one removes the module's disk.
    let guest = loop_guest(&["--memory-limit", "64"]);
    put("/sys/kernel/rapiddisk/mgmt", &format!("rapiddisk attach 0 {}", 8 * MIB));
    for (name, driver) in [("rd0", "rapiddisk"), ("rd1", "loop"), ("rd2", "loop")] {
        if driver == "loop" {
            assert_eq!(guest.disk(8), name);
        }
        assert_eq!(guest.listed(name)["driver"], driver);
        write(&format!("/dev/{name}"), MIB, &noise(name.len() as u64, 2 * MIB as usize));
        assert_eq!(guest.listed(name)["usage"], 2 * MIB);
    }
    guest.refuses("createRapidDisk/41", 507, &["24 MiB"]);
    for disk in ["rd0", "rd1"] {
        guest.refuses(&format!("resizeRapidDisk/{disk}/2"), 409, &[disk]);
        guest.change(&format!("resizeRapidDisk/{disk}/4"));
        assert_eq!(size(disk), Some(4 * MIB));
        guest.change(&format!("lockRapidDisk/{disk}"));
        guest.change(&format!("unlockRapidDisk/{disk}"));
    }
    // Both kinds of caches can be made on both kinds of disks.
    guest.cache("rd1", "sda", "write-through");
    guest.cache("rd0", "sdb", "writeback");
    assert_eq!((&guest.caches()[0]["cache"], &guest.caches()[1]["cache"]), (&"rd0".into(), &"rd1".into()));
    guest.refuses("removeRapidDisk/rd1", 409, &["rc-wt_sda"]);
    settle();
    for cache in mappings() {
        guest.change(&format!("removeRapidDiskCache/{cache}"));
    }
    for disk in ["rd0", "rd1", "rd2"] {
        guest.change(&format!("flushRapidDisk/{disk}"));
        assert_zero(disk, &read(&format!("/dev/{disk}"), 0, PAGE));
        guest.change(&format!("removeRapidDisk/{disk}"));
    }
    assert_eq!(ram_disks(), [""; 0]);
}

#[test]
fn two_disks_of_one_name_are_listed_and_left_alone() {
    let guest = loop_guest(&[]);
    assert_eq!(guest.disk(8), "rd0");
    put("/sys/kernel/rapiddisk/mgmt", &format!("rapiddisk attach 0 {}", 4 * MIB));
    let disks = guest.disks();
    let drivers: Vec<_> = disks.iter().map(|disk| (&disk["device"], &disk["driver"])).collect();
    assert_eq!(drivers, [(&"rd0".into(), &"rapiddisk".into()), (&"rd0".into(), &"loop".into())]);
    for change in ["removeRapidDisk/rd0", "flushRapidDisk/rd0", "resizeRapidDisk/rd0/16", "lockRapidDisk/rd0"]
    {
        guest.post(change).failure(409, &["two RAM disks rd0", "loop"]);
    }
    assert_eq!(guest.disk(8), "rd1");
    put("/sys/kernel/rapiddisk/mgmt", "rapiddisk detach 0");
    guest.change("removeRapidDisk/rd0");
}
