//! RAM disks that any kernel can serve: `rdN` is a file of that name on a private tmpfs, a loop
//! device over it, and a link `/dev/rdN` to the device.
//!
//! The name of the file says how far a disk has come. While the disk is made or removed, the file is
//! called `rdN.part`; one renaming makes it a disk, or ends it. So whatever is found as `rdN` is a
//! disk and is repaired, and whatever is found as `rdN.part` is none.

mod parts;
mod recover;

use std::collections::HashSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use parts::{
    KIND, MOST, attached, check_place, device_over, disk_named, disk_of_file, file_of, is_over, linked, part,
    sum,
};

use crate::kernel::block::{self, Mode};
use crate::kernel::{self, Root, loops, pool};
use crate::storage::disks::driver::{Claims, Device, Driver, New, RamDisk, Shrunk, not_loaded, refused};
use crate::storage::disks::drivers::link;
use crate::storage::error::{Cannot, Error, Left, Result};
use crate::storage::locks::Held;
use crate::storage::names::DiskName;
use crate::storage::undo::Undo;
use crate::storage::wait::retry_busy;

/// Loop devices over the private tmpfs.
pub struct Loops {
    /// Whether there may be devices that were left, by this daemon or an earlier one.
    may_leave: AtomicBool,
}

impl Default for Loops {
    fn default() -> Loops {
        Loops { may_leave: true.into() }
    }
}

impl Driver for Loops {
    fn name(&self) -> &'static str {
        "loop"
    }

    fn lacks(&self, root: &Root) -> Result<Option<String>> {
        let is_loaded = loops::is_loaded(root).cannot("look for the module loop")?;
        Ok((!is_loaded).then(|| not_loaded("loop", "")))
    }

    /// By the link `/dev/rdN`, if the device that it leads to is over the file. Otherwise, and only if there is such
    /// a file or one without a name, by a look at all devices.
    fn find(&self, root: &Root, name: DiskName) -> Result<Option<String>> {
        let file = name.to_string();
        if let Some(device) = linked(root, name, &file)? {
            return Ok(Some(device));
        }
        let may_be_there = || {
            let names = pool::names(root)?;
            Ok(names.contains(&file) || pool::has_other_than(root, names.len())?)
        };
        if may_be_there().cannot(format_args!("look for {name}"))? {
            device_over(root, &file)
        } else {
            Ok(None)
        }
    }

    fn devices(&self, root: &Root) -> Result<Vec<(DiskName, String)>> {
        // Most hosts then need no look at each loop device.
        match pool::has_other_than(root, 0).cannot("list the RAM disks")? {
            true => attached_disks(root),
            false => Ok(Vec::new()),
        }
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
            Ok(Some(RamDisk {
                name,
                size,
                usage,
                is_measured: true,
                locked,
                driver: self.name(),
                compressed: None,
                fault: None,
            }))
        };
        let what = "list the RAM disks";
        if !pool::has_other_than(root, 0).cannot(what)? {
            return Ok(Vec::new());
        }
        let listed = attached_disks(root)?.into_iter().filter_map(|disk| look(disk).transpose());
        let mut disks: Vec<_> = listed.collect::<kernel::Result<_>>().cannot(what)?;
        let there: HashSet<_> = disks.iter().map(|disk| disk.name).collect();
        for (file, size) in pool::lengths(root).cannot(what)? {
            let Some(name) = DiskName::parse(&file).filter(|name| !there.contains(name)) else { continue };
            let Some(usage) = pool::held(root, &file).cannot(what)? else { continue };
            let fault =
                Some("has lost its loop device; any change of it attaches one again, unlocked".to_owned());
            let driver = self.name();
            disks.push(RamDisk {
                name,
                size,
                usage,
                is_measured: true,
                locked: false,
                driver,
                compressed: None,
                fault,
            });
        }
        Ok(disks)
    }

    fn repair(&self, root: &Root, name: DiskName) -> Result<()> {
        if pool::held(root, &name.to_string()).cannot(format_args!("look at the file of {name}"))?.is_some() {
            recover::repair(root, name, self.find(root, name)?)?;
        }
        Ok(())
    }

    fn is_free(&self, root: &Root, name: DiskName) -> Result<bool> {
        link::is_free(root, name, KIND)
    }

    fn name_of(&self, root: &Root, device: &str) -> Result<Option<DiskName>> {
        Ok(file_of(root, device)?.and_then(|file| disk_of_file(root, &file)))
    }

    fn owns(&self, root: &Root, device: &str) -> Result<bool> {
        Ok(file_of(root, device)?.is_some_and(|file| pool::name_in(root, &file).is_some()))
    }

    /// From the files alone, unless somebody has unlinked one.
    fn claims(&self, root: &Root) -> Result<Claims> {
        let what = "add up the sizes of the RAM disks";
        let files = pool::lengths(root).cannot(what)?;
        let names = files.iter().filter_map(|(file, _)| disk_named(file)).collect();
        let mut claims = Claims { names, bytes: sum(&files) };
        if pool::has_other_than(root, files.len()).cannot(what)? {
            for (name, device) in self.devices(root)? {
                if !claims.names.contains(&name) {
                    let size = block::size_of_disk(root, &device).cannot(what)?;
                    claims.bytes = claims.bytes.saturating_add(size.unwrap_or(0));
                    claims.names.push(name);
                }
            }
        }
        Ok(claims)
    }

    fn most(&self, _root: &Root) -> Result<(u32, &'static str)> {
        Ok((MOST, "this daemon makes no more; remove one"))
    }

    fn attach(&self, root: &Root, name: DiskName, new: &New, limit: u64) -> Result<()> {
        loops::control(root).map_err(|error| match error.is_gone() {
            true => Error::Unavailable(not_loaded("loop", "")),
            false => Error::Kernel(format!("cannot make {name}"), error),
        })?;
        pool::mount_for(root, limit).cannot(format_args!("mount the tmpfs of {name}"))?;
        check_place(root, name)?;
        Undo::run(|undo| {
            let file =
                pool::create(root, &part(name), new.bytes).cannot(format_args!("make the file of {name}"))?;
            undo.push(format!("making the file of {name}"), move || remove_part(root, name));
            let (device, _claim) = loops::attach(root, &file, name.0, MOST)
                .cannot(format_args!("attach a loop device for {name}"))?;
            link::make(root, name, KIND, &device).cannot(format_args!("make /dev/{name}"))?;
            undo.push(format!("making /dev/{name}"), move || {
                link::remove(root, name, KIND).cannot(format_args!("remove /dev/{name}"))
            });
            pool::rename(root, &part(name), &name.to_string())
                .cannot(format_args!("give the file of {name} its name"))
        })
        .inspect_err(|_| self.may_leave.store(true, Ordering::Relaxed))
    }

    fn detach(&self, root: &Root, disk: &Device<'_>, claim: File) -> Result<Left> {
        let (name, what) = (disk.name, format!("remove {}", disk.name));
        let is_locked = block::is_disk_read_only(root, &disk.device).cannot(&what)?;
        let claim = Undo::run(|undo| {
            match pool::rename(root, &name.to_string(), &part(name)) {
                // Somebody unlinked the file; the device goes all the same.
                Err(error) if error.is_gone() => {}
                renamed => {
                    renamed.cannot(&what)?;
                    undo.push(detaching(disk, is_locked), move || {
                        let back = pool::rename(root, &part(name), &name.to_string());
                        back.cannot("give its file its name")?;
                        put_back(root, name, false, is_locked)
                    });
                }
            }
            take_off(claim).map_err(|error| refused(name, "remove", error))
        })?;
        // The disk is gone, whether or not what it leaves behind can be removed.
        let mut left = Left::default();
        left.note(recover::clear(root, &disk.device, &claim).cannot(format_args!("clear {}", disk.device)));
        drop(claim);
        left.note(link::remove(root, name, KIND).cannot(format_args!("remove the link /dev/{name}")));
        left.note(pool::remove(root, &part(name)).cannot(format_args!("remove the file of {name}")));
        self.may_leave.store(true, Ordering::Relaxed);
        Ok(left)
    }

    fn grow(&self, root: &Root, disk: &Device<'_>, bytes: u64, limit: u64) -> Result<Left> {
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
            loops::follow_size(&loop_device).cannot(&what)?;
            Ok(Left::default())
        })
    }

    fn least_size(&self, root: &Root, disk: &Device<'_>, _claim: &File) -> kernel::Result<u64> {
        pool::end_of_data(&pool::open(root, &disk.name.to_string())?)
    }

    fn shrink(&self, root: &Root, disk: &Device<'_>, claim: File, bytes: u64) -> Result<Shrunk> {
        let cut = |file: &File| match pool::end_of_data(file)? > bytes {
            true => Ok(false),
            false => pool::set_length(file, bytes).map(|()| true),
        };
        let (is_cut, left) = while_detached(root, disk, claim, "resize", cut)?;
        Ok(if is_cut { Shrunk::Done(left) } else { Shrunk::DataAbove })
    }

    fn free(&self, root: &Root, disk: &Device<'_>, claim: File) -> Result<Left> {
        while_detached(root, disk, claim, "free the memory of", pool::empty).map(|((), left)| left)
    }

    fn recover<'a>(
        &self,
        root: &Root,
        limit: u64,
        hold: &dyn Fn(DiskName) -> Option<Held<'a>>,
    ) -> Vec<String> {
        let said = recover::recover(root, limit, hold);
        self.may_leave.store(true, Ordering::Relaxed);
        said
    }

    fn tidy(&self, root: &Root) -> Result<()> {
        if self.may_leave.swap(false, Ordering::Relaxed) {
            let is_done = loops::remove_free(root);
            self.may_leave.fetch_or(is_done != Ok(true), Ordering::Relaxed);
            is_done.cannot("remove the loop devices that are not needed")?;
        }
        Ok(())
    }
}

/// The disks that have a loop device, by a look at all of these.
fn attached_disks(root: &Root) -> Result<Vec<(DiskName, String)>> {
    let named = |(device, file): (String, String)| Some((disk_of_file(root, &file)?, device));
    Ok(attached(root)?.into_iter().filter_map(named).collect())
}

/// Changes the file of a disk while no device is over it, since the kernel only takes off a device that nobody
/// else has open. A daemon that is killed meanwhile attaches it when it starts again.
fn while_detached<T>(
    root: &Root,
    disk: &Device<'_>,
    claim: File,
    what: &str,
    change: impl FnOnce(&File) -> kernel::Result<T>,
) -> Result<(T, Left)> {
    let name = disk.name;
    let file = pool::open(root, &name.to_string()).cannot(format_args!("{what} {name}"))?;
    let is_locked = block::is_disk_read_only(root, &disk.device).cannot(format_args!("{what} {name}"))?;
    let changed = Undo::run(|undo| {
        undo.push(detaching(disk, is_locked), || put_back(root, name, false, is_locked));
        take_off(claim).map(drop).and_then(|()| change(&file)).map_err(|error| refused(name, what, error))
    })?;
    let mut left = Left::default();
    left.note(put_back(root, name, true, is_locked));
    Ok((changed, left))
}

/// Detaches a device that nobody else has open. After a failure, too, it may be gone: that shows once it is
/// closed, which it is then.
fn take_off(claim: File) -> kernel::Result<File> {
    retry_busy(|| loops::detach_unused(&claim)).map(|()| claim)
}

/// The step that takes a disk's device away, as the refusal names it where that cannot be undone.
fn detaching(disk: &Device<'_>, is_locked: bool) -> String {
    let was = if is_locked { ", which was locked" } else { "" };
    format!("detaching {}{was}", disk.device)
}

/// Gives a disk a device, as locked as the one it had. Where it `is_detached` for sure, no device is looked for.
fn put_back(root: &Root, name: DiskName, is_detached: bool, is_locked: bool) -> Result<()> {
    let look = || recover::recover_disk(root, name, device_over(root, &name.to_string())?);
    let first = if is_detached { recover::recover_disk(root, name, None) } else { look() };
    // Once more if the kernel had no memory for it, say: a disk is not to be lost for that.
    let repaired = first.or_else(|_| look()).map(drop);
    // Also where the link could not be made: somebody may have put a file in its place.
    let locked = if is_locked { lock_again(root, name) } else { Ok(()) };
    match (repaired, locked) {
        (Err(error), Err(lock)) => Err(Error::NotUndone(Box::new(error), vec![lock.to_string()])),
        (repaired, locked) => repaired.and(locked),
    }
}

fn lock_again(root: &Root, name: DiskName) -> Result<()> {
    let file = name.to_string();
    let device = match linked(root, name, &file) {
        Ok(Some(device)) => device,
        _ => device_over(root, &file)?.unwrap_or_default(),
    };
    let lock = || block::set_read_only(&block::open(root, &device, Mode::Read)?, true);
    lock().cannot(format_args!("lock {name} again"))
}

/// Removes a file of a disk that is none, and detaches the loop device over it first: without its file the
/// device would not be known as left over.
fn remove_part(root: &Root, name: DiskName) -> Result<()> {
    if let Some(device) = device_over(root, &part(name))? {
        block::open(root, &device, Mode::Read)
            .and_then(|disk| loops::detach(&disk))
            .cannot(format_args!("detach {device}"))?;
    }
    pool::remove(root, &part(name)).cannot(format_args!("remove the file of {name}"))
}
