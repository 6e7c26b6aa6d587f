//! NVMe ports: where targets are offered.

use std::net::IpAddr;

use rustix::io::Errno;

use super::locks::Key;
use super::undo::Undo;
use super::{Error, Place, PortId, Protocol, Result, ServiceId, Storage};
use crate::kernel::nvmet::build::Item;
use crate::kernel::nvmet::{self, Port, Presence};
use crate::kernel::{self, net};

/// Attributes of a port, in the order they are written.
type Attributes = Vec<(&'static str, String)>;

impl Storage {
    /// Every port, by number.
    pub fn ports(&self) -> Result<Vec<Port>> {
        self.require_nvmet()?;
        Ok(nvmet::ports(&self.root)?)
    }

    pub(super) fn require_nvmet(&self) -> Result<()> {
        match nvmet::presence(&self.root) {
            Presence::Ready => Ok(()),
            Presence::NoModule => {
                Err(Error::Unavailable("the kernel module nvmet is not loaded; load it with: modprobe nvmet".into()))
            }
            Presence::NoConfigfs => Err(Error::Unavailable(
                "configfs is not mounted; mount it with: modprobe configfs; mount -t configfs none /sys/kernel/config"
                    .into(),
            )),
        }
    }

    /// Makes a port; the same one again is a success that changes nothing.
    /// Returns the port as it is.
    pub fn create_port(
        &self,
        id: PortId,
        place: &Place,
        protocol: Protocol,
        service: ServiceId,
    ) -> Result<Port> {
        self.require_nvmet()?;
        let address = self.address(place, protocol)?;
        let _held = self.hold(vec![Key::Nvme])?;
        let attributes = attributes(address, protocol, service);
        let item = Item::port(id.number());
        if item.exists(&self.root) {
            let is_same =
                |(name, value): &(&str, String)| item.get(&self.root, name).as_deref() == Some(value);
            if !attributes.iter().all(is_same) {
                return Err(Error::Conflict(format!(
                    "port {id} exists already, at another address, protocol or service; remove it first"
                )));
            }
        } else {
            Undo::run(|undo| self.build_port(&item, &attributes, undo))?;
        }
        self.port(id)
    }

    fn build_port<'a>(&'a self, item: &'a Item, attributes: &Attributes, undo: &mut Undo<'a>) -> Result<()> {
        item.make(&self.root)?;
        undo.push("making the port", || Ok(item.remove(&self.root)?));
        for (name, value) in attributes {
            item.set(&self.root, name, value)?;
        }
        Ok(())
    }

    /// Removes a port that nothing is offered at.
    pub fn remove_port(&self, id: PortId) -> Result<()> {
        self.require_nvmet()?;
        let _held = self.hold(vec![Key::Nvme])?;
        if let [nqn, ..] = &self.port(id)?.subsystems[..] {
            return Err(Error::Conflict(format!("port {id} offers {nqn}; end that export first")));
        }
        Item::port(id.number()).remove(&self.root).map_err(|error| match error.is(Errno::NOTEMPTY) {
            true => Error::Conflict(format!(
                "port {id} has referrals or groups that were not made here; remove them first"
            )),
            false => Error::Kernel(format!("cannot remove port {id}"), error),
        })
    }

    /// A port that must exist.
    pub(super) fn port(&self, id: PortId) -> Result<Port> {
        let ports = nvmet::ports(&self.root)?;
        let found = ports.into_iter().find(|port| port.id == u32::from(id.number()));
        found.ok_or_else(|| Error::NotFound(format!("there is no port {id}")))
    }

    /// The address to listen at; `None` for `loop`.
    fn address(&self, place: &Place, protocol: Protocol) -> Result<Option<IpAddr>> {
        let address = match place {
            Place::Nowhere if protocol == Protocol::Loop => return Ok(None),
            _ if protocol == Protocol::Loop => {
                return Err(Error::Invalid(format!(
                    "the protocol loop has no address: say none, not {place}"
                )));
            }
            Place::Nowhere => {
                let protocol = protocol.as_str();
                return Err(Error::Invalid(format!(
                    "{protocol} needs an address or a network interface, not none"
                )));
            }
            Place::Address(address) => *address,
            Place::Interface(name) => net::address_of(&self.root, name)
                .map_err(|error| no_interface(name, error))?
                .ok_or_else(|| {
                    Error::Conflict(format!("the network interface {name} has no address; give it one first"))
                })?,
        };
        if !net::is_ours(address) {
            return Err(Error::Conflict(format!("{address} is no address of this machine")));
        }
        Ok(Some(address))
    }
}

fn no_interface(name: &str, error: kernel::Error) -> Error {
    match error.is(Errno::NODEV) {
        true => Error::NotFound(format!("there is no network interface {name}")),
        false => error.into(),
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
