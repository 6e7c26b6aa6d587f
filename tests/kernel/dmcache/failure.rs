//! Steps that fail, and a daemon that is killed: all is undone or repaired.

use std::time::Duration;

use serde_json::Value;

use super::{ALL, CACHE, CREATE, REMOVE, assert_there, dm_of, forced};
use crate::support::data::{Random, assert_same_data, assert_zero, fingerprint, noise, read, write};
use crate::support::kernel::{Process, all_mappings, mounted_out_of_sight, put, ram_disks, settle};
use crate::support::{Client, MIB, PAGE, sh, sys};

#[test]
fn each_step_that_fails_is_undone() {
    let guest = forced();
    guest.disk(8);
    write("/dev/rd0", 0, &noise(1, 4 * PAGE));
    write("/dev/sda", 0, &noise(2, 4 * PAGE));
    settle();
    // Somebody else has a mapping with the name of a part.
    for part in &ALL[..2] {
        sh(&format!("dmsetup create --notable {part}"));
        guest.refuses(CREATE, 409, &[part]);
        sh(&format!("dmsetup remove {part}"));
    }
    // A kernel without the targets, which it cannot load by itself either.
    sh("modprobe -a dm-cache dm-cache-smq; rmmod dm-cache-smq dm-cache");
    let helper = sys("/proc/sys/kernel/modprobe").expect("the kernel's helper");
    put("/proc/sys/kernel/modprobe", "/nowhere");
    guest.refuses(CREATE, 503, &["target cache", "modprobe dm-cache"]);
    sh("modprobe dm-cache && { rmmod dm-cache-smq 2>/dev/null || true; }");
    guest.refuses(CREATE, 503, &["modprobe dm-cache-smq"]);
    put("/proc/sys/kernel/modprobe", &helper);
    let source = fingerprint("/dev/sda");
    sh("mount --bind /dev/mapper /dev/mapper && mount -o remount,ro,bind /dev/mapper");
    guest.post(CREATE).failure(500, &[CACHE, "Read-only"]);
    sh("umount /dev/mapper");
    assert_there(&guest, &[]);
    assert_eq!(fingerprint("/dev/sda"), source);
    assert_same_data("the first block", &read("/dev/rd0", 0, PAGE), &noise(1, PAGE));
    // A removal that the kernel refuses leaves the cache running.
    guest.change(CREATE);
    let dm = dm_of(CACHE);
    let hidden = mounted_out_of_sight(&dm, "");
    guest.post(REMOVE).failure(409, &[CACHE, "mounted on /mnt in the mount namespace of sleep"]);
    drop(hidden);
    assert_there(&guest, &ALL);
    // A part of the cache is open: the removal is refused as well.
    for part in &ALL[..2] {
        let user = Process::asleep(&format!("</dev/{}", dm_of(part)));
        guest.refuses(REMOVE, 409, &[part, "open in sleep"]);
        drop(user);
    }
    // Somebody else removed the cache and left its parts: the request removes these.
    settle();
    sh("dmsetup remove --retry rc-wt_sda");
    guest.post("removeRapidDisk/rd0").failure(409, &[CACHE]);
    guest.change(REMOVE);
    assert_there(&guest, &[]);
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn what_a_daemon_killed_at_any_step_left_is_repaired() {
    let mut guest = forced();
    guest.disk(8);
    let data = noise(1, MIB as usize);
    write("/dev/sda", 0, &data);
    settle();
    let (meta, rest) = ("-u rapiddiskd-rc-wm_sda rc-wm_sda", "-u rapiddiskd-rc-wd_sda rc-wd_sda");
    let meta_made = format!("echo '0 288 linear /dev/rd0 0' | dmsetup create {meta}");
    let both = format!("{meta_made}; echo '0 16096 linear /dev/rd0 288' | dmsetup create {rest}");
    let bare = "dmsetup create --notable -u rapiddiskd-rc-wt_sda rc-wt_sda";
    let load = "dev() { dmsetup info -c --noheadings -o major,minor $1; }; \
        echo \"0 131072 cache $(dev rc-wm_sda) $(dev rc-wd_sda) 8:0 64 1 writethrough smq 0\" | dmsetup load rc-wt_sda";
    let states = [
        format!("dmsetup create --notable {meta}"),
        meta_made.clone(),
        format!("{meta_made}; dmsetup create --notable {rest}"),
        both.clone(),
        format!("{both}; {bare}"),
        format!("{both}; {bare}; {load}"),
    ];
    for state in states {
        sh(&state);
        guest.kill_and_restart();
        assert_there(&guest, &[]);
        assert_zero(&state, &read("/dev/rd0", 0, PAGE));
        assert_same_data(&state, &read("/dev/sda", 0, data.len()), &data);
    }
    // What a removal leaves, and what a creation leaves before its last step.
    for state in ["dmsetup suspend rc-wt_sda", "rm /dev/mapper/rc-wt_sda"] {
        guest.change(CREATE);
        settle();
        sh(state);
        guest.kill_and_restart();
        assert_there(&guest, &ALL);
        guest.change(REMOVE);
    }
    guest.change(CREATE);
    settle();
    sh("dmsetup remove --retry rc-wt_sda");
    // The next creation does not even need a restart.
    guest.change(CREATE);
    assert_there(&guest, &ALL);
    sh("dmsetup remove --retry rc-wt_sda; dmsetup remove --retry rc-wm_sda");
    guest.kill_and_restart();
    assert_there(&guest, &[]);
    // Mappings of such names that the daemon did not make are left alone.
    sh("dmsetup create --notable rc-wm_sda; echo '0 2048 linear /dev/sdb 0' | dmsetup create rc-wt_sdb");
    guest.kill_and_restart();
    assert_eq!(all_mappings(), ["rc-wm_sda", "rc-wt_sdb"]);
    assert_eq!(guest.caches(), [] as [Value; 0]);
}

#[test]
fn killed_in_the_middle_of_changes_it_leaves_all_or_nothing() {
    let mut guest = forced();
    guest.disk(8);
    let data = noise(3, MIB as usize);
    write("/dev/sda", 0, &data);
    let change = |client: Client| {
        let ask = |path: &str| client.try_request("POST", &format!("/v1/{path}")).is_ok();
        ask(CREATE) && ask(REMOVE)
    };
    let mut random = Random::new(5);
    let begin = std::time::Instant::now();
    assert!(change(*guest));
    let span = begin.elapsed().as_millis() as u64;
    let mut found_mapped = 0;
    for _ in 0..25 {
        let client = *guest;
        let delay = Duration::from_millis(random.below(span));
        std::thread::scope(|scope| {
            scope.spawn(|| while change(client) {});
            // At a random moment: this does not wait for anything.
            std::thread::sleep(delay);
            guest.daemon().kill_between_calls();
        });
        guest.kill_and_restart();
        let is_mapped = !all_mappings().is_empty();
        assert_there(&guest, if is_mapped { &ALL } else { &[] });
        found_mapped += usize::from(is_mapped);
        if is_mapped {
            guest.change(REMOVE);
        }
        assert_same_data("the source", &read("/dev/sda", 0, data.len()), &data);
    }
    assert!((3..23).contains(&found_mapped), "{found_mapped} of 25 times there was a cache");
    guest.change("removeRapidDisk/rd0");
    assert_eq!(ram_disks(), [""; 0]);
}
