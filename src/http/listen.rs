//! Listening sockets: TCP on IPv6 and IPv4, and Unix sockets.

use super::peer::Peer;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, lstat, unlink};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::umask;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Connections the kernel completes before we accept them.
const BACKLOG: i32 = 1024;

/// Milliseconds after which unacknowledged data breaks a connection, for the case that a client's host is
/// gone. Longer than a client may take for an answer.
const USER_TIMEOUT: u32 = 20_000;

/// Bytes that the kernel buffers for a connection. Without these bounds it enlarges the buffers by
/// itself, up to megabytes each, for a client that does not read or from which nothing is read.
const SEND_BUFFER: usize = 64 << 10;
const RECEIVE_BUFFER: usize = 32 << 10;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address. `[::]` serves IPv4 as well, and alone where the kernel has no IPv6.
    Tcp(SocketAddr),
    /// A Unix socket, for its owner only.
    Unix(PathBuf),
}

/// As `--listen` takes it.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Listen {
    /// What is wrong with these places on any machine: a message for each fault.
    pub fn faults(places: &[Listen]) -> Vec<String> {
        let mut faults = Vec::new();
        for (i, place) in places.iter().enumerate() {
            if places[..i].contains(place) {
                faults.push(format!("cannot listen on {place} twice"));
            }
            if let Listen::Unix(path) = place
                && let Err(error) = SocketAddrUnix::new(path)
            {
                faults.push(format!("cannot listen on {place}: {error}"));
            }
        }
        faults
    }
}

/// One listening socket. A Unix socket's file is removed with it.
#[derive(Debug)]
pub(super) struct Listener {
    pub socket: OwnedFd,
    file: Option<SocketFile>,
}

/// A socket in the file system, known by its inode: another daemon may have put its own there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            lstat(&self.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (self.device, self.inode));
        if ours {
            // Left behind it does no harm: the next start replaces it.
            let _ = unlink(&self.path);
        }
    }
}

impl Listener {
    /// Opens one of the `all` places that are asked for.
    ///
    /// # Errors
    /// What the kernel said, with the address or path in front.
    pub fn open(place: &Listen, all: &[Listen]) -> io::Result<Listener> {
        let (name, opened) = match place {
            Listen::Tcp(address) => (address.to_string(), open_tcp(*address, all)),
            Listen::Unix(path) => (path.display().to_string(), open_unix(path)),
        };
        opened.map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {name}: {error}")))
    }

    /// Its own TCP address.
    pub fn address(&self) -> Option<SocketAddr> {
        SocketAddr::try_from(net::getsockname(&self.socket).ok()?).ok()
    }

    /// Where it listens.
    pub fn place(&self) -> Option<Listen> {
        match &self.file {
            Some(file) => Some(Listen::Unix(file.path.clone())),
            None => self.address().map(Listen::Tcp),
        }
    }

    /// Takes one connection, if one is there.
    ///
    /// # Errors
    /// As accept(2).
    pub fn accept(&self) -> Result<(OwnedFd, Peer), Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, address) = net::acceptfrom_with(&self.socket, flags)?;
        // This is not guessed from the address, because a Unix peer has more rights than others.
        if self.file.is_some() {
            return Ok((socket, Peer::Unix));
        }
        let address = SocketAddr::try_from(address.ok_or(Errno::CONNABORTED)?)?;
        Ok((socket, Peer::Ip(address)))
    }
}

fn socket(family: AddressFamily) -> Result<OwnedFd, Errno> {
    net::socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

fn open_tcp(address: SocketAddr, all: &[Listen]) -> io::Result<Listener> {
    let everywhere = address.ip() == Ipv6Addr::UNSPECIFIED;
    let v4_everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    // `[::]` takes IPv4 too, unless that has a socket of its own.
    let dual = everywhere && !all.contains(&Listen::Tcp(v4_everywhere));
    match try_tcp(address, dual) {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if dual => Ok(try_tcp(v4_everywhere, false)?),
        opened => Ok(opened?),
    }
}

fn try_tcp(address: SocketAddr, dual: bool) -> Result<Listener, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket(family)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !dual)?;
    }
    // Accepted sockets inherit these.
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_user_timeout(&socket, USER_TIMEOUT)?;
    sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    net::bind(&socket, &SocketAddrAny::from(address))?;
    net::listen(&socket, BACKLOG)?;
    Ok(Listener { socket, file: None })
}

fn open_unix(path: &Path) -> io::Result<Listener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket(AddressFamily::UNIX)?;
    if let Err(error) = bind_private(&socket, &address) {
        if error != Errno::ADDRINUSE || !is_stale(path, &address)? {
            return Err(error.into());
        }
        unlink(path)?;
        bind_private(&socket, &address)?;
    }
    net::listen(&socket, BACKLOG)?;
    let stat = lstat(path)?;
    let file = SocketFile { path: path.to_owned(), device: stat.st_dev, inode: stat.st_ino };
    Ok(Listener { socket, file: Some(file) })
}

/// Binds the socket so that its file has mode 0600 from the first moment.
fn bind_private(socket: &OwnedFd, address: &SocketAddrUnix) -> Result<(), Errno> {
    let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = net::bind(socket, address);
    umask(before);
    bound
}

/// Whether the path is a socket that nobody listens on any more.
fn is_stale(path: &Path, address: &SocketAddrUnix) -> Result<bool, Errno> {
    use rustix::fs::FileType;
    if FileType::from_raw_mode(lstat(path)?.st_mode) != FileType::Socket {
        return Ok(false);
    }
    let probe = socket(AddressFamily::UNIX)?;
    Ok(net::connect(&probe, address) == Err(Errno::CONNREFUSED))
}
