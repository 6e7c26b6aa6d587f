//! What the service manager is told: that the daemon is ready, that it ends, and that
//! it is alive (sd_notify(3), without its library).

use std::env;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::http::Listen;

/// How long a request of the daemon to itself may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The service manager that started this process, if there is one.
#[derive(Debug)]
pub struct Manager {
    socket: Option<(UnixDatagram, net::SocketAddr)>,
}

impl Manager {
    /// As `NOTIFY_SOCKET` says.
    pub fn of_environment() -> Manager {
        let open = |name: &str| -> io::Result<_> {
            let address = match name.strip_prefix('@') {
                Some(name) => net::SocketAddr::from_abstract_name(name)?,
                None => net::SocketAddr::from_pathname(name)?,
            };
            Ok((UnixDatagram::unbound()?, address))
        };
        let socket = env::var("NOTIFY_SOCKET").ok().and_then(|name| match open(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                log::warn!("the service manager is told nothing: NOTIFY_SOCKET is {name:?}: {error}");
                None
            }
        });
        Manager { socket }
    }

    /// Tells a state, such as `READY=1`. Where nobody listens any more it is lost.
    pub fn tell(&self, state: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }

    /// How often the manager wants a sign of life from this process at least.
    pub fn watchdog(&self) -> Option<Duration> {
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let interval = number("WATCHDOG_USEC").filter(|&interval| interval > 0 && is_meant)?;
        self.socket.as_ref().map(|_| Duration::from_micros(interval))
    }

    /// Gives signs of life, for ever: each after a request went through the whole
    /// daemon, as a client's would.
    pub fn watch(&self, interval: Duration, probe: &Probe) -> ! {
        loop {
            match probe.ask() {
                Ok(()) => self.tell("WATCHDOG=1"),
                Err(error) => log::warn!("no sign of life: {error}"),
            }
            thread::sleep(interval / 3);
        }
    }
}

/// A request of the daemon to itself.
#[derive(Debug)]
pub struct Probe {
    place: Listen,
    request: String,
}

impl Probe {
    /// GETs `target` where the daemon listens, with a token that is let in.
    pub fn new(place: &Listen, target: &str, token: &str) -> Probe {
        let place = match place {
            Listen::Tcp(address) => Listen::Tcp(SocketAddr::new(reachable(address.ip()), address.port())),
            Listen::Unix(path) => Listen::Unix(PathBuf::from(path)),
        };
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        Probe { place, request }
    }

    /// Asks.
    ///
    /// # Errors
    /// There was no answer in time, or not 200.
    pub fn ask(&self) -> io::Result<()> {
        match &self.place {
            Listen::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                self.talk(stream)
            }
            Listen::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                self.talk(stream)
            }
        }
    }

    fn talk(&self, mut stream: impl Read + Write) -> io::Result<()> {
        stream.write_all(self.request.as_bytes())?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        match &status {
            b"HTTP/1.1 200" => Ok(()),
            other => Err(io::Error::other(format!("answered {:?}", String::from_utf8_lossy(other)))),
        }
    }
}

/// An address under which everything on this machine is reached.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}
