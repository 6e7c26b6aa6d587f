//! The nodes of caches in `/dev/mapper`: udev's affair where there is one, ours
//! where there is none.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use super::{CacheName, Error, Result, wait_until};
use crate::kernel::block::{self, Dev};
use crate::kernel::{self, Root, dm};

/// How long udev may take before we do its work.
const UDEV_PATIENCE: Duration = Duration::from_secs(3);

fn path(root: &Root, name: &CacheName) -> PathBuf {
    dm::node(root, name.as_dm())
}

/// Whether `/dev/mapper/NAME` leads to the device.
pub fn is_there(root: &Root, name: &CacheName, dev: Dev) -> bool {
    block::dev_of_node(&path(root, name)) == Some(dev)
}

/// The caches that have a link in `/dev/mapper`, whether or not they are mapped.
pub fn all(root: &Root) -> Vec<CacheName> {
    let names = dm::nodes(root).unwrap_or_default();
    names.iter().filter_map(|name| CacheName::parse(name)).collect()
}

/// Refuses a name whose place in `/dev/mapper` is taken by something that is not
/// ours to remove. Asked first: a cache cannot be unmade without a trace, since a
/// writeback target writes to the RAM disk as soon as it is loaded.
pub fn check_place(root: &Root, name: &CacheName) -> Result<()> {
    let path = path(root, name);
    match fs::symlink_metadata(&path) {
        Ok(node) if !node.is_symlink() => {
            Err(Error::Conflict(format!("{} is there already and no link; remove it first", path.display())))
        }
        _ => Ok(()),
    }
}

/// Sees to it that `/dev/mapper/NAME` leads to the device.
pub fn make(root: &Root, name: &CacheName, dev: Dev) -> Result<()> {
    if dm::has_udev(root) && wait_until(UDEV_PATIENCE, || is_there(root, name, dev)) {
        return Ok(());
    }
    // A link that an earlier mapping left behind leads nowhere, or elsewhere.
    remove_link(root, name)?;
    let path = path(root, name);
    symlink(format!("../dm-{}", dev.minor), &path).map_err(|error| {
        failed(name, "make", kernel::Error::new(format!("symlink {}", path.display()), &error))
    })?;
    if is_there(root, name, dev) {
        return Ok(());
    }
    remove_link(root, name)?;
    Err(Error::Unavailable(format!(
        "the kernel made {name} but no /dev/dm-{}; is devtmpfs mounted on /dev?",
        dev.minor
    )))
}

/// Sees to it that `/dev/mapper/NAME` is gone.
pub fn remove(root: &Root, name: &CacheName) -> Result<()> {
    if dm::has_udev(root) {
        wait_until(UDEV_PATIENCE, || fs::symlink_metadata(path(root, name)).is_err());
    }
    remove_link(root, name)
}

/// Removes the node if it is a link; what else may be there is not ours.
fn remove_link(root: &Root, name: &CacheName) -> Result<()> {
    let path = path(root, name);
    let is_link = fs::symlink_metadata(&path).is_ok_and(|node| node.is_symlink());
    match if is_link { fs::remove_file(&path) } else { Ok(()) } {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(name, "remove", kernel::Error::new(format!("unlink {}", path.display()), &error)))
        }
        _ => Ok(()),
    }
}

fn failed(name: &CacheName, verb: &str, error: kernel::Error) -> Error {
    Error::Kernel(format!("cannot {verb} the node of {name}"), error)
}
