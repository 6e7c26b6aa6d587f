//! The machine runs out of memory while a RAM disk is filled that is as large as the default limit allows: the
//! kernel kills who takes the most memory, and the daemon answers all the time. Only in a guest with little memory.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};

use crate::life::resident_kib;
use crate::support::kernel::{PAUSE, eventually, put};
use crate::support::{Client, guest, sh, sys};

const KILL: i32 = 9;
/// With the module, too, that this guest does not load by itself.
const DRIVERS: [&str; 2] = ["loop", "rapiddisk"];

/// A number from a file of procfs with a line for each name.
fn number(path: &str, name: &str) -> u64 {
    let text = sys(path).unwrap_or_else(|| panic!("no {path}"));
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
    let words = line.trim_start_matches(':').split_whitespace().next();
    words.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{name}: {line}"))
}

/// How many processes the kernel has killed for want of memory.
fn killed() -> u64 {
    number("/proc/vmstat", "oom_kill")
}

/// Copies zeros to `to` with a buffer of `kib`. The kernel may kill it, unlike this test.
fn copy(to: &str, kib: u64) -> Child {
    let command =
        format!("echo 0 >/proc/self/oom_score_adj; exec dd if=/dev/zero of={to} bs={kib}K 2>/dev/null");
    Command::new("sh").args(["-c", &command]).spawn().expect("a process")
}

/// Asks the daemon until a process ends. The client waits for each answer longer than any machine takes.
fn ask_until_end(client: &Client, child: &mut Child) -> ExitStatus {
    loop {
        assert_eq!(client.read("checkServiceStatus")["status"], "OK");
        client.read("listRapidDiskVolumes");
        if let Some(status) = child.try_wait().expect("its state") {
            return status;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Fills the largest disk there can be, beside a process that takes memory. Their buffers are given in percent of
/// all memory; with the disk they make more than there is. Returns how the writer and the other process ended, and
/// whether the disk is full.
fn fill(driver: &str, writer: u64, eater: u64) -> (ExitStatus, Option<ExitStatus>, bool) {
    let mut guest = guest();
    sh("modprobe rapiddisk");
    put("/proc/self/oom_score_adj", "-1000");
    let (pid, before) = (guest.daemon().pid(), killed());
    let percent = number("/proc/meminfo", "MemTotal") / 100;
    let mib = 80 * percent / 1024;
    guest.change(&format!("createRapidDisk/{mib}?driver={driver}"));
    guest.post("createRapidDisk/2").failure(507, &["memory-limit"]);
    let mut eater_process = copy("/dev/null", eater * percent);
    eventually("its buffer is in memory", || resident_kib(eater_process.id()) > eater * percent);
    let ended = ask_until_end(&guest, &mut copy("/dev/rd0", writer * percent));
    let eaten = eater_process.try_wait().expect("its state");
    let _ = eater_process.kill();
    let _ = eater_process.wait();
    assert_eq!(killed() - before, 1, "nobody else has to die for it");
    assert!(resident_kib(pid) > 0, "the daemon lives");
    let is_full = guest.listed("rd0")["usage"] == mib << 20;
    for change in ["flushRapidDisk/rd0", "removeRapidDisk/rd0", "createRapidDisk/8", "removeRapidDisk/rd0"] {
        guest.change(change);
    }
    assert_eq!(guest.disks().len(), 0);
    (ended, eaten, is_full)
}

#[test]
fn a_writer_that_takes_most_memory_is_killed() {
    for driver in DRIVERS {
        let (writer, eater, is_full) = fill(driver, 40, 5);
        assert_eq!((writer.signal(), eater, is_full), (Some(KILL), None, false), "{driver}");
    }
}

#[test]
fn a_disk_can_be_filled_and_others_that_take_memory_are_killed() {
    for driver in DRIVERS {
        let (writer, eater, is_full) = fill(driver, 1, 40);
        assert_eq!(eater.and_then(|eater| eater.signal()), Some(KILL), "{driver}");
        assert_eq!((writer.signal(), is_full), (None, true), "{driver}");
    }
}
