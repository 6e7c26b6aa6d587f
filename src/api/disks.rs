//! RAM disks: their parameters, what is done with them, and their JSON.

use serde_json::{Value, json};

use super::answer::{done, made};
use super::parameters::{Kind, Parameter, Values};
use crate::storage::{DiskName, RamDisk, RamDriver, Result, Size, Storage};

/// What is done with RAM disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskAction {
    /// Make one, by this driver if one is given.
    Create(Size, Option<RamDriver>),
    /// Give one another size.
    Resize(DiskName, Size),
    /// Free the memory of one.
    Flush(DiskName),
    /// Remove one.
    Remove(DiskName),
    /// Make one read-only.
    Lock(DiskName),
    /// Make one read-write.
    Unlock(DiskName),
}

impl Parameter for DiskName {
    const KIND: Kind = Kind {
        name: "disk",
        description: "A RAM disk, as `listRapidDiskVolumes` names it.",
        values: Values::Pattern("rd(0|[1-9][0-9]{0,8})"),
        example: "rd0",
        expected: "the name of a RAM disk, such as rd0",
    };

    fn read(text: &str) -> Option<DiskName> {
        DiskName::parse(text)
    }
}

impl Parameter for Size {
    const KIND: Kind = Kind {
        name: "size",
        description: "A number of MiB, or a number with one of the units `M`, `MiB`, `G`, `GiB`, `T` and `TiB`. All \
                      units are powers of 1024.",
        values: Values::Pattern("0*[1-9][0-9]*(M|MiB|G|GiB|T|TiB)?"),
        example: "1GiB",
        expected: "a size: a number of MiB above 0, or one with M, MiB, G, GiB, T or TiB",
    };

    fn read(text: &str) -> Option<Size> {
        Size::parse(text)
    }
}

impl Parameter for RamDriver {
    const KIND: Kind = Kind {
        name: "driver",
        description: "The driver that makes the RAM disk. If it is not given, that is the one of `--ram-driver`.",
        values: Values::OneOf(&["rapiddisk", "brd", "loop"]),
        example: "brd",
        expected: "a driver of RAM disks; there are rapiddisk, brd and loop",
    };

    fn read(text: &str) -> Option<RamDriver> {
        RamDriver::parse(text)
    }
}

/// Does what `action` asks for. Returns the answer's body.
pub fn execute(storage: &Storage, action: &DiskAction) -> Result<Value> {
    Ok(match action {
        DiskAction::Create(size, driver) => {
            let disk = storage.disks.create(*size, *driver)?;
            made("device", &disk, format!("{disk} has {} MiB", size.bytes() >> 20))
        }
        DiskAction::Resize(disk, size) => {
            let left = storage.disks.resize(*disk, *size)?;
            done(left.told_after(format_args!("{disk} has {} MiB now", size.bytes() >> 20)))
        }
        DiskAction::Flush(disk) => {
            let left = storage.disks.flush(*disk)?;
            done(left.told_after(format_args!("{disk} is empty")))
        }
        DiskAction::Remove(disk) => {
            let left = storage.disks.remove(*disk)?;
            done(left.told_after(format_args!("{disk} is removed")))
        }
        DiskAction::Lock(disk) => {
            storage.disks.set_locked(*disk, true)?;
            done(format!("{disk} is read-only"))
        }
        DiskAction::Unlock(disk) => {
            storage.disks.set_locked(*disk, false)?;
            done(format!("{disk} is read-write"))
        }
    })
}

/// A RAM disk in a list.
pub fn entry(disk: &RamDisk) -> Value {
    let mut entry = json!({
        "device": disk.name.to_string(),
        "size": disk.size,
        "usage": disk.usage,
        "usage_measured": disk.is_measured,
        "status": if disk.locked { "locked" } else { "unlocked" },
        "driver": disk.driver,
    });
    if let Some(fault) = &disk.fault {
        entry["fault"] = fault.as_str().into();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_in_a_list_has_these_bytes() {
        let mut disk = RamDisk {
            name: DiskName(0),
            size: 67108864,
            usage: 65536,
            is_measured: true,
            locked: false,
            driver: "rapiddisk",
            fault: None,
        };
        assert_eq!(
            entry(&disk).to_string(),
            r#"{"device":"rd0","driver":"rapiddisk","size":67108864,"status":"unlocked","usage":65536,"usage_measured":true}"#
        );
        disk.fault = Some("has lost its loop device".into());
        assert_eq!(entry(&disk)["fault"], "has lost its loop device");
    }
}
