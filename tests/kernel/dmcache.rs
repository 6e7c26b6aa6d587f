//! Write-through on a stock kernel: dm-cache over a RAM disk that is divided into
//! metadata and data. Forced, so that these run beside the module's own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rapiddiskd::kernel::dm::Report;
use serde_json::{Value, json};

use crate::source::{assert_cacheable, make_loop, make_partition};
use crate::support::data::{
    Random, assert_same_data, assert_zero, fingerprint, noise, read, try_write, write,
};
use crate::support::kernel::{
    Process, State, all_mappings, eventually, holders, is_suspended, mounted_out_of_sight, names, put,
    ram_disks, settle, size, target,
};
use crate::support::{Client, Daemon, Guest, MIB, PAGE, clean, guest, guest_with, sh, sys};

const FORCED: [&str; 2] = ["--cache-driver", "dm-cache"];
const CACHE: &str = "rc-wt_sda";
const ALL: [&str; 3] = ["rc-wd_sda", "rc-wm_sda", CACHE];
const CREATE: &str = "createRapidDiskCache/rd0/sda/write-through";
const REMOVE: &str = "removeRapidDiskCache/rc-wt_sda";
const NODE: &str = "/dev/mapper/rc-wt_sda";

fn forced() -> Guest {
    guest_with(&FORCED)
}

/// Nothing but these all_mappings, all running, and the listing says the same.
fn assert_there(client: &Client, wanted: &[&str]) {
    settle();
    assert_eq!(all_mappings(), wanted);
    assert!(all_mappings().iter().all(|name| !is_suspended(name)));
    let is_cached = wanted.contains(&CACHE);
    let listed = json!([{"device": CACHE, "cache": "rd0", "source": "sda", "mode": "write-through", "driver": "dm-cache"}]);
    assert_eq!(client.caches(), listed.as_array().expect("a list")[..usize::from(is_cached)]);
    let nodes: Vec<_> = names("/dev/mapper").into_iter().filter(|name| name != "control").collect();
    assert_eq!(nodes, &[CACHE][..usize::from(is_cached)]);
    if is_cached {
        assert_eq!(size(&dm_of(NODE)), size("sda"));
    }
}

/// Reads a MiB until dm-cache has it in memory: it looks once in a second what is
/// read again and again.
fn heat(client: &Client) {
    eventually("it is cached", || {
        read(NODE, 0, MIB as usize);
        client.stats(CACHE)["promotions"].as_u64() >= Some(16)
    });
}

fn dm_of(node: &str) -> String {
    fs::canonicalize(node).expect("the node").file_name().expect("a name").to_string_lossy().into_owned()
}

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
    // By their nodes, and by names that are no volume's.
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
fn a_source_of_any_kind_is_cached_on_a_disk_of_any_size() {
    let guest = forced();
    for mib in [1, 2, 3, 70] {
        assert_cacheable(&guest, mib, "sdb", &["write-through"]);
    }
    make_partition("sda", 2048, 20_483);
    assert_cacheable(&guest, 8, "sda1", &["write-through"]);
    // dm-cache takes what the module's target does not.
    let large = make_loop(24, 4096);
    let cache = guest.cache(&guest.disk(8), &large, "write-through");
    let (node, data) = (format!("/dev/mapper/{cache}"), noise(1, 64 * PAGE));
    write(&node, 3 * MIB, &data);
    (0..20).for_each(|_| assert_same_data("cached", &read(&node, 3 * MIB, data.len()), &data));
    settle();
    guest.change(&format!("removeRapidDiskCache/{cache}"));
    assert_same_data("the source", &read(&format!("/dev/{large}"), 3 * MIB, data.len()), &data);
}

#[test]
fn a_source_smaller_than_a_block_is_complete() {
    let guest = forced();
    make_partition("sda", 2048, 33);
    guest.disk(8);
    write("/dev/sda1", 0, &noise(1, 33 * 512));
    settle();
    let cache = guest.cache("rd0", "sda1", "write-through");
    let node = format!("/dev/mapper/{cache}");
    assert_same_data("through the cache", &read(&node, 0, 33 * 512), &noise(1, 33 * 512));
    write(&node, 0, &noise(2, 33 * 512));
    settle();
    guest.change(&format!("removeRapidDiskCache/{cache}"));
    assert_same_data("the source", &read("/dev/sda1", 0, 33 * 512), &noise(2, 33 * 512));
}

#[test]
fn the_largest_disks_are_divided_as_the_kernel_wants_it() {
    let guest = guest_with(&["--cache-driver", "dm-cache", "--memory-limit", "100T"]);
    for (gib, block) in [(32, 32), (64, 64), (65, 128), (16 << 10, 16 << 10)] {
        let disk = guest.disk(gib << 10);
        let made = guest.change(&format!("createRapidDiskCache/{disk}/sda/write-through"));
        let message = made["message"].as_str().expect("a message");
        assert!(message.contains(&format!("blocks of {block} KiB")), "{gib} GiB: {message}");
        let stats = guest.stats(CACHE);
        let total = |what: &str| stats[what].as_u64().expect("a number");
        assert!((1 << 19..=1 << 20).contains(&total("total_cache_blocks")), "{stats}");
        settle();
        // Twice: each time the kernel writes what it knows of every block.
        sh(
            "dmsetup suspend rc-wt_sda; dmsetup resume rc-wt_sda; dmsetup suspend rc-wt_sda; dmsetup resume rc-wt_sda",
        );
        let stats = guest.stats(CACHE);
        let total = |what: &str| stats[what].as_u64().expect("a number");
        assert!(total("used_metadata_blocks") < total("total_metadata_blocks") * 2 / 3, "{stats}");
        assert_eq!((&stats["metadata_mode"], &stats["needs_check"]), (&json!("rw"), &json!(false)));
        guest.change(REMOVE);
        guest.change(&format!("removeRapidDisk/{disk}"));
    }
    let complaint = "individual cache blocks";
    assert!(!sh("dmesg").contains(complaint), "the kernel warns of {complaint}");
}

#[test]
fn what_it_cannot_do_is_refused_and_says_what_can_be_done() {
    let guest = forced();
    guest.disk(16);
    let words = ["write-around", "write-through", "writeback", "modprobe rapiddisk-cache"];
    guest.refuses("createRapidDiskCache/rd0/sda/write-around", 503, &words);
    // What may hold the only copy of somebody's data is no cache, of any driver.
    guest.cache("rd0", "sdb", "writeback");
    settle();
    sh("dmsetup remove --retry rc-wb_sdb; rm -f /dev/mapper/rc-wb_sdb");
    guest.refuses(CREATE, 409, &["rd0", "flush"]);
}

/// What the source has read, in sectors.
fn source_reads() -> u64 {
    let stat = sys("/sys/block/sda/stat").expect("its counters");
    stat.split_whitespace().nth(2).and_then(|count| count.parse().ok()).expect("a number")
}

#[test]
fn what_is_read_again_comes_from_memory() {
    let guest = forced();
    sh("modprobe dm-delay; echo '0 131072 delay /dev/sda 0 10' | dmsetup create slow");
    settle();
    sh("[ -e /dev/mapper/slow ] || ln -s ../dm-0 /dev/mapper/slow");
    let data = noise(1, 2 * MIB as usize);
    write("/dev/sda", 8 * MIB, &data);
    guest.disk(16);
    let cache = guest.cache("rd0", "mapper%2Fslow", "write-through");
    let node = format!("/dev/mapper/{cache}");
    let pass = || {
        let before = source_reads();
        for page in 0..data.len() / PAGE {
            let at = page * PAGE;
            assert_same_data("read", &read(&node, 8 * MIB + at as u64, PAGE), &data[at..][..PAGE]);
        }
        source_reads() - before
    };
    let first = pass();
    // The policy looks once a second what is hot, and copies that meanwhile.
    let passes: Vec<_> = (0..20).map(|_| pass()).collect();
    let last = passes[passes.len() - 1];
    assert!(first > 0 && last < first / 10, "sectors read from the source: {first}, then {passes:?}");
    let stats = guest.stats(&cache);
    let count = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("no {name} in {stats}"));
    // Who looks at a new device reads, too.
    assert!(count("reads") >= 21 * 512 && count("cache_hits") > 512, "{stats}");
    assert_eq!(count("reads"), count("read_hits") + count("read_misses"));
    assert_eq!((count("writes"), count("dirty"), count("uncached_reads")), (0, 0, 0));
    assert!(count("promotions") >= 60 && count("used_cache_blocks") == count("promotions"), "{stats}");
    let not_counted =
        ["write_replacement", "read_invalidates", "write_invalidates", "uncached_reads", "uncached_writes"];
    assert_eq!(stats["not_counted"], json!(not_counted));
    // What is cached is written to both.
    write(&node, 8 * MIB, &noise(2, PAGE));
    assert_same_data("the source", &read("/dev/sda", 8 * MIB, PAGE), &noise(2, PAGE));
    let before = source_reads();
    assert_same_data("the cache", &read(&node, 8 * MIB, PAGE), &noise(2, PAGE));
    assert_eq!(source_reads(), before);
    assert_eq!(
        (guest.stats(&cache)["write_hits"].clone(), guest.stats(&cache)["writes"].clone()),
        (json!(1), json!(1))
    );
}

#[test]
fn a_file_system_on_the_source_is_the_same_byte_for_byte() {
    let guest = forced();
    let data = noise(1, 3 * MIB as usize);
    sh("mke2fs -q -F /dev/sda && mount -t ext4 /dev/sda /mnt");
    fs::write("/mnt/before", &data).expect("a file");
    sh("umount /mnt");
    settle();
    let before = fingerprint("/dev/sda");
    guest.disk(8);
    guest.change(CREATE);
    assert_eq!(fingerprint(NODE), before, "through the cache");
    heat(&guest);
    settle();
    guest.change(REMOVE);
    assert_eq!(fingerprint("/dev/sda"), before, "after a cache that was read");
    guest.change(CREATE);
    sh(&format!("mount -t ext4 {NODE} /mnt"));
    assert_same_data("before", &fs::read("/mnt/before").expect("the file"), &data);
    fs::write("/mnt/through", &data).expect("a file");
    guest.post(REMOVE).failure(409, &[CACHE, "/mnt"]);
    sh("umount /mnt");
    settle();
    guest.change(REMOVE);
    sh("e2fsck -fn /dev/sda >/dev/null 2>&1 || [ ! -x /sbin/e2fsck ]; mount -t ext4 -o ro /dev/sda /mnt");
    assert_same_data("through", &fs::read("/mnt/through").expect("the file"), &data);
}

#[test]
fn a_cache_knows_nothing_of_an_earlier_one_however_that_ended() {
    let guest = forced();
    guest.disk(16);
    for seed in 0..4 {
        guest.change(CREATE);
        heat(&guest);
        settle();
        match seed % 2 {
            0 => drop(guest.change(REMOVE)),
            _ => drop(sh(
                "for name in rc-wt_sda rc-wm_sda rc-wd_sda; do dmsetup remove --retry $name; done; rm -f /dev/mapper/rc-wt_sda",
            )),
        }
        let new = noise(seed, MIB as usize);
        write("/dev/sda", 0, &new);
        settle();
        guest.change(CREATE);
        assert_same_data("through the new one", &read(NODE, 0, new.len()), &new);
        settle();
        guest.change(REMOVE);
    }
}

#[test]
fn each_step_that_fails_is_undone() {
    let guest = forced();
    guest.disk(8);
    write("/dev/rd0", 0, &noise(1, 4 * PAGE));
    write("/dev/sda", 0, &noise(2, 4 * PAGE));
    settle();
    // Names that others have.
    for part in &ALL[..2] {
        sh(&format!("dmsetup create --notable {part}"));
        guest.refuses(CREATE, 409, &[part]);
        sh(&format!("dmsetup remove {part}"));
    }
    // What else they need, the kernel has from now on.
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
    let dm = dm_of(NODE);
    let hidden = mounted_out_of_sight(&dm, "");
    guest.post(REMOVE).failure(409, &[CACHE]);
    drop(hidden);
    assert_there(&guest, &ALL);
    // Nor does somebody who looks into a part of it.
    for part in &ALL[..2] {
        let dm = sh(&format!(
            "basename $(readlink /sys/dev/block/$(dmsetup info -c --noheadings -o major,minor {part}))"
        ));
        let user = Process::start(&format!("exec sleep 1000 </dev/{dm}"));
        eventually("the part is open", || sh(&format!("ls -l /proc/{}/fd", user.pid())).contains(&dm));
        guest.refuses(REMOVE, 409, &[part, "open in sleep"]);
        drop(user);
    }
    // Parts whose cache somebody else removed are removed in its name.
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
    // A removal, and the last step of a creation.
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
    // Not even a restart is needed before the next.
    guest.change(CREATE);
    assert_there(&guest, &ALL);
    sh("dmsetup remove --retry rc-wt_sda; dmsetup remove --retry rc-wm_sda");
    guest.kill_and_restart();
    assert_there(&guest, &[]);
    // What others made under such names is theirs.
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

#[test]
fn a_ram_disk_that_dies_takes_nothing_of_the_source_with_it() {
    let guest = forced();
    guest.disk(8);
    guest.change(CREATE);
    let data = noise(1, MIB as usize);
    write(NODE, 0, &data);
    heat(&guest);
    settle();
    for part in &ALL[..2] {
        // On the same device, but nothing comes from it any more.
        sh(&format!(
            "modprobe dm-flakey; dead=$(dmsetup table {part} | sed 's/linear \\(.*\\)/flakey \\1 0 3600/');
             dmsetup suspend --noflush --nolockfs {part}; echo $dead | dmsetup load {part}; dmsetup resume {part}"
        ));
    }
    assert!(
        try_write(NODE, 0, &noise(2, PAGE)).is_err(),
        "the RAM disk is not dead: this test proves nothing"
    );
    // dm-cache finds out when it next writes its metadata, and the daemon says so.
    sh("dmsetup suspend rc-wt_sda; dmsetup resume rc-wt_sda || true");
    let stats = guest.get(&format!("showRapidDiskCacheStats/{CACHE}"));
    let is_told = stats.status == 500 && stats.text.contains("remove the cache");
    let is_shown = || stats.json()["statistics"][0]["cache_stats"][0]["metadata_mode"] == "ro";
    assert!(is_told || is_shown(), "{stats:?}");
    let reply = guest.post(REMOVE);
    assert!(reply.status == 200 || reply.text.contains("is removed, but"), "{reply:?}");
    assert_there(&guest, &[]);
    assert_same_data("the source", &read("/dev/sda", PAGE as u64, data.len() - PAGE), &data[PAGE..]);
}

/// Beside RapidDisk's own.
mod rapiddisk {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_is_refused() {
        let guest = forced();
        put("/sys/kernel/rapiddisk/mgmt", "rapiddisk attach 1 524288");
        eventually("rd1", || Path::new("/dev/rd1").exists());
        guest.refuses("createRapidDiskCache/rd1/sda/write-through", 409, &["rd1", "1 MiB"]);
    }

    #[test]
    fn both_drivers_stand_side_by_side_and_each_daemon_knows_both() {
        let guest = guest();
        let other = Daemon::start(&FORCED);
        let (modules, stock) = (*guest, other.client());
        guest.disk(8);
        guest.disk(8);
        modules.cache("rd0", "sda", "write-through");
        stock.cache("rd1", "sdb", "write-through");
        settle();
        for client in [modules, stock] {
            let drivers: Vec<_> = client.caches().iter().map(|cache| cache["driver"].clone()).collect();
            assert_eq!(drivers, ["rapiddisk-cache", "dm-cache"]);
            assert_eq!(client.stats(CACHE)["not_counted"], Value::Null);
            assert!(client.stats("rc-wt_sdb")["not_counted"].is_array());
        }
        stock.change(REMOVE);
        modules.change("removeRapidDiskCache/rc-wt_sdb");
        assert_eq!(all_mappings(), [""; 0]);
        // By itself, where the module is not there.
        sh("rmmod rapiddisk-cache");
        modules.change(CREATE);
        let state = State::now();
        assert_there(&modules, &ALL);
        modules.post("createRapidDiskCache/rd1/sdb/write-around").failure(503, &["modprobe rapiddisk-cache"]);
        state.assert_unchanged("write-around");
        modules.change(REMOVE);
        sh(&format!("modprobe -a {}", clean::modules()));
    }
}
