//! Repairing what a daemon that was killed during a change left.

use super::parts::{hold, is_held, lost_size, map_again, number_of, release};
use crate::kernel::{Root, zram};
use crate::storage::disks::drivers::link;
use crate::storage::disks::drivers::mapped::{
    KIND, Parts, ZRAM, device_name, link_again, recover_each, run_again,
};
use crate::storage::error::{Cannot, Result};
use crate::storage::locks::Held;
use crate::storage::mapping;
use crate::storage::names::DiskName;

/// Repairs each disk. Returns a line for each thing that was done or could not be done.
pub fn recover<'a>(root: &Root, take: &dyn Fn(DiskName) -> Option<Held<'a>>) -> Vec<String> {
    let found = match ZRAM.all(root) {
        Ok(found) => found,
        Err(error) => return vec![format!("the RAM disks of zram could not be looked for: {error}")],
    };
    // Of two that were to be the same disk, the one with data is it.
    let has_data =
        |parts: &Parts| matches!(zram::stats(root, parts.number), Ok(Some(stats)) if stats.stored > 0);
    let (with_data, empty): (Vec<_>, Vec<_>) = found.into_iter().partition(has_data);
    recover_each(with_data.into_iter().chain(empty), take, |parts| recover_one(root, parts))
}

/// A disk is one if it is mapped, or its guard holds what is below. A compressed disk with a guard to which the
/// mapping of the disk does not lead was left by a change of its size.
fn recover_one(root: &Root, parts: &Parts) -> Result<Option<&'static str>> {
    let &Parts { name, number, .. } = parts;
    let control = mapping::control(root)?;
    let Some(info) = ZRAM.ours(&control, name)?.filter(|info| info.active) else {
        if let Some(size) = lost_size(root, parts)? {
            link_again(root, name, &map_again(root, parts, size)?)?;
            return Ok(Some("had lost its mapping, and has it again; it is unlocked"));
        }
        ZRAM.remove_empty(&control, name)?;
        link::remove(root, name, KIND).cannot("remove its link")?;
        release(root, name, number)?;
        return Ok(Some("was half-made or half-removed, and is removed"));
    };
    let mut done = run_again(&control, name, &info)?;
    if number_of(root, &control, name)? != number {
        release(root, name, number)?;
        return Ok(Some("was half-resized, and what was left of that is removed"));
    }
    if !is_held(root, &control, parts).cannot("look at its guard")? {
        done = Some("was half-made or half-removed, and is whole");
        hold(root, &mapping::control(root)?.for_parts(), name, number)?;
    }
    if link_again(root, name, &device_name(info.dev))? {
        done = Some("had lost its link in /dev, and has it again");
    }
    Ok(done)
}
