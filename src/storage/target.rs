//! NVMe targets: RAM disks and caches, exported.
//!
//! Everything under one name is one target: the subsystem
//! `nqn.2021-06.org.rapiddisk:HOSTNAME-VOLUME` with namespace 1. What others built
//! in configfs is listed and left alone.

mod steps;

use std::fs::File;
use std::path::Path;

use super::locks::Key;
use super::ramdisk::device_key;
use super::undo::Undo;
use super::usage::{self, User};
use super::{Error, Nqn, PortId, Ports, Result, Storage, Volume};
use crate::kernel::block::{self, Dev, SECTOR};
use crate::kernel::nvmet::build::Item;
use crate::kernel::nvmet::{self, Namespace, Port, Subsystem};
use crate::kernel::{dm, process};

/// The only namespace of a target made here.
const NAMESPACE: u32 = 1;

/// A namespace of a target, with who may connect and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The subsystem.
    pub subsystem: Subsystem,
    /// The namespace.
    pub namespace: Namespace,
    /// Its size in bytes, where the device is there.
    pub size: Option<u64>,
    /// The ports that the subsystem is linked to.
    pub ports: Vec<Port>,
}

impl Storage {
    /// Every namespace of every target, by NQN and number, and every port.
    pub fn targets(&self) -> Result<(Vec<Target>, Vec<Port>)> {
        let ports = self.ports()?;
        let mut targets = Vec::new();
        for subsystem in nvmet::subsystems(&self.root)? {
            let is_linked = |port: &&Port| port.subsystems.contains(&subsystem.nqn);
            let linked: Vec<_> = ports.iter().filter(is_linked).cloned().collect();
            targets.extend(subsystem.namespaces.iter().map(|namespace| Target {
                subsystem: subsystem.clone(),
                size: self.size_of_node(&namespace.device),
                namespace: namespace.clone(),
                ports: linked.clone(),
            }));
        }
        Ok((targets, ports))
    }

    fn size_of_node(&self, node: &str) -> Option<u64> {
        block::sectors(&self.root, block::dev_of_node(Path::new(node))?)?.checked_mul(SECTOR)
    }

    /// Exports a volume at `ports`: to `host`, or to any. What is so already
    /// stays; an export of the same volume to others, or at other ports, grows.
    pub fn create_target(&self, volume: &Volume, ports: Ports, host: Option<&Nqn>) -> Result<Nqn> {
        self.require_nvmet()?;
        let nqn = name(volume)?;
        let _held = self.hold(vec![Key::Nvme, volume_key(volume)])?;
        let dev = self.volume_dev(volume)?;
        if let Volume::Disk(name) = volume {
            self.check_node(&self.existing(*name)?)?;
        }
        let ports = self.ports_meant(ports)?;
        // Held until the export is there: no mount slips in before.
        let _claim = self.claim_exportable(volume, dev, &nqn)?;
        let there = self.subsystem(&nqn)?;
        let is_complete = there.as_ref().is_some_and(is_complete);
        if let Some(there) = &there {
            self.check_ours(there, volume)?;
            if host.is_none() && !there.any_host && is_complete {
                return Err(Error::Conflict(format!(
                    "{nqn} is exported to named hosts only; remove that export first, or allow a host"
                )));
            }
        }
        Undo::run(|undo| {
            let subsystem = self.ensure_subsystem(&nqn, is_complete, undo)?;
            // What an export that was half-made, or half-removed, let in is not meant.
            let leftover = there.iter().filter(|_| !is_complete).flat_map(|there| &there.allowed_hosts);
            for stranger in leftover.filter(|&allowed| host.is_none_or(|host| host.as_str() != allowed)) {
                self.drop_host(nqn.as_str(), stranger, undo)?;
            }
            match host {
                Some(host) => self.ensure_host(&nqn, host, undo)?,
                None => self.ensure_attribute(&subsystem, "attr_allow_any_host", "1", undo)?,
            }
            self.ensure_namespace(&nqn, volume, undo)?;
            // The links come last: what is offered is complete.
            ports.iter().try_for_each(|&port| self.ensure_offer(port, &nqn, undo))
        })?;
        Ok(nqn)
    }

    /// Ends the export of a volume at one port, or everywhere. The target goes
    /// with its last port.
    pub fn remove_target(&self, volume: &Volume, port: Option<PortId>) -> Result<()> {
        self.require_nvmet()?;
        // What is not exported need not wait for other changes of exports.
        self.exported(volume)?;
        let _held = self.hold(vec![Key::Nvme, volume_key(volume)])?;
        let (nqn, subsystem) = self.exported(volume)?;
        let is_linked = |port: &Port| port.subsystems.iter().any(|linked| linked == nqn.as_str());
        let linked: Vec<_> =
            nvmet::ports(&self.root)?.into_iter().filter(is_linked).map(|port| port.id).collect();
        let unlinked = match port {
            None => linked.clone(),
            Some(port) if linked.contains(&port.number().into()) => vec![port.number().into()],
            Some(port) => return Err(Error::NotFound(format!("{volume} is not exported at port {port}"))),
        };
        Undo::run(|undo| {
            for &port in &unlinked {
                self.unlink(Item::offer(port as u16, nqn.as_str()), Item::subsystem(nqn.as_str()), undo)?;
            }
            if unlinked.len() == linked.len() { self.dismantle(&subsystem, undo) } else { Ok(()) }
        })
    }

    /// Lets a host connect to a volume's target. One that was open to any host is
    /// open to the allowed ones alone from then on.
    pub fn allow_host(&self, volume: &Volume, host: &Nqn) -> Result<Nqn> {
        self.require_nvmet()?;
        let _held = self.hold(vec![Key::Nvme, volume_key(volume)])?;
        let (nqn, _) = self.exported(volume)?;
        Undo::run(|undo| self.ensure_host(&nqn, host, undo))?;
        Ok(nqn)
    }

    /// Takes that back. With the last host the target is open to none.
    pub fn deny_host(&self, volume: &Volume, host: &Nqn) -> Result<Nqn> {
        self.require_nvmet()?;
        let _held = self.hold(vec![Key::Nvme, volume_key(volume)])?;
        let (nqn, subsystem) = self.exported(volume)?;
        if subsystem.any_host {
            return Err(Error::Conflict(format!(
                "{nqn} is open to any host; allow those that may connect, which closes it to all others"
            )));
        }
        if subsystem.allowed_hosts.iter().any(|allowed| allowed == host.as_str()) {
            Undo::run(|undo| self.drop_host(nqn.as_str(), host.as_str(), undo))?;
        }
        Ok(nqn)
    }

    /// The device number of a volume that must exist.
    fn volume_dev(&self, volume: &Volume) -> Result<Dev> {
        match volume {
            Volume::Disk(name) => Ok(self.existing(*name)?.dev),
            Volume::Cache(name) => self.cache_dev(name),
        }
    }

    /// The numbers of the ports that are meant.
    fn ports_meant(&self, ports: Ports) -> Result<Vec<u16>> {
        match ports {
            Ports::One(id) => Ok(vec![self.port(id)?.id as u16]),
            Ports::All => {
                let ids: Vec<_> = nvmet::ports(&self.root)?.into_iter().map(|port| port.id as u16).collect();
                if ids.is_empty() {
                    return Err(Error::Conflict("there is no port to export at; create one first".into()));
                }
                Ok(ids)
            }
        }
    }

    /// A volume that anybody but its own target uses is not exported: there would
    /// be two writers.
    fn claim_exportable(&self, volume: &Volume, dev: Dev, nqn: &Nqn) -> Result<File> {
        if block::is_read_only(&self.root, dev) {
            return Err(Error::Conflict(format!("{volume} is locked; unlock it first")));
        }
        let own = User::Namespace { nqn: nqn.to_string(), id: NAMESPACE };
        match usage::settled_users(&self.root, dev)?.into_iter().find(|user| *user != own) {
            Some(user) => Err(usage::in_use(volume, &user)),
            None => usage::claim(&self.root, dev, volume),
        }
    }

    fn subsystem(&self, nqn: &Nqn) -> Result<Option<Subsystem>> {
        let all = nvmet::subsystems(&self.root)?;
        Ok(all.into_iter().find(|subsystem| subsystem.nqn == nqn.as_str()))
    }

    /// The target of a volume, which must exist and be as it is made here. One that
    /// was made before the machine was renamed is known by its serial number.
    fn exported(&self, volume: &Volume) -> Result<(Nqn, Subsystem)> {
        let now = name(volume)?;
        let earlier = |subsystem: &Subsystem| {
            let nqn = Nqn::parse(&subsystem.nqn).filter(|nqn| nqn.is_export_of(volume));
            nqn.is_some_and(|nqn| subsystem.serial.as_deref() == Some(&*steps::serial(&nqn)))
        };
        let mut all = nvmet::subsystems(&self.root)?;
        let at = all.iter().position(|subsystem| subsystem.nqn == now.as_str());
        let found = at.or_else(|| all.iter().position(earlier)).map(|at| all.swap_remove(at));
        let not_exported = || Error::NotFound(format!("{volume} is not exported"));
        let subsystem = found.ok_or_else(not_exported)?;
        self.check_ours(&subsystem, volume)?;
        let nqn = Nqn::parse(&subsystem.nqn).ok_or_else(not_exported)?;
        Ok((nqn, subsystem))
    }

    /// Refuses a target of our name that was not made here, or was changed: it has
    /// other namespaces, or another device in ours.
    fn check_ours(&self, subsystem: &Subsystem, volume: &Volume) -> Result<()> {
        // The volume may be gone, or what serves it not be loaded.
        let dev = self.volume_dev(volume).ok();
        let is_ours = |namespace: &Namespace| {
            let device = &namespace.device;
            let is_device = || dev.is_some() && block::dev_of_node(Path::new(device)) == dev;
            let is_known = device.is_empty() || *device == self.volume_node(volume) || is_device();
            namespace.id == NAMESPACE && is_known
        };
        if subsystem.namespaces.iter().all(is_ours) {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{} exists already and exports something other than {volume}; remove it where it was made",
            subsystem.nqn
        )))
    }

    /// The node by which a volume is exported.
    fn volume_node(&self, volume: &Volume) -> String {
        let node = match volume {
            Volume::Disk(name) => block::node(&self.root, &name.to_string()),
            Volume::Cache(name) => dm::node(&self.root, name.as_dm()),
        };
        node.display().to_string()
    }
}

/// Whether the target got as far as an enabled namespace; one that a killed daemon
/// left half-made did not, and is finished by the next call.
fn is_complete(subsystem: &Subsystem) -> bool {
    subsystem.namespaces.iter().any(|namespace| namespace.enabled)
}

fn volume_key(volume: &Volume) -> Key {
    match volume {
        Volume::Disk(name) => device_key(*name),
        Volume::Cache(name) => Key::Mapping(name.to_string()),
    }
}

fn name(volume: &Volume) -> Result<Nqn> {
    Nqn::of(&process::host_name(), volume)
        .ok_or_else(|| Error::Invalid(format!("the NQN of {volume} would be longer than 223 bytes")))
}
