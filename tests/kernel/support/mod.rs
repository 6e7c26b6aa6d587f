//! What every test uses: the guest, which one test at a time has, and a daemon in it.

pub mod clean;
pub mod data;
pub mod http;
pub mod kernel;

use std::fs::{self, File};
use std::net::TcpListener;
use std::ops::Deref;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::faults::Faults;

pub use data::{MIB, PAGE, assert_same_data, noise, read, write};
pub use http::{Client, Reply};
pub use kernel::{State, eventually, sh, sys};

/// The program under test.
const DAEMON: &str = "RAPIDDISKD";
/// The mode of the guest; its init sets this variable.
const GUEST: &str = "RAPIDDISKD_GUEST";
const LOG: &str = "/tmp/daemon.log";

/// One test at a time, since all of them change the same kernel.
static ALONE: Mutex<()> = Mutex::new(());

/// A clean guest with a daemon. The daemon is killed when this is dropped, and the next test
/// cleans up.
pub struct Guest {
    daemon: Daemon,
    _alone: MutexGuard<'static, ()>,
}

/// A guest with all modules loaded.
pub fn guest() -> Guest {
    guest_with(&[])
}

/// The same, the daemon with these options.
pub fn guest_with(options: &[&str]) -> Guest {
    let alone = begin();
    clean::load();
    Guest { daemon: Daemon::start(options), _alone: alone }
}

/// A guest where `prepare` runs between the unloading of all modules and the
/// start of the daemon.
pub fn guest_after(options: &[&str], prepare: impl FnOnce()) -> Guest {
    let alone = begin();
    clean::unload();
    prepare();
    Guest { daemon: Daemon::start(options), _alone: alone }
}

/// The guest alone, without a daemon.
pub fn begin() -> MutexGuard<'static, ()> {
    let mode = std::env::var(GUEST).unwrap_or_default();
    assert!(!mode.is_empty(), "these tests change the kernel they run on: run them with tests/guest/boot");
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    clean::clean();
    let _ = fs::remove_file(LOG);
    alone
}

impl Guest {
    /// Kills the daemon with SIGKILL, and starts it again.
    pub fn kill_and_restart(&mut self) {
        self.daemon.kill();
        assert_eq!(self.start_again(), None, "{}", log());
    }

    /// Puts a second daemon in the place of the first, and gives the first one back.
    pub fn start_another(&mut self) -> Daemon {
        let another = Daemon::start_on(self.daemon.client.port, &self.daemon.options);
        std::mem::replace(&mut self.daemon, another)
    }

    /// A request that must be refused with this status and with a message that has these
    /// words, and that must change nothing.
    pub fn refuses(&self, path: &str, status: u16, words: &[&str]) {
        self.refuses_each(&[path], status, words);
    }

    /// The same for each of these requests.
    pub fn refuses_each(&self, paths: &[impl AsRef<str>], status: u16, words: &[&str]) {
        let before = State::now();
        for path in paths {
            self.post(path.as_ref()).failure(status, words);
        }
        let paths: Vec<_> = paths.iter().map(AsRef::as_ref).collect();
        before.assert_unchanged(&paths.join(", "));
    }

    /// Starts the daemon again so that its calls can be made to fail.
    pub fn start_with_faults(&mut self) {
        self.daemon.faults = Some(Faults::default());
        self.kill_and_restart();
    }

    /// Starts a killed daemon again. Gives its exit status if it ends instead of serving.
    pub fn start_again(&mut self) -> Option<ExitStatus> {
        let Daemon { client, options, faults, .. } = &self.daemon;
        self.daemon = Daemon::spawn(client.port, options, faults.as_ref());
        self.daemon.answers_or_ends()
    }

    /// What makes the daemon's calls fail.
    pub fn faults(&self) -> &Faults {
        self.daemon.faults.as_ref().expect("a daemon that was started with faults")
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

impl Deref for Guest {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.daemon.client
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the daemon's log:\n{}", log());
        }
        // The next test cleans up, so that nothing needs to be asserted here.
        self.daemon.kill();
    }
}

/// A running daemon.
pub struct Daemon {
    child: Child,
    client: Client,
    options: Vec<String>,
    faults: Option<Faults>,
}

impl Daemon {
    pub fn start(options: &[&str]) -> Daemon {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        Daemon::start_on(free_port(), &options)
    }

    fn start_on(port: u16, options: &[String]) -> Daemon {
        let mut daemon = Daemon::spawn(port, options, None);
        assert_eq!(daemon.answers_or_ends(), None, "the daemon ended: {}", log());
        daemon
    }

    fn spawn(port: u16, options: &[String], faults: Option<&Faults>) -> Daemon {
        let log = File::options().create(true).append(true).open(LOG).expect("the daemon's log");
        let program = std::env::var(DAEMON).expect(DAEMON);
        let mut command = Command::new(&program);
        command
            .args(["-l", "127.0.0.1", "-p", &port.to_string()])
            .args(options)
            .stdin(Stdio::null())
            .stderr(log);
        let child = match faults {
            Some(faults) => faults.spawn(&mut command),
            None => command.spawn(),
        };
        let child = child.unwrap_or_else(|error| panic!("{program}: {error}"));
        let faults = faults.cloned();
        Daemon { child, client: Client { port }, options: options.to_vec(), faults }
    }

    fn answers_or_ends(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + kernel::PATIENCE;
        while self.client.try_request("GET", "/v1/checkServiceStatus").is_err() {
            let ended = self.child.try_wait().expect("the daemon's state");
            if ended.is_some() {
                return ended;
            }
            assert!(Instant::now() < deadline, "the daemon does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(2)); // short, as one test measures the start
        }
        None
    }

    /// Starts a killed daemon again with other options.
    pub fn restart_with(&mut self, options: &[&str]) -> Client {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        *self = Daemon::start_on(self.client.port, &options);
        self.client
    }

    pub fn client(&self) -> Client {
        self.client
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL while every thread is between two system calls. Linux 6.1 crashes if a process is
    /// killed while it loads a table of dm-cache (`cache_create` destroys a kcopyd client that
    /// it could not make).
    pub fn kill_between_calls(&mut self) {
        let pid = self.pid();
        sh(&format!("kill -STOP {pid}"));
        // "PID (NAME) STATE …"
        let is_stopped = |task: String| {
            let stat = sys(&format!("/proc/{pid}/task/{task}/stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        };
        eventually("stopped", || kernel::names(&format!("/proc/{pid}/task")).into_iter().all(is_stopped));
        self.kill();
    }

    /// Waits for the daemon's end, and gives its exit status.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("its exit status")
    }

    /// SIGKILL. A second time it does nothing.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn log() -> String {
    fs::read_to_string(LOG).unwrap_or_default()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Runs `work`. Until it is done, `others` runs again and again on this many threads.
pub fn meanwhile<T>(threads: usize, others: impl Fn() + Sync, work: impl FnOnce() -> T) -> T {
    /// Ends the others even if the work panics, since the scope waits for them.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    others();
                }
            });
        }
        let _done = Done(&done);
        work()
    })
}
