//! What the process gives up once it has opened its ports.

use std::fs;
use std::io;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

use super::{Error, Result, Root};

/// The capabilities that the kernel calls need, of all that root has:
///
/// * `CAP_SYS_ADMIN`: every device-mapper ioctl, `BLKROSET`, loop devices and the
///   mount of the tmpfs behind them;
/// * `CAP_SYS_PTRACE`: to name a user among the processes with more capabilities,
///   which are all of root's once the others are dropped;
/// * `CAP_DAC_READ_SEARCH`: to name one among other users' processes, by `/proc/PID/fd`;
/// * `CAP_MKNOD`: to open a RAM disk whose node in `/dev` is gone;
/// * `CAP_FOWNER`: to learn by mincore(2) who has a device open whose node is not root's;
/// * `CAP_NET_BIND_SERVICE`: an NVMe port with a service id below 1024 is opened by
///   the kernel with the rights of whoever links the first target to it.
///
/// What else the daemon touches (`/sys`, `/dev`, configfs) belongs to root, whose
/// files need none.
pub const NEEDED: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// How ready the kernel is to kill this process when memory runs out: hardly (-1000 is never, 0 is usual).
const OOM_SCORE_ADJUSTMENT: &str = "-900";

/// Asks the kernel to kill others rather than this process when memory runs out
/// (`/proc/self/oom_score_adj`, proc(5)). It takes `CAP_SYS_RESOURCE`: call this before [`restrict`].
pub fn stay_when_memory_runs_out(root: &Root) -> Result<()> {
    let path = root.path("proc/self/oom_score_adj");
    fs::write(&path, OOM_SCORE_ADJUSTMENT)
        .map_err(|error| Error::new(format!("write {}", path.display()), &error))
}

/// Drops every capability that is not needed, for the calling thread and those that it starts, for good.
/// Files made from here on can be read by their owner alone. Nothing of the process's memory, which holds
/// tokens, gets into a core dump or can be read through `/proc` without `CAP_SYS_PTRACE`.
///
/// # Errors
/// The kernel refused one of the steps.
pub fn restrict() -> io::Result<()> {
    umask(Mode::RWXG | Mode::RWXO);
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    set_no_new_privs(true)?;
    // Where some of them are missing, the others are kept.
    let kept = capabilities(None)?.permitted & NEEDED;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}
