//! RAM disks that any kernel can serve: `rdN` is a file of that name on a private
//! tmpfs, a loop device over it, and a link `/dev/rdN` to the device.
//!
//! A file's name says how far a disk has come. While it is made or removed the file
//! is called `rdN.part`; the one renaming makes it a disk, or ends it. Whatever is
//! found as `rdN` is a disk and is put right; what is found as `rdN.part` is none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use rustix::io::Errno;

use super::driver::Driver;
use super::{Device, RamDisk};
use crate::kernel::block::{self, Access};
use crate::kernel::{self, Root, loops, pool};
use crate::storage::undo::Undo;
use crate::storage::{DiskName, Error, PROBING, Result, usage, wait_until};

/// As many as the module takes.
const MOST: u32 = 1024;

/// Loop devices over the private tmpfs.
pub struct Loops;

impl Driver for Loops {
    fn name(&self) -> &'static str {
        "loop"
    }

    fn is_loaded(&self, root: &Root) -> bool {
        loops::is_loaded(root)
    }

    fn devices(&self, root: &Root) -> Result<Vec<(DiskName, String)>> {
        // Spares most hosts a look at each loop device.
        if !pool::is_mounted(root) {
            return Ok(Vec::new());
        }
        let named = |(device, file): (String, String)| Some((name_of(root, &file)?, device));
        Ok(loops::attached(root)?.into_iter().filter_map(named).collect())
    }

    fn list(&self, root: &Root) -> Result<Vec<RamDisk>> {
        let look = |(name, device): (DiskName, String)| {
            let size = block::size_of_disk(root, &device).filter(|&size| size > 0)?;
            // Somebody may have unlinked its file, which holds memory all the same; or it is
            // being removed this moment.
            let still = || is_over(root, &device, &name.to_string()).then_some(size);
            let usage = pool::held(root, &name.to_string()).or_else(still)?.min(size);
            let locked = block::is_disk_read_only(root, &device);
            Some(RamDisk { name, size, usage, locked, driver: self.name() })
        };
        Ok(self.devices(root)?.into_iter().filter_map(look).collect())
    }

    fn leftovers(&self, root: &Root) -> Result<Vec<DiskName>> {
        let name = |file: &String| DiskName::parse(file.strip_suffix(PART).unwrap_or(file));
        Ok(pool::names(root)?.iter().filter_map(name).collect())
    }

    fn promised(&self, root: &Root) -> Result<u64> {
        let files = pool::names(root)?;
        let is_unlinked = |(name, _): &(DiskName, String)| !files.contains(&name.to_string());
        let unlinked = self.devices(root)?.into_iter().filter(is_unlinked);
        let sizes = unlinked.filter_map(|(_, device)| block::size_of_disk(root, &device));
        Ok(sizes.fold(pool::promised(root)?, u64::saturating_add))
    }

    fn most(&self, _root: &Root) -> (u32, &'static str) {
        (MOST, "this daemon makes no more; remove one")
    }

    fn attach(&self, root: &Root, name: DiskName, bytes: u64, limit: u64) -> Result<()> {
        let failed = |what: &str| Error::kernel(format!("cannot make {name}: {what}"));
        loops::control(root).map_err(|error| match error.is_gone() {
            true => {
                Error::Unavailable("the kernel module loop is not loaded; load it with: modprobe loop".into())
            }
            false => failed("its loop device")(error),
        })?;
        pool::mount_for(root, limit).map_err(failed("its tmpfs"))?;
        check_place(root, name)?;
        Undo::run(|undo| {
            let file = pool::create(root, &part(name), bytes).map_err(failed("its file"))?;
            undo.push(format!("making the file of {name}"), move || Ok(pool::remove(root, &part(name))?));
            let (device, _claim) = loops::attach(root, &file).map_err(failed("its loop device"))?;
            let again = device.clone();
            undo.push(format!("attaching {device}"), move || {
                Ok(loops::detach(&block::open(root, &again, Access::Read)?)?)
            });
            link(root, name, &device)?;
            undo.push(format!("making /dev/{name}"), move || unlink(root, name));
            pool::rename(root, &part(name), &name.to_string()).map_err(failed("its file"))
        })
    }

    fn detach(&self, root: &Root, disk: &Device<'_>, claim: File) -> kernel::Result<()> {
        let (name, device) = (disk.name, &disk.device);
        let is_locked = block::is_disk_read_only(root, device);
        match pool::rename(root, &name.to_string(), &part(name)) {
            // Somebody unlinked it; the device goes all the same.
            Err(error) if error.is_gone() => {}
            renamed => renamed?,
        }
        // The device would stay read-only for whoever gets it next.
        let done = block::set_read_only(&claim, false).and_then(|()| loops::detach(&claim));
        drop(claim);
        // Newer kernels detach when the last one closes the device, and those that
        // look into it because it changed are gone in a moment. Somebody else may have
        // the device by then.
        if done.is_err() || !wait_until(PROBING, || !is_over(root, device, &part(name))) {
            // Whoever has it open shows himself nowhere. While we have it, it stays.
            let disk = block::open(root, device, Access::Read);
            if is_over(root, device, &part(name)) {
                let stayed = disk.and_then(|disk| {
                    loops::stay(&disk)?;
                    block::set_read_only(&disk, is_locked)
                });
                let back = pool::rename(root, &part(name), &name.to_string());
                done.and(stayed).and(back)?;
                return Err(kernel::Error::new("ioctl LOOP_CLR_FD", &Errno::BUSY.into()));
            }
        }
        // It is gone whatever becomes of what it leaves behind.
        let unlinked = unlink(root, name).map_err(|error| match error {
            Error::Kernel(_, error) => error,
            other => kernel::Error::strange(other.to_string()),
        });
        pool::remove(root, &part(name)).and(unlinked)
    }

    fn grow(&self, root: &Root, disk: &Device<'_>, bytes: u64, limit: u64) -> Result<()> {
        let failed = || Error::kernel(format!("cannot resize {}", disk.name));
        pool::mount_for(root, limit).map_err(failed())?;
        let file = pool::open(root, &disk.name.to_string()).map_err(failed())?;
        let loop_device = block::open(root, &disk.device, Access::Read).map_err(failed())?;
        let set = |bytes| file.set_len(bytes).map_err(|error| kernel::Error::new("ftruncate", &error));
        Undo::run(|undo| {
            set(bytes).map_err(failed())?;
            undo.push(format!("giving the file of {} its size", disk.name), || Ok(set(disk.size)?));
            if block::loop_ends_early(root, &disk.device) {
                loops::limit(&loop_device, 0).map_err(failed())?;
            }
            loops::follow_size(&loop_device).map_err(failed())
        })
    }

    fn least_size(&self, root: &Root, disk: &Device<'_>, _claim: &File) -> kernel::Result<u64> {
        pool::end_of_data(&pool::open(root, &disk.name.to_string())?)
    }

    /// First the device ends earlier, so that nobody can write there any more, and only
    /// then what nobody has written is cut off.
    fn shrink(&self, root: &Root, disk: &Device<'_>, claim: &File, bytes: u64) -> kernel::Result<()> {
        let file = pool::open(root, &disk.name.to_string())?;
        let cut = || {
            loops::limit(claim, bytes)?;
            if pool::end_of_data(&file)? > bytes {
                return Err(kernel::Error::new("ftruncate", &Errno::INVAL.into()));
            }
            file.set_len(bytes).map_err(|error| kernel::Error::new("ftruncate", &error))
        };
        let outcome = cut();
        outcome.and(loops::limit(claim, 0))
    }

    fn free(&self, disk: &Device<'_>, claim: &File) -> kernel::Result<()> {
        loops::discard(claim, disk.size)
    }

    fn recover(&self, root: &Root, limit: u64) -> Vec<String> {
        if !pool::is_mounted(root) {
            return Vec::new();
        }
        let mut said = Vec::new();
        if let Err(error) = pool::mount_for(root, limit) {
            said.push(format!("the RAM disks' tmpfs keeps its size: {error}"));
        }
        for file in pool::names(root).unwrap_or_default() {
            let outcome = match file.strip_suffix(PART) {
                Some(name) => DiskName::parse(name).map(|name| (name, recover_part(root, name))),
                None => DiskName::parse(&file).map(|name| (name, recover_disk(root, name))),
            };
            let Some((name, outcome)) = outcome else { continue };
            said.extend(match outcome {
                Ok(None) => None,
                Ok(Some(done)) => Some(format!("{name}: {done}")),
                Err(error) => Some(format!("{name}: not put right: {error}")),
            });
        }
        said
    }
}

/// What a name has while the disk is no disk yet, or no longer.
const PART: &str = ".part";

fn part(name: DiskName) -> String {
    format!("{name}{PART}")
}

/// The RAM disk whose data is in a file, given the file's path as the kernel shows it.
pub fn name_of(root: &Root, file: &str) -> Option<DiskName> {
    DiskName::parse(pool::name_in(root, file)?)
}

/// Whether a device is over this file of the pool. One that cannot be read is not
/// known to be over another.
fn is_over(root: &Root, device: &str, file: &str) -> bool {
    match block::loop_backing(root, device) {
        Ok(path) => path.is_some_and(|path| pool::name_in(root, &path) == Some(file)),
        Err(_) => true,
    }
}

/// The device over a file of the pool.
fn device_over(root: &Root, file: &str) -> kernel::Result<Option<String>> {
    let over = |(_, path): &(String, String)| pool::name_in(root, path) == Some(file);
    Ok(loops::attached(root)?.into_iter().find(over).map(|(device, _)| device))
}

/// A change that did not come to its end: it is taken back, or finished, which here
/// is the same. A disk that somebody began to use meanwhile is one.
fn recover_part(root: &Root, name: DiskName) -> Result<Option<&'static str>> {
    if let Some(device) = device_over(root, &part(name))? {
        let dev = block::dev_of(root, &device).ok_or_else(|| Error::NotFound(format!("no {device}")))?;
        let claim = usage::claim_unused(root, dev, &*device, Access::Claim);
        let detached = claim.and_then(|claim| {
            block::set_read_only(&claim, false)?;
            Ok(loops::detach(&claim)?)
        });
        if detached.is_err() || !wait_until(PROBING, || !is_over(root, &device, &part(name))) {
            pool::rename(root, &part(name), &name.to_string())?;
            recover_disk(root, name)?;
            return Ok(Some("is a disk again, since it is in use"));
        }
    }
    unlink(root, name)?;
    pool::remove(root, &part(name))?;
    Ok(Some("removed, as it was half-made or half-removed"))
}

/// A disk has a device over it that is as large as the file, stays attached, and is
/// where `/dev/rdN` leads.
fn recover_disk(root: &Root, name: DiskName) -> Result<Option<&'static str>> {
    let file = pool::open(root, &name.to_string())?;
    let length = file.metadata().map_err(|error| kernel::Error::new("fstat", &error))?.len();
    let mut done = None;
    let device = match device_over(root, &name.to_string())? {
        Some(device) => device,
        None => {
            done = Some("attached again, as its data was there and its device was not");
            loops::attach(root, &file)?.0
        }
    };
    let size = block::size_of_disk(root, &device);
    if size != Some(length) || block::loop_ends_early(root, &device) {
        done = Some("has the size of its file again");
        let disk = block::open(root, &device, Access::Read)?;
        loops::limit(&disk, 0)?;
        loops::follow_size(&disk)?;
    }
    if block::loop_detaches_itself(root, &device) {
        done = Some("stays attached");
        loops::stay(&block::open(root, &device, Access::Read)?)?;
    }
    if fs::read_link(node(root, name)).ok() != Some(PathBuf::from(&device)) {
        done = Some("its node was made");
        check_place(root, name)?;
        link(root, name, &device)?;
    }
    Ok(done)
}

fn node(root: &Root, name: DiskName) -> PathBuf {
    block::node(root, &name.to_string())
}

/// Refuses a name whose place in `/dev` is taken by something that is not ours, or by
/// the disk of a daemon whose tmpfs is mounted where we cannot see it.
fn check_place(root: &Root, name: DiskName) -> Result<()> {
    let path = node(root, name);
    match fs::symlink_metadata(&path) {
        Ok(_) if !is_ours(root, name) => {
            Err(Error::Conflict(format!("{} is there already; remove it first", path.display())))
        }
        Ok(_) if leads_out_of_sight(root, name) => Err(Error::Conflict(format!(
            "{} is a disk whose tmpfs is not mounted here; this service needs the mount namespace of the machine",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Whether the link leads to a device over a file that could be this disk's, elsewhere.
fn leads_out_of_sight(root: &Root, name: DiskName) -> bool {
    let device = fs::read_link(node(root, name)).ok();
    let backing = device.and_then(|device| block::loop_backing(root, device.to_str()?).ok().flatten());
    backing.is_some_and(|path| {
        let file = path.strip_suffix(" (deleted)").unwrap_or(&path).rsplit('/').next();
        let is_its = file == Some(&name.to_string()) || file == Some(&part(name));
        is_its && pool::name_in(root, &path).is_none()
    })
}

/// Whether the node is a link as we make them.
fn is_ours(root: &Root, name: DiskName) -> bool {
    fs::read_link(node(root, name)).is_ok_and(|to| to.to_str().is_some_and(|to| to.starts_with("loop")))
}

fn link(root: &Root, name: DiskName, device: &str) -> Result<()> {
    unlink(root, name)?;
    let path = node(root, name);
    let failed = |error: io::Error| kernel::Error::new(format!("symlink {}", path.display()), &error);
    Ok(symlink(device, &path).map_err(failed)?)
}

/// Removes the link, if it is one of ours.
fn unlink(root: &Root, name: DiskName) -> Result<()> {
    let path = node(root, name);
    if !is_ours(root, name) {
        return Ok(());
    }
    let failed = |error: io::Error| kernel::Error::new(format!("unlink {}", path.display()), &error);
    Ok(fs::remove_file(&path).map_err(failed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_disk_is_one() {
        let root = Root::new("/");
        let name = |file: &str| name_of(&root, &format!("/run/rapiddiskd/disks/{file}"));
        assert_eq!(name("rd0"), Some(DiskName(0)));
        assert_eq!(name("rd12 (deleted)"), Some(DiskName(12)));
        for other in ["rd0.part", "rd00", "rd", "x", "rd0/x", ""] {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
