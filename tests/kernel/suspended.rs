//! Mappings that another program has suspended: whatever reads or writes one of them hangs. A call that
//! would is refused, and says so.

use crate::export::{export, guest_with_port};
use crate::quiesce::quiesce;
use crate::support::data::{MIB, assert_same_data, noise, read, write};
use crate::support::kernel::{all_mappings, is_suspended, map, mappings, settle};
use crate::support::{guest, guest_with, sh};

/// Resumes all mappings, also if a test fails: what uses a suspended one would hang for ever.
struct Resumed;

impl Drop for Resumed {
    fn drop(&mut self) {
        for name in all_mappings() {
            sh(&format!("dmsetup resume {name}"));
        }
        settle();
    }
}

#[test]
fn a_cache_that_is_suspended_is_neither_removed_nor_exported() {
    let guest = guest_with_port();
    for (disk, source, policy) in [("rd0", "sda", "write-through"), ("rd1", "sdb", "writeback")] {
        guest.disk(8);
        let cache = guest.cache(disk, source, policy);
        let data = noise(1, MIB as usize);
        write(&format!("/dev/mapper/{cache}"), 0, &data);
        settle();
        let remove = format!("removeRapidDiskCache/{cache}");
        let advice = [&*cache, "suspended", "dmsetup resume", "restart rapiddiskd"];
        {
            let _resumed = Resumed;
            sh(&format!("dmsetup suspend {cache}"));
            guest.refuses_each(&[remove.clone(), format!("createNVMeTarget/{cache}/1")], 409, &advice);
            assert_eq!(guest.stats(&cache)["device"], *cache);
        }
        export(&guest, &format!("{cache}/1"));
        {
            let _resumed = Resumed;
            sh(&format!("dmsetup suspend {cache}"));
            guest.refuses(&format!("removeNVMeTarget/{cache}"), 409, &advice);
        }
        guest.change(&format!("removeNVMeTarget/{cache}"));
        guest.change(&remove);
        assert_same_data("the source", &read(&format!("/dev/{source}"), 0, data.len()), &data);
    }
}

#[test]
fn a_source_and_a_part_that_are_suspended_are_not_waited_for() {
    let guest = guest_with(&["--cache-driver", "dm-cache"]);
    guest.disk(8);
    map("weak", "0 65536 linear /dev/sda 0");
    let _resumed = Resumed;
    sh("dmsetup suspend weak");
    for policy in ["write-through", "writeback"] {
        let create = format!("createRapidDiskCache/rd0/mapper%2Fweak/{policy}");
        guest.refuses(&create, 409, &["weak", "suspended", "dmsetup resume weak"]);
    }
    sh("dmsetup resume weak");
    let cache = guest.cache("rd0", "mapper%2Fweak", "write-through");
    settle();
    for part in ["rc-wm_weak", "rc-wd_weak"] {
        sh(&format!("dmsetup suspend {part}"));
        let advice = [part, "suspended", &format!("dmsetup resume {part}")];
        guest.refuses(&format!("removeRapidDiskCache/{cache}"), 409, &advice);
        sh(&format!("dmsetup resume {part}"));
    }
    guest.change(&format!("removeRapidDiskCache/{cache}"));
}

#[test]
fn at_the_end_of_the_machine_a_suspended_cache_is_written_all_the_same() {
    let mut guest = guest();
    guest.disk(8);
    guest.cache("rd0", "sda", "writeback");
    let data = noise(2, MIB as usize);
    write("/dev/mapper/rc-wb_sda", MIB, &data);
    settle();
    sh("dmsetup suspend rc-wb_sda");
    assert!(is_suspended("rc-wb_sda"));
    let (output, _) = quiesce(&mut guest);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(mappings(), [""; 0]);
    assert_same_data("the source", &read("/dev/sda", MIB, data.len()), &data);
}
