//! Makes the guest clean again, whatever a test left behind.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::kernel::{
    POOL, all_mappings, eventually, is_brd, is_stock, names, put, ram_disks, settle, sh, sys, works,
};

const NVMET: &str = "/sys/kernel/config/nvmet";

/// RapidDisk's modules, and what else the daemon needs for RAM disks and caches.
pub const RAPIDDISK: &str = "rapiddisk rapiddisk-cache dm-mod dm-writecache";
/// What the daemon needs in a kernel without RapidDisk's modules.
pub const STOCK: &str = "loop dm-mod dm-cache dm-cache-smq dm-writecache";

/// The modules of this guest.
pub fn modules() -> &'static str {
    if is_stock() { STOCK } else { RAPIDDISK }
}

/// Removes what a test may have left: first what uses something else.
pub fn clean() {
    if let Some(pid) = sys("/tmp/test/pid") {
        works(&format!("kill {pid}"));
    }
    unmount();
    for line in sys("/proc/swaps").unwrap_or_default().lines().skip(1) {
        let device = line.split_whitespace().next().unwrap_or_default();
        works(&format!("swapoff {device}"));
    }
    if Path::new("/sys/class/nvme-fabrics").exists() {
        works("nvme disconnect-all");
    }
    exports();
    // A device below another one can only be removed in a later round.
    for _ in 0..4 {
        loops();
        arrays();
        remove_mappings();
    }
    pool();
    zram();
    settle();
    for disk in ram_disks() {
        let number = disk.trim_start_matches("rd");
        put("/sys/kernel/rapiddisk/mgmt", &format!("rapiddisk detach {number}"));
    }
    for name in names("/dev/mapper").into_iter().filter(|name| name != "control") {
        let _ = fs::remove_file(format!("/dev/mapper/{name}"));
    }
    for disk in ["sda", "sdb"] {
        if sys(&format!("/sys/block/{disk}/ro")).as_deref() == Some("1") {
            sh(&format!("blockdev --setrw /dev/{disk}"));
        }
        if Path::new(&format!("/sys/block/{disk}/{disk}1")).exists() {
            sh(&format!("dd if=/dev/zero of=/dev/{disk} bs=512 count=1; blockdev --rereadpt /dev/{disk}"));
        }
    }
    let _ = fs::remove_dir_all("/tmp/test");
    fs::create_dir("/tmp/test").expect("a directory for the test");
    settle();
    assert_eq!(all_mappings(), [""; 0], "mappings that could not be removed");
    assert_eq!(ram_disks(), [""; 0], "RAM disks that could not be removed");
}

fn unmount() {
    // Exports can only be removed while configfs is mounted.
    if is_loaded("nvmet") && !Path::new(NVMET).exists() {
        sh("mount -t configfs none /sys/kernel/config");
    }
    // Twice, because one mount may hide another.
    for _ in 0..2 {
        for line in sys("/proc/mounts").unwrap_or_default().lines().rev() {
            let on = line.split(' ').nth(1).unwrap_or_default();
            if ["/mnt", "/tmp/test", "/dev/mapper"].iter().any(|place| on.starts_with(place)) {
                works(&format!("umount '{}'", on.replace("\\040", " ")));
            }
        }
    }
}

/// Removes every NVMe target, port and host.
pub fn exports() {
    let each = |dir: &str| names(&format!("{NVMET}/{dir}"));
    for port in each("ports") {
        let dir = format!("{NVMET}/ports/{port}");
        names(&format!("{dir}/subsystems"))
            .iter()
            .for_each(|name| remove_link(&format!("{dir}/subsystems/{name}")));
        remove_dir(&dir);
    }
    for nqn in each("subsystems") {
        let dir = format!("{NVMET}/subsystems/{nqn}");
        for namespace in names(&format!("{dir}/namespaces")) {
            let namespace = format!("{dir}/namespaces/{namespace}");
            works(&format!("echo 0 >{namespace}/enable"));
            remove_dir(&namespace);
        }
        let hosts = format!("{dir}/allowed_hosts");
        names(&hosts).iter().for_each(|name| remove_link(&format!("{hosts}/{name}")));
        remove_dir(&dir);
    }
    for host in each("hosts") {
        remove_dir(&format!("{NVMET}/hosts/{host}"));
    }
}

fn remove_link(path: &str) {
    fs::remove_file(path).unwrap_or_else(|error| panic!("unlink {path}: {error}"));
}

fn remove_dir(path: &str) {
    fs::remove_dir(path).unwrap_or_else(|error| panic!("rmdir {path}: {error}"));
}

fn loops() {
    for name in names("/sys/block") {
        if Path::new(&format!("/sys/block/{name}/loop")).exists() {
            works(&format!("/usr/sbin/losetup -d /dev/{name}"));
        }
    }
}

/// Removes the files of RAM disks, and what is not theirs in the place of their nodes. Their loop devices are
/// detached by now.
fn pool() {
    for name in names("/dev").into_iter().filter(|name| name.starts_with("rd")) {
        let node = format!("/dev/{name}");
        if fs::symlink_metadata(&node).is_ok_and(|node| !node.file_type().is_block_device()) {
            fs::remove_file(&node).unwrap_or_else(|error| panic!("unlink {node}: {error}"));
        }
    }
    if Path::new(POOL).exists() {
        works(&format!("umount {POOL}"));
    }
    assert_eq!(names(POOL), [""; 0], "files of RAM disks that could not be removed");
}

/// Removes the disks of zram, whose mappings are gone by now, and its module.
fn zram() {
    if is_loaded("zram") {
        eventually("zram is unloaded", || works("rmmod zram"));
    }
}

fn arrays() {
    for name in names("/sys/block").into_iter().filter(|name| name.starts_with("md")) {
        works(&format!("echo clear >/sys/block/{name}/md/array_state"));
    }
}

fn remove_mappings() {
    // The removal of a mapping on top of a suspended one would never end.
    for name in all_mappings() {
        works(&format!("dmsetup --manglename none resume '{name}'"));
    }
    for name in all_mappings() {
        works(&format!("dmsetup --manglename none remove --retry '{name}'"));
    }
}

/// Whether a module is loaded.
pub fn is_loaded(module: &str) -> bool {
    Path::new(&format!("/sys/module/{}", module.replace('-', "_"))).exists()
}

/// Loads what the daemon needs.
pub fn load() {
    if is_brd() {
        load_brd();
    }
    if !modules().split(' ').all(is_loaded) {
        sh(&format!("modprobe -a {}", modules()));
    }
}

/// Loads brd as the daemon advises, and has debugfs tell root alone how much memory its disks hold.
pub fn load_brd() {
    sh("modprobe brd rd_nr=0 rd_size=17179869184");
    if names("/sys/kernel/debug").is_empty() {
        sh("mount -t debugfs -o mode=0700 debugfs /sys/kernel/debug");
    }
}

/// Unloads every module that the daemon could need. Runs after [`clean`].
pub fn unload() {
    if names("/sys/kernel/config").contains(&"nvmet".into()) || is_loaded("configfs") {
        works("umount /sys/kernel/config");
    }
    let modules = "nvme_tcp nvme_rdma nvmet_tcp nvmet_rdma nvmet rapiddisk_cache rapiddisk \
        dm_writecache dm_cache_smq dm_cache dm_persistent_data dm_bio_prison dm_flakey dm_delay dm_bufio dm_mod loop brd";
    eventually("the modules are unloaded", || {
        for module in modules.split(' ').filter(|module| is_loaded(module)) {
            works(&format!("rmmod {module}"));
        }
        !["rapiddisk", "rapiddisk-cache", "dm-mod", "dm-writecache", "nvmet", "loop", "brd"]
            .into_iter()
            .any(is_loaded)
    });
}
