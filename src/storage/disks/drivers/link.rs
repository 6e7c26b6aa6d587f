//! The links `/dev/rdN` of drivers whose devices have other names in the kernel. Each driver changes those
//! links alone that lead to a device of its kind: `loop` and a number, for example.

use std::path::PathBuf;

use crate::kernel::links::{self, Entry};
use crate::kernel::{self, Root, block};
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::locks::Held;
use crate::storage::names::DiskName;

/// Where the link of a disk is.
pub fn node(root: &Root, name: DiskName) -> PathBuf {
    block::node(root, &name.to_string())
}

/// Whether this is the name of a device of a kind.
pub fn is_of(kind: &str, device: &str) -> bool {
    let number = device.strip_prefix(kind).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// The device of a kind to which a link leads that is there already; `None` if nothing is there.
///
/// # Errors
/// Something else is there.
pub fn check_place(root: &Root, name: DiskName, kind: &str) -> Result<Option<String>> {
    let path = node(root, name);
    match links::look(&path).cannot(format_args!("look at {}", path.display()))? {
        Entry::Missing => Ok(None),
        Entry::Link(to) if is_of(kind, &to) => Ok(Some(to)),
        Entry::Link(_) | Entry::Other => {
            Err(Error::Conflict(format!("{} is there already; remove it first", path.display())))
        }
    }
}

/// Whether nothing is there but what may be replaced.
pub fn is_free(root: &Root, name: DiskName, kind: &str) -> Result<bool> {
    match check_place(root, name, kind) {
        Err(Error::Conflict(_)) => Ok(false),
        there => there.map(|_| true),
    }
}

/// Makes the link again if it is gone, or leads to another device of the kind.
pub fn repair(root: &Root, name: DiskName, kind: &str, device: &str) -> Result<()> {
    if check_place(root, name, kind)?.as_deref() == Some(device) {
        return Ok(());
    }
    make(root, name, kind, device).cannot(format_args!("make /dev/{name}"))
}

/// Makes the link, in the place of one that leads to another device of the kind.
pub fn make(root: &Root, name: DiskName, kind: &str, device: &str) -> kernel::Result<()> {
    remove(root, name, kind)?;
    links::make(&node(root, name), device)
}

/// Removes the link if it leads to a device of the kind.
pub fn remove(root: &Root, name: DiskName, kind: &str) -> kernel::Result<()> {
    let path = node(root, name);
    match links::look(&path)? {
        Entry::Link(to) if is_of(kind, &to) => links::remove(&path),
        _ => Ok(()),
    }
}

/// Removes the links that were left of disks that are gone. `is_lost` says so of a disk and the device to
/// which its link leads, which may be somebody else's by now. Returns a line for each.
pub fn remove_lost<'a>(
    root: &Root,
    kind: &str,
    hold: &dyn Fn(DiskName) -> Option<Held<'a>>,
    is_lost: impl Fn(DiskName, &str) -> bool,
) -> Vec<String> {
    let names = match links::names(root) {
        Ok(names) => names,
        Err(error) => return vec![format!("lost links of RAM disks could not be looked for: {error}")],
    };
    let remove = |name: DiskName| {
        let _held = hold(name)?;
        let Ok(Entry::Link(to)) = links::look(&node(root, name)) else { return None };
        if !is_of(kind, &to) || !is_lost(name, &to) {
            return None;
        }
        Some(match links::remove(&node(root, name)) {
            Ok(()) => format!("/dev/{name} led to {to}, which is no RAM disk, and is removed"),
            Err(error) => {
                format!("/dev/{name} leads to {to}, which is no RAM disk, and could not be removed: {error}")
            }
        })
    };
    names.iter().filter_map(|name| DiskName::parse(name)).filter_map(remove).collect()
}
