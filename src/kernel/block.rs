//! Block devices: their attributes in sysfs, their nodes in `/dev`, and the few
//! generic block ioctls.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, CWD, FileType, OFlags, fadvise, makedev, mknodat};
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};

use super::{Error, Result, Root, unless_gone};

/// Bytes in a sector, the unit of sysfs and of device-mapper tables.
pub const SECTOR: u64 = 512;

/// `BLKROSET`, `_IO(0x12, 93)` with a pointer to an int.
const SET_READ_ONLY: Opcode = opcode::none(0x12, 93);

/// `BLKDISCARD`, `_IO(0x12, 119)` with a pointer to two u64: start and length.
const DISCARD: Opcode = opcode::none(0x12, 119);
/// `BLKFLSBUF`, `_IO(0x12, 97)`.
const FLUSH_BUFFERS: Opcode = opcode::none(0x12, 97);

/// `BLKPG`, `_IO(0x12, 105)` with a pointer to a `struct blkpg_ioctl_arg` (`linux/blkpg.h`).
const PARTITIONS: Opcode = opcode::none(0x12, 105);
const DELETE_PARTITION: i32 = 2;

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct PartitionRequest {
    operation: i32,
    flags: i32,
    length: i32,
    partition: *const Partition,
}

/// `struct blkpg_partition`.
#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: i32,
    names: [u8; 128],
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dev {
    /// The driver's number.
    pub major: u32,
    /// The device's number under its driver.
    pub minor: u32,
}

impl Dev {
    /// No device.
    pub const NONE: Dev = Dev { major: 0, minor: 0 };

    /// From `st_rdev` of a node.
    pub fn from_rdev(rdev: u64) -> Dev {
        Dev { major: rustix::fs::major(rdev), minor: rustix::fs::minor(rdev) }
    }

    /// From the encoding of the device-mapper ioctls (`huge_encode_dev`).
    pub fn from_kernel(dev: u64) -> Dev {
        Dev { major: (dev >> 8) as u32 & 0xfff, minor: (dev & 0xff) as u32 | ((dev >> 12) as u32 & 0xfff00) }
    }

    /// From "MAJOR:MINOR", as sysfs and `mountinfo` write it.
    pub fn parse(text: &str) -> Option<Dev> {
        let (major, minor) = text.split_once(':')?;
        Some(Dev { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The kernel's name of a device (`sda`, `sda1`, `dm-3`), `None` where there is
/// no such device.
pub fn name_of(root: &Root, dev: Dev) -> Result<Option<String>> {
    let path = root.path(format!("sys/dev/block/{dev}"));
    let context = |error| Error::new(format!("readlink {}", path.display()), &error);
    let link = unless_gone(fs::read_link(&path).map_err(context))?;
    let name = |link: &PathBuf| Some(link.file_name()?.to_str()?.to_owned());
    Ok(link.as_ref().and_then(name))
}

/// The device number behind a node such as `/dev/sda`, links followed; `None`
/// where the path is no block device.
pub fn dev_of_node(path: &Path) -> Result<Option<Dev>> {
    let context = |error| Error::new(format!("look at {}", path.display()), &error);
    let node = unless_gone(fs::metadata(path).map_err(context))?;
    let is_block = |node: &fs::Metadata| node.file_type().is_block_device();
    Ok(node.filter(is_block).map(|node| Dev::from_rdev(node.rdev())))
}

/// Whether a path leads to anything, links followed.
pub fn exists(path: &Path) -> Result<bool> {
    let context = |error| Error::new(format!("look at {}", path.display()), &error);
    Ok(unless_gone(fs::metadata(path).map_err(context))?.is_some())
}

/// The kernel's names of all whole disks.
pub fn disks(root: &Root) -> Result<Vec<String>> {
    root.names("sys/block")
}

/// The device number of a disk or partition, by the kernel's name.
pub fn dev_of(root: &Root, name: &str) -> Result<Option<Dev>> {
    let dev = root.attribute(format!("sys/class/block/{name}/dev"))?;
    Ok(dev.and_then(|dev| Dev::parse(&dev)))
}

/// The size of a whole disk in bytes, by the kernel's name.
pub fn size_of_disk(root: &Root, name: &str) -> Result<Option<u64>> {
    let sectors = root.number(format!("sys/block/{name}/size"))?;
    Ok(sectors.and_then(|sectors| sectors.checked_mul(SECTOR)))
}

/// The sizes in bytes of all disks and partitions that have one, with one look (`/proc/partitions`), in steps of a KiB.
pub fn sizes(root: &Root) -> Result<HashMap<Dev, u64>> {
    Ok(parse_sizes(&root.text("proc/partitions")?))
}

/// Reads lines of `MAJOR MINOR KIB NAME`.
fn parse_sizes(text: &str) -> HashMap<Dev, u64> {
    let size_in = |line: &str| {
        let mut fields = line.split_whitespace();
        let mut next = || fields.next()?.parse().ok();
        let dev = Dev { major: next()?, minor: next()? };
        Some((dev, u64::from(next()?).saturating_mul(1024)))
    };
    text.lines().filter_map(size_in).collect()
}

/// Whether a whole disk is read-only, by the kernel's name.
pub fn is_disk_read_only(root: &Root, name: &str) -> Result<bool> {
    Ok(root.number(format!("sys/block/{name}/ro"))? == Some(1))
}

/// The name that device-mapper has for a disk; `None` for other disks, and for one that is going.
pub fn mapped_name(root: &Root, name: &str) -> Result<Option<String>> {
    unless_removed(|| root.attribute(format!("sys/block/{name}/dm/name")))
}

/// The UUID that device-mapper has for a disk; `None` for other disks, and for one that is going.
pub fn mapped_uuid(root: &Root, dev: Dev) -> Result<Option<String>> {
    unless_removed(|| attribute(root, dev, "dm/uuid"))
}

/// Asks once more after an error: a device that is going gives it again, or is gone.
fn unless_removed(ask: impl Fn() -> Result<Option<String>>) -> Result<Option<String>> {
    match ask().or_else(|_| ask()) {
        // What device-mapper says of a device that is being removed.
        Err(error) if error.is(Errno::INVAL) || error.is(Errno::IO) => Ok(None),
        attribute => attribute,
    }
}

/// The disk that a partition is on; `None` for a whole disk.
pub fn whole(root: &Root, dev: Dev) -> Result<Option<Dev>> {
    if attribute(root, dev, "partition")?.is_none() {
        return Ok(None);
    }
    Ok(attribute(root, dev, "../dev")?.and_then(|dev| Dev::parse(&dev)))
}

/// An attribute of a disk or partition, by device number; `None` without it.
pub fn attribute(root: &Root, dev: Dev, attribute: &str) -> Result<Option<String>> {
    root.attribute(format!("sys/dev/block/{dev}/{attribute}"))
}

/// The size in sectors.
pub fn sectors(root: &Root, dev: Dev) -> Result<Option<u64>> {
    root.number(format!("sys/dev/block/{dev}/size"))
}

/// Whether the device is read-only.
pub fn is_read_only(root: &Root, dev: Dev) -> Result<bool> {
    Ok(root.number(format!("sys/dev/block/{dev}/ro"))? == Some(1))
}

/// The logical block size in bytes; a partition has its disk's.
pub fn logical_block_size(root: &Root, dev: Dev) -> Result<Option<u64>> {
    let own = root.number(format!("sys/dev/block/{dev}/queue/logical_block_size"))?;
    match own {
        None => root.number(format!("sys/dev/block/{dev}/../queue/logical_block_size")),
        own => Ok(own),
    }
}

/// The partitions of a disk; empty for a partition.
pub fn partitions(root: &Root, dev: Dev) -> Result<Vec<Dev>> {
    let dir = format!("sys/dev/block/{dev}");
    let mut found = Vec::new();
    for name in root.names(&dir)? {
        if root.exists(format!("{dir}/{name}/partition"))? {
            found.extend(root.attribute(format!("{dir}/{name}/dev"))?.and_then(|text| Dev::parse(&text)));
        }
    }
    Ok(found)
}

/// Makes the kernel forget the partitions of a disk, which stay on a loop device that changes hands. EBUSY: one
/// of them is open.
pub fn forget_partitions(root: &Root, name: &str, disk: &File) -> Result<()> {
    let dir = format!("sys/block/{name}");
    for entry in root.names(&dir)? {
        let Some(number) = root.number(format!("{dir}/{entry}/partition"))? else { continue };
        let partition = Partition { start: 0, length: 0, number: number as i32, names: [0; 128] };
        let length = size_of::<Partition>() as i32;
        let request = PartitionRequest {
            operation: DELETE_PARTITION,
            flags: 0,
            length,
            partition: &raw const partition,
        };
        // SAFETY: BLKPG reads the request and the partition that it points to, which both outlive the call.
        unsafe { ioctl(disk.as_fd(), Setter::<PARTITIONS, PartitionRequest>::new(request)) }
            .map_err(|errno| Error::new(format!("ioctl BLKPG of {entry}"), &errno.into()))?;
    }
    Ok(())
}

/// The kernel's names of the devices stacked on this one (dm, md, bcache).
pub fn holders(root: &Root, dev: Dev) -> Result<Vec<String>> {
    root.names(format!("sys/dev/block/{dev}/holders"))
}

/// The other devices of a mounted btrfs that is on this device, among others. Such a file system names only one
/// of its devices where it is mounted.
pub fn btrfs_siblings(root: &Root, dev: Dev) -> Result<Vec<Dev>> {
    let Some(name) = name_of(root, dev)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for id in root.names("sys/fs/btrfs")? {
        let devices = root.names(format!("sys/fs/btrfs/{id}/devices"))?;
        for sibling in devices.iter().filter(|_| devices.contains(&name)) {
            found.extend(dev_of(root, sibling)?);
        }
    }
    Ok(found)
}

/// How a device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For reading attributes and data.
    Read,
    /// For reading, exclusively (`O_EXCL`): no mount, swap, device-mapper or md device can take the
    /// device until the file is closed. EBUSY: one of these has it.
    Claim,
    /// For reading and writing, exclusively.
    ClaimWrite,
    /// For reading and writing, beside whoever has it.
    Write,
}

/// Opens a disk or partition, by the kernel's name. Never waits for a medium. If its node is gone, or is something
/// else, the device is opened through another node. ENOENT or ENXIO: there is no such device.
pub fn open(root: &Root, name: &str, mode: Mode) -> Result<File> {
    let path = node(root, name);
    let (opened, dev) = (open_node(&path, mode), dev_of(root, name)?);
    match (opened, dev) {
        (Ok((file, found)), Some(dev)) if found == Some(dev) => Ok(file),
        (Err(error), Some(dev)) if !error.is_gone() || dev_of_node(&path)? == Some(dev) => Err(error),
        (_, Some(dev)) => open_beside(&root.path("dev").join(format!(".rapiddiskd-{dev}")), dev, mode),
        (opened, None) => Err(opened
            .err()
            .unwrap_or_else(|| Error::new(format!("open {}", path.display()), &Errno::NXIO.into()))),
    }
}

/// Opens a device by a node that is made for it.
fn open_beside(path: &Path, dev: Dev, mode: Mode) -> Result<File> {
    let mut attempts = 0..100;
    loop {
        let made = make_node_at(path, dev);
        // Left by one that was killed, or in use by another thread: it leads to the same device.
        if !made.as_ref().is_err_and(|error| error.is(Errno::EXIST)) {
            made?;
        }
        let opened = open_node(path, mode);
        // Another thread used it as well, and was done with it before it was opened here.
        let is_gone = opened.as_ref().is_err_and(|error| error.is(Errno::NOENT));
        if is_gone && attempts.next().is_some() {
            continue;
        }
        let _ = fs::remove_file(path);
        return opened.map(|(file, _)| file);
    }
}

/// Opens a path, and says which block device that is.
fn open_node(path: &Path, mode: Mode) -> Result<(File, Option<Dev>)> {
    let flags = match mode {
        Mode::Read | Mode::Write => OFlags::empty(),
        Mode::Claim | Mode::ClaimWrite => OFlags::EXCL,
    };
    let flags = (flags | OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let context = |error: io::Error| Error::new(format!("open {}", path.display()), &error);
    let file = File::options()
        .read(true)
        .write(matches!(mode, Mode::ClaimWrite | Mode::Write))
        .custom_flags(flags)
        .open(path)
        .map_err(context)?;
    let node = file.metadata().map_err(context)?;
    Ok((file, node.file_type().is_block_device().then(|| Dev::from_rdev(node.rdev()))))
}

/// Makes the node of a disk, where the kernel's own is gone. EEXIST: something is there.
pub fn make_node(root: &Root, name: &str, dev: Dev) -> Result<()> {
    make_node_at(&node(root, name), dev)
}

fn make_node_at(path: &Path, dev: Dev) -> Result<()> {
    let (mode, number) = (rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, makedev(dev.major, dev.minor));
    mknodat(CWD, path, FileType::BlockDevice, mode, number)
        .map_err(|errno| Error::new(format!("mknod {}", path.display()), &errno.into()))
}

/// Removes the node of a disk that is gone, if it is still there: the kernel only removes those that it made.
pub fn remove_node(root: &Root, name: &str, dev: Dev) -> Result<()> {
    let path = node(root, name);
    if dev_of_node(&path)? != Some(dev) {
        return Ok(());
    }
    let removed = fs::remove_file(&path);
    unless_gone(removed.map_err(|error| Error::new(format!("unlink {}", path.display()), &error))).map(drop)
}

/// Makes a device read-only or read-write (`BLKROSET`).
pub fn set_read_only(disk: &File, read_only: bool) -> Result<()> {
    // SAFETY: BLKROSET reads one int at the pointer.
    unsafe { ioctl(disk.as_fd(), Setter::<SET_READ_ONLY, i32>::new(read_only.into())) }
        .map_err(|errno| Error::new("ioctl BLKROSET", &errno.into()))
}

/// Empties `length` bytes from `start` on of a device that is open for writing (`BLKDISCARD`).
fn discard(disk: &File, start: u64, length: u64) -> Result<()> {
    // SAFETY: BLKDISCARD reads two u64 at the pointer.
    unsafe { ioctl(disk.as_fd(), Setter::<DISCARD, [u64; 2]>::new([start, length])) }
        .map_err(|errno| Error::new("ioctl BLKDISCARD", &errno.into()))
}

/// Empties a device from byte `at` to byte `end`, at most `step` bytes with each discard. `at` moves along: what is before
/// it is empty, also after a failure.
pub fn discard_in_steps(disk: &File, at: &mut u64, end: u64, step: u64) -> Result<()> {
    while *at < end {
        let length = (end - *at).min(step);
        discard(disk, *at, length)?;
        *at += length;
    }
    Ok(())
}

/// Writes what the page cache has of a device to it, and forgets it (`BLKFLSBUF`).
pub fn flush_buffers(disk: &File) -> Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { ioctl(disk.as_fd(), NoArg::<FLUSH_BUFFERS>::new()) }
        .map_err(|errno| Error::new("ioctl BLKFLSBUF", &errno.into()))
}

/// The most that one discard of a whole disk may empty, in bytes, by the kernel's name: 0 where discards
/// are off.
pub fn discard_limit(root: &Root, name: &str) -> Result<Option<u64>> {
    root.number(format!("sys/block/{name}/queue/discard_max_bytes"))
}

/// Has the kernel refuse each discard of a whole disk, by the kernel's name.
pub fn refuse_discards(root: &Root, name: &str) -> Result<()> {
    let path = root.path(format!("sys/block/{name}/queue/discard_max_bytes"));
    fs::write(&path, "0").map_err(|error| Error::new(format!("write 0 to {}", path.display()), &error))
}

/// Drops what the page cache has of a device and need not write: a mapping on the device writes beside it.
pub fn forget_cached(disk: &File) -> Result<()> {
    fadvise(disk, 0, None, Advice::DontNeed)
        .map_err(|errno| Error::new("posix_fadvise of a device", &errno.into()))
}

/// Reads the first `buffer.len()` bytes.
pub fn read_start(disk: &File, buffer: &mut [u8]) -> Result<()> {
    disk.read_exact_at(buffer, 0).map_err(|error| Error::new("read the first block", &error))
}

/// Writes the first bytes and waits until the device has them.
pub fn write_start(disk: &File, bytes: &[u8]) -> Result<()> {
    disk.write_all_at(bytes, 0)
        .and_then(|()| disk.sync_data())
        .map_err(|error| Error::new("write the first block", &error))
}

/// The node of a disk by the kernel's name; its names in sysfs have `!` for `/`.
pub fn node(root: &Root, name: &str) -> PathBuf {
    root.path("dev").join(name.replace('!', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_kernels_encoding() {
        // huge_encode_dev of 253:7, and of 259:70000 whose minor spills over.
        assert_eq!(Dev::from_kernel(253 << 8 | 7), Dev { major: 253, minor: 7 });
        let (major, minor) = (259u64, 70000u64);
        let encoded = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
        assert_eq!(Dev::from_kernel(encoded), Dev { major: 259, minor: 70000 });
    }

    #[test]
    fn the_sizes_of_all_disks_are_read() {
        let text =
            "major minor  #blocks  name\n\n   8        0   33554432 sda\n 253        7      16384 dm-7\n";
        let sizes = parse_sizes(text);
        assert_eq!(sizes.len(), 2);
        assert_eq!(sizes[&Dev { major: 253, minor: 7 }], 16 << 20);
        assert_eq!(sizes[&Dev { major: 8, minor: 0 }], 32 << 30);
    }

    #[test]
    fn device_numbers_are_parsed_and_shown_alike() {
        let dev = Dev::parse("8:16").unwrap();
        assert_eq!(dev.to_string(), "8:16");
        for wrong in ["", "8", "8:", ":1", "8:1:2", "a:b", "-1:0"] {
            assert_eq!(Dev::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_the_block_device_of_that_name_is_opened() {
        let root = Root::new("/");
        assert!(open(&root, "null", Mode::Read).unwrap_err().is(Errno::NXIO));
        assert!(open(&root, "none-such", Mode::Read).unwrap_err().is(Errno::NOENT));
        assert_eq!(dev_of_node(Path::new("/dev/null")), Ok(None));
    }
}
