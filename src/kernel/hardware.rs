//! The real disks of the machine, as sysfs lists them.

use std::fs::File;
use std::io::{Read, Seek};

use super::block::SECTOR;
use super::root::TEXT_MAX;
use super::{Dir, Error, Result, Root};

/// What sysfs says of a whole disk as a piece of hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// The kernel's name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its medium can be taken out.
    pub removable: bool,
    /// The vendor, where the kernel has one.
    pub vendor: Option<String>,
    /// The model, where the kernel has one.
    pub model: Option<String>,
}

/// Disks that never have a device behind them, by their names less the number.
const DEVICELESS: [&str; 4] = ["rd", "ram", "zram", "dm-"];

/// The files from which one sees that a disk has come, gone or changed. They stay open.
#[derive(Debug)]
pub struct Marks {
    /// How many events the kernel has told user space of.
    events: File,
    /// All disks that have a size, and their partitions. Not every kernel tells of a loop device that is attached.
    partitions: File,
}

impl Marks {
    /// Opens the files. ENOENT: the kernel has none.
    pub fn open(root: &Root) -> Result<Marks> {
        let open = |path| {
            let path = root.path(path);
            File::open(&path).map_err(|error| Error::new(format!("open {}", path.display()), &error))
        };
        Ok(Marks { events: open("sys/kernel/uevent_seqnum")?, partitions: open("proc/partitions")? })
    }

    /// What they say now: the same bytes as long as nothing changes.
    pub fn read(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(4096);
        for file in [&mut self.events, &mut self.partitions] {
            file.rewind()
                .and_then(|()| file.take(TEXT_MAX).read_to_end(&mut bytes))
                .map_err(|error| Error::new("look for changes of disks", &error))?;
        }
        Ok(bytes)
    }
}

/// All whole disks with a device behind them, attached loop devices, and arrays and
/// persistent memory; but no paths of a multipath disk. In no order.
pub fn all(root: &Root) -> Result<Vec<Hardware>> {
    let Some(disks) = root.dir("sys/block")? else { return Ok(Vec::new()) };
    let mut found = disks.names()?;
    if found.iter().any(|name| name.starts_with("loop")) {
        // The short way to them: they are many, and mostly not attached.
        let short = root.dir("sys/devices/virtual/block")?;
        let loops = short.as_ref().unwrap_or(&disks);
        let mut failed = Ok(());
        found.retain(|name| {
            let is_attached = || loops.exists(&format!("{name}/loop"));
            !name.starts_with("loop")
                || is_attached().unwrap_or_else(|error| {
                    failed = Err(error);
                    false
                })
        });
        failed?;
    }
    found.retain(|name| !DEVICELESS.contains(&name.trim_end_matches(|c: char| c.is_ascii_digit())));
    found.into_iter().filter_map(|name| hardware(&disks, name).transpose()).collect()
}

/// Looks at one disk; `None` if it has no place in the list or goes away meanwhile.
fn hardware(disks: &Dir, name: String) -> Result<Option<Hardware>> {
    // Everything below belongs to this one device, whoever gets its name next.
    let Some(disk) = disks.dir(&name)? else { return Ok(None) };
    // A broken disk that does not tell is listed without them.
    // They are filled up with blanks.
    let identity = |part| {
        let text = disk.attribute(part).unwrap_or(None)?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    };
    let (vendor, model) = (identity("device/vendor"), identity("device/model"));
    // What has an identity has a device.
    let is_listed = |name: &str| ["md", "pmem", "loop"].iter().any(|start| name.starts_with(start));
    if vendor.is_none() && model.is_none() && !is_listed(&name) && !disk.exists("device")? {
        return Ok(None);
    }
    // The paths of a multipath disk: NVMe alone has them.
    if name.starts_with("nvme") && disk.number("hidden")? == Some(1) {
        return Ok(None);
    }
    let size = disk.number("size")?.and_then(|sectors| sectors.checked_mul(SECTOR));
    let Some(size) = size else { return Ok(None) };
    // Only asked of a drive without a medium.
    let removable = size == 0 && disk.number("removable")? == Some(1);
    Ok(Some(Hardware { removable, name, size, vendor, model }))
}
