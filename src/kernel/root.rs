//! Where the kernel's file systems are found, and how their small text files are read.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, open, openat, statat};
use rustix::io::Errno;

use super::{Error, Result};

/// The largest kernel text that is read into memory, in bytes. A busy host's
/// `mountinfo` is far below it.
pub(super) const TEXT_MAX: u64 = 16 << 20;

/// What one thing in a list takes in all, in bytes: its name, what is read of it, and its place in an answer.
const PER_THING: usize = 2 << 10;

/// Makes sure that there is memory for a list of so many things and its answer. They take many small allocations,
/// and the program would end at the first that fails. ENOMEM: there is not enough.
pub fn room_for(things: usize) -> Result<()> {
    let mut room: Vec<u8> = Vec::new();
    let no_memory = |_| Error::new("make a long list", &Errno::NOMEM.into());
    room.try_reserve_exact(things.saturating_mul(PER_THING)).map_err(no_memory)?;
    // Else the compiler sees that nobody uses it, and takes none.
    black_box(room.as_ptr());
    Ok(())
}

/// Where the kernel's file systems are found: `/` in life, a directory in tests.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// A root at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// The path of `below`, which must be relative (`sys/block`).
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        debug_assert!(below.as_ref().is_relative());
        self.0.join(below)
    }

    /// Reads a text file of the kernel's.
    pub fn text(&self, below: impl AsRef<Path>) -> Result<String> {
        let path = self.path(below);
        // Nearly all are read in one call then, and the next one finds the end.
        let mut bytes = Vec::with_capacity(4096);
        open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| File::from(file).take(TEXT_MAX).read_to_end(&mut bytes))
            .map_err(|error| Error::new(format!("read {}", path.display()), &error))?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Reads a text file; `None` only where there is no such file.
    pub fn text_if_there(&self, below: impl AsRef<Path>) -> Result<Option<String>> {
        unless_gone(self.text(below))
    }

    /// Reads a one-value attribute without the line end, but with any other white space at its end: that may
    /// belong to a name. `None` only where there is no such file, or its device is gone.
    pub fn attribute(&self, below: impl AsRef<Path>) -> Result<Option<String>> {
        attribute(CWD, &self.path(below))
    }

    /// Reads a numeric attribute; `None` as for [`Root::attribute`].
    pub fn number(&self, below: impl AsRef<Path>) -> Result<Option<u64>> {
        number(CWD, &self.path(below))
    }

    /// The names in a directory, in no order; empty where it does not exist.
    pub fn names(&self, below: impl AsRef<Path>) -> Result<Vec<String>> {
        let Some(dir) = self.dir(below)? else { return Ok(Vec::new()) };
        Ok(unless_gone(dir.names())?.unwrap_or_default())
    }

    /// Opens a directory; `None` where it does not exist.
    pub fn dir(&self, below: impl AsRef<Path>) -> Result<Option<Dir>> {
        let path = self.path(below);
        match open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Some(Dir { fd, path })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(Error::new(format!("list {}", path.display()), &errno.into())),
        }
    }

    /// Whether the path exists.
    pub fn exists(&self, below: impl AsRef<Path>) -> Result<bool> {
        exists(CWD, &self.path(below))
    }
}

/// An open directory: what is below it is found without the way to it, and belongs to
/// the same object, whatever takes its name meanwhile.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// A directory below, links followed; `None` without it.
    pub fn dir(&self, below: &str) -> Result<Option<Dir>> {
        let path = self.path.join(below);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(&self.fd, below, flags, Mode::empty()).map_err(failed("open", &path));
        Ok(unless_gone(opened)?.map(|fd| Dir { fd, path }))
    }

    /// The names in it, in no order. Once only: the place in the list is the descriptor's.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut entries = RawDir::new(&self.fd, &mut buffer);
        let mut names = Vec::new();
        let context = |errno: Errno| Error::new(format!("list {}", self.path.display()), &errno.into());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(context)?;
            // A name that is not UTF-8 is none of the kernel's own.
            let name = entry.file_name().to_str().ok().filter(|name| !matches!(*name, "." | ".."));
            if let Some(name) = name {
                names.try_reserve(1).map_err(|_| context(Errno::NOMEM))?;
                names.push(name.to_owned());
            }
        }
        room_for(names.len())?;
        Ok(names)
    }

    /// Whether the path exists.
    pub fn exists(&self, below: &str) -> Result<bool> {
        exists(self.fd.as_fd(), Path::new(below))
    }

    /// The length of a file in bytes; `None` if it is gone.
    pub fn length(&self, below: &str) -> Result<Option<u64>> {
        let failed = |errno| failed("look at", &self.path.join(below))(errno);
        let stat = statat(&self.fd, below, AtFlags::SYMLINK_NOFOLLOW).map_err(failed);
        Ok(unless_gone(stat)?.map(|stat| stat.st_size as u64))
    }

    /// As [`Root::attribute`].
    pub fn attribute(&self, below: &str) -> Result<Option<String>> {
        attribute(self.fd.as_fd(), Path::new(below))
    }

    /// As [`Root::number`].
    pub fn number(&self, below: &str) -> Result<Option<u64>> {
        number(self.fd.as_fd(), Path::new(below))
    }
}

fn attribute(at: BorrowedFd<'_>, path: &Path) -> Result<Option<String>> {
    // One page at most, and complete in one read: sysfs(5).
    let mut page = [0; 4096];
    let read = openat(at, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::read(&file, &mut page));
    let length = unless_gone(read.map_err(failed("read", path)))?;
    Ok(length.map(|length| {
        let text = String::from_utf8_lossy(&page[..length]);
        text.strip_suffix('\n').unwrap_or(&text).to_owned()
    }))
}

fn number(at: BorrowedFd<'_>, path: &Path) -> Result<Option<u64>> {
    let Some(text) = attribute(at, path)? else { return Ok(None) };
    let strange = |_| Error::strange(format!("read {}: {text:?} is no number", path.display()));
    text.trim().parse().map(Some).map_err(strange)
}

fn exists(at: BorrowedFd<'_>, path: &Path) -> Result<bool> {
    let found = statat(at, path, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look for", path));
    Ok(unless_gone(found)?.is_some())
}

/// Turns the errors that say that something is not there into `None`. Every other error stays one: what
/// cannot be looked at may be there.
pub fn unless_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

fn failed(verb: &str, path: &Path) -> impl Fn(Errno) -> Error {
    move |errno| Error::new(format!("{verb} {}", path.display()), &errno.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn there_is_room_for_as_much_as_there_is_memory() {
        assert_eq!(room_for(0), Ok(()));
        assert_eq!(room_for(1000), Ok(()));
        assert!(room_for(1 << 40).unwrap_err().is_memory());
        assert!(room_for(usize::MAX).unwrap_err().is_memory());
    }

    #[test]
    fn only_the_line_end_is_no_part_of_an_attribute() {
        let dir = std::env::temp_dir().join(format!("rapiddiskd-root-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let root = Root::new(&dir);
        for (text, attribute) in [("my disk \n", "my disk "), ("\n", ""), ("a", "a"), (" \n\n", " \n")] {
            fs::write(dir.join("attribute"), text).unwrap();
            assert_eq!(root.attribute("attribute").unwrap().as_deref(), Some(attribute));
        }
        fs::write(dir.join("number"), " 12 \n").unwrap();
        assert_eq!(root.number("number"), Ok(Some(12)));
        assert_eq!(root.attribute("none"), Ok(None));
        fs::remove_dir_all(&dir).unwrap();
    }
}
