//! The command line: text in, a [`Command`] out, no side effects.
//!
//! The flags are one table, in `table`. The parser, the help and the man page are
//! made from it. A new flag is a new row.

mod config;
mod flag;
mod help;
mod table;
mod values;

use std::ffi::OsString;

pub use config::{Command, Config, Error};
pub use help::help;

use config::Settings;
use flag::Effect;

/// Reads a command line; its first word is the program's name.
///
/// # Errors
/// The first argument that is wrong.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut settings = Settings::new();
    let mut parser = lexopt::Parser::from_iter(args);
    while let Some(arg) = parser.next()? {
        let mut flags = table::GROUPS.iter().flat_map(|group| group.flags);
        match flags.find(|flag| flag.is(&arg)).map(|flag| &flag.effect) {
            Some(Effect::Switch(set)) => set(&mut settings),
            Some(Effect::Value(_, set)) => set(&mut settings, &parser.value()?)?,
            Some(Effect::Instead(command)) => return Ok(command()),
            None => return Err(arg.unexpected().into()),
        }
    }
    Ok(settings.command())
}

#[cfg(test)]
mod manpage;
#[cfg(test)]
mod tests;
