//! The links of caches in `/dev/mapper`. udev makes them where it runs; elsewhere they are made here.

use std::path::PathBuf;
use std::time::Duration;

use crate::kernel::block::{self, Dev};
use crate::kernel::links::{self, Entry};
use crate::kernel::{self, Root, dm};
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::names::CacheName;
use crate::storage::wait::wait_until;

/// How long udev may take before its work is done here.
const UDEV_PATIENCE: Duration = Duration::from_secs(3);

fn path(root: &Root, name: &CacheName) -> PathBuf {
    dm::node(root, name.as_dm())
}

/// Whether `/dev/mapper/NAME` leads to the device.
pub fn is_there(root: &Root, name: &CacheName, dev: Dev) -> kernel::Result<bool> {
    Ok(block::dev_of_node(&path(root, name))? == Some(dev))
}

/// Whether a cache has an entry in `/dev/mapper`, wherever it leads.
pub fn has_entry(root: &Root, name: &CacheName) -> bool {
    matches!(links::look(&path(root, name)), Ok(Entry::Link(_) | Entry::Other))
}

/// The caches that have an entry in `/dev/mapper`, mapped or not.
pub fn all(root: &Root) -> Vec<CacheName> {
    let names = dm::nodes(root).unwrap_or_default();
    names.iter().filter_map(|name| CacheName::parse(name)).collect()
}

/// Refuses a name whose place in `/dev/mapper` is taken by something else than a link. This is asked
/// before the cache is made: making it cannot be undone without a trace, since a writeback target
/// writes to the RAM disk as soon as its table is loaded.
pub fn check_place(root: &Root, name: &CacheName) -> Result<()> {
    let path = path(root, name);
    match links::look(&path).cannot(format_args!("look at {}", path.display()))? {
        Entry::Other => {
            Err(Error::Conflict(format!("{} is there already and no link; remove it first", path.display())))
        }
        Entry::Missing | Entry::Link(_) => Ok(()),
    }
}

/// Makes `/dev/mapper/NAME` lead to the device, or waits until udev has done so.
pub fn make(root: &Root, name: &CacheName, dev: Dev) -> Result<()> {
    let what = format!("make the node of {name}");
    let leads = || is_there(root, name, dev) == Ok(true);
    if dm::has_udev(root).cannot(&what)? && wait_until(UDEV_PATIENCE, leads) {
        return Ok(());
    }
    // An earlier mapping may have left a link, which leads nowhere or to something else.
    remove_link(root, name)
        .and_then(|()| links::make(&path(root, name), &format!("../dm-{}", dev.minor)))
        .cannot(&what)?;
    if is_there(root, name, dev).cannot(&what)? {
        return Ok(());
    }
    remove_link(root, name).cannot(format_args!("remove the node of {name}"))?;
    Err(Error::Unavailable(format!(
        "the kernel made {name} but no /dev/dm-{}; is devtmpfs mounted on /dev?",
        dev.minor
    )))
}

/// Removes `/dev/mapper/NAME`, after udev had time to do so.
pub fn remove(root: &Root, name: &CacheName) -> Result<()> {
    let what = format!("remove the node of {name}");
    if dm::has_udev(root).cannot(&what)? {
        wait_until(UDEV_PATIENCE, || links::look(&path(root, name)) == Ok(Entry::Missing));
    }
    remove_link(root, name).cannot(&what)
}

/// Removes the entry if it is a link. Anything else was not made here.
fn remove_link(root: &Root, name: &CacheName) -> kernel::Result<()> {
    let path = path(root, name);
    match links::look(&path)? {
        Entry::Link(_) => links::remove(&path),
        Entry::Missing | Entry::Other => Ok(()),
    }
}
