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
/// example.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Left(Vec<String>);

impl Left {
    /// Notes the failure of a last step, which cannot fail the change any more.
    pub fn note(&mut self, last: Result<()>) {
        self.0.extend(last.err().map(|error| error.to_string()));
    }

    /// Adds what another part of the change left over.
    pub fn add(&mut self, other: Left) {
        self.0.extend(other.0);
    }

    /// The message of a change that is done: `done`, and what is left over.
    pub fn told_after(&self, done: impl fmt::Display) -> String {
        match &self.0[..] {
            [] => done.to_string(),
            left => format!("{done}, but something is left over: {}", left.join("; ")),
        }
    }
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
