//! The machine's memory and name, what the process gives up once it has opened its
//! ports, and whether it is the only one of its kind.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, WaitOptions, set_dumpable_behavior, setrlimit, umask, waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdout};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

use super::Root;

/// Where every daemon of this machine holds a lock. The file has no content.
const LOCK: &str = "run/rapiddiskd/lock";

/// Memory of the machine, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// `MemTotal` of /proc/meminfo.
    pub total: u64,
    /// `MemFree` of /proc/meminfo.
    pub free: u64,
}

/// Asks sysinfo(2), which has the same two numbers as /proc/meminfo without the
/// forty others that take time to make.
pub fn memory() -> Memory {
    let info = rustix::system::sysinfo();
    let bytes = |units: u64| units.saturating_mul(u64::from(info.mem_unit));
    Memory { total: bytes(info.totalram as u64), free: bytes(info.freeram as u64) }
}

/// The machine's host name (uname(2)).
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The capabilities that the kernel calls need, of all that root has:
///
/// * `CAP_SYS_ADMIN`: every device-mapper ioctl, `BLKROSET`, loop devices and the
///   mount of the tmpfs behind them;
/// * `CAP_SYS_PTRACE`: to see what processes with more capabilities have open,
///   which are all of root's once the others are dropped;
/// * `CAP_DAC_READ_SEARCH`: to list `/proc/PID/fd` of other users' processes;
/// * `CAP_NET_BIND_SERVICE`: an NVMe port with a service id below 1024 is opened by
///   the kernel with the rights of whoever links the first target to it.
///
/// What else the daemon touches (`/sys`, `/dev`, configfs) belongs to root, whose
/// files need none.
pub const NEEDED: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// Drops what is not needed, for the calling thread and those it starts, for
/// good. Files made from here on are the owner's alone; nothing of the process's
/// memory, tokens included, gets into a core dump or can be read through `/proc`
/// without `CAP_SYS_PTRACE`.
pub fn restrict() -> io::Result<()> {
    umask(Mode::RWXG | Mode::RWXO);
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    set_no_new_privs(true)?;
    // Somebody who is not root, or lacks one of them, keeps what there is.
    let kept = capabilities(None)?.permitted & NEEDED;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}

/// The lock of a daemon that serves (flock(2)). It goes with this value, or with the
/// process, however that ends.
#[derive(Debug)]
pub struct Presence {
    lock: File,
    alone: bool,
}

impl Presence {
    /// Takes the lock for this process alone, or beside others that have it.
    pub fn begin(root: &Root) -> io::Result<Presence> {
        let path = root.path(LOCK);
        DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap_or(&path))?;
        let lock = File::options().append(true).create(true).mode(0o600).open(path)?;
        let alone = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        let presence = Presence { lock, alone };
        if !alone {
            presence.share();
        }
        Ok(presence)
    }

    /// Whether no other process had the lock.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// From here on others may serve beside. One that finds another alone stays without
    /// the lock, which only the repair at somebody's start asks for.
    pub fn share(&self) {
        let _ = flock(&self.lock, FlockOperation::NonBlockingLockShared);
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_that_of_meminfo() {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
        let kib: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        let memory = memory();
        assert_eq!(memory.total, kib * 1024);
        assert!((1..memory.total).contains(&memory.free));
    }
}
