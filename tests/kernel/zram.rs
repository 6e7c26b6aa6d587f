//! RAM disks of zram behind a mapping: what they consist of, that other people's disks of zram stay as they are,
//! and that nothing incomplete is left if the daemon is killed before any system call of a change.

use std::fs;

use serde_json::json;

use crate::export::guest_with_port;
use crate::stock::{killed_before_each, size_after_kill};
use crate::support::data::{MIB, assert_same_data, assert_zero, noise, read, try_write, write};
use crate::support::kernel::{
    Process, State, all_mappings, attribute, below_in_zram as below, device, eventually, is_suspended, names,
    ram_disks, settle, size, sys, used,
};
use crate::support::{Guest, clean, guest_after, guest_with, meanwhile, sh};

/// A guest with the module.
fn zram_guest(options: &[&str]) -> Guest {
    guest_after(options, load)
}

pub fn load() {
    clean::load();
    sh("modprobe zram num_devices=0");
}

/// Makes a disk, and gives its name.
fn disk(guest: &Guest, mib: u64) -> String {
    let made = guest.change(&format!("createRapidDisk/{mib}?driver=zram"));
    made["device"].as_str().expect("a name").to_owned()
}

/// The disks of zram that have a size.
fn sized() -> Vec<String> {
    let has_size = |name: &String| name.starts_with("zram") && size(name) != Some(0);
    names("/sys/block").into_iter().filter(has_size).collect()
}

/// Each disk is complete: a mapping that is in use, a guard that holds what is below, and a link. There is nothing
/// else but disks of zram without a size, and those of `others`.
fn assert_whole(others: &[&str]) {
    settle();
    let disks = ram_disks();
    let mut wanted_mappings = disks.clone();
    let mut wanted_below: Vec<_> = others.iter().map(|&name| name.to_owned()).collect();
    for disk in &disks {
        let below = below(disk).unwrap_or_else(|| panic!("{disk} stands on no disk of zram"));
        let guard = format!("{disk}-{below}");
        assert_eq!(names(&format!("/sys/block/{}/slaves", device(&guard))), [&*below], "{guard}");
        assert!(!is_suspended(disk), "{disk} is suspended");
        assert!(!sh(&format!("dmsetup info {disk}")).contains("INACTIVE"), "{disk}'s other table");
        assert_eq!(size(disk), size(&below), "{disk}");
        assert_eq!(fs::read_link(format!("/dev/{disk}")).expect("a link").to_str(), Some(&*device(disk)));
        wanted_mappings.push(guard);
        wanted_below.push(below);
    }
    wanted_mappings.sort();
    wanted_below.sort();
    assert_eq!(all_mappings(), wanted_mappings);
    assert_eq!(sized(), wanted_below);
    let links = names("/dev").into_iter().filter(|name| name.starts_with("rd")).collect::<Vec<_>>();
    assert_eq!(links, disks);
}

#[test]
fn a_disk_holds_more_than_the_memory_it_takes_and_nobody_elses_zram_is_touched() {
    let guest = zram_guest(&["--memory-limit", "200"]);
    // Somebody else's: one with data, and one that is still to get its size.
    let others = ["zram0", "zram1"];
    others.iter().for_each(|_| _ = sh("cat /sys/class/zram-control/hot_add"));
    sh("echo 8M >/sys/block/zram0/disksize");
    let data = noise(1, MIB as usize);
    write("/dev/zram0", MIB, &data);

    assert_ne!(guest.read("checkServiceStatus")["ram_driver"], "zram");
    assert_eq!(disk(&guest, 64), "rd0");
    assert_whole(&["zram0"]);
    assert_eq!(below("rd0").as_deref(), Some("zram2"));
    assert_eq!(attribute("rd0", "queue/logical_block_size").as_deref(), Some("4096"));
    let listed = guest.listed("rd0");
    assert_eq!((&listed["driver"], &listed["size"]), (&json!("zram"), &json!(64 * MIB)));
    assert_eq!((&listed["stored"], &listed["ratio"]), (&json!(0), &json!(null)));
    assert_eq!(listed["limit"], 32 * MIB);

    // A page of letters, over and over: it compresses, and is not all the same byte.
    let letters: Vec<u8> = (0..4 * MIB as usize).map(|at| b'a' + (at / 7 % 13) as u8).collect();
    write("/dev/rd0", 8 * MIB, &letters);
    let listed = guest.listed("rd0");
    assert_eq!(listed["stored"], 4 * MIB);
    assert!(listed["usage"].as_u64().expect("bytes") < MIB, "{listed}");
    assert!(listed["ratio"].as_f64().expect("a number") > 4.0, "{listed}");
    assert_eq!(listed["usage_measured"], true);
    assert_same_data("rd0", &read("/dev/rd0", 8 * MIB, letters.len()), &letters);

    // One that the kernel would not choose by itself.
    let algorithms = sys("/sys/block/zram1/comp_algorithm").expect("a list");
    let other = algorithms.split_whitespace().find(|name| !name.starts_with('[')).expect("another");
    let made = guest.change(&format!("createRapidDisk/16?driver=zram&algorithm={other}&limit=12"));
    assert_eq!(made["device"], "rd1");
    let listed = guest.listed("rd1");
    assert_eq!((&listed["algorithm"], &listed["limit"]), (&json!(other), &json!(12 * MIB)));
    // What cannot be is refused, and nothing is left of it.
    let before = State::now();
    guest.refuses("createRapidDisk/8?driver=zram&algorithm=none-such", 400, &["none-such", other]);
    guest.refuses("createRapidDisk/8?driver=zram&algorithm=a%2Fb", 400, &["a/b"]);
    guest.refuses("createRapidDisk/8?driver=zram&limit=0", 400, &["\"0\""]);
    guest.refuses("createRapidDisk/8?limit=4", 400, &["driver=zram"]);
    guest.refuses("createRapidDisk/8?algorithm=lz4", 400, &["driver=zram"]);
    // It has 32 and 12 MiB, and the tables of their pages.
    guest.refuses("createRapidDisk/8?driver=zram&limit=156", 507, &["156 MiB"]);
    guest.refuses("createRapidDisk/100T?driver=zram&limit=1", 507, &["MiB do not fit"]);
    before.assert_unchanged("a disk that cannot be");
    assert_whole(&["zram0"]);

    guest.refuses("createRapidDiskCache/rd0/sda/write-through", 409, &["rd0", "4096", "zram"]);
    guest.refuses("createRapidDiskCache/rd0/sda/writeback", 409, &["rd0", "4096", "zram"]);
    let guard = format!("rd0-{}", below("rd0").expect("its disk"));
    for part in ["rd0", &*guard] {
        let cache = format!("createRapidDiskCache/rd1/{}/write-through", device(part));
        guest.refuses(&cache, 400, &["is a RAM disk itself, or a part of one"]);
    }
    let listed = guest.read("listAllResources")["resources"][1]["volumes"].to_string();
    assert!(!listed.contains("dm-") && !listed.contains("zram"), "{listed}");

    guest.change("removeRapidDisk/rd0");
    guest.change("removeRapidDisk/rd1");
    assert_whole(&["zram0"]);
    assert_eq!(
        names("/sys/block").iter().filter(|name| name.starts_with("zram")).collect::<Vec<_>>(),
        others
    );
    assert_same_data("zram0", &read("/dev/zram0", MIB, data.len()), &data);
}

#[test]
fn a_disk_is_locked_flushed_exported_and_gets_another_size_only_while_it_is_empty() {
    let guest = guest_with_port();
    load();
    assert_eq!(disk(&guest, 16), "rd0");
    let data = noise(2, 2 * MIB as usize);
    write("/dev/rd0", 0, &data);
    for size in [32, 8] {
        guest.refuses(&format!("resizeRapidDisk/rd0/{size}"), 409, &["rd0", "has data", "flush it first"]);
    }
    guest.change("lockRapidDisk/rd0");
    assert!(try_write("/dev/rd0", 0, &data).is_err(), "a locked disk was written to");
    guest.refuses("flushRapidDisk/rd0", 409, &["locked"]);
    guest.change("unlockRapidDisk/rd0");
    guest.change("createNVMeTarget/rd0/1");
    for change in ["resizeRapidDisk/rd0/32", "flushRapidDisk/rd0", "removeRapidDisk/rd0"] {
        guest.refuses(change, 409, &["rd0", "export"]);
    }
    guest.change("removeNVMeTarget/rd0");
    let open = Process::asleep("</dev/rd0");
    for change in ["flushRapidDisk/rd0", "removeRapidDisk/rd0"] {
        guest.refuses(change, 409, &["rd0", &open.pid().to_string()]);
    }
    drop(open);
    assert_same_data("rd0", &read("/dev/rd0", 0, data.len()), &data);
    guest.change("flushRapidDisk/rd0");
    assert_zero("rd0", &read("/dev/rd0", 0, 16 * MIB as usize));
    assert_eq!(used("rd0"), Some(0));

    let open = Process::asleep("</dev/rd0");
    for size in [32, 8] {
        let resize = format!("resizeRapidDisk/rd0/{size}");
        guest.refuses(&resize, 409, &["rd0", &open.pid().to_string()]);
    }
    drop(open);
    for mib in [32, 8, 20] {
        let algorithm = guest.listed("rd0")["algorithm"].clone();
        guest.change(&format!("resizeRapidDisk/rd0/{mib}"));
        assert_whole(&[]);
        let listed = guest.listed("rd0");
        assert_eq!((&listed["size"], &listed["limit"]), (&json!(mib * MIB), &json!(mib * MIB / 2)));
        assert_eq!(listed["algorithm"], algorithm);
        assert_zero("rd0", &read("/dev/rd0", 0, (mib * MIB) as usize));
    }
    // One that is locked stays so.
    guest.change("lockRapidDisk/rd0");
    guest.change("resizeRapidDisk/rd0/24");
    assert!(try_write("/dev/rd0", 0, &data).is_err(), "a locked disk was written to");
    guest.change("unlockRapidDisk/rd0");
    guest.change("resizeRapidDisk/rd0/20");
    // Discards are for everybody here.
    write("/dev/rd0", 0, &data);
    sh("blkdiscard -f /dev/rd0");
    assert_eq!(used("rd0"), Some(0));
    // What does not compress takes more than the half of the disk that its data may take.
    assert!(try_write("/dev/rd0", 0, &noise(3, 16 * MIB as usize)).is_err(), "beyond its limit");
    assert!(guest.listed("rd0")["usage"].as_u64().expect("bytes") <= 10 * MIB);
    guest.change("flushRapidDisk/rd0");
    write("/dev/rd0", 0, &data);
    assert_same_data("rd0", &read("/dev/rd0", 0, data.len()), &data);
    sh("dmsetup suspend rd0");
    let changes =
        ["flushRapidDisk/rd0", "resizeRapidDisk/rd0/48", "lockRapidDisk/rd0", "removeRapidDisk/rd0"];
    let answers = changes.map(|change| guest.post(change));
    sh("dmsetup resume rd0");
    answers.into_iter().for_each(|answer| answer.failure(409, &["suspended by another program"]));
    assert_same_data("rd0", &read("/dev/rd0", 0, data.len()), &data);
    guest.change("removeRapidDisk/rd0");
    assert_whole(&[]);
}

#[test]
fn without_the_module_or_device_mapper_it_is_said_what_to_load() {
    let guest = guest_with(&["--ram-driver", "zram"]);
    guest.refuses("createRapidDisk/8", 503, &["modprobe zram num_devices=0"]);
    load();
    assert_eq!(guest.disk(8), "rd0");
    assert_eq!(guest.listed("rd0")["driver"], "zram");
    eventually("the status says so", || guest.read("checkServiceStatus")["ram_driver"] == "zram");
    guest.change("removeRapidDisk/rd0");
}

/// The states that a kill can leave, and what others can do to a disk.
#[test]
fn what_was_left_half_done_or_taken_away_is_put_right() {
    let mut guest = zram_guest(&[]);
    let data = noise(5, 2 * MIB as usize);
    let disks = ["rd0", "rd1", "rd2", "rd3", "rd4"];
    for name in disks {
        assert_eq!(disk(&guest, 8), name);
        write(&format!("/dev/{name}"), 5 * MIB, &data);
    }
    // The next change maps a disk again whose mapping somebody removed.
    sh("dmsetup remove rd0");
    let listed = guest.listed("rd0");
    assert!(listed["fault"].to_string().contains("has lost its mapping"), "{listed}");
    guest.change("unlockRapidDisk/rd0");
    assert_whole(&[]);
    guest.daemon().kill();
    let below = |disk| below(disk).expect("a disk of zram");
    let guard = format!("rd4-{}", below("rd4"));
    sh(&format!("dmsetup suspend rd0; rm /dev/rd2; dmsetup remove rd3; dmsetup remove {guard}"));
    sh(&format!("dmsetup create {guard} -n -u rapiddiskd-{guard}; ln -s dm-77 /dev/rd8"));
    // A change of size that had got as far as its table, and one that was not to get any further.
    sh("cat /sys/class/zram-control/hot_add; echo 16M >/sys/block/zram5/disksize");
    sh("dmsetup create rd1-zram5 -n -u rapiddiskd-rd1-zram5");
    sh("echo \"0 32768 linear $(cat /sys/block/zram5/dev) 0\" | dmsetup reload rd1");
    sh("cat /sys/class/zram-control/hot_add; echo 16M >/sys/block/zram6/disksize");
    sh("dmsetup create rd9 -n -u rapiddiskd-zram-rd9; dmsetup create rd9-zram6 -n -u rapiddiskd-rd9-zram6");
    guest.kill_and_restart();
    assert_eq!(ram_disks(), disks);
    assert_whole(&[]);
    for disk in disks {
        assert_eq!(size(disk), Some(8 * MIB), "{disk}");
        assert_same_data(disk, &read(&format!("/dev/{disk}"), 5 * MIB, data.len()), &data);
        guest.change(&format!("removeRapidDisk/{disk}"));
    }
    assert_whole(&[]);
}

#[test]
fn killed_before_any_system_call_of_a_change_it_leaves_whole_disks_of_zram() {
    let data = noise(9, 2 * MIB as usize);
    let changes = [
        // The request, and the size in MiB before it and after it.
        ("createRapidDisk/8?driver=zram", 0, 8),
        ("resizeRapidDisk/rd0/24", 16, 24),
        ("resizeRapidDisk/rd0/8", 16, 8),
        ("flushRapidDisk/rd0", 16, 16),
        ("removeRapidDisk/rd0", 16, 0),
    ];
    let mut guest = zram_guest(&["--memory-limit", "64", "--workers", "2"]);
    let mut kills = 0;
    for (change, before, after) in changes {
        let has_data = !change.starts_with("resize");
        let prepare = |guest: &Guest| {
            if before > 0 {
                disk(guest, before);
                if has_data {
                    write("/dev/rd0", MIB, &data);
                }
            }
        };
        let check = |guest: &Guest, answered: bool, what: &str| {
            assert_whole(&[]);
            if size_after_kill(guest, what, [before, after], answered) > 0 {
                let got = read("/dev/rd0", MIB, data.len());
                let is_empty = used("rd0") == Some(0);
                match before == 0 || !has_data || change.starts_with("flush") && is_empty {
                    true => assert_zero(what, &got),
                    false => assert_same_data(what, &got, &data),
                }
                guest.change("removeRapidDisk/rd0");
            }
        };
        kills +=
            killed_before_each(&mut guest, &["ioctl", "write", "symlink", "unlink"], change, prepare, check);
    }
    println!("killed {kills} times");
    assert!(kills >= 40, "killed {kills} times only");
}

#[test]
fn disks_are_made_flushed_and_removed_while_another_is_written_to() {
    let guest = zram_guest(&[]);
    for name in ["rd0", "rd1"] {
        assert_eq!(disk(&guest, 16), name);
    }
    let data = noise(6, 4 * MIB as usize);
    let others = || {
        write("/dev/rd0", 0, &data);
        assert_same_data("rd0", &read("/dev/rd0", 0, data.len()), &data);
    };
    meanwhile(2, others, || {
        for size in [24, 8, 32, 16] {
            write("/dev/rd1", MIB, &data);
            guest.change("flushRapidDisk/rd1");
            assert_zero("rd1", &read("/dev/rd1", MIB, data.len()));
            guest.change(&format!("resizeRapidDisk/rd1/{size}"));
            assert_eq!(disk(&guest, 8), "rd2");
            write("/dev/rd2", 0, &data);
            guest.change("removeRapidDisk/rd2");
        }
    });
    assert_whole(&[]);
}
