//! What procfs tells: mounts, swap, and which process has a block
//! device open.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, readlinkat, statx};
use rustix::io::Errno;

use super::block::{Dev, dev_of_node, exists};
use super::root::room_for;
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
    let text = root.text("proc/self/mountinfo")?;
    room_for(text.lines().count())?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

/// How many mount namespaces are looked into.
const MOST_NAMESPACES: usize = 256;

/// The mounts of other mount namespaces than that of this process, each with a process that sees it. At most
/// [`MOST_NAMESPACES`] namespaces are looked into, and only those of processes that can be looked at.
pub fn mounts_elsewhere(root: &Root) -> Result<Vec<(Mount, Opener)>> {
    let namespace = |pid: &str| std::fs::read_link(root.path(format!("proc/{pid}/ns/mnt")));
    let mut seen: HashSet<_> = namespace("self").into_iter().collect();
    let mut found = Vec::new();
    for pid in pids(root)? {
        let is_new = namespace(&pid.to_string()).is_ok_and(|namespace| seen.insert(namespace));
        if !is_new {
            continue;
        }
        let Ok(text) = root.text(format!("proc/{pid}/mountinfo")) else { continue };
        room_for(found.len() + text.lines().count())?;
        found.extend(text.lines().filter_map(parse_mount).map(|mount| (mount, opener(root, pid))));
        if seen.len() > MOST_NAMESPACES {
            break;
        }
    }
    Ok(found)
}

/// The ids of the other processes.
fn pids(root: &Root) -> Result<impl Iterator<Item = u32>> {
    let pids = root.names("proc")?.into_iter().filter_map(|entry| entry.parse().ok());
    Ok(pids.filter(|&pid| pid != std::process::id()))
}

fn opener(root: &Root, pid: u32) -> Opener {
    Opener { pid, name: root.attribute(format!("proc/{pid}/comm")).ok().flatten().unwrap_or_default() }
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
    let devs = parse_swaps(&text)
        .filter(|(_, kind)| *kind == "partition")
        .map(|(path, _)| dev_of_node(Path::new(&path)));
    Ok(devs.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The paths of swap devices and swap files that lead nowhere any more.
pub fn lost_swaps(root: &Root) -> Result<Vec<String>> {
    let text = root.text_if_there("proc/swaps")?.unwrap_or_default();
    let is_lost = |path: &String| Ok(!exists(Path::new(path))?);
    let paths = parse_swaps(&text).map(|(path, _)| path);
    paths.filter_map(|path| is_lost(&path).map(|lost| lost.then_some(path)).transpose()).collect()
}

/// The path and the kind of each line.
fn parse_swaps(text: &str) -> impl Iterator<Item = (String, &str)> {
    let fields = text.lines().skip(1).map(|line| line.split_ascii_whitespace());
    fields.filter_map(|mut fields| Some((unescape(fields.next()?), fields.next()?)))
}

/// A process that uses a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opener {
    /// Its process id.
    pub pid: u32,
    /// Its name (`comm`), which the process itself may have chosen.
    pub name: String,
}

/// What of a device a process has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The device itself.
    Device,
    /// A file on a file system on it, be that mounted anywhere or not.
    File,
}

/// The processes other than this one that have one of `devs` open in a descriptor, and the first error of
/// those that could not be looked at. Looks at each descriptor of each process once. A process that ends in
/// the meantime has nothing open.
pub fn openers(root: &Root, devs: &[Dev], what: What) -> Result<(Vec<Opener>, Option<Error>)> {
    let (mut found, mut unseen) = (Vec::new(), None);
    for pid in pids(root)? {
        match has_open(root, pid, devs, what) {
            Ok(false) => {}
            Ok(true) => found.push(opener(root, pid)),
            Err(error) => unseen = unseen.or(Some(error)),
        }
    }
    Ok((found, unseen))
}

fn has_open(root: &Root, pid: u32, devs: &[Dev], what: What) -> Result<bool> {
    let dir = format!("proc/{pid}");
    if what == What::File && look_at(root, &dir, vec!["cwd".into(), "root".into(), "exe".into()], devs, what)?
    {
        return Ok(true);
    }
    let fds = |dir: &str| unless_gone(root.names(dir));
    let fd = format!("{dir}/fd");
    let own = fds(&fd)?;
    if !own.is_empty() {
        return look_at(root, &fd, own, devs, what);
    }
    // A process whose first thread has ended shows its descriptors at the others.
    for thread in unless_gone(root.names(format!("{dir}/task")))? {
        let fd = format!("{dir}/task/{thread}/fd");
        if thread != pid.to_string() && look_at(root, &fd, fds(&fd)?, devs, what)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether one of the links in the directory leads to one of the devices, or to a file on one.
fn look_at(root: &Root, dir: &str, links: Vec<String>, devs: &[Dev], what: What) -> Result<bool> {
    let path = root.path(dir);
    let failed = |errno: Errno| Error::new(format!("look into {}", path.display()), &errno.into());
    let handle = match openat(CWD, &path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(handle) => File::from(handle),
        Err(Errno::NOENT | Errno::SRCH) => return Ok(false),
        Err(errno) => return Err(failed(errno)),
    };
    for link in &links {
        if is_open_on(handle.as_fd(), link, devs, what).map_err(failed)? {
            return Ok(true);
        }
    }
    Ok(false)
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
fn is_open_on(dir: BorrowedFd<'_>, fd: &str, devs: &[Dev], what: What) -> rustix::io::Result<bool> {
    let stat = match statx(dir, fd, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::SRCH) => return Ok(false),
        // Some file systems (FUSE) refuse their attributes even to root. If the link can be read,
        // it is not that this process lacks a privilege, and such a file is never a device.
        Err(_) => return unless_closed(readlinkat(dir, fd, Vec::new())).map(|_| false),
    };
    let is_block = u32::from(stat.stx_mode) & 0o170000 == 0o060000;
    Ok(match what {
        What::Device => {
            is_block && devs.contains(&Dev { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor })
        }
        What::File => devs.contains(&Dev { major: stat.stx_dev_major, minor: stat.stx_dev_minor }),
    })
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
    fn swap_devices_and_files_are_told_apart() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/rd1                                partition\t65532\t\t0\t\t-2\n\
                    /swap\\040file                          file\t1024\t0\t-3\n";
        let swaps: Vec<_> = parse_swaps(text).collect();
        assert_eq!(swaps, [("/dev/rd1".to_owned(), "partition"), ("/swap file".to_owned(), "file")]);
    }
}
