//! What a disk consists of: the names of its file, its link, and the device over the file.

use crate::kernel::links::{self, Entry};
use crate::kernel::{Root, loops, pool};
use crate::storage::disks::drivers::link;
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::names::DiskName;

/// How many disks there can be: as many as the module takes.
pub(super) const MOST: u32 = 1024;

/// What the name of a file ends with while the disk is being made or removed.
pub(super) const PART: &str = ".part";

/// What the names of its devices begin with.
pub(super) const KIND: &str = "loop";

/// The disk that a file is of, whether it is one already or still.
pub(super) fn disk_named(file: &str) -> Option<DiskName> {
    DiskName::parse(file.strip_suffix(PART).unwrap_or(file))
}

/// The name of its file while it is being made or removed.
pub(super) fn part(name: DiskName) -> String {
    format!("{name}{PART}")
}

/// The attached loop devices, each with the path of its file.
pub(super) fn attached(root: &Root) -> Result<Vec<(String, String)>> {
    loops::attached(root).cannot("list the loop devices")
}

/// The RAM disk whose data is in a file, given the file's path as the kernel shows it.
pub(super) fn disk_of_file(root: &Root, file: &str) -> Option<DiskName> {
    DiskName::parse(pool::name_in(root, file)?)
}

/// The file of a loop device, as the kernel shows its path; `None` for other devices.
pub(super) fn file_of(root: &Root, device: &str) -> Result<Option<String>> {
    if !device.starts_with("loop") {
        return Ok(None);
    }
    loops::backing(root, device).cannot(format_args!("look at {device}"))
}

/// Whether a device is over this file of the pool. If that cannot be read, it may be.
pub(super) fn is_over(root: &Root, device: &str, file: &str) -> bool {
    match loops::backing(root, device) {
        Ok(path) => path.is_some_and(|path| pool::name_in(root, &path) == Some(file)),
        Err(_) => true,
    }
}

/// The sum of the lengths of files.
pub(super) fn sum(files: &[(String, u64)]) -> u64 {
    files.iter().map(|(_, length)| length).fold(0, |sum, length| sum.saturating_add(*length))
}

/// The device to which `/dev/rdN` leads, if that is over this file of the pool.
pub(super) fn linked(root: &Root, name: DiskName, file: &str) -> Result<Option<String>> {
    let look = format!("look at /dev/{name}");
    let Entry::Link(device) = links::look(&link::node(root, name)).cannot(&look)? else { return Ok(None) };
    if !link::is_of(KIND, &device) {
        return Ok(None);
    }
    let path = loops::backing(root, &device).cannot(&look)?;
    Ok(path.is_some_and(|path| pool::name_in(root, &path) == Some(file)).then_some(device))
}

/// The device over a file of the pool.
pub(super) fn device_over(root: &Root, file: &str) -> Result<Option<String>> {
    let over = |(_, path): &(String, String)| pool::name_in(root, path) == Some(file);
    Ok(attached(root)?.into_iter().find(over).map(|(device, _)| device))
}

/// Refuses a name whose place in `/dev` is taken by something that is not ours, or by the disk of a
/// daemon whose tmpfs cannot be seen from this mount namespace.
pub(super) fn check_place(root: &Root, name: DiskName) -> Result<()> {
    let Some(device) = link::check_place(root, name, KIND)? else { return Ok(()) };
    if leads_out_of_sight(root, name, &device)? {
        return Err(Error::Conflict(format!(
            "{} is a disk whose tmpfs is not mounted here; this service needs the mount namespace of the machine",
            link::node(root, name).display()
        )));
    }
    Ok(())
}

/// Whether the device is over a file that could be this disk's, and that is not in the pool seen here.
fn leads_out_of_sight(root: &Root, name: DiskName, device: &str) -> Result<bool> {
    let path = loops::backing(root, device).cannot(format_args!("look at {device}"))?;
    Ok(path.is_some_and(|path| is_named_as(name, &path) && pool::name_in(root, &path).is_none()))
}

/// Whether a file has the name of the file of this disk, given its path as the kernel shows it.
pub(super) fn is_named_as(name: DiskName, path: &str) -> bool {
    let file = path.strip_suffix(" (deleted)").unwrap_or(path).rsplit('/').next();
    file == Some(&name.to_string()) || file == Some(&part(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_disk_is_one() {
        let root = Root::new("/");
        let name = |file: &str| disk_of_file(&root, &format!("/run/rapiddiskd/disks/{file}"));
        assert_eq!(name("rd0"), Some(DiskName(0)));
        assert_eq!(name("rd12 (deleted)"), Some(DiskName(12)));
        for other in ["rd0.part", "rd00", "rd", "x", "rd0/x", ""] {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
