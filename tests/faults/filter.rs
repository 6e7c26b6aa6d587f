//! The kernel's side of the injection: a seccomp filter that hands the system calls of a program to
//! its test before the kernel carries them out (seccomp_unotify(2)).
//!
//! The argument of a call that decides whether it may fail is looked at in `is_spared` of the module above.

use std::ffi::c_long;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// The calls that are not listened for. All others are, so that one which the program did not make before is
/// made to fail from its first day on.
const SPARED: &[c_long] = &[
    // These give something back, whatever they answer.
    libc::SYS_close,
    libc::SYS_munmap,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // A program that gets no memory for itself ends, and the next one repairs what it left.
    libc::SYS_brk,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // They cannot fail.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_umask,
    libc::SYS_clock_gettime,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_arch_prctl,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    // They go to other programs and threads, or wait for them. The first starts the program itself.
    libc::SYS_execve,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_wait4,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
];

/// The names of calls. One that is not here is shown by its number.
pub const NAMES: &[(c_long, &str)] = &[
    (libc::SYS_openat, "openat"),
    (libc::SYS_open, "open"),
    (libc::SYS_read, "read"),
    (libc::SYS_write, "write"),
    (libc::SYS_pread64, "pread64"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_lseek, "lseek"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_fcntl, "fcntl"),
    (libc::SYS_flock, "flock"),
    (libc::SYS_fadvise64, "fadvise64"),
    (libc::SYS_splice, "splice"),
    (libc::SYS_pipe2, "pipe2"),
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_mincore, "mincore"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_mkdir, "mkdir"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_rmdir, "rmdir"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_symlink, "symlink"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_rename, "rename"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_mknod, "mknod"),
    (libc::SYS_mknodat, "mknodat"),
    (libc::SYS_chmod, "chmod"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_fchmodat, "fchmodat"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_statfs, "statfs"),
    (libc::SYS_fstatfs, "fstatfs"),
    (libc::SYS_stat, "stat"),
    (libc::SYS_lstat, "lstat"),
    (libc::SYS_fstat, "fstat"),
    (libc::SYS_newfstatat, "newfstatat"),
    (libc::SYS_statx, "statx"),
    (libc::SYS_access, "access"),
    (libc::SYS_readlink, "readlink"),
    (libc::SYS_readlinkat, "readlinkat"),
    (libc::SYS_getdents64, "getdents64"),
    (libc::SYS_sync, "sync"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_prctl, "prctl"),
    (libc::SYS_prlimit64, "prlimit64"),
    (libc::SYS_capget, "capget"),
    (libc::SYS_capset, "capset"),
    (libc::SYS_eventfd2, "eventfd2"),
    (libc::SYS_epoll_create1, "epoll_create1"),
    (libc::SYS_socket, "socket"),
    (libc::SYS_bind, "bind"),
    (libc::SYS_listen, "listen"),
];

/// A call that waits for its answer: `struct seccomp_notif`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Notice {
    id: u64,
    /// The thread that makes it.
    pub thread: u32,
    flags: u32,
    /// Its number.
    pub call: i32,
    arch: u32,
    instruction: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const _: () = assert!(size_of::<Notice>() == 80 && size_of::<Answer>() == 24);

const RECEIVE: Opcode = opcode::read_write::<Notice>(b'!', 0);
const SEND: Opcode = opcode::read_write::<Answer>(b'!', 1);
const CONTINUE: u32 = 1;

/// Where the calls of a program arrive.
pub struct Listener(OwnedFd);

/// Starts a program under the filter. `listen` gets the listener in a thread of its own, as the program
/// makes its first calls before it has begun.
pub fn spawn(command: &mut Command, listen: impl FnOnce(Listener) + Send + 'static) -> io::Result<Child> {
    let (here, there) = UnixStream::pair()?;
    let program = program();
    // SAFETY: between fork and exec the closure makes three system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
            let listener = libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            );
            if listener < 0 {
                return Err(io::Error::last_os_error());
            }
            hand_over(&there, OwnedFd::from_raw_fd(listener as i32).as_fd())
        });
    }
    std::thread::spawn(move || {
        if let Some(listener) = receive(&here) {
            listen(Listener(listener));
        }
    });
    command.spawn()
}

/// Lets a call through if it is spared, and has the others wait for an answer.
fn program() -> Vec<libc::sock_filter> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut steps = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for (i, number) in SPARED.iter().enumerate() {
        steps.push(step(jump, (SPARED.len() - i) as u8, 0, *number as u32));
    }
    steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    steps
}

fn hand_over(to: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(to, &[IoSlice::new(b"x")], &mut control, SendFlags::empty())?;
    Ok(())
}

/// The listener of the program; `None` if that could not be started.
fn receive(from: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let message = control.drain().next()?;
    let RecvAncillaryMessage::ScmRights(mut descriptors) = message else { return None };
    descriptors.next()
}

impl Listener {
    /// Waits for the next call; `None` once the program has ended.
    pub fn next(&self) -> Option<Notice> {
        loop {
            let mut events = [PollFd::new(&self.0, PollFlags::IN)];
            let polled = poll(&mut events, None);
            if polled.is_ok() && !events[0].revents().contains(PollFlags::IN) {
                return None;
            }
            let mut notice = Notice::default();
            // SAFETY: the kernel reads and writes one struct seccomp_notif there.
            if unsafe { ioctl(&self.0, Updater::<RECEIVE, Notice>::new(&mut notice)) }.is_ok() {
                return Some(notice);
            }
        }
    }

    /// Has the kernel carry the call out.
    pub fn let_through(&self, notice: &Notice) {
        self.answer(notice, 0, CONTINUE);
    }

    /// Has the call fail with this error.
    pub fn fail(&self, notice: &Notice, errno: i32) {
        self.answer(notice, -errno, 0);
    }

    /// Nobody waits for the answer to a thread that was killed.
    fn answer(&self, notice: &Notice, error: i32, flags: u32) {
        let mut answer = Answer { id: notice.id, value: 0, error, flags };
        // SAFETY: the kernel reads one struct seccomp_notif_resp there.
        let _ = unsafe { ioctl(&self.0, Updater::<SEND, Answer>::new(&mut answer)) };
    }
}
