//! Signals: they wake the I/O thread through an eventfd and do nothing else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::event::{EventfdFlags, eventfd};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
/// What `signal` returns for a signal it cannot catch (`SIG_ERR`).
const FAILED: usize = usize::MAX;

static WAKE: AtomicI32 = AtomicI32::new(-1);
static STOP: AtomicBool = AtomicBool::new(false);
static RELOAD: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    /// signal(2) of the C library that std stands on.
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

/// What the signals that came since the last look ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing.
    Nothing,
    /// SIGHUP: read the tokens again.
    Reload,
    /// SIGTERM or SIGINT: end.
    Stop,
}

/// The installed handlers of SIGTERM, SIGINT and SIGHUP. std ignores SIGPIPE before main begins.
pub struct Signals {
    wake: OwnedFd,
}

/// Installs the handlers; once in a process.
pub fn install() -> io::Result<Signals> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    WAKE.store(wake.as_raw_fd(), Ordering::SeqCst);
    for number in [SIGHUP, SIGINT, SIGTERM] {
        // SAFETY: the handler has the type that signal(2) wants and only does
        // what a signal handler may: it stores to atomics and calls write(2).
        if unsafe { signal(number, handle) } == FAILED {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(Signals { wake })
}

impl Signals {
    /// What is wanted; clears what woke us.
    pub fn take(&self) -> Wanted {
        // Nothing to read is as good: the flags tell.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        if STOP.load(Ordering::SeqCst) {
            Wanted::Stop
        } else if RELOAD.swap(false, Ordering::SeqCst) {
            Wanted::Reload
        } else {
            Wanted::Nothing
        }
    }
}

impl AsFd for Signals {
    /// Readable once a signal came.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

extern "C" fn handle(number: i32) {
    if number == SIGHUP { &RELOAD } else { &STOP }.store(true, Ordering::SeqCst);
    let wake = WAKE.load(Ordering::SeqCst);
    // SAFETY: the eventfd lives as long as the process: `Signals` is dropped at
    // the very end, and a write to a closed descriptor fails without harm.
    let wake = unsafe { BorrowedFd::borrow_raw(wake) };
    // A full counter wakes as well.
    let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
}
