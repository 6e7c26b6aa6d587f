//! The command line: text in, a [`Config`] out, no side effects.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lexopt::prelude::*;

use crate::http::{AccessRules, Limits, Listen};
use crate::storage::{CacheDriver, MemoryLimit, RamDriver, Size};

/// The text of `--help`.
pub const HELP: &str = "\
rapiddiskd: RAM disks, RAM caches and NVMe targets, managed over HTTP

Usage: rapiddiskd [OPTIONS]

Options:
  -p, --port PORT          TCP port for addresses without one (default 9118)
  -l, --listen WHERE       ADDR, ADDR:PORT or unix:/PATH; repeatable (default
                           every address, IPv6 and IPv4)
      --memory-limit SIZE|PERCENT%
                           what all RAM disks may take together: MiB, a number
                           with M, G or T, or a part of the machine's memory
                           (default 100%)
      --ram-driver auto|rapiddisk|loop
                           what makes RAM disks: RapidDisk's module, or loop
                           devices over a tmpfs (default auto: the first that
                           the kernel has)
      --cache-driver DRIVER
                           what makes write-through caches: rapiddisk-cache,
                           dm-cache, or auto (default), which is the first where
                           the kernel has it and the second elsewhere
      --quiesce            for the end of the machine, instead of serving: end
                           the exports and remove the writeback caches; gives up
                           once nothing has got on for 30 s
  -V, --verbose            log more; twice for everything
  -d                       accepted for the init scripts of the original
                           daemon; this one always stays in the foreground
  -v, --version            print the version and exit
  -h, --help               print this help and exit

Who may do what (without these: everybody reads, this machine changes):
      --token-file PATH    lines of ROLE NAME TOKEN, ROLE admin or viewer; only
                           their holders come in; SIGHUP reads it again
      --open               everybody may change everything
      --allow-host NAME    another name that clients may reach this machine by;
                           repeatable
      --allow-origin URL   web pages of this origin may use the API; repeatable

Bounds:
      --connections N      connections at once, half of them from one address
                           (default 256)
      --workers N          requests carried out at once, three quarters of them
                           changes (default 16)
      --request-time S     seconds for a request to arrive (default 5)
      --idle-time S        seconds that a connection may stay unused (default 10)
      --write-time S       seconds for a client to take an answer (default 10)
      --body-limit BYTES   largest body of a request (default 1024); no call
                           needs one
";

/// The port without `--port`.
const DEFAULT_PORT: u16 = 9118;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Serve.
    Run(Box<Config>),
    /// Leave nothing in memory that belongs on a disk.
    Quiesce,
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: Vec<Listen>,
    /// Who may do what.
    pub policy: AccessRules,
    /// The bounds for clients.
    pub limits: Limits,
    /// What the RAM disks may take.
    pub memory_limit: MemoryLimit,
    /// What makes RAM disks, if not the first that the kernel has.
    pub ram_driver: Option<RamDriver>,
    /// What makes write-through caches.
    pub cache_driver: CacheDriver,
    /// How often `--verbose` was given.
    pub verbosity: u8,
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
        Error(error.to_string().replace(char::is_control, " "))
    }
}

/// Where to listen, before the port is known.
#[derive(Clone, Debug)]
enum Place {
    Address(IpAddr),
    Complete(Listen),
}

/// Reads a command line; its first word is the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut places = Vec::new();
    let mut default_port = DEFAULT_PORT;
    let mut policy = AccessRules::default();
    let mut limits = Limits::default();
    let mut memory_limit = MemoryLimit::Percent(100);
    let mut ram_driver = None;
    let mut cache_driver = CacheDriver::Auto;
    let mut verbosity = 0u8;
    let mut quiesce = false;
    let mut parser = lexopt::Parser::from_iter(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('p') | Long("port") => default_port = value(&mut parser, "a port", port)?,
            Short('l') | Long("listen") => places.push(value(&mut parser, "a place to listen on", place)?),
            Long("memory-limit") => memory_limit = value(&mut parser, "a memory limit", memory)?,
            Long("ram-driver") => ram_driver = value(&mut parser, "a driver for RAM disks", driver)?,
            Long("cache-driver") => {
                cache_driver = value(&mut parser, "a cache driver", CacheDriver::parse)?;
            }
            Short('V') | Long("verbose") => verbosity = verbosity.saturating_add(1),
            Short('d') => {}
            Short('v') | Long("version") => return Ok(Command::Version),
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("quiesce") => quiesce = true,
            Long("token-file") => policy.token_file = Some(PathBuf::from(parser.value()?)),
            Long("open") => policy.open = true,
            Long("allow-host") => policy.allow_hosts.push(value(&mut parser, "a name", some)?),
            Long("allow-origin") => policy.allow_origins.push(value(&mut parser, "an origin", some)?),
            Long("connections") => {
                limits.connections = number(&mut parser, 8, 65536)?;
                limits.per_address = limits.connections / 2;
            }
            Long("workers") => {
                limits.workers = number(&mut parser, 2, 256)?;
                limits.changes = limits.workers - limits.workers.div_ceil(4);
            }
            Long("request-time") => limits.head_time = seconds(&mut parser)?,
            Long("idle-time") => limits.idle_time = seconds(&mut parser)?,
            Long("write-time") => limits.write_time = seconds(&mut parser)?,
            Long("body-limit") => limits.body_bytes = number(&mut parser, 1 << 10, 64 << 10)?,
            _ => return Err(arg.unexpected().into()),
        }
    }
    if quiesce {
        return Ok(Command::Quiesce);
    }
    if places.is_empty() {
        places.push(Place::Address(Ipv6Addr::UNSPECIFIED.into()));
    }
    let listen = places.into_iter().map(|place| match place {
        Place::Address(address) => Listen::Tcp(SocketAddr::new(address, default_port)),
        Place::Complete(listen) => listen,
    });
    let listen = listen.collect();
    Ok(Command::Run(Box::new(Config {
        listen,
        policy,
        limits,
        memory_limit,
        ram_driver,
        cache_driver,
        verbosity,
    })))
}

/// The next value, read by `read`; an error that names it and what it should be.
fn value<T>(parser: &mut lexopt::Parser, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
    let text = parser.value()?;
    text.to_str().and_then(read).ok_or_else(|| Error(format!("{text:?} is not {what}")))
}

fn number(parser: &mut lexopt::Parser, least: usize, most: usize) -> Result<usize, Error> {
    let what = format!("a number from {least} to {most}");
    value(parser, &what, |text| digits(text)?.parse().ok().filter(|number| (least..=most).contains(number)))
}

fn seconds(parser: &mut lexopt::Parser) -> Result<Duration, Error> {
    Ok(Duration::from_secs(number(parser, 1, 3600)? as u64))
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// `parse` alone would take a sign as well.
fn digits(text: &str) -> Option<&str> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then_some(text)
}

fn port(text: &str) -> Option<u16> {
    digits(text)?.parse().ok().filter(|&port| port != 0)
}

fn place(text: &str) -> Option<Place> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Path::new(path).is_absolute().then(|| Place::Complete(Listen::Unix(path.into())));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then_some(Place::Complete(Listen::Tcp(address)));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().map(Place::Address)
}

fn memory(text: &str) -> Option<MemoryLimit> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent = digits(percent)?.parse().ok();
            percent.filter(|percent| (1..=100).contains(percent)).map(MemoryLimit::Percent)
        }
        // More than any machine has would allow what a request's size saturates to.
        None => Size::parse(text).map(Size::bytes).filter(|&bytes| bytes < 1 << 60).map(MemoryLimit::Bytes),
    }
}

fn driver(text: &str) -> Option<Option<RamDriver>> {
    match text {
        "auto" => Some(None),
        "rapiddisk" => Some(Some(RamDriver::Rapiddisk)),
        "loop" => Some(Some(RamDriver::Loop)),
        _ => None,
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
            Ok(Command::Run(config)) => *config,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn tcp(address: &str) -> Listen {
        Listen::Tcp(address.parse().unwrap())
    }

    #[test]
    fn without_arguments_it_listens_everywhere_on_9118() {
        let config = config(&[]);
        assert_eq!(config.listen, [tcp("[::]:9118")]);
        assert_eq!(config.memory_limit, MemoryLimit::Percent(100));
        assert_eq!(config.verbosity, 0);
        assert!(!config.policy.open && config.policy.token_file.is_none());
    }

    #[test]
    fn options_are_read_in_each_form() {
        assert_eq!(config(&["-p", "80"]).listen, [tcp("[::]:80")]);
        assert_eq!(config(&["-p80"]).listen, [tcp("[::]:80")]);
        assert_eq!(config(&["--port=80"]).listen, [tcp("[::]:80")]);
        assert_eq!(config(&["-VV", "--verbose", "-d"]).verbosity, 3);
        assert_eq!(config(&["--memory-limit", "2G"]).memory_limit, MemoryLimit::Bytes(2 << 30));
        assert_eq!(config(&["--memory-limit", "512"]).memory_limit, MemoryLimit::Bytes(512 << 20));
        assert_eq!(config(&["--memory-limit", "50%"]).memory_limit, MemoryLimit::Percent(50));
        assert_eq!(config(&[]).ram_driver, None);
        for (name, driver) in
            [("auto", None), ("rapiddisk", Some(RamDriver::Rapiddisk)), ("loop", Some(RamDriver::Loop))]
        {
            assert_eq!(config(&["--ram-driver", name]).ram_driver, driver);
        }
        assert_eq!(config(&[]).cache_driver, CacheDriver::Auto);
        assert_eq!(config(&["--cache-driver", "auto"]).cache_driver, CacheDriver::Auto);
        assert_eq!(config(&["--cache-driver", "dm-cache"]).cache_driver, CacheDriver::DmCache);
        assert_eq!(config(&["--cache-driver=rapiddisk-cache"]).cache_driver, CacheDriver::RapidDiskCache);
        assert!(matches!(parsed(&["-v"]), Ok(Command::Version)));
        assert!(matches!(parsed(&["--help"]), Ok(Command::Help)));
        assert!(matches!(parsed(&["--quiesce", "--open"]), Ok(Command::Quiesce)));
        assert!(parsed(&["--quiesce", "--nonsense"]).is_err());
    }

    #[test]
    fn it_listens_where_it_is_told_and_the_port_fills_in() {
        let args = [
            "-l",
            "127.0.0.1",
            "-l",
            "::1",
            "-l",
            "[::1]",
            "-l",
            "127.0.0.2:80",
            "-l",
            "[::1]:81",
            "-p",
            "82",
        ];
        let expected = ["127.0.0.1:82", "[::1]:82", "[::1]:82", "127.0.0.2:80", "[::1]:81"].map(tcp);
        assert_eq!(config(&args).listen, expected);
        let unix = config(&["--listen", "unix:/run/rapiddiskd.sock"]);
        assert_eq!(unix.listen, [Listen::Unix("/run/rapiddiskd.sock".into())]);
    }

    #[test]
    fn access_is_as_told() {
        let args = [
            "--token-file",
            "/etc/t",
            "--open",
            "--allow-host",
            "a",
            "--allow-host",
            "b",
            "--allow-origin",
            "c",
        ];
        let policy = config(&args).policy;
        assert_eq!(policy.token_file, Some("/etc/t".into()));
        assert!(policy.open);
        assert_eq!(policy.allow_hosts, ["a", "b"]);
        assert_eq!(policy.allow_origins, ["c"]);
    }

    #[test]
    fn bounds_keep_their_proportions() {
        let limits = config(&["--connections", "64", "--workers", "3", "--request-time", "7"]).limits;
        assert_eq!((limits.connections, limits.per_address), (64, 32));
        assert_eq!((limits.workers, limits.changes), (3, 2));
        assert_eq!(limits.head_time, Duration::from_secs(7));
        // A read always finds a worker.
        for workers in 2..=256 {
            let limits = config(&["--workers", &workers.to_string()]).limits;
            assert!((1..limits.workers).contains(&limits.changes), "{workers}: {}", limits.changes);
        }
        let default = Limits::default();
        let stated = config(&["--connections", "256", "--workers", "16", "--body-limit", "1024"]).limits;
        assert_eq!((default.per_address, default.changes), (stated.per_address, stated.changes));
        assert_eq!((default.connections, default.workers), (stated.connections, stated.workers));
        assert_eq!(stated.body_bytes, 1024);
        assert_eq!(default.head_time.as_secs(), 5);
        assert_eq!((default.idle_time.as_secs(), default.write_time.as_secs()), (10, 10));
    }

    #[test]
    fn a_wrong_argument_is_named_in_one_line() {
        for (args, named) in [
            (&["-p", "0"][..], "\"0\""),
            (&["-p", "65536"], "\"65536\""),
            (&["-p"], "-p"),
            (&["-l", "nowhere"], "\"nowhere\""),
            (&["-l", "127.0.0.1:0"], "\"127.0.0.1:0\""),
            (&["-l", "unix:relative"], "\"unix:relative\""),
            (&["--ram-driver", "zram"], "\"zram\""),
            (&["--memory-limit", "0%"], "\"0%\""),
            (&["--memory-limit", "101%"], "\"101%\""),
            (&["--memory-limit", "12abc"], "\"12abc\""),
            (&["--memory-limit", "+50%"], "\"+50%\""),
            (&["--memory-limit", "9999999999T"], "\"9999999999T\""),
            (&["--cache-driver", "dm-writecache"], "\"dm-writecache\""),
            (&["-p", "+80"], "\"+80\""),
            (&["--workers", "1"], "\"1\""),
            (&["--connections", "7"], "\"7\""),
            (&["--idle-time", "0"], "\"0\""),
            (&["--body-limit", "1023"], "\"1023\""),
            (&["--body-limit", "65537"], "\"65537\""),
            (&["--open=yes"], "yes"),
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
            let message = parsed(&[option]).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!message.contains("invalid option"), "{option}: {message}");
        }
    }
}
