//! Whether this daemon is the only one on the machine.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use rustix::fs::{FlockOperation, flock};

use super::Root;

/// Where every daemon of this machine holds a lock. The file has no content.
const LOCK: &str = "run/rapiddiskd/lock";

/// The lock of a daemon that serves (flock(2)). It goes with this value, or with the
/// process, however that ends.
#[derive(Debug)]
pub struct InstanceLock {
    lock: File,
    alone: bool,
}

impl InstanceLock {
    /// Takes the lock for this process alone, or beside others that have it.
    pub fn begin(root: &Root) -> io::Result<InstanceLock> {
        let path = root.path(LOCK);
        DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap_or(&path))?;
        let lock = File::options().append(true).create(true).mode(0o600).open(path)?;
        let alone = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        let presence = InstanceLock { lock, alone };
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
