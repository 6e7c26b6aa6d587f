//! Each system call of each change fails in turn: what the daemon answers is what the kernel has. The
//! changes of RAM disks behind loop devices are in `tests/native.rs`.

use std::fs::{self, File};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::process::ExitStatus;

use serde_json::Value;

use crate::export::{HOST, STRANGER, guest_with_nvmet};
use crate::faults::{Effort, Faults, Report, Setting, Snapshot, try_each_call, try_each_start};
use crate::support::kernel::{State, has_udev, holders, loops, policies};
use crate::support::{Guest, guest};

/// Guests are slow.
const EFFORT: Effort = Effort { errors: 1, alike: 1 };

/// A guest with a daemon whose calls can fail.
struct Injected {
    guest: Guest,
    /// Whether its RAM disks serve caches: what a cache wrote to its disk stays there.
    has_caches: bool,
}

impl Injected {
    fn new(mut guest: Guest, has_caches: bool) -> Injected {
        guest.start_with_faults();
        Injected { guest, has_caches }
    }
}

impl Deref for Injected {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Setting for Injected {
    fn call(&self, method: &str, path: &str) -> Option<(u16, Value)> {
        let reply = self.try_request(method, &format!("/v1/{path}")).ok()?;
        Some((reply.status, reply.json()))
    }

    /// RAM disks behind loop devices have the names of their files here: one that is busy is passed over.
    fn state(&self) -> Snapshot {
        let mut state = State::now().0;
        let is_of_disk = |key: &str| key.ends_with("'s contents") || key.ends_with("'s memory");
        state.retain(|key, _| !self.has_caches || !is_of_disk(key));
        // The entry of a host that no subsystem lets in means nothing. It stays where the kernel calls it busy.
        let links: Vec<_> = state.keys().filter(|key| key.contains("/allowed_hosts/")).cloned().collect();
        state.retain(|key, _| match key.strip_prefix("/sys/kernel/config/nvmet/hosts/") {
            Some(rest) => {
                let host = rest.split('/').next().expect("a name");
                links.iter().any(|link| link.ends_with(&format!("/{host}")))
            }
            None => true,
        });
        for (device, file) in loops() {
            let name = file.rsplit('/').next().expect("a name");
            let (from, to) = (format!("/sys/block/{device}"), format!("/sys/block/{name}"));
            if let Some(value) = state.remove(&from) {
                state.insert(to, value);
            }
            if let Some(all) = state.get_mut("loops") {
                *all = all.replace(&format!("{device:?}"), "a loop device");
            }
        }
        state
    }

    fn fill(&self) {
        if holders("rd0").is_empty() {
            // Not while it is locked.
            let _ = File::options().write(true).open("/dev/rd0").and_then(|disk| {
                disk.write_all_at(b"data", 0)?;
                disk.sync_all()
            });
        }
    }

    fn faults(&self) -> &Faults {
        self.guest.faults()
    }

    fn kill(&mut self) {
        self.guest.daemon().kill();
    }

    fn start(&mut self) -> Option<ExitStatus> {
        self.guest.start_again()
    }
}

/// Lets the calls of a change fail, each with one of the errors.
fn each(guest: &mut Injected, report: &mut Report, path: &str, back: &[&str]) {
    try_each_call(guest, ("POST", path), back, EFFORT, report);
}

#[test]
fn a_change_of_a_disk_is_done_or_leaves_all_as_it_was() {
    let mut guest = Injected::new(guest(), false);
    let mut report = Report::default();
    guest.disk(1);
    each(&mut guest, &mut report, "createRapidDisk/1", &["removeRapidDisk/rd1"]);
    each(&mut guest, &mut report, "resizeRapidDisk/rd0/2", &["flushRapidDisk/rd0", "resizeRapidDisk/rd0/1"]);
    each(&mut guest, &mut report, "lockRapidDisk/rd0", &["unlockRapidDisk/rd0"]);
    each(&mut guest, &mut report, "flushRapidDisk/rd0", &[]);
    each(&mut guest, &mut report, "removeRapidDisk/rd0", &["createRapidDisk/1"]);
    report.assert_unbroken(100);
}

#[test]
fn a_change_of_a_cache_is_done_or_leaves_all_as_it_was() {
    let mut guest = Injected::new(guest(), true);
    let mut report = Report::default();
    guest.disk(16);
    for policy in policies() {
        let make = format!("createRapidDiskCache/rd0/sda/{policy}");
        let cache = guest.cache("rd0", "sda", policy);
        let remove = format!("removeRapidDiskCache/{cache}");
        guest.change(&remove);
        each(&mut guest, &mut report, &make, &[&remove]);
        guest.change(&make);
        // A superblock that could not be cleared is left over until the disk is flushed.
        each(&mut guest, &mut report, &remove, &["flushRapidDisk/rd0", &make]);
        try_each_call(&mut guest, ("GET", "listRapidDiskVolumes"), &[], EFFORT, &mut report);
        let show = format!("showRapidDiskCacheStats/{cache}");
        try_each_call(&mut guest, ("GET", &show), &[], EFFORT, &mut report);
        guest.change(&remove);
    }
    report.assert_unbroken(100);
}

#[test]
fn a_change_of_an_export_is_done_or_leaves_all_as_it_was() {
    let mut guest = Injected::new(guest_with_nvmet(), false);
    let mut report = Report::default();
    let report = &mut report;
    guest.disk(1);
    each(&mut guest, report, "createNVMePort/1/127.0.0.1/tcp", &["removeNVMePort/1"]);
    guest.change("createNVMePort/1/127.0.0.1/tcp");
    each(&mut guest, report, "removeNVMePort/1", &["createNVMePort/1/127.0.0.1/tcp"]);
    each(&mut guest, report, "createNVMeTarget/rd0/1", &["removeNVMeTarget/rd0"]);
    let to_host = format!("createNVMeTarget/rd0/all/{HOST}");
    each(&mut guest, report, &to_host, &["removeNVMeTarget/rd0"]);
    guest.change(&to_host);
    let (allow, deny) = (format!("allowNVMeHost/rd0/{STRANGER}"), format!("denyNVMeHost/rd0/{STRANGER}"));
    each(&mut guest, report, &allow, &[&deny]);
    guest.change(&allow);
    each(&mut guest, report, &deny, &[&allow]);
    guest.change(&deny);
    // Of which the initiators are told.
    guest.change("resizeRapidDisk/rd0/2");
    each(&mut guest, report, "resizeRapidDisk/rd0/2", &[]);
    for list in ["listAllNVMeTargets", "listAllNVMePorts"] {
        try_each_call(&mut guest, ("GET", list), &[], EFFORT, report);
    }
    each(&mut guest, report, "removeNVMeTarget/rd0", &[&to_host]);
    report.assert_unbroken(100);
}

#[test]
fn a_start_loses_nothing_and_the_next_one_repairs_the_rest() {
    let mut guest = Injected::new(guest(), true);
    let mut report = Report::default();
    guest.disk(16);
    let node = format!("/dev/mapper/{}", guest.cache("rd0", "sda", "write-through"));
    let spoil = || {
        // For udev's work the daemon would wait at each start.
        if !has_udev() {
            fs::remove_file(&node).expect("the node");
        }
    };
    try_each_start(&mut guest, spoil, 1, &mut report);
    report.assert_unbroken(40);
}
