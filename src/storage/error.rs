//! What can go wrong, in an administrator's terms.

use std::fmt;

use crate::kernel;

/// Why something was not done. Each message says which device is meant, what
/// stands in the way, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The request itself is wrong.
    Invalid(String),
    /// The device, cache, port or target does not exist.
    NotFound(String),
    /// It exists but cannot be done now.
    Conflict(String),
    /// More memory than the limit allows.
    NoMemory(String),
    /// The kernel lacks what the call needs.
    Unavailable(String),
    /// The kernel refused for another reason; the text says what was attempted.
    Kernel(String, kernel::Error),
    /// Something failed, and part of what had been done could not be undone.
    NotUndone(Box<Error>, Vec<String>),
}

/// The result of a storage operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: a refusal of the kernel's while doing `what`.
    pub fn kernel(what: impl Into<String>) -> impl FnOnce(kernel::Error) -> Error {
        let what = what.into();
        |error| Error::Kernel(what, error)
    }
}

impl From<kernel::Error> for Error {
    fn from(error: kernel::Error) -> Error {
        Error::Kernel("the kernel refused".into(), error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Invalid(text)
            | Error::NotFound(text)
            | Error::Conflict(text)
            | Error::NoMemory(text)
            | Error::Unavailable(text) => f.write_str(text),
            Error::Kernel(what, error) => write!(f, "{what}: {error}"),
            Error::NotUndone(cause, left) => {
                write!(f, "{cause}; could not be undone: {}", left.join(", "))
            }
        }
    }
}

impl std::error::Error for Error {}
