//! The daemon's life: it starts, serves until a signal ends it, and stops.
//!
//! The order of the start matters. The ports are opened first, while the process still has all of
//! root's rights. Then it drops the rights that it does not need, and only after that it starts
//! threads, which inherit what is left. What an earlier daemon left is repaired before anything is
//! served.

mod background;
mod check;
mod error;
mod notify;
mod quiesce;
mod recovery;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::{LevelFilter, debug, info, warn};

pub use check::check;
pub use error::Error;
pub use quiesce::quiesce;

use crate::api::Api;
use crate::cli::Config;
use crate::client::Client;
use crate::http::{Access, Server, Wake};
use crate::kernel::signal::{self, Signals, Wanted};
use crate::kernel::{Root, privileges};
use crate::logger::Logger;
use crate::storage::{Machine, Storage};
use background::spawn;
use notify::Manager;

/// Between two looks at what removed RAM disks left.
const TIDYING: Duration = Duration::from_secs(2);

/// How long a request of the watchdog to the daemon may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The start failed, or the server broke down.
pub fn run(config: &Config) -> Result<(), Error> {
    // The first value is dropped last: what the others say at their end still gets into the log.
    let logger = Logger::install(level(config.verbosity)).map_err(Error::of("cannot log"))?;
    let manager = Arc::new(Manager::of_environment());
    let mut access = Access::new(config.access.clone()).map_err(|faults| Error::new(faults.join("; ")))?;
    if check::nobody_may_change(&access, &config.listen) {
        warn!("{}", check::NOBODY);
    }
    let own_token = access.own_token().map_err(Error::of("cannot make a token"))?;
    let server = Server::bind(&config.listen, config.limits.clone(), access)?;

    let root = Root::new("/");
    if let Err(error) = privileges::stay_when_memory_runs_out(&root) {
        debug!("when memory runs out, the kernel may end this daemon as any other program: {error}");
    }
    // The ports are open, and no other thread runs yet.
    privileges::restrict().map_err(Error::of("cannot drop privileges"))?;
    logger.start().map_err(Error::of("cannot start the log's thread"))?;

    // Released where this function ends. The process may live on much longer, when a device holds
    // one of its threads in the kernel.
    let lock = recovery::take_lock(&root);
    let machine = Machine::new(root, config.memory_limit);
    let storage = Arc::new(Storage::new(machine, config.ram_driver, config.cache_driver));
    if let Some(lock) = &lock {
        recovery::repair(&storage, lock);
    }
    watch_health(&storage);
    keep_tidy(&storage);

    // Not earlier: until here a signal ends the process at once, even while the repair waits for
    // the kernel. The next start goes on with the repair.
    let signals = signal::install().map_err(Error::of("cannot catch signals"))?;
    for address in server.local_addrs() {
        info!("listening on {address}");
    }
    manager.tell("READY=1");
    start_watchdog(&manager, &server, &own_token).map_err(Error::of("cannot start the watchdog"))?;
    server
        .run(Arc::new(Api::new(storage)), signals.as_fd(), &mut || wake(&signals, &manager))
        .map_err(Error::of("the server failed"))?;
    info!("stopped");
    Ok(())
}

fn level(verbosity: u8) -> LevelFilter {
    match verbosity {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

/// Checks the health of the storage now, and from now on in a thread.
fn watch_health(storage: &Arc<Storage>) {
    storage.watch.refresh_health();
    let watched = Arc::clone(storage);
    if let Err(error) = spawn("watch", move || watched.watch.keep_health_fresh()) {
        warn!("the status will not change: {error}");
    }
}

/// Removes again and again, in a thread, what removed RAM disks left.
fn keep_tidy(storage: &Arc<Storage>) {
    let kept = Arc::clone(storage);
    let work = move || {
        loop {
            thread::sleep(TIDYING);
            if let Err(error) = kept.disks.tidy() {
                debug!("{error}");
            }
        }
    };
    if let Err(error) = spawn("tidy", work) {
        warn!("loop devices that are not needed any more stay: {error}");
    }
}

/// Gives the service manager the signs of life that it wants, if it wants any.
fn start_watchdog(manager: &Arc<Manager>, server: &Server, token: &str) -> std::io::Result<()> {
    let (Some(interval), Some(address)) = (manager.watchdog(), server.places().into_iter().next()) else {
        return Ok(());
    };
    let daemon = Client::new(&address, PROBE_PATIENCE).with_token(token);
    let manager = Arc::clone(manager);
    spawn("watchdog", move || manager.watch(interval, &daemon))
}

/// What the signals that came in want of the server.
fn wake(signals: &Signals, manager: &Manager) -> Wake {
    match signals.take() {
        Wanted::Stop => {
            manager.tell("STOPPING=1");
            Wake::Stop
        }
        Wanted::Reload => Wake::Reload,
        Wanted::Nothing => Wake::Continue,
    }
}
