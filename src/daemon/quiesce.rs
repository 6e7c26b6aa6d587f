//! `--quiesce`: at the end of the machine, ends the exports and writes to the disks what only
//! memory holds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::Error;
use crate::kernel::{Root, child};
use crate::logger;
use crate::storage::{self, Machine, MemoryLimit, Storage};

/// How long to wait without any progress for a device that may never answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The exit status when a device did not answer in time.
const HANGS: u8 = 3;

/// Ends the exports and removes the writeback caches. Each step is reported on stderr.
///
/// # Errors
/// Something could not be done, or was not done in time.
pub fn quiesce() -> Result<(), Error> {
    let all_done = AtomicBool::new(true);
    let tell = |outcome: storage::Result<String>| match outcome {
        Ok(done) => logger::say(&done),
        Err(error) => {
            all_done.store(false, Ordering::Relaxed);
            logger::say(&format!("not done: {error}"));
        }
    };
    // The limit and the drivers matter only to new disks and caches, and none is made here.
    let machine = Machine::new(Root::new("/"), MemoryLimit::Percent(100));
    let storage = Storage::new(machine, None, None);
    let work = || {
        storage.quiesce().run(tell);
        all_done.load(Ordering::Relaxed)
    };
    // In a child process: a thread that waits for a dead device in the kernel would keep this
    // process from ending.
    match child::run(PATIENCE, || storage.caches.writeback_state(), work) {
        Ok(Some(true)) => Ok(()),
        Ok(Some(false)) => Err(Error::new("not everything could be quiesced")),
        Ok(None) => Err(Error::with_status(
            HANGS,
            "not everything could be quiesced in time; devices that do not answer are left as they are",
        )),
        Err(error) => Err(Error::new(format!("cannot quiesce: {error}"))),
    }
}
