//! The command line: text in, a [`Config`] out, no side effects.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lexopt::prelude::*;

use crate::storage::{MemoryLimit, Size};

/// The text of `--help`.
pub const HELP: &str = "\
rapiddiskd: RAM disks, RAM caches and NVMe targets, managed over HTTP

Usage: rapiddiskd [OPTIONS]

Options:
  -p, --port PORT        TCP port to listen on (default 9118)
  -l, --listen ADDR      address to listen on (default all, IPv6 and IPv4)
      --memory-limit SIZE|PERCENT%
                         what all RAM disks may take together: MiB, a number
                         with M, G or T, or a part of the machine's memory
                         (default 100%)
  -V, --verbose          log more; twice for everything
  -d                     accepted for the init scripts of the original
                         daemon; this one always stays in the foreground
  -v, --version          print the version and exit
  -h, --help             print this help and exit
";

/// The port without `--port`.
const DEFAULT_PORT: u16 = 9118;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve.
    Run(Config),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// How to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; `None` for every address.
    pub listen: Option<IpAddr>,
    /// The TCP port.
    pub port: u16,
    /// What the RAM disks may take.
    pub memory_limit: MemoryLimit,
    /// How often `--verbose` was given.
    pub verbosity: u8,
}

impl Config {
    /// The address to listen on; `[::]` stands for every address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.listen.unwrap_or(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)), self.port)
    }
}

/// A wrong argument, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (see --help)", self.0)
    }
}

impl From<lexopt::Error> for Error {
    fn from(error: lexopt::Error) -> Error {
        // One line, whatever was typed.
        Error(error.to_string().escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\""))
    }
}

/// Reads a command line; its first word is the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut config =
        Config { listen: None, port: DEFAULT_PORT, memory_limit: MemoryLimit::Percent(100), verbosity: 0 };
    let mut parser = lexopt::Parser::from_iter(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('p') | Long("port") => config.port = value(&mut parser, "a port", port)?,
            Short('l') | Long("listen") => {
                config.listen = Some(value(&mut parser, "an address", |text| text.parse().ok())?);
            }
            Long("memory-limit") => {
                config.memory_limit = value(&mut parser, "a memory limit", memory_limit)?;
            }
            Short('V') | Long("verbose") => config.verbosity = config.verbosity.saturating_add(1),
            Short('d') => {}
            Short('v') | Long("version") => return Ok(Command::Version),
            Short('h') | Long("help") => return Ok(Command::Help),
            _ => return Err(arg.unexpected().into()),
        }
    }
    Ok(Command::Run(config))
}

/// The next value, read by `read`; an error that names it and what it should be.
fn value<T>(parser: &mut lexopt::Parser, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
    let text = parser.value()?;
    text.to_str().and_then(read).ok_or_else(|| Error(format!("{text:?} is not {what}")))
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|&port| port != 0)
}

fn memory_limit(text: &str) -> Option<MemoryLimit> {
    match text.strip_suffix('%') {
        Some(percent) => {
            percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(MemoryLimit::Percent)
        }
        None => Size::parse(text).map(|size| MemoryLimit::Bytes(size.bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, Error> {
        parse(["rapiddiskd"].iter().chain(args).map(OsString::from))
    }

    fn config(args: &[&str]) -> Config {
        match parsed(args) {
            Ok(Command::Run(config)) => config,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn without_arguments_it_listens_everywhere_on_9118() {
        let config = config(&[]);
        assert_eq!(config.address().to_string(), "[::]:9118");
        assert_eq!(config.memory_limit, MemoryLimit::Percent(100));
        assert_eq!(config.verbosity, 0);
    }

    #[test]
    fn options_are_read_in_each_form() {
        assert_eq!(config(&["-p", "80"]).port, 80);
        assert_eq!(config(&["-p80"]).port, 80);
        assert_eq!(config(&["--port=80"]).port, 80);
        assert_eq!(config(&["-l", "127.0.0.1"]).address().to_string(), "127.0.0.1:9118");
        assert_eq!(config(&["--listen", "::1"]).address().to_string(), "[::1]:9118");
        assert_eq!(config(&["-VV", "--verbose", "-d"]).verbosity, 3);
        assert_eq!(config(&["--memory-limit", "2G"]).memory_limit, MemoryLimit::Bytes(2 << 30));
        assert_eq!(config(&["--memory-limit", "512"]).memory_limit, MemoryLimit::Bytes(512 << 20));
        assert_eq!(config(&["--memory-limit", "50%"]).memory_limit, MemoryLimit::Percent(50));
        assert_eq!(parsed(&["-v"]), Ok(Command::Version));
        assert_eq!(parsed(&["--help"]), Ok(Command::Help));
    }

    #[test]
    fn a_wrong_argument_is_named_in_one_line() {
        for (args, named) in [
            (&["-p", "0"][..], "\"0\""),
            (&["-p", "65536"], "\"65536\""),
            (&["-p"], "-p"),
            (&["-l", "nowhere"], "\"nowhere\""),
            (&["--memory-limit", "0%"], "\"0%\""),
            (&["--memory-limit", "101%"], "\"101%\""),
            (&["--memory-limit", "12abc"], "\"12abc\""),
            (&["--nonsense"], "--nonsense"),
            (&["-x"], "-x"),
            (&["word\nword"], "word"),
        ] {
            let message = parsed(args).unwrap_err().to_string();
            assert!(message.contains(named), "{args:?}: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    #[test]
    fn every_option_of_the_help_is_known() {
        for option in HELP.split_whitespace().filter(|word| word.starts_with("--")) {
            let option = option.trim_end_matches(',');
            let message = parsed(&[option]).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!message.contains("invalid option"), "{option}: {message}");
        }
    }
}
