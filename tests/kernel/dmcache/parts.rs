//! What a cache consists of, who may use its parts, and what is refused.

use rapiddiskd::kernel::dm::Report;

use super::{ALL, CACHE, CREATE, REMOVE, assert_there, forced};
use crate::support::data::{assert_zero, read};
use crate::support::kernel::{holders, settle, target};
use crate::support::{PAGE, meanwhile, sh};

#[test]
fn a_cache_is_three_mappings_of_which_one_is_seen_and_none_is_left() {
    let guest = forced();
    guest.disk(16);
    for _ in 0..3 {
        let made = guest.change(CREATE);
        assert_eq!(made["device"], CACHE);
        assert!(
            made["message"].as_str().expect("a message").contains("dm-cache, blocks of 32 KiB"),
            "{made}"
        );
        assert_there(&guest, &ALL);
        let (kind, table) = target(CACHE, Report::Table);
        assert_eq!(kind, "cache");
        assert!(table.contains(" 8:0 64 1 writethrough smq 2 migration_threshold 2048"), "{table}");
        assert_eq!(holders("rd0").len(), 2);
        guest.change(REMOVE);
        assert_there(&guest, &[]);
        assert_eq!(holders("rd0"), [""; 0]);
        assert_zero("the superblock", &read("/dev/rd0", 0, PAGE));
        guest.post(REMOVE).failure(404, &[CACHE]);
    }
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn the_name_of_another_policy_does_not_lead_to_the_parts() {
    let guest = forced();
    guest.disk(8);
    let others = ["removeRapidDiskCache/rc-wb_sda", "removeRapidDiskCache/rc-wa_sda"];
    guest.change(CREATE);
    guest.refuses_each(&others, 404, &["there is no cache"]);
    guest.change(REMOVE);
    // Nor while the cache is being made or removed.
    let client = *guest;
    meanwhile(
        2,
        || others.iter().for_each(|other| client.post(other).failure(404, &["there is no cache"])),
        || {
            for _ in 0..15 {
                client.change(CREATE);
                client.change(REMOVE);
            }
        },
    );
    assert_there(&guest, &[]);
}

#[test]
fn a_disk_in_use_names_the_cache_and_its_parts_are_nobodys() {
    let guest = forced();
    sh(
        "modprobe -a configfs nvmet; mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config",
    );
    sh("mkdir -p /sys/kernel/config/nvmet/ports/1");
    guest.disk(16);
    guest.disk(16);
    guest.change(CREATE);
    settle();
    let requests =
        ["removeRapidDisk/rd0", "flushRapidDisk/rd0", "lockRapidDisk/rd0", "resizeRapidDisk/rd0/32"];
    guest.refuses_each(&requests, 409, &["rd0 is mapped by the cache rc-wt_sda"]);
    let requests = [
        "createNVMeTarget/rd0/1",
        "createRapidDiskCache/rd0/sdb/write-through",
        "createRapidDiskCache/rd1/sda/writeback",
    ];
    guest.refuses_each(&requests, 409, &["mapped by the cache rc-wt_sda"]);
    // By the names of their nodes, and by the names of their mappings, which are no volumes.
    for part in ["dm-0", "dm-1"] {
        guest.refuses(&format!("createRapidDiskCache/rd1/{part}/write-through"), 400, &["part", CACHE]);
    }
    for part in &ALL[..2] {
        let requests = [format!("removeRapidDiskCache/{part}"), format!("createNVMeTarget/{part}/1")];
        guest.refuses_each(&requests, 400, &[part]);
        guest.get(&format!("showRapidDiskCacheStats/{part}")).failure(400, &[part]);
    }
    let resources = guest.read("listAllResources").to_string();
    assert!(!resources.contains("dm-") && !resources.contains("rc-w"), "{resources}");
    assert_there(&guest, &ALL);
}

#[test]
fn what_it_cannot_do_is_refused_and_says_what_can_be_done() {
    let guest = forced();
    guest.disk(16);
    let words = ["write-around", "write-through", "writeback", "modprobe rapiddisk-cache"];
    guest.refuses("createRapidDiskCache/rd0/sda/write-around", 503, &words);
    // The disk may hold the only copy of somebody's data: no driver makes a cache of it.
    guest.cache("rd0", "sdb", "writeback");
    settle();
    sh("dmsetup remove --retry rc-wb_sdb; rm -f /dev/mapper/rc-wb_sdb");
    guest.refuses(CREATE, 409, &["rd0", "flush"]);
}
