//! Nothing is taken away while somebody uses it, and the refusal says who uses it: for RAM
//! disks, for sources of caches, and for caches.

use crate::support::data::{noise, read, write};
use crate::support::kernel::{
    self, Mapped, Process, Sent, device, eventually, mounted_out_of_sight, put, settle, size,
};
use crate::support::{Guest, MIB, PAGE, clean, guest, guest_after, meanwhile, sh, sys};

/// A way to use a device, `$D` below `/dev`.
struct Use {
    start: &'static str,
    /// What the refusal says, beside the name of the device.
    words: &'static [&'static str],
    end: &'static str,
}

const MOUNT: Use = Use {
    start: "mke2fs -q -F -O ^has_journal /dev/$D && mkdir -p '/mnt/a b' && mount -t ext4 /dev/$D '/mnt/a b'",
    words: &["mounted on /mnt/a b"],
    end: "umount '/mnt/a b'",
};
const READ_ONLY_MOUNT: Use = Use {
    start: "mke2fs -q -F -O ^has_journal /dev/$D && mount -t ext4 -o ro /dev/$D /mnt",
    words: &["mounted on /mnt"],
    end: "umount /mnt",
};
const MOUNT_BY_ANOTHER_PATH: Use = Use {
    start: "mke2fs -q -F -O ^has_journal /dev/$D
        mknod /tmp/test/node b $(echo $N | tr : ' ') && mount -t ext4 /tmp/test/node /mnt && rm /tmp/test/node",
    words: &["mounted on /mnt"],
    end: "umount /mnt",
};
const SWAP: Use = Use { start: "mkswap /dev/$D && swapon /dev/$D", words: &["swap"], end: "swapoff /dev/$D" };
const MAPPING: Use = Use {
    start: "echo '0 2048 linear /dev/'$D' 0' | dmsetup create other",
    words: &["held by other"],
    end: "dmsetup remove --retry other",
};
const LOOP: Use = Use {
    start: "modprobe loop; /usr/sbin/losetup /dev/loop5 /dev/$D",
    words: &["backs loop5"],
    end: "/usr/sbin/losetup -d /dev/loop5",
};
const ARRAY: Use = Use {
    start: "modprobe -a md-mod raid1; echo md7 >/sys/module/md_mod/parameters/new_array; cd /sys/block/md7/md
        echo none >metadata_version; echo raid1 >level; echo 2 >raid_disks; echo $N >new_dev
        cat /sys/block/sdb/dev >new_dev; for member in dev-*; do echo $i >$member/slot; i=$((i + 1)); done
        echo active >array_state",
    words: &["held by md7"],
    end: "echo clear >/sys/block/md7/md/array_state",
};
const NAMESPACE: Use = Use {
    start: "modprobe -a configfs nvmet; mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
        cd /sys/kernel/config/nvmet/subsystems; mkdir nqn.2024-01.org.example:a nqn.2024-01.org.example:a/namespaces/7
        cd nqn.2024-01.org.example:a/namespaces/7; echo -n /dev/$D >device_path; echo 1 >enable",
    words: &["namespace 7 of nqn.2024-01.org.example:a"],
    end: "cd /sys/kernel/config/nvmet/subsystems; echo 0 >*/namespaces/7/enable; rmdir */namespaces/7; rmdir *",
};
const IDLE_NAMESPACE: Use = Use {
    start: "modprobe -a configfs nvmet; mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
        cd /sys/kernel/config/nvmet/subsystems; mkdir nqn.2024-01.org.example:a nqn.2024-01.org.example:a/namespaces/7
        echo -n /dev/$D >nqn.2024-01.org.example:a/namespaces/7/device_path",
    words: &["namespace 7 of nqn.2024-01.org.example:a"],
    end: "cd /sys/kernel/config/nvmet/subsystems; rmdir */namespaces/7; rmdir *",
};

// The paths of the next three do not lead to the device any more, or never did in the daemon's mount
// namespace.
const LOST_LOOP: Use = Use {
    start: "modprobe loop; mknod /tmp/test/node b $(echo $N | tr : ' ')
        /usr/sbin/losetup /dev/loop5 /tmp/test/node; rm /tmp/test/node",
    words: &["backs loop5"],
    end: "/usr/sbin/losetup -d /dev/loop5",
};
const LOOP_ELSEWHERE: Use = Use {
    start: "modprobe loop; unshare -m sh -ec 'mount -t tmpfs tmpfs /mnt; mknod /mnt/node b $0 $1
        /usr/sbin/losetup /dev/loop5 /mnt/node' $(echo $N | tr : ' ')",
    words: &["backs loop5"],
    end: "/usr/sbin/losetup -d /dev/loop5",
};
const LOST_NAMESPACE: Use = Use {
    start: "modprobe -a configfs nvmet; mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
        mknod /tmp/test/node b $(echo $N | tr : ' '); cd /sys/kernel/config/nvmet/subsystems
        mkdir nqn.2024-01.org.example:a nqn.2024-01.org.example:a/namespaces/7
        cd nqn.2024-01.org.example:a/namespaces/7; echo -n /tmp/test/node >device_path; echo 1 >enable
        rm /tmp/test/node",
    words: &["may be exported", "namespace 7 of nqn.2024-01.org.example:a"],
    end: NAMESPACE.end,
};

impl Use {
    fn start(&self, device: &str) {
        let number = sh(&format!("cat /sys/class/block/$(basename $(readlink -f /dev/{device}))/dev"));
        sh(&format!("D={device}; N={number}; i=0; set -e; {}", self.start));
        settle();
    }

    fn end(&self, device: &str) {
        sh(&format!("D={device}; {}", self.end));
        settle();
    }
}

/// Every change that would take away a RAM disk or its contents.
fn destructions(disk: &str) -> Vec<String> {
    let mut paths = vec![
        format!("removeRapidDisk/{disk}"),
        format!("flushRapidDisk/{disk}"),
        format!("resizeRapidDisk/{disk}/8"),
    ];
    paths.extend(policies().map(|policy| format!("createRapidDiskCache/{disk}/sda/{policy}")));
    paths
}

fn policies() -> impl Iterator<Item = &'static str> {
    kernel::policies().iter().copied()
}

fn assert_disk_is_kept(guest: &Guest, disk: &str, words: &[&str]) {
    guest.refuses_each(&destructions(disk), 409, &[&[disk], words].concat());
}

fn assert_source_is_kept(guest: &Guest, source: &str, words: &[&str]) {
    let disk = guest.disk(8);
    let path = |policy| format!("createRapidDiskCache/{disk}/{source}/{policy}");
    guest.refuses_each(&policies().map(path).collect::<Vec<_>>(), 409, &[&[source], words].concat());
    guest.change(&format!("removeRapidDisk/{disk}"));
}

/// A RAM disk, a source and a cache cannot be changed while they are used in this way, and can
/// be changed afterwards.
fn assert_protected(used: &Use) {
    let guest = guest();
    let disk = guest.disk(16);
    used.start(&disk);
    assert_disk_is_kept(&guest, &disk, used.words);
    if used.start != READ_ONLY_MOUNT.start {
        guest.refuses(&format!("lockRapidDisk/{disk}"), 409, &[&[&*disk], used.words].concat());
    }
    used.end(&disk);
    for path in ["lockRapidDisk", "unlockRapidDisk", "flushRapidDisk", "removeRapidDisk"] {
        guest.change(&format!("{path}/{disk}"));
    }

    used.start("sda");
    assert_source_is_kept(&guest, "sda", used.words);
    used.end("sda");

    guest.disk(16);
    for policy in policies() {
        let cache = guest.cache(&disk, "sda", policy);
        let node = format!("mapper/{cache}");
        used.start(&node);
        guest.refuses(&format!("removeRapidDiskCache/{cache}"), 409, &[&[&*cache], used.words].concat());
        used.end(&node);
        guest.change(&format!("removeRapidDiskCache/{cache}"));
    }
}

#[test]
fn what_is_mounted_is_left_alone() {
    assert_protected(&MOUNT);
}

#[test]
fn what_is_mounted_read_only_is_left_alone() {
    assert_protected(&READ_ONLY_MOUNT);
}

#[test]
fn what_is_mounted_by_a_node_that_is_gone_is_left_alone() {
    assert_protected(&MOUNT_BY_ANOTHER_PATH);
}

#[test]
fn swap_is_left_alone() {
    assert_protected(&SWAP);
}

#[test]
fn what_another_mapping_stands_on_is_left_alone() {
    assert_protected(&MAPPING);
}

#[test]
fn a_member_of_an_array_is_left_alone() {
    assert_protected(&ARRAY);
}

#[test]
fn what_backs_a_loop_device_is_left_alone() {
    assert_protected(&LOOP);
}

#[test]
fn what_backs_a_loop_device_by_a_node_that_is_gone_is_left_alone() {
    assert_protected(&LOST_LOOP);
}

#[test]
fn what_backs_a_loop_device_of_another_mount_namespace_is_left_alone() {
    assert_protected(&LOOP_ELSEWHERE);
}

#[test]
fn a_namespace_whose_node_is_gone_keeps_the_disk_that_it_has_open_and_no_other() {
    let guest = guest();
    guest.disk(16);
    guest.disk(16);
    LOST_NAMESPACE.start("rd0");
    assert_disk_is_kept(&guest, "rd0", LOST_NAMESPACE.words);
    guest.refuses("lockRapidDisk/rd0", 409, &[&["rd0"], LOST_NAMESPACE.words].concat());
    guest.change("flushRapidDisk/rd1");
    LOST_NAMESPACE.end("rd0");
    guest.change("flushRapidDisk/rd0");
}

#[test]
fn what_a_program_has_mapped_without_a_descriptor_is_left_alone() {
    let guest = guest();
    guest.disk(16);
    let words = ["open in a program that cannot be found"];
    let mapped = Mapped::new("/dev/rd0");
    mapped.put(7);
    assert_disk_is_kept(&guest, "rd0", &words);
    guest.refuses("lockRapidDisk/rd0", 409, &["rd0", words[0]]);
    // A refusal does not let the next request cut off what was written.
    write("/dev/rd0", 12 * MIB, &noise(1, MIB as usize));
    guest.refuses_each(&["flushRapidDisk/rd0", "resizeRapidDisk/rd0/8"], 409, &["rd0", words[0]]);
    drop(mapped);
    guest.refuses("resizeRapidDisk/rd0/8", 409, &["rd0", "data"]);
    assert_eq!(read("/dev/rd0", 0, PAGE)[0], 7);
    for change in ["lockRapidDisk", "unlockRapidDisk", "flushRapidDisk"] {
        guest.change(&format!("{change}/rd0"));
    }
    let sent = Sent::new("/dev/rd0");
    assert_disk_is_kept(&guest, "rd0", &words);
    drop(sent);
    let sent = Sent::new("/dev/sda");
    assert_source_is_kept(&guest, "sda", &words);
    drop(sent);
    crate::source::make_partition("sda", 2048, 40960);
    for (mapped, source) in [("sda", "sda"), ("sda1", "sda1"), ("sda1", "sda"), ("sda", "sda1")] {
        let mapped = Mapped::new(&format!("/dev/{mapped}"));
        assert_source_is_kept(&guest, source, &words);
        drop(mapped);
    }
    // Whose the node is makes no difference.
    sh("chown 1000 /dev/sda");
    for policy in policies() {
        let cache = guest.cache("rd0", "sda", policy);
        let mapped = Mapped::new(&format!("/dev/mapper/{cache}"));
        guest.refuses(&format!("removeRapidDiskCache/{cache}"), 409, &[&cache, words[0]]);
        drop(mapped);
        guest.change(&format!("removeRapidDiskCache/{cache}"));
    }
    sh("chown 0 /dev/sda");
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn what_is_exported_over_nvme_is_left_alone() {
    assert_protected(&NAMESPACE);
}

#[test]
fn what_a_namespace_will_export_once_enabled_is_left_alone() {
    assert_protected(&IDLE_NAMESPACE);
}

#[test]
fn what_a_process_has_open_is_left_alone_and_the_process_named() {
    let guest = guest();
    guest.disk(16);
    for how in ["<", ">", "<>"] {
        let reader = Process::asleep(&format!("{how}/dev/rd0"));
        let pid = format!("pid {}", reader.pid());
        assert_disk_is_kept(&guest, "rd0", &["open in sleep", &pid]);
        drop(reader);
        guest.change("flushRapidDisk/rd0");
    }
    let reader = Process::asleep("</dev/sda");
    assert_source_is_kept(&guest, "sda", &["open in sleep", &format!("pid {}", reader.pid())]);
    drop(reader);
    guest.cache("rd0", "sda", "writeback");
    let reader = Process::asleep("<>/dev/mapper/rc-wb_sda");
    guest.refuses("removeRapidDiskCache/rc-wb_sda", 409, &["rc-wb_sda", "open in sleep"]);
    drop(reader);
    guest.change("removeRapidDiskCache/rc-wb_sda");
}

#[test]
fn what_is_mounted_where_the_daemon_cannot_see_it_is_left_alone() {
    let guest = guest();
    guest.disk(16);
    // Read-only, so that the file system itself writes nothing.
    let hidden = mounted_out_of_sight("rd0", "-o ro");
    assert!(!sys("/proc/mounts").unwrap_or_default().contains("/dev/rd0"), "it can be seen");
    let pid = format!("(pid {})", hidden.pid());
    assert_disk_is_kept(&guest, "rd0", &["mounted on /mnt in the mount namespace of sleep", &pid]);
    guest.post("lockRapidDisk/rd0").failure(409, &["rd0", &pid]);
    guest.change("resizeRapidDisk/rd0/32");
    drop(hidden);
    eventually("the namespace is gone", || guest.post("removeRapidDisk/rd0").status == 200);
}

#[test]
fn what_was_unmounted_lazily_or_is_swap_at_a_lost_node_is_left_alone_and_said_as_such() {
    let guest = guest();
    guest.disk(16);
    // Read-only, so that the file system itself writes nothing.
    READ_ONLY_MOUNT.start("rd0");
    let user = Process::start("cd /mnt && exec sleep 1000").until_asleep();
    sh("umount -l /mnt");
    let pid = format!("(pid {})", user.pid());
    assert_disk_is_kept(&guest, "rd0", &["unmounted lazily", &pid]);
    drop(user);
    eventually("it is unmounted", || guest.post("flushRapidDisk/rd0").status == 200);
    let number = sh(&format!("cat /sys/block/{}/dev", device("rd0"))).replace(':', " ");
    sh(&format!("cd /tmp/test; mknod node b {number} && mkswap node && swapon node && rm node"));
    assert_disk_is_kept(&guest, "rd0", &["the kernel swaps to /tmp/test/node"]);
    sh("swapoff /dev/rd0");
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn each_disk_of_a_file_system_on_two_is_left_alone_and_its_mount_named() {
    let guest = guest();
    for disk in ["rd0", "rd1"] {
        assert_eq!(guest.disk(128), disk);
    }
    sh(
        "modprobe btrfs; mkfs.btrfs -q /dev/rd0 /dev/rd1 && mount -t btrfs -o device=/dev/rd0,device=/dev/rd1 /dev/rd0 /mnt",
    );
    settle();
    for disk in ["rd0", "rd1"] {
        guest.post(&format!("flushRapidDisk/{disk}")).failure(409, &[disk, "mounted on /mnt"]);
    }
    sh("umount /mnt");
    for disk in ["rd0", "rd1"] {
        guest.change(&format!("removeRapidDisk/{disk}"));
    }
}

#[test]
fn what_serves_as_a_cache_is_left_alone() {
    let guest = guest();
    guest.disk(16);
    guest.disk(16);
    for policy in policies() {
        let cache = guest.cache("rd0", "sda", policy);
        // The message is about the disk, so the source is a free one.
        let other = |policy| format!("createRapidDiskCache/rd0/sdb/{policy}");
        guest.refuses_each(&policies().map(other).collect::<Vec<_>>(), 409, &["rd0", &cache]);
        let changes = [
            "removeRapidDisk/rd0",
            "flushRapidDisk/rd0",
            "lockRapidDisk/rd0",
            "resizeRapidDisk/rd0/32",
            "resizeRapidDisk/rd0/8",
        ];
        guest.refuses_each(&changes, 409, &["rd0", &cache]);
        // A source has only one cache.
        let again = |policy| format!("createRapidDiskCache/rd1/sda/{policy}");
        guest.refuses_each(&policies().map(again).collect::<Vec<_>>(), 409, &["rc-"]);
        guest.change(&format!("removeRapidDiskCache/{cache}"));
    }
    guest.change("resizeRapidDisk/rd0/32");
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn a_disk_grows_whoever_uses_it_but_a_cache() {
    let guest = guest();
    for used in [MOUNT, READ_ONLY_MOUNT, SWAP, MAPPING, LOOP, NAMESPACE, IDLE_NAMESPACE, ARRAY] {
        let disk = guest.disk(16);
        used.start(&disk);
        guest.change(&format!("resizeRapidDisk/{disk}/24"));
        assert_eq!(size(&disk), Some(24 * MIB), "{}", used.start);
        used.end(&disk);
        guest.change(&format!("removeRapidDisk/{disk}"));
    }
}

#[test]
fn a_partition_of_a_source_counts_as_the_source() {
    let guest = guest();
    crate::source::make_partition("sda", 2048, 40960);
    MOUNT.start("sda1");
    assert_source_is_kept(&guest, "sda", MOUNT.words);
    MOUNT.end("sda1");
    guest.disk(8);
    guest.cache("rd0", "sda1", "write-through");
    assert_source_is_kept(&guest, "sda", &["rc-wt_sda1"]);
    guest.change("removeRapidDiskCache/rc-wt_sda1");
    // The same the other way round.
    guest.cache("rd0", "sda", "write-through");
    assert_source_is_kept(&guest, "sda1", &[]);
    guest.change("removeRapidDiskCache/rc-wt_sda");
    guest.cache("rd0", "sda1", "write-through");
    guest.change("removeRapidDiskCache/rc-wt_sda1");
}

#[test]
fn exports_that_cannot_be_seen_keep_every_disk() {
    let guest = guest();
    guest.disk(16);
    NAMESPACE.start("rd0");
    // The target still exists when configfs is not mounted.
    sh("umount /sys/kernel/config");
    guest.refuses_each(&destructions("rd0")[..3], 409, &["rd0", "NVMe", "configfs", "mount"]);
    sh("mount -t configfs none /sys/kernel/config");
    assert_disk_is_kept(&guest, "rd0", NAMESPACE.words);
    clean::exports();
    sh("umount /sys/kernel/config");
    guest.change("removeRapidDisk/rd0");
    sh("mount -t configfs none /sys/kernel/config");
}

#[test]
fn modules_of_the_nvme_target_that_export_nothing_keep_nothing() {
    let guest = guest_after(&[], || {
        sh(&format!("modprobe -a configfs nvmet nvmet-tcp {}", clean::modules()));
    });
    guest.disk(16);
    guest.change("flushRapidDisk/rd0");
    guest.change("removeRapidDisk/rd0");
}

/// With RapidDisk's modules only.
mod rapiddisk {
    use super::*;

    #[test]
    fn the_daemon_itself_is_nobody() {
        // Reads look at disks that the module does not list; they must not count.
        let guest = guest();
        for number in 0..250 {
            put("/sys/kernel/rapiddisk/mgmt", &format!("rapiddisk attach {number} {}", 1000 * MIB));
        }
        let client = *guest;
        meanwhile(
            2,
            || drop(client.disks()),
            || {
                for number in 200..250 {
                    write(&format!("/dev/rd{number}"), 0, &noise(number, 65536));
                    client.change(&format!("flushRapidDisk/rd{number}"));
                    client.change(&format!("removeRapidDisk/rd{number}"));
                }
            },
        );
    }
}
