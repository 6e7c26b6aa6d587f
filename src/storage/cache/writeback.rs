//! Writeback: the data of a cache gets to its source before the cache goes, and a
//! RAM disk that may hold the only copy of some is not used again.

use std::fs::File;

use super::report;
use crate::kernel::block::{self, Access};
use crate::kernel::dm::Control;
use crate::kernel::{self};
use crate::storage::{CacheName, DiskName, Error, Result, Storage, stats};

/// Bytes in a block of a writeback cache, and in the superblock at its start.
pub const BLOCK: u64 = 4096;
/// The first bytes of a writecache superblock.
const MAGIC: [u8; 4] = 0x2348_9321u32.to_le_bytes();

/// Reads the block in which a cache keeps its superblock. Refused where there is a
/// writecache's, whatever the disk is to be now: it may hold data that the source of
/// that cache, which is not named in it, has not.
pub fn first_block(disk: DiskName, claim: &File) -> Result<Vec<u8>> {
    let mut block = vec![0; BLOCK as usize];
    block::read_start(claim, &mut block)?;
    if block.starts_with(&MAGIC) {
        return Err(Error::Conflict(format!(
            "{disk} may still hold unwritten data of an earlier writeback cache that was not removed by this \
             service; flush {disk} first if that data is of no use any more"
        )));
    }
    Ok(block)
}

/// Has all data of a writeback cache written to its source.
pub fn write_back(control: &Control, name: &CacheName) -> Result<()> {
    let what = || format!("cannot write the data of {name} to its source; it stays mapped");
    control.message(name.as_dm(), "flush").map_err(Error::kernel(what()))?;
    // What is written from here on is flushed by the suspension.
    control.message(name.as_dm(), "flush_on_suspend").map_err(Error::kernel(what()))
}

/// Suspends a writeback cache and makes sure that it holds no data any more.
pub fn suspend_clean(control: &Control, name: &CacheName) -> Result<()> {
    control.suspend(name.as_dm()).map_err(Error::kernel(format!("cannot suspend {name}")))?;
    let state = stats::writecache(&report(control, name)?.1)?;
    let count = |field| state.iter().find(|(name, _)| *name == field).map_or(0, |(_, count)| *count);
    if count("errors") == 0 && count("num_free_blocks") == count("num_blocks") {
        return Ok(());
    }
    Err(Error::Kernel(
        format!("cannot write the data of {name} to its source; it stays mapped"),
        kernel::Error::new("writecache status", &rustix::io::Errno::IO.into()),
    ))
}

impl Storage {
    pub(super) fn write_start(&self, disk: DiskName, bytes: &[u8]) -> Result<()> {
        block::open(&self.root, &self.existing(disk)?.device, Access::ClaimWrite)
            .and_then(|disk| block::write_start(&disk, bytes))
            .map_err(Error::kernel(format!("cannot write the first block of {disk}")))
    }

    /// Writes nothing where nothing has changed: a block that was never written
    /// holds no memory.
    pub(super) fn restore_start(&self, disk: DiskName, before: &[u8]) -> Result<()> {
        let mut now = vec![0; before.len()];
        block::open(&self.root, &self.existing(disk)?.device, Access::Read)
            .and_then(|disk| block::read_start(&disk, &mut now))
            .map_err(Error::kernel(format!("cannot read the first block of {disk}")))?;
        if now == before { Ok(()) } else { self.write_start(disk, before) }
    }
}
