//! The daemon's life: start-up order, signals, shutdown.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use log::{LevelFilter, info, warn};

use crate::api::Api;
use crate::args::Config;
use crate::http::{Access, Server, Wake};
use crate::kernel::signal::{self, Wanted};
use crate::kernel::{Root, process};
use crate::logger::Logger;
use crate::storage::Storage;

/// The thread that looks at the kernel's memory does little on its stack.
const WATCH_STACK: usize = 256 << 10;

/// Why the daemon ended other than as told.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Serves until SIGTERM or SIGINT.
pub fn run(config: &Config) -> Result<(), Error> {
    let level = match config.verbosity {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let logger = Logger::install(level).map_err(|error| Error(format!("cannot log: {error}")))?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Error(format!("{what}: {error}"))
    };
    let plain = |error: io::Error| Error(error.to_string());
    let access = Access::new(config.policy.clone()).map_err(plain)?;
    let server = Server::bind(&config.listen, config.limits.clone(), access).map_err(plain)?;
    // The ports are open, no thread but this one runs yet.
    process::restrict().map_err(failed("cannot drop privileges"))?;
    // From here on every thread has no more rights than it needs.
    logger.start().map_err(failed("cannot start the log's thread"))?;
    let root = Root::new("/");
    let storage = Arc::new(Storage::new(root, config.memory_limit, config.ram_driver, config.cache_driver));
    for repaired in storage.recover() {
        warn!("left by an earlier run: {repaired}");
    }
    storage.look();
    let watched = Arc::clone(&storage);
    let watch = thread::Builder::new().name("watch".into()).stack_size(WATCH_STACK);
    if let Err(error) = watch.spawn(move || watched.watch()) {
        warn!("the status will not change: {error}");
    }
    // Not before: what was left may take the kernel long to repair, and until then a signal ends
    // the process at once. The next start goes on with the rest.
    let signals = signal::install().map_err(failed("cannot catch signals"))?;
    for address in server.local_addrs() {
        info!("listening on {address}");
    }
    server
        .run(Arc::new(Api::new(storage)), signals.as_fd(), &mut || match signals.take() {
            Wanted::Stop => Wake::Stop,
            Wanted::Reload => Wake::Reload,
            Wanted::Nothing => Wake::Continue,
        })
        .map_err(failed("the server failed"))?;
    info!("stopped");
    Ok(())
}
