//! Network interfaces and their addresses.

use std::ffi::c_void;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use super::{Error, Result, Root};

/// `SIOCGIFADDR`.
const GET_ADDRESS: Opcode = 0x8915;
/// Bytes of an interface's name, its NUL included (`IFNAMSIZ`).
const NAME_SIZE: usize = 16;
/// Bytes of `struct ifreq`.
const REQUEST_SIZE: usize = 40;
/// `IFA_F_DADFAILED` and `IFA_F_TENTATIVE`.
const UNUSABLE: u32 = 0x08 | 0x40;
/// `AF_INET`, as it stands in an address.
const INET: u16 = 2;

/// The first address of an interface, IPv4 before IPv6, link-local ones aside;
/// `None` if it has none. ENODEV: there is no such interface.
pub fn address_of(root: &Root, interface: &str) -> Result<Option<IpAddr>> {
    if let Some(address) = v4_address(interface)? {
        return Ok(Some(address.into()));
    }
    // A kernel without IPv6 has no such file.
    let text = root.text_if_there("proc/net/if_inet6")?.unwrap_or_default();
    Ok(text
        .lines()
        .filter_map(parse_v6)
        .find(|(_, name)| *name == interface)
        .map(|(address, _)| address.into()))
}

/// A line of `/proc/net/if_inet6`: address, index, prefix length, scope, flags
/// (all hexadecimal) and name. Link-local addresses are left out, since a client needs to know its own
/// interface to use them. So are addresses that are not confirmed to be unique.
fn parse_v6(line: &str) -> Option<(Ipv6Addr, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let address = Ipv6Addr::from_bits(u128::from_str_radix(fields.next()?, 16).ok()?);
    let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    let name = fields.next()?;
    let is_usable = flags & UNUSABLE == 0 && !address.is_unicast_link_local();
    is_usable.then_some((address, name))
}

fn v4_address(interface: &str) -> Result<Option<Ipv4Addr>> {
    let context = |errno: Errno| Error::new(format!("ioctl SIOCGIFADDR of {interface}"), &errno.into());
    let mut request = Request([0; REQUEST_SIZE]);
    if interface.len() >= NAME_SIZE {
        return Err(context(Errno::NODEV));
    }
    request.0[..interface.len()].copy_from_slice(interface.as_bytes());
    let socket = unbound(AddressFamily::INET).map_err(context)?;
    // SAFETY: the kernel reads and writes one struct ifreq, which `Request` is as
    // long as and which outlives the call.
    match unsafe { ioctl(&socket, &mut request) } {
        Ok(()) => {}
        Err(Errno::ADDRNOTAVAIL) => return Ok(None),
        Err(errno) => return Err(context(errno)),
    }
    // struct sockaddr_in behind the name: family, port, address.
    let [a, b, ..] = request.0[NAME_SIZE..] else { return Ok(None) };
    let octets = [20, 21, 22, 23].map(|at: usize| request.0[at]);
    Ok((u16::from_ne_bytes([a, b]) == INET).then_some(Ipv4Addr::from(octets)))
}

/// Whether a listener can be opened at the address: it is one of this machine's,
/// or stands for all of them.
pub fn is_ours(address: IpAddr) -> Result<bool> {
    // A datagram socket can be bound to these, a listener cannot.
    let is_group = address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST);
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    match unbound(family).and_then(|socket| bind(&socket, &SocketAddr::new(address, 0))) {
        Ok(()) => Ok(!is_group),
        // The last two: a link-local address alone does not say which one is meant; there is no IPv6.
        Err(Errno::ADDRNOTAVAIL | Errno::INVAL | Errno::AFNOSUPPORT) => Ok(false),
        Err(errno) => Err(Error::new(format!("bind to {address}"), &errno.into())),
    }
}

fn unbound(family: AddressFamily) -> rustix::io::Result<OwnedFd> {
    socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

#[repr(align(8))]
struct Request([u8; REQUEST_SIZE]);

// SAFETY: the pointer is to a struct ifreq's worth of bytes, aligned as it is.
unsafe impl Ioctl for &mut Request {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        GET_ADDRESS
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_its_address_and_others_are_not_ours() {
        let root = Root::new("/");
        assert_eq!(address_of(&root, "lo").unwrap(), Some(Ipv4Addr::LOCALHOST.into()));
        for missing in ["none-such", "", "a-name-of-sixteen"] {
            assert!(address_of(&root, missing).unwrap_err().is(Errno::NODEV), "{missing:?}");
        }
        assert_eq!(is_ours(Ipv4Addr::LOCALHOST.into()), Ok(true));
        assert_eq!(is_ours(Ipv4Addr::UNSPECIFIED.into()), Ok(true));
        // TEST-NET-1: never a machine's own.
        for strange in ["192.0.2.1", "224.0.0.1", "255.255.255.255", "ff02::1"] {
            assert_eq!(is_ours(strange.parse().unwrap()), Ok(false), "{strange}");
        }
    }

    #[test]
    fn only_usable_addresses_are_taken() {
        let global = "20010db8000000000000000000000001 02 40 00 80     eth0";
        assert_eq!(parse_v6(global), Some(("2001:db8::1".parse().unwrap(), "eth0")));
        let link_local = "fe80000000000000505400fffe123456 02 40 20 80     eth0";
        assert_eq!(parse_v6(link_local), None);
        for unconfirmed in ["40", "08"] {
            assert_eq!(parse_v6(&global.replace(" 80 ", &format!(" {unconfirmed} "))), None, "{unconfirmed}");
        }
        assert_eq!(parse_v6("nonsense"), None);
    }
}
