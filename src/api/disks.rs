//! RAM disks: their parameters, what is done with them, and their JSON.

use serde_json::{Value, json};

use super::answer::{done, made};
use super::parameters::{Kind, Parameter, Parameters, Parsed, Values};
use crate::storage::{Algorithm, Compressed, DiskName, NewDisk, RamDisk, RamDriver, Result, Size, Storage};

/// What is done with RAM disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskAction {
    /// Make one.
    Create(NewDisk),
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
        values: Values::OneOf(&["rapiddisk", "brd", "loop", "zram"]),
        example: "zram",
        expected: "a driver of RAM disks; there are rapiddisk, brd, loop and zram",
    };

    fn read(text: &str) -> Option<RamDriver> {
        RamDriver::parse(text)
    }
}

impl Parameter for Algorithm {
    const KIND: Kind = Kind {
        name: "algorithm",
        description: "How a RAM disk of `zram` compresses. If it is not given, the kernel chooses.",
        values: Values::Pattern("[a-z0-9_-]{1,32}"),
        example: "lz4",
        expected: "the name of a way to compress, such as lz4",
    };

    fn read(text: &str) -> Option<Algorithm> {
        Algorithm::parse(text)
    }
}

/// The most memory that the data of a RAM disk of `zram` may take.
pub struct Limit(Size);

impl Parameter for Limit {
    const KIND: Kind = Kind {
        name: "limit",
        description: "The most memory that the data of a RAM disk of `zram` may take, compressed. Written as a \
                      `size`. If it is not given, that is half of the disk's size.",
        example: "512",
        ..Size::KIND
    };

    fn read(text: &str) -> Option<Limit> {
        Size::parse(text).map(Limit)
    }
}

impl DiskAction {
    /// Reads what a new disk shall be.
    pub fn create(parameters: &mut Parameters<'_>) -> Parsed<DiskAction> {
        Ok(DiskAction::Create(NewDisk {
            size: parameters.take()?,
            driver: parameters.option()?,
            algorithm: parameters.option()?,
            limit: parameters.option::<Limit>()?.map(|limit| limit.0),
        }))
    }
}

/// Does what `action` asks for. Returns the answer's body.
pub fn execute(storage: &Storage, action: &DiskAction) -> Result<Value> {
    Ok(match action {
        DiskAction::Create(new) => {
            let disk = storage.disks.create(new)?;
            made("device", &disk, format!("{disk} has {} MiB", new.size.bytes() >> 20))
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
    if let Some(Compressed { stored, limit, algorithm }) = &disk.compressed {
        entry["stored"] = (*stored).into();
        entry["limit"] = (*limit).into();
        entry["algorithm"] = algorithm.as_str().into();
        // To two places. What holds nothing has none.
        let ratio = (disk.usage > 0).then(|| (*stored as f64 / disk.usage as f64 * 100.0).round() / 100.0);
        entry["ratio"] = ratio.into();
    }
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
            compressed: None,
            fault: None,
        };
        assert_eq!(
            entry(&disk).to_string(),
            r#"{"device":"rd0","driver":"rapiddisk","size":67108864,"status":"unlocked","usage":65536,"usage_measured":true}"#
        );
        disk.fault = Some("has lost its loop device".into());
        assert_eq!(entry(&disk)["fault"], "has lost its loop device");
        let compressed = Compressed { stored: 3 * 65536, limit: 33554432, algorithm: "lz4".into() };
        disk = RamDisk { driver: "zram", compressed: Some(compressed), fault: None, ..disk };
        assert_eq!(
            entry(&disk).to_string(),
            r#"{"algorithm":"lz4","device":"rd0","driver":"zram","limit":33554432,"ratio":3.0,"size":67108864,"status":"unlocked","stored":196608,"usage":65536,"usage_measured":true}"#
        );
        disk.usage = 0;
        assert!(entry(&disk)["ratio"].is_null());
    }
}
