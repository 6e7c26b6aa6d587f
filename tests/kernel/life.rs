//! The daemon itself: killed at any moment, asked by many clients at once, and delayed by a
//! slow call of the kernel; its memory and its start.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::data::{PAGE, Random, assert_same_data, noise, read, write};
use crate::support::kernel::{
    PATIENCE, attribute, eventually, held, holders, is_suspended, map, mappings, names, policies, ram_disks,
    settle, size,
};
use crate::support::{Client, Daemon, Guest, MIB, guest, meanwhile, sh, sys};

/// The lists show what the kernel has, and nothing in the kernel is incomplete.
fn assert_truth(client: &Client) {
    settle();
    let volumes = client.read("listRapidDiskVolumes");
    let disk = |name: String| {
        let locked = attribute(&name, "ro").as_deref() == Some("1");
        (json!(name), json!(size(&name)), json!(if locked { "locked" } else { "unlocked" }))
    };
    let wanted: Vec<_> = ram_disks().into_iter().map(disk).collect();
    let disks = volumes["volumes"][0]["rapiddisk"].as_array().expect("disks");
    let listed: Vec<_> = disks
        .iter()
        .map(|disk| (disk["device"].clone(), disk["size"].clone(), disk["status"].clone()))
        .collect();
    assert_eq!(listed, wanted);
    let caches = volumes["volumes"][1]["rapiddisk_cache"].as_array().expect("caches");
    let listed: Vec<_> =
        caches.iter().map(|cache| cache["device"].as_str().expect("a name").to_owned()).collect();
    assert_eq!(listed, mappings(), "a mapping is half-made");
    let nodes: Vec<_> = names("/dev/mapper").into_iter().filter(|name| name != "control").collect();
    assert_eq!(nodes, mappings(), "nodes and mappings differ");
    for cache in caches {
        let name = cache["device"].as_str().expect("a name");
        assert!(!is_suspended(name), "{name} is suspended");
        let leads_to = fs::canonicalize(format!("/dev/mapper/{name}")).expect("its node");
        let of = fs::read_to_string(format!(
            "/sys/block/{}/dm/name",
            leads_to.file_name().expect("dm-N").to_string_lossy()
        ));
        assert_eq!(of.expect("its name").trim(), name);
        let holders = holders(cache["cache"].as_str().expect("a disk"));
        assert_eq!(holders.len(), if cache["driver"] == "dm-cache" { 2 } else { 1 }, "{cache}");
        assert!(client.stats(name).is_object());
    }
}

#[test]
fn killed_between_any_two_requests_it_goes_on_with_what_the_kernel_has() {
    let mut guest = guest();
    // The policy before writeback: write-around if this guest has it.
    let other = policies()[policies().len() - 2];
    let remove_other = format!("removeRapidDiskCache/rc-{}_sda", abbreviated(other));
    let create_other = format!("createRapidDiskCache/rd0/sda/{other}");
    let script = [
        "createRapidDisk/16",
        "createRapidDisk/8",
        "createRapidDisk/8",
        "resizeRapidDisk/rd0/24",
        "lockRapidDisk/rd1",
        "removeRapidDisk/rd2",
        "createRapidDisk/4",
        "createRapidDiskCache/rd0/sda/write-through",
        "unlockRapidDisk/rd1",
        "createRapidDiskCache/rd1/sdb/writeback",
        "createRapidDisk/3",
        "removeRapidDiskCache/rc-wt_sda",
        "flushRapidDisk/rd0",
        &create_other,
        "resizeRapidDisk/rd2/9",
        "removeRapidDiskCache/rc-wb_sdb",
        "flushRapidDisk/rd1",
        "removeRapidDisk/rd1",
        "createRapidDisk/5",
        &remove_other,
        "removeRapidDisk/rd0",
        "removeRapidDisk/rd1",
        "removeRapidDisk/rd2",
        "removeRapidDisk/rd3",
    ];
    let data = noise(1, MIB as usize);
    for change in script {
        // A daemon that did not ask the kernel what is there would refuse the change.
        guest.change(change);
        if change.ends_with("sdb/writeback") {
            write("/dev/mapper/rc-wb_sdb", MIB, &data);
        }
        guest.kill_and_restart();
        assert_truth(&guest);
    }
    assert_eq!((ram_disks(), mappings()), (vec![], vec![]));
    assert_same_data("sdb", &read("/dev/sdb", MIB, data.len()), &data);
}

/// Makes and removes a disk and a cache. Returns whether every request was answered.
fn change(client: Client, policy: &str) -> bool {
    let ask = |path: &str| client.try_request("POST", &format!("/v1/{path}"));
    let made = [
        ask("createRapidDisk/4"),
        ask(&format!("createRapidDiskCache/rd0/sda/{policy}")),
        ask("resizeRapidDisk/rd1/5"),
        ask(&format!("removeRapidDiskCache/rc-{}_sda", abbreviated(policy))),
        ask("flushRapidDisk/rd0"),
        ask("removeRapidDisk/rd1"),
    ];
    made.iter().all(|reply| reply.is_ok())
}

pub fn abbreviated(policy: &str) -> &'static str {
    match policy {
        "write-through" => "wt",
        "write-around" => "wa",
        _ => "wb",
    }
}

#[test]
fn killed_in_the_middle_of_changes_it_repairs_what_was_half_made() {
    let mut guest = guest();
    guest.disk(8);
    let mut random = Random::new(2024);
    let mut found_mapped = 0;
    // How long the changes take on this machine: the daemon is killed at any point of them.
    let begin = std::time::Instant::now();
    assert!(change(*guest, "writeback"));
    let span = begin.elapsed().as_millis() as u64;
    for round in 0..45 {
        let policy = policies()[round % policies().len()];
        let client = *guest;
        let delay = Duration::from_millis(random.below(span));
        std::thread::scope(|scope| {
            scope.spawn(|| while change(client, policy) {});
            // At a random moment: this does not wait for anything.
            std::thread::sleep(delay);
            guest.daemon().kill_between_calls();
        });
        guest.kill_and_restart();
        assert_truth(&guest);
        found_mapped += usize::from(!mappings().is_empty());
        for cache in mappings() {
            guest.change(&format!("removeRapidDiskCache/{cache}"));
        }
        for disk in ram_disks().iter().filter(|disk| *disk != "rd0") {
            guest.change(&format!("removeRapidDisk/{disk}"));
        }
        // The daemon may have been killed after a cache was removed and before its disk was cleared.
        guest.change("flushRapidDisk/rd0");
    }
    assert!(found_mapped > 0, "never killed while a cache was there");
}

#[test]
fn what_an_earlier_daemon_left_half_made_is_repaired() {
    let mut guest = guest();
    guest.disk(8);
    guest.cache("rd0", "sda", "write-through");
    // Suspended, as after a removal that did not finish, and without its node.
    sh("dmsetup suspend rc-wt_sda; rm /dev/mapper/rc-wt_sda");
    guest.kill_and_restart();
    eventually("it runs again", || !is_suspended("rc-wt_sda"));
    guest.kill_and_restart();
    assert_truth(&guest);
    // A mapping without a table, and a node without a mapping.
    sh("dmsetup create --notable -u rapiddiskd-rc-wa_sdb rc-wa_sdb; ln -s ../dm-9 /dev/mapper/rc-wb_sdz");
    guest.kill_and_restart();
    assert_truth(&guest);
    assert_eq!(mappings(), ["rc-wt_sda"]);
}

/// The other daemon may be making it at that moment.
#[test]
fn what_looks_half_made_is_not_touched_while_another_daemon_is_running() {
    let mut guest = guest();
    sh("dmsetup create --notable -u rapiddiskd-rc-wa_sdb rc-wa_sdb");
    let mut second = Daemon::start(&[]);
    assert_eq!(mappings(), ["rc-wa_sdb"]);
    // The daemon that started first is gone, but the second one still runs.
    guest.kill_and_restart();
    assert_eq!(mappings(), ["rc-wa_sdb"]);
    second.kill();
    guest.kill_and_restart();
    assert_eq!(mappings(), [] as [&str; 0]);
}

#[test]
fn what_others_made_is_left_as_they_made_it() {
    let mut guest = guest();
    sh(
        "dmsetup create --notable rc-wt_sda; echo '0 2048 linear /dev/sdb 0' | dmsetup create rc-wa_sdb; dmsetup suspend rc-wa_sdb",
    );
    guest.kill_and_restart();
    assert_eq!(mappings(), ["rc-wa_sdb", "rc-wt_sda"]);
    assert!(is_suspended("rc-wa_sdb"));
    assert_eq!(guest.caches(), [] as [Value; 0]);
}

/// A listing as it can be while disks of 1 MiB are made and removed.
fn assert_well_formed(client: &Client) {
    let volumes = client.read("listRapidDiskVolumes");
    let disks = volumes["volumes"][0]["rapiddisk"].as_array().expect("disks");
    let number = |disk: &Value| disk["device"].as_str()?.strip_prefix("rd")?.parse::<u32>().ok();
    let numbers: Vec<_> = disks.iter().map(|disk| number(disk).expect("a number")).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{volumes}");
    for disk in disks {
        assert_eq!(disk["size"], MIB, "{disk}");
        assert!([0, PAGE as u64].contains(&disk["usage"].as_u64().expect("a number")), "{disk}");
        assert_eq!(disk["status"], "unlocked", "{disk}");
    }
}

#[test]
fn eight_clients_make_and_remove_disks_and_never_share_a_name() {
    let guest = guest();
    let client = *guest;
    let in_use = Mutex::new(HashSet::new());
    let one_client = |number: u64| {
        for round in 0..25 {
            let made = client.change_when_free("createRapidDisk/1").success();
            let name = made["device"].as_str().expect("a name").to_owned();
            assert!(in_use.lock().expect("names").insert(name.clone()), "{name} is used twice");
            let (node, mark) = (format!("/dev/{name}"), noise(number * 100 + round, PAGE));
            write(&node, 0, &mark);
            assert_same_data(&name, &read(&node, 0, PAGE), &mark);
            assert!(in_use.lock().expect("names").remove(&name));
            client.change_when_free(&format!("removeRapidDisk/{name}")).success();
        }
    };
    meanwhile(
        2,
        || assert_well_formed(&client),
        || {
            std::thread::scope(|scope| {
                for number in 0..8 {
                    scope.spawn(move || one_client(number));
                }
            });
        },
    );
    assert_eq!(ram_disks(), [""; 0]);
    assert_truth(&guest);
}

/// The statuses that eight clients get for the same request at once.
fn all_at_once(client: Client, path: impl Fn(usize) -> String + Sync) -> Vec<u16> {
    let start = std::sync::Barrier::new(8);
    let (start, path) = (&start, &path);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn(move || {
                    start.wait();
                    client.change_when_free(&path(number)).status
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    })
}

fn assert_one_of_eight(statuses: &[u16], others: &[u16]) {
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| *status == 200 || others.contains(status)), "{statuses:?}");
}

#[test]
fn of_eight_clients_that_want_the_same_one_gets_it() {
    let guest = guest();
    let client = *guest;
    for _ in 0..8 {
        guest.disk(4);
    }
    for (policy, cache) in [("write-through", "rc-wt_sda"), ("writeback", "rc-wb_sda")] {
        // Eight caches of the same source are asked for, and eight removals of the one that is made.
        let create = |number| format!("createRapidDiskCache/rd{number}/sda/{policy}");
        assert_one_of_eight(&all_at_once(client, create), &[409]);
        assert_eq!(mappings(), [cache]);
        settle();
        assert_one_of_eight(&all_at_once(client, |_| format!("removeRapidDiskCache/{cache}")), &[404, 409]);
        assert_eq!(mappings(), [""; 0]);
    }
    for disk in 0..8 {
        assert_one_of_eight(&all_at_once(client, |_| format!("removeRapidDisk/rd{disk}")), &[404, 409]);
    }
    assert_eq!(ram_disks(), [""; 0]);
}

#[test]
fn the_limit_holds_for_eight_clients_at_once() {
    let guest = crate::support::guest_with(&["--memory-limit", "20"]);
    let statuses = all_at_once(*guest, |_| "createRapidDisk/8".into());
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 2, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 507).count(), 6, "{statuses:?}");
    assert_eq!(ram_disks(), ["rd0", "rd1"]);
}

/// Runs a request that must be answered although something else hangs, which it does for good.
pub fn promptly<T>(what: &str, ask: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let reply = ask();
    assert!(start.elapsed() < PATIENCE / 2, "{what} took {:?}", start.elapsed());
    reply
}

#[test]
fn a_change_that_hangs_in_the_kernel_holds_up_nobody_else() {
    let mut guest = guest();
    map("weak", "0 65536 linear /dev/sda 0");
    guest.disk(8);
    guest.cache("rd0", "mapper%2Fweak", "writeback");
    let data = noise(1, 2 * MIB as usize);
    write("/dev/mapper/rc-wb_weak", 0, &data);
    settle();
    sh("dmsetup suspend --noflush weak");
    let (client, pid) = (*guest, guest.daemon().pid());
    std::thread::scope(|scope| {
        let removal = scope.spawn(move || client.post("removeRapidDiskCache/rc-wb_weak"));
        eventually("the removal hangs", || held(pid) == 1);
        assert!(!removal.is_finished(), "it does not hang: this test proves nothing");
        for _ in 0..2 {
            promptly("checkServiceStatus", || client.read("checkServiceStatus"));
            promptly("listAllResources", || client.read("listAllResources"));
            assert_eq!(promptly("listRapidDiskVolumes", || client.caches()).len(), 1);
            promptly("showRapidDiskCacheStats", || client.stats("rc-wb_weak"));
            let disk = promptly("createRapidDisk", || client.disk(4));
            promptly("createRapidDiskCache", || client.cache(&disk, "sdb", "write-through"));
            promptly("removeRapidDiskCache", || client.change("removeRapidDiskCache/rc-wt_sdb"));
            promptly("resizeRapidDisk", || client.change(&format!("resizeRapidDisk/{disk}/5")));
            promptly("removeRapidDisk", || client.change(&format!("removeRapidDisk/{disk}")));
        }
        // What the hung removal uses stays in use, and nobody waits for it without end.
        client.post("removeRapidDisk/rd0").failure(409, &["rd0"]);
        assert!(!removal.is_finished());
        sh("dmsetup resume weak");
        removal.join().expect("the removal").success();
    });
    assert_same_data("the source", &read("/dev/sda", 0, data.len()), &data);
    assert_eq!(mappings(), ["weak"]);
}

/// Prints a line even if the test passes: the harness holds back what `println!` prints.
fn report(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("stdout");
}

pub fn resident_kib(pid: u32) -> u64 {
    let status = sys(&format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn a_thousand_requests_cost_little_memory() {
    let mut guest: Guest = guest();
    for _ in 0..20 {
        guest.disk(1);
    }
    guest.cache("rd0", "sda", "writeback");
    for _ in 0..200 {
        for read in [
            "checkServiceStatus",
            "listAllResources",
            "listRapidDiskVolumes",
            "showRapidDiskCacheStats/rc-wb_sda",
        ] {
            guest.read(read);
        }
        guest.post("removeRapidDisk/rd0").failure(409, &[]);
    }
    let kib = resident_kib(guest.daemon().pid());
    report(&format!("resident after 1,000 requests: {kib} KiB"));
    assert!(kib < 4096, "{kib} KiB are resident");
}

#[test]
fn the_first_answer_comes_soon_after_the_start() {
    let mut guest = guest();
    let start = Instant::now();
    guest.kill_and_restart();
    // Not asserted, because the time depends on the machine as well.
    report(&format!("first answer {:.1} ms after kill and exec", start.elapsed().as_secs_f64() * 1e3));
    guest.read("checkServiceStatus");
}
