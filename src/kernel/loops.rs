//! Loop devices (`linux/loop.h`; loop(4)): block devices that keep their data in a
//! file.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;

use rustix::io::Errno;
use rustix::ioctl::{Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl};

use super::block::{self, Dev, Mode};
use super::{Dir, Error, Result, Root};

const CONTROL: &str = "dev/loop-control";

const CLR_FD: Opcode = 0x4C01;
const SET_STATUS64: Opcode = 0x4C04;
const GET_STATUS64: Opcode = 0x4C05;
const SET_CAPACITY: Opcode = 0x4C07;
const CONFIGURE: Opcode = 0x4C0A;
const CTL_ADD: Opcode = 0x4C80;
const CTL_REMOVE: Opcode = 0x4C81;

const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// The devices that this program adds have this number or a higher one. Those below are left to other programs,
/// which take the lowest free number.
const FIRST: u32 = 1024;

/// How many numbers are tried for one device. Another program may have it, or it may be removed at the moment.
const ATTEMPTS: u32 = 8;

/// Removals that wait at the same time, each some 50 ms for all processors.
const REMOVALS: usize = 8;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

const EMPTY: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// Adds or removes the device of a number.
struct Control {
    opcode: Opcode,
    number: u32,
}

// SAFETY: LOOP_CTL_ADD and LOOP_CTL_REMOVE take the number itself as their argument.
unsafe impl Ioctl for Control {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.number as usize)
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Whether the driver is loaded.
pub fn is_loaded(root: &Root) -> Result<bool> {
    root.exists(CONTROL)
}

/// The attached devices by the kernel's names, each with its file as the kernel
/// shows the path.
pub fn attached(root: &Root) -> Result<Vec<(String, String)>> {
    let Some(dir) = devices(root)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for name in dir.names()?.into_iter().filter(|name| name.starts_with("loop")) {
        found.extend(dir.attribute(&format!("{name}/loop/backing_file"))?.map(|file| (name, file)));
    }
    Ok(found)
}

/// The directory of all loop devices; the short way to them where there is one.
fn devices(root: &Root) -> Result<Option<Dir>> {
    match root.dir("sys/devices/virtual/block")? {
        None => root.dir("sys/block"),
        short => Ok(short),
    }
}

/// The file of a loop device; `None` where it is not attached. The device itself is not asked: that takes
/// opening it, and an open device may not go away.
pub fn backing(root: &Root, name: &str) -> Result<Option<String>> {
    root.attribute(format!("sys/block/{name}/loop/backing_file"))
}

/// Whether a loop device ends before its file does.
pub fn ends_early(root: &Root, name: &str) -> Result<bool> {
    Ok(root.number(format!("sys/block/{name}/loop/sizelimit"))?.is_some_and(|limit| limit > 0))
}

/// Whether a loop device lets go of its file when the last one closes it.
pub fn detaches_itself(root: &Root, name: &str) -> Result<bool> {
    Ok(root.number(format!("sys/block/{name}/loop/autoclear"))? == Some(1))
}

/// The block device that an attached loop device was given (`lo_rdevice`), 0:0 if it was given a file.
/// `None` if it is not attached any more. This opens the loop device for a moment, so it is only for one
/// that has no other way to tell.
pub fn stands_on(root: &Root, name: &str) -> Result<Option<Dev>> {
    match status(&block::open(root, name, Mode::Read)?) {
        Err(error) if error.is(Errno::NXIO) => Ok(None),
        info => Ok(Some(Dev::from_kernel(info?.rdevice))),
    }
}

/// Attaches a device to a file, for reading and writing, past the page cache of the file where its file system
/// can do that. Gives the device's name and a claim on it: nobody else has mounted it or stacks on it yet. What an
/// earlier user made of the device is undone: partitions, and that it is read-only.
///
/// The device is added if it is not there. Its number follows from `place`, which counts from 0 and is the
/// caller's own, so that no free device has to be looked for. If that device is taken, it is the one `places`
/// further on, and so forth.
pub fn attach(root: &Root, file: &File, place: u32, places: u32) -> Result<(String, File)> {
    let control = control(root)?;
    let first = first(root)?;
    for attempt in 0..ATTEMPTS {
        let number = first + place + attempt * places;
        // SAFETY: see Control.
        match unsafe { ioctl(&control, Control { opcode: CTL_ADD, number }) } {
            // One that is free since its last user left it, or that somebody has.
            Err(Errno::EXIST) => {}
            added => added.map_err(failed("LOOP_CTL_ADD"))?,
        }
        let name = format!("loop{number}");
        if backing(root, &name)?.is_some() {
            continue;
        }
        match attach_to(root, &name, file) {
            Err(error) if error.is(Errno::BUSY) || error.is_gone() => {}
            attached => return attached.map(|disk| (name, disk)),
        }
    }
    Err(failed("LOOP_CONFIGURE")(Errno::BUSY))
}

fn attach_to(root: &Root, name: &str, file: &File) -> Result<File> {
    let disk = block::open(root, name, Mode::ClaimWrite)?;
    // Somebody may have been faster. From here on nobody else can attach it.
    if backing(root, name)?.is_some() {
        return Err(failed("LOOP_CONFIGURE")(Errno::BUSY));
    }
    block::forget_partitions(root, name, &disk)?;
    block::set_read_only(&disk, false)?;
    let config = Config {
        fd: file.as_raw_fd() as u32,
        block_size: block::SECTOR as u32,
        info: Info { flags: DIRECT_IO, ..EMPTY },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one struct loop_config at the pointer.
    unsafe { ioctl(&disk, Setter::<CONFIGURE, Config>::new(config)) }.map_err(failed("LOOP_CONFIGURE"))?;
    Ok(disk)
}

/// Lets go of the file, at once or, where others have the device open, when the
/// last of them closes it.
pub fn detach(disk: &File) -> Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument.
    unsafe { ioctl(disk, NoArg::<CLR_FD>::new()) }.map_err(failed("LOOP_CLR_FD"))
}

/// Lets go of the file if nobody else has the device open: at once or, from Linux 6.10 on, when `disk` is
/// closed, until when nobody can open the device. EBUSY: somebody has it open, and nothing has changed.
pub fn detach_unused(disk: &File) -> Result<()> {
    detach(disk)?;
    // The device only has a file now if it is to lose it when others close it.
    match stay(disk) {
        Err(error) if error.is(Errno::NXIO) => Ok(()),
        stays => stays.and(Err(failed("LOOP_CLR_FD")(Errno::BUSY))),
    }
}

/// Takes back a detachment that waits for the last opener to close the device.
pub fn stay(disk: &File) -> Result<()> {
    change(disk, |info| info.flags &= !AUTOCLEAR)
}

/// Ends the device at `bytes`, or with the file if that is 0. What its page cache
/// holds is in the file afterwards.
pub fn limit(disk: &File, bytes: u64) -> Result<()> {
    change(disk, |info| info.size_limit = bytes)
}

/// Gives the device the size that its file has now.
pub fn follow_size(disk: &File) -> Result<()> {
    // SAFETY: LOOP_SET_CAPACITY takes no argument.
    unsafe { ioctl(disk, NoArg::<SET_CAPACITY>::new()) }.map_err(failed("LOOP_SET_CAPACITY"))
}

/// Removes the devices that were added by this program, or by an earlier run of it, and that are free and open
/// nowhere. Returns whether all that are free are gone.
///
/// They are known by their numbers, see [`FIRST`]. The kernel refuses to remove a device that is in use.
pub fn remove_free(root: &Root) -> Result<bool> {
    if !is_loaded(root)? {
        return Ok(true);
    }
    let Some(dir) = devices(root)? else { return Ok(true) };
    let first = first(root)?;
    let mut free = Vec::new();
    for name in dir.names()? {
        let number = name.strip_prefix("loop").and_then(|number| number.parse().ok());
        if let Some(number) = number.filter(|&number| number >= first)
            && !dir.exists(&format!("{name}/loop"))?
        {
            free.push(number);
        }
    }
    let control = control(root)?;
    let remove = |number: &u32| {
        // SAFETY: see Control.
        match unsafe { ioctl(&control, Control { opcode: CTL_REMOVE, number: *number }) } {
            Err(Errno::BUSY) => Ok(false),
            // Somebody else was faster.
            Err(Errno::NODEV) => Ok(true),
            removed => removed.map(|()| true).map_err(failed("LOOP_CTL_REMOVE")),
        }
    };
    let all = |numbers: &[u32]| numbers.iter().try_fold(true, |all, number| Ok(remove(number)? && all));
    thread::scope(|scope| {
        let start = |numbers| thread::Builder::new().spawn_scoped(scope, move || all(numbers));
        let started: Vec<_> = free.chunks(free.len().div_ceil(REMOVALS).max(1)).map(start).collect();
        started.into_iter().try_fold(true, |all, started| {
            let removals = started.map_err(|error| Error::new("start a thread", &error))?;
            Ok(removals.join().unwrap_or(Ok(false))? && all)
        })
    })
}

/// The lowest number of a device that this program adds. The kernel made those below `max_loop` when it started.
fn first(root: &Root) -> Result<u32> {
    let made = root.attribute("sys/module/loop/parameters/max_loop")?;
    Ok(made.and_then(|made| made.trim().parse().ok()).map_or(FIRST, |made: u32| made.max(FIRST)))
}

/// Opens the driver, which loads its module where the kernel can. ENOENT, ENODEV or
/// ENXIO: it is not loaded.
pub fn control(root: &Root) -> Result<File> {
    let path = root.path(CONTROL);
    let context = |error| Error::new(format!("open {}", path.display()), &error);
    File::options().read(true).write(true).open(&path).map_err(context)
}

fn status(disk: &File) -> Result<Info> {
    // SAFETY: LOOP_GET_STATUS64 writes one struct loop_info64 at the pointer, in which
    // any bytes are valid.
    unsafe { ioctl(disk.as_fd(), Getter::<GET_STATUS64, Info>::new()) }.map_err(failed("LOOP_GET_STATUS64"))
}

fn change(disk: &File, change: impl FnOnce(&mut Info)) -> Result<()> {
    let mut info = status(disk)?;
    change(&mut info);
    // SAFETY: LOOP_SET_STATUS64 reads one at the pointer.
    unsafe { ioctl(disk.as_fd(), Setter::<SET_STATUS64, Info>::new(info)) }
        .map_err(failed("LOOP_SET_STATUS64"))
}

fn failed(what: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::new(format!("ioctl {what}"), &errno.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_devices_that_the_kernel_made_at_its_start_are_not_counted_as_added() {
        let dir = std::env::temp_dir().join(format!("rapiddiskd-loops-{}", std::process::id()));
        let root = Root::new(&dir);
        assert_eq!(first(&root), Ok(1024));
        fs::create_dir_all(dir.join("sys/module/loop/parameters")).unwrap();
        for (made, number) in [("0\n", 1024), ("8\n", 1024), ("1024\n", 1024), ("4096\n", 4096)] {
            fs::write(dir.join("sys/module/loop/parameters/max_loop"), made).unwrap();
            assert_eq!(first(&root), Ok(number), "{made:?}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
