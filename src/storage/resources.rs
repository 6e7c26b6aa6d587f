//! The machine: its memory and its real disks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::disks::Disks;
use super::error::{Cannot, Result};
use super::machine::Machine;
use super::names::natural;
use crate::kernel::Root;
use crate::kernel::block::SECTOR;
use crate::kernel::hardware::{self, Hardware, Marks};
use crate::kernel::machine::{self, Memory};

/// How long a list of disks is kept at most. The kernel does not tell of everything: not of an attached loop device
/// that changes its file for another one of the same size.
const LONGEST: Duration = Duration::from_secs(1);

/// What the machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Its memory.
    pub memory: Memory,
    /// Its disks that are no RAM disks, in natural order.
    pub disks: Arc<[Disk]>,
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

/// The last list of the machine's disks. Consoles ask for it over and over, and disks seldom change.
#[derive(Default)]
pub struct LastDisks(Mutex<Last>);

#[derive(Default)]
struct Last {
    /// `None` where the kernel does not tell of changes.
    marks: Option<Marks>,
    kept: Option<Kept>,
}

struct Kept {
    since: Instant,
    /// What the marks said before the look.
    marked: Vec<u8>,
    disks: Arc<[Disk]>,
}

impl LastDisks {
    /// The machine's memory, and its disks that are no RAM disks.
    pub fn resources(&self, machine: &Machine, ram_disks: &Disks) -> Result<Resources> {
        Ok(Resources { memory: machine::memory(), disks: self.disks(machine, ram_disks)? })
    }

    fn disks(&self, machine: &Machine, ram_disks: &Disks) -> Result<Arc<[Disk]>> {
        let last = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = Instant::now();
        let marked = {
            let mut last = last();
            let marked = last.read_marks(&machine.root);
            if let Some(kept) = &last.kept
                && marked.as_ref() == Some(&kept.marked)
                && kept.since.elapsed() < LONGEST
            {
                return Ok(Arc::clone(&kept.disks));
            }
            marked
        };
        // Not under the lock: a disk that hangs must not keep others from their look.
        let disks = list(machine, ram_disks)?;
        last().kept = marked.map(|marked| Kept { since, marked, disks: Arc::clone(&disks) });
        Ok(disks)
    }
}

impl Last {
    fn read_marks(&mut self, root: &Root) -> Option<Vec<u8>> {
        if self.marks.is_none() {
            self.marks = Marks::open(root).ok();
        }
        self.marks.as_mut()?.read().ok()
    }
}

fn list(machine: &Machine, ram_disks: &Disks) -> Result<Arc<[Disk]>> {
    let mut disks = Vec::new();
    for hardware in hardware::all(&machine.root).cannot("list the machine's disks")? {
        if !ram_disks.owns(&hardware.name)? {
            disks.extend(disk(hardware));
        }
    }
    disks.sort_by(|a, b| natural(&a.name).cmp(&natural(&b.name)));
    Ok(disks.into())
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

    use super::*;
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
        let disks = list(&machine, &Disks::new(Arc::clone(&machine), None)).unwrap();
        let names: Vec<_> = disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["loop1", "md0", "nvme0n1", "pmem0", "sda", "sdaa", "sdb", "sr1", "vda"]);
        let sda = disks.iter().find(|disk| disk.name == "sda").unwrap();
        assert_eq!(sda.size, 2048 * 512);
        assert_eq!(sda.vendor.as_deref(), Some("ATA"));
        assert_eq!(sda.model.as_deref(), Some("VBOX HARDDISK"));
        let nvme = disks.iter().find(|disk| disk.name == "nvme0n1").unwrap();
        assert_eq!((&nvme.vendor, &nvme.model), (&None, &None));
    }

    #[test]
    fn a_list_is_kept_until_the_kernel_tells_of_a_change() {
        let tree = Tree::new("kept");
        let machine = Arc::new(Machine::new(Root::new(&tree.0), MemoryLimit::Percent(100)));
        let (ram_disks, last) = (Disks::new(Arc::clone(&machine), None), LastDisks::default());
        let sizes =
            || last.disks(&machine, &ram_disks).unwrap().iter().map(|disk| disk.size).collect::<Vec<_>>();
        let resize = |sectors: &str| tree.put("sys/block/sda/size", sectors);
        tree.put("sys/block/sda/device/type", "0\n");
        resize("1\n");
        assert_eq!(sizes(), [512]);
        // Nothing is kept where nothing would tell of a change.
        resize("2\n");
        assert_eq!(sizes(), [1024]);
        tree.put("sys/kernel/uevent_seqnum", "7\n");
        tree.put("proc/partitions", "8 0 1 sda\n");
        assert_eq!(sizes(), [1024]);
        for (sectors, file, text) in
            [(5, "sys/kernel/uevent_seqnum", "8\n"), (6, "proc/partitions", "8 0 2 sda\n")]
        {
            // Kept from here on, if a second is not over before the next list.
            sizes();
            resize(&format!("{sectors}\n"));
            tree.put(file, text);
            assert_eq!(sizes(), [sectors * 512]);
        }
        resize("3\n");
        last.0.lock().unwrap().kept.as_mut().unwrap().since -= LONGEST;
        assert_eq!(sizes(), [3 * 512]);
        resize("4\n");
        last.0.lock().unwrap().kept.as_mut().unwrap().since += LONGEST * 100;
        assert_eq!(sizes(), [3 * 512]);
    }
}
