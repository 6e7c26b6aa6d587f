//! At the start: repairs the disks that a daemon that was killed during a change left, and what others did to them.

use std::collections::HashMap;
use std::fs::File;

use rustix::io::Errno;

use super::parts::{KIND, MOST, PART, attached, check_place, disk_named, is_named_as, linked, part, sum};
use crate::kernel::block::{self, Mode};
use crate::kernel::links::{self, Entry};
use crate::kernel::{self, Root, loops, pool};
use crate::storage::disks::drivers::link;
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::locks::Held;
use crate::storage::names::DiskName;
use crate::storage::usage;
use crate::storage::wait::retry_busy;

/// Finishes or takes back what is unfinished. Returns a line for each thing that was done or could not be done.
pub(super) fn recover<'a>(
    root: &Root,
    limit: u64,
    hold: &dyn Fn(DiskName) -> Option<Held<'a>>,
) -> Vec<String> {
    let files = match pool::lengths(root) {
        Ok(files) => files,
        Err(error) => return vec![format!("the RAM disks could not be looked for: {error}")],
    };
    let mut said = link::remove_lost(root, KIND, hold, |name, to| is_lost(root, name, to));
    if pool::is_mounted(root) == Ok(true)
        && let Err(error) = pool::mount_for(root, limit.max(sum(&files)))
    {
        said.push(format!("the tmpfs of the RAM disks keeps its size: {error}"));
    }
    let mut lost = Vec::new();
    for (file, _) in files {
        let Some(name) = disk_named(&file) else { continue };
        // A request is at work on it, or has been since the files were listed.
        let Some(held) = hold(name) else { continue };
        if pool::held(root, &file) == Ok(None) {
            continue;
        }
        match linked(root, name, &file) {
            Ok(Some(device)) => said.extend(recover_file(root, name, &file, Some(device))),
            _ => lost.push((name, file, held)),
        }
    }
    if lost.is_empty() {
        return said;
    }
    // One look at all devices serves all that their links do not lead to. No request changes these disks meanwhile.
    let devices = match attached(root) {
        Ok(devices) => devices,
        Err(error) => {
            said.push(format!("{} RAM disks could not be repaired: {error}", lost.len()));
            return said;
        }
    };
    let mut over: HashMap<_, _> = devices
        .into_iter()
        .filter_map(|(device, path)| Some((pool::name_in(root, &path)?.to_owned(), device)))
        .collect();
    for (name, file, _held) in lost {
        let device = over.remove(&file);
        said.extend(recover_file(root, name, &file, device));
    }
    said
}

/// Whether a link is left of a disk that is gone.
fn is_lost(root: &Root, name: DiskName, to: &str) -> bool {
    let is_missing = |file: &str| pool::held(root, file) == Ok(None);
    is_missing(&name.to_string()) && is_missing(&part(name)) && !may_be_disk(root, name, to)
}

/// Repairs what a file and the device over it are of. Returns what was done or could not be done.
fn recover_file(root: &Root, name: DiskName, file: &str, device: Option<String>) -> Option<String> {
    let recover = if file.ends_with(PART) { recover_part } else { recover_disk };
    match recover(root, name, device) {
        Ok(done) => done.map(|done| format!("{name}: {done}")),
        Err(error) => Some(format!("{name} could not be repaired: {error}")),
    }
}

/// Takes back a change that did not come to its end: what was half-made or half-removed goes. If
/// somebody uses the disk, or may use it, it is a disk again.
fn recover_part(root: &Root, name: DiskName, device: Option<String>) -> Result<Option<&'static str>> {
    if let Some(device) = device {
        let dev = block::dev_of(root, &device).cannot(format_args!("look at {device}"))?;
        let dev = dev.ok_or_else(|| Error::NotFound(format!("there is no {device} any more")))?;
        let claim = usage::claim_unused(root, dev, &*device, Mode::Claim);
        let is_used = match claim {
            Ok(claim) => {
                let detached = retry_busy(|| loops::detach_unused(&claim));
                match detached.and_then(|()| clear(root, &device, &claim)) {
                    Err(error) if error.is(Errno::BUSY) => true,
                    done => done.cannot(format_args!("detach {device}")).map(|()| false)?,
                }
            }
            Err(error @ Error::Kernel(..)) => return Err(error),
            Err(_) => true,
        };
        if is_used {
            pool::rename(root, &part(name), &name.to_string()).cannot("rename its file")?;
            recover_disk(root, name, Some(device))?;
            return Ok(Some("is a disk again, since somebody uses it or may use it"));
        }
    }
    link::remove(root, name, KIND)
        .and_then(|()| pool::remove(root, &part(name)))
        .cannot("remove what was left of it")?;
    Ok(Some("was half-made or half-removed, and is removed"))
}

/// Repairs a disk: it has a loop device as large as its file, which stays attached and to which
/// `/dev/rdN` leads.
pub(super) fn recover_disk(
    root: &Root,
    name: DiskName,
    device: Option<String>,
) -> Result<Option<&'static str>> {
    let (device, mut done) = repair(root, name, device)?;
    let length = pool::length(&pool::open(root, &name.to_string()).cannot("open its file")?)
        .cannot("ask for the size of its file")?;
    let look = format!("look at {device}");
    let size = block::size_of_disk(root, &device).cannot(&look)?;
    if size != Some(length) || loops::ends_early(root, &device).cannot(&look)? {
        done = Some("has the size of its file again");
        block::open(root, &device, Mode::Read)
            .and_then(|disk| loops::limit(&disk, 0).and_then(|()| loops::follow_size(&disk)))
            .cannot("give it the size of its file")?;
    }
    Ok(done)
}

/// Gives a disk those of its parts again that others took away. Gives its loop device, and says what was done.
pub(super) fn repair(
    root: &Root,
    name: DiskName,
    device: Option<String>,
) -> Result<(String, Option<&'static str>)> {
    let mut done = None;
    let device = match device {
        Some(device) => device,
        None => {
            done = Some("had lost its loop device, and has one again");
            let file = pool::open(root, &name.to_string()).cannot("open its file")?;
            loops::attach(root, &file, name.0, MOST).cannot("attach a loop device to its file")?.0
        }
    };
    if loops::detaches_itself(root, &device).cannot(format_args!("look at {device}"))? {
        done = Some("stays attached when it is closed");
        block::open(root, &device, Mode::Read)
            .and_then(|disk| loops::stay(&disk))
            .cannot("keep it attached")?;
    }
    let entry = links::look(&link::node(root, name)).cannot(format_args!("look at /dev/{name}"))?;
    if entry != Entry::Link(device.clone()) {
        done = Some("had lost its link in /dev, and has it again");
        check_place(root, name)?;
        link::make(root, name, KIND, &device).cannot(format_args!("make /dev/{name}"))?;
    }
    Ok((device, done))
}

/// Takes from a detached device what it would hand on to whoever gets it next.
pub(super) fn clear(root: &Root, device: &str, disk: &File) -> kernel::Result<()> {
    block::set_read_only(disk, false).and_then(|()| block::forget_partitions(root, device, disk))
}

/// Whether the device is over a file that could be this disk's, wherever the file is. A device that cannot be
/// looked at may be.
fn may_be_disk(root: &Root, name: DiskName, device: &str) -> bool {
    loops::backing(root, device).map_or(true, |path| path.is_some_and(|path| is_named_as(name, &path)))
}
