//! What a disk of `brd` consists of: its names, its mappings and their tables, and its memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use super::label::{self, Label};
use crate::kernel::block::{self, Dev, SECTOR};
use crate::kernel::dm::{self, Control, Target};
use crate::kernel::{self, Root, brd};
use crate::storage::disks::driver::{Device, refused};
use crate::storage::disks::drivers::link;
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::mapping::{self, not_made, uuid};
use crate::storage::names::DiskName;
use crate::storage::undo::Undo;
use crate::storage::usage;
use crate::storage::wait::retry_busy;

/// The first `ramK` that is taken. The first 16 are other people's on many machines.
pub const FIRST: u32 = 1024;

/// The last one that the kernel has a device number for.
const LAST: u32 = (1 << 20) - 1;

/// Where the data begins on `ramK`, in bytes.
pub const HEAD: u64 = 1 << 20;

/// What the guard maps, in bytes.
pub const GUARDED: u64 = 4096;

/// What the names of its devices begin with.
pub const KIND: &str = "dm-";

/// What a disk consists of.
pub struct Parts {
    /// The disk.
    pub name: DiskName,
    /// K of `ramK`.
    pub number: u32,
    /// The mapping `rdN`. Without it the disk is being made or removed, or somebody else removed it.
    pub disk: Option<Dev>,
}

impl Parts {
    /// The kernel's name of `rdN`, and its size in bytes. `None` while it is being made or removed.
    pub fn device(&self, root: &Root) -> kernel::Result<Option<(String, u64)>> {
        let Some(dev) = self.disk else { return Ok(None) };
        let device = device_name(dev);
        let size = block::size_of_disk(root, &device)?.filter(|&size| size > 0);
        Ok(size.map(|size| (device, size)))
    }
}

/// All disks, those included that are being made or removed.
pub fn all(root: &Root) -> kernel::Result<Vec<Parts>> {
    // Most machines need no look at each mapping.
    if !brd::is_loaded(root)? {
        return Ok(Vec::new());
    }
    let control = match Control::open(root) {
        Err(error) if error.is_gone() => return Ok(Vec::new()),
        control => control?,
    };
    let listed = control.list()?;
    // Before a mapping gets its first table, device-mapper alone knows it.
    let is_ours = |name: &dm::Name, dev| match block::mapped_uuid(root, dev)? {
        Some(known) => Ok(known == uuid(name)),
        None => match control.info(name) {
            Err(error) if error.is_gone() => Ok(false),
            info => Ok(info?.uuid == uuid(name)),
        },
    };
    let disks: HashMap<_, _> =
        listed.iter().filter_map(|listed| Some((DiskName::parse(&listed.name)?, listed.dev))).collect();
    let mut found = Vec::new();
    for listed in &listed {
        let Some((name, number)) = guarded(&listed.name) else { continue };
        if !is_ours(&guard_mapping(name, number), listed.dev)? {
            continue;
        }
        let disk = match disks.get(&name) {
            Some(&dev) if is_ours(&disk_mapping(name), dev)? => Some(dev),
            _ => None,
        };
        found.push(Parts { name, number, disk });
    }
    Ok(found)
}

/// The state of a disk's mapping, if it is one of ours; `None` while it is being made or removed.
pub fn find(root: &Root, name: DiskName) -> kernel::Result<Option<dm::Info>> {
    // Most machines need no device-mapper.
    if !brd::is_loaded(root)? {
        return Ok(None);
    }
    let mapping = disk_mapping(name);
    match Control::open(root).and_then(|control| control.info(&mapping)) {
        Err(error) if error.is_gone() => Ok(None),
        info => Ok(Some(info?).filter(|info| info.active && info.uuid == uuid(&mapping))),
    }
}

/// The guard of a disk that is mapped, and K of the `ramK` that both stand on.
pub fn below(control: &Control, name: DiskName) -> kernel::Result<(Dev, u32)> {
    let strange = || kernel::Error::strange(format!("ask what {name} stands on"));
    let deps = control.deps(&disk_mapping(name))?;
    let ram = deps.iter().find(|&&dev| dev == brd::dev(dev.minor)).ok_or_else(strange)?;
    let guard = deps.iter().find(|dev| *dev != ram).ok_or_else(strange)?;
    Ok((*guard, ram.minor))
}

/// The device-mapper name of `rdN`.
pub fn disk_mapping(name: DiskName) -> dm::Name {
    dm::Name::new(&name.to_string()).expect("letters and digits")
}

/// The device-mapper name of the guard.
pub fn guard_mapping(name: DiskName, number: u32) -> dm::Name {
    dm::Name::new(&format!("{name}-{}", brd::name(number))).expect("letters, digits and a dash")
}

/// The disk and the number K of which this is the guard's name.
pub fn guarded(mapping: &str) -> Option<(DiskName, u32)> {
    let (name, number) = mapping.split_once("-ram")?;
    let (name, number) = (DiskName::parse(name)?, number.parse().ok()?);
    (guard_mapping(name, number).as_str() == mapping).then_some((name, number))
}

/// The disk that the kernel knows by the name `device`, if it is one of ours.
pub fn disk_of(root: &Root, device: &str) -> kernel::Result<Option<DiskName>> {
    if !link::is_of(KIND, device) {
        return Ok(None);
    }
    let name = block::mapped_name(root, device)?.and_then(|name| DiskName::parse(&name));
    let Some((name, dev)) = name.zip(block::dev_of(root, device)?) else { return Ok(None) };
    let known = block::mapped_uuid(root, dev)?;
    Ok((known == Some(uuid(&disk_mapping(name)))).then_some(name))
}

/// Whether the driver can discard; `None` if the kernel makes none of its disks.
pub fn can_discard(root: &Root, control: &Control) -> Result<Option<bool>> {
    static PROBE: Mutex<()> = Mutex::new(());
    let ask = || brd::can_discard(root).cannot("ask what brd can do");
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

/// The kernel's name of a mapping.
pub fn device_name(dev: Dev) -> String {
    format!("{KIND}{}", dev.minor)
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
    let taken: Vec<_> = all(root).cannot(what)?.into_iter().map(|parts| parts.number).collect();
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
    let guard = guard_mapping(name, number);
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
    let is_guarded = mapping::ours(&control, &guard_mapping(name, number))?.is_some();
    let is_mapped = mapping::ours(&control, &disk_mapping(name))?.is_some_and(|info| info.active);
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
    let mapping = disk_mapping(name);
    let dev = control.create(&mapping, &uuid(&mapping)).map_err(|error| not_made(name, error))?;
    undo.push(format!("mapping {name}"), move || {
        retry_busy(|| control.remove(&disk_mapping(name))).cannot(format_args!("remove {name}"))
    });
    put_to_use(root, control, name, dev, table)?;
    Ok(dev)
}

/// Maps a disk again whose mapping somebody removed. Gives the kernel's name of it.
pub fn map_again(root: &Root, name: DiskName, number: u32, size: u64) -> Result<String> {
    let control = mapping::control(root)?;
    let guard = guard_mapping(name, number);
    let Some(guard) = mapping::ours(&control, &guard)?.filter(|info| info.active) else {
        return Err(Error::Conflict(format!("{name} has lost its mapping, and {guard} has no table")));
    };
    let mapping = disk_mapping(name);
    // One without a table: an earlier attempt got no further.
    if mapping::ours(&control, &mapping)?.is_some_and(|info| !info.active) {
        retry_busy(|| control.remove(&mapping)).cannot(format_args!("remove the empty mapping {name}"))?;
    }
    let table = table(size, guard.dev, number);
    Undo::run(|undo| map(root, &control, name, &table, undo).map(device_name))
}

/// The table of a disk.
pub fn table(bytes: u64, guard: Dev, number: u32) -> [Target; 2] {
    [linear(0, GUARDED, guard, 0), linear(GUARDED, bytes - GUARDED, brd::dev(number), HEAD + GUARDED)]
}

/// A part of a table, all in bytes: `length` from `start` on are those of the device from `at` on.
pub fn linear(start: u64, length: u64, dev: Dev, at: u64) -> Target {
    Target {
        start: start / SECTOR,
        length: length / SECTOR,
        kind: "linear".into(),
        text: format!("{dev} {}", at / SECTOR),
    }
}

/// Gives a disk a table, and makes sure that it has no discards with it.
pub fn put_to_use(root: &Root, control: &Control, name: DiskName, dev: Dev, table: &[Target]) -> Result<()> {
    let mapping = disk_mapping(name);
    control
        .load(&mapping, table)
        .and_then(|()| control.resume(&mapping))
        .cannot(format_args!("map {name}"))?;
    let device = device_name(dev);
    match block::discard_limit(root, &device).cannot(format_args!("look at {device}"))? {
        Some(0) => Ok(()),
        _ => Err(Error::Unavailable(format!(
            "this kernel lets discards through to {name}, which its brd does not survive; use --ram-driver loop"
        ))),
    }
}

/// Changes a disk that is claimed while it is suspended: whoever reads or writes waits. Gives what `change`
/// gives, and whether the disk was resumed. It is refused if it is open elsewhere; `verb` completes "cannot …".
pub fn while_suspended<T>(
    control: &Control,
    name: DiskName,
    verb: &str,
    change: impl FnOnce() -> T,
) -> Result<(T, Result<()>)> {
    let mapping = disk_mapping(name);
    let check_alone = || match control.info(&mapping)?.open_count {
        // The claim.
        0 | 1 => Ok(()),
        _ => Err(kernel::Error::new(format!("open {name}"), &Errno::BUSY.into())),
    };
    let resumed = || resume(control, &mapping).cannot(format_args!("resume {name}"));
    let mut left = Ok(());
    let suspended = retry_busy(|| {
        check_alone()?;
        control.suspend(&mapping)?;
        // Somebody may have opened it, and even written to it, meanwhile.
        check_alone().inspect_err(|_| left = resumed())
    });
    suspended.map_err(|error| failed(name, refused(name, verb, error), left))?;
    let changed = change();
    Ok((changed, resumed()))
}

/// Ends the suspension of a disk. The kernel forgets a table that it cannot put to use: the second attempt is one
/// without it.
fn resume(control: &Control, mapping: &dm::Name) -> kernel::Result<()> {
    control.resume(mapping).or_else(|_| control.resume(mapping))
}

/// The failure of a change, and that the disk was left suspended if it was.
pub fn failed(name: DiskName, error: Error, resumed: Result<()>) -> Error {
    match resumed {
        Ok(()) => error,
        Err(left) => Error::NotUndone(Box::new(error), vec![format!("suspending {name} ({left})")]),
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
    let guard = guard_mapping(name, number);
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
    fn the_guard_is_named_after_both_and_nothing_else_is_one() {
        assert_eq!(guard_mapping(DiskName(7), 1030).as_str(), "rd7-ram1030");
        assert_eq!(guarded("rd7-ram1030"), Some((DiskName(7), 1030)));
        for other in [
            "rd7",
            "rd7-ram",
            "rd7-ram01030",
            "rd07-ram1030",
            "rd7-ram+1030",
            "rd7-ram1030-ram2",
            "rc-wt_sda",
        ] {
            assert_eq!(guarded(other), None, "{other}");
        }
    }

    #[test]
    fn a_table_leads_to_the_data_without_a_gap() {
        let [guarded, rest] = table(16 << 20, Dev { major: 253, minor: 4 }, 1024);
        assert_eq!((guarded.start, guarded.length, &*guarded.text), (0, 8, "253:4 0"));
        assert_eq!((rest.start, rest.length, &*rest.text), (8, 32760, "1:1024 2056"));
    }
}
