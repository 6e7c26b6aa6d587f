//! The daemon on the machine itself: RAM disks behind loop devices, without a guest and without
//! modules. It attaches loop devices of this machine; so it needs root and a `/run` of its own.
//! `tests/run native` runs it; `cargo test` alone does not.

mod faults;
#[path = "native/openapi.rs"]
mod openapi;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use faults::{Effort, Faults, Report, Setting, Snapshot, try_each_call, try_each_start};
use rapiddiskd::client::Client;
use rapiddiskd::http::Listen;
use rapiddiskd::kernel::block::{self, Mode};
use rapiddiskd::kernel::{Root, loops, pool};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Enough for thousands of injections in a minute.
const EFFORT: Effort = Effort { errors: 5, alike: 20 };

/// Far above what a start or an answer takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon for the test. When this is dropped, the daemon ends and its disks are removed.
struct Native {
    child: Child,
    port: u16,
    /// The memory limit in MiB.
    limit: &'static str,
    faults: Faults,
    _alone: MutexGuard<'static, ()>,
}

/// Held by a test that has a daemon, since the names in `/dev` are those of the machine.
static ALONE: Mutex<()> = Mutex::new(());

impl Native {
    fn start(limit: &'static str) -> Native {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let root = Root::new("/");
        assert_eq!(loops::is_loaded(&root), Ok(true), "no /dev/loop-control on this machine");
        assert_eq!(
            pool::names(&root),
            Ok(Vec::new()),
            "a daemon has RAM disks on this machine: run this with tests/run"
        );
        assert!(!Path::new("/dev/rd0").exists(), "this machine has a RAM disk");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let faults = Faults::default();
        let child = Native::spawn(port, limit, &faults);
        let mut native = Native { child, port, limit, faults, _alone: alone };
        assert_eq!(native.answers_or_ends(), None, "the daemon ended");
        native
    }

    fn spawn(port: u16, limit: &str, faults: &Faults) -> Child {
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_rapiddiskd"));
        let port = port.to_string();
        daemon.args(["-l", "127.0.0.1", "-p", &port, "--ram-driver", "loop", "--memory-limit", limit]);
        let log = File::options().create(true).append(true).open("/run/log").unwrap();
        faults.spawn(daemon.stdin(Stdio::null()).stderr(log)).unwrap()
    }

    /// Waits until the daemon answers, or gives the status with which it ended.
    fn answers_or_ends(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        while self.client().call("GET", "/v1/checkServiceStatus").is_err() {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            assert!(Instant::now() < deadline, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    fn kill_and_restart(&mut self) {
        self.kill();
        assert_eq!(self.start(), None, "the daemon ended");
    }

    fn client(&self) -> Client {
        Client::new(&Listen::Tcp((Ipv4Addr::LOCALHOST, self.port).into()), PATIENCE)
    }

    fn ask(&self, method: &str, path: &str) -> (u16, Value) {
        let reply = self.client().call(method, &format!("/v1/{path}")).unwrap();
        (reply.status, serde_json::from_slice(&reply.body).unwrap())
    }

    fn change(&self, path: &str) -> Value {
        let (status, body) = self.ask("POST", path);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    fn disks(&self) -> Vec<Value> {
        self.ask("GET", "listRapidDiskVolumes").1["volumes"][0]["rapiddisk"].as_array().unwrap().clone()
    }
}

/// Removes the disks, because the daemon may not be allowed to.
impl Drop for Native {
    fn drop(&mut self) {
        self.kill();
        let root = Root::new("/");
        for disk in pool::names(&root).unwrap_or_default() {
            // The files of a daemon in another mount namespace may have the same paths, but the links do not.
            let link = Path::new("/dev").join(&disk);
            if let Some(device) = fs::read_link(&link).ok().and_then(|to| Some(to.to_str()?.to_owned())) {
                let _ = block::open(&root, &device, Mode::Read).and_then(|disk| loops::detach(&disk));
                let _ = fs::remove_file(link);
            }
            let _ = pool::remove(&root, &disk);
        }
        let _ = loops::remove_free(&root);
    }
}

#[test]
fn disks_are_made_resized_listed_and_found_again() {
    let mut native = Native::start("64");
    assert_eq!(native.ask("GET", "checkServiceStatus").1["ram_driver"], "loop");
    assert_eq!(native.disks(), [0; 0]);
    assert_eq!(native.change("createRapidDisk/8")["device"], "rd0");
    assert_eq!(native.ask("POST", "createRapidDisk/57").0, 507);
    let disk = File::options().read(true).write(true).open("/dev/rd0").unwrap();
    let data: Vec<u8> = (0..MIB as u32 / 4).flat_map(u32::to_le_bytes).collect();
    disk.write_all_at(&data, 3 * MIB).unwrap();
    disk.sync_all().unwrap();
    native.change("resizeRapidDisk/rd0/32");
    native.kill_and_restart();
    let listed = native.disks();
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["size"], &listed[0]["usage"]), (&(32 * MIB).into(), &MIB.into()));
    assert_eq!((&listed[0]["driver"], &listed[0]["status"]), (&"loop".into(), &"unlocked".into()));
    let mut again = vec![0; data.len()];
    disk.read_exact_at(&mut again, 3 * MIB).unwrap();
    assert!(again == data, "the data is not what was written");
    drop(disk);
    // Also where not even root may look at every process.
    for path in ["resizeRapidDisk/rd0/16", "flushRapidDisk/rd0", "removeRapidDisk/rd0"] {
        native.change(path);
    }
    assert_eq!(native.disks(), [0; 0]);
}

/// A loop device of somebody else's, with its name; detached when dropped.
struct Others(String, File);

impl Drop for Others {
    fn drop(&mut self) {
        let _ = loops::detach(&self.1);
    }
}

/// The loop device of a disk.
fn device_of(disk: &str) -> String {
    fs::read_link(format!("/dev/{disk}")).unwrap().into_os_string().into_string().unwrap()
}

/// Waits until these loop devices are gone. One that somebody else got meanwhile is his.
fn wait_until_gone(devices: &[String]) {
    let root = Root::new("/");
    let is_gone = |device: &String| {
        let is_others = |file: String| pool::name_in(&root, &file).is_none();
        block::dev_of(&root, device) == Ok(None)
            || loops::backing(&root, device).unwrap().is_some_and(is_others)
    };
    let deadline = Instant::now() + PATIENCE;
    while !devices.iter().all(is_gone) {
        assert!(Instant::now() < deadline, "free loop devices stay: {devices:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn many_disks_are_made_found_again_and_removed_with_their_loop_devices() {
    const DISKS: u32 = 300;
    const CLIENTS: u32 = 4;
    // Somebody else has the device that rd5 would have.
    let root = Root::new("/");
    let file = File::options().read(true).write(true).create_new(true).open("/run/others").unwrap();
    file.set_len(MIB).unwrap();
    let (name, claim) = loops::attach(&root, &file, 5, 1024).unwrap();
    block::set_read_only(&claim, true).unwrap();
    drop(claim);
    let others = Others(name.clone(), block::open(&root, &name, Mode::Read).unwrap());

    let low = |name: &String| name.strip_prefix("loop").is_some_and(|number| number.len() < 4);
    let before: Vec<_> = block::disks(&root).unwrap().into_iter().filter(low).collect();

    let mut native = Native::start("300");
    // Each client changes the disks of its own numbers.
    let each = |native: &Native, numbers: &[u32], path: &(dyn Fn(u32) -> String + Sync)| {
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let own = numbers.iter().filter(move |&number| number % CLIENTS == client);
                scope.spawn(move || own.for_each(|&number| drop(native.change(&path(number)))));
            }
        });
    };
    let all: Vec<_> = (0..DISKS).collect();
    each(&native, &all, &|_| "createRapidDisk/1".into());
    assert_eq!(native.ask("POST", "createRapidDisk/1").0, 507);
    let names: Vec<_> = all.iter().map(|number| format!("rd{number}")).collect();
    let devices: Vec<_> = names.iter().map(|name| device_of(name)).collect();
    assert!(!devices.contains(&others.0), "{} is somebody else's", others.0);
    for (name, device) in names.iter().zip(&devices) {
        let file = loops::backing(&root, device).unwrap().unwrap();
        assert_eq!(pool::name_in(&root, &file), Some(&**name), "{device}");
    }

    // A daemon in another mount namespace of this machine may have disks, too: their files have the same paths.
    let listed = |native: &Native| {
        let mut listed = native.disks();
        listed.dedup_by(|a, b| a["device"] == b["device"]);
        listed
    };
    let assert_all_listed = |native: &Native| {
        let listed: Vec<_> =
            listed(native).iter().map(|disk| disk["device"].as_str().unwrap().to_owned()).collect();
        assert_eq!(listed, names);
    };
    assert_all_listed(&native);
    // One has lost its link, one its device.
    fs::remove_file("/dev/rd7").unwrap();
    native.change("lockRapidDisk/rd7");
    loops::detach(&block::open(&root, &devices[8], Mode::Read).unwrap()).unwrap();
    assert_eq!(native.change("resizeRapidDisk/rd9/1")["status"], "Success");
    native.kill_and_restart();
    assert_all_listed(&native);
    assert_eq!(device_of("rd7"), devices[7]);
    let listed = listed(&native);
    assert!(listed[7]["status"] == "locked" && listed[8]["status"] == "unlocked", "{listed:?}");
    // A disk whose file somebody unlinked counts, and has its number.
    fs::remove_file(pool::path(&root, "rd3")).unwrap();
    assert_eq!(native.ask("POST", "createRapidDisk/1").0, 507);
    native.change("removeRapidDisk/rd20");
    assert_eq!(native.change("createRapidDisk/1")["device"], "rd20");

    // In an order without pattern: 7 and 300 have no common divisor.
    let devices: Vec<_> = names.iter().map(|name| device_of(name)).collect();
    let shuffled: Vec<_> = all.iter().map(|number| (number * 7 + 3) % DISKS).collect();
    let (first, rest) = shuffled.split_at(DISKS as usize / 2);
    let remove = |number: u32| format!("removeRapidDisk/rd{number}");
    each(&native, first, &remove);
    let of =
        |numbers: &[u32]| numbers.iter().map(|&number| devices[number as usize].clone()).collect::<Vec<_>>();
    wait_until_gone(&of(first));
    each(&native, rest, &remove);
    // A daemon that was killed before it removed the devices does so when it is back.
    native.kill_and_restart();
    assert!(names.iter().all(|name| !Path::new("/dev").join(name).is_symlink()));
    assert_eq!(pool::names(&root), Ok(Vec::new()));
    wait_until_gone(&of(rest));
    assert!(loops::backing(&root, &name).unwrap().is_some(), "{name} is not somebody else's any more");
    assert_eq!(block::is_disk_read_only(&root, &name), Ok(true), "{name} is not as it was");
    drop(others);
    native.kill_and_restart();
    wait_until_gone(&[name]);
    let after = block::disks(&root).unwrap();
    assert!(
        before.iter().all(|name| after.contains(name)),
        "{before:?} were not made by the daemon: {after:?}"
    );
}

impl Setting for Native {
    fn call(&self, method: &str, path: &str) -> Option<(u16, Value)> {
        let reply = self.client().call(method, &format!("/v1/{path}")).ok()?;
        Some((reply.status, serde_json::from_slice(&reply.body).unwrap()))
    }

    /// The disks of this daemon alone: others may attach and detach loop devices of this machine meanwhile.
    fn state(&self) -> Snapshot {
        let root = Root::new("/");
        let mut state = Snapshot::new();
        for (device, file) in loops::attached(&root).unwrap() {
            let Some(file) = pool::name_in(&root, &file) else { continue };
            let attribute = |name: &str| {
                fs::read_to_string(format!("/sys/block/{device}/{name}"))
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            };
            let attributes = ["size", "ro", "loop/sizelimit", "loop/autoclear"].map(attribute).join(" ");
            let mut start = [0; 16 << 10];
            let disk = File::open(format!("/dev/{device}"));
            let contents = disk.and_then(|disk| disk.read_exact_at(&mut start, 0)).map(|()| hash(&start));
            let contents = contents.unwrap_or_default();
            let link = fs::read_link(format!("/dev/{file}")).is_ok_and(|to| to == Path::new(&device));
            state
                .insert(format!("device over {file}"), format!("{attributes}, {contents:x}, linked: {link}"));
        }
        let entries = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries("/run/rapiddiskd/disks") {
            let (length, held) = entry.metadata().map(|file| (file.len(), file.blocks())).unwrap_or_default();
            state.insert(entry.path().display().to_string(), format!("{length} bytes, {held} blocks"));
        }
        let disks = entries("/dev").filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"rd"));
        state.extend(disks.map(|entry| (entry.path().display().to_string(), "there".to_owned())));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = mounts.lines().filter(|line| line.contains("rapiddiskd")).count();
        state.insert("mounts".to_owned(), mounts.to_string());
        state
    }

    fn fill(&self) {
        // Not while it is locked.
        let _ = File::options().write(true).open("/dev/rd0").and_then(|disk| {
            disk.write_all_at(b"data", 4096)?;
            disk.sync_all()
        });
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn start(&mut self) -> Option<ExitStatus> {
        self.child = Native::spawn(self.port, self.limit, &self.faults);
        self.answers_or_ends()
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[test]
fn a_change_in_which_a_system_call_fails_is_done_or_leaves_all_as_it_was() {
    let mut native = Native::start("64");
    let mut report = Report::default();
    let mut each = |native: &mut Native, path: &str, back: &[&str]| {
        try_each_call(native, ("POST", path), back, EFFORT, &mut report);
    };
    each(&mut native, "createRapidDisk/1", &["removeRapidDisk/rd0"]);
    native.change("createRapidDisk/2");
    each(&mut native, "createRapidDisk/1?driver=loop", &["removeRapidDisk/rd1"]);
    each(&mut native, "resizeRapidDisk/rd0/4", &["resizeRapidDisk/rd0/2"]);
    each(&mut native, "resizeRapidDisk/rd0/1", &["resizeRapidDisk/rd0/2"]);
    each(&mut native, "lockRapidDisk/rd0", &["unlockRapidDisk/rd0"]);
    native.change("lockRapidDisk/rd0");
    each(&mut native, "unlockRapidDisk/rd0", &["lockRapidDisk/rd0"]);
    // The disk stays locked, unless the answer says that it could not be.
    each(&mut native, "resizeRapidDisk/rd0/4", &["resizeRapidDisk/rd0/2", "lockRapidDisk/rd0"]);
    each(&mut native, "resizeRapidDisk/rd0/1", &["resizeRapidDisk/rd0/2", "lockRapidDisk/rd0"]);
    each(&mut native, "removeRapidDisk/rd0", &["createRapidDisk/2", "lockRapidDisk/rd0"]);
    native.change("unlockRapidDisk/rd0");
    each(&mut native, "flushRapidDisk/rd0", &[]);
    each(&mut native, "removeRapidDisk/rd0", &["createRapidDisk/2"]);
    for list in ["listRapidDiskVolumes", "listAllResources"] {
        try_each_call(&mut native, ("GET", list), &[], EFFORT, &mut report);
    }
    report.assert_unbroken(5000);
}

#[test]
fn a_start_in_which_a_system_call_fails_loses_nothing_and_the_next_one_repairs_the_rest() {
    let mut native = Native::start("64");
    let mut report = Report::default();
    native.change("createRapidDisk/1");
    native.fill();
    let spoil = || {
        fs::remove_file("/dev/rd0").unwrap();
        File::create("/run/rapiddiskd/disks/rd1.part").unwrap();
    };
    try_each_start(&mut native, spoil, 2, &mut report);
    report.assert_unbroken(500);
}
