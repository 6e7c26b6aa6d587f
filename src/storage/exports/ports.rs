//! NVMe ports: where exports are offered.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::kernel::nvmet::build::Item;
use crate::kernel::nvmet::{self, Availability, Port};
use crate::kernel::{self, Root, net};
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::locks::Key;
use crate::storage::machine::Machine;
use crate::storage::nvme_names::{PortAddress, PortId, Protocol, ServiceId};
use crate::storage::undo::Undo;

/// Attributes of a port, in the order they are written.
type Attributes = Vec<(&'static str, String)>;

/// Every port, by number.
pub fn list(root: &Root) -> Result<Vec<Port>> {
    require_nvmet(root)?;
    all(root)
}

/// Every port, where the kernel has nvmet.
pub fn all(root: &Root) -> Result<Vec<Port>> {
    nvmet::ports(root).cannot("list the NVMe ports")
}

/// Refuses to go on where the kernel shows no NVMe targets, and says how to have it do so.
pub fn require_nvmet(root: &Root) -> Result<()> {
    match nvmet::availability(root).cannot("look for NVMe targets")? {
        Availability::Ready => Ok(()),
        Availability::NoModule => {
            Err(Error::Unavailable("the kernel module nvmet is not loaded; load it with: modprobe nvmet".into()))
        }
        Availability::NoConfigfs => Err(Error::Unavailable(
            "configfs is not mounted; mount it with: modprobe configfs; mount -t configfs none /sys/kernel/config"
                .into(),
        )),
    }
}

/// Makes a port. To make the same one again is a success that changes nothing. Returns the port.
pub fn create(
    machine: &Machine,
    id: PortId,
    address: &PortAddress,
    protocol: Protocol,
    service: ServiceId,
) -> Result<Port> {
    let root = &machine.root;
    require_nvmet(root)?;
    let address = resolve(root, address, protocol)?;
    let _held = machine.hold(vec![Key::Nvme])?;
    let attributes = attributes(address, protocol, service);
    let item = Item::port(id.number());
    let look = format!("look at port {id}");
    if item.exists(root).cannot(&look)? {
        let mut is_same = true;
        for (name, value) in &attributes {
            is_same &= item.get(root, name).cannot(&look)?.as_ref() == Some(value);
        }
        if !is_same {
            return Err(Error::Conflict(format!(
                "port {id} exists already, at another address, protocol or service; remove it first"
            )));
        }
        return existing(root, id);
    }
    check_place(root, id, address, protocol, service)?;
    Undo::run(|undo| {
        let what = format!("make port {id}");
        item.make(root).cannot(&what)?;
        undo.push("making the port", || item.remove(root).cannot(format_args!("remove port {id}")));
        attributes.iter().try_for_each(|(name, value)| item.set(root, name, value)).cannot(&what)?;
        existing(root, id)
    })
}

/// Refuses a port whose listener could never be opened, since another port has its place.
fn check_place(
    root: &Root,
    id: PortId,
    address: Option<IpAddr>,
    protocol: Protocol,
    service: ServiceId,
) -> Result<()> {
    let Some(address) = address else { return Ok(()) };
    for other in all(root)? {
        let there = other.address.as_deref().and_then(|there| there.parse().ok());
        let is_taken = other.protocol.as_deref() == Some(protocol.as_str())
            && other.service_id == Some(service.to_string())
            && there.is_some_and(|there: IpAddr| overlap(there, address));
        if is_taken {
            return Err(Error::Conflict(format!(
                "port {} listens at {} service {service} already, so that port {id} could not; export there, or give \
                 port {id} another address or service id",
                other.id,
                other.address.unwrap_or_default()
            )));
        }
    }
    Ok(())
}

/// Whether two listeners at these addresses exclude each other. `::` takes IPv4, too.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    let takes = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    one == other || takes(one, other) || takes(other, one)
}

/// Removes a port at which nothing is exported.
pub fn remove(machine: &Machine, id: PortId) -> Result<()> {
    let root = &machine.root;
    require_nvmet(root)?;
    let _held = machine.hold(vec![Key::Nvme])?;
    if let [nqn, ..] = &existing(root, id)?.subsystems[..] {
        return Err(Error::Conflict(format!("port {id} offers {nqn}; end that export first")));
    }
    match Item::port(id.number()).remove(root) {
        Err(error) if error.is(Errno::NOTEMPTY) => Err(Error::Conflict(format!(
            "port {id} has referrals or groups that were not made here; remove them first"
        ))),
        removed => removed.cannot(format_args!("remove port {id}")),
    }
}

/// A port that must exist.
pub fn existing(root: &Root, id: PortId) -> Result<Port> {
    let found = all(root)?.into_iter().find(|port| port.id == u32::from(id.number()));
    found.ok_or_else(|| Error::NotFound(format!("there is no port {id}")))
}

/// The address to listen at; `None` for the protocol `loop`.
fn resolve(root: &Root, address: &PortAddress, protocol: Protocol) -> Result<Option<IpAddr>> {
    let found = match address {
        PortAddress::Nowhere if protocol == Protocol::Loop => return Ok(None),
        _ if protocol == Protocol::Loop => {
            return Err(Error::Invalid(format!("the protocol loop has no address: say none, not {address}")));
        }
        PortAddress::Nowhere => {
            let protocol = protocol.as_str();
            return Err(Error::Invalid(format!(
                "{protocol} needs an address or a network interface, not none"
            )));
        }
        PortAddress::Address(address) => *address,
        PortAddress::Interface(name) => {
            net::address_of(root, name).map_err(|error| no_interface(name, error))?.ok_or_else(|| {
                Error::Conflict(format!("the network interface {name} has no address; give it one first"))
            })?
        }
    };
    if !net::is_ours(found).cannot(format_args!("look for the address {found}"))? {
        return Err(Error::Conflict(format!("{found} is no address of this machine")));
    }
    Ok(Some(found))
}

fn no_interface(name: &str, error: kernel::Error) -> Error {
    match error.is(Errno::NODEV) {
        true => Error::NotFound(format!("there is no network interface {name}")),
        false => Error::Kernel(format!("cannot ask for the address of {name}"), error),
    }
}

fn attributes(address: Option<IpAddr>, protocol: Protocol, service: ServiceId) -> Attributes {
    let mut attributes = vec![("addr_trtype", protocol.as_str().to_owned())];
    if let Some(address) = address {
        let family = if address.is_ipv6() { "ipv6" } else { "ipv4" };
        attributes.push(("addr_adrfam", family.to_owned()));
        attributes.push(("addr_traddr", address.to_string()));
        attributes.push(("addr_trsvcid", service.to_string()));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_listener_keeps_another_from_what_it_takes_itself() {
        let overlap = |one: &str, other: &str| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlap(one, other), super::overlap(other, one));
            super::overlap(one, other)
        };
        for (one, other) in
            [("10.0.0.1", "10.0.0.1"), ("0.0.0.0", "10.0.0.1"), ("::", "10.0.0.1"), ("::", "::1")]
        {
            assert!(overlap(one, other), "{one} {other}");
        }
        for (one, other) in [("10.0.0.1", "10.0.0.2"), ("0.0.0.0", "::1"), ("::1", "127.0.0.1")] {
            assert!(!overlap(one, other), "{one} {other}");
        }
    }
}
