//! At the start: repairs what a daemon that was killed in the middle of a change left.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use log::warn;

use super::background::spawn;
use crate::kernel::Root;
use crate::kernel::lock::InstanceLock;
use crate::storage::Storage;

/// How long the start waits for the repair.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the lock of a running daemon. Without the lock the daemon runs as well, but repairs
/// nothing.
pub(super) fn take_lock(root: &Root) -> Option<Arc<InstanceLock>> {
    match InstanceLock::take(root) {
        Ok(lock) => Some(Arc::new(lock)),
        Err(error) => {
            warn!("what an earlier run may have left is not repaired: no lock in /run/rapiddiskd: {error}");
            None
        }
    }
}

/// Repairs what an earlier daemon left. The repair runs in its own thread, and may go on after this
/// function returns: a device that held the earlier daemon up must not hold this one up.
///
/// Beside another daemon nothing is repaired. What looks left over may be a change that the other
/// daemon has not finished.
pub(super) fn repair(storage: &Arc<Storage>, lock: &Arc<InstanceLock>) {
    if !lock.is_alone() {
        warn!("another rapiddiskd is running here: what an earlier run may have left is not repaired");
        return;
    }
    let (done, is_done) = mpsc::channel();
    let (storage, lock) = (Arc::clone(storage), Arc::clone(lock));
    let work = move || {
        for repaired in storage.recover() {
            warn!("left by an earlier run: {repaired}");
        }
        lock.share();
        drop(lock);
        let _ = done.send(());
    };
    match spawn("recover", work) {
        Ok(()) => match is_done.recv_timeout(PATIENCE) {
            Err(RecvTimeoutError::Timeout) => warn!("what an earlier run left is still being repaired"),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
        },
        Err(error) => warn!("what an earlier run left is not repaired: {error}"),
    }
}
