//! Repairing what a daemon that was killed during a change left.

use super::label;
use super::parts::{below, lost_size, map_again, probe_mapping, release};
use crate::kernel::{Root, block, brd};
use crate::storage::disks::drivers::link;
use crate::storage::disks::drivers::mapped::{
    BRD, KIND, Parts, device_name, is_lost, link_again, recover_each, run_again,
};
use crate::storage::error::{Cannot, Result};
use crate::storage::locks::Held;
use crate::storage::mapping;
use crate::storage::names::DiskName;

/// Repairs each disk. Returns a line for each thing that was done or could not be done.
pub fn recover<'a>(root: &Root, hold: &dyn Fn(DiskName) -> Option<Held<'a>>) -> Vec<String> {
    let found = match BRD.all(root) {
        Ok(found) => found,
        Err(error) => return vec![format!("the RAM disks of brd could not be looked for: {error}")],
    };
    let mut said = recover_each(found, hold, |parts| recover_one(root, parts));
    if let Ok(Some(control)) = mapping::if_loaded(root)
        && let Ok(Some(_)) = mapping::ours(&control, &probe_mapping())
    {
        let _ = control.remove(&probe_mapping());
    }
    said.extend(link::remove_lost(root, KIND, hold, |name, to| is_lost(root, name, to)));
    said
}

/// A disk is one from the moment in which its mapping has a table. Before that it was half-made. Without the
/// mapping it was half-removed, unless its label says that somebody else removed the mapping.
fn recover_one(root: &Root, parts: &Parts) -> Result<Option<&'static str>> {
    let &Parts { name, number, .. } = parts;
    let control = mapping::control(root)?;
    let Some(info) = BRD.ours(&control, name)?.filter(|info| info.active) else {
        if let Some(size) = lost_size(root, parts)? {
            link_again(root, name, &map_again(root, name, number, size)?)?;
            return Ok(Some("had lost its mapping, and has it again; it is unlocked"));
        }
        BRD.remove_empty(&control, name)?;
        link::remove(root, name, KIND).cannot("remove its link")?;
        release(root, name, number, 0)?;
        return Ok(Some("was half-made or half-removed, and is removed"));
    };
    let mut done = run_again(&control, name, &info)?;
    let device = device_name(info.dev);
    // Others may have had its place until it was held.
    let (_, number) = below(&control, name).cannot("ask what it stands on")?;
    if let Some(size) = block::size_of_disk(root, &device).cannot("ask for its size")? {
        label::set_size(root, number, size).cannot(format_args!("label {}", brd::name(number)))?;
    }
    if link_again(root, name, &device)? {
        done = Some("had lost its link in /dev, and has it again");
    }
    Ok(done)
}
