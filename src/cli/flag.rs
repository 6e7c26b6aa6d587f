//! What a flag is: its names, its texts and what it does to the settings.

use std::ffi::OsStr;

use lexopt::Arg;

use super::config::{Command, Error, Settings};

/// Flags that the help and the man page show under one title.
pub(super) struct Group {
    pub title: &'static str,
    pub flags: &'static [Flag],
}

/// One flag of the command line. It has a short name, a long name, or both.
pub(super) struct Flag {
    pub short: Option<char>,
    pub long: Option<&'static str>,
    /// The text of the help.
    pub help: &'static str,
    /// The text of the man page. Words in backquotes are printed in bold.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the test of the man page reads it"))]
    pub manual: Manual,
    pub effect: Effect,
}

/// What a flag does.
pub(super) enum Effect {
    /// It takes no value.
    Switch(fn(&mut Settings)),
    /// It takes a value; the help calls the value by this name.
    Value(&'static str, fn(&mut Settings, &OsStr) -> Result<(), Error>),
    /// It asks for this instead of serving. Flags after it are not read.
    Instead(fn() -> Command),
}

impl Flag {
    /// Whether this argument is the flag.
    pub fn is(&self, arg: &Arg<'_>) -> bool {
        match arg {
            Arg::Short(name) => self.short == Some(*name),
            Arg::Long(name) => self.long == Some(*name),
            Arg::Value(_) => false,
        }
    }

    /// The name of its value.
    pub fn value(&self) -> Option<&'static str> {
        match self.effect {
            Effect::Value(name, _) => Some(name),
            Effect::Switch(_) | Effect::Instead(_) => None,
        }
    }
}

/// A text of the man page. The program does not print it, so only the tests have it.
pub(super) struct Manual(#[cfg(test)] pub &'static str);

/// Makes the man page's text of a flag.
pub(super) const fn manual(_text: &'static str) -> Manual {
    Manual(
        #[cfg(test)]
        _text,
    )
}
