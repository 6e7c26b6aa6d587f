//! RAM disks that are a mapping `rdN` on a disk of another driver of the kernel's, with `/dev/rdN` a link to the
//! mapping. A second one, the guard `rdN-DISK`, says which disk that is, and that it is taken.

use std::collections::HashMap;

use rustix::io::Errno;

use super::link;
use crate::kernel::block::{self, Dev, SECTOR};
use crate::kernel::dm::{self, Control, Info, Target};
use crate::kernel::links::{self, Entry};
use crate::kernel::{self, Root, brd, zram};
use crate::storage::disks::driver::{Device, refused};
use crate::storage::error::{Cannot, Error, Left, Result};
use crate::storage::locks::Held;
use crate::storage::mapping::{self, not_made, uuid};
use crate::storage::names::DiskName;
use crate::storage::undo::Undo;
use crate::storage::wait::retry_busy;

/// What the names of its devices begin with.
pub const KIND: &str = "dm-";

/// As many as the module `rapiddisk` takes.
pub const MOST: u32 = 1024;

/// What is wrong with a disk that has no mapping.
pub const LOST: &str = "has lost its mapping; any change of it maps it again, unlocked";

/// The disks of one driver.
pub struct Family {
    /// What the kernel's names of the disks below begin with.
    below: &'static str,
    /// What the UUID of `rdN` begins with.
    uuid: &'static str,
    is_loaded: fn(&Root) -> kernel::Result<bool>,
}

/// Those of `brd`.
pub const BRD: Family = Family { below: "ram", uuid: "rapiddiskd-", is_loaded: brd::is_loaded };

/// Those of `zram`.
pub const ZRAM: Family = Family { below: "zram", uuid: "rapiddiskd-zram-", is_loaded: zram::is_loaded };

/// What a disk consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The disk.
    pub name: DiskName,
    /// The number of the disk below.
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

impl Family {
    /// All disks, those included that are being made or removed: each guard, and the mapping of its disk.
    pub fn all(&self, root: &Root) -> kernel::Result<Vec<Parts>> {
        // Most machines need no look at each mapping.
        if !(self.is_loaded)(root)? {
            return Ok(Vec::new());
        }
        let control = match Control::open(root) {
            Err(error) if error.is_gone() => return Ok(Vec::new()),
            control => control?,
        };
        let listed = control.list()?;
        let has_uuid = |listed: &dm::Listed, name: &dm::Name, wanted: String| match &listed.uuid {
            Some(known) => Ok(*known == wanted),
            None => match control.info(name) {
                Err(error) if error.is_gone() => Ok(false),
                info => Ok(info?.uuid == wanted),
            },
        };
        let disks: HashMap<_, _> =
            listed.iter().filter_map(|listed| Some((DiskName::parse(&listed.name)?, listed))).collect();
        let mut found = Vec::new();
        for listed in &listed {
            let Some((name, number)) = self.guarded(&listed.name) else { continue };
            let guard = self.guard(name, number);
            if !has_uuid(listed, &guard, uuid(&guard))? {
                continue;
            }
            let disk = match disks.get(&name) {
                Some(&disk) if has_uuid(disk, &disk_mapping(name), self.uuid_of(name))? => Some(disk.dev),
                _ => None,
            };
            found.push(Parts { name, number, disk });
        }
        Ok(found)
    }

    /// The state of a disk's mapping, if it is one of this family; `None` while it is being made or removed.
    pub fn find(&self, root: &Root, name: DiskName) -> kernel::Result<Option<Info>> {
        // Most machines need no device-mapper.
        if !(self.is_loaded)(root)? {
            return Ok(None);
        }
        match Control::open(root).and_then(|control| control.info(&disk_mapping(name))) {
            Err(error) if error.is_gone() => Ok(None),
            info => Ok(Some(info?).filter(|info| info.active && info.uuid == self.uuid_of(name))),
        }
    }

    /// The disks of this family and the kernel's names of them.
    pub fn devices(&self, root: &Root) -> Result<Vec<(DiskName, String)>> {
        let mut found = Vec::new();
        for parts in self.all(root).cannot("list the RAM disks")? {
            let device = parts.device(root).cannot("list the RAM disks")?;
            // While it gets another size, it may have two guards.
            let device = device.map(|(device, _)| (parts.name, device)).filter(|it| !found.contains(it));
            found.extend(device);
        }
        Ok(found)
    }

    /// The disk that the kernel knows by the name `device`, if it is one of this family.
    pub fn disk_of(&self, root: &Root, device: &str) -> kernel::Result<Option<DiskName>> {
        if !link::is_of(KIND, device) {
            return Ok(None);
        }
        let name = block::mapped_name(root, device)?.and_then(|name| DiskName::parse(&name));
        let Some((name, dev)) = name.zip(block::dev_of(root, device)?) else { return Ok(None) };
        let known = block::mapped_uuid(root, dev)?;
        Ok((known == Some(self.uuid_of(name))).then_some(name))
    }

    /// Whether a device is a guard of this family.
    pub fn is_guard(&self, root: &Root, device: &str) -> kernel::Result<bool> {
        if !link::is_of(KIND, device) {
            return Ok(false);
        }
        let Some(name) = block::mapped_name(root, device)? else { return Ok(false) };
        let Some((disk, number)) = self.guarded(&name) else { return Ok(false) };
        let Some(dev) = block::dev_of(root, device)? else { return Ok(false) };
        Ok(block::mapped_uuid(root, dev)? == Some(uuid(&self.guard(disk, number))))
    }

    /// The state of a disk's mapping, with or without a table; `None` if there is none of this family.
    pub fn ours(&self, control: &Control, name: DiskName) -> Result<Option<Info>> {
        let info = mapping::info_of(control, &disk_mapping(name))?;
        Ok(info.filter(|info| info.uuid == self.uuid_of(name)))
    }

    /// Refuses a disk that another program has suspended, if it is one of this family.
    pub fn check_running(&self, root: &Root, name: DiskName) -> Result<()> {
        match self.find(root, name).cannot(format_args!("look at {name}"))? {
            Some(info) if info.suspended => {
                Err(mapping::suspended(name, ", or restart rapiddiskd, which resumes its RAM disks"))
            }
            _ => Ok(()),
        }
    }

    /// The device-mapper name of a guard.
    pub fn guard(&self, name: DiskName, number: u32) -> dm::Name {
        dm::Name::new(&format!("{name}-{}{number}", self.below)).expect("letters, digits and a dash")
    }

    /// The disk, and the number of the one below, of which this is the guard's name.
    fn guarded(&self, mapping: &str) -> Option<(DiskName, u32)> {
        let (name, below) = mapping.split_once('-')?;
        let number = below.strip_prefix(self.below)?;
        let (name, number) = (DiskName::parse(name)?, number.parse().ok()?);
        (self.guard(name, number).as_str() == mapping).then_some((name, number))
    }

    /// The UUID of `rdN`.
    fn uuid_of(&self, name: DiskName) -> String {
        format!("{}{name}", self.uuid)
    }

    /// Makes the mapping of a disk, without a table. Gives its device number.
    pub fn make<'a>(&self, control: &'a Control, name: DiskName, undo: &mut Undo<'a>) -> Result<Dev> {
        let made = control.create(&disk_mapping(name), &self.uuid_of(name));
        let dev = made.map_err(|error| not_made(name, error))?;
        undo.push(format!("mapping {name}"), move || {
            retry_busy(|| control.remove(&disk_mapping(name))).cannot(format_args!("remove {name}"))
        });
        Ok(dev)
    }

    /// Removes the mapping of a disk that has no table, if it is there: an earlier attempt got no further.
    pub fn remove_empty(&self, control: &Control, name: DiskName) -> Result<()> {
        if self.ours(control, name)?.is_none_or(|info| info.active) {
            return Ok(());
        }
        retry_busy(|| control.remove(&disk_mapping(name)))
            .cannot(format_args!("remove the empty mapping {name}"))
    }
}

/// The device-mapper name of `rdN`.
pub fn disk_mapping(name: DiskName) -> dm::Name {
    dm::Name::new(&name.to_string()).expect("letters and digits")
}

/// Whether nothing of another program's is in the place of a new disk: no mapping of its name, and no node.
pub fn is_free(root: &Root, name: DiskName) -> Result<bool> {
    let has_mapping = match mapping::if_loaded(root)? {
        Some(control) => mapping::info_of(&control, &disk_mapping(name))?.is_some(),
        None => false,
    };
    Ok(!has_mapping && link::is_free(root, name, KIND)?)
}

/// Repairs each of these disks of which no request is at work. Returns a line for each thing that was done or could not
/// be done.
pub fn recover_each<'a>(
    found: impl IntoIterator<Item = Parts>,
    hold: &dyn Fn(DiskName) -> Option<Held<'a>>,
    recover: impl Fn(&Parts) -> Result<Option<&'static str>>,
) -> Vec<String> {
    let mut said = Vec::new();
    for parts in found {
        let name = parts.name;
        let Some(_held) = hold(name) else { continue };
        match recover(&parts) {
            Ok(done) => said.extend(done.map(|done| format!("{name}: {done}"))),
            Err(error) => said.push(format!("{name} could not be repaired: {error}")),
        }
    }
    said
}

/// Forgets a new table that was not put to use, and ends a suspension. Says what was done.
pub fn run_again(control: &Control, name: DiskName, info: &Info) -> Result<Option<&'static str>> {
    let mapping = disk_mapping(name);
    let mut done = None;
    if info.has_next {
        done = Some("was half-resized, and keeps its size");
        control.clear(&mapping).cannot("forget its new table")?;
    }
    if info.suspended {
        done = Some("was suspended, and is resumed");
        control.resume(&mapping).cannot("resume it")?;
    }
    Ok(done)
}

/// Makes the link to a disk, if it is not there. Says whether it was not.
pub fn link_again(root: &Root, name: DiskName, device: &str) -> Result<bool> {
    let entry = links::look(&link::node(root, name)).cannot(format_args!("look at /dev/{name}"))?;
    if entry == Entry::Link(device.to_owned()) {
        return Ok(false);
    }
    link::check_place(root, name, KIND)?;
    link::make(root, name, KIND, device).cannot(format_args!("make /dev/{name}"))?;
    Ok(true)
}

/// Whether the device to which the link of a disk leads is not that disk, of whichever family.
pub fn is_lost(root: &Root, name: DiskName, device: &str) -> bool {
    [BRD, ZRAM].iter().all(|family| family.disk_of(root, device).is_ok_and(|of| of != Some(name)))
}

/// The kernel's name of a mapping.
pub fn device_name(dev: Dev) -> String {
    format!("{KIND}{}", dev.minor)
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

/// Puts a table to use.
pub fn put_to_use(control: &Control, mapping: &dm::Name, table: &[Target]) -> kernel::Result<()> {
    let loaded = control.load(mapping, table);
    loaded.or_else(|error| control.clear(mapping).and(Err(error)))?;
    control.resume(mapping)
}

/// Changes a disk that is claimed while it is suspended: whoever reads or writes waits. Gives what `change`
/// gives, and whether the disk was resumed. It is refused if it is open elsewhere; `verb` completes "cannot …".
pub fn while_suspended(
    control: &Control,
    name: DiskName,
    verb: &str,
    change: &mut dyn FnMut() -> kernel::Result<bool>,
) -> Result<(kernel::Result<bool>, Result<()>)> {
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
pub fn resume(control: &Control, mapping: &dm::Name) -> kernel::Result<()> {
    control.resume(mapping).or_else(|_| control.resume(mapping))
}

/// The failure of a change, and that the disk was left suspended if it was.
pub fn failed(name: DiskName, error: Error, resumed: Result<()>) -> Error {
    match resumed {
        Ok(()) => error,
        Err(left) => Error::NotUndone(Box::new(error), vec![format!("suspending {name} ({left})")]),
    }
}

/// Empties a claimed disk while it is suspended. `clear` frees the memory of what is below, from byte `start` on,
/// and moves that along.
pub fn empty(
    control: &Control,
    disk: &Device<'_>,
    claim: &std::fs::File,
    start: u64,
    clear: &dyn Fn(&mut u64) -> kernel::Result<()>,
) -> Result<Left> {
    let (name, what) = (disk.name, "free the memory of");
    let mut at = start;
    let (cleared, resumed) = while_suspended(control, name, what, &mut || clear(&mut at).map(|()| true))?;
    // Whoever opens it from here on reads nothing old from the page cache. On a suspended disk this could hang.
    let flushed = match &resumed {
        Ok(()) => block::flush_buffers(claim).cannot(format_args!("empty the page cache of {name}")),
        Err(_) => Ok(()),
    };
    if let Err(error) = cleared.cannot(format_args!("{what} {name}")) {
        let gone = format!("emptying {name} up to byte {}", at - start);
        let error = if at == start { error } else { Error::NotUndone(Box::new(error), vec![gone]) };
        return Err(failed(name, error, resumed));
    }
    let mut left = Left::default();
    left.note(resumed);
    left.note(flushed);
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_is_named_after_both_disks_and_nothing_else_is_one() {
        assert_eq!(BRD.guard(DiskName(7), 1030).as_str(), "rd7-ram1030");
        assert_eq!(BRD.guarded("rd7-ram1030"), Some((DiskName(7), 1030)));
        assert_eq!(ZRAM.guarded("rd7-zram3"), Some((DiskName(7), 3)));
        assert_eq!(BRD.guarded("rd7-zram3"), None);
        for other in [
            "rd7",
            "rd7-ram",
            "rd7-ram01030",
            "rd07-ram1030",
            "rd7-ram+1030",
            "rd7-ram1030-ram2",
            "rc-wt_sda",
        ] {
            assert_eq!(BRD.guarded(other), None, "{other}");
        }
    }

    #[test]
    fn no_family_takes_a_disk_of_the_other_for_its_own() {
        assert_eq!(BRD.uuid_of(DiskName(7)), uuid(&disk_mapping(DiskName(7))));
        assert_eq!(ZRAM.uuid_of(DiskName(7)), "rapiddiskd-zram-rd7");
    }
}
