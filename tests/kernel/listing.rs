//! What the lists say of the kernel's disks, caches and targets.

use std::fs;

use rapiddiskd::kernel::dm::Report;
use serde_json::{Value, json};

use crate::support::data::noise;
use crate::support::kernel::{cache_driver, dm_of, put, ram_driver, size, target};
use crate::support::{Guest, MIB, PAGE, guest, sh, sys, write};

fn devices(list: &[Value]) -> Vec<String> {
    list.iter().map(|entry| entry["device"].as_str().expect("a name").to_owned()).collect()
}

fn resources(guest: &Guest) -> Vec<Value> {
    guest.read("listAllResources")["resources"][1]["volumes"].as_array().expect("disks").clone()
}

#[test]
fn the_service_tells_its_status_and_version() {
    let guest = guest();
    let status = guest.read("checkServiceStatus");
    assert_eq!((&status["status"], &status["version"]), (&json!("OK"), &json!(env!("CARGO_PKG_VERSION"))));
    let driver = ram_driver();
    assert_eq!(status["ram_driver"], driver);
    assert!(status["ram_drivers"].as_array().expect("drivers").contains(&json!(driver)), "{status}");
    assert_eq!(status.get("warning"), None, "{status}");
}

#[test]
fn an_empty_machine_has_empty_lists() {
    let guest = guest();
    let volumes = guest.read("listRapidDiskVolumes");
    assert_eq!(volumes, json!({"volumes": [{"rapiddisk": []}, {"rapiddisk_cache": []}]}));
}

#[test]
fn a_cache_is_listed_with_what_it_stands_on_and_how_it_writes() {
    let guest = guest();
    let disks = [guest.disk(8), guest.disk(8)];
    guest.cache(&disks[0], "sdb", "write-through");
    guest.cache(&disks[1], "sda", "write-back");
    assert_eq!(
        guest.caches(),
        [
            json!({"device": "rc-wb_sda", "cache": "rd1", "source": "sda", "mode": "writeback", "driver": "dm-writecache"}),
            json!({"device": "rc-wt_sdb", "cache": "rd0", "source": "sdb", "mode": "write-through", "driver": cache_driver()}),
        ]
    );
}

#[test]
fn caches_are_listed_in_natural_order() {
    let guest = guest();
    sh("modprobe loop; truncate -s 8M /tmp/test/image");
    for number in [10, 2] {
        sh(&format!("[ -e /dev/loop{number} ] || mknod /dev/loop{number} b 7 {number}"));
        sh(&format!(
            "cp /tmp/test/image /tmp/test/{number} && /usr/sbin/losetup /dev/loop{number} /tmp/test/{number}"
        ));
        let disk = guest.disk(4);
        guest.cache(&disk, &format!("loop{number}"), "write-through");
    }
    assert_eq!(devices(&guest.caches()), ["rc-wt_loop2", "rc-wt_loop10"]);
}

#[test]
fn the_memory_is_that_of_the_kernel() {
    let guest = guest();
    let meminfo = sys("/proc/meminfo").expect("meminfo");
    let kib = |label: &str| -> u64 {
        let line = meminfo.lines().find(|line| line.starts_with(label)).expect(label);
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect(label)
    };
    let memory = guest.read("listAllResources")["resources"][0]["memory"][0].clone();
    assert_eq!(memory["mem_total"], kib("MemTotal:") * 1024);
    let free = memory["mem_free"].as_u64().expect("a number");
    assert!(
        free.abs_diff(kib("MemFree:") * 1024) < 64 * MIB,
        "{free} is not near {}",
        kib("MemFree:") * 1024
    );
}

#[test]
fn real_disks_are_listed_and_nothing_else() {
    let guest = guest();
    let scsi =
        |name: &str| json!({"device": name, "size": 64 * MIB, "vendor": "Linux", "model": "scsi_debug"});
    assert_eq!(resources(&guest), [scsi("sda"), scsi("sdb")]);
    // RAM disks, caches, other mappings and detached loop devices are not listed.
    let disk = guest.disk(8);
    guest.cache(&disk, "sda", "write-through");
    sh("modprobe loop; echo '0 2048 linear /dev/sdb 0' | dmsetup create other");
    assert_eq!(devices(&resources(&guest)), ["sda", "sdb"]);
    sh("truncate -s 12M /tmp/test/image && /usr/sbin/losetup /dev/loop3 /tmp/test/image");
    assert_eq!(
        resources(&guest)[0],
        json!({"device": "loop3", "size": 12 * MIB, "vendor": "UNAVAILABLE", "model": "UNAVAILABLE"})
    );
    assert_eq!(devices(&resources(&guest)), ["loop3", "sda", "sdb"]);
    sh("/usr/sbin/losetup -d /dev/loop3");
    assert_eq!(devices(&resources(&guest)), ["sda", "sdb"]);
}

/// Fields that the reference daemon has.
const PROSE: [&str; 13] = [
    "reads",
    "writes",
    "cache_hits",
    "replacement",
    "write_replacement",
    "read_invalidates",
    "write_invalidates",
    "uncached_reads",
    "uncached_writes",
    "disk_reads",
    "disk_writes",
    "cache_reads",
    "cache_writes",
];

#[test]
fn a_writeback_cache_has_the_newer_counters_too() {
    let guest = guest();
    let disk = guest.disk(16);
    let cache = guest.cache(&disk, "sda", "writeback?block=4096");
    let node = format!("/dev/mapper/{cache}");
    write(&node, 0, &noise(1, 200 * PAGE));
    sh(&format!("dd if={node} of=/dev/null bs=4k count=100 iflag=direct"));
    crate::support::kernel::settle();
    let stats = guest.stats(&cache);
    let (kind, text) = target(&cache, Report::Status);
    assert_eq!(kind, "writecache");
    let fields = [
        "errors",
        "num_blocks",
        "num_free_blocks",
        "num_wb_blocks",
        "num_read_req",
        "num_read_cache_hits",
        "num_write_req",
        "num_write_uncommitted_blk_hits",
        "num_write_committed_blk_hits",
        "num_write_cache_bypass",
        "num_write_cache_alloc",
        "num_write_freelist_blocked",
        "num_flush_req",
        "num_discard_req",
    ];
    let told: Vec<_> = fields.iter().map(|field| stats[field].to_string()).collect();
    assert_eq!(told.join(" "), text.trim(), "{stats}");
    let count = |field: &str| stats[field].as_u64().expect("a number");
    assert_eq!(count("num_blocks") - count("num_free_blocks"), 200, "{stats}");
    assert!(count("num_read_cache_hits") >= 100, "{stats}");
    assert_eq!(size(&dm_of(&cache)), Some(64 * MIB));
}

#[test]
fn a_mapping_that_only_looks_like_a_cache_is_none() {
    let guest = guest();
    sh("echo '0 2048 linear /dev/sdb 0' | dmsetup create rc-wt_sdb");
    assert_eq!(guest.caches(), [] as [Value; 0]);
    guest.get("showRapidDiskCacheStats/rc-wt_sdb").failure(404, &["rc-wt_sdb"]);
    guest.refuses("removeRapidDiskCache/rc-wt_sdb", 404, &["rc-wt_sdb"]);
    let disk = guest.disk(8);
    guest.refuses(&format!("createRapidDiskCache/{disk}/sda/nonsense"), 400, &["nonsense"]);
    // The name is in use, whatever has it.
    sh("echo '0 2048 linear /dev/sdb 0' | dmsetup create rc-wt_sda");
    guest.refuses(&format!("createRapidDiskCache/{disk}/sda/write-through"), 409, &["rc-wt_sda"]);
}

/// With RapidDisk's modules only.
mod rapiddisk {
    use super::*;

    #[test]
    fn disks_are_listed_by_number() {
        let guest = guest();
        for number in [10, 2, 0, 100, 9, 11, 1] {
            put("/sys/kernel/rapiddisk/mgmt", &format!("rapiddisk attach {number} {MIB}"));
        }
        assert_eq!(devices(&guest.disks()), ["rd0", "rd1", "rd2", "rd9", "rd10", "rd11", "rd100"]);
    }

    #[test]
    fn more_disks_than_the_module_can_list_are_all_listed() {
        let guest = guest();
        let count = 300u64;
        let mib = |number: u64| 1 + number % 3;
        for number in 0..count {
            put("/sys/kernel/rapiddisk/mgmt", &format!("rapiddisk attach {number} {}", mib(number) * MIB));
        }
        let written: Vec<u64> = vec![0, 1, 77, 140, 180, 201, 240, 260, 299];
        for &number in &written {
            let pages = 1 + (number % 5) as usize;
            write(&format!("/dev/rd{number}"), 0, &noise(number, pages * PAGE));
        }
        // The reason for this test: the module's own list ends before the last disk.
        let own = fs::read_to_string("/sys/kernel/rapiddisk/devices").expect("the module's list");
        assert!(own.len() <= PAGE && !own.contains("rd299"), "the module lists them all: {}", own.len());
        let disks = guest.disks();
        assert_eq!(disks.len() as u64, count);
        for (number, disk) in (0..count).zip(disks) {
            let pages = if written.contains(&number) { 1 + number % 5 } else { 0 };
            let wanted = json!({
                "device": format!("rd{number}"), "size": mib(number) * MIB, "usage": pages * PAGE as u64, "status": "unlocked",
                "driver": "rapiddisk", "usage_measured": true
            });
            assert_eq!(disk, wanted);
        }
    }

    #[test]
    fn the_statistics_are_what_the_target_counts() {
        let guest = guest();
        let disks = [guest.disk(16), guest.disk(16)];
        for (disk, source, policy) in
            [(&disks[0], "sda", "write-through"), (&disks[1], "sdb", "write-around")]
        {
            let cache = guest.cache(disk, source, policy);
            let node = format!("/dev/mapper/{cache}");
            write(&node, 0, &noise(1, 40 * PAGE));
            sh(&format!(
                "dd if={node} of=/dev/null bs=4k count=100 iflag=direct; dd if={node} of=/dev/null bs=4k count=100 iflag=direct"
            ));
            crate::support::kernel::settle();
            let stats = guest.stats(&cache);
            assert_eq!(stats["device"], cache.as_str());
            let (kind, text) = target(&cache, Report::Status);
            assert_eq!(kind, "rapiddisk-cache");
            for field in PROSE {
                let count = stats[field].as_u64().unwrap_or_else(|| panic!("no {field} in {stats}"));
                let said = text
                    .split([',', '\n'])
                    .any(|item| item.trim() == format!("{}({count})", field.replace('_', " ")));
                assert!(said, "{field} is {count}, the target says {text}");
            }
            assert_eq!(stats.as_object().expect("fields").len(), 1 + PROSE.len());
            assert!(stats["reads"].as_u64() >= Some(200) && stats["writes"].as_u64() >= Some(1), "{stats}");
            assert!(
                stats["cache_hits"].as_u64() >= Some(60),
                "the second pass was not served from memory: {stats}"
            );
        }
    }

    #[test]
    fn a_cache_made_by_another_program_is_a_cache_like_any_other() {
        let guest = guest();
        let disk = guest.disk(16);
        sh(&format!(
            "echo '0 131072 rapiddisk-cache /dev/sda /dev/{disk} 32768 1' | dmsetup create rc-wa_sda"
        ));
        assert_eq!(
            guest.caches(),
            [
                json!({"device": "rc-wa_sda", "cache": "rd0", "source": "sda", "mode": "write-around", "driver": "rapiddisk-cache"})
            ]
        );
        assert!(guest.stats("rc-wa_sda")["reads"].is_u64());
        guest.refuses(&format!("removeRapidDisk/{disk}"), 409, &["rd0", "rc-wa_sda"]);
        crate::support::kernel::settle();
        guest.change("removeRapidDiskCache/rc-wa_sda");
        assert_eq!(crate::support::kernel::mappings(), [""; 0]);
    }
}
