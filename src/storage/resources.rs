//! The machine: its memory and its real disks.

use super::disks::Disks;
use super::error::{Cannot, Result};
use super::machine::Machine;
use super::names::natural;
use crate::kernel::block::SECTOR;
use crate::kernel::hardware::{self, Hardware};
use crate::kernel::machine::{self, Memory};

/// What the machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Its memory.
    pub memory: Memory,
    /// Its disks, in natural order.
    pub disks: Vec<Disk>,
}

/// A whole disk with a device behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The vendor, where the kernel has one.
    pub vendor: Option<String>,
    /// The model, where the kernel has one.
    pub model: Option<String>,
}

/// The machine's memory, and its disks that are no RAM disks.
pub fn resources(machine: &Machine, ram_disks: &Disks) -> Result<Resources> {
    let mut disks = Vec::new();
    for hardware in hardware::all(&machine.root).cannot("list the machine's disks")? {
        if !ram_disks.owns(&hardware.name)? {
            disks.extend(disk(hardware));
        }
    }
    disks.sort_by(|a, b| natural(&a.name).cmp(&natural(&b.name)));
    Ok(Resources { memory: machine::memory(), disks })
}

/// The disk, unless there is no medium in the drive, or no array behind the number.
fn disk(hardware: Hardware) -> Option<Disk> {
    let Hardware { name, size, removable, vendor, model } = hardware;
    let is_drive = name.starts_with("sr");
    // What the driver says of a drive without a medium; no medium has such a size.
    let is_empty = is_drive && size == 0x1f_ffff * SECTOR
        || size == 0 && (removable || is_drive || name.starts_with("md"));
    (!is_empty).then_some(Disk { name, size, vendor, model })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::kernel::Root;
    use crate::storage::machine::MemoryLimit;

    /// A directory that stands in for the kernel's.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            let dir = std::env::temp_dir().join(format!("rapiddiskd-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Tree(dir)
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_real_disks_are_listed() {
        let tree = Tree::new("resources");
        let disk = |name: &str, sectors: &str| tree.put(&format!("sys/block/{name}/size"), sectors);
        for name in [
            "sdb",
            "sda",
            "sdaa",
            "nvme0n1",
            "nvme0c0n1",
            "vda",
            "sr0",
            "sr1",
            "sr2",
            "md0",
            "md1",
            "pmem0",
            "zram0",
        ] {
            disk(
                name,
                match name {
                    "sr0" | "md1" => "0\n",
                    // As Linux 6.1 shows a drive without a medium.
                    "sr2" => "2097151\n",
                    _ => "2048\n",
                },
            );
        }
        for name in ["rd0", "ram0", "dm-0", "loop0", "loop1"] {
            disk(name, "2048\n");
        }
        for name in ["sdb", "sda", "sdaa", "nvme0n1", "nvme0c0n1", "vda", "sr0", "sr1", "sr2"] {
            tree.put(&format!("sys/block/{name}/device/type"), "0\n");
        }
        tree.put("sys/block/sda/device/vendor", "ATA     \n");
        tree.put("sys/block/sda/device/model", "VBOX HARDDISK   \n");
        tree.put("sys/block/nvme0c0n1/hidden", "1\n");
        tree.put("sys/block/sr0/removable", "1\n");
        tree.put("sys/block/loop1/loop/backing_file", "/image\n");
        let machine = Arc::new(Machine::new(Root::new(&tree.0), MemoryLimit::Percent(100)));
        let resources = resources(&machine, &Disks::new(Arc::clone(&machine), None)).unwrap();
        let names: Vec<_> = resources.disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["loop1", "md0", "nvme0n1", "pmem0", "sda", "sdaa", "sdb", "sr1", "vda"]);
        let sda = resources.disks.iter().find(|disk| disk.name == "sda").unwrap();
        assert_eq!(sda.size, 2048 * 512);
        assert_eq!(sda.vendor.as_deref(), Some("ATA"));
        assert_eq!(sda.model.as_deref(), Some("VBOX HARDDISK"));
        let nvme = resources.disks.iter().find(|disk| disk.name == "nvme0n1").unwrap();
        assert_eq!((&nvme.vendor, &nvme.model), (&None, &None));
    }
}
