//! RAM disks of brd behind a mapping, in a guest whose brd can discard: what they consist of, that nobody
//! else's disks and no discards of others get in the way, and that nothing incomplete is left if the daemon
//! is killed before any system call of a change.

use std::fs;

use crate::export::{export, guest_with_port};
use crate::stock::{killed_before, killed_before_each, size_after_kill};
use crate::support::data::{MIB, PAGE, assert_same_data, assert_zero, noise, read, write};
use crate::support::kernel::{
    Process, all_mappings, attribute, below, device, eventually, is_suspended, names, put, ram_disks, size,
    sys, used, works,
};
use crate::support::{Guest, clean, guest, guest_after, guest_with, meanwhile, sh};

/// A guest in which nobody has used brd before.
fn fresh_guest() -> Guest {
    guest_after(&[], clean::load)
}

/// The memory that a disk of brd itself holds, in bytes.
fn held(ram: &str) -> u64 {
    let pages = sys(&format!("/sys/kernel/debug/ramdisk_pages/{ram}")).expect("debugfs");
    pages.parse::<u64>().expect("a number") * PAGE as u64
}

/// Each disk is complete: a mapping that is in use, its guard, and a link. There is nothing else, and what
/// is not taken holds a label at most.
fn assert_whole() {
    let disks = ram_disks();
    let mut wanted: Vec<_> = disks.clone();
    for disk in &disks {
        let below = below(disk).unwrap_or_else(|| panic!("{disk} stands on no disk of brd"));
        wanted.push(format!("{disk}-{below}"));
        assert!(!is_suspended(disk), "{disk} is suspended");
        assert!(
            !sh(&format!("dmsetup info {disk}")).contains("INACTIVE"),
            "{disk} has a table that is not in use"
        );
        assert_eq!(attribute(disk, "queue/discard_max_bytes").as_deref(), Some("0"), "{disk}");
        assert_eq!(fs::read_link(format!("/dev/{disk}")).expect("a link").to_str(), Some(&*device(disk)));
    }
    wanted.sort();
    assert_eq!(all_mappings(), wanted);
    let links = names("/dev").into_iter().filter(|name| name.starts_with("rd")).collect::<Vec<_>>();
    assert_eq!(links, disks);
    let taken: Vec<_> = disks.iter().filter_map(|disk| below(disk)).collect();
    for ram in names("/sys/block").into_iter().filter(|name| name.starts_with("ram") && !taken.contains(name))
    {
        assert!(held(&ram) <= PAGE as u64, "{ram} still holds {} bytes", held(&ram));
    }
}

#[test]
fn a_disk_is_a_mapping_on_a_disk_of_brd_that_nobody_else_can_take() {
    let guest = fresh_guest();
    assert_eq!((guest.disk(16), guest.disk(8)), ("rd0".into(), "rd1".into()));
    assert_whole();
    assert_eq!(guest.read("checkServiceStatus")["ram_driver"], "brd");
    let listed = guest.listed("rd0");
    assert_eq!((&listed["driver"], &listed["usage_measured"]), (&"brd".into(), &true.into()));
    for (name, wanted) in [("logical_block_size", "512"), ("rotational", "0"), ("discard_max_hw_bytes", "0")]
    {
        assert_eq!(attribute("rd0", &format!("queue/{name}")).as_deref(), Some(wanted), "{name}");
    }
    assert_eq!(below("rd0").as_deref(), Some("ram1024"));
    assert!(!works("blkdiscard -l 1M /dev/ram1024"), "another has taken it");
    let resources = guest.read("listAllResources")["resources"][1]["volumes"].to_string();
    assert!(!resources.contains("dm-") && !resources.contains("ram"), "{resources}");
    // Neither the disk nor what it consists of is a source, by whichever name.
    let mappings = ["rd0", "rd0-ram1024"];
    for mapping in mappings {
        sh(&format!("ln -sfn ../{} /dev/mapper/{mapping}", device(mapping)));
    }
    let create = |source: &str| format!("createRapidDiskCache/rd1/{source}/writeback");
    for source in [&*device("rd0"), "mapper%2Frd0"] {
        guest.refuses(&create(source), 400, &["is a RAM disk itself"]);
    }
    for source in [&*device("rd0-ram1024"), "mapper%2Frd0-ram1024"] {
        guest.refuses(&create(source), 409, &["belongs to the RAM disk rd0"]);
    }
    // It is below both, and the first that the kernel names is in the answer.
    guest.refuses(&create("ram1024"), 409, &["ram1024", "rd0", "remove that first"]);
    for mapping in mappings {
        sh(&format!("rm /dev/mapper/{mapping}"));
    }
    // One disk may be made by another driver.
    assert_eq!(guest.change("createRapidDisk/8?driver=loop")["device"], "rd2");
    assert_eq!(guest.listed("rd2")["driver"], "loop");
    guest.change("removeRapidDisk/rd2");
    guest.refuses("createRapidDisk/8?driver=rapiddisk", 503, &["modprobe rapiddisk"]);
    guest.refuses("createRapidDisk/8?driver=ram", 400, &["rapiddisk, brd, loop and zram"]);
    // Without debugfs nobody says how much it holds.
    write("/dev/rd0", 0, &noise(1, MIB as usize));
    assert_eq!(guest.listed("rd0")["usage"], MIB);
    sh("umount /sys/kernel/debug");
    let listed = guest.listed("rd0");
    assert_eq!((&listed["usage"], &listed["usage_measured"]), (&(16 * MIB).into(), &false.into()));
    // The memory is freed, and the end of the data is found, all the same.
    write("/dev/rd1", 3 * MIB, &noise(2, MIB as usize));
    guest.refuses("resizeRapidDisk/rd1/3", 409, &["rd1", "4194304"]);
    guest.change("resizeRapidDisk/rd1/4");
    guest.change("flushRapidDisk/rd1");
    assert_zero("rd1", &read("/dev/rd1", 0, 4 * MIB as usize));
    guest.change("resizeRapidDisk/rd1/1");
    guest.change("removeRapidDisk/rd0");
    clean::load();
    assert_eq!(used("rd1"), Some(0));
    assert_whole();
    guest.change("removeRapidDisk/rd1");
    assert_whole();
}

/// The brd of Linux 6.12 frees a discarded page while others read and write it. The kernel's log is
/// looked at when the guest has ended.
#[test]
fn no_discard_of_anybody_else_gets_through_not_even_during_a_resize() {
    let guest = guest_with_port();
    guest.disk(16);
    let data = noise(3, 2 * MIB as usize);
    let discard = || assert!(!works("blkdiscard -f /dev/rd0"), "a discard got through");
    meanwhile(1, discard, || {
        for size in 17..25 {
            write("/dev/rd0", 0, &data);
            guest.change(&format!("resizeRapidDisk/rd0/{size}"));
            assert_same_data("rd0", &read("/dev/rd0", 0, data.len()), &data);
        }
    });
    assert_eq!(used("rd0"), Some(2 * MIB));
    assert!(!works(&format!("echo 4096 >/sys/block/{}/queue/discard_max_bytes", device("rd0"))));
    sh("mke2fs -q -F -O ^has_journal -E nodiscard /dev/rd0 && mount -t ext4 -o discard /dev/rd0 /mnt");
    fs::write("/mnt/file", &data).expect("a file");
    fs::remove_file("/mnt/file").expect("the file");
    guest.change("resizeRapidDisk/rd0/32");
    sh("sync && umount /mnt");
    guest.change("flushRapidDisk/rd0");
    assert_eq!(used("rd0"), Some(0));
    assert_zero("rd0", &read("/dev/rd0", 0, 32 * MIB as usize));
    assert_whole();
    // One that another program has suspended, or whose guard is suspended, is left to that program.
    write("/dev/rd0", 0, &data);
    export(&guest, "rd0/1");
    for mapping in ["rd0".to_owned(), format!("rd0-{}", below("rd0").expect("a disk of brd"))] {
        sh(&format!("dmsetup suspend {mapping}"));
        let changes = [
            "flushRapidDisk/rd0",
            "resizeRapidDisk/rd0/48",
            "resizeRapidDisk/rd0/16",
            "lockRapidDisk/rd0",
            "unlockRapidDisk/rd0",
            "removeRapidDisk/rd0",
            "createRapidDiskCache/rd0/sda/write-through",
            "createNVMeTarget/rd0/1",
            "removeNVMeTarget/rd0",
        ];
        let answers = changes.map(|change| guest.post(change));
        let listed = guest.listed("rd0");
        let stays_suspended = is_suspended(&mapping);
        sh(&format!("dmsetup resume {mapping}"));
        assert!(stays_suspended, "{mapping} was resumed");
        assert_eq!(listed["size"], 32 * MIB);
        for answer in answers {
            answer.failure(409, &["suspended by another program", &format!("dmsetup resume {mapping}")]);
        }
        assert_same_data("rd0", &read("/dev/rd0", 0, data.len()), &data);
    }
    guest.change("removeNVMeTarget/rd0");
    // The removal of a cache would write to it.
    for policy in ["write-through", "writeback"] {
        let remove = format!("removeRapidDiskCache/{}", guest.cache("rd0", "sda", policy));
        sh("dmsetup suspend rd0");
        let answer = guest.post(&remove);
        sh("dmsetup resume rd0");
        answer.failure(409, &["rd0", "suspended by another program", "dmsetup resume rd0"]);
        guest.change(&remove);
    }
    assert_whole();
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn what_others_have_of_brd_is_left_to_them() {
    let guest = fresh_guest();
    assert_eq!(guest.disk(8), "rd0");
    guest.change("removeRapidDisk/rd0");
    assert_eq!(held("ram1024"), PAGE as u64, "the label");
    // One is open, one is mapped, one has data but no label, and one has data beside the label.
    let data = noise(4, 8 * PAGE);
    let _open = Process::asleep("<>/dev/ram1024");
    sh("echo '0 8 linear 1:1025 0' | dmsetup create other; echo '0 8 linear 1:1026 0' | dmsetup create gone");
    sh("dmsetup remove gone");
    write("/dev/ram1026", 0, &data);
    assert_eq!(guest.disk(8), "rd0");
    assert_eq!(below("rd0").as_deref(), Some("ram1027"));
    guest.change("removeRapidDisk/rd0");
    write("/dev/ram1027", 4 * MIB, &data);
    assert_eq!(guest.disk(8), "rd0");
    assert_eq!(below("rd0").as_deref(), Some("ram1028"));
    assert_zero("rd0", &read("/dev/rd0", 0, 8 * MIB as usize));
    assert_same_data("ram1026", &read("/dev/ram1026", 0, data.len()), &data);
    assert_same_data("ram1027", &read("/dev/ram1027", 4 * MIB, data.len()), &data);
    // A mapping with the name of a disk that is none of ours: the next number is taken.
    sh("echo '0 2048 linear /dev/sda 0' | dmsetup create rd1");
    assert_eq!(guest.disk(8), "rd2");
    assert_eq!(guest.listed("rd2")["driver"], "brd");
    guest.post("removeRapidDisk/rd1").failure(404, &["rd1"]);
    assert!(all_mappings().contains(&"rd1".to_owned()));
    guest.change("removeRapidDisk/rd2");
    drop((_open, guest));
    let _alone = crate::support::begin();
    clean::unload();
}

#[test]
fn a_brd_whose_disks_are_too_small_is_not_taken() {
    let guest =
        guest_after(&[], || sh("modprobe brd rd_nr=1 rd_size=16384; modprobe -a loop dm-mod").clear());
    assert_eq!(guest.disk(8), "rd0");
    assert_eq!(guest.listed("rd0")["driver"], "loop");
    eventually("the status says why", || {
        guest.read("checkServiceStatus")["missing_ram_drivers"]
            .to_string()
            .contains("the disks of brd have 16 MiB")
    });
    assert_eq!(names("/sys/block").iter().filter(|name| name.starts_with("ram")).count(), 1);
    drop(guest);
    let guest = guest_after(&["--ram-driver", "brd"], || sh("modprobe -a loop dm-mod").clear());
    guest.refuses("createRapidDisk/8", 503, &["modprobe brd rd_nr=0 rd_size="]);
}

#[test]
fn a_disk_whose_mapping_others_removed_keeps_its_data_and_is_mapped_again() {
    let guest = guest_with(&["--memory-limit", "20"]);
    assert_eq!(guest.disk(16), "rd0");
    let data = noise(4, 2 * MIB as usize);
    write("/dev/rd0", MIB, &data);
    let ram = below("rd0").expect("a disk of brd");
    for change in
        ["resizeRapidDisk/rd0/18", "lockRapidDisk/rd0", "createRapidDiskCache/rd0/sda/write-through"]
    {
        let bytes = size("rd0");
        sh("dmsetup remove rd0");
        let listed = guest.listed("rd0");
        assert!(listed["fault"].to_string().contains("has lost its mapping"), "{listed}");
        assert_eq!(listed["size"].as_u64(), bytes);
        // Its name and its memory are still taken.
        guest.refuses("createRapidDisk/16", 507, &["16 MiB"]);
        guest.change(change);
        assert_eq!(below("rd0").as_ref(), Some(&ram));
        assert!(guest.listed("rd0")["fault"].is_null());
        if change.starts_with("create") {
            guest.change("removeRapidDiskCache/rc-wt_sda");
        } else {
            assert_same_data(change, &read("/dev/rd0", MIB, data.len()), &data);
        }
        guest.change("unlockRapidDisk/rd0");
    }
    sh("dmsetup remove rd0");
    guest.change("removeRapidDisk/rd0");
    assert_eq!(held(&ram), PAGE as u64);
    assert_whole();
}

/// The states that a kill can leave, and what others can do to a disk.
#[test]
fn what_was_left_half_done_is_put_right_at_the_next_start() {
    let mut guest = fresh_guest();
    let data = noise(5, 2 * MIB as usize);
    for disk in ["rd0", "rd1", "rd2", "rd3"] {
        assert_eq!(guest.disk(8), disk);
        write(&format!("/dev/{disk}"), 5 * MIB, &data);
    }
    guest.daemon().kill();
    let table = sh("dmsetup table rd1 | sed s/16376/24568/");
    sh(&format!(
        "dmsetup suspend rd0; printf '{table}' | dmsetup reload rd1; rm /dev/rd2; dmsetup remove rd3"
    ));
    sh("dmsetup create rd9 -n -u rapiddiskd-rd9; ln -s dm-77 /dev/rd8");
    sh("echo '0 8 linear 1:1040 2048' | dmsetup create rd9-ram1040 -u rapiddiskd-rd9-ram1040");
    guest.kill_and_restart();
    assert_eq!(ram_disks(), ["rd0", "rd1", "rd2", "rd3"]);
    assert_whole();
    for disk in ["rd0", "rd1", "rd2", "rd3"] {
        assert_eq!(size(disk), Some(8 * MIB), "{disk}");
        assert_same_data(disk, &read(&format!("/dev/{disk}"), 5 * MIB, data.len()), &data);
    }
    // A disk that was unmapped, and its guard too: whoever gets its memory gets it empty.
    guest.daemon().kill();
    let ram = below("rd0").expect("a disk of brd");
    sh(&format!("dmsetup remove rd0; dmsetup remove rd0-{ram}"));
    assert_eq!(held(&ram), 2 * MIB + PAGE as u64);
    guest.kill_and_restart();
    assert_eq!(guest.disk(1), "rd0");
    assert_eq!((below("rd0"), used("rd0")), (Some(ram), Some(0)));
    assert_whole();
}

#[test]
fn killed_before_any_system_call_of_a_change_it_leaves_whole_disks_of_brd() {
    let data = noise(9, 2 * MIB as usize);
    let changes = [
        // The request, and the size in MiB before it and after it.
        ("createRapidDisk/8", 0, 8),
        ("resizeRapidDisk/rd0/24", 16, 24),
        ("resizeRapidDisk/rd0/8", 16, 8),
        ("flushRapidDisk/rd0", 16, 16),
        ("removeRapidDisk/rd0", 16, 0),
    ];
    let mut guest: Guest = guest_with(&["--memory-limit", "64", "--workers", "2"]);
    let mut kills = 0;
    for (change, before, after) in changes {
        let prepare = |guest: &Guest| {
            if before > 0 {
                guest.disk(before);
                write("/dev/rd0", MIB, &data);
            }
        };
        let check = |guest: &Guest, answered: bool, what: &str| {
            assert_whole();
            if size_after_kill(guest, what, [before, after], answered) > 0 {
                let got = read("/dev/rd0", MIB, data.len());
                match (before, change.starts_with("flush") && used("rd0") == Some(0)) {
                    (0, _) | (_, true) => assert_zero(what, &got),
                    _ => assert_same_data(what, &got, &data),
                }
                guest.change("removeRapidDisk/rd0");
            }
        };
        let calls = ["ioctl", "pwrite64", "symlink", "unlink"];
        kills += killed_before_each(&mut guest, &calls, change, prepare, check);
    }
    println!("killed {kills} times");
    assert!(kills >= 18, "killed {kills} times only");
}

/// First `rd0` has lost its mapping. Then a second disk is made, and the kernel has not made its `ramK` yet.
#[test]
fn killed_while_a_disk_is_mapped_or_made_beside_another_it_loses_neither() {
    let data = noise(8, MIB as usize);
    let mut guest = fresh_guest();
    let mut kills = 0;
    for change in ["unlockRapidDisk/rd0", "createRapidDisk/8"] {
        for nth in 1.. {
            assert_eq!(guest.disk(8), "rd0");
            write("/dev/rd0", MIB, &data);
            if change.starts_with("unlock") {
                sh("dmsetup remove rd0");
            }
            let answered = killed_before(&mut guest, "ioctl", nth, change);
            let what = format!("{change} killed before ioctl number {nth}");
            assert_whole();
            assert_same_data(&what, &read("/dev/rd0", MIB, data.len()), &data);
            for disk in ram_disks() {
                guest.change(&format!("removeRapidDisk/{disk}"));
            }
            if answered {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills >= 8, "killed {kills} times only");
}

#[test]
fn two_processors_change_disks_while_others_are_written_to() {
    let guest = guest();
    for disk in ["rd0", "rd1"] {
        assert_eq!(guest.disk(16), disk);
    }
    let data = noise(6, 4 * MIB as usize);
    let others = || {
        write("/dev/rd0", 0, &data);
        assert_same_data("rd0", &read("/dev/rd0", 0, data.len()), &data);
    };
    meanwhile(2, others, || {
        for _ in 0..10 {
            write("/dev/rd1", 8 * MIB, &data);
            guest.change("flushRapidDisk/rd1");
            assert_zero("rd1", &read("/dev/rd1", 8 * MIB, data.len()));
            assert_eq!(guest.disk(8), "rd2");
            write("/dev/rd2", 0, &data);
            guest.change("removeRapidDisk/rd2");
        }
    });
    assert_whole();
    assert_eq!((used("rd0"), used("rd1")), (Some(4 * MIB), Some(0)));
    put("/proc/sys/vm/drop_caches", "3");
    let available = || {
        sys("/proc/meminfo").and_then(|text| {
            text.lines().find_map(|line| {
                line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
            })
        })
    };
    let before = available().expect("a number") * 1024;
    guest.change("resizeRapidDisk/rd1/256");
    sh("dd if=/dev/zero of=/dev/rd1 bs=1M count=256 oflag=direct");
    assert!(available().expect("a number") * 1024 < before - 200 * MIB);
    guest.change("flushRapidDisk/rd1");
    guest.change("removeRapidDisk/rd1");
    eventually("its memory is back", || available().expect("a number") * 1024 > before - 256 * MIB / 100);
}
