//! The daemon on the machine itself: RAM disks behind loop devices, without a guest and without
//! modules. It attaches loop devices of this machine; so it needs root and a `/run` of its own.
//! `tests/run native` runs it; `cargo test` alone does not.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rapiddiskd::client::Client;
use rapiddiskd::http::Listen;
use rapiddiskd::kernel::block::{self, Mode};
use rapiddiskd::kernel::{Root, loops, pool};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Far above what a start or an answer takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon for the test. When this is dropped, the daemon ends and its disks are removed.
struct Native {
    child: Child,
    port: u16,
    /// The memory limit in MiB.
    limit: &'static str,
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
        let mut native = Native { child: Native::spawn(port, limit), port, limit, _alone: alone };
        native.wait();
        native
    }

    fn spawn(port: u16, limit: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_rapiddiskd"))
            .args([
                "-l",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "--ram-driver",
                "loop",
                "--memory-limit",
                limit,
            ])
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.client().call("GET", "/v1/checkServiceStatus").is_err() {
            assert_eq!(self.child.try_wait().unwrap(), None, "the daemon ended");
            assert!(Instant::now() < deadline, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Native::spawn(self.port, self.limit);
        self.wait();
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
        let _ = self.child.kill();
        let _ = self.child.wait();
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
    let (name, device) = loops::attach(&root, &file, 5, 1024).unwrap();
    let others = Others(name, device);

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
    assert_eq!(native.ask("POST", "lockRapidDisk/rd8").0, 404);
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
    let name = others.0.clone();
    assert!(loops::backing(&root, &name).unwrap().is_some(), "{name} is not somebody else's any more");
    drop(others);
    native.kill_and_restart();
    wait_until_gone(&[name]);
    let after = block::disks(&root).unwrap();
    assert!(
        before.iter().all(|name| after.contains(name)),
        "{before:?} were not made by the daemon: {after:?}"
    );
}
