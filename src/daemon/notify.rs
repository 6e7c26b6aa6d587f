//! Tells the service manager that the daemon is ready, that it stops, and that it is alive
//! (sd_notify(3), without its library).

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::Duration;

use crate::client::Client;

/// What the watchdog asks the daemon for. Not the status: that is answered out of memory, so
/// it would not show that reads get through.
const PROBE: &str = "/v1/listAllResources";

/// The service manager that started this process, if there is one.
#[derive(Debug)]
pub(super) struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Manager {
    /// The manager at the socket that `NOTIFY_SOCKET` names.
    pub fn of_environment() -> Manager {
        let open = |name: &str| -> io::Result<_> {
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(name)?,
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

    /// Tells a state, such as `READY=1`. A manager that is gone is not an error.
    pub fn tell(&self, state: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }

    /// The longest time between two signs of life that the manager allows this process, if it
    /// wants any (`WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn watchdog(&self) -> Option<Duration> {
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let interval = number("WATCHDOG_USEC").filter(|&interval| interval > 0 && is_meant)?;
        self.socket.as_ref().map(|_| Duration::from_micros(interval))
    }

    /// Gives signs of life, for ever. Before each one, a request has gone through the whole
    /// daemon, as a client's request does.
    pub fn watch(&self, interval: Duration, daemon: &Client) -> ! {
        loop {
            match probe(daemon) {
                Ok(()) => self.tell("WATCHDOG=1"),
                Err(error) => log::warn!("no sign of life: {error}"),
            }
            thread::sleep(interval / 3);
        }
    }
}

fn probe(daemon: &Client) -> io::Result<()> {
    match daemon.call("GET", PROBE)?.status {
        200 => Ok(()),
        status => Err(io::Error::other(format!("GET {PROBE} was answered with {status}"))),
    }
}
