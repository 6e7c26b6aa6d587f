//! Threads that nobody waits for.

use std::io;
use std::thread;

/// Bytes of stack, which is plenty: these threads do little.
const STACK: usize = 256 << 10;

/// Runs `work` in a thread of this name. It ends with the process at the latest.
///
/// # Errors
/// The kernel gives no thread.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).stack_size(STACK).spawn(work).map(drop)
}
