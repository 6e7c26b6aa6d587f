//! RAM disks behind loop devices: what they consist of, and that nothing incomplete is left if
//! the daemon is killed before any system call of a change.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::time::Duration;

use rustix::fs::OFlags;
use serde_json::json;

use crate::quiesce::quiesce;
use crate::support::data::{MIB, PAGE, assert_same_data, assert_zero, noise, read, write};
use crate::support::kernel::{
    POOL, Process, all_mappings, attribute, device, eventually, loops, map, mappings, names, settle, size,
    used, works,
};
use crate::support::{Guest, clean, guest, guest_after, guest_with, sh, sys};

/// A guest that has the loop driver and, if asked for, RapidDisk's modules.
fn loop_guest(options: &[&str]) -> Guest {
    let guest = guest_with(&[&["--ram-driver", "loop"], options].concat());
    // A guest with RapidDisk's modules does not load it otherwise.
    sh("modprobe loop");
    guest
}

/// Each disk is complete: a file, an attached loop device of its size, and a link. There is
/// nothing else.
fn assert_whole() {
    settle();
    let disks: Vec<_> = names(POOL);
    let over: Vec<_> = loops().into_iter().filter(|(_, file)| file.starts_with(POOL)).collect();
    assert_eq!(over.len(), disks.len(), "{over:?} and {disks:?}");
    for disk in &disks {
        let device = device(disk);
        assert_ne!(&device, disk, "{disk} has no loop device");
        assert_eq!(fs::read_link(format!("/dev/{disk}")).expect("a link").to_str(), Some(&*device));
        assert_eq!(size(disk), Some(fs::metadata(format!("{POOL}/{disk}")).expect("a file").len()));
        for (name, wanted) in [("loop/autoclear", "0"), ("loop/sizelimit", "0"), ("loop/offset", "0")] {
            assert_eq!(attribute(disk, name).as_deref(), Some(wanted), "{disk}: {name}");
        }
    }
    let links = names("/dev").into_iter().filter(|name| fs::read_link(format!("/dev/{name}")).is_ok());
    let links: Vec<_> = links.filter(|name| name.starts_with("rd")).collect();
    assert_eq!(links, disks);
}

#[test]
fn a_disk_is_a_file_that_only_root_can_reach_and_a_device_of_512_byte_blocks() {
    let guest = loop_guest(&["--memory-limit", "96"]);
    assert_eq!(guest.disk(16), "rd0");
    assert_eq!(guest.listed("rd0")["driver"], "loop");
    assert_eq!(attribute("rd0", "queue/logical_block_size").as_deref(), Some("512"));
    let dir = fs::metadata(POOL).expect("the pool");
    assert_eq!((dir.permissions().mode() & 0o7777, dir.uid()), (0o700, 0));
    assert_eq!(sh(&format!("stat -f -c %T {POOL}")), "tmpfs");
    assert_eq!(sh(&format!("df -m {POOL} | awk 'END {{ print $2 }}'")), "96");
    assert_whole();
    // The disks may take the limit up to its last byte.
    assert_eq!(guest.disk(80), "rd1");
    for (disk, mib) in [("rd0", 16), ("rd1", 80)] {
        write(&format!("/dev/{disk}"), 0, &noise(1, (mib * MIB) as usize));
        assert_eq!(used(disk), Some(mib * MIB));
    }
    guest.change("removeRapidDisk/rd0");
    guest.change("removeRapidDisk/rd1");
    assert_whole();
    assert_eq!(sh(&format!("df -m {POOL} | awk 'END {{ print $3 }}'")), "0");
}

/// Has the kernel take the start of a loop device for a partition.
fn add_partition(device: &str) {
    sh(&format!("addpart /dev/{device} 1 2048 2048"));
    assert!(names(&format!("/sys/block/{device}")).contains(&format!("{device}p1")));
    settle();
}

#[test]
fn who_gets_the_device_of_a_removed_disk_gets_nothing_else_of_it() {
    let mut guest = loop_guest(&[]);
    assert_eq!(guest.disk(8), "rd0");
    let device = device("rd0");
    add_partition(&device);
    guest.change("lockRapidDisk/rd0");
    guest.change("removeRapidDisk/rd0");
    assert!(!names(&format!("/sys/block/{device}")).contains(&format!("{device}p1")));
    // It may have removed the device, too. Then the kernel makes it again for who opens the node.
    guest.daemon().kill();
    settle();
    let number = device.trim_start_matches("loop");
    sh(&format!("[ -b /dev/{device} ] || mknod /dev/{device} b 7 {number}"));
    sh(&format!("truncate -s 8M /tmp/test/file && /usr/sbin/losetup /dev/{device} /tmp/test/file"));
    write(&format!("/dev/{device}"), 0, &noise(1, MIB as usize));
    // The next disk on this loop device is not read-only, and has no partitions.
    add_partition(&device);
    sh(&format!("blockdev --setro /dev/{device} && /usr/sbin/losetup -d /dev/{device}"));
    assert!(names(&format!("/sys/block/{device}")).contains(&format!("{device}p1")), "nothing to clear");
    guest.kill_and_restart();
    assert_eq!(guest.disk(8), "rd0");
    assert!(!names(&format!("/sys/block/{device}")).contains(&format!("{device}p1")));
    assert_eq!(guest.listed("rd0")["status"], "unlocked");
    write("/dev/rd0", 0, &noise(2, MIB as usize));
}

#[test]
fn a_lower_limit_takes_nothing_from_the_disks_there_are() {
    let mut guest = loop_guest(&["--memory-limit", "96"]);
    for disk in ["rd0", "rd1"] {
        assert_eq!(guest.disk(40), disk);
    }
    guest.daemon().kill();
    let lower = guest.daemon().restart_with(&["--ram-driver", "loop", "--memory-limit", "16"]);
    lower.post("createRapidDisk/1").failure(507, &["80 MiB", "16 MiB"]);
    for disk in ["rd0", "rd1"] {
        write(&format!("/dev/{disk}"), 0, &noise(1, 40 * MIB as usize));
    }
    settle();
    // A disk whose loop device somebody detached still counts.
    sh(&format!("/usr/sbin/losetup -d /dev/{}", device("rd1")));
    eventually("it is detached", || device("rd1") == "rd1");
    lower.post("createRapidDisk/1").failure(507, &["80 MiB"]);
    lower.change("removeRapidDisk/rd0");
}

#[test]
fn other_loop_devices_are_none_of_its_business() {
    let mut guest = loop_guest(&[]);
    sh("dd if=/dev/zero of=/tmp/test/rd0 bs=1M count=4; /usr/sbin/losetup /dev/loop0 /tmp/test/rd0");
    assert_eq!(guest.disks().len(), 0);
    assert_eq!(guest.disk(8), "rd0");
    assert_ne!(device("rd0"), "loop0");
    let resources = guest.read("listAllResources")["resources"][1]["volumes"].clone();
    let listed: Vec<_> = resources.as_array().expect("disks").iter().map(|disk| &disk["device"]).collect();
    assert_eq!(listed, ["loop0", "sda", "sdb"], "attached loop devices are disks, RAM disks are not");
    guest.change("removeRapidDisk/rd0");
    assert_eq!(loops(), [("loop0".to_owned(), "/tmp/test/rd0".to_owned())]);
    // A free loop device that somebody else has claimed is passed over.
    guest.disk(8);
    let node = format!("/dev/{}", device("rd0"));
    guest.change("removeRapidDisk/rd0");
    // Before it removes the device, too.
    guest.daemon().kill();
    let mut options = fs::File::options();
    let _claimed = options.read(true).custom_flags(OFlags::EXCL.bits() as i32).open(&node).expect("claimed");
    guest.kill_and_restart();
    assert_eq!(guest.disk(8), "rd0");
    assert_ne!(format!("/dev/{}", device("rd0")), node);
}

#[test]
fn what_others_did_to_a_disk_is_put_right_at_the_next_start() {
    let mut guest = loop_guest(&["--memory-limit", "64"]);
    let data = noise(4, 3 * MIB as usize);
    for disk in ["rd0", "rd1", "rd2"] {
        assert_eq!(guest.disk(8), disk);
        write(&format!("/dev/{disk}"), 2 * MIB, &data);
    }
    guest.daemon().kill();
    sh(&format!(
        "/usr/sbin/losetup -d /dev/{}; rm /dev/rd1; truncate -s 16M {POOL}/rd2; mount -o remount,size=40M {POOL}",
        device("rd0")
    ));
    guest.kill_and_restart();
    assert_whole();
    assert_eq!([size("rd0"), size("rd1"), size("rd2")], [8, 8, 16].map(|mib| Some(mib * MIB)));
    for disk in ["rd0", "rd1", "rd2"] {
        assert_same_data(disk, &read(&format!("/dev/{disk}"), 2 * MIB, data.len()), &data);
    }
    assert_eq!(sh(&format!("df -m {POOL} | awk 'END {{ print $2 }}'")), "64");
}

#[test]
fn what_others_take_from_a_disk_is_shown_and_put_right_by_the_next_change() {
    let guest = loop_guest(&[]);
    guest.disk(16);
    let data = noise(5, MIB as usize);
    write("/dev/rd0", MIB, &data);
    for (change, mib) in [
        ("lockRapidDisk/rd0", 16),
        ("unlockRapidDisk/rd0", 16),
        ("resizeRapidDisk/rd0/24", 24),
        ("resizeRapidDisk/rd0/8", 8),
        ("createRapidDiskCache/rd0/sda/write-through", 8),
        ("flushRapidDisk/rd0", 8),
        ("removeRapidDisk/rd0", 0),
    ] {
        let is_cached = change.starts_with("createRapidDiskCache");
        let (before, used) = (size("rd0"), used("rd0"));
        sh(&format!("/usr/sbin/losetup -d /dev/{}; rm /dev/rd0", device("rd0")));
        eventually("it is detached", || device("rd0") == "rd0");
        let listed = guest.listed("rd0");
        assert!(listed["fault"].as_str().is_some_and(|fault| fault.contains("loop device")), "{listed}");
        assert_eq!((listed["size"].as_u64(), listed["usage"].as_u64()), (before, used));
        guest.change(change);
        assert_whole();
        assert_eq!(size("rd0").unwrap_or_default(), mib * MIB, "{change}");
        if mib > 0 {
            assert_eq!(guest.listed("rd0").get("fault"), None);
        }
        if is_cached {
            guest.change("removeRapidDiskCache/rc-wt_sda");
        } else if mib > 0 && !change.starts_with("flush") {
            assert_same_data(change, &read("/dev/rd0", MIB, data.len()), &data);
        }
    }
    // A device that would be detached by the next who closes it stays.
    guest.disk(8);
    let opener = Process::asleep("</dev/rd0");
    sh(&format!("/usr/sbin/losetup -d /dev/{}", device("rd0")));
    guest.change("unlockRapidDisk/rd0");
    drop(opener);
    assert_whole();
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn a_locked_disk_that_shrinks_stays_locked_whatever_is_in_the_place_of_its_link() {
    let guest = loop_guest(&[]);
    guest.disk(16);
    guest.change("lockRapidDisk/rd0");
    sh("rm /dev/rd0; echo of a script >/dev/rd0");
    let shrunk = guest.change("resizeRapidDisk/rd0/8");
    assert!(shrunk["message"].as_str().is_some_and(|said| said.contains("left over")), "{shrunk}");
    let listed = guest.listed("rd0");
    assert_eq!((&listed["status"], &listed["size"]), (&json!("locked"), &json!(8 * MIB)));
    sh("rm /dev/rd0");
    guest.change("unlockRapidDisk/rd0");
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn a_removal_that_leaves_its_link_says_so_and_the_next_start_removes_it() {
    let mut guest = loop_guest(&[]);
    guest.disk(8);
    guest.disk(8);
    let device = device("rd0");
    sh("mount --bind /dev /dev && mount -o remount,ro,bind /dev");
    let removal = guest.post("removeRapidDisk/rd0");
    // Lazily: the shell itself has /dev/null open.
    sh("umount -l /dev");
    let message = removal.success()["message"].to_string();
    assert!(message.contains("rd0 is removed, but") && message.contains("/dev/rd0"), "{message}");
    assert_eq!((guest.disks().len(), used("rd0")), (1, None));
    assert_eq!(fs::read_link("/dev/rd0").expect("the link is left").to_str(), Some(&*device));
    // Its loop device is somebody else's now.
    guest.daemon().kill();
    sh(&format!("truncate -s 8M /tmp/test/file && /usr/sbin/losetup /dev/{device} /tmp/test/file"));
    guest.kill_and_restart();
    assert!(fs::symlink_metadata("/dev/rd0").is_err(), "the link is still there");
    assert_eq!(guest.disks().len(), 1);
    sh(&format!("/usr/sbin/losetup -d /dev/{device}"));
    assert_whole();
}

#[test]
fn a_tmpfs_that_cannot_be_looked_at_is_not_taken_as_missing() {
    let mut guest = loop_guest(&["--workers", "2"]);
    guest.disk(8);
    write("/dev/rd0", 0, &noise(1, MIB as usize));
    let failing = injected(&mut guest, "statfs", "error=EIO");
    for change in ["createRapidDisk/8", "resizeRapidDisk/rd0/16", "lockRapidDisk/rd1"] {
        guest.post(change).failure(500, &["os error 5"]);
    }
    drop(failing);
    assert_whole();
    assert_eq!(used("rd0"), Some(MIB));
    assert_eq!(sh(&format!("grep -c {POOL} /proc/mounts")), "1");
    guest.change("removeRapidDisk/rd0");
}

/// How often the changes of a new disk look for the file of a loop device.
fn looks_at_files(guest: &mut Guest) -> usize {
    let tracer = traced(guest, "-Y -o /tmp/test/trace -e trace=open,openat");
    let disk = guest.change("createRapidDisk/1")["device"].as_str().expect("a name").to_owned();
    for (change, size) in
        [("resize", "/3"), ("resize", "/2"), ("lock", ""), ("unlock", ""), ("flush", ""), ("remove", "")]
    {
        guest.change(&format!("{change}RapidDisk/{disk}{size}"));
    }
    drop(tracer);
    let trace = fs::read_to_string("/tmp/test/trace").expect("the trace");
    // Not what the daemon looks at beside its requests.
    trace.lines().filter(|line| line.contains("<worker-") && line.contains("loop/backing_file")).count()
}

#[test]
fn a_change_looks_at_its_own_disk_alone() {
    let mut guest = loop_guest(&["--memory-limit", "200", "--workers", "2"]);
    guest.disk(1);
    // While udev looks into a device, who uses it is looked for.
    let least = |guest: &mut Guest| (0..5).map(|_| looks_at_files(guest)).min().expect("a number");
    let beside_one = least(&mut guest);
    assert!(beside_one > 0);
    (1..30).for_each(|_| drop(guest.disk(1)));
    // A single look at each of the others would be more. Where udev is slow, the least is not the same each time.
    let beside_30 = least(&mut guest);
    assert!(beside_30 < beside_one + 29, "{beside_30} beside 30 disks, {beside_one} beside one");
}

/// Has something happen to the daemon's system calls of this kind (strace's `inject`), until dropped.
pub fn injected(guest: &mut Guest, call: &str, what: &str) -> Process {
    traced(guest, &format!("-o /dev/null -e trace={call} -e inject={call}:{what}"))
}

/// Traces the daemon with these options of strace, until dropped.
fn traced(guest: &mut Guest, options: &str) -> Process {
    let pid = guest.daemon().pid();
    let tracer = Process::start(&format!("exec strace -f -q -p {pid} {options}"));
    eventually("each thread is traced", || {
        names(&format!("/proc/{pid}/task")).iter().all(|task| {
            let status = sys(&format!("/proc/{pid}/task/{task}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        })
    });
    tracer
}

/// Kills the daemon right before the `nth` system call of this kind that `change` makes. Returns
/// whether `change` was answered, because it makes fewer such calls.
pub fn killed_before(guest: &mut Guest, call: &str, nth: u32, change: &str) -> bool {
    let _tracer = injected(guest, call, &format!("signal=KILL:when={nth}"));
    let answered = guest.try_request("POST", &format!("/v1/{change}")).is_ok();
    guest.kill_and_restart();
    answered
}

/// Kills the daemon right before each system call of these kinds that `change` makes. `prepare` runs before each time,
/// and `check` after it: it is told whether `change` was answered, and what was done. Returns how often it was killed.
pub fn killed_before_each(
    guest: &mut Guest,
    calls: &[&str],
    change: &str,
    prepare: impl Fn(&Guest),
    check: impl Fn(&Guest, bool, &str),
) -> u32 {
    let mut kills = 0;
    for call in calls {
        for nth in 1.. {
            prepare(guest);
            let answered = killed_before(guest, call, nth, change);
            check(guest, answered, &format!("{change} killed before {call} number {nth}"));
            if answered {
                break;
            }
            kills += 1;
        }
    }
    kills
}

/// The size of `rd0` in MiB, 0 without it: one of the two, and the second if the change was answered.
pub fn size_after_kill(guest: &Guest, what: &str, [before, after]: [u64; 2], answered: bool) -> u64 {
    let size = size("rd0").unwrap_or_default() / MIB;
    assert!([before, after].contains(&size), "{what}: {size}");
    assert!(!answered || size == after, "{what}: {size}");
    assert_eq!(guest.disks().len(), usize::from(size > 0), "{what}");
    size
}

#[test]
fn killed_before_any_system_call_of_a_change_it_leaves_whole_disks() {
    let data = noise(9, 2 * MIB as usize);
    let changes = [
        // The request, and the size in MiB before it and after it.
        ("createRapidDisk/8", 0, 8),
        ("resizeRapidDisk/rd0/24", 16, 24),
        ("resizeRapidDisk/rd0/8", 16, 8),
        ("removeRapidDisk/rd0", 16, 0),
    ];
    let mut guest = loop_guest(&["--memory-limit", "64", "--workers", "2"]);
    let mut kills = 0;
    let calls = ["mkdir", "mount", "ftruncate", "ioctl", "symlink", "renameat2", "unlink"];
    for (change, before, after) in changes {
        let prepare = |guest: &Guest| {
            if before > 0 {
                guest.disk(before);
                write("/dev/rd0", MIB, &data);
            } else if names(POOL).is_empty() {
                // The tmpfs and its directory are made with the first disk.
                works(&format!("umount {POOL} && rm -r /run/rapiddiskd"));
            }
        };
        let check = |guest: &Guest, answered: bool, what: &str| {
            assert_whole();
            if size_after_kill(guest, what, [before, after], answered) > 0 {
                let got = read("/dev/rd0", MIB, data.len());
                if before > 0 {
                    assert_same_data(what, &got, &data)
                } else {
                    assert_zero(what, &got)
                }
                guest.change("removeRapidDisk/rd0");
            }
        };
        kills += killed_before_each(&mut guest, &calls, change, prepare, check);
    }
    println!("killed {kills} times");
    assert!(kills >= 18, "killed {kills} times only");
}

#[test]
fn memory_that_may_not_suffice_is_said() {
    let guest = loop_guest(&["--memory-limit", "1T"]);
    let status = || guest.read("checkServiceStatus");
    assert_eq!(status().get("warning"), None);
    assert_eq!(guest.disk(512 * 1024), "rd0");
    eventually("a warning", || status().get("warning").is_some());
    assert_eq!(status()["memory_promised"], 512 * 1024 * MIB);
    assert!(status()["memory_available"].as_u64().expect("a number") < 512 * 1024 * MIB);
    guest.change("removeRapidDisk/rd0");
    eventually("no warning", || status().get("warning").is_none());
    let log = fs::read_to_string("/tmp/daemon.log").expect("the log");
    assert_eq!(log.matches("524288 MiB").count(), 1, "{log}");
    assert_eq!(log.matches("enough").count(), 1, "{log}");
}

/// A `brd` that cannot discard, as that of Linux 6.1, would keep all memory.
#[test]
fn a_brd_that_cannot_discard_is_not_taken() {
    let guest = guest_after(&[], || {
        sh("modprobe -a loop dm-mod; modprobe brd rd_nr=0 rd_size=17179869184");
    });
    assert_eq!(guest.disk(8), "rd0");
    assert_eq!(guest.listed("rd0")["driver"], "loop");
    eventually("the status says why", || {
        guest.read("checkServiceStatus")["missing_ram_drivers"].to_string().contains("gives memory back")
    });
    drop(guest);
    let guest = guest_with(&["--ram-driver", "brd"]);
    guest.refuses("createRapidDisk/8", 503, &["brd", "memory back"]);
    assert!(all_mappings().is_empty(), "{:?}", all_mappings());
    drop(guest);
    let _alone = crate::support::begin();
    clean::unload();
}

#[test]
fn without_either_module_it_says_which_to_load() {
    let guest = guest_after(&[], || ());
    guest.post("createRapidDisk/8").failure(503, &["modprobe rapiddisk", "modprobe loop"]);
    let status = guest.read("checkServiceStatus");
    assert!(status["ram_driver"].is_null() && status["ram_drivers"].as_array().is_some_and(Vec::is_empty));
    sh("modprobe loop");
    assert_eq!(guest.disk(8), "rd0");
    eventually("the status has it", || guest.read("checkServiceStatus")["ram_driver"] == "loop");
    // RAM disks do not need device-mapper; a request for a cache says that it does.
    assert!(!clean::is_loaded("dm-mod"));
    guest.refuses("createRapidDiskCache/rd0/sda/write-through", 503, &["modprobe dm-mod"]);
    guest.change("resizeRapidDisk/rd0/16");
    guest.change("flushRapidDisk/rd0");
    sh("modprobe dm-mod");
    assert!(!clean::is_loaded("dm-cache"));
    guest.cache("rd0", "sda", "write-through");
    eventually("the status has it", || {
        let status = guest.read("checkServiceStatus");
        status["cache_driver"] == "dm-cache" && status["policies"] == json!(["write-through", "writeback"])
    });
    guest.refuses("createRapidDiskCache/rd0/sdb/write-around", 503, &["write-through", "writeback"]);
    drop(guest);
    for (driver, other) in [("loop", "rapiddisk"), ("rapiddisk", "loop")] {
        let guest = guest_after(&["--ram-driver", driver], || drop(sh(&format!("modprobe {other}"))));
        guest.refuses("createRapidDisk/8", 503, &[&format!("modprobe {driver}")]);
        assert!(!works(&format!("ls {POOL}/rd0")));
    }
}

/// One source takes 16 s for its data, another one 36 s, writes and flushes together. That is longer than the
/// daemon waits without progress, but something is done every 20 s.
#[test]
fn a_slow_source_gets_the_time_that_its_data_takes() {
    let mut guest = guest();
    // Few enough to be written and flushed at once.
    let data = noise(11, 64 * PAGE);
    for (source, write_ms, flush_ms) in [("sda", 2000, 14000), ("sdb", 20000, 16000)] {
        let to = |delay: u32| format!("/dev/{source} 0 {delay}");
        map(
            &format!("slow-{source}"),
            &format!("0 131072 delay {} {} {}", to(0), to(write_ms), to(flush_ms)),
        );
        let cache = guest.cache(&guest.disk(16), &format!("mapper%2Fslow-{source}"), "writeback");
        write(&format!("/dev/mapper/{cache}"), MIB, &data);
    }
    settle();
    let (output, time) = quiesce(&mut guest);
    assert!(output.status.success(), "{output:?}");
    assert!(time > Duration::from_secs(31), "it was through after {time:?} already");
    assert_eq!(mappings(), ["slow-sda", "slow-sdb"]);
    for source in ["sda", "sdb"] {
        assert_same_data(source, &read(&format!("/dev/{source}"), MIB, data.len()), &data);
    }
}
