//! The symbolic links in `/dev` by which the devices of this program are found: `/dev/rdN` and
//! `/dev/mapper/NAME`.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{Error, Result, Root};

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Missing,
    /// A symbolic link, and the text that it leads to.
    Link(String),
    /// Anything else: a device node, a file, a directory.
    Other,
}

/// Looks at a path without following it.
pub fn look(path: &Path) -> Result<Entry> {
    let context = |error: io::Error| Error::new(format!("readlink {}", path.display()), &error);
    match fs::read_link(path) {
        Ok(to) => Ok(Entry::Link(to.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Entry::Missing),
        // What readlink(2) says of all that is no link.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(Entry::Other),
        Err(error) => Err(context(error)),
    }
}

/// The names of everything in `/dev`.
pub fn names(root: &Root) -> Result<Vec<String>> {
    root.names("dev")
}

/// Makes a link where nothing is. EEXIST: something is there.
pub fn make(path: &Path, to: &str) -> Result<()> {
    symlink(to, path).map_err(|error| Error::new(format!("symlink {}", path.display()), &error))
}

/// Removes a link, which may be gone already.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::new(format!("unlink {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_seen_and_removed_and_nothing_else_is_one() {
        let dir = std::env::temp_dir().join(format!("rapiddiskd-links-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let path = dir.join("rd0");
        assert_eq!(look(&path), Ok(Entry::Missing));
        make(&path, "loop7").unwrap();
        assert_eq!(look(&path), Ok(Entry::Link("loop7".into())));
        assert!(make(&path, "loop8").is_err());
        remove(&path).unwrap();
        remove(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(look(&path), Ok(Entry::Other));
        assert_eq!(look(&dir), Ok(Entry::Other));
        fs::remove_dir_all(&dir).unwrap();
    }
}
