//! Work in a process of its own, which may be left behind.

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdout};

unsafe extern "C" {
    /// fork(2) of the C library that the program is linked with anyway.
    safe fn fork() -> i32;
}

/// How often the parent looks whether the work gets on.
const PULSE: Duration = Duration::from_secs(1);

/// Runs `work` in a child process and waits for it as long as it gets on. Returns what `work` returned, or
/// `None` if it did not get on for `patience`; the child is left to itself then.
///
/// A thread that waits in the kernel for a device keeps its process from ending. Whoever waits for that
/// process, or for the end of its output, would wait with it. So the work has a process of its own, and
/// what it prints goes through this one to stderr.
///
/// The work gets on while it prints, or while what `pulse` returns changes.
///
/// Call this while the process has one thread: the child has none of the others.
///
/// # Errors
/// The kernel gave no pipe or no process.
pub fn run<P: PartialEq>(
    patience: Duration,
    mut pulse: impl FnMut() -> P,
    work: impl FnOnce() -> bool,
) -> io::Result<Option<bool>> {
    let mut last = pulse();
    let (mut printed, writer) = io::pipe()?;
    let child = match fork() {
        0 => {
            let redirected = dup2_stdout(&writer).and_then(|()| dup2_stderr(&writer));
            drop((printed, writer));
            std::process::exit(i32::from(redirected.is_err() || !work()))
        }
        child => Pid::from_raw(child).filter(|_| child > 0).ok_or_else(io::Error::last_os_error)?,
    };
    drop(writer);
    let mut deadline = Instant::now() + patience;
    let mut buffer = [0; 4096];
    let beat = Timespec { tv_sec: PULSE.as_secs() as i64, tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&printed, PollFlags::IN)], Some(&beat)) {
            Ok(0) => {
                let now = pulse();
                if now != last {
                    (last, deadline) = (now, Instant::now() + patience);
                } else if Instant::now() >= deadline {
                    break;
                }
                continue;
            }
            Ok(_) => deadline = Instant::now() + patience,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match printed.read(&mut buffer)? {
            0 => break,
            // If stderr is gone, nobody can be told.
            length => drop(io::stderr().write_all(&buffer[..length])),
        }
    }
    loop {
        if let Some((_, status)) = waitpid(Some(child), WaitOptions::NOHANG)? {
            return Ok(Some(status.exit_status() == Some(0)));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
