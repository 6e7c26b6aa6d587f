//! The daemon on the machine itself: RAM disks behind loop devices, without a guest and without
//! modules. It attaches loop devices of this machine; so it needs root and a `/run` of its own.
//! `tests/run native` runs it; `cargo test` alone does not.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
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
}

impl Native {
    fn start() -> Native {
        let root = Root::new("/");
        assert_eq!(loops::is_loaded(&root), Ok(true), "no /dev/loop-control on this machine");
        assert_eq!(
            pool::is_mounted(&root),
            Ok(false),
            "a daemon has RAM disks on this machine: run this with tests/run"
        );
        assert!(!Path::new("/dev/rd0").exists(), "this machine has a RAM disk");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut native = Native { child: Native::spawn(port), port };
        native.wait();
        native
    }

    fn spawn(port: u16) -> Child {
        Command::new(env!("CARGO_BIN_EXE_rapiddiskd"))
            .args([
                "-l",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "--ram-driver",
                "loop",
                "--memory-limit",
                "64",
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
        self.child = Native::spawn(self.port);
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
        for (device, file) in loops::attached(&root).unwrap_or_default() {
            let Some(disk) = pool::name_in(&root, &file) else { continue };
            let _ = block::open(&root, &device, Mode::Read).and_then(|disk| loops::detach(&disk));
            let _ = fs::remove_file(Path::new("/dev").join(disk));
            let _ = pool::remove(&root, disk);
        }
    }
}

#[test]
fn disks_are_made_resized_listed_and_found_again() {
    let mut native = Native::start();
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
