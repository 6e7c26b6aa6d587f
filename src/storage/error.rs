//! What can go wrong, in an administrator's terms.

use std::fmt;

use crate::kernel;

/// Why something was not done. Each message says which device is meant, what stands in the way, and
/// what to do about it.
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
    /// The kernel refused for another reason; the text says what could not be done.
    Kernel(String, kernel::Error),
    /// Something failed, and some of what had been done could not be undone.
    NotUndone(Box<Error>, Vec<String>),
}

/// The result of a storage operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What a change that is done left over, to be told with its success: a link that could not be removed, for
/// example. `None` if there is nothing.
pub type Left = Option<String>;

/// Turns the failure of a last step that cannot fail the change any more into what is left.
pub fn left(last: Result<()>) -> Left {
    last.err().map(|error| error.to_string())
}

/// Adds to a refusal of the kernel's what was not done because of it.
pub trait Cannot<T> {
    /// `what` completes the sentence "cannot …", as in `list the RAM disks`.
    ///
    /// # Errors
    /// The kernel's, as [`Error::Kernel`].
    fn cannot(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> Cannot<T> for kernel::Result<T> {
    fn cannot(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Kernel(format!("cannot {what}"), error))
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
