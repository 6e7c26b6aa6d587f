//! The daemon's life: start-up order, signals, shutdown.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use log::{LevelFilter, info, warn};

use crate::api::Api;
use crate::args::Config;
use crate::http::{Access, Server, Wake};
use crate::kernel::lock::InstanceLock;
use crate::kernel::signal::{self, Wanted};
use crate::kernel::{Root, child, privileges};
use crate::logger::{self, Logger};
use crate::notify::{Manager, Probe};
use crate::storage::{self, Machine, MemoryLimit, Storage};

/// How long the service waits for the repair of what an earlier daemon left.
const RECOVER_PATIENCE: Duration = Duration::from_secs(10);

/// The threads that watch do little on their stacks.
const WATCH_STACK: usize = 256 << 10;

/// Repairs what an earlier daemon left, for as long as that may take: a device that held
/// that one up must not hold up this one. Beside another daemon nothing is repaired: what
/// looks left may be what that one is in the middle of.
fn recover(storage: &Arc<Storage>, presence: &Arc<InstanceLock>) {
    if !presence.is_alone() {
        warn!("another rapiddiskd is running here: what an earlier run may have left is not repaired");
        return;
    }
    let (done, is_done) = mpsc::channel();
    let (broken, alone) = (Arc::clone(storage), Arc::clone(presence));
    let repair = move || {
        for repaired in broken.recover() {
            warn!("left by an earlier run: {repaired}");
        }
        alone.share();
        drop(alone);
        let _ = done.send(());
    };
    match spawn("recover", repair) {
        Ok(()) => match is_done.recv_timeout(RECOVER_PATIENCE) {
            Err(RecvTimeoutError::Timeout) => warn!("what an earlier run left is still being repaired"),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
        },
        Err(error) => warn!("what an earlier run left is not repaired: {error}"),
    }
}

/// Starts a thread that nobody waits for.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).stack_size(WATCH_STACK).spawn(run).map(drop)
}

/// Why the daemon ended other than as told.
#[derive(Debug)]
pub struct Error {
    message: String,
    /// The exit status that says so.
    pub status: u8,
}

/// The exit status of `--quiesce` where a device did not answer in time.
const HANGS: u8 = 3;

impl Error {
    fn new(message: impl Into<String>) -> Error {
        Error { message: message.into(), status: 1 }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// How long the end of the machine waits for devices that may never answer, while no
/// other's data gets on either.
const QUIESCE_PATIENCE: Duration = Duration::from_secs(30);

/// Ends the exports and removes the writeback caches. What could not be done is told
/// on stderr, and makes an error.
pub fn quiesce() -> Result<(), Error> {
    let all_done = AtomicBool::new(true);
    let tell = |outcome: storage::Result<String>| match outcome {
        Ok(done) => logger::say(&done),
        Err(error) => {
            all_done.store(false, Ordering::Relaxed);
            logger::say(&format!("not done: {error}"));
        }
    };
    // Neither the limit nor the drivers matter to what is there already.
    let storage = Storage::new(Machine::new(Root::new("/"), MemoryLimit::Percent(100)), None, None);
    let work = || {
        storage.quiesce().run(tell);
        all_done.load(Ordering::Relaxed)
    };
    match child::run(QUIESCE_PATIENCE, || storage.caches.writeback_state(), work) {
        Ok(Some(true)) => Ok(()),
        Ok(Some(false)) => Err(Error::new("not everything could be quiesced")),
        Ok(None) => Err(Error {
            message: "not everything could be quiesced in time; the rest is left to itself".into(),
            status: HANGS,
        }),
        Err(error) => Err(Error::new(format!("cannot quiesce: {error}"))),
    }
}

/// Serves until SIGTERM or SIGINT.
pub fn run(config: &Config) -> Result<(), Error> {
    let level = match config.verbosity {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let logger = Logger::install(level).map_err(|error| Error::new(format!("cannot log: {error}")))?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Error::new(format!("{what}: {error}"))
    };
    let plain = |error: io::Error| Error::new(error.to_string());
    let manager = Arc::new(Manager::of_environment());
    let mut access = Access::new(config.policy.clone()).map_err(plain)?;
    let own_token = access.own_token().map_err(failed("cannot make a token"))?;
    let server = Server::bind(&config.listen, config.limits.clone(), access).map_err(plain)?;
    // The ports are open, no thread but this one runs yet.
    privileges::restrict().map_err(failed("cannot drop privileges"))?;
    // From here on every thread has no more rights than it needs.
    logger.start().map_err(failed("cannot start the log's thread"))?;
    let root = Root::new("/");
    // Until the end of this function: a process that a device holds may go on for long after.
    let presence = InstanceLock::take(&root).map(Arc::new);
    let storage = Arc::new(Storage::new(
        Machine::new(root, config.memory_limit),
        config.ram_driver,
        config.cache_driver,
    ));
    match &presence {
        Ok(presence) => recover(&storage, presence),
        Err(error) => {
            warn!("what an earlier run may have left is not repaired: no lock in /run/rapiddiskd: {error}")
        }
    }
    storage.watch.refresh_health();
    let watched = Arc::clone(&storage);
    if let Err(error) = spawn("watch", move || watched.watch.keep_health_fresh()) {
        warn!("the status will not change: {error}");
    }
    // Not before: what was left may take the kernel long to repair, and until then a signal ends
    // the process at once. The next start goes on with the rest.
    let signals = signal::install().map_err(failed("cannot catch signals"))?;
    for address in server.local_addrs() {
        info!("listening on {address}");
    }
    manager.tell("READY=1");
    if let (Some(interval), Some(place)) = (manager.watchdog(), server.places().first()) {
        // Not the status, which no worker has to answer.
        let probe = Probe::new(place, "/v1/listAllResources", &own_token);
        let watched = Arc::clone(&manager);
        spawn("watchdog", move || watched.watch(interval, &probe))
            .map_err(failed("cannot start the watchdog"))?;
    }
    server
        .run(Arc::new(Api::new(storage)), signals.as_fd(), &mut || match signals.take() {
            Wanted::Stop => {
                manager.tell("STOPPING=1");
                Wake::Stop
            }
            Wanted::Reload => Wake::Reload,
            Wanted::Nothing => Wake::Continue,
        })
        .map_err(failed("the server failed"))?;
    info!("stopped");
    Ok(())
}
