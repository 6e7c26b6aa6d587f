//! The `rapiddisk` module: `/sys/kernel/rapiddisk` and the ioctls of `/dev/rdN`.
//!
//! The module checks little: it detaches a disk that is in use, and accepts malformed commands. Each
//! function here expects that its caller has checked what it asks for.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Getter, NoArg, Opcode, ioctl, opcode};

use super::{Error, Result, Root, block};

const MGMT: &str = "sys/kernel/rapiddisk/mgmt";
const DEVICES: &str = "sys/kernel/rapiddisk/devices";

/// Number of disks the module accepts where it does not say.
const DEFAULT_MAX: u32 = 1024;

/// No line of the module's list is as long, in bytes.
const LONGEST_ROW: usize = 256;

const HIGHEST_SECTOR: Opcode = 0x0529;
const PAGES_IN_USE: Opcode = 0x0530;
const FREE_PAGES: Opcode = 0x0531;

/// `BLKGETSIZE64`, `_IOR(0x12, 114, size_t)`.
const SIZE: Opcode = opcode::read::<usize>(0x12, 114);
/// `BLKROGET`, `_IO(0x12, 94)` with a pointer to an int.
const READ_ONLY: Opcode = opcode::none(0x12, 94);

/// What a disk says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Size in bytes.
    pub size: u64,
    /// Memory held, in bytes.
    pub used: u64,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// Looks at `rdN` with as few system calls as possible, for lists of many disks.
pub fn look_at(root: &Root, number: u32) -> Result<Look> {
    let path = root.path(format!("dev/rd{number}"));
    let failed = |errno: rustix::io::Errno| Error::new(format!("look at {}", path.display()), &errno.into());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let look = |disk: BorrowedFd<'_>| {
        // SAFETY: the kernel writes one u64, one int and one u64 at the pointers.
        unsafe {
            let size = ioctl(disk, Getter::<SIZE, u64>::new())?;
            let read_only = ioctl(disk, Getter::<READ_ONLY, i32>::new())?;
            let pages = ioctl(disk, Getter::<PAGES_IN_USE, u64>::new())?;
            let used = pages.saturating_mul(rustix::param::page_size() as u64);
            Ok(Look { size, used, read_only: read_only != 0 })
        }
    };
    let looked = rustix::fs::open(&path, flags, Mode::empty()).and_then(|disk| look(disk.as_fd()));
    // Its node may be gone, or something else.
    looked.or_else(|_| {
        look(block::open(root, &format!("rd{number}"), block::Mode::Read)?.as_fd()).map_err(failed)
    })
}

/// One line of `/sys/kernel/rapiddisk/devices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// N of `rdN`.
    pub number: u32,
    /// Size in bytes.
    pub size: u64,
    /// Memory held, in bytes.
    pub used: u64,
}

/// Whether the module is loaded.
pub fn is_loaded(root: &Root) -> Result<bool> {
    root.exists(MGMT)
}

/// Makes `rdN` of `bytes` bytes, a multiple of 512.
pub fn attach(root: &Root, number: u32, bytes: u64) -> Result<()> {
    manage(root, &format!("rapiddisk attach {number} {bytes}"))
}

/// Destroys `rdN` whoever is using it: the caller has made sure nobody is.
pub fn detach(root: &Root, number: u32) -> Result<()> {
    manage(root, &format!("rapiddisk detach {number}"))
}

/// Gives `rdN` a new size in bytes, a multiple of 512. The module refuses
/// (EINVAL) a size at or below the highest written block.
pub fn resize(root: &Root, number: u32, bytes: u64) -> Result<()> {
    manage(root, &format!("rapiddisk resize {number} {bytes}"))
}

/// One command is one write: the errno of write(2) itself is the answer.
fn manage(root: &Root, command: &str) -> Result<()> {
    let path = root.path(MGMT);
    let context = |error: io::Error| Error::new(format!("write \"{command}\" to {}", path.display()), &error);
    let mut file = File::options().write(true).open(&path).map_err(context)?;
    let written = file.write(command.as_bytes()).map_err(context)?;
    if written == command.len() {
        Ok(())
    } else {
        Err(Error::strange(format!("write \"{command}\" to {}", path.display())))
    }
}

/// The disks the module lists, and whether these are all. It lists into one page, so with some 150 disks
/// and more the rest is missing. `None` if the module is not loaded.
pub fn devices(root: &Root) -> Result<Option<(Vec<Row>, bool)>> {
    // Not as an attribute, which loses the end of its last line.
    let Some(text) = root.text_if_there(DEVICES)? else { return Ok(None) };
    let rows = parse_devices(&text);
    // But for the title, each line is a row.
    let is_read = text.ends_with('\n') && rows.len() + 1 == text.lines().count();
    let is_whole = is_read && text.len() + LONGEST_ROW < rustix::param::page_size();
    Ok(Some((rows, is_whole)))
}

fn parse_devices(text: &str) -> Vec<Row> {
    // A last line without its newline was cut by the end of the page.
    text.split_inclusive('\n').filter_map(|line| parse_row(line.strip_suffix('\n')?)).collect()
}

fn parse_row(line: &str) -> Option<Row> {
    let mut fields = line.split('\t');
    let number = fields.next()?.strip_prefix("rd")?.parse().ok()?;
    let size = fields.next()?.parse().ok()?;
    let _errors: u64 = fields.next()?.parse().ok()?;
    let used = fields.next()?.parse().ok()?;
    Some(Row { number, size, used })
}

/// How many disks the module accepts (its parameter `rd_max_nr`).
pub fn max_disks(root: &Root) -> Result<u32> {
    let stated = |text: String| {
        let (_, after) = text.split_once("Maximum Number of Attachable Devices: ")?;
        after.split_whitespace().next()?.parse().ok()
    };
    Ok(root.text_if_there(MGMT)?.and_then(stated).unwrap_or(DEFAULT_MAX))
}

/// The sector behind the highest one written since the disk was made or
/// flushed; 0 if none was.
pub fn highest_sector(disk: &File) -> Result<u64> {
    // SAFETY: the module writes one u64 at the pointer (IOCTL_RD_GET_STATS).
    unsafe { ioctl(disk.as_fd(), Getter::<HIGHEST_SECTOR, u64>::new()) }
        .map_err(|errno| Error::new("ioctl 0x0529 (highest sector)", &errno.into()))
}

/// Frees every page of the disk. EBUSY with a second opener; the module's two
/// counters are reset even then, so the caller looks for users first.
pub fn free_pages(disk: &File) -> Result<()> {
    // SAFETY: IOCTL_RD_BLKFLSBUF ignores its argument.
    unsafe { ioctl(disk.as_fd(), NoArg::<FREE_PAGES>::new()) }
        .map_err(|errno| Error::new("ioctl 0x0531 (free pages)", &errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_list_is_read() {
        let text = "Device\tSize\tErrors\tUsed\nrd0\t67108864\t0\t4096\nrd12\t1048576\t3\t0\n";
        assert_eq!(
            parse_devices(text),
            [Row { number: 0, size: 67108864, used: 4096 }, Row { number: 12, size: 1048576, used: 0 }]
        );
    }

    #[test]
    fn a_list_cut_by_the_end_of_its_page_loses_the_cut_line_only() {
        let text = "Device\tSize\tErrors\tUsed\nrd0\t67108864\t0\t4096\nrd1\t67108864\t0\t40";
        assert_eq!(parse_devices(text), [Row { number: 0, size: 67108864, used: 4096 }]);
    }

    #[test]
    fn the_last_line_of_a_whole_list_is_not_taken_as_cut() {
        let dir = std::env::temp_dir().join(format!("rapiddiskd-devices-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("sys/kernel/rapiddisk")).unwrap();
        assert_eq!(devices(&Root::new(&dir)), Ok(None));
        std::fs::write(dir.join(DEVICES), "Device\tSize\tErrors\tUsed\nrd0\t67108864\t0\t4096\n").unwrap();
        let row = Row { number: 0, size: 67108864, used: 4096 };
        assert_eq!(devices(&Root::new(&dir)), Ok(Some((vec![row], true))));
        let many = rustix::param::page_size() / 20 - 5;
        let full = "rd0\t67108864\t0\t4096\n".repeat(many);
        std::fs::write(dir.join(DEVICES), format!("Device\tSize\tErrors\tUsed\n{full}")).unwrap();
        assert!(matches!(devices(&Root::new(&dir)), Ok(Some((rows, false))) if rows.len() == many));
        std::fs::write(dir.join(DEVICES), "Device\tSize\tErrors\tUsed\nrd0 67108864 0 4096\n").unwrap();
        assert_eq!(devices(&Root::new(&dir)), Ok(Some((vec![], false))));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_number_of_disks_comes_from_mgmt() {
        let dir = std::env::temp_dir().join(format!("rapiddiskd-mgmt-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("sys/kernel/rapiddisk")).unwrap();
        let text = "RapidDisk 9.0.0\n\nMaximum Number of Attachable Devices: 77\n\
                    Number of Attached Devices: 2\nMax Sectors (KB): 127\nNumber of Requests: 128\n";
        std::fs::write(dir.join(MGMT), text).unwrap();
        assert_eq!(max_disks(&Root::new(&dir)), Ok(77));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
