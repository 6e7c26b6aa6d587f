//! What procfs tells: mounts, swap, and which process has a block
//! device open.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, readlinkat, statx};
use rustix::io::Errno;

use super::block::{Dev, dev_of_node};
use super::{Error, Result, Root};

/// One mount of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device number of the file system; btrfs and the like give one that is
    /// no block device's.
    pub dev: Dev,
    /// The mount source as given to mount(2), such as `/dev/sda1`.
    pub source: String,
    /// Where it is mounted.
    pub on: String,
    /// Whether the mount or the file system is read-only for every writer: the
    /// super block's own option.
    pub read_only: bool,
}

/// The mounts this process sees (`/proc/self/mountinfo`).
pub fn mounts(root: &Root) -> Result<Vec<Mount>> {
    Ok(root.text("proc/self/mountinfo")?.lines().filter_map(parse_mount).collect())
}

/// proc(5): id, parent, major:minor, root, mount point, options, optional
/// fields, "-", type, source, super options.
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let dev = Dev::parse(left.next()?)?;
    let on = unescape(left.nth(1)?);
    let mut right = right.split(' ').skip(1);
    let source = unescape(right.next()?);
    let read_only = right.next()?.split(',').any(|option| option == "ro");
    Some(Mount { dev, source, on, read_only })
}

/// Undoes the octal escapes (`\040` for a space) of mountinfo and swaps.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.get(..3)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The devices in use as swap (`/proc/swaps`); empty in a kernel without swap.
pub fn swaps(root: &Root) -> Result<Vec<Dev>> {
    let text = root.text_if_there("proc/swaps")?.unwrap_or_default();
    let devs = parse_swaps(&text).into_iter().map(|path| dev_of_node(Path::new(&path)));
    Ok(devs.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn parse_swaps(text: &str) -> Vec<String> {
    let fields = text.lines().skip(1).map(|line| line.split_ascii_whitespace());
    fields
        .filter_map(|mut fields| Some((unescape(fields.next()?), fields.next()?)))
        .filter_map(on_device)
        .collect()
}

fn on_device((path, kind): (String, &str)) -> Option<String> {
    (kind == "partition").then_some(path)
}

/// A process that has a device open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opener {
    /// Its process id.
    pub pid: u32,
    /// Its name (`comm`), which the process itself may have chosen.
    pub name: String,
}

/// The processes other than this one that have one of `devs` open in a descriptor, and the first error of
/// those that could not be looked at. Looks at each descriptor of each process once. A process that ends in
/// the meantime has nothing open.
pub fn openers(root: &Root, devs: &[Dev]) -> Result<(Vec<Opener>, Option<Error>)> {
    let (mut found, mut unseen) = (Vec::new(), None);
    for entry in root.names("proc")? {
        let Ok(pid) = entry.parse::<u32>() else { continue };
        if pid == std::process::id() {
            continue;
        }
        match has_open(root, pid, devs) {
            Ok(false) => {}
            Ok(true) => {
                let name = root.attribute(format!("proc/{pid}/comm")).ok().flatten().unwrap_or_default();
                found.push(Opener { pid, name });
            }
            Err(error) => unseen = unseen.or(Some(error)),
        }
    }
    Ok((found, unseen))
}

fn has_open(root: &Root, pid: u32, devs: &[Dev]) -> Result<bool> {
    let dir = format!("proc/{pid}");
    let (is_any, is_open) = look_at(root, &format!("{dir}/fd"), devs)?;
    if is_any || is_open {
        return Ok(is_open);
    }
    // A process whose first thread has ended shows its descriptors at the others.
    for thread in unless_gone(root.names(format!("{dir}/task")))? {
        if thread != pid.to_string() && look_at(root, &format!("{dir}/task/{thread}/fd"), devs)?.1 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether there is any descriptor in the directory, and one of the devices.
fn look_at(root: &Root, dir: &str, devs: &[Dev]) -> Result<(bool, bool)> {
    let fds = unless_gone(root.names(dir))?;
    if fds.is_empty() {
        return Ok((false, false));
    }
    let path = root.path(dir);
    let failed = |errno: Errno| Error::new(format!("look into {}", path.display()), &errno.into());
    let handle = match openat(CWD, &path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(handle) => File::from(handle),
        Err(Errno::NOENT | Errno::SRCH) => return Ok((false, false)),
        Err(errno) => return Err(failed(errno)),
    };
    for fd in &fds {
        if is_open_on(handle.as_fd(), fd, devs).map_err(failed)? {
            return Ok((true, true));
        }
    }
    Ok((true, false))
}

/// A process that ended has no descriptors.
fn unless_gone(names: Result<Vec<String>>) -> Result<Vec<String>> {
    match names {
        Err(error) if error.is_gone() => Ok(Vec::new()),
        other => other,
    }
}

/// Asks with `AT_STATX_DONT_SYNC`: a descriptor on a dead network file system
/// must not hang the answer.
fn is_open_on(dir: BorrowedFd<'_>, fd: &str, devs: &[Dev]) -> rustix::io::Result<bool> {
    let stat = match statx(dir, fd, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::SRCH) => return Ok(false),
        // Some file systems (FUSE) refuse their attributes even to root. If the link can be read,
        // it is not that this process lacks a privilege, and such a file is never a device.
        Err(_) => return unless_closed(readlinkat(dir, fd, Vec::new())).map(|_| false),
    };
    let is_block = u32::from(stat.stx_mode) & 0o170000 == 0o060000;
    Ok(is_block && devs.contains(&Dev { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor }))
}

fn unless_closed<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_with_its_escapes() {
        let line =
            r"36 35 251:0 / /mnt/my\040disk rw,noatime shared:1 master:2 - ext4 /dev/rd0 rw,errors=continue";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.dev, Dev { major: 251, minor: 0 });
        assert_eq!(mount.on, "/mnt/my disk");
        assert_eq!(mount.source, "/dev/rd0");
        assert!(!mount.read_only);
    }

    #[test]
    fn the_super_block_decides_what_is_read_only() {
        // A read-only bind mount of a writable file system still has a writer.
        let bind = "36 35 251:0 / /mnt ro,noatime - ext4 /dev/rd0 rw";
        assert!(!parse_mount(bind).unwrap().read_only);
        let read_only = "36 35 251:0 / /mnt rw - ext4 /dev/rd0 ro,norecovery";
        assert!(parse_mount(read_only).unwrap().read_only);
    }

    #[test]
    fn escapes_are_undone_and_strays_kept() {
        assert_eq!(unescape(r"a\040b\134c\011"), "a b\\c\t");
        assert_eq!(unescape(r"\04"), r"\04");
        assert_eq!(unescape(r"\999"), r"\999");
    }

    #[test]
    fn swap_files_are_no_devices() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/rd1                                partition\t65532\t\t0\t\t-2\n\
                    /swap\\040file                          file\t1024\t0\t-3\n";
        assert_eq!(parse_swaps(text), ["/dev/rd1"]);
    }
}
