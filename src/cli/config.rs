//! What the command line says, once it is read.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

use crate::http::{AccessRules, Limits, Listen};
use crate::storage::{CacheDriver, MemoryLimit, RamDriver};

/// The port without `--port`.
const DEFAULT_PORT: u16 = 9118;

/// What the program shall do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Serve.
    Run(Box<Config>),
    /// Say whether the daemon would start with this configuration.
    Check(Box<Config>),
    /// End the exports and write the writeback caches to their disks.
    Quiesce,
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// The addresses and sockets to listen at.
    pub listen: Vec<Listen>,
    /// Who may do what.
    pub access: AccessRules,
    /// The bounds for clients.
    pub limits: Limits,
    /// How much memory the RAM disks may take together.
    pub memory_limit: MemoryLimit,
    /// The driver of new RAM disks; `None` takes the first one that the kernel has.
    pub ram_driver: Option<RamDriver>,
    /// The driver of new write-through caches; `None` takes the first one that the kernel has.
    pub cache_driver: Option<CacheDriver>,
    /// How many times `--verbose` was given.
    pub verbosity: u8,
}

/// A wrong argument, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub(super) String);

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

/// What the flags have said so far.
pub(super) struct Settings {
    /// The configuration in the making. In `listen`, port 0 stands for the port of `--port`, which
    /// may still come.
    pub config: Config,
    /// The port for addresses without one.
    pub port: u16,
    /// Whether `--quiesce` was given.
    pub quiesce: bool,
    /// Whether `--check` was given.
    pub check: bool,
}

impl Settings {
    /// The settings of a command line without flags.
    pub fn new() -> Settings {
        let config = Config {
            listen: Vec::new(),
            access: AccessRules::default(),
            limits: Limits::default(),
            memory_limit: MemoryLimit::Percent(80),
            ram_driver: None,
            cache_driver: None,
            verbosity: 0,
        };
        Settings { config, port: DEFAULT_PORT, quiesce: false, check: false }
    }

    /// What to do once all flags are read.
    pub fn command(mut self) -> Command {
        // The one that changes nothing comes first.
        if self.quiesce && !self.check {
            return Command::Quiesce;
        }
        let listen = &mut self.config.listen;
        if listen.is_empty() {
            listen.push(Listen::Tcp(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0)));
        }
        for listen in listen {
            match listen {
                Listen::Tcp(address) if address.port() == 0 => address.set_port(self.port),
                _ => {}
            }
        }
        let config = Box::new(self.config);
        if self.check { Command::Check(config) } else { Command::Run(config) }
    }
}
