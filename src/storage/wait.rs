//! Waiting for what happens by itself in a moment: udev's rules look into a device that has just
//! changed, the kernel makes or removes a node.

use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::kernel;

/// How long udev's rules may look into a device that has just changed.
pub const PROBING: Duration = Duration::from_secs(1);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks again until `done` says yes or `patience` is over. Returns whether it said yes.
pub fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(PAUSE);
    }
}

/// Tries again while the kernel says EBUSY, for as long as udev's rules may be looking.
pub fn retry_busy<T>(mut attempt: impl FnMut() -> kernel::Result<T>) -> kernel::Result<T> {
    let deadline = Instant::now() + PROBING;
    loop {
        match attempt() {
            Err(error) if error.is(Errno::BUSY) && Instant::now() < deadline => thread::sleep(PAUSE),
            settled => return settled,
        }
    }
}
