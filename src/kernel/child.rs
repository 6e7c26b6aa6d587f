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

/// How often it is looked whether work gets on.
const PULSE: Duration = Duration::from_secs(1);

/// Runs `work` in a process of its own, for as long as it gets on: a thread that a
/// device holds in the kernel keeps its whole process from ending, and whoever waits
/// for that, or for the end of what it prints; so that goes through this one, to
/// stderr. Work that prints gets on, and work that changes what `pulse` gives. Gives
/// what `work` does, or `None` where it did neither for as long as `patience`; it goes
/// on. Call it while there is one thread: the others would not be there in the new one.
pub fn aside<P: PartialEq>(
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
            // Where nobody takes it there is nobody to tell.
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
