//! Whether this daemon is the only one on the machine.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use rustix::fs::{FlockOperation, flock};

use super::Root;

/// Where every daemon of this machine holds a lock. The file has no content.
const LOCK: &str = "run/rapiddiskd/lock";

/// The lock that every serving daemon holds (flock(2)). The kernel releases it when this value is dropped
/// or the process ends, however that happens.
#[derive(Debug)]
pub struct InstanceLock {
    file: File,
    alone: bool,
}

impl InstanceLock {
    /// Takes the lock: for this process alone if it is free, else beside the others that have it.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn take(root: &Root) -> io::Result<InstanceLock> {
        let path = root.path(LOCK);
        DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap_or(&path))?;
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        let alone = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        let lock = InstanceLock { file, alone };
        if !alone {
            lock.share();
        }
        Ok(lock)
    }

    /// Whether no other process had the lock.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Lets other daemons take the lock beside this one. Where another daemon has it alone, this one goes
    /// on without it: only the repair at a daemon's start asks for the lock.
    pub fn share(&self) {
        let _ = flock(&self.file, FlockOperation::NonBlockingLockShared);
    }
}
