//! Who uses a block device. Every change that destroys something asks here first, while it holds the
//! device's key.
//!
//! Whether a device is used is the kernel's word alone: its count of openers. Mounts, holders, loop devices,
//! namespaces and processes are looked through to name a user once there is one.

use std::fmt;
use std::fs::File;
use std::path::Path;

use rustix::io::Errno;

use super::error::{Cannot, Error, Result};
use super::names::{DiskName, Part};
use super::wait::{PROBING, wait_until};
use crate::kernel::block::{self, Dev, Mode};
use crate::kernel::proc::{Mount, Opener, What};
use crate::kernel::{self, Root, loops, nvmet, openers, pool, proc};

/// What cannot be done where a user cannot be looked for; completes "cannot …".
const LOOK: &str = "find out who uses the device";

/// Somebody who uses a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A mounted file system.
    Mount {
        /// Where it is mounted.
        on: String,
        /// Whether nobody can write through it.
        read_only: bool,
    },
    /// A file system that is mounted in another mount namespace.
    MountElsewhere {
        /// Where it is mounted there.
        on: String,
        /// A process that sees it.
        by: Opener,
    },
    /// A file system that is mounted nowhere any more, but of which a process has something open.
    LazyMount(Opener),
    /// Swap space.
    Swap,
    /// Swap space at a path that is gone: it may be on this device.
    LostSwap(String),
    /// A device stacked on it: a cache, a RAM disk's own mapping, or any other.
    Holder(String),
    /// A loop device that it backs.
    Loop(String),
    /// An NVMe namespace.
    Namespace {
        /// The subsystem.
        nqn: String,
        /// The namespace's id.
        id: u32,
    },
    /// An enabled NVMe namespace on a device whose node is gone: it may be this one.
    LostNamespace {
        /// The subsystem.
        nqn: String,
        /// The namespace's id.
        id: u32,
        /// The path of the node.
        path: String,
    },
    /// NVMe targets that configfs, unmounted, does not show.
    HiddenTargets,
    /// A process that has it open.
    Process(Opener),
    /// A process that may have it open, for all that can be seen: why it could not be looked at.
    Unseen(String),
    /// Somebody whom only the kernel's count of openers shows.
    Opener,
    /// Something in the kernel that claimed it for itself.
    Claim,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Mount { on, .. } => write!(f, "is mounted on {on}; unmount it first"),
            User::MountElsewhere { on, by: Opener { name, pid } } => write!(
                f,
                "is mounted on {on} in the mount namespace of {name} (pid {pid}); unmount it there first, or end that"
            ),
            User::LazyMount(Opener { name, pid }) => write!(
                f,
                "has a file system that was unmounted lazily (umount -l) and is in use by {name} (pid {pid}); end that \
                 first"
            ),
            User::Swap => write!(f, "is used as swap; swap it off first"),
            User::LostSwap(path) => write!(
                f,
                "may be used as swap: the kernel swaps to {path}, which is not there any more; swap it off first"
            ),
            User::Holder(name) if name.starts_with("rc-") => {
                write!(f, "is mapped by the cache {name}; remove that first")
            }
            User::Holder(name) if DiskName::parse(name).is_some() => {
                write!(f, "belongs to the RAM disk {name}; remove that first")
            }
            User::Holder(name) => write!(f, "is held by {name}; remove that first"),
            User::Loop(name) => write!(f, "backs {name}; detach that first"),
            User::Namespace { nqn, id } => write!(f, "is namespace {id} of {nqn}; end that export first"),
            User::LostNamespace { nqn, id, path } => write!(
                f,
                "may be exported over NVMe: namespace {id} of {nqn} is enabled on {path}, which is not there any \
                 more; end that export first"
            ),
            User::HiddenTargets => write!(
                f,
                "may be exported over NVMe: nvmet has targets, but configfs is not mounted; \
                 mount it first (mount -t configfs none /sys/kernel/config)"
            ),
            User::Process(Opener { name, pid }) => write!(f, "is open in {name} (pid {pid}); end that first"),
            User::Unseen(why) => write!(
                f,
                "may be open in a process that could not be looked at ({why}); run this service where root may look \
                 at every process"
            ),
            User::Opener => f.write_str(
                "is open in a program that cannot be found, such as one that mapped it into its memory; end that \
                 program first",
            ),
            User::Claim => write!(f, "is claimed by another part of the kernel; release it there first"),
        }
    }
}

/// The users of a device that can be named, of its partitions, and of the whole disk if the device is a
/// partition itself. Those come first that say most about what has to be done.
pub fn users(root: &Root, dev: Dev) -> Result<Vec<User>> {
    users_of(root, &related(root, dev)?)
}

/// A device, its disk and its partitions.
fn related(root: &Root, dev: Dev) -> Result<Vec<Dev>> {
    let mut devs = vec![dev];
    devs.extend(block::whole(root, dev).cannot(LOOK)?);
    devs.extend(block::partitions(root, dev).cannot(LOOK)?);
    Ok(devs)
}

fn users_of(root: &Root, devs: &[Dev]) -> Result<Vec<User>> {
    let mut users = mounts(root, devs)?;
    if proc::swaps(root).cannot(LOOK)?.iter().any(|swap| devs.contains(swap)) {
        users.push(User::Swap);
    }
    for &dev in devs {
        users.extend(holders(root, dev)?.into_iter().map(User::Holder));
    }
    users.extend(loops(root, devs)?);
    users.extend(namespaces(root, devs)?);
    let (openers, unseen) = proc::openers(root, devs, What::Device).cannot(LOOK)?;
    users.extend(openers.into_iter().map(User::Process));
    users.extend(unseen.map(|error| User::Unseen(error.to_string())));
    Ok(users)
}

/// The user of a device that nothing here shows, if that can be told; else `known`, which is all that the kernel
/// says: somebody has claimed or opened it.
fn hidden_user(root: &Root, dev: Dev, known: User) -> Result<User> {
    let devs = related(root, dev)?;
    let on = with_siblings(root, &devs)?;
    for (mount, by) in proc::mounts_elsewhere(root).cannot(LOOK)? {
        if is_mounted_from(&mount, &devs, &on)? {
            return Ok(User::MountElsewhere { on: mount.on, by });
        }
    }
    let (openers, _) = proc::openers(root, &devs, What::File).cannot(LOOK)?;
    if let Some(by) = openers.into_iter().next() {
        return Ok(User::LazyMount(by));
    }
    // Which device such a swap is on cannot be told. But swap claims its device: an opener has another reason.
    if known != User::Claim {
        return Ok(known);
    }
    Ok(proc::lost_swaps(root).cannot(LOOK)?.into_iter().next().map_or(known, User::LostSwap))
}

/// The devices stacked on this one, by the names that an administrator knows.
pub fn holders(root: &Root, dev: Dev) -> Result<Vec<String>> {
    let names = block::holders(root, dev).cannot(LOOK)?;
    names.iter().map(|name| shown_name(root, name)).collect()
}

/// Claims a device exclusively and makes sure that nobody else has it open, or will have it as an NVMe
/// namespace. While the file is held nobody can mount it, swap on it or stack a device on it.
pub fn claim_unused(root: &Root, dev: Dev, name: impl fmt::Display + Copy, mode: Mode) -> Result<File> {
    check_disk_of(root, dev, name)?;
    let device = block::name_of(root, dev).cannot(LOOK)?.unwrap_or_default();
    unless_used(root, dev, name, None, || claim_alone(root, &device, name, mode))
}

/// Gives what `ask` gives, which asks the kernel whether a device is used: in the end nobody but `own` uses
/// it. `ask` says how it is used otherwise, as far as the kernel tells; the refusal names the user if it can.
pub fn unless_used<T>(
    root: &Root,
    dev: Dev,
    name: impl fmt::Display + Copy,
    own: Option<&User>,
    mut ask: impl FnMut() -> Result<std::result::Result<T, User>>,
) -> Result<T> {
    let users = || Ok(users(root, dev)?.into_iter().filter(|user| Some(user) != own));
    let mut answer = ask()?;
    if answer.is_err() {
        if let Some(user) = users()?.find(|user| !is_probe(user) && !is_guess(user)) {
            return Err(in_use(name, &user));
        }
        let mut asked = Ok(());
        // Twice, since a user may be missed once.
        wait_until(PROBING, || {
            let was_alone = answer.is_ok();
            // What it has open would count.
            answer = Err(User::Opener);
            asked = ask().map(|again| answer = again);
            (was_alone && answer.is_ok()) || asked.is_err()
        });
        asked?;
    }
    match answer {
        // An enabled namespace would have been counted.
        Ok(answer) => match namespaces(root, &related(root, dev)?)?.iter().find(|user| !is_guess(user)) {
            Some(user) => Err(in_use(name, user)),
            None => Ok(answer),
        },
        Err(unnamed) => {
            let named = users()?.find(|user| !matches!(user, User::Unseen(_)));
            let user = named.map_or_else(|| hidden_user(root, dev, unnamed), Ok)?;
            Err(in_use(name, &user))
        }
    }
}

/// Claims a device that nobody else has open, or says how somebody has it.
fn claim_alone(
    root: &Root,
    device: &str,
    name: impl fmt::Display,
    mode: Mode,
) -> Result<std::result::Result<File, User>> {
    match openers::open(root, device, mode) {
        Ok((claim, true)) => Ok(Ok(claim)),
        Ok((_, false)) => Ok(Err(User::Opener)),
        Err(error) if error.is(Errno::BUSY) => Ok(Err(User::Claim)),
        Err(error) => Err(Error::Kernel(format!("cannot open {name}"), error)),
    }
}

/// Refuses a partition whose disk somebody may use as a whole. Who has a partition of it open counts as an opener
/// of the disk, too: while one is open, only who can be seen counts.
fn check_disk_of(root: &Root, dev: Dev, name: impl fmt::Display) -> Result<()> {
    let Some(disk) = block::whole(root, dev).cannot(LOOK)? else { return Ok(()) };
    if is_alone(root, disk)? {
        return Ok(());
    }
    if let Some(user) = settled(|| users_of(root, &[disk]))?.first() {
        return Err(in_use(name, user));
    }
    let partitions = block::partitions(root, disk).cannot(LOOK)?;
    // Whether the disk is open, and none of its partitions is.
    let is_used = || {
        let is_open = !is_alone(root, disk)?;
        partitions.iter().try_fold(is_open, |is_used, &partition| Ok(is_used && is_alone(root, partition)?))
    };
    let mut used = Ok(true);
    // udev's rules are gone a moment later.
    wait_until(PROBING, || {
        used = is_used();
        used != Ok(true)
    });
    match used? {
        true => Err(in_use(name, &hidden_user(root, disk, User::Opener)?)),
        false => Ok(()),
    }
}

fn is_alone(root: &Root, dev: Dev) -> Result<bool> {
    let device = block::name_of(root, dev).cannot(LOOK)?.unwrap_or_default();
    Ok(openers::open(root, &device, Mode::Read).cannot(format_args!("open {device}"))?.1)
}

/// Refuses a device if its node leads elsewhere, or nowhere: the kernel would take what the path leads to.
pub fn check_node(root: &Root, dev: Dev, device: &str, name: impl fmt::Display) -> Result<()> {
    let node = block::node(root, device);
    let leads_to = block::dev_of_node(&node).cannot(format_args!("look at {}", node.display()))?;
    if leads_to == Some(dev) {
        return Ok(());
    }
    Err(Error::Conflict(format!("{} does not lead to {name}; remove what is there", node.display())))
}

/// Claims the device that `name` stands for, whatever else uses it. A mount in another mount namespace
/// is only seen in that this fails.
pub fn claim(root: &Root, dev: Dev, name: impl fmt::Display) -> Result<File> {
    match open(root, dev, Mode::Claim) {
        Err(error) if error.is(Errno::BUSY) => Err(in_use(name, &hidden_user(root, dev, User::Claim)?)),
        claimed => claimed.cannot(format_args!("open {name}")),
    }
}

fn open(root: &Root, dev: Dev, mode: Mode) -> kernel::Result<File> {
    block::open(root, &block::name_of(root, dev)?.unwrap_or_default(), mode)
}

/// The users that can be named, after udev's rules have looked into a device that has just changed.
pub fn settled_users(root: &Root, dev: Dev) -> Result<Vec<User>> {
    settled(|| users(root, dev))
}

fn settled(users: impl Fn() -> Result<Vec<User>>) -> Result<Vec<User>> {
    let mut found = Ok(Vec::new());
    wait_until(PROBING, || {
        found = users();
        !found.as_ref().is_ok_and(|users| users.iter().any(is_probe))
    });
    found
}

/// Whether the user is only one for all that can be seen.
fn is_guess(user: &User) -> bool {
    matches!(user, User::Unseen(_) | User::LostNamespace { .. })
}

/// Whether the user is one of udev's rules, which look into a device that has just changed and are
/// gone a moment later.
fn is_probe(user: &User) -> bool {
    matches!(user, User::Process(Opener { name, .. }) if name.contains("udev"))
}

/// The refusal that names the user.
pub fn in_use(name: impl fmt::Display, user: &User) -> Error {
    Error::Conflict(format!("{name} {user}"))
}

fn mounts(root: &Root, devs: &[Dev]) -> Result<Vec<User>> {
    let on = with_siblings(root, devs)?;
    let mut found = Vec::new();
    for mount in proc::mounts(root).cannot(LOOK)? {
        if is_mounted_from(&mount, devs, &on)? {
            found.push(User::Mount { on: mount.on, read_only: mount.read_only });
        }
    }
    Ok(found)
}

/// Whether a mount is of a file system on one of `devs`. btrfs and others have a device number that is no disk's.
/// Their source names the disk: it is one of `with_siblings`.
fn is_mounted_from(mount: &Mount, devs: &[Dev], with_siblings: &[Dev]) -> Result<bool> {
    let leads_there =
        || Ok(node_of(&mount.source).cannot(LOOK)?.is_some_and(|dev| with_siblings.contains(&dev)));
    Ok(devs.contains(&mount.dev) || mount.source.starts_with("/dev/") && leads_there()?)
}

/// The devices, and those that hold a file system together with one of them.
fn with_siblings(root: &Root, devs: &[Dev]) -> Result<Vec<Dev>> {
    let mut all = devs.to_vec();
    for &dev in devs {
        all.extend(block::btrfs_siblings(root, dev).cannot(LOOK)?);
    }
    Ok(all)
}

/// The loop devices over one of the devices. Each is asked itself: the path of what it is over may lead
/// elsewhere by now, or nowhere, or be meant in another mount namespace.
fn loops(root: &Root, devs: &[Dev]) -> Result<Vec<User>> {
    let mut found = Vec::new();
    for (name, file) in loops::attached(root).cannot(LOOK)? {
        // The file of a RAM disk is no device.
        if pool::name_in(root, &file).is_some() {
            continue;
        }
        let on = match loops::stands_on(root, &name) {
            // It is gone, or its node is. What it is over by its path is then all there is to know.
            Err(_) if loops::backing(root, &name).cannot(LOOK)?.is_none() => None,
            Err(error) => match node_of(&file).cannot(LOOK)? {
                None if file.starts_with("/dev/") => {
                    return Err(error).cannot(format_args!("find out what {name} stands on"));
                }
                by_path => by_path,
            },
            Ok(on) => on,
        };
        if on.is_some_and(|dev| devs.contains(&dev)) {
            found.push(User::Loop(name));
        }
    }
    Ok(found)
}

/// The block device at a path that somebody else chose. A path that can lead nowhere leads nowhere.
fn node_of(path: &str) -> kernel::Result<Option<Dev>> {
    match block::dev_of_node(Path::new(path)) {
        Err(error) if [Errno::NAMETOOLONG, Errno::LOOP].iter().any(|&errno| error.is(errno)) => Ok(None),
        found => found,
    }
}

fn namespaces(root: &Root, devs: &[Dev]) -> Result<Vec<User>> {
    let mut found = exports(root, devs)?;
    if found.is_empty() && nvmet::is_hidden(root).cannot(LOOK)? {
        found.push(User::HiddenTargets);
    }
    Ok(found)
}

/// The NVMe namespaces that export one of the devices, enabled or not. Where there are none, those that
/// may export any device.
pub fn exports(root: &Root, devs: &[Dev]) -> Result<Vec<User>> {
    let (mut found, mut lost) = (Vec::new(), Vec::new());
    for subsystem in nvmet::subsystems(root).cannot(LOOK)? {
        for namespace in subsystem.namespaces {
            let (nqn, id, path) = (subsystem.nqn.clone(), namespace.id, namespace.device);
            match node_of(&path).cannot(LOOK)? {
                Some(dev) if devs.contains(&dev) => found.push(User::Namespace { nqn, id }),
                None if namespace.enabled && is_lost(Path::new(&path)) => {
                    lost.push(User::LostNamespace { nqn, id, path });
                }
                _ => {}
            }
        }
    }
    Ok(if found.is_empty() { lost } else { found })
}

/// Whether the path of a namespace, at which no block device is, does not lead to a file either that the
/// namespace may stand on.
fn is_lost(path: &Path) -> bool {
    // A file in `/dev` took the place of the device's node. Those in `/dev/shm` are meant as files.
    let is_in_place_of_node = path.starts_with("/dev") && !path.starts_with("/dev/shm");
    is_in_place_of_node || !block::exists(path).unwrap_or(false)
}

/// The name that an administrator knows for a device: that of a device-mapper device rather than
/// `dm-3`, and that of the cache for one of its parts.
pub fn shown_name(root: &Root, kernel_name: &str) -> Result<String> {
    let name = block::mapped_name(root, kernel_name).cannot(LOOK)?;
    let name = name.unwrap_or_else(|| kernel_name.to_owned());
    Ok(Part::cache_of(&name).map_or(name, |cache| cache.to_string()))
}
