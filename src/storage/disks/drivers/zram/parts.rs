//! What a disk of `zram` consists of: the compressed disk, its guard, and the mapping.

use crate::kernel::block::{self, Dev};
use crate::kernel::dm::{self, Control, Target};
use crate::kernel::{self, Root, unless_gone, zram};
use crate::storage::disks::driver::New;
use crate::storage::disks::drivers::mapped::{Parts, ZRAM, device_name, disk_mapping, linear, put_to_use};
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::mapping::{self, not_made, uuid};
use crate::storage::names::{Algorithm, DiskName};
use crate::storage::undo::Undo;
use crate::storage::wait::retry_busy;

/// What the guard maps, in bytes: one block.
const GUARDED: u64 = 4096;

/// What the kernel keeps of each page of a disk, whether or not it has data, in bytes.
const ENTRY: u64 = 24;

/// The memory that a disk may take, in bytes: what its data may take, and the kernel's table of its pages.
pub fn memory(bytes: u64, limit: u64) -> u64 {
    limit.saturating_add((bytes / rustix::param::page_size() as u64).saturating_mul(ENTRY))
}

/// The most memory that the data of a new disk may take, in bytes, unless that is asked for: half of its size.
pub fn limit(new: &New) -> u64 {
    new.limit.unwrap_or(new.bytes / 2)
}

/// The table of a mapping of `length` bytes on the compressed disk.
pub fn table(length: u64, dev: Dev) -> [Target; 1] {
    [linear(0, length, dev, 0)]
}

/// K of the `zramK` on which a mapping stands; `None` for one that stands on none.
pub fn below(root: &Root, control: &Control, mapping: &dm::Name) -> kernel::Result<Option<u32>> {
    let Some(&dev) = control.deps(mapping)?.first() else { return Ok(None) };
    Ok(block::name_of(root, dev)?.and_then(|name| zram::number(&name)))
}

/// K of the `zramK` on which a disk stands that is there.
pub fn number_of(root: &Root, control: &Control, name: DiskName) -> Result<u32> {
    let what = format!("ask what {name} stands on");
    let number = below(root, control, &disk_mapping(name)).cannot(&what)?;
    number.ok_or_else(|| Error::Kernel(format!("cannot {what}"), kernel::Error::strange("no disk of zram")))
}

/// Whether a guard holds its disk. If it does not, the disk is being made or removed.
pub fn is_held(root: &Root, control: &Control, parts: &Parts) -> kernel::Result<bool> {
    let below = unless_gone(below(root, control, &ZRAM.guard(parts.name, parts.number)))?;
    Ok(below.flatten() == Some(parts.number))
}

/// The size in bytes of a disk that has no mapping, since somebody else removed it. `None`: it has one, or is being
/// made or removed.
pub fn lost_size(root: &Root, parts: &Parts) -> Result<Option<u64>> {
    let what = format!("look at {}", zram::name(parts.number));
    let control = mapping::control(root)?;
    let is_mapped = ZRAM.ours(&control, parts.name)?.is_some_and(|info| info.active);
    if is_mapped || !is_held(root, &control, parts).cannot(&what)? {
        return Ok(None);
    }
    block::size_of_disk(root, &zram::name(parts.number)).cannot(&what)
}

/// Makes a compressed disk and a guard that does not hold it yet. Gives its number and device number.
pub fn make_below<'a>(
    root: &'a Root,
    control: &Control,
    name: DiskName,
    new: &New,
    undo: &mut Undo<'a>,
) -> Result<(u32, Dev)> {
    let number = zram::add(root).cannot("make a disk of zram")?;
    let device = zram::name(number);
    undo.push(format!("making {device}"), move || remove(root, number));
    let guard = ZRAM.guard(name, number);
    control.create(&guard, &uuid(&guard)).map_err(|error| not_made(&guard, error))?;
    undo.push(format!("taking {device}"), move || release(root, name, number));
    if let Some(algorithm) = &new.algorithm {
        choose(root, number, algorithm)?;
    }
    zram::set_size(root, number, new.bytes, limit(new)).cannot(format_args!("give {device} its size"))?;
    Ok((number, dev_of(root, number)?))
}

fn dev_of(root: &Root, number: u32) -> Result<Dev> {
    let device = zram::name(number);
    let dev = block::dev_of(root, &device).cannot(format_args!("look at {device}"))?;
    dev.ok_or_else(|| Error::Conflict(format!("{device} was removed by another program")))
}

fn choose(root: &Root, number: u32, algorithm: &Algorithm) -> Result<()> {
    let (what, algorithm) = ("choose how the disk compresses", algorithm.as_str());
    let (_, all) = zram::algorithms(root, number).cannot(what)?.unwrap_or_default();
    if !all.iter().any(|known| known == algorithm) {
        return Err(Error::Invalid(format!(
            "the kernel's zram does not compress with {algorithm}; it has {}",
            all.join(", ")
        )));
    }
    zram::set_algorithm(root, number, algorithm).cannot(what)
}

/// Has a guard hold its disk: nobody else can take it, and it is known to be whole.
pub fn hold(root: &Root, control: &Control, name: DiskName, number: u32) -> Result<()> {
    let (guard, dev) = (ZRAM.guard(name, number), dev_of(root, number)?);
    put_to_use(control, &guard, &table(GUARDED, dev)).cannot(format_args!("map {guard}"))
}

/// Has a guard stand on nothing. The disk is then one that is being made or removed.
pub fn let_go(control: &Control, guard: &dm::Name) -> Result<()> {
    let nothing = Target { kind: "error".into(), text: String::new(), ..linear(0, GUARDED, Dev::NONE, 0) };
    put_to_use(control, guard, &[nothing]).cannot(format_args!("map {guard}"))
}

/// Frees a compressed disk to which no mapping of a disk leads, and removes it and its guard.
pub fn release(root: &Root, name: DiskName, number: u32) -> Result<()> {
    let control = mapping::control(root)?.for_parts();
    let (guard, device) = (ZRAM.guard(name, number), zram::name(number));
    let Some(info) = mapping::ours(&control, &guard)? else { return Ok(()) };
    if info.active {
        let_go(&control, &guard)?;
    }
    let reset = retry_busy(|| unless_gone(zram::reset(root, number)));
    reset.cannot(format_args!("free the memory of {device}"))?;
    retry_busy(|| control.remove(&guard)).cannot(format_args!("remove {guard}"))?;
    remove(root, number)
}

fn remove(root: &Root, number: u32) -> Result<()> {
    let removed = retry_busy(|| unless_gone(zram::remove(root, number)));
    removed.map(drop).cannot(format_args!("remove {}", zram::name(number)))
}

/// Maps a disk again whose mapping somebody removed. Gives the kernel's name of it.
pub fn map_again(root: &Root, parts: &Parts, size: u64) -> Result<String> {
    let control = mapping::control(root)?;
    ZRAM.remove_empty(&control, parts.name)?;
    let dev = dev_of(root, parts.number)?;
    Undo::run(|undo| map(&control, parts.name, size, dev, undo))
}

/// Makes the mapping of a disk. Gives the kernel's name of it.
pub fn map<'a>(
    control: &'a Control,
    name: DiskName,
    size: u64,
    dev: Dev,
    undo: &mut Undo<'a>,
) -> Result<String> {
    let mapped = ZRAM.make(control, name, undo)?;
    put_to_use(control, &disk_mapping(name), &table(size, dev)).cannot(format_args!("map {name}"))?;
    Ok(device_name(mapped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_pages_counts_too() {
        let new = New { bytes: 64 << 20, ..New::default() };
        assert_eq!(limit(&new), 32 << 20);
        let pages = (64 << 20) / rustix::param::page_size() as u64;
        assert_eq!(memory(new.bytes, limit(&new)), (32 << 20) + 24 * pages);
        assert_eq!(memory(u64::MAX, u64::MAX), u64::MAX);
    }
}
