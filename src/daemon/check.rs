//! `--check`: says whether the daemon would start with these options, and where it would listen.

use std::io::{self, Write};

use super::error::Error;
use crate::cli::Config;
use crate::http::{Access, Listen};
use crate::logger;

/// What is wrong where nobody may change anything.
pub(super) const NOBODY: &str =
    "nobody can change anything: the token file has no admin, and there is no Unix socket to listen at";

/// Whether these tokens let nobody change anything at these places. The daemon starts all the same.
pub(super) fn nobody_may_change(access: &Access, listen: &[Listen]) -> bool {
    access.has_viewers_alone() && !listen.iter().any(|place| matches!(place, Listen::Unix(_)))
}

/// Prints where the daemon would listen, a line for each place, and says on stderr each fault, and
/// whether nobody could change anything. Opens no port and changes nothing.
///
/// # Errors
/// The last fault.
pub fn check(config: &Config) -> Result<(), Error> {
    let places: String = config.listen.iter().map(|place| format!("{place}\n")).collect();
    io::stdout().write_all(places.as_bytes()).map_err(Error::of("cannot print"))?;
    let mut faults = Listen::faults(&config.listen);
    match Access::new(config.access.clone()) {
        Ok(access) if nobody_may_change(&access, &config.listen) => logger::say(NOBODY),
        Ok(_) => {}
        Err(more) => faults.extend(more),
    }
    let Some(last) = faults.pop() else { return Ok(()) };
    faults.iter().for_each(|fault| logger::say(fault));
    Err(Error::new(last))
}
