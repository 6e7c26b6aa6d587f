//! Who uses a block device. Every change that destroys something asks here first, while it holds the
//! device's key.

use std::fmt;
use std::fs::File;
use std::path::Path;

use rustix::io::Errno;

use super::error::{Cannot, Error, Result};
use super::names::{DiskName, Part};
use super::wait::{PROBING, wait_until};
use crate::kernel::block::{self, Dev, Mode};
use crate::kernel::{self, Root, loops, nvmet, proc};

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
    /// Swap space.
    Swap,
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
    /// NVMe targets that configfs, unmounted, does not show.
    HiddenTargets,
    /// A process that has it open.
    Process {
        /// Its name.
        name: String,
        /// Its id.
        pid: u32,
    },
    /// Something in the kernel that claimed it for itself.
    Claim,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Mount { on, .. } => write!(f, "is mounted on {on}; unmount it first"),
            User::Swap => write!(f, "is used as swap; swap it off first"),
            User::Holder(name) if name.starts_with("rc-") => {
                write!(f, "is mapped by the cache {name}; remove that first")
            }
            User::Holder(name) if DiskName::parse(name).is_some() => {
                write!(f, "belongs to the RAM disk {name}; remove that first")
            }
            User::Holder(name) => write!(f, "is held by {name}; remove that first"),
            User::Loop(name) => write!(f, "backs {name}; detach that first"),
            User::Namespace { nqn, id } => write!(f, "is namespace {id} of {nqn}; end that export first"),
            User::HiddenTargets => write!(
                f,
                "may be exported over NVMe: nvmet has targets, but configfs is not mounted; \
                 mount it first (mount -t configfs none /sys/kernel/config)"
            ),
            User::Process { name, pid } => write!(f, "is open in {name} (pid {pid}); end that first"),
            User::Claim => write!(f, "is claimed by another part of the kernel; release it there first"),
        }
    }
}

/// The users of a device, of its partitions, and of the whole disk if the device is a partition
/// itself. Those come first that say most about what has to be done.
pub fn users(root: &Root, dev: Dev) -> Result<Vec<User>> {
    let mut devs = vec![dev];
    devs.extend(block::whole(root, dev));
    devs.extend(block::partitions(root, dev).cannot(LOOK)?);
    let mut users = mounts(root, &devs)?;
    if proc::swaps(root).cannot(LOOK)?.iter().any(|swap| devs.contains(swap)) {
        users.push(User::Swap);
    }
    for &dev in &devs {
        users.extend(holders(root, dev)?.into_iter().map(User::Holder));
    }
    users.extend(loops(root, &devs)?);
    users.extend(namespaces(root, &devs)?);
    let openers = proc::openers(root, &devs).cannot(LOOK)?;
    users.extend(openers.into_iter().map(|opener| User::Process { name: opener.name, pid: opener.pid }));
    Ok(users)
}

/// The devices stacked on this one, by the names that an administrator knows.
pub fn holders(root: &Root, dev: Dev) -> Result<Vec<String>> {
    let names = block::holders(root, dev).cannot(LOOK)?;
    Ok(names.iter().map(|name| shown_name(root, name)).collect())
}

/// Claims a device exclusively and makes sure that nobody uses it. While the file
/// is held nobody can mount it, swap on it or stack a device on it.
pub fn claim_unused(root: &Root, dev: Dev, name: impl fmt::Display + Copy, mode: Mode) -> Result<File> {
    let mut outcome = Err(in_use(name, &User::Claim));
    wait_until(PROBING, || {
        let claimed = open(root, dev, mode);
        let users = users(root, dev);
        let is_probed = users.as_ref().is_ok_and(|users| users.iter().any(is_probe));
        outcome = unused(name, claimed, users);
        !is_probed
    });
    outcome
}

fn unused(name: impl fmt::Display, claimed: kernel::Result<File>, users: Result<Vec<User>>) -> Result<File> {
    if let Some(user) = users?.first() {
        return Err(in_use(name, user));
    }
    claimed.map_err(|error| claim_refused(name, error))
}

fn claim_refused(name: impl fmt::Display, error: kernel::Error) -> Error {
    match error.is(Errno::BUSY) {
        true => in_use(name, &User::Claim),
        false => Error::Kernel(format!("cannot open {name}"), error),
    }
}

/// Claims the device that `name` stands for, whatever else uses it. A mount in another mount namespace
/// is only seen in that this fails.
pub fn claim(root: &Root, dev: Dev, name: impl fmt::Display) -> Result<File> {
    open(root, dev, Mode::Claim).map_err(|error| claim_refused(name, error))
}

fn open(root: &Root, dev: Dev, mode: Mode) -> kernel::Result<File> {
    block::open(root, &block::name_of(root, dev).unwrap_or_default(), mode)
}

/// The users, after udev's rules have looked into a device that has just changed.
pub fn settled_users(root: &Root, dev: Dev) -> Result<Vec<User>> {
    let mut found = Ok(Vec::new());
    wait_until(PROBING, || {
        found = users(root, dev);
        !found.as_ref().is_ok_and(|users| users.iter().any(is_probe))
    });
    found
}

/// Whether the user is one of udev's rules, which look into a device that has just changed and are
/// gone a moment later.
fn is_probe(user: &User) -> bool {
    matches!(user, User::Process { name, .. } if name.contains("udev"))
}

/// The refusal that names the user.
pub fn in_use(name: impl fmt::Display, user: &User) -> Error {
    Error::Conflict(format!("{name} {user}"))
}

fn mounts(root: &Root, devs: &[Dev]) -> Result<Vec<User>> {
    let is_ours = |mount: &proc::Mount| {
        // btrfs and others have a device number that is no disk's. Their source names the disk.
        devs.contains(&mount.dev)
            || (mount.source.starts_with("/dev/")
                && block::dev_of_node(Path::new(&mount.source)).is_some_and(|dev| devs.contains(&dev)))
    };
    let mounts = proc::mounts(root).cannot(LOOK)?.into_iter().filter(is_ours);
    Ok(mounts.map(|mount| User::Mount { on: mount.on, read_only: mount.read_only }).collect())
}

fn loops(root: &Root, devs: &[Dev]) -> Result<Vec<User>> {
    let is_over = |(_, file): &(String, String)| {
        block::dev_of_node(Path::new(file)).is_some_and(|dev| devs.contains(&dev))
    };
    let attached = loops::attached(root).cannot(LOOK)?.into_iter();
    Ok(attached.filter(is_over).map(|(name, _)| User::Loop(name)).collect())
}

fn namespaces(root: &Root, devs: &[Dev]) -> Result<Vec<User>> {
    let found = exports(root, devs)?;
    let hidden = found.is_empty() && nvmet::is_hidden(root);
    Ok(if hidden { vec![User::HiddenTargets] } else { found })
}

/// The NVMe namespaces that export one of the devices, enabled or not.
pub fn exports(root: &Root, devs: &[Dev]) -> Result<Vec<User>> {
    let mut found = Vec::new();
    for subsystem in nvmet::subsystems(root).cannot(LOOK)? {
        for namespace in subsystem.namespaces {
            if block::dev_of_node(Path::new(&namespace.device)).is_some_and(|dev| devs.contains(&dev)) {
                found.push(User::Namespace { nqn: subsystem.nqn.clone(), id: namespace.id });
            }
        }
    }
    Ok(found)
}

/// The name that an administrator knows for a device: that of a device-mapper device rather than
/// `dm-3`, and that of the cache for one of its parts.
pub fn shown_name(root: &Root, kernel_name: &str) -> String {
    let name = block::mapped_name(root, kernel_name).unwrap_or_else(|| kernel_name.to_owned());
    Part::cache_of(&name).map_or(name, |cache| cache.to_string())
}
