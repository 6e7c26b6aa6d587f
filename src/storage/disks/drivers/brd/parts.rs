//! What a disk of `brd` consists of: its names, its mappings and their tables, and its memory.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use super::label::{self, Label};
use crate::kernel::block::{self, Dev};
use crate::kernel::dm::{self, Control, Target};
use crate::kernel::{self, Root, brd};
use crate::storage::disks::driver::Device;
use crate::storage::disks::drivers::mapped::{self, BRD, Parts, device_name, disk_mapping, linear, resume};
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::mapping::{self, not_made, uuid};
use crate::storage::names::DiskName;
use crate::storage::undo::Undo;
use crate::storage::usage;
use crate::storage::wait::retry_busy;

/// The first `ramK` that is taken. The first 16 are other people's on many machines.
const FIRST: u32 = 1024;

/// The last one that the kernel has a device number for.
const LAST: u32 = (1 << 20) - 1;

/// Where the data begins on `ramK`, in bytes.
pub const HEAD: u64 = 1 << 20;

/// What the guard maps, in bytes.
const GUARDED: u64 = 4096;

/// The guard of a disk that is mapped, and K of the `ramK` that both stand on.
pub fn below(control: &Control, name: DiskName) -> kernel::Result<(Dev, u32)> {
    let strange = || kernel::Error::strange(format!("ask what {name} stands on"));
    let deps = control.deps(&disk_mapping(name))?;
    let ram = deps.iter().find(|&&dev| dev == brd::dev(dev.minor)).ok_or_else(strange)?;
    let guard = deps.iter().find(|dev| *dev != ram).ok_or_else(strange)?;
    Ok((*guard, ram.minor))
}

/// Whether the driver can discard; `None` if the kernel makes none of its disks.
pub fn can_discard(root: &Root, control: &Control) -> Result<Option<bool>> {
    static PROBE: Mutex<()> = Mutex::new(());
    let ask = || brd::can_discard(root, FIRST).cannot("ask what brd can do");
    if let Some(known) = ask()? {
        return Ok(Some(known));
    }
    // One request at a time: the others find the disk that the first one made.
    let _alone = PROBE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = ask()? {
        return Ok(Some(known));
    }
    // A first disk will tell. For the kernel to make it, a table that names it is enough.
    let probe = probe_mapping();
    // Else another daemon's probe is at work, or was left.
    if control.create(&probe, &uuid(&probe)).is_ok() {
        let made = control.load(&probe, &[linear(0, GUARDED, brd::dev(FIRST), HEAD)]);
        // A kernel without such a disk says so below. One without a label is not used again.
        let _ = made.and_then(|()| label::write(root, FIRST, Label::default()));
        let _ = retry_busy(|| control.remove(&probe));
    }
    ask()
}

/// The mapping that is never put to use, and that a probe removes again.
pub fn probe_mapping() -> dm::Name {
    dm::Name::new("rapiddiskd-probe").expect("letters and a dash")
}

/// Bytes in a page of memory.
pub fn page() -> u64 {
    rustix::param::page_size() as u64
}

/// Refuses a disk for which those of `brd` are too small.
pub fn check_room(root: &Root, name: DiskName, bytes: u64) -> Result<()> {
    let room = brd::size(root).cannot("ask for the size of brd's disks")?.saturating_sub(HEAD);
    if bytes <= room {
        return Ok(());
    }
    Err(Error::Conflict(format!(
        "{name} can have {} MiB at most, since the disks of brd are no larger; load brd with a larger rd_size",
        room >> 20
    )))
}

/// The lowest K whose `ramK` is not there yet, or is ours and free, and how far it may hold old data, in bytes.
pub fn free_number(root: &Root) -> Result<(u32, u64)> {
    let what = "look for a free disk of brd";
    let taken: HashSet<_> = BRD.all(root).cannot(what)?.into_iter().map(|parts| parts.number).collect();
    for number in (FIRST..=LAST).filter(|number| !taken.contains(number)) {
        let reach = match brd::exists(root, number).cannot(what)? {
            true => reach_if_free(root, number)?,
            false => Some(0),
        };
        if let Some(reach) = reach {
            return Ok((number, reach));
        }
    }
    Err(Error::Conflict("all disks of brd are taken".into()))
}

/// How far `ramK` may hold old data, in bytes; `None` if it is not ours, or somebody has it. The label of one that is
/// free has no size from then on.
fn reach_if_free(root: &Root, number: u32) -> Result<Option<u64>> {
    let device = brd::name(number);
    let Ok(_claim) = usage::claim_unused(root, brd::dev(number), &*device, block::Mode::Claim) else {
        return Ok(None);
    };
    // The disk is gone. Nobody takes what it left for one that has lost its mapping.
    let label = label::set_size(root, number, 0).cannot(format_args!("label {device}"))?;
    let reach = label.map(|label| label.reach);
    // What it holds where nothing of ours is would be somebody else's.
    let holds_more = brd::held(root, number).is_some_and(|held| held > page());
    Ok(reach.filter(|&reach| reach > 0 || !holds_more))
}

/// Makes the guard, and with it `ramK`, and turns discards off on it. Gives its device number.
pub fn make_guard(root: &Root, name: DiskName, number: u32) -> Result<Dev> {
    let control = mapping::control(root)?.for_parts();
    let guard = BRD.guard(name, number);
    let dev = control.create(&guard, &uuid(&guard)).map_err(|error| not_made(&guard, error))?;
    let table = linear(0, GUARDED, brd::dev(number), HEAD);
    control
        .load(&guard, &[table])
        .and_then(|()| control.resume(&guard))
        .and_then(|()| block::refuse_discards(root, &device_name(dev)))
        .cannot(format_args!("map {guard}"))?;
    Ok(dev)
}

/// The size in bytes of a disk without a mapping in use, if somebody removed that. `None`: the disk is being made
/// or removed. While it is, its label has no size.
pub fn lost_size(root: &Root, &Parts { name, number, .. }: &Parts) -> Result<Option<u64>> {
    let label = label::read(root, number).cannot(format_args!("look at {}", brd::name(number)))?;
    let Some(size) = label.map(|label| label.size).filter(|&size| size > 0) else { return Ok(None) };
    // It may be complete, or be gone, a moment after the mappings were listed.
    let control = mapping::control(root)?;
    let is_guarded = mapping::ours(&control, &BRD.guard(name, number))?.is_some();
    let is_mapped = BRD.ours(&control, name)?.is_some_and(|info| info.active);
    Ok((is_guarded && !is_mapped).then_some(size))
}

/// Makes the mapping of a disk. Gives its device number.
pub fn map<'a>(
    root: &Root,
    control: &'a Control,
    name: DiskName,
    table: &[Target],
    undo: &mut Undo<'a>,
) -> Result<Dev> {
    let dev = BRD.make(control, name, undo)?;
    put_to_use_without_discards(root, control, name, dev, table)?;
    Ok(dev)
}

/// Maps a disk again whose mapping somebody removed. Gives the kernel's name of it.
pub fn map_again(root: &Root, name: DiskName, number: u32, size: u64) -> Result<String> {
    let control = mapping::control(root)?;
    let guard = BRD.guard(name, number);
    let Some(guard) = mapping::ours(&control, &guard)?.filter(|info| info.active) else {
        return Err(Error::Conflict(format!("{name} has lost its mapping, and {guard} has no table")));
    };
    BRD.remove_empty(&control, name)?;
    let table = table(size, guard.dev, number);
    Undo::run(|undo| map(root, &control, name, &table, undo).map(device_name))
}

/// The table of a disk.
pub fn table(bytes: u64, guard: Dev, number: u32) -> [Target; 2] {
    [linear(0, GUARDED, guard, 0), linear(GUARDED, bytes - GUARDED, brd::dev(number), HEAD + GUARDED)]
}

/// Gives a disk a table, and makes sure that it has no discards with it.
pub fn put_to_use_without_discards(
    root: &Root,
    control: &Control,
    name: DiskName,
    dev: Dev,
    table: &[Target],
) -> Result<()> {
    mapped::put_to_use(control, &disk_mapping(name), table).cannot(format_args!("map {name}"))?;
    let device = device_name(dev);
    match block::discard_limit(root, &device).cannot(format_args!("look at {device}"))? {
        Some(0) => Ok(()),
        _ => Err(Error::Unavailable(format!(
            "this kernel lets discards through to {name}, which its brd does not survive; use --ram-driver loop"
        ))),
    }
}

/// Has a disk run with its old table, after a new one could not be put to use, or should not have been. It may be
/// suspended: the kernel leaves it so where it could not change the table.
pub fn keep_table(root: &Root, control: &Control, disk: &Device<'_>, old: &[Target]) -> Result<()> {
    let (name, mapping) = (disk.name, disk_mapping(disk.name));
    let what = format!("take the new table from {name}");
    match block::size_of_disk(root, &disk.device).cannot(&what)? == Some(disk.size) {
        true => control.clear(&mapping),
        false => control.load(&mapping, old),
    }
    .cannot(what)?;
    resume(control, &mapping).cannot(format_args!("resume {name}"))
}

/// Where the data on `ramK` ends, from byte `start` to byte `end` of the disk.
pub fn end_of_data(root: &Root, number: u32, start: u64, end: u64) -> kernel::Result<u64> {
    if brd::held(root, number).is_some_and(|held| held <= page()) {
        return Ok(start);
    }
    Ok(brd::end_of_data(root, number, HEAD + start, HEAD + end)? - HEAD)
}

/// Frees the memory of `ramK` from byte `start` to byte `end` of the disk, to which no mapping leads.
pub fn clear(root: &Root, number: u32, start: u64, end: u64) -> Result<()> {
    // To walk over what is not there takes its time.
    if brd::held(root, number).is_some_and(|held| held <= page()) {
        return Ok(());
    }
    brd::clear(root, number, &mut (HEAD + start), HEAD + end)
        .cannot(format_args!("free the memory of {}", brd::name(number)))
}

/// Frees the memory of `ramK`, whose disk is gone and had `bytes` bytes, and removes the guard.
pub fn release(root: &Root, name: DiskName, number: u32, bytes: u64) -> Result<()> {
    let control = mapping::control(root)?.for_parts();
    let guard = BRD.guard(name, number);
    let Some(info) = mapping::ours(&control, &guard)? else { return Ok(()) };
    if info.active {
        let what = format!("label {}", brd::name(number));
        // First, so that nobody takes the rest for a disk that has lost its mapping. Without a label nothing was
        // written, or somebody else has taken the disk.
        let label = label::set_size(root, number, 0).cannot(&what)?;
        clear(root, number, 0, label.unwrap_or_default().reach.max(bytes))?;
        if label.is_some() {
            label::write(root, number, Label::default()).cannot(&what)?;
        }
    }
    retry_busy(|| control.remove(&guard)).cannot(format_args!("remove {guard}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_leads_to_the_data_without_a_gap() {
        let [guarded, rest] = table(16 << 20, Dev { major: 253, minor: 4 }, 1024);
        assert_eq!((guarded.start, guarded.length, &*guarded.text), (0, 8, "253:4 0"));
        assert_eq!((rest.start, rest.length, &*rest.text), (8, 32760, "1:1024 2056"));
    }
}
