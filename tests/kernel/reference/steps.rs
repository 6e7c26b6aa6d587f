//! The requests that both daemons get, and the state of the kernel before each.

/// A request.
pub struct Step {
    pub method: &'static str,
    pub path: &'static str,
    /// Names of [`PREPARATIONS`].
    pub before: &'static str,
    /// Fields whose values must be equal, beside the shape; `order`: that of the disks.
    pub values: &'static [&'static str],
}

const fn get(path: &'static str, before: &'static str, values: &'static [&'static str]) -> Step {
    Step { method: "GET", path, before, values }
}

const fn post(path: &'static str, before: &'static str) -> Step {
    Step { method: "POST", path, before, values: &[] }
}

const fn other(method: &'static str, path: &'static str) -> Step {
    Step { method, path, before: "", values: &[] }
}

/// Shell scripts that make a state; `rd N MIB` makes a RAM disk without a daemon.
pub const PREPARATIONS: [(&str, &str); 20] = [
    ("rd0", "rd 0 16"),
    ("rd0 and rd1", "rd 0 16; rd 1 8"),
    ("twelve disks", "for n in 10 0 1 11 9 2 8 3 7 4 6 5; do rd $n 1; done"),
    ("1 MiB written", "dd if=/dev/zero of=/dev/rd0 bs=64k count=16 oflag=direct"),
    ("8 MiB written", "dd if=/dev/zero of=/dev/rd0 bs=1M count=8 oflag=direct"),
    ("rd0 read-only", "blockdev --setro /dev/rd0"),
    ("rd0 mounted", "mke2fs -q -F /dev/rd0; mount -t ext4 /dev/rd0 /mnt"),
    ("rd0 is swap", "mkswap /dev/rd0; swapon /dev/rd0"),
    (
        "rd0 open in a process",
        "sleep 1000 </dev/rd0 >/dev/null 2>&1 & echo $! >/tmp/test/pid
         for _ in $(seq 200); do [ \"$(readlink /proc/$!/fd/0)\" = /dev/rd0 ] && break; sleep 0.05; done
         [ \"$(readlink /proc/$!/fd/0)\" = /dev/rd0 ]",
    ),
    ("rd0 backs a loop device", "modprobe loop; /usr/sbin/losetup /dev/loop5 /dev/rd0"),
    ("write-through of sda", "echo '0 131072 rapiddisk-cache /dev/sda /dev/rd0 32768 0' | dmsetup create rc-wt_sda"),
    ("write-around of sdb", "echo '0 131072 rapiddisk-cache /dev/sdb /dev/rd1 16384 1' | dmsetup create rc-wa_sdb"),
    ("writeback of sdb", "echo '0 131072 writecache s /dev/sdb /dev/rd1 4096 0' | dmsetup create rc-wb_sdb"),
    ("the cache mounted", "mke2fs -q -F /dev/mapper/rc-wt_sda; mount -t ext4 /dev/mapper/rc-wt_sda /mnt"),
    ("sda mounted", "mke2fs -q -F /dev/sda; mount -t ext4 /dev/sda /mnt"),
    ("a mapping vg-home", "echo '0 65536 linear /dev/sda 0' | dmsetup create vg-home"),
    ("nvmet", "modprobe -a nvmet nvmet-tcp; mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config"),
    (
        "rd0 exported",
        "cd /sys/kernel/config/nvmet/subsystems; mkdir -p rd0-test/namespaces/1 rd0-test/namespaces/2; cd rd0-test
         echo 1 >attr_allow_any_host; echo -n /dev/rd0 >namespaces/1/device_path; echo 1 >namespaces/1/enable",
    ),
    (
        "over a port",
        "cd /sys/kernel/config/nvmet/ports; mkdir 1 2; cd 1; echo tcp >addr_trtype; echo ipv4 >addr_adrfam
         echo 127.0.0.1 >addr_traddr; echo 4420 >addr_trsvcid
         ln -s /sys/kernel/config/nvmet/subsystems/rd0-test subsystems/rd0-test",
    ),
    ("no nvmet", "umount /sys/kernel/config 2>/dev/null || true; rmmod nvmet_tcp 2>/dev/null || true; rmmod nvmet 2>/dev/null || true"),
];

const DISK: &[&str] = &["device", "size", "usage", "status"];
const CACHE: &[&str] = &["device", "cache", "source", "mode"];
const EXPORT: &[&str] = &["nqn", "namespace", "device", "enabled", "port", "address", "protocol"];

/// A name of 3,000 bytes, longer than any buffer for one.
const LONG: &str = include_str!("long.txt");

pub const STEPS: [Step; 91] = [
    get("/v1/checkServiceStatus", "", &["status"]),
    other("HEAD", "/v1/checkServiceStatus"),
    get("/v1/checkServiceStatus?x=1", "", &[]),
    get("/v1/listAllResources", "", &["device", "size", "vendor", "model", "mem_total"]),
    get("/v1/listRapidDiskVolumes", "", DISK),
    get("/v1/listRapidDiskVolumes", "rd0, 1 MiB written", DISK),
    get("/v1/listRapidDiskVolumes", "twelve disks", &["order"]),
    get("/v1/listRapidDiskVolumes", "rd0, rd0 read-only", DISK),
    get("/v1/listRapidDiskVolumes", "rd0, rd0 open in a process", DISK),
    get("/v1/listRapidDiskVolumes", "rd0, rd0 mounted", &["device", "size", "status"]),
    get("/v1/listRapidDiskVolumes", "rd0 and rd1, write-through of sda, write-around of sdb", CACHE),
    get("/v1/listRapidDiskVolumes", "rd0 and rd1, writeback of sdb", CACHE),
    get(
        "/v1/showRapidDiskCacheStats/rc-wt_sda",
        "rd0, write-through of sda",
        &["device", "write_replacement"],
    ),
    get("/v1/showRapidDiskCacheStats/rc-wa_sdb", "rd0 and rd1, write-around of sdb", &["device", "writes"]),
    get(
        "/v1/showRapidDiskCacheStats/rc-wb_sdb",
        "rd0 and rd1, writeback of sdb",
        &["device", "errors", "num_blocks", "num_free_blocks"],
    ),
    get("/v1/showRapidDiskCacheStats/rc-wt_sda", "", &[]),
    get("/v1/showRapidDiskCacheStats/rd0", "rd0", &[]),
    get("/v1/showRapidDiskCacheStats", "", &[]),
    get("/v1/listAllNVMeTargets", "no nvmet", &[]),
    get("/v1/listAllNVMePorts", "no nvmet", &[]),
    get("/v1/listAllNVMeTargets", "nvmet", &[]),
    get("/v1/listAllNVMePorts", "nvmet", &[]),
    get("/v1/listAllNVMeTargets", "nvmet, rd0, rd0 exported", EXPORT),
    get("/v1/listAllNVMeTargets", "nvmet, rd0, rd0 exported, over a port", EXPORT),
    get("/v1/listAllNVMePorts", "nvmet, rd0, rd0 exported, over a port", EXPORT),
    post("/v1/createRapidDisk/32", ""),
    post("/v1/createRapidDisk/32", "rd0"),
    post("/v1/createRapidDisk/%38", ""),
    post("/v1/createRapidDisk/0", ""),
    post("/v1/createRapidDisk/-5", ""),
    post("/v1/createRapidDisk/abc", ""),
    post("/v1/createRapidDisk/12abc", ""),
    post("/v1/createRapidDisk/1.5", ""),
    post("/v1/createRapidDisk/64M", ""),
    post("/v1/createRapidDisk/17592186044415", ""),
    post("/v1/createRapidDisk/99999999999999999999", ""),
    post("/v1/createRapidDisk/", ""),
    post("/v1/createRapidDisk", ""),
    post("/v1/createRapidDisk/1/2", ""),
    post("/v1/resizeRapidDisk/rd0/64", "rd0"),
    post("/v1/resizeRapidDisk/rd0/8", "rd0"),
    post("/v1/resizeRapidDisk/rd0/4", "rd0, 8 MiB written"),
    post("/v1/resizeRapidDisk/rd0/64", "rd0, rd0 mounted"),
    post("/v1/resizeRapidDisk/rd0/64", "rd0, write-through of sda"),
    post("/v1/resizeRapidDisk/rd9/64", ""),
    post("/v1/resizeRapidDisk/rd0/abc", "rd0"),
    post("/v1/resizeRapidDisk/rd0/17592186044415", "rd0"),
    post("/v1/flushRapidDisk/rd0", "rd0, 1 MiB written"),
    post("/v1/flushRapidDisk/rd9", ""),
    post("/v1/flushRapidDisk/rd0", "rd0, rd0 mounted"),
    post("/v1/flushRapidDisk/rd0", "rd0, rd0 read-only"),
    post("/v1/removeRapidDisk/rd0", "rd0"),
    post("/v1/removeRapidDisk/rd%30", "rd0"),
    post("/v1/removeRapidDisk/rd9", ""),
    post("/v1/removeRapidDisk/rd00", "rd0"),
    post("/v1/removeRapidDisk/sda", ""),
    post("/v1/removeRapidDisk//dev/rd0", "rd0"),
    post("/v1/removeRapidDisk/rd0", "rd0, rd0 mounted"),
    post("/v1/removeRapidDisk/rd0", "rd0, rd0 is swap"),
    post("/v1/removeRapidDisk/rd0", "rd0, rd0 open in a process"),
    post("/v1/removeRapidDisk/rd0", "rd0, rd0 backs a loop device"),
    post("/v1/removeRapidDisk/rd0", "rd0, write-through of sda"),
    post("/v1/removeRapidDisk/rd0", "nvmet, rd0, rd0 exported"),
    post("/v1/lockRapidDisk/rd0", "rd0"),
    post("/v1/lockRapidDisk/rd0", "rd0, rd0 mounted"),
    post("/v1/lockRapidDisk/rd9", ""),
    post("/v1/lockRapidDisk/sda", ""),
    post("/v1/unlockRapidDisk/rd0", "rd0, rd0 read-only"),
    post("/v1/unlockRapidDisk/rd9", ""),
    post("/v1/createRapidDiskCache/rd0/sda/write-through", "rd0"),
    post("/v1/createRapidDiskCache/rd0/sda/write-around", "rd0"),
    post("/v1/createRapidDiskCache/rd0/sda/writeback", "rd0"),
    post("/v1/createRapidDiskCache/rd0/sda/write-back", "rd0"),
    post("/v1/createRapidDiskCache/rd0/sda/bogus", "rd0"),
    post("/v1/createRapidDiskCache/rd0/sda", "rd0"),
    post("/v1/createRapidDiskCache/rd9/sda/write-through", ""),
    post("/v1/createRapidDiskCache/rd0/sdz/write-through", "rd0"),
    post("/v1/createRapidDiskCache/rd0/sda/write-through", "rd0, sda mounted"),
    post("/v1/createRapidDiskCache/rd0/sdb/write-through", "rd0, write-through of sda"),
    post("/v1/createRapidDiskCache/rd0/mapper%2Fvg-home/write-through", "rd0, a mapping vg-home"),
    post("/v1/removeRapidDiskCache/rc-wt_sda", "rd0, write-through of sda"),
    post("/v1/removeRapidDiskCache/rc-wt_sda", "rd0, write-through of sda, the cache mounted"),
    post("/v1/removeRapidDiskCache/rc-wt_sda", ""),
    post("/v1/removeRapidDiskCache/rd0", "rd0"),
    get("/", "", &[]),
    get("/v1/nothing", "", &[]),
    post("/v1/checkServiceStatus", ""),
    get("/v1/createRapidDisk/8", "", &[]),
    other("DELETE", "/v1/removeRapidDisk/rd0"),
    get(LONG, "", &[]),
    post(LONG, ""),
];
