//! Each system call of each change fails in turn: what the daemon answers is what the kernel has. The
//! changes of RAM disks behind loop devices are in `tests/native.rs`.

use std::fs::{self, File};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rapiddiskd::kernel::block::Dev;
use serde_json::Value;

use crate::export::{HOST, STRANGER, guest_with_nvmet};
use crate::faults::{
    Effort, Faults, Outcome, Report, Setting, Snapshot, try_each_call, try_each_run, try_each_start,
};
use crate::support::clean::is_loaded;
use crate::support::data::{PAGE, noise, read, try_write, write};
use crate::support::kernel::{
    State, all_mappings, attribute, below, device, has_udev, holders, is_brd, is_suspended, loops, map,
    mappings, names, policies, ram_driver,
};
use crate::support::{Guest, guest, guest_after, sh};
use crate::zram;

/// Guests are slow.
const EFFORT: Effort = Effort { errors: 1, alike: 1 };

/// Where only the calls fail that change something: what else is looked at is so in other tests, too.
const CHANGES_ALONE: Effort = Effort { errors: 1, alike: 0 };

/// Another driver of RAM disks changes the kernel in other ways, and looks at it in the same ones.
fn effort() -> Effort {
    if is_brd() { CHANGES_ALONE } else { EFFORT }
}

/// A guest with a daemon whose calls can fail.
struct Injected {
    guest: Guest,
    /// Whether its RAM disks serve caches: what a cache wrote to its disk stays there.
    has_caches: bool,
    /// Whether nothing is written to `rd0`.
    stays_empty: bool,
}

impl Injected {
    fn new(mut guest: Guest, has_caches: bool) -> Injected {
        guest.start_with_faults();
        Injected { guest, has_caches, stays_empty: false }
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
        add_ram_disks(&mut state);
        if is_loaded("zram") {
            unnumber_zram(&mut state);
        }
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
        fill_cache();
        if !self.stays_empty && holders("rd0").is_empty() {
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

/// The data that is in a writeback cache and not on its source.
fn cached() -> Vec<u8> {
    noise(1, PAGE)
}

/// Where the test of a writeback cache has its data, and its source.
const SOURCE: &str = "/dev/mapper/weak";
const CACHE: &str = "/dev/mapper/rc-wb_weak";

/// Puts data into a writeback cache that its source has not.
fn fill_cache() {
    if Path::new(SOURCE).exists() {
        write("/dev/sda", 0, &noise(2, PAGE));
    }
    if Path::new(CACHE).exists() {
        // One that has met an error takes none.
        let _ = try_write(CACHE, 0, &cached());
    }
}

/// What whoever used the cache finds now: in the cache, or on its source. `None` while it would wait.
fn cached_data() -> Option<Vec<u8>> {
    let is_waiting = |name: &str| mappings().contains(&name.to_owned()) && is_suspended(name);
    if is_waiting("rc-wb_weak") || is_waiting("weak") {
        return None;
    }
    let at = [CACHE, SOURCE].into_iter().find(|path| Path::new(path).exists())?;
    Some(read(at, 0, PAGE))
}

/// The nodes of the RAM disks, and what the disks of brd hold that belong to none. Those that hold nothing are
/// passed over: the kernel never removes them.
fn add_ram_disks(state: &mut Snapshot) {
    for node in names("/dev").into_iter().filter(|name| name.starts_with("rd")) {
        let leads_to = fs::read_link(format!("/dev/{node}")).map(|to| to == Path::new(&device(&node)));
        state.insert(format!("/dev/{node}"), format!("leads to its device: {:?}", leads_to.ok()));
    }
    if !is_brd() {
        return;
    }
    let taken: Vec<_> = all_mappings().iter().filter_map(|disk| below(disk)).collect();
    let is_brd_disk = |name: &String| name.starts_with("ram");
    for ram in names("/sys/block").into_iter().filter(is_brd_disk) {
        state.remove(&format!("/sys/block/{ram}"));
        let pages = fs::read_to_string(format!("/sys/kernel/debug/ramdisk_pages/{ram}")).expect("debugfs");
        if !taken.contains(&ram) && !["0", "1"].contains(&pages.trim()) {
            state.insert(format!("{ram}, which nobody has"), format!("{pages} pages"));
        }
    }
    // Another disk of brd is as good.
    let unnumbered = |mut text: String| {
        for disk in &taken {
            text = text.replace(disk, "ramK");
            text = text.replace(&format!("minor: {} }}", &disk["ram".len()..]), "minor: K }");
        }
        text
    };
    *state =
        std::mem::take(state).into_iter().map(|(key, value)| (unnumbered(key), unnumbered(value))).collect();
    unnumber_mappings(state);
}

/// Gives the disks of zram and the mappings on them no numbers, since others are as good, and passes over those
/// without a size, which take no memory.
fn unnumber_zram(state: &mut Snapshot) {
    unnumber_mappings(state);
    for (_, value) in state.iter_mut().filter(|(key, _)| key.starts_with("mapping rd")) {
        // Behind the device number of the mapping.
        *value = value.split_once(' ').map_or("", |(_, rest)| rest).to_owned();
    }
    for zram in names("/sys/block").into_iter().filter(|name| name.starts_with("zram")) {
        let key = format!("/sys/block/{zram}");
        let text = state.remove(&key).unwrap_or_default();
        if attribute(&zram, "size").as_deref() != Some("0") {
            // Not its holders: the mappings are looked at.
            state.insert(key, text.split(" holders").next().expect("a size").to_owned());
        }
        let dev = attribute(&zram, "dev").and_then(|dev| Dev::parse(&dev)).expect("its number");
        let guard = all_mappings().into_iter().find(|name| name.ends_with(&format!("-{zram}")));
        let unnumbered_name =
            format!("zram of {:?}", guard.as_deref().and_then(|name| name.split('-').next()));
        let unnumbered = |text: String| {
            text.replace(&zram, &unnumbered_name).replace(&format!("{dev:?}"), &unnumbered_name)
        };
        let all = std::mem::take(state).into_iter();
        *state = all.map(|(key, value)| (unnumbered(key), unnumbered(value))).collect();
    }
}

/// A mapping gets the lowest number that is free.
fn unnumber_mappings(state: &mut Snapshot) {
    for device in names("/sys/block").into_iter().filter(|name| name.starts_with("dm-")) {
        let name = attribute(&device, "dm/name");
        if let Some((name, value)) = name.zip(state.remove(&format!("/sys/block/{device}"))) {
            state.insert(format!("/sys/block/{name}"), value);
        }
    }
}

/// Lets the calls of a change fail, each with one of the errors.
fn each(guest: &mut Injected, report: &mut Report, path: &str, back: &[&str]) {
    try_each_call(guest, ("POST", path), back, effort(), report);
}

#[test]
fn a_change_of_a_disk_is_done_or_leaves_all_as_it_was() {
    let mut guest = Injected::new(guest(), false);
    let mut report = Report::default();
    let report = &mut report;
    guest.disk(1);
    each(&mut guest, report, &format!("createRapidDisk/1?driver={}", ram_driver()), &["removeRapidDisk/rd1"]);
    each(&mut guest, report, "resizeRapidDisk/rd0/2", &["flushRapidDisk/rd0", "resizeRapidDisk/rd0/1"]);
    guest.change("resizeRapidDisk/rd0/2");
    each(&mut guest, report, "resizeRapidDisk/rd0/1", &["resizeRapidDisk/rd0/2"]);
    each(&mut guest, report, "lockRapidDisk/rd0", &["unlockRapidDisk/rd0"]);
    guest.change("lockRapidDisk/rd0");
    each(&mut guest, report, "unlockRapidDisk/rd0", &["lockRapidDisk/rd0"]);
    guest.change("unlockRapidDisk/rd0");
    each(&mut guest, report, "flushRapidDisk/rd0", &[]);
    each(&mut guest, report, "removeRapidDisk/rd0", &["createRapidDisk/2"]);
    report.assert_unbroken(if is_brd() { 60 } else { 150 });
}

#[test]
fn a_change_of_a_disk_of_zram_is_done_or_leaves_all_as_it_was() {
    let mut guest = Injected::new(guest_after(&["--ram-driver", "zram"], zram::load), false);
    let mut report = Report::default();
    let report = &mut report;
    guest.disk(2);
    let back = &["removeRapidDisk/rd1"];
    let other = sh("tr ' ' '\n' </sys/block/zram0/comp_algorithm | grep -v '\\[' | head -n 1");
    each(&mut guest, report, &format!("createRapidDisk/1?algorithm={other}"), back);
    // What else is looked at is so in other tests, too.
    let each = |guest: &mut Injected, report: &mut Report, path: &str, back: &[&str]| {
        try_each_call(guest, ("POST", path), back, CHANGES_ALONE, report);
    };
    each(&mut guest, report, "createRapidDisk/1?limit=1", back);
    try_each_call(&mut guest, ("GET", "listRapidDiskVolumes"), &[], CHANGES_ALONE, report);
    each(&mut guest, report, "flushRapidDisk/rd0", &[]);
    each(&mut guest, report, "lockRapidDisk/rd0", &["unlockRapidDisk/rd0"]);
    each(&mut guest, report, "removeRapidDisk/rd0", &["createRapidDisk/2"]);
    guest.change("flushRapidDisk/rd0");
    guest.stays_empty = true;
    each(&mut guest, report, "resizeRapidDisk/rd0/4", &["resizeRapidDisk/rd0/2"]);
    guest.change("resizeRapidDisk/rd0/4");
    each(&mut guest, report, "resizeRapidDisk/rd0/2", &["resizeRapidDisk/rd0/4"]);
    report.assert_unbroken(80);
}

#[test]
fn a_change_of_a_cache_is_done_or_leaves_all_as_it_was() {
    let mut guest = Injected::new(guest(), true);
    let mut report = Report::default();
    let report = &mut report;
    guest.disk(16);
    // The driver of the RAM disk matters little to a cache.
    let policies = if is_brd() { &policies()[..1] } else { policies() };
    for policy in policies {
        let make = format!("createRapidDiskCache/rd0/sda/{policy}");
        let cache = guest.cache("rd0", "sda", policy);
        let remove = format!("removeRapidDiskCache/{cache}");
        guest.change(&remove);
        each(&mut guest, report, &make, &[&remove]);
        guest.change(&make);
        // A superblock that could not be cleared is left over until the disk is flushed.
        each(&mut guest, report, &format!("removeRapidDiskCache/{cache}"), &["flushRapidDisk/rd0", &make]);
        if is_brd() {
            break;
        }
        try_each_call(&mut guest, ("GET", "listRapidDiskVolumes"), &[], EFFORT, report);
        let show = format!("showRapidDiskCacheStats/{cache}");
        try_each_call(&mut guest, ("GET", &show), &[], EFFORT, report);
        guest.change(&remove);
    }
    report.assert_unbroken(if is_brd() { 20 } else { 100 });
}

/// Its source takes no data, which is given up: only the cache is looked at.
#[test]
fn a_writeback_cache_that_is_given_up_is_gone_or_stays() {
    let mut guest = Injected::new(guest(), true);
    let mut report = Report::default();
    let report = &mut report;
    guest.disk(16);
    map("weak", "0 65536 linear /dev/sda 0");
    let make = "createRapidDiskCache/rd0/mapper%2Fweak/writeback?block=512";
    let remove = "removeRapidDiskCache/rc-wb_weak";
    let each = |guest: &mut Injected, report: &mut Report, path: &str, back: &[&str]| {
        try_each_call(guest, ("POST", path), back, CHANGES_ALONE, report);
    };
    each(&mut guest, report, "createRapidDiskCache/rd0/mapper%2Fweak/writeback?block=512", &[remove]);
    sh("modprobe dm-flakey");
    sh("echo '0 65536 flakey /dev/sda 0 0 60 1 error_writes' | dmsetup load weak");
    sh("dmsetup suspend --noflush --nolockfs weak && dmsetup resume weak");
    guest.change(make);
    each(&mut guest, report, "removeRapidDiskCache/rc-wb_weak?discard=1", &["flushRapidDisk/rd0", make]);
    report.assert_unbroken(20);
}

#[test]
fn a_change_of_an_export_is_done_or_leaves_all_as_it_was() {
    let mut guest = Injected::new(guest_with_nvmet(), false);
    let mut report = Report::default();
    let report = &mut report;
    guest.disk(1);
    each(&mut guest, report, "createNVMePort/1/127.0.0.1/tcp", &["removeNVMePort/1"]);
    each(&mut guest, report, "createNVMePort/2/127.0.0.1/tcp/4421", &["removeNVMePort/2"]);
    guest.change("createNVMePort/1/127.0.0.1/tcp");
    each(&mut guest, report, "removeNVMePort/1", &["createNVMePort/1/127.0.0.1/tcp"]);
    each(&mut guest, report, "createNVMeTarget/rd0/1", &["removeNVMeTarget/rd0"]);
    guest.change("createNVMePort/2/127.0.0.1/tcp/4421");
    // To any host, at both ports.
    each(&mut guest, report, "createNVMeTarget/rd0/all", &["removeNVMeTarget/rd0"]);
    guest.change("createNVMeTarget/rd0/all");
    each(&mut guest, report, "removeNVMeTarget/rd0/2", &["createNVMeTarget/rd0/2"]);
    guest.change("removeNVMeTarget/rd0");
    guest.change("removeNVMePort/2");
    let to_host = format!("createNVMeTarget/rd0/all/{HOST}");
    each(&mut guest, report, &format!("createNVMeTarget/rd0/1/{HOST}"), &["removeNVMeTarget/rd0"]);
    guest.change(&to_host);
    let (allow, deny) = (format!("allowNVMeHost/rd0/{STRANGER}"), format!("denyNVMeHost/rd0/{STRANGER}"));
    each(&mut guest, report, &format!("allowNVMeHost/rd0/{STRANGER}"), &[&deny]);
    guest.change(&allow);
    each(&mut guest, report, &format!("denyNVMeHost/rd0/{STRANGER}"), &[&allow]);
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
fn the_end_of_the_machine_loses_nothing_and_says_what_is_not_done() {
    let mut guest = Injected::new(guest_with_nvmet(), true);
    let mut report = Report::default();
    guest.disk(16);
    guest.change("createNVMePort/1/127.0.0.1/tcp");
    map("weak", "0 65536 linear /dev/sda 0");
    let prepare = |guest: &mut Injected| {
        guest.kill();
        assert_eq!(guest.start(), None, "the daemon ended");
        if !mappings().contains(&"rc-wb_weak".to_owned()) {
            // A superblock that could not be cleared.
            guest.change("flushRapidDisk/rd0");
            guest.change("createRapidDiskCache/rd0/mapper%2Fweak/writeback");
        }
        guest.change("createNVMeTarget/rc-wb_weak/1");
        fill_cache();
        guest.kill();
    };
    let run = |guest: &Injected| {
        let mut program = Command::new(std::env::var("RAPIDDISKD").expect("RAPIDDISKD"));
        let program = program.arg("--quiesce").stdin(Stdio::null()).stderr(Stdio::piped());
        let output =
            guest.faults().spawn(program).and_then(|child| child.wait_with_output()).expect("its end");
        let said = String::from_utf8_lossy(&output.stderr);
        let cache = mappings().contains(&"rc-wb_weak".to_owned());
        let export = State::now().0.keys().any(|key| key.contains("/subsystems/nqn"));
        let is_lost = cached_data().is_some_and(|data| data != cached());
        match output.status.code() {
            _ if is_lost => Err(format!("data is lost: {said}")),
            Some(0) if !cache && !export => Ok(Outcome::Done),
            Some(1 | 3) if said.contains("not done") || said.contains("not everything") => {
                Ok(match (cache, export) {
                    (true, true) => Outcome::AsBefore,
                    _ => Outcome::Told,
                })
            }
            _ => Err(format!("{}, cache: {cache}, export: {export}: {said}", output.status)),
        }
    };
    try_each_run(&mut guest, prepare, run, CHANGES_ALONE, &mut report);
    report.assert_unbroken(15);
}

#[test]
fn a_start_loses_nothing_and_the_next_one_repairs_the_rest() {
    let mut guest = Injected::new(guest(), true);
    let mut report = Report::default();
    guest.disk(16);
    let node = format!("/dev/mapper/{}", guest.cache("rd0", "sda", "write-through"));
    if is_brd() {
        guest.disk(1);
    }
    let spoil = || {
        // For udev's work the daemon would wait at each start.
        if !has_udev() {
            fs::remove_file(&node).expect("the node");
        }
        if is_brd() {
            sh("rm /dev/rd1; dmsetup remove rd1; dmsetup suspend rd0");
        }
    };
    try_each_start(&mut guest, spoil, 1, &mut report);
    report.assert_unbroken(40);
}
