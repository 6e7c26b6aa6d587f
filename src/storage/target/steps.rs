//! The steps by which a target is built and taken apart. Each that changes
//! something notes what undoes it before the next begins; each that finds things
//! as they should be does nothing.

use rustix::io::Errno;

use super::NAMESPACE;
use crate::kernel::nvmet::build::Item;
use crate::kernel::nvmet::{self, Subsystem};
use crate::storage::undo::Undo;
use crate::storage::{Error, Nqn, Protocol, Result, Storage, Volume};

/// What initiators see as the model.
const MODEL: &str = "RapidDisk";

impl Storage {
    pub(super) fn ensure_subsystem<'a>(
        &'a self,
        nqn: &Nqn,
        is_complete: bool,
        undo: &mut Undo<'a>,
    ) -> Result<Item> {
        let subsystem = Item::subsystem(nqn.as_str());
        if !subsystem.exists(&self.root) {
            self.make(subsystem.clone(), undo)?;
        }
        // Both are fixed once a controller has connected.
        if !is_complete {
            self.ensure_attribute(&subsystem, "attr_serial", &serial(nqn), undo)?;
            if subsystem.has(&self.root, "attr_model") {
                self.ensure_attribute(&subsystem, "attr_model", MODEL, undo)?;
            }
        }
        Ok(subsystem)
    }

    pub(super) fn ensure_host<'a>(&'a self, nqn: &Nqn, host: &Nqn, undo: &mut Undo<'a>) -> Result<()> {
        let entry = Item::host(host.as_str());
        if !entry.exists(&self.root) {
            self.make(entry.clone(), undo)?;
        }
        // The kernel allows no host by name while any is allowed.
        self.ensure_attribute(&Item::subsystem(nqn.as_str()), "attr_allow_any_host", "0", undo)?;
        self.link(Item::allowed_host(nqn.as_str(), host.as_str()), entry, undo)
    }

    pub(super) fn ensure_namespace<'a>(
        &'a self,
        nqn: &Nqn,
        volume: &Volume,
        undo: &mut Undo<'a>,
    ) -> Result<()> {
        let namespace = Item::namespace(nqn.as_str(), NAMESPACE);
        if !namespace.exists(&self.root) {
            self.make(namespace.clone(), undo)?;
        }
        if namespace.get(&self.root, "enable").as_deref() == Some("1") {
            return Ok(());
        }
        let node = self.volume_node(volume);
        if namespace.get(&self.root, "device_path").as_ref() != Some(&node) {
            namespace.set(&self.root, "device_path", &node)?;
        }
        self.ensure_attribute(&namespace, "enable", "1", undo)
    }

    pub(super) fn ensure_offer<'a>(&'a self, port: u16, nqn: &Nqn, undo: &mut Undo<'a>) -> Result<()> {
        self.keep_attribute(Item::port(port), "param_inline_data_size", undo);
        let subsystem = Item::subsystem(nqn.as_str());
        self.link(Item::offer(port, nqn.as_str()), subsystem, undo)
            .map_err(|error| self.offer_refused(port, error))
    }

    /// The first link of a port opens its listener: here is where an address or a
    /// transport shows to be wrong.
    fn offer_refused(&self, id: u16, error: Error) -> Error {
        let Error::Kernel(_, kernel) = &error else { return error };
        let ports = nvmet::ports(&self.root).unwrap_or_default();
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
        if kernel.is(Errno::INVAL) && !nvmet::has_module(&self.root, module) {
            return Error::Unavailable(format!(
                "the kernel module {module} is not loaded; load it with: modprobe {module}"
            ));
        }
        error
    }

    /// Takes a target apart that is linked to no port any more.
    pub(super) fn dismantle<'a>(&'a self, subsystem: &Subsystem, undo: &mut Undo<'a>) -> Result<()> {
        let nqn = &subsystem.nqn;
        for namespace in &subsystem.namespaces {
            let item = Item::namespace(nqn, namespace.id);
            self.ensure_attribute(&item, "enable", "0", undo)?;
            let identity = ["device_path", "device_uuid", "device_nguid"];
            let before: Vec<_> =
                identity.into_iter().filter_map(|name| Some((name, item.get(&self.root, name)?))).collect();
            item.remove(&self.root)?;
            undo.push(format!("removing namespace {} of {nqn}", namespace.id), move || {
                item.make(&self.root)?;
                for (name, value) in &before {
                    item.set(&self.root, name, value)?;
                }
                Ok(())
            });
        }
        for host in &subsystem.allowed_hosts {
            self.drop_host(nqn, host, undo)?;
        }
        Item::subsystem(nqn).remove(&self.root).map_err(Error::kernel(format!("cannot remove {nqn}")))
    }

    /// Unlinks a host, and removes its entry if no other target has a link to it.
    pub(super) fn drop_host<'a>(&'a self, nqn: &str, host: &str, undo: &mut Undo<'a>) -> Result<()> {
        let entry = Item::host(host);
        self.unlink(Item::allowed_host(nqn, host), entry.clone(), undo)?;
        // One with a secret was made by somebody else, and could not be made again.
        let has_secret = |name| entry.get(&self.root, name).is_some_and(|key| !key.is_empty());
        if ["dhchap_key", "dhchap_ctrl_key"].into_iter().any(has_secret) {
            return Ok(());
        }
        match entry.remove(&self.root) {
            // Another target's link keeps it.
            Err(error) if !error.is(Errno::BUSY) => Err(error.into()),
            Err(_) => Ok(()),
            Ok(()) => {
                undo.push(format!("removing the host {host}"), move || Ok(entry.make(&self.root)?));
                Ok(())
            }
        }
    }

    fn make<'a>(&'a self, item: Item, undo: &mut Undo<'a>) -> Result<()> {
        item.make(&self.root)?;
        undo.push(format!("making {item}"), move || Ok(item.remove(&self.root)?));
        Ok(())
    }

    /// Makes a link that is not there yet.
    fn link<'a>(&'a self, link: Item, to: Item, undo: &mut Undo<'a>) -> Result<()> {
        if !link.exists(&self.root) {
            link.link(&self.root, &to)?;
            undo.push(format!("linking {link}"), move || Ok(link.unlink(&self.root)?));
        }
        Ok(())
    }

    pub(super) fn unlink<'a>(&'a self, link: Item, to: Item, undo: &mut Undo<'a>) -> Result<()> {
        link.unlink(&self.root)?;
        undo.push(format!("unlinking {link}"), move || Ok(link.link(&self.root, &to)?));
        Ok(())
    }

    /// Sees to it that an attribute which the kernel itself changes with the next
    /// step is as before if that is undone.
    fn keep_attribute<'a>(&'a self, item: Item, name: &'static str, undo: &mut Undo<'a>) {
        let Some(before) = item.get(&self.root, name) else { return };
        undo.push(format!("the change of {name} of {item}"), move || {
            if item.get(&self.root, name).as_ref() != Some(&before) {
                item.set(&self.root, name, &before)?;
            }
            Ok(())
        });
    }

    /// Sets an attribute that has another value.
    pub(super) fn ensure_attribute<'a>(
        &'a self,
        item: &Item,
        name: &'static str,
        value: &str,
        undo: &mut Undo<'a>,
    ) -> Result<()> {
        let before = item.get(&self.root, name).unwrap_or_default();
        if before != value {
            item.set(&self.root, name, value)?;
            let item = item.clone();
            undo.push(format!("setting {name} of {item}"), move || Ok(item.set(&self.root, name, &before)?));
        }
        Ok(())
    }
}

/// A serial number of 16 digits that the same host and volume always get: FNV-1a
/// of the NQN.
pub(super) fn serial(nqn: &Nqn) -> String {
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
}
