//! What the kernel refused, with the errno and the call.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// What the kernel refused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The call and the file or device, as in "write /sys/…/mgmt".
    pub what: String,
    /// The errno, 0 where the kernel's answer could not be understood.
    pub errno: i32,
}

/// The result of a call into the kernel.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `what`, with the errno that `error` carries. Memory that this program does not get counts
    /// as the kernel's ENOMEM.
    pub fn new(what: impl Into<String>, error: &io::Error) -> Error {
        let is_memory = error.kind() == io::ErrorKind::OutOfMemory;
        let own = if is_memory { Errno::NOMEM.raw_os_error() } else { 0 };
        Error { what: what.into(), errno: error.raw_os_error().unwrap_or(own) }
    }

    /// An answer of the kernel's that this program does not understand.
    pub fn strange(what: impl Into<String>) -> Error {
        Error { what: what.into(), errno: 0 }
    }

    /// Whether what was asked about is not there, or went away meanwhile.
    pub fn is_gone(&self) -> bool {
        [Errno::NOENT, Errno::NOTDIR, Errno::SRCH, Errno::NODEV, Errno::NXIO]
            .iter()
            .any(|&errno| self.is(errno))
    }

    /// Whether there is no memory for it at the moment.
    pub fn is_memory(&self) -> bool {
        self.is(Errno::NOMEM)
    }

    /// Whether the errno is this one.
    pub fn is(&self, errno: Errno) -> bool {
        self.errno == errno.raw_os_error()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            0 => write!(f, "{}: unexpected answer of the kernel", self.what),
            errno => write!(f, "{}: {}", self.what, io::Error::from_raw_os_error(errno)),
        }
    }
}

impl std::error::Error for Error {}
