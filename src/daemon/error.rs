//! Why the program failed, and the exit status that says so.

use std::fmt;
use std::io;

/// Why the program failed. Its text is one line for the administrator.
#[derive(Debug)]
pub struct Error {
    message: String,
    /// The exit status of the program.
    pub status: u8,
}

impl Error {
    /// A failure with exit status 1.
    pub(super) fn new(message: impl Into<String>) -> Error {
        Error::with_status(1, message)
    }

    /// A failure with an exit status of its own.
    pub(super) fn with_status(status: u8, message: impl Into<String>) -> Error {
        Error { message: message.into(), status }
    }

    /// For `map_err`: puts what failed in front of the cause.
    pub(super) fn of<E: fmt::Display>(what: &str) -> impl FnOnce(E) -> Error {
        move |cause| Error::new(format!("{what}: {cause}"))
    }
}

impl From<io::Error> for Error {
    /// For errors that say themselves what failed.
    fn from(error: io::Error) -> Error {
        Error::new(error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
