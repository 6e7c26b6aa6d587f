//! RAM disks of the kernel's driver `brd`, behind a mapping. `rdN` consists of:
//!
//! * `ramK`, K from 1024 on, which has the data from its second MiB on. What looks at the start of disks does
//!   not find it there. The first page has a [`label`].
//! * `rdN-ramK`, the guard: a mapping of the first page of the data.
//! * `rdN`, a mapping of that page through the guard, and of all other pages directly. `/dev/rdN` is a link
//!   to it.
//!
//! The guard has two tasks. While it is there, `ramK` is taken and may hold memory: it is made first and
//! removed last. And it keeps the discards of others away, which `brd` does not survive beside reads and
//! writes of the same page: they are off on the guard, and a mapping has none where a single target of its
//! table has none. To turn them off on `rdN` itself would not do, since each new table turns them on again.

mod label;
mod parts;
mod recover;

use std::fs::File;

use super::link;
use super::mapped::{
    self, BRD, KIND, LOST, MOST, Parts, device_name, disk_mapping, failed, put_to_use, while_suspended,
};
use crate::kernel::block;
use crate::kernel::dm::Control;
use crate::kernel::{self, Root, brd, machine};
use crate::storage::disks::driver::{Claims, Device, Driver, New, RamDisk, Shrunk, not_loaded, refused};
use crate::storage::error::{Cannot, Left, Result};
use crate::storage::locks::Held;
use crate::storage::mapping;
use crate::storage::names::DiskName;
use crate::storage::undo::Undo;
use crate::storage::wait::retry_busy;
use label::Label;
use parts::{
    HEAD, below, check_room, clear, end_of_data, free_number, keep_table, lost_size, make_guard, map,
    map_again, page, put_to_use_without_discards, release, table,
};

/// The largest `rd_size` that is advised: 16 TiB.
const ADVICE: &str = " rd_nr=0 rd_size=17179869184";

/// The driver.
pub struct Brd;

impl Driver for Brd {
    fn name(&self) -> &'static str {
        "brd"
    }

    fn lacks(&self, root: &Root) -> Result<Option<String>> {
        let look = "look for the module brd";
        if !brd::is_loaded(root).cannot(look)? {
            return Ok(Some(not_loaded("brd", ADVICE)));
        }
        if brd::minors(root).cannot(look)? > 1 {
            return Ok(Some(format!("brd was loaded with max_part; load it with: modprobe brd{ADVICE}")));
        }
        let (size, memory) = (brd::size(root).cannot(look)?, machine::memory().total);
        if size < memory {
            return Ok(Some(format!(
                "the disks of brd have {} MiB here, which is less than the memory; load it with: modprobe brd{ADVICE}",
                size >> 20
            )));
        }
        let Some(control) = mapping::if_loaded(root)? else {
            return Ok(Some(not_loaded("dm-mod", "")));
        };
        Ok(match parts::can_discard(root, &control.for_parts())? {
            Some(true) => None,
            Some(false) => Some(
                "the brd of this kernel never gives memory back; newer kernels have one that does".into(),
            ),
            None => Some("this kernel makes no disks of brd on demand (CONFIG_BLOCK_LEGACY_AUTOLOAD)".into()),
        })
    }

    fn find(&self, root: &Root, name: DiskName) -> Result<Option<String>> {
        let info = BRD.find(root, name).cannot(format_args!("look for {name}"))?;
        Ok(info.map(|info| device_name(info.dev)))
    }

    fn devices(&self, root: &Root) -> Result<Vec<(DiskName, String)>> {
        BRD.devices(root)
    }

    fn list(&self, root: &Root) -> Result<Vec<RamDisk>> {
        let what = "list the RAM disks";
        let look = |parts: Parts| {
            let (size, locked, fault) = match parts.device(root).cannot(what)? {
                Some((device, size)) => (size, block::is_disk_read_only(root, &device).cannot(what)?, None),
                None => match lost_size(root, &parts)? {
                    Some(size) => (size, false, Some(LOST.to_owned())),
                    None => return Ok(None),
                },
            };
            // The label is no data.
            let held = brd::held(root, parts.number).map(|held| held.saturating_sub(page()));
            Ok(Some(RamDisk {
                name: parts.name,
                size,
                usage: held.unwrap_or(size).min(size),
                is_measured: held.is_some(),
                locked,
                driver: self.name(),
                compressed: None,
                fault,
            }))
        };
        BRD.all(root).cannot(what)?.into_iter().filter_map(|parts| look(parts).transpose()).collect()
    }

    fn name_of(&self, root: &Root, device: &str) -> Result<Option<DiskName>> {
        BRD.disk_of(root, device).cannot(format_args!("look at {device}"))
    }

    fn repair(&self, root: &Root, name: DiskName) -> Result<()> {
        let mut device = self.find(root, name)?;
        if device.is_none() {
            let all = BRD.all(root).cannot(format_args!("look for {name}"))?;
            let Some(parts) = all.into_iter().find(|parts| parts.name == name) else { return Ok(()) };
            let Some(size) = lost_size(root, &parts)? else { return Ok(()) };
            device = Some(map_again(root, name, parts.number, size)?);
        }
        device.map_or(Ok(()), |device| link::repair(root, name, KIND, &device))
    }

    /// Its guard, too: the first page is behind it.
    fn check_running(&self, root: &Root, name: DiskName) -> Result<()> {
        BRD.check_running(root, name)?;
        if BRD.find(root, name).cannot(format_args!("look at {name}"))?.is_none() {
            return Ok(());
        }
        let control = mapping::control(root)?;
        // One with another table has no guard.
        let Ok((_, number)) = below(&control, name) else { return Ok(()) };
        let guard = BRD.guard(name, number);
        match mapping::info_of(&control, &guard)? {
            Some(info) if info.suspended => Err(mapping::suspended(guard, "")),
            _ => Ok(()),
        }
    }

    /// Nor may another program have a mapping of its name.
    fn is_free(&self, root: &Root, name: DiskName) -> Result<bool> {
        mapped::is_free(root, name)
    }

    fn claims(&self, root: &Root) -> Result<Claims> {
        let what = "add up the sizes of the RAM disks";
        let mut claims = Claims::default();
        let disks = BRD.all(root).cannot(what)?;
        if disks.is_empty() {
            return Ok(claims);
        }
        let sizes = block::sizes(root).cannot(what)?;
        for parts in disks {
            let size = match parts.disk.and_then(|dev| sizes.get(&dev)) {
                Some(&size) => size,
                None => label::read(root, parts.number).cannot(what)?.unwrap_or_default().reach,
            };
            claims.names.push(parts.name);
            claims.bytes = claims.bytes.saturating_add(size);
        }
        Ok(claims)
    }

    fn most(&self, _root: &Root) -> Result<(u32, &'static str)> {
        Ok((MOST, "this daemon makes no more; remove one"))
    }

    fn attach(&self, root: &Root, name: DiskName, new: &New, _limit: u64) -> Result<()> {
        let bytes = new.bytes;
        check_room(root, name, bytes)?;
        link::check_place(root, name, KIND)?;
        let (number, reach) = free_number(root)?;
        let reach = reach.max(bytes);
        let control = mapping::control(root)?;
        Undo::run(|undo| {
            undo.push(format!("taking {}", brd::name(number)), move || release(root, name, number, bytes));
            let guard = make_guard(root, name, number)?;
            let labelled = |size| {
                let label = Label { size, reach };
                label::write(root, number, label).cannot(format_args!("label {}", brd::name(number)))
            };
            labelled(0)?;
            clear(root, number, 0, reach)?;
            let dev = map(root, &control, name, &table(bytes, guard, number), undo)?;
            labelled(bytes)?;
            undo.push(format!("making /dev/{name}"), move || {
                link::remove(root, name, KIND).cannot(format_args!("remove /dev/{name}"))
            });
            link::make(root, name, KIND, &device_name(dev)).cannot(format_args!("make /dev/{name}"))
        })
    }

    fn detach(&self, root: &Root, disk: &Device<'_>, claim: File) -> Result<Left> {
        let name = disk.name;
        let control = mapping::control(root)?;
        let (_, number) = below(&control, name).cannot(format_args!("remove {name}"))?;
        // device-mapper refuses while anybody has it open.
        drop(claim);
        // Nobody takes it for a disk that has lost its mapping.
        label::set_size(root, number, 0).cannot(format_args!("remove {name}"))?;
        retry_busy(|| control.remove(&disk_mapping(name))).map_err(|error| {
            // If that fails as well, the next start writes it.
            let _ = label::set_size(root, number, disk.size);
            refused(name, "remove", error)
        })?;
        // The disk is gone, whether or not what it leaves behind can be removed.
        let mut left = Left::default();
        left.note(link::remove(root, name, KIND).cannot(format_args!("remove the link /dev/{name}")));
        left.note(release(root, name, number, disk.size));
        Ok(left)
    }

    fn grow(&self, root: &Root, disk: &Device<'_>, bytes: u64, _limit: u64) -> Result<Left> {
        let (name, what) = (disk.name, format!("resize {}", disk.name));
        check_room(root, name, bytes)?;
        let control = mapping::control(root)?;
        let (guard, number) = below(&control, name).cannot(&what)?;
        let reach =
            label::read(root, number).cannot(&what)?.map_or(disk.size, |label| label.reach).max(bytes);
        label::write(root, number, Label { size: disk.size, reach }).cannot(&what)?;
        clear(root, number, disk.size, bytes)?;
        Undo::run(|undo| {
            undo.push(format!("giving {name} a new table"), || {
                keep_table(root, &control, disk, &table(disk.size, guard, number))
            });
            put_to_use_without_discards(root, &control, name, disk.dev, &table(bytes, guard, number))?;
            label::set_size(root, number, bytes).cannot(&what)?;
            Ok(Left::default())
        })
    }

    fn least_size(&self, root: &Root, disk: &Device<'_>, _claim: &File) -> kernel::Result<u64> {
        let (_, number) = below(&Control::open(root)?, disk.name)?;
        end_of_data(root, number, 0, disk.size)
    }

    /// Nobody writes while it is suspended.
    fn shrink(&self, root: &Root, disk: &Device<'_>, claim: File, bytes: u64) -> Result<Shrunk> {
        let (name, what) = (disk.name, format!("resize {}", disk.name));
        let control = mapping::control(root)?;
        let (guard, number) = below(&control, name).cannot(&what)?;
        let mapping = disk_mapping(name);
        let mut shrink = || {
            if end_of_data(root, number, bytes, disk.size)? > bytes {
                return Ok(false);
            }
            put_to_use(&control, &mapping, &table(bytes, guard, number)).map(|()| true)
        };
        let (shrunk, resumed) = while_suspended(&control, name, "resize", &mut shrink)?;
        // After a failure the new table may be in use all the same.
        if !matches!(shrunk, Ok(true)) && block::size_of_disk(root, &disk.device) != Ok(Some(bytes)) {
            return match shrunk.cannot(&what) {
                Ok(_) => resumed.map(|()| Shrunk::DataAbove),
                Err(error) => Err(failed(name, error, resumed)),
            };
        }
        drop(claim);
        let mut left = Left::default();
        left.note(resumed);
        let labelled = label::set_size(root, number, bytes).map(drop);
        left.note(labelled.cannot(format_args!("label {}", brd::name(number))));
        // Pages full of zeros.
        left.note(clear(root, number, bytes, disk.size));
        Ok(Shrunk::Done(left))
    }

    fn free(&self, root: &Root, disk: &Device<'_>, claim: File) -> Result<Left> {
        let control = mapping::control(root)?;
        let (_, number) = below(&control, disk.name).cannot(format_args!("look at {}", disk.name))?;
        let clear = |at: &mut u64| brd::clear(root, number, at, HEAD + disk.size);
        mapped::empty(&control, disk, &claim, HEAD, &clear)
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
