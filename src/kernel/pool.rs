//! The private tmpfs whose files hold the data of RAM disks behind loop devices.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom, StatFs, fallocate, seek, statfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};

use super::{Error, Result, Root, unless_gone};

/// Where it is mounted.
const DIR: &str = "run/rapiddiskd/disks";

/// `TMPFS_MAGIC`.
const TMPFS: u64 = 0x0102_1994;

const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// The path of a file in it.
pub fn path(root: &Root, name: &str) -> PathBuf {
    root.path(DIR).join(name)
}

/// The file's name, given its path as the kernel shows it; `None` if it is no file
/// of the pool.
pub fn name_in<'a>(root: &Root, path: &'a str) -> Option<&'a str> {
    // A file that somebody unlinked lives on for as long as its device.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.strip_prefix(root.path(DIR).to_str()?)?.strip_prefix('/')
}

/// Whether it is mounted.
pub fn is_mounted(root: &Root) -> Result<bool> {
    Ok(mounted(root)?.is_some())
}

fn mounted(root: &Root) -> Result<Option<StatFs>> {
    let dir = root.path(DIR);
    let failed = |error| Error::new(format!("look at {}", dir.display()), &error);
    let Some(stat) = unless_gone(statfs(&dir).map_err(|errno| failed(errno.into())))? else {
        return Ok(None);
    };
    let dev = |path: &Path| fs::symlink_metadata(path).map(|node| node.dev()).map_err(failed);
    let is_mounted = stat.f_type as u64 == TMPFS && dev(&dir.join(".."))? != dev(&dir)?;
    Ok(is_mounted.then_some(stat))
}

/// Mounts it if it is not mounted, for root alone; gives it room for `bytes`, which must be no less than what
/// its files may grow to: a file system that is full below that would be full too early.
pub fn mount_for(root: &Root, bytes: u64) -> Result<()> {
    let dir = root.path(DIR);
    let context = |error: io::Error| Error::new(format!("mount a tmpfs on {}", dir.display()), &error);
    let size = bytes.next_multiple_of(rustix::param::page_size() as u64);
    if let Some(stat) = mounted(root)? {
        if stat.f_blocks.checked_mul(stat.f_bsize as u64) == Some(size) {
            return Ok(());
        }
        return mount_remount(&dir, FLAGS, format!("size={size}")).map_err(|errno| context(errno.into()));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(context)?;
    let options = std::ffi::CString::new(format!("mode=0700,size={size}")).unwrap_or_default();
    mount("rapiddiskd", &dir, "tmpfs", FLAGS, &*options).map_err(|errno| context(errno.into()))
}

/// The names of its files.
pub fn names(root: &Root) -> Result<Vec<String>> {
    if is_mounted(root)? { root.names(DIR) } else { Ok(Vec::new()) }
}

/// The files with their lengths in bytes.
pub fn lengths(root: &Root) -> Result<Vec<(String, u64)>> {
    if !is_mounted(root)? {
        return Ok(Vec::new());
    }
    let Some(dir) = root.dir(DIR)? else { return Ok(Vec::new()) };
    let look = |name: String| Ok(dir.length(&name)?.map(|length| (name, length)));
    dir.names()?.into_iter().filter_map(|name| look(name).transpose()).collect()
}

/// Whether it may have others than `files` files. One that somebody has unlinked counts: it lives on for as long as
/// its device.
pub fn has_other_than(root: &Root, files: usize) -> Result<bool> {
    // The directory itself counts.
    let counts = |stat: StatFs| stat.f_files.checked_sub(stat.f_ffree) != Some(files as u64 + 1);
    Ok(mounted(root)?.is_some_and(counts))
}

/// Makes an empty file of `bytes` bytes. EEXIST: the name is taken.
pub fn create(root: &Root, name: &str, bytes: u64) -> Result<File> {
    let path = path(root, name);
    let context = |error: io::Error| Error::new(format!("create {}", path.display()), &error);
    let file =
        File::options().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(context)?;
    match file.set_len(bytes) {
        Ok(()) => Ok(file),
        Err(error) => {
            let _ = fs::remove_file(&path);
            Err(context(error))
        }
    }
}

/// Gives a file a length in bytes: what is above is cut off, what is new is a hole.
pub fn set_length(file: &File, bytes: u64) -> Result<()> {
    file.set_len(bytes).map_err(|error| Error::new("ftruncate", &error))
}

/// Frees the memory of a file, which keeps its length and reads as zero.
pub fn empty(file: &File) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, flags, 0, length(file)?)
        .map_err(|errno| Error::new("fallocate PUNCH_HOLE", &errno.into()))
}

/// The length of a file in bytes.
pub fn length(file: &File) -> Result<u64> {
    Ok(file.metadata().map_err(|error| Error::new("fstat", &error))?.len())
}

/// Opens a file for reading and writing.
pub fn open(root: &Root, name: &str) -> Result<File> {
    let path = path(root, name);
    let context = |error| Error::new(format!("open {}", path.display()), &error);
    File::options().read(true).write(true).open(&path).map_err(context)
}

/// Gives a file another name, which must not be taken.
pub fn rename(root: &Root, from: &str, to: &str) -> Result<()> {
    let (from, to) = (path(root, from), path(root, to));
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        &from,
        rustix::fs::CWD,
        &to,
        rustix::fs::RenameFlags::NOREPLACE,
    )
    .map_err(|errno| Error::new(format!("rename {} to {}", from.display(), to.display()), &errno.into()))
}

/// Removes a file; its memory goes with the last device on it.
pub fn remove(root: &Root, name: &str) -> Result<()> {
    let path = path(root, name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::new(format!("unlink {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}

/// The memory that a file holds, in bytes; `None` if it is gone.
pub fn held(root: &Root, name: &str) -> Result<Option<u64>> {
    // POSIX leaves the unit of st_blocks open; in Linux it is 512 bytes.
    Ok(stat(root, name)?.map(|node| node.blocks().saturating_mul(512)))
}

fn stat(root: &Root, name: &str) -> Result<Option<fs::Metadata>> {
    let path = path(root, name);
    let failed = |error| Error::new(format!("look at {}", path.display()), &error);
    unless_gone(fs::metadata(&path).map_err(failed))
}

/// Where the data of a file ends, in bytes, counted in whole pages; 0 if it has
/// none.
pub fn end_of_data(file: &File) -> Result<u64> {
    let failed = |errno: Errno| Error::new("lseek SEEK_DATA", &errno.into());
    let page = rustix::param::page_size() as u64;
    let length = length(file)?;
    // In pages: there is data right below `start`, and none at or above `end`.
    let (mut start, mut end) = (0, length.div_ceil(page));
    while start < end {
        let middle = start + (end - start) / 2;
        match seek(file, SeekFrom::Data(middle * page)) {
            Ok(at) => start = at / page + 1,
            Err(Errno::NXIO) => end = middle,
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok((end * page).min(length))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_end_of_the_data_is_found_whatever_the_holes() {
        // A tmpfs on every Linux machine; where it is none, its holes do as well.
        let path = std::path::Path::new("/dev/shm").join(format!("rapiddiskd-holes-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        assert_eq!(end_of_data(&file), Ok(0));
        for at in [0, 5 << 20, (9 << 20) + 512, (64 << 20) - 1] {
            file.write_all_at(b"x", at).unwrap();
            assert_eq!(end_of_data(&file), Ok((at + 1).next_multiple_of(4096)), "{at}");
        }
        file.set_len(10 << 20).unwrap();
        assert_eq!(end_of_data(&file), Ok((9 << 20) + 4096));
    }

    #[test]
    fn only_what_is_in_the_pool_has_a_name_there() {
        let root = Root::new("/");
        assert_eq!(name_in(&root, "/run/rapiddiskd/disks/rd7"), Some("rd7"));
        assert_eq!(name_in(&root, "/run/rapiddiskd/disks/rd7 (deleted)"), Some("rd7"));
        for other in ["/run/rapiddiskd/disksrd7", "/rd7", "/run/rapiddiskd/rd7", "/home/a.img"] {
            assert_eq!(name_in(&root, other), None, "{other}");
        }
    }
}
