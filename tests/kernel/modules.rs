//! Without any module the daemon runs, and says what to load. Once a module is loaded, what
//! needs it works at once.

use std::path::Path;

use crate::support::kernel::{put, works};
use crate::support::{Guest, clean, guest, guest_after, sh, sys};

fn unavailable(guest: &Guest, method: &str, path: &str, words: &[&str]) {
    let reply = guest.request(method, &format!("/v1/{path}"));
    reply.failure(503, words);
    // Retry-After is for a saturated server. Here another attempt would not help.
    assert_eq!(reply.field("retry-after"), None, "{reply:?}");
}

const NEED_RAPIDDISK: [(&str, &str); 8] = [
    ("GET", "listRapidDiskVolumes"),
    ("POST", "createRapidDisk/8"),
    ("POST", "resizeRapidDisk/rd0/8"),
    ("POST", "flushRapidDisk/rd0"),
    ("POST", "removeRapidDisk/rd0"),
    ("POST", "lockRapidDisk/rd0"),
    ("POST", "unlockRapidDisk/rd0"),
    ("POST", "createRapidDiskCache/rd0/sda/write-through"),
];

#[test]
fn the_nvme_lists_name_what_they_lack() {
    let guest = guest_after(&[], || {
        works("rmmod configfs");
        assert!(!Path::new("/sys/kernel/config/nvmet").exists());
    });
    for list in ["listAllNVMeTargets", "listAllNVMePorts"] {
        unavailable(&guest, "GET", list, &["configfs", "mount -t configfs none /sys/kernel/config"]);
    }
    sh("modprobe configfs; mount -t configfs none /sys/kernel/config");
    for list in ["listAllNVMeTargets", "listAllNVMePorts"] {
        unavailable(&guest, "GET", list, &["nvmet", "modprobe nvmet"]);
    }
    sh("modprobe nvmet");
    assert_eq!(
        guest.read("listAllNVMeTargets").to_string(),
        r#"{"targets":[{"nvmet_targets":[]},{"nvmet_ports":[]}]}"#
    );
    assert_eq!(guest.read("listAllNVMePorts").to_string(), r#"{"targets":[{"nvmet_ports":[]}]}"#);
    sh("umount /sys/kernel/config");
    for list in ["listAllNVMeTargets", "listAllNVMePorts"] {
        unavailable(&guest, "GET", list, &["configfs", "mount"]);
    }
}

#[test]
fn modules_may_go_and_come_back_under_the_daemon() {
    let guest = guest();
    guest.disk(8);
    guest.cache("rd0", "sda", "write-through");
    crate::support::kernel::settle();
    guest.change("removeRapidDiskCache/rc-wt_sda");
    guest.change("removeRapidDisk/rd0");
    clean::unload();
    unavailable(&guest, "GET", "listRapidDiskVolumes", &["modprobe rapiddisk"]);
    unavailable(&guest, "GET", "showRapidDiskCacheStats/rc-wt_sda", &["modprobe dm-mod"]);
    clean::load();
    guest.disk(8);
    guest.cache("rd0", "sda", "writeback");
}

/// With RapidDisk's modules only.
mod rapiddisk {
    use super::*;

    #[test]
    fn each_call_names_the_module_it_lacks_and_works_once_that_is_loaded() {
        let guest = guest_after(&[], || ());
        assert!(!Path::new("/sys/kernel/rapiddisk").exists() && !clean::is_loaded("dm-mod"));
        assert_eq!(guest.read("checkServiceStatus")["status"], "OK");
        assert_eq!(guest.read("listAllResources")["resources"][1]["volumes"][0]["device"], "sda");
        for (method, path) in NEED_RAPIDDISK {
            unavailable(&guest, method, path, &["rapiddisk", "modprobe rapiddisk"]);
        }
        unavailable(&guest, "POST", "removeRapidDiskCache/rc-wt_sda", &["modprobe dm-mod"]);
        unavailable(&guest, "GET", "showRapidDiskCacheStats/rc-wt_sda", &["modprobe dm-mod"]);

        sh("modprobe rapiddisk");
        assert_eq!(guest.disks().len(), 0);
        guest.disk(8);
        for change in
            ["resizeRapidDisk/rd0/9", "flushRapidDisk/rd0", "lockRapidDisk/rd0", "unlockRapidDisk/rd0"]
        {
            guest.change(change);
        }
        unavailable(&guest, "POST", "createRapidDiskCache/rd0/sda/write-through", &["modprobe dm-mod"]);
        unavailable(&guest, "POST", "removeRapidDiskCache/rc-wt_sda", &["modprobe dm-mod"]);
        assert_eq!(guest.disks().len(), 1);

        // Otherwise the kernel loads the target by itself.
        let helper = sys("/proc/sys/kernel/modprobe").expect("the kernel's helper");
        sh("modprobe dm-mod");
        put("/proc/sys/kernel/modprobe", "/nowhere");
        guest.refuses("createRapidDiskCache/rd0/sda/write-through", 503, &["modprobe rapiddisk-cache"]);
        guest.refuses("createRapidDiskCache/rd0/sda/write-around", 503, &["modprobe rapiddisk-cache"]);
        guest.refuses("createRapidDiskCache/rd0/sda/writeback", 503, &["modprobe dm-writecache"]);
        guest.post("removeRapidDiskCache/rc-wt_sda").failure(404, &["rc-wt_sda"]);
        sh("modprobe rapiddisk-cache");
        guest.cache("rd0", "sda", "write-through");
        crate::support::kernel::settle();
        guest.change("removeRapidDiskCache/rc-wt_sda");
        guest.refuses("createRapidDiskCache/rd0/sda/writeback", 503, &["modprobe dm-writecache"]);
        put("/proc/sys/kernel/modprobe", &helper);
        sh("modprobe dm-writecache");
        guest.cache("rd0", "sda", "writeback");
    }

    #[test]
    fn a_target_that_the_kernel_can_load_by_itself_is_loaded() {
        let guest = guest_after(&[], || sh("modprobe -a rapiddisk dm-mod").clear());
        guest.disk(8);
        assert!(!clean::is_loaded("dm-writecache"));
        guest.cache("rd0", "sda", "writeback");
        assert!(clean::is_loaded("dm-writecache"));
    }
}
