//! RAM disks of the kernel's driver `zram`, which compresses: they hold more than the memory they take. `rdN`
//! consists of:
//!
//! * `zramK`, made for this disk and removed with it. Others have disks of `zram`, too: one without a guard is
//!   somebody else's.
//! * `rdN-zramK`, the guard. It is made before the disk below gets a size, and removed when that has none any more. A
//!   mapping of the first block of `zramK` says that the disk is whole. Before and after that the guard stands on
//!   nothing.
//! * `rdN`, a mapping of all blocks. `/dev/rdN` is a link to it.
//!
//! The size of a `zramK` cannot be changed: a disk gets another one, while it is empty.

mod parts;
mod recover;

use std::fs::File;

use super::link;
use super::mapped::{
    self, KIND, LOST, MOST, Parts, ZRAM, device_name, disk_mapping, failed, put_to_use, while_suspended,
};
use crate::kernel::block::{self, Mode};
use crate::kernel::{self, Root, unless_gone, zram};
use crate::storage::disks::driver::{
    Claims, Compressed, Device, Driver, New, RamDisk, Shrunk, not_loaded, refused,
};
use crate::storage::error::{Cannot, Error, Left, Result};
use crate::storage::locks::Held;
use crate::storage::mapping;
use crate::storage::names::{Algorithm, DiskName};
use crate::storage::undo::Undo;
use crate::storage::usage;
use crate::storage::wait::retry_busy;
use parts::{
    below, hold, let_go, limit, lost_size, make_below, map, map_again, memory, number_of, release, table,
};

/// The driver.
pub struct Zram;

impl Driver for Zram {
    fn name(&self) -> &'static str {
        "zram"
    }

    fn is_only_taken_by_name(&self) -> bool {
        true
    }

    fn why_no_cache(&self) -> Option<&'static str> {
        Some(
            "is a RAM disk of zram, whose blocks have 4096 bytes: through a cache with such blocks many file systems \
             would not mount; take a RAM disk of another driver",
        )
    }

    fn lacks(&self, root: &Root) -> Result<Option<String>> {
        if !zram::is_loaded(root).cannot("look for the module zram")? {
            return Ok(Some(not_loaded("zram", " num_devices=0")));
        }
        Ok(mapping::if_loaded(root)?.is_none().then(|| not_loaded("dm-mod", "")))
    }

    fn find(&self, root: &Root, name: DiskName) -> Result<Option<String>> {
        let info = ZRAM.find(root, name).cannot(format_args!("look for {name}"))?;
        Ok(info.map(|info| device_name(info.dev)))
    }

    fn devices(&self, root: &Root) -> Result<Vec<(DiskName, String)>> {
        ZRAM.devices(root)
    }

    fn list(&self, root: &Root) -> Result<Vec<RamDisk>> {
        let what = "list the RAM disks";
        let look = |parts: Parts| {
            let (size, locked, fault) = match parts.device(root).cannot(what)? {
                Some((device, size)) => {
                    let control = mapping::control(root)?;
                    let number =
                        unless_gone(below(root, &control, &disk_mapping(parts.name))).cannot(what)?;
                    // Else it is left over from a change of the size.
                    if number.flatten() != Some(parts.number) {
                        return Ok(None);
                    }
                    (size, block::is_disk_read_only(root, &device).cannot(what)?, None)
                }
                None => match lost_size(root, &parts)? {
                    Some(size) => (size, false, Some(LOST.to_owned())),
                    None => return Ok(None),
                },
            };
            let stats = zram::stats(root, parts.number).cannot(what)?.unwrap_or_default();
            let (algorithm, _) = zram::algorithms(root, parts.number).cannot(what)?.unwrap_or_default();
            Ok(Some(RamDisk {
                name: parts.name,
                size,
                usage: stats.held,
                is_measured: true,
                locked,
                driver: self.name(),
                compressed: Some(Compressed { stored: stats.stored, limit: stats.limit, algorithm }),
                fault,
            }))
        };
        ZRAM.all(root).cannot(what)?.into_iter().filter_map(|parts| look(parts).transpose()).collect()
    }

    fn name_of(&self, root: &Root, device: &str) -> Result<Option<DiskName>> {
        ZRAM.disk_of(root, device).cannot(format_args!("look at {device}"))
    }

    /// The guards, too: nothing of theirs is below the disk's mapping.
    fn owns(&self, root: &Root, device: &str) -> Result<bool> {
        Ok(self.name_of(root, device)?.is_some()
            || ZRAM.is_guard(root, device).cannot(format_args!("look at {device}"))?)
    }

    fn repair(&self, root: &Root, name: DiskName) -> Result<()> {
        let mut device = self.find(root, name)?;
        if device.is_none() {
            for parts in ZRAM.all(root).cannot(format_args!("look for {name}"))? {
                if parts.name == name
                    && device.is_none()
                    && let Some(size) = lost_size(root, &parts)?
                {
                    device = Some(map_again(root, &parts, size)?);
                }
            }
        }
        device.map_or(Ok(()), |device| link::repair(root, name, KIND, &device))
    }

    fn check_running(&self, root: &Root, name: DiskName) -> Result<()> {
        ZRAM.check_running(root, name)
    }

    fn is_free(&self, root: &Root, name: DiskName) -> Result<bool> {
        mapped::is_free(root, name)
    }

    fn claims(&self, root: &Root) -> Result<Claims> {
        let what = "add up the sizes of the RAM disks";
        let mut claims = Claims::default();
        for parts in ZRAM.all(root).cannot(what)? {
            let size = block::size_of_disk(root, &zram::name(parts.number)).cannot(what)?.unwrap_or_default();
            let stats = zram::stats(root, parts.number).cannot(what)?.unwrap_or_default();
            claims.names.push(parts.name);
            claims.bytes = claims.bytes.saturating_add(memory(size, stats.limit));
        }
        Ok(claims)
    }

    fn most(&self, _root: &Root) -> Result<(u32, &'static str)> {
        Ok((MOST, "this daemon makes no more; remove one"))
    }

    fn check_new(&self, _new: &New) -> Result<()> {
        Ok(())
    }

    fn memory_of_new(&self, new: &New) -> u64 {
        memory(new.bytes, limit(new))
    }

    fn memory_of(&self, root: &Root, disk: &Device<'_>, bytes: u64) -> Result<(u64, u64)> {
        let number = number_of(root, &mapping::control(root)?, disk.name)?;
        let stats =
            zram::stats(root, number).cannot(format_args!("look at {}", disk.name))?.unwrap_or_default();
        Ok((memory(disk.size, stats.limit), memory(bytes, in_proportion(stats.limit, disk.size, bytes))))
    }

    fn attach(&self, root: &Root, name: DiskName, new: &New, _limit: u64) -> Result<()> {
        link::check_place(root, name, KIND)?;
        let (control, for_parts) = (mapping::control(root)?, mapping::control(root)?.for_parts());
        Undo::run(|undo| {
            let (number, dev) = make_below(root, &for_parts, name, new, undo)?;
            let device = map(&control, name, new.bytes, dev, undo)?;
            hold(root, &for_parts, name, number)?;
            undo.push(format!("making /dev/{name}"), move || {
                link::remove(root, name, KIND).cannot(format_args!("remove /dev/{name}"))
            });
            link::make(root, name, KIND, &device).cannot(format_args!("make /dev/{name}"))
        })
    }

    fn detach(&self, root: &Root, disk: &Device<'_>, claim: File) -> Result<Left> {
        let name = disk.name;
        let (control, for_parts) = (mapping::control(root)?, mapping::control(root)?.for_parts());
        let number = number_of(root, &control, name)?;
        // device-mapper refuses while anybody has it open.
        drop(claim);
        Undo::run(|undo| {
            undo.push(format!("letting go of {}", zram::name(number)), || {
                hold(root, &for_parts, name, number)
            });
            // Nobody takes it for a disk that has lost its mapping.
            let_go(&for_parts, &ZRAM.guard(name, number))?;
            retry_busy(|| control.remove(&disk_mapping(name))).map_err(|error| refused(name, "remove", error))
        })?;
        // The disk is gone, whether or not what it leaves behind can be removed.
        let mut left = Left::default();
        left.note(link::remove(root, name, KIND).cannot(format_args!("remove the link /dev/{name}")));
        left.note(release(root, name, number));
        Ok(left)
    }

    fn grow(&self, root: &Root, disk: &Device<'_>, bytes: u64, _limit: u64) -> Result<Left> {
        let _claim = usage::claim_unused(root, disk.dev, disk.name, Mode::Claim)?;
        change_size(root, disk, bytes)
    }

    /// What a shrink is refused for is said by [`change_size`].
    fn least_size(&self, _root: &Root, _disk: &Device<'_>, _claim: &File) -> kernel::Result<u64> {
        Ok(0)
    }

    fn shrink(&self, root: &Root, disk: &Device<'_>, _claim: File, bytes: u64) -> Result<Shrunk> {
        change_size(root, disk, bytes).map(Shrunk::Done)
    }

    fn free(&self, root: &Root, disk: &Device<'_>, claim: File) -> Result<Left> {
        let control = mapping::control(root)?;
        let number = number_of(root, &control, disk.name)?;
        mapped::empty(&control, disk, &claim, 0, &|at| zram::clear(root, number, at, disk.size))
    }

    fn recover<'a>(
        &self,
        root: &Root,
        _limit: u64,
        hold: &dyn Fn(DiskName) -> Option<Held<'a>>,
    ) -> Vec<String> {
        recover::recover(root, hold)
    }
}

/// The memory limit of a disk that has another size then, in bytes.
fn in_proportion(limit: u64, old: u64, new: u64) -> u64 {
    let limit = u128::from(limit) * u128::from(new) / u128::from(old.max(1));
    limit.try_into().unwrap_or(u64::MAX)
}

/// Puts another compressed disk below a disk that is claimed and empty.
fn change_size(root: &Root, disk: &Device<'_>, bytes: u64) -> Result<Left> {
    let (name, what) = (disk.name, format!("resize {}", disk.name));
    let (control, for_parts) = (mapping::control(root)?, mapping::control(root)?.for_parts());
    let old = number_of(root, &control, name)?;
    let stats = || Ok::<_, kernel::Error>(zram::stats(root, old)?.unwrap_or_default());
    let has_data = || {
        Error::Conflict(format!(
            "{name} has data, and a RAM disk of zram gets another size only while it is empty; flush it first"
        ))
    };
    let now = stats().cannot(&what)?;
    if now.stored > 0 {
        return Err(has_data());
    }
    let algorithm =
        zram::algorithms(root, old).cannot(&what)?.and_then(|(in_use, _)| Algorithm::parse(&in_use));
    let new = New { bytes, algorithm, limit: Some(in_proportion(now.limit, disk.size, bytes)) };
    let (number, resumed) = Undo::run(|undo| {
        let (number, dev) = make_below(root, &for_parts, name, &new, undo)?;
        let mut swap = || {
            if stats()?.stored > 0 {
                return Ok(false);
            }
            put_to_use(&control, &disk_mapping(name), &table(bytes, dev)).map(|()| true)
        };
        let (swapped, resumed) = while_suspended(&control, name, "resize", &mut swap)?;
        // After a failure the new table may be in use all the same.
        if !matches!(swapped, Ok(true)) && block::size_of_disk(root, &disk.device) != Ok(Some(bytes)) {
            let error = swapped.cannot(&what).err().unwrap_or_else(has_data);
            return Err(failed(name, error, resumed));
        }
        Ok((number, resumed))
    })?;
    let mut left = Left::default();
    left.note(resumed);
    left.note(hold(root, &for_parts, name, number));
    left.note(release(root, name, old));
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_limit_follows_the_size() {
        assert_eq!(in_proportion(32, 64, 128), 64);
        assert_eq!(in_proportion(100, 64, 32), 50);
        assert_eq!(in_proportion(u64::MAX, 1, u64::MAX), u64::MAX);
        assert_eq!(in_proportion(1, 0, 5), 5);
    }
}
