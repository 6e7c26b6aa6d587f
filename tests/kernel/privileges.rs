//! The capabilities that the daemon keeps. Every other test shows that they are enough; these
//! show that each of them is needed.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rapiddiskd::kernel::privileges::NEEDED;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::support::kernel::{eventually, is_stock, names};
use crate::support::{Client, begin, clean, guest, sh, sys};

/// A daemon that is started without one of the capabilities.
struct Deprived(Child, Client);

impl Deprived {
    fn of(capability: CapabilitySet) -> Deprived {
        let client = Client { port: 9120 };
        let mut command = Command::new(std::env::var("RAPIDDISKD").expect("RAPIDDISKD"));
        command.args(["-l", "127.0.0.1", "-p", &client.port.to_string()]);
        let deprive = move || Ok(remove_capability_from_bounding_set(capability)?);
        // SAFETY: between fork and exec it does one prctl(2) and nothing else.
        let child = unsafe { command.pre_exec(deprive) }.spawn().expect("the daemon");
        eventually("it answers", || client.try_request("GET", "/v1/checkServiceStatus").is_ok());
        Deprived(child, client)
    }
}

impl Drop for Deprived {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process of another user that has a file open; it ends with its test.
struct Stranger(Child);

impl Stranger {
    fn with(path: &str) -> Stranger {
        let file = File::open(path).expect(path);
        Stranger(
            Command::new("sleep").arg("1000").stdin(file).uid(65534).gid(65534).spawn().expect("a process"),
        )
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_kept_is_what_is_documented_and_no_more() {
    let mut guest = guest();
    let threads = format!("/proc/{}/task", guest.daemon().pid());
    assert!(names(&threads).len() > 2);
    for thread in names(&threads) {
        let status = sys(&format!("{threads}/{thread}/status")).expect("its status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name}")).trim_start_matches(':').trim().to_owned()
        };
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(u64::from_str_radix(&field(set), 16), Ok(NEEDED.bits()), "{set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
        }
        assert_eq!(field("NoNewPrivs"), "1");
        assert_eq!(field("Umask"), "0077");
    }
    // When memory runs out, others are killed.
    assert_eq!(sys(&format!("/proc/{}/oom_score_adj", guest.daemon().pid())).as_deref(), Some("-900"));
    let limits = sys(&format!("/proc/{}/limits", guest.daemon().pid())).expect("its limits");
    let core =
        limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit of core dumps");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

#[test]
fn its_memory_is_closed_to_those_who_may_not_trace_it() {
    let mut guest = guest();
    let path = format!("/proc/{}/environ", guest.daemon().pid());
    let reads = |capability: CapabilitySet| {
        let mut command = Command::new("cat");
        let deprive = move || Ok(remove_capability_from_bounding_set(capability)?);
        // SAFETY: between fork and exec it does one prctl(2) and nothing else.
        unsafe { command.arg(&path).pre_exec(deprive) }.output().expect("cat").status.success()
    };
    assert!(!reads(CapabilitySet::SYS_PTRACE), "root without CAP_SYS_PTRACE reads it");
    // Without another capability it can be read: so the first failure is due to that one.
    assert!(reads(CapabilitySet::SYS_BOOT));
}

#[test]
fn without_sys_admin_there_are_no_mappings_and_no_locks() {
    let _alone = begin();
    clean::load();
    let daemon = Deprived::of(CapabilitySet::SYS_ADMIN);
    if is_stock() {
        // In this guest a RAM disk needs a mount and a loop device.
        daemon.1.post("createRapidDisk/8").failure(500, &["mount", "Operation not permitted"]);
        return;
    }
    daemon.1.disk(8);
    assert_eq!(daemon.1.post("lockRapidDisk/rd0").status, 500);
    assert_eq!(daemon.1.post("createRapidDiskCache/rd0/sda/write-through").status, 500);
}

#[test]
fn without_net_bind_service_there_are_no_exports_below_1024() {
    let export = |client: &Client| {
        client.disk(8);
        client.change("createNVMePort/1/127.0.0.1/tcp/1023");
        client.post("createNVMeTarget/rd0/1")
    };
    {
        let guest = crate::export::guest_with_nvmet();
        export(&guest).success();
    }
    let _alone = begin();
    clean::load();
    let daemon = Deprived::of(CapabilitySet::NET_BIND_SERVICE);
    export(&daemon.1).failure(500, &["Permission denied"]);
}

/// A daemon with all capabilities names the process of another user that has a disk open. One without this
/// capability cannot, but the kernel's count tells it as well what is used and what is not.
fn cannot_name_without(capability: CapabilitySet) {
    {
        let guest = guest();
        guest.disk(8);
        let _stranger = Stranger::with("/dev/rd0");
        guest.refuses("lockRapidDisk/rd0", 409, &["rd0", "open in sleep"]);
    }
    let _alone = begin();
    clean::load();
    let daemon = Deprived::of(capability);
    daemon.1.disk(8);
    let stranger = Stranger::with("/dev/rd0");
    let changes = ["lockRapidDisk/rd0", "flushRapidDisk/rd0", "removeRapidDisk/rd0"];
    for change in changes {
        daemon.1.post(change).failure(409, &["rd0", "a program that cannot be found"]);
    }
    drop(stranger);
    let _stranger = Stranger::with("/dev/null");
    // Here the count says no more than that it is mounted.
    sh("mke2fs -q -F -O ^has_journal /dev/rd0 && mount -t ext4 -o ro /dev/rd0 /mnt");
    daemon.1.post("lockRapidDisk/rd0").failure(409, &["rd0", "could not be looked at (", "/proc/"]);
    sh("umount /mnt");
    for change in ["lockRapidDisk/rd0", "unlockRapidDisk/rd0"].iter().chain(&changes[1..]) {
        daemon.1.change(change);
    }
}

#[test]
fn without_sys_ptrace_the_users_among_roots_processes_have_no_name() {
    cannot_name_without(CapabilitySet::SYS_PTRACE);
}

#[test]
fn without_dac_read_search_the_users_among_others_processes_have_no_name() {
    cannot_name_without(CapabilitySet::DAC_READ_SEARCH);
}

/// With RapidDisk's modules only.
mod rapiddisk {
    use super::*;

    #[test]
    fn without_mknod_a_disk_that_lost_its_node_stays() {
        let _alone = begin();
        clean::load();
        let daemon = Deprived::of(CapabilitySet::MKNOD);
        daemon.1.disk(8);
        sh("rm /dev/rd0");
        daemon.1.post("removeRapidDisk/rd0").failure(500, &["mknod", "Operation not permitted"]);
        assert_eq!(daemon.1.disks().len(), 1);
    }
}
