//! The steps by which an export is built and taken apart. A step that changes something notes what
//! undoes it before the next one begins. A step that finds things as they should be does nothing.

use rustix::io::Errno;

use super::ports;
use crate::kernel::nvmet::Subsystem;
use crate::kernel::nvmet::build::Item;
use crate::kernel::{self, Root, modules};
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::nvme_names::{Nqn, Protocol};
use crate::storage::undo::Undo;

/// The only namespace of an export made here.
pub const NAMESPACE: u32 = 1;

/// What initiators see as the model.
const MODEL: &str = "RapidDisk";

/// Builds one export and takes it apart.
#[derive(Clone, Copy)]
pub struct Steps<'a> {
    root: &'a Root,
    nqn: &'a Nqn,
}

impl<'a> Steps<'a> {
    /// The steps for the export of this name.
    pub fn new(root: &'a Root, nqn: &'a Nqn) -> Steps<'a> {
        Steps { root, nqn }
    }

    /// Makes the subsystem. Its serial number and model are fixed once a controller has connected, which
    /// may have happened to a complete export.
    pub fn ensure_subsystem(self, is_complete: bool, undo: &mut Undo<'a>) -> Result<()> {
        let subsystem = self.subsystem();
        if !self.cannot(subsystem.exists(self.root))? {
            self.make(subsystem.clone(), undo)?;
        }
        if !is_complete {
            self.ensure_attribute(&subsystem, "attr_serial", &serial(self.nqn), undo)?;
            if self.cannot(subsystem.has(self.root, "attr_model"))? {
                self.ensure_attribute(&subsystem, "attr_model", MODEL, undo)?;
            }
        }
        Ok(())
    }

    /// Lets any host connect.
    pub fn ensure_any_host(self, undo: &mut Undo<'a>) -> Result<()> {
        self.ensure_attribute(&self.subsystem(), "attr_allow_any_host", "1", undo)
    }

    /// Lets a host connect, and only hosts that are named.
    pub fn ensure_host(self, host: &Nqn, undo: &mut Undo<'a>) -> Result<()> {
        let entry = Item::host(host.as_str());
        if !self.cannot(entry.exists(self.root))? {
            self.make(entry.clone(), undo)?;
        }
        // The kernel allows no host by name while any host is allowed.
        self.ensure_attribute(&self.subsystem(), "attr_allow_any_host", "0", undo)?;
        let link = Item::allowed_host(self.nqn.as_str(), host.as_str());
        if self.cannot(link.exists(self.root))? { Ok(()) } else { self.link(link, &entry, undo) }
    }

    /// Makes the namespace on the device `node` and enables it.
    pub fn ensure_namespace(self, node: &str, undo: &mut Undo<'a>) -> Result<()> {
        let namespace = Item::namespace(self.nqn.as_str(), NAMESPACE);
        if !self.cannot(namespace.exists(self.root))? {
            self.make(namespace.clone(), undo)?;
        }
        if self.cannot(namespace.get(self.root, "enable"))?.as_deref() == Some("1") {
            return Ok(());
        }
        if self.cannot(namespace.get(self.root, "device_path"))?.as_deref() != Some(node) {
            self.cannot(namespace.set(self.root, "device_path", node))?;
        }
        for name in ["device_uuid", "device_nguid"] {
            if self.cannot(namespace.has(self.root, name))? {
                self.ensure_attribute(&namespace, name, &identity(self.nqn), undo)?;
            }
        }
        self.ensure_attribute(&namespace, "enable", "1", undo)
    }

    /// Offers the export at a port. The first link of a port opens its listener: a wrong address or
    /// transport is only found out here.
    pub fn ensure_offer(self, port: u16, undo: &mut Undo<'a>) -> Result<()> {
        self.keep_attribute(Item::port(port), "param_inline_data_size", undo)?;
        let link = Item::offer(port, self.nqn.as_str());
        if self.cannot(link.exists(self.root))? {
            return Ok(());
        }
        self.link(link, &self.subsystem(), undo).map_err(|error| self.offer_refused(port, error))
    }

    fn offer_refused(self, id: u16, error: Error) -> Error {
        let Error::Kernel(_, kernel) = &error else { return error };
        let ports = ports::all(self.root).unwrap_or_default();
        let Some(port) = ports.into_iter().find(|port| port.id == u32::from(id)) else { return error };
        let (address, service) = (port.address.unwrap_or_default(), port.service_id.unwrap_or_default());
        if kernel.is(Errno::ADDRINUSE) {
            return Error::Conflict(format!(
                "port {id}: {address} service {service} is taken by another program or port"
            ));
        }
        if kernel.is(Errno::ADDRNOTAVAIL) {
            return Error::Conflict(format!("port {id}: {address} is no address of this machine any more"));
        }
        if kernel.is(Errno::NODEV) {
            return Error::Conflict(format!("port {id}: no RDMA device serves {address}; set one up first"));
        }
        let Some(protocol) = port.protocol.as_deref().and_then(Protocol::parse) else {
            return Error::Conflict(format!(
                "port {id} has no protocol known here; set it where the port was made"
            ));
        };
        let module = protocol.module();
        if kernel.is(Errno::INVAL) && modules::is_loaded(self.root, module) == Ok(false) {
            return Error::Unavailable(format!(
                "the kernel module {module} is not loaded; load it with: modprobe {module}"
            ));
        }
        error
    }

    /// Ends the offer at a port.
    pub fn withdraw_offer(self, port: u16, undo: &mut Undo<'a>) -> Result<()> {
        self.unlink(Item::offer(port, self.nqn.as_str()), self.subsystem(), undo)
    }

    /// Takes an export apart that is offered at no port any more.
    pub fn dismantle(self, subsystem: &Subsystem, undo: &mut Undo<'a>) -> Result<()> {
        for namespace in &subsystem.namespaces {
            self.remove_namespace(namespace.id, undo)?;
        }
        for host in &subsystem.allowed_hosts {
            self.drop_host(host, undo)?;
        }
        self.subsystem().remove(self.root).cannot(format_args!("remove {}", self.nqn))
    }

    fn remove_namespace(self, id: u32, undo: &mut Undo<'a>) -> Result<()> {
        let item = Item::namespace(self.nqn.as_str(), id);
        self.ensure_attribute(&item, "enable", "0", undo)?;
        let identity = ["device_path", "device_uuid", "device_nguid"];
        let mut before = Vec::new();
        for name in identity {
            before.extend(self.cannot(item.get(self.root, name))?.map(|value| (name, value)));
        }
        self.cannot(item.remove(self.root))?;
        undo.push(format!("removing namespace {id} of {}", self.nqn), move || {
            let again = item
                .make(self.root)
                .and_then(|()| before.iter().try_for_each(|(name, value)| item.set(self.root, name, value)));
            self.cannot(again)
        });
        Ok(())
    }

    /// Unlinks a host, and removes its entry if no other subsystem has a link to it.
    pub fn drop_host(self, host: &str, undo: &mut Undo<'a>) -> Result<()> {
        let entry = Item::host(host);
        self.unlink(Item::allowed_host(self.nqn.as_str(), host), entry.clone(), undo)?;
        // An entry with a secret was made by somebody else, and could not be made again here.
        for name in ["dhchap_key", "dhchap_ctrl_key"] {
            if self.cannot(entry.get(self.root, name))?.is_some_and(|key| !key.is_empty()) {
                return Ok(());
            }
        }
        match entry.remove(self.root) {
            // The link of another subsystem keeps it.
            Err(error) if error.is(Errno::BUSY) => return Ok(()),
            removed => self.cannot(removed)?,
        }
        undo.push(format!("removing the host {host}"), move || self.cannot(entry.make(self.root)));
        Ok(())
    }

    fn subsystem(self) -> Item {
        Item::subsystem(self.nqn.as_str())
    }

    fn make(self, item: Item, undo: &mut Undo<'a>) -> Result<()> {
        self.cannot(item.make(self.root))?;
        undo.push(format!("making {item}"), move || self.cannot(item.remove(self.root)));
        Ok(())
    }

    fn link(self, link: Item, to: &Item, undo: &mut Undo<'a>) -> Result<()> {
        self.cannot(link.link(self.root, to))?;
        undo.push(format!("linking {link}"), move || self.cannot(link.unlink(self.root)));
        Ok(())
    }

    fn unlink(self, link: Item, to: Item, undo: &mut Undo<'a>) -> Result<()> {
        self.cannot(link.unlink(self.root))?;
        undo.push(format!("unlinking {link}"), move || self.cannot(link.link(self.root, &to)));
        Ok(())
    }

    /// Notes the value of an attribute that the kernel itself changes with the next step, so that it is
    /// as before if that step is undone.
    fn keep_attribute(self, item: Item, name: &'static str, undo: &mut Undo<'a>) -> Result<()> {
        let Some(before) = self.cannot(item.get(self.root, name))? else { return Ok(()) };
        undo.push(format!("the change of {name} of {item}"), move || {
            if self.cannot(item.get(self.root, name))?.as_ref() == Some(&before) {
                return Ok(());
            }
            self.cannot(item.set(self.root, name, &before))
        });
        Ok(())
    }

    /// Sets an attribute that has another value.
    fn ensure_attribute(
        self,
        item: &Item,
        name: &'static str,
        value: &str,
        undo: &mut Undo<'a>,
    ) -> Result<()> {
        let before = self.cannot(item.get(self.root, name))?.unwrap_or_default();
        // The kernel fills some values up with blanks.
        if before.trim_end() == value {
            return Ok(());
        }
        self.cannot(item.set(self.root, name, value))?;
        let item = item.clone();
        undo.push(format!("setting {name} of {item}"), move || {
            self.cannot(item.set(self.root, name, &before))
        });
        Ok(())
    }

    /// Adds to a refusal of the kernel's which export it is about.
    fn cannot<T>(self, outcome: kernel::Result<T>) -> Result<T> {
        outcome.cannot(format_args!("change the export {}", self.nqn))
    }
}

/// The UUID and the NGUID of a namespace, always the same for the same host and volume: 128-bit FNV-1a of the
/// NQN. Byte 6 has the version of a UUID of one's own making, and byte 8 both the variant of a UUID (RFC 9562) and
/// the mark of an NGUID with a locally assigned identifier (NVMe base specification, NGUID).
pub fn identity(nqn: &Nqn) -> String {
    let mix = |hash: u128, byte: u8| (hash ^ u128::from(byte)).wrapping_mul(0x100_0000_0000_0000_0000_013b);
    let hash = nqn.as_str().bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, mix);
    let mut bytes = hash.to_be_bytes();
    bytes[6] = 0x80 | bytes[6] & 0x0f;
    bytes[8] = 0x82 | bytes[8] & 0x3c;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A serial number of 16 digits, always the same for the same host and volume: FNV-1a of the NQN.
pub fn serial(nqn: &Nqn) -> String {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", nqn.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, mix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_depends_on_the_name_alone() {
        let serial = |name: &str| serial(&Nqn::parse(name).unwrap());
        // The published test vector of 64-bit FNV-1a.
        assert_eq!(serial("foobar"), "85944171f73967e8");
        assert_ne!(serial("nqn.a-rd0"), serial("nqn.a-rd1"));
    }

    #[test]
    fn an_identity_depends_on_the_name_alone() {
        let identity = |name: &str| identity(&Nqn::parse(name).unwrap());
        // 343e1662793c64bf6f0d3597ba446f18, the published test vector of 128-bit FNV-1a, but for the marks.
        assert_eq!(identity("foobar"), "343e1662-793c-84bf-ae0d-3597ba446f18");
        assert_ne!(identity("nqn.a-rd0"), identity("nqn.a-rd1"));
    }
}
