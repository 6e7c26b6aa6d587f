//! Whether anybody else has a block device open. Only the kernel knows: a device can be open in no
//! descriptor of any process, as for one who mapped it and closed it.
//!
//! The kernel has a count of openers, which it does not show. But when the last opener closes a device, it
//! empties the device's page cache (`blkdev_put_whole`, `blkdev_flush_mapping` in `block/bdev.c`). So
//! this reads the first and the last page, closes the device, opens it again, and looks whether one of them is
//! still cached (mincore(2)). If so, somebody else has the device open. A pipe refers to the pages meanwhile
//! (splice(2)), so that the kernel cannot drop them for want of memory. Only who writes to both of them past
//! the page cache at this moment is not seen.
//!
//! mincore(2) tells the truth to the owner of the node, or with `CAP_FOWNER`.

use std::ffi::{c_int, c_uchar, c_void};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use super::block::{self, Mode};
use super::dm::{Control, Name};
use super::{Error, Result, Root};

// SAFETY: the declaration is that of mincore(2).
unsafe extern "C" {
    fn mincore(address: *mut c_void, length: usize, pages: *mut c_uchar) -> c_int;
}

/// Opens a device as [`block::open`] does, and says whether nobody else has it open. Who has a partition open
/// has its disk open too.
pub fn open(root: &Root, name: &str, mode: Mode) -> Result<(File, bool)> {
    // udev looks into a device that was open for writing once that is closed, and would be an opener then.
    let look = if mode == Mode::ClaimWrite { Mode::Claim } else { mode };
    let mapping = block::mapped_name(root, name)?.and_then(|name| Name::new(&name));
    let (device, is_alone) = match mapping {
        // device-mapper shows its count, and a mapping that is suspended cannot be read.
        Some(mapping) => {
            let device = block::open(root, name, look)?;
            (device, Control::open(root)?.info(&mapping)?.open_count <= 1)
        }
        None => open_after_last(root, name, look)?,
    };
    if !is_alone || look == mode {
        return Ok((device, is_alone));
    }
    drop(device);
    Ok((block::open(root, name, mode)?, true))
}

/// Opens, closes and opens a device. Says whether the closing was that of the last opener.
fn open_after_last(root: &Root, name: &str, mode: Mode) -> Result<(File, bool)> {
    let what = format!("read the first and the last page of {name}");
    let failed = |errno: Errno| Error::new(&what, &errno.into());
    let page = rustix::param::page_size();
    let mut device = block::open(root, name, mode)?;
    let size = device.seek(SeekFrom::End(0)).map_err(|error| Error::new(&what, &error))?;
    let places = [0, size.saturating_sub(1) / page as u64 * page as u64];
    let (_holds_pages, pipe) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    for mut at in places {
        if splice(&device, Some(&mut at), &pipe, None, page, SpliceFlags::empty()).map_err(failed)? == 0 {
            return Err(Error::strange(&what));
        }
    }
    drop(device);
    let device = block::open(root, name, mode)?;
    let is_cached = is_cached(&device, places[0], page)? || is_cached(&device, places[1], page)?;
    Ok((device, !is_cached))
}

fn is_cached(device: &File, at: u64, page: usize) -> Result<bool> {
    let failed = |what: &str, error: &io::Error| Error::new(what, error);
    let mut pages = [0; 1];
    // SAFETY: a new mapping of one page, which nobody reads; it is removed below. mincore writes one byte for it.
    unsafe {
        let mapped = mmap(ptr::null_mut(), page, ProtFlags::READ, MapFlags::SHARED, device.as_fd(), at)
            .map_err(|errno| failed("mmap", &errno.into()))?;
        let asked = match mincore(mapped, page, pages.as_mut_ptr()) {
            0 => Ok(()),
            _ => Err(failed("mincore", &io::Error::last_os_error())),
        };
        munmap(mapped, page).map_err(|errno| failed("munmap", &errno.into()))?;
        asked?;
    }
    Ok(pages[0] & 1 == 1)
}
