//! The NVMe target's tree in configfs, changed: one system call a function, so
//! that the caller can note what undoes each.
//!
//! An object is a directory; removing one that holds something, or that something
//! links to, is refused by the kernel, and nothing here removes recursively.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::NVMET;
use crate::kernel::{Error, Result, Root};

/// An object or link of the tree, by its path below `nvmet/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item(String);

impl Item {
    /// `hosts/HOSTNQN`.
    pub fn host(nqn: &str) -> Item {
        Item(format!("hosts/{nqn}"))
    }

    /// `subsystems/NQN`.
    pub fn subsystem(nqn: &str) -> Item {
        Item(format!("subsystems/{nqn}"))
    }

    /// `ports/N`.
    pub fn port(id: u16) -> Item {
        Item(format!("ports/{id}"))
    }

    /// A namespace of a subsystem.
    pub fn namespace(nqn: &str, id: u32) -> Item {
        Item(format!("subsystems/{nqn}/namespaces/{id}"))
    }

    /// The link that lets a host connect to a subsystem.
    pub fn allowed_host(nqn: &str, host: &str) -> Item {
        Item(format!("subsystems/{nqn}/allowed_hosts/{host}"))
    }

    /// The link that offers a subsystem at a port. The first link of a port opens
    /// its listener, the last one closed closes it.
    pub fn offer(port: u16, nqn: &str) -> Item {
        Item(format!("ports/{port}/subsystems/{nqn}"))
    }

    fn path(&self, root: &Root) -> PathBuf {
        root.path(format!("{NVMET}/{}", self.0))
    }

    /// Whether it is there.
    pub fn exists(&self, root: &Root) -> Result<bool> {
        root.exists(format!("{NVMET}/{}", self.0))
    }

    /// Makes the object.
    pub fn make(&self, root: &Root) -> Result<()> {
        let path = self.path(root);
        fs::create_dir(&path).map_err(|error| failed("mkdir", path, &error))
    }

    /// Removes the object, which must be empty and not linked to.
    pub fn remove(&self, root: &Root) -> Result<()> {
        let path = self.path(root);
        fs::remove_dir(&path).map_err(|error| failed("rmdir", path, &error))
    }

    /// Makes this a link to another object.
    pub fn link(&self, root: &Root, to: &Item) -> Result<()> {
        let path = self.path(root);
        symlink(to.path(root), &path).map_err(|error| failed("symlink", path, &error))
    }

    /// Removes the link.
    pub fn unlink(&self, root: &Root) -> Result<()> {
        let path = self.path(root);
        fs::remove_file(&path).map_err(|error| failed("unlink", path, &error))
    }

    /// Whether the object has an attribute; they come and go with kernel versions.
    pub fn has(&self, root: &Root, attribute: &str) -> Result<bool> {
        root.exists(format!("{NVMET}/{}/{attribute}", self.0))
    }

    /// Reads an attribute.
    pub fn get(&self, root: &Root, attribute: &str) -> Result<Option<String>> {
        root.attribute(format!("{NVMET}/{}/{attribute}", self.0))
    }

    /// Writes an attribute.
    pub fn set(&self, root: &Root, attribute: &str, value: &str) -> Result<()> {
        let path = self.path(root).join(attribute);
        fs::write(&path, value).map_err(|error| failed(&format!("write {value:?} to"), path, &error))
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn failed(verb: &str, path: PathBuf, error: &io::Error) -> Error {
    Error::new(format!("{verb} {}", path.display()), error)
}
