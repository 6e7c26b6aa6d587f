//! Fault injection: one system call of the daemon fails, and what the daemon answers is compared with
//! what the kernel has. The daemon itself knows nothing of it.

mod filter;
mod run;

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use filter::{Listener, Notice};
pub use run::{Effort, Report, Setting, Snapshot, try_each_call, try_each_start};
#[allow(unused_imports, reason = "only the kernel tests run programs that end")]
pub use run::{Outcome, try_each_run};

/// What a call is made to fail with.
const ERRORS: [(i32, &str); 5] = [
    (libc::EIO, "EIO"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EBUSY, "EBUSY"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::EINTR, "EINTR"),
];

/// Makes one call of a daemon fail.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    /// The calls since the plan was made, up to the one that failed.
    calls: Vec<String>,
    has_failed: bool,
}

struct Plan {
    /// How many calls come before the one that fails.
    before: usize,
    /// Whether all later calls of its kind fail as well.
    for_good: bool,
    errno: i32,
    kind: Option<i32>,
}

impl Faults {
    /// Starts a daemon whose calls can fail.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let faults = self.clone();
        filter::spawn(command, move |listener| faults.serve(&listener))
    }

    /// From now on the call fails before which there are `before` others.
    fn plan(&self, before: usize, errno: i32, for_good: bool) {
        let plan = Plan { before, for_good, errno, kind: None };
        *self.state() = State { plan: Some(plan), ..State::default() };
    }

    /// No call fails any more. Returns the one that did.
    fn end(&self) -> Option<String> {
        let State { mut calls, has_failed, .. } = std::mem::take(&mut *self.state());
        if has_failed { calls.pop() } else { None }
    }

    /// The calls that are made while `work` runs.
    fn calls_of<T>(&self, work: impl FnOnce() -> T) -> (T, Vec<String>) {
        self.plan(usize::MAX, 0, false);
        let outcome = work();
        (outcome, std::mem::take(&mut *self.state()).calls)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, listener: &Listener) {
        while let Some(notice) = listener.next() {
            match self.errno(&notice) {
                Some(errno) => listener.fail(&notice, errno),
                None => listener.let_through(&notice),
            }
        }
    }

    /// What a call fails with, if it does.
    fn errno(&self, notice: &Notice) -> Option<i32> {
        let mut state = self.state();
        let State { plan, calls, has_failed } = &mut *state;
        let plan = plan.as_mut()?;
        if *has_failed && !plan.for_good || is_spared(notice) {
            return None;
        }
        if let Some(kind) = plan.kind {
            return (kind == notice.call).then_some(plan.errno);
        }
        // What is only counted is not described: that takes time.
        if plan.before == usize::MAX {
            calls.push(describe(notice));
            return None;
        }
        if plan.before > 0 {
            plan.before -= 1;
            return None;
        }
        calls.push(describe(notice));
        *has_failed = true;
        plan.kind = Some(notice.call);
        Some(plan.errno)
    }
}

/// Whether what a call is about keeps it from failing: it is on a socket, a pipe, an event or the log, which
/// are for other programs and threads; it is for memory of the program itself; or it cannot fail.
fn is_spared(notice: &Notice) -> bool {
    let argument = notice.arguments;
    match i64::from(notice.call) {
        libc::SYS_read | libc::SYS_write | libc::SYS_ioctl | libc::SYS_fstat => {
            argument[0] <= 2 || descriptor(notice, argument[0]).is_none_or(|file| !file.starts_with("/"))
        }
        libc::SYS_mmap => argument[3] & libc::MAP_ANONYMOUS as u64 != 0,
        libc::SYS_fcntl => argument[1] == libc::F_GETFD as u64,
        // It asks for a limit.
        libc::SYS_prlimit64 => argument[2] == 0,
        _ => false,
    }
}

fn descriptor(notice: &Notice, number: u64) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{}/fd/{}", notice.thread, number as i32)).ok()
}

/// The name of a call with the path or the open file that it is about.
fn describe(notice: &Notice) -> String {
    let number = i64::from(notice.call);
    let Some((_, name)) = filter::NAMES.iter().find(|(of, _)| *of == number) else {
        return format!("call {number}");
    };
    let file = |at: usize| descriptor(notice, notice.arguments[at]).unwrap_or_default();
    let path = |at: usize| text(notice, notice.arguments[at]);
    match *name {
        "read" | "write" | "pread64" | "pwrite64" | "lseek" | "ftruncate" | "fallocate" | "fstatfs"
        | "fstat" | "getdents64" | "fsync" | "fdatasync" | "fchmod" | "fcntl" | "flock" | "fadvise64"
        | "splice" => {
            format!("{name} {}", file(0).display())
        }
        "ioctl" => format!("ioctl {:#x} {}", notice.arguments[1], file(0).display()),
        "mmap" => format!("mmap {}", file(4).display()),
        "mount" => format!("mount {}", path(1)),
        "open" | "umount2" | "mkdir" | "rmdir" | "unlink" | "symlink" | "rename" | "mknod" | "chmod"
        | "statfs" | "stat" | "lstat" | "access" | "readlink" => format!("{name} {}", path(0)),
        _ if name.ends_with("at") || *name == "statx" => format!("{name} {}", path(1)),
        // It is about the process.
        name => name.to_owned(),
    }
}

/// The text at an address of the daemon's.
fn text(notice: &Notice, address: u64) -> String {
    let mut bytes = [0; 256];
    let memory = fs::File::open(format!("/proc/{}/mem", notice.thread));
    let length = memory.and_then(|memory| memory.read_at(&mut bytes, address)).unwrap_or(0);
    let text = bytes[..length].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
