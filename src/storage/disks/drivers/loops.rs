//! RAM disks that any kernel can serve: `rdN` is a file of that name on a private tmpfs, a loop
//! device over it, and a link `/dev/rdN` to the device.
//!
//! The name of the file says how far a disk has come. While the disk is made or removed, the file is
//! called `rdN.part`; one renaming makes it a disk, or ends it. So whatever is found as `rdN` is a
//! disk and is repaired, and whatever is found as `rdN.part` is none.

use std::fs::File;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::kernel::block::{self, Mode};
use crate::kernel::links::{self, Entry};
use crate::kernel::{self, Root, loops, pool};
use crate::storage::disks::driver::{Device, Driver, RamDisk, Shrunk};
use crate::storage::error::{Cannot, Error, Left, Result};
use crate::storage::locks::Held;
use crate::storage::names::DiskName;
use crate::storage::undo::Undo;
use crate::storage::usage;
use crate::storage::wait::retry_busy;

/// As many as the module takes.
const MOST: u32 = 1024;

/// What the name of a file ends with while the disk is being made or removed.
const PART: &str = ".part";

/// Loop devices over the private tmpfs.
pub struct Loops;

impl Driver for Loops {
    fn name(&self) -> &'static str {
        "loop"
    }

    fn is_loaded(&self, root: &Root) -> Result<bool> {
        loops::is_loaded(root).cannot("look for the module loop")
    }

    fn devices(&self, root: &Root) -> Result<Vec<(DiskName, String)>> {
        // Most hosts then need no look at each loop device.
        if !pool::is_mounted(root).cannot("list the RAM disks")? {
            return Ok(Vec::new());
        }
        let named = |(device, file): (String, String)| Some((disk_of_file(root, &file)?, device));
        Ok(attached(root)?.into_iter().filter_map(named).collect())
    }

    fn list(&self, root: &Root) -> Result<Vec<RamDisk>> {
        let look = |(name, device): (DiskName, String)| {
            let size = block::size_of_disk(root, &device)?.filter(|&size| size > 0);
            let Some(size) = size else { return Ok(None) };
            let usage = match pool::held(root, &name.to_string())? {
                Some(held) => held.min(size),
                // Without its file the disk is being removed at this moment, or somebody has unlinked
                // the file, which holds its memory all the same.
                None if is_over(root, &device, &name.to_string()) => size,
                None => return Ok(None),
            };
            let locked = block::is_disk_read_only(root, &device)?;
            Ok(Some(RamDisk { name, size, usage, locked, driver: self.name() }))
        };
        let listed = self.devices(root)?.into_iter().filter_map(|disk| look(disk).transpose());
        listed.collect::<kernel::Result<_>>().cannot("list the RAM disks")
    }

    fn name_of(&self, root: &Root, device: &str) -> Result<Option<DiskName>> {
        Ok(file_of(root, device)?.and_then(|file| disk_of_file(root, &file)))
    }

    fn owns(&self, root: &Root, device: &str) -> Result<bool> {
        Ok(file_of(root, device)?.is_some_and(|file| pool::name_in(root, &file).is_some()))
    }

    fn leftovers(&self, root: &Root) -> Result<Vec<DiskName>> {
        let name = |file: &String| DiskName::parse(file.strip_suffix(PART).unwrap_or(file));
        Ok(files(root)?.iter().filter_map(name).collect())
    }

    fn promised(&self, root: &Root) -> Result<u64> {
        let files = files(root)?;
        let is_unlinked = |(name, _): &(DiskName, String)| !files.contains(&name.to_string());
        let what = "add up the sizes of the RAM disks";
        let mut sum = pool::promised(root).cannot(what)?;
        for (_, device) in self.devices(root)?.into_iter().filter(is_unlinked) {
            sum = sum.saturating_add(block::size_of_disk(root, &device).cannot(what)?.unwrap_or(0));
        }
        Ok(sum)
    }

    fn most(&self, _root: &Root) -> Result<(u32, &'static str)> {
        Ok((MOST, "this daemon makes no more; remove one"))
    }

    fn attach(&self, root: &Root, name: DiskName, bytes: u64, limit: u64) -> Result<()> {
        loops::control(root).map_err(|error| match error.is_gone() {
            true => {
                Error::Unavailable("the kernel module loop is not loaded; load it with: modprobe loop".into())
            }
            false => Error::Kernel(format!("cannot make {name}"), error),
        })?;
        pool::mount_for(root, limit).cannot(format_args!("mount the tmpfs of {name}"))?;
        check_place(root, name)?;
        Undo::run(|undo| {
            let file =
                pool::create(root, &part(name), bytes).cannot(format_args!("make the file of {name}"))?;
            undo.push(format!("making the file of {name}"), move || {
                pool::remove(root, &part(name)).cannot(format_args!("remove the file of {name}"))
            });
            let (device, _claim) =
                loops::attach(root, &file).cannot(format_args!("attach a loop device for {name}"))?;
            let again = device.clone();
            undo.push(format!("attaching {device}"), move || {
                block::open(root, &again, Mode::Read)
                    .and_then(|disk| loops::detach(&disk))
                    .cannot(format_args!("detach {again}"))
            });
            link(root, name, &device).cannot(format_args!("make /dev/{name}"))?;
            undo.push(format!("making /dev/{name}"), move || {
                unlink(root, name).cannot(format_args!("remove /dev/{name}"))
            });
            pool::rename(root, &part(name), &name.to_string())
                .cannot(format_args!("give the file of {name} its name"))
        })
    }

    fn detach(&self, root: &Root, disk: &Device<'_>, claim: File) -> kernel::Result<Left> {
        let name = disk.name;
        match pool::rename(root, &name.to_string(), &part(name)) {
            // Somebody unlinked the file; the device goes all the same.
            Err(error) if error.is_gone() => {}
            renamed => renamed?,
        }
        if let Err(error) = retry_busy(|| loops::detach_unused(&claim)) {
            return match pool::rename(root, &part(name), &name.to_string()) {
                Err(back) if !back.is_gone() => Err(back),
                _ => Err(error),
            };
        }
        // The disk is gone, whether or not what it leaves behind can be removed. The device would stay
        // read-only for whoever gets it next.
        let mut left = Left::default();
        let writable = block::set_read_only(&claim, false);
        left.note(writable.cannot(format_args!("make {} writable for others", disk.device)));
        drop(claim);
        left.note(unlink(root, name).cannot(format_args!("remove the link /dev/{name}")));
        left.note(pool::remove(root, &part(name)).cannot(format_args!("remove the file of {name}")));
        Ok(left)
    }

    fn grow(&self, root: &Root, disk: &Device<'_>, bytes: u64, limit: u64) -> Result<()> {
        let what = format!("resize {}", disk.name);
        pool::mount_for(root, limit).cannot(&what)?;
        let file = pool::open(root, &disk.name.to_string()).cannot(&what)?;
        // Somebody else has changed it: what is above the end of the device may be data.
        if pool::length(&file).cannot(&what)? != disk.size {
            return Err(Error::Conflict(format!(
                "the file of {} has another size than its device; restart this service, which puts that right",
                disk.name
            )));
        }
        let loop_device = block::open(root, &disk.device, Mode::Read).cannot(&what)?;
        Undo::run(|undo| {
            undo.push(format!("giving {} its size", disk.name), || {
                pool::set_length(&file, disk.size)
                    .and_then(|()| loops::follow_size(&loop_device))
                    .cannot("give it its size back")
            });
            pool::set_length(&file, bytes).cannot(&what)?;
            if loops::ends_early(root, &disk.device).cannot(&what)? {
                loops::limit(&loop_device, 0).cannot(&what)?;
            }
            loops::follow_size(&loop_device).cannot(&what)
        })
    }

    fn least_size(&self, root: &Root, disk: &Device<'_>, _claim: &File) -> kernel::Result<u64> {
        pool::end_of_data(&pool::open(root, &disk.name.to_string())?)
    }

    fn shrink(&self, root: &Root, disk: &Device<'_>, claim: File, bytes: u64) -> kernel::Result<Shrunk> {
        let cut = |file: &File| match pool::end_of_data(file)? > bytes {
            true => Ok(false),
            false => pool::set_length(file, bytes).map(|()| true),
        };
        let (is_cut, left) = while_detached(root, disk, claim, cut)?;
        Ok(if is_cut { Shrunk::Done(left) } else { Shrunk::DataAbove })
    }

    fn free(&self, root: &Root, disk: &Device<'_>, claim: File) -> kernel::Result<Left> {
        while_detached(root, disk, claim, pool::empty).map(|((), left)| left)
    }

    fn recover<'a>(
        &self,
        root: &Root,
        limit: u64,
        hold: &dyn Fn(DiskName) -> Option<Held<'a>>,
    ) -> Vec<String> {
        let files = match pool::names(root) {
            Ok(files) => files,
            Err(error) => return vec![format!("the RAM disks could not be looked for: {error}")],
        };
        let mut said = remove_lost_links(root, hold);
        if pool::is_mounted(root) == Ok(true)
            && let Err(error) = pool::mount_for(root, limit)
        {
            said.push(format!("the tmpfs of the RAM disks keeps its size: {error}"));
        }
        for file in files {
            let (name, is_part) = match file.strip_suffix(PART) {
                Some(name) => (DiskName::parse(name), true),
                None => (DiskName::parse(&file), false),
            };
            let Some(name) = name else { continue };
            // A request is at work on it, or has been since the files were listed.
            let Some(_held) = hold(name) else { continue };
            if pool::held(root, &file) == Ok(None) {
                continue;
            }
            match if is_part { recover_part(root, name) } else { recover_disk(root, name) } {
                Ok(done) => said.extend(done.map(|done| format!("{name}: {done}"))),
                Err(error) => said.push(format!("{name} could not be repaired: {error}")),
            }
        }
        said
    }
}

/// Removes the links in `/dev` that were left of disks that are gone. The loop devices that they lead to may
/// be somebody else's by now.
fn remove_lost_links<'a>(root: &Root, hold: &dyn Fn(DiskName) -> Option<Held<'a>>) -> Vec<String> {
    let names = match links::names(root) {
        Ok(names) => names,
        Err(error) => return vec![format!("lost links of RAM disks could not be looked for: {error}")],
    };
    let remove = |name: DiskName| {
        let _held = hold(name)?;
        let is_missing = |file: &str| pool::held(root, file) == Ok(None);
        if !is_missing(&name.to_string()) || !is_missing(&part(name)) {
            return None;
        }
        match links::look(&node(root, name)) {
            Ok(Entry::Link(to)) if is_ours(&to) && !may_be_disk(root, name, &to) => {
                let removed = links::remove(&node(root, name));
                Some(match removed {
                    Ok(()) => format!("/dev/{name} led to {to}, which is no RAM disk, and is removed"),
                    Err(error) => {
                        format!(
                            "/dev/{name} leads to {to}, which is no RAM disk, and could not be removed: {error}"
                        )
                    }
                })
            }
            _ => None,
        }
    };
    names.iter().filter_map(|name| DiskName::parse(name)).filter_map(remove).collect()
}

/// Changes the file of a disk while no device is over it, since the kernel only takes off a device that nobody
/// else has open. A daemon that is killed meanwhile attaches it when it starts again.
fn while_detached<T>(
    root: &Root,
    disk: &Device<'_>,
    claim: File,
    change: impl FnOnce(&File) -> kernel::Result<T>,
) -> kernel::Result<(T, Left)> {
    let name = disk.name;
    let file = pool::open(root, &name.to_string())?;
    let is_locked = block::is_disk_read_only(root, &disk.device)?;
    retry_busy(|| loops::detach_unused(&claim))?;
    drop(claim);
    let changed = change(&file);
    // Once more if the kernel had no memory for it, say: a disk is not to be lost for that.
    let attached = recover_disk(root, name).or_else(|_| recover_disk(root, name)).and_then(|_| {
        let device = device_over(root, &name.to_string())?.unwrap_or_default();
        let lock = || block::set_read_only(&block::open(root, &device, Mode::Read)?, true);
        if is_locked { lock().cannot(format_args!("lock {name} again")) } else { Ok(()) }
    });
    let mut left = Left::default();
    left.note(attached);
    Ok((changed?, left))
}

fn part(name: DiskName) -> String {
    format!("{name}{PART}")
}

fn files(root: &Root) -> Result<Vec<String>> {
    pool::names(root).cannot("list the files of the RAM disks")
}

fn attached(root: &Root) -> Result<Vec<(String, String)>> {
    loops::attached(root).cannot("list the loop devices")
}

/// The RAM disk whose data is in a file, given the file's path as the kernel shows it.
fn disk_of_file(root: &Root, file: &str) -> Option<DiskName> {
    DiskName::parse(pool::name_in(root, file)?)
}

/// The file of a loop device, as the kernel shows its path; `None` for other devices.
fn file_of(root: &Root, device: &str) -> Result<Option<String>> {
    if !device.starts_with("loop") {
        return Ok(None);
    }
    loops::backing(root, device).cannot(format_args!("look at {device}"))
}

/// Whether a device is over this file of the pool. If that cannot be read, it may be.
fn is_over(root: &Root, device: &str, file: &str) -> bool {
    match loops::backing(root, device) {
        Ok(path) => path.is_some_and(|path| pool::name_in(root, &path) == Some(file)),
        Err(_) => true,
    }
}

/// The device over a file of the pool.
fn device_over(root: &Root, file: &str) -> Result<Option<String>> {
    let over = |(_, path): &(String, String)| pool::name_in(root, path) == Some(file);
    Ok(attached(root)?.into_iter().find(over).map(|(device, _)| device))
}

/// Takes back a change that did not come to its end: what was half-made or half-removed goes. If
/// somebody uses the disk, or may use it, it is a disk again.
fn recover_part(root: &Root, name: DiskName) -> Result<Option<&'static str>> {
    if let Some(device) = device_over(root, &part(name))? {
        let dev = block::dev_of(root, &device).cannot(format_args!("look at {device}"))?;
        let dev = dev.ok_or_else(|| Error::NotFound(format!("there is no {device} any more")))?;
        let claim = usage::claim_unused(root, dev, &*device, Mode::Claim);
        let is_used = match claim {
            Ok(claim) => {
                let detached = retry_busy(|| loops::detach_unused(&claim));
                match detached.and_then(|()| block::set_read_only(&claim, false)) {
                    Err(error) if error.is(Errno::BUSY) => true,
                    done => done.cannot(format_args!("detach {device}")).map(|()| false)?,
                }
            }
            Err(error @ Error::Kernel(..)) => return Err(error),
            Err(_) => true,
        };
        if is_used {
            pool::rename(root, &part(name), &name.to_string()).cannot("rename its file")?;
            recover_disk(root, name)?;
            return Ok(Some("is a disk again, since somebody uses it or may use it"));
        }
    }
    unlink(root, name).and_then(|()| pool::remove(root, &part(name))).cannot("remove what was left of it")?;
    Ok(Some("was half-made or half-removed, and is removed"))
}

/// Repairs a disk: it has a loop device as large as its file, which stays attached and to which
/// `/dev/rdN` leads.
fn recover_disk(root: &Root, name: DiskName) -> Result<Option<&'static str>> {
    let file = pool::open(root, &name.to_string()).cannot("open its file")?;
    let length = pool::length(&file).cannot("ask for the size of its file")?;
    let mut done = None;
    let device = match device_over(root, &name.to_string())? {
        Some(device) => device,
        None => {
            done = Some("had lost its loop device, and has one again");
            loops::attach(root, &file).cannot("attach a loop device to its file")?.0
        }
    };
    let look = format!("look at {device}");
    let size = block::size_of_disk(root, &device).cannot(&look)?;
    if size != Some(length) || loops::ends_early(root, &device).cannot(&look)? {
        done = Some("has the size of its file again");
        block::open(root, &device, Mode::Read)
            .and_then(|disk| loops::limit(&disk, 0).and_then(|()| loops::follow_size(&disk)))
            .cannot("give it the size of its file")?;
    }
    if loops::detaches_itself(root, &device).cannot(&look)? {
        done = Some("stays attached when it is closed");
        block::open(root, &device, Mode::Read)
            .and_then(|disk| loops::stay(&disk))
            .cannot("keep it attached")?;
    }
    let entry = links::look(&node(root, name)).cannot(format_args!("look at /dev/{name}"))?;
    if entry != Entry::Link(device.clone()) {
        done = Some("had lost its link in /dev, and has it again");
        check_place(root, name)?;
        link(root, name, &device).cannot(format_args!("make /dev/{name}"))?;
    }
    Ok(done)
}

fn node(root: &Root, name: DiskName) -> PathBuf {
    block::node(root, &name.to_string())
}

/// Refuses a name whose place in `/dev` is taken by something that is not ours, or by the disk of a
/// daemon whose tmpfs cannot be seen from this mount namespace.
fn check_place(root: &Root, name: DiskName) -> Result<()> {
    let path = node(root, name);
    let device = match links::look(&path).cannot(format_args!("look at {}", path.display()))? {
        Entry::Missing => return Ok(()),
        Entry::Link(to) if is_ours(&to) => to,
        Entry::Link(_) | Entry::Other => {
            return Err(Error::Conflict(format!("{} is there already; remove it first", path.display())));
        }
    };
    if leads_out_of_sight(root, name, &device) {
        return Err(Error::Conflict(format!(
            "{} is a disk whose tmpfs is not mounted here; this service needs the mount namespace of the machine",
            path.display()
        )));
    }
    Ok(())
}

/// Whether the device is over a file that could be this disk's, and that is not in the pool seen here.
fn leads_out_of_sight(root: &Root, name: DiskName, device: &str) -> bool {
    let path = loops::backing(root, device).ok().flatten();
    path.is_some_and(|path| is_named_as(name, &path) && pool::name_in(root, &path).is_none())
}

/// Whether the device is over a file that could be this disk's, wherever the file is. A device that cannot be
/// looked at may be.
fn may_be_disk(root: &Root, name: DiskName, device: &str) -> bool {
    loops::backing(root, device).map_or(true, |path| path.is_some_and(|path| is_named_as(name, &path)))
}

/// Whether a file has the name of the file of this disk, given its path as the kernel shows it.
fn is_named_as(name: DiskName, path: &str) -> bool {
    let file = path.strip_suffix(" (deleted)").unwrap_or(path).rsplit('/').next();
    file == Some(&name.to_string()) || file == Some(&part(name))
}

/// Whether a link in `/dev` that leads there is one that this driver makes.
fn is_ours(to: &str) -> bool {
    let number = to.strip_prefix("loop").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Makes the link, in the place of one of ours that leads elsewhere.
fn link(root: &Root, name: DiskName, device: &str) -> kernel::Result<()> {
    unlink(root, name)?;
    links::make(&node(root, name), device)
}

/// Removes the link, if it is one of ours.
fn unlink(root: &Root, name: DiskName) -> kernel::Result<()> {
    let path = node(root, name);
    match links::look(&path)? {
        Entry::Link(to) if is_ours(&to) => links::remove(&path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_disk_is_one() {
        let root = Root::new("/");
        let name = |file: &str| disk_of_file(&root, &format!("/run/rapiddiskd/disks/{file}"));
        assert_eq!(name("rd0"), Some(DiskName(0)));
        assert_eq!(name("rd12 (deleted)"), Some(DiskName(12)));
        for other in ["rd0.part", "rd00", "rd", "x", "rd0/x", ""] {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
