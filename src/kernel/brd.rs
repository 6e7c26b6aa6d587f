//! The kernel's own RAM disks, `ramN` (`drivers/block/brd.c`).
//!
//! The kernel makes `ramN` when something opens its device number, and keeps it until the module goes. Its
//! memory is taken page by page when it is written to, and given back by discards alone. Linux 6.12 frees a
//! discarded page while others may be reading or writing it: nobody else may use what is cleared here.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fcntl_setfl};

use super::block::{self, Dev, Mode, SECTOR};
use super::{Error, Result, Root};

const MODULE: &str = "sys/module/brd";

/// `RAMDISK_MAJOR`.
const MAJOR: u32 = 1;

/// What one discard empties at most, in bytes: the kernel holds a spin lock meanwhile.
const STEP: u64 = 64 << 20;

/// What is read at once, in bytes.
const CHUNK: u64 = 1 << 20;

/// What memory must be aligned to for reading past the page cache, in bytes.
const ALIGNMENT: usize = 4096;

/// The kernel's name of a disk.
pub fn name(number: u32) -> String {
    format!("ram{number}")
}

/// The device number of a disk, where the module was loaded without partitions.
pub fn dev(number: u32) -> Dev {
    Dev { major: MAJOR, minor: number }
}

/// Whether the driver is loaded.
pub fn is_loaded(root: &Root) -> Result<bool> {
    root.exists(MODULE)
}

/// The size that every disk has, in bytes (the parameter `rd_size`).
pub fn size(root: &Root) -> Result<u64> {
    let kib = root.number(format!("{MODULE}/parameters/rd_size"))?;
    Ok(kib.unwrap_or(0).saturating_mul(1024))
}

/// How many device numbers a disk has: more than one if it can have partitions (the parameter `max_part`).
pub fn minors(root: &Root) -> Result<u64> {
    Ok(root.number(format!("{MODULE}/parameters/max_part"))?.unwrap_or(1))
}

/// Whether the driver can discard, which each of its disks says; `None` if it has no disk yet. The `likely` one is looked
/// for first.
pub fn can_discard(root: &Root, likely: u32) -> Result<Option<bool>> {
    // What the driver can do. The limit beside it is what an administrator allows on this disk.
    let limit = |disk: &str| root.number(format!("sys/block/{disk}/queue/discard_max_hw_bytes"));
    let is_disk =
        |name: &String| name.strip_prefix("ram").is_some_and(|number| number.parse::<u32>().is_ok());
    let limit = match limit(&name(likely))? {
        None => block::disks(root)?.into_iter().find(is_disk).map_or(Ok(None), |disk| limit(&disk))?,
        found => found,
    };
    Ok(limit.map(|limit| limit > 0))
}

/// Whether a disk is there.
pub fn exists(root: &Root, number: u32) -> Result<bool> {
    root.exists(format!("sys/block/{}", name(number)))
}

/// The memory that a disk holds, in bytes; `None` where debugfs does not say.
pub fn held(root: &Root, number: u32) -> Option<u64> {
    let pages = root.number(format!("sys/kernel/debug/ramdisk_pages/{}", name(number))).ok()??;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Frees the memory of what is from byte `at` to byte `end`. Nobody may use it meanwhile. `at` moves along: what
/// is before it is free, also after a failure.
pub fn clear(root: &Root, number: u32, at: &mut u64, end: u64) -> Result<()> {
    let disk = block::open(root, &name(number), Mode::Write)?;
    block::discard_in_steps(&disk, at, end, STEP)
}

/// Where what is not zero ends, between byte `start` and byte `end`; `start` if all is zero. Both are
/// multiples of the MiB.
pub fn end_of_data(root: &Root, number: u32, start: u64, end: u64) -> Result<u64> {
    let disk = block::open(root, &name(number), Mode::Read)?;
    // What the page cache has of this disk is older than what was written to a mapping on it.
    fcntl_setfl(&disk, OFlags::DIRECT).map_err(|errno| Error::new("fcntl O_DIRECT", &errno.into()))?;
    let mut memory = vec![0; CHUNK as usize + ALIGNMENT];
    let aligned = memory.as_ptr().align_offset(ALIGNMENT);
    let chunk = &mut memory[aligned..][..CHUNK as usize];
    let mut at = end;
    while at > start {
        at -= CHUNK;
        read(&disk, chunk, at)?;
        if let Some(last) = chunk.iter().rposition(|&byte| byte != 0) {
            return Ok(at + (last as u64 + 1).next_multiple_of(SECTOR));
        }
    }
    Ok(start)
}

fn read(disk: &File, chunk: &mut [u8], at: u64) -> Result<()> {
    disk.read_exact_at(chunk, at).map_err(|error| Error::new("read a RAM disk", &error))
}
