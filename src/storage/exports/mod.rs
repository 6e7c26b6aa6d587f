//! NVMe exports: RAM disks and caches that are NVMe targets, and the ports where they are offered.
//!
//! An export is one subsystem, `nqn.2021-06.org.rapiddisk:HOSTNAME-VOLUME`, with namespace 1. What
//! others built in configfs is listed and left alone.

mod ports;
mod steps;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::caches::Caches;
use super::disks::Disks;
use super::error::{Cannot, Error, Result};
use super::locks::{Held, Key};
use super::machine::Machine;
use super::nvme_names::{Nqn, PortAddress, PortId, Ports, Protocol, ServiceId, Volume};
use super::undo::Undo;
use super::usage::{self, User};
use crate::kernel::block::{self, Dev, Mode, SECTOR};
use crate::kernel::nvmet::build::Item;
use crate::kernel::nvmet::{self, Namespace, Port, Subsystem};
use crate::kernel::{self, Root, dm, machine, room_for};
use steps::{NAMESPACE, Steps};

/// A namespace of a subsystem, with who may connect and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The subsystem.
    pub subsystem: Arc<Subsystem>,
    /// The namespace.
    pub namespace: Namespace,
    /// Its size in bytes, where the device is there.
    pub size: Option<u64>,
    /// Its UUID, where the kernel tells.
    pub uuid: Option<String>,
    /// Its NGUID, where the kernel tells. All zero: it has none.
    pub nguid: Option<String>,
    /// The ports that the subsystem is linked to.
    pub ports: Arc<[Arc<Port>]>,
}

/// The NVMe exports and ports of a machine.
pub struct Exports {
    machine: Arc<Machine>,
    disks: Arc<Disks>,
    caches: Arc<Caches>,
}

impl Exports {
    /// The exports of the RAM disks and caches of `machine`.
    pub fn new(machine: Arc<Machine>, disks: Arc<Disks>, caches: Arc<Caches>) -> Exports {
        Exports { machine, disks, caches }
    }

    /// Every port, by number.
    pub fn ports(&self) -> Result<Vec<Port>> {
        ports::list(&self.machine.root)
    }

    /// Makes a port. To make the same one again is a success that changes nothing. Returns the port.
    pub fn create_port(
        &self,
        id: PortId,
        address: &PortAddress,
        protocol: Protocol,
        service: ServiceId,
    ) -> Result<Port> {
        ports::create(&self.machine, id, address, protocol, service)
    }

    /// Removes a port at which nothing is exported.
    pub fn remove_port(&self, id: PortId) -> Result<()> {
        ports::remove(&self.machine, id)
    }

    /// Every namespace of every subsystem, by NQN and number, and every port.
    pub fn list(&self) -> Result<(Vec<Export>, Vec<Arc<Port>>)> {
        let root = &self.machine.root;
        let ports: Vec<_> = ports::list(root)?.into_iter().map(Arc::new).collect();
        let mut exports = Vec::new();
        let mut things = 0;
        for subsystem in subsystems(root)?.into_iter().map(Arc::new) {
            let is_linked = |port: &&Arc<Port>| port.subsystems.contains(&subsystem.nqn);
            let linked: Arc<[_]> = ports.iter().filter(is_linked).cloned().collect();
            things += subsystem.namespaces.len() * (subsystem.allowed_hosts.len() + linked.len());
            exports.extend(subsystem.namespaces.iter().map(|namespace| {
                let item = Item::namespace(&subsystem.nqn, namespace.id);
                // What cannot be looked at is not shown.
                let shown = |attribute| item.get(root, attribute).unwrap_or(None);
                Export {
                    subsystem: Arc::clone(&subsystem),
                    size: size_of_node(root, &namespace.device).unwrap_or(None),
                    uuid: shown("device_uuid"),
                    nguid: shown("device_nguid"),
                    namespace: namespace.clone(),
                    ports: Arc::clone(&linked),
                }
            }));
        }
        // In the answer each namespace has all hosts and ports of its subsystem.
        room_for(things).cannot("list the NVMe targets")?;
        Ok((exports, ports))
    }

    /// Exports a volume at `ports`: to `host`, or to any. What is so already stays; an export of the same
    /// volume to others, or at other ports, grows.
    pub fn create(&self, volume: &Volume, ports: Ports, host: Option<&Nqn>) -> Result<Nqn> {
        let root = &self.machine.root;
        ports::require_nvmet(root)?;
        let nqn = name(volume)?;
        let _held = self.hold(volume)?;
        if let Volume::Disk(name) = volume {
            self.disks.check_node(&self.disks.repaired(*name)?)?;
        }
        let dev = self.volume_dev(volume)?;
        self.check_running(volume)?;
        if let Volume::Cache(name) = volume {
            self.caches.repair_node(name, dev)?;
        }
        let ports = self.ports_meant(ports)?;
        // Held until the export is there, so that nobody mounts the volume before.
        let _claim = self.claim_exportable(volume, dev, &nqn)?;
        let there = subsystems(root)?.into_iter().find(|subsystem| subsystem.nqn == nqn.as_str());
        if let Some(there) = &there {
            self.check_ours(there, volume)?;
            if host.is_none() && !there.any_host && is_complete(there) {
                return Err(Error::Conflict(format!(
                    "{nqn} is exported to named hosts only; remove that export first, or allow a host"
                )));
            }
        }
        let node = self.volume_node(volume);
        Undo::run(|undo| build(Steps::new(root, &nqn), there.as_ref(), host, &node, &ports, undo))?;
        Ok(nqn)
    }

    /// Ends the export of a volume at one port, or everywhere. The export goes with its last port.
    pub fn remove(&self, volume: &Volume, port: Option<PortId>) -> Result<()> {
        let root = &self.machine.root;
        ports::require_nvmet(root)?;
        // A volume that is not exported need not wait for other changes of exports.
        self.exported(volume)?;
        let _held = self.hold(volume)?;
        let (nqn, subsystem) = self.exported(volume)?;
        // The kernel waits for what a host has asked for.
        self.check_running(volume)?;
        let is_linked = |port: &Port| port.subsystems.iter().any(|linked| linked == nqn.as_str());
        let linked: Vec<_> = ports::all(root)?.into_iter().filter(is_linked).map(|port| port.id).collect();
        let ending = match port {
            None => linked.clone(),
            Some(port) if linked.contains(&port.number().into()) => vec![port.number().into()],
            Some(port) => return Err(Error::NotFound(format!("{volume} is not exported at port {port}"))),
        };
        let steps = Steps::new(root, &nqn);
        Undo::run(|undo| {
            ending.iter().try_for_each(|&port| steps.withdraw_offer(port as u16, undo))?;
            if ending.len() == linked.len() { steps.dismantle(&subsystem, undo) } else { Ok(()) }
        })
    }

    /// Lets a host connect to a volume. An export that was open to any host is open to the allowed ones
    /// alone from then on.
    pub fn allow_host(&self, volume: &Volume, host: &Nqn) -> Result<Nqn> {
        let root = &self.machine.root;
        ports::require_nvmet(root)?;
        let _held = self.hold(volume)?;
        let (nqn, _) = self.exported(volume)?;
        Undo::run(|undo| Steps::new(root, &nqn).ensure_host(host, undo))?;
        Ok(nqn)
    }

    /// Takes that back. Without its last host the export is open to none.
    pub fn deny_host(&self, volume: &Volume, host: &Nqn) -> Result<Nqn> {
        let root = &self.machine.root;
        ports::require_nvmet(root)?;
        let _held = self.hold(volume)?;
        let (nqn, subsystem) = self.exported(volume)?;
        if subsystem.any_host {
            return Err(Error::Conflict(format!(
                "{nqn} is open to any host; allow those that may connect, which closes it to all others"
            )));
        }
        if subsystem.allowed_hosts.iter().any(|allowed| allowed == host.as_str()) {
            Undo::run(|undo| Steps::new(root, &nqn).drop_host(host.as_str(), undo))?;
        }
        Ok(nqn)
    }

    fn hold(&self, volume: &Volume) -> Result<Held<'_>> {
        let key = match volume {
            Volume::Disk(name) => Key::disk(*name),
            Volume::Cache(name) => Key::Mapping(name.to_string()),
        };
        self.machine.hold(vec![Key::Nvme, key])
    }

    /// Refuses a volume that another program has suspended.
    fn check_running(&self, volume: &Volume) -> Result<()> {
        match volume {
            Volume::Disk(name) => self.disks.check_running(*name),
            Volume::Cache(name) => self.caches.check_running(name),
        }
    }

    /// The device number of a volume that must exist.
    fn volume_dev(&self, volume: &Volume) -> Result<Dev> {
        match volume {
            Volume::Disk(name) => Ok(self.disks.existing(*name)?.dev),
            Volume::Cache(name) => self.caches.dev(name),
        }
    }

    /// The numbers of the ports that are meant.
    fn ports_meant(&self, ports: Ports) -> Result<Vec<u16>> {
        match ports {
            Ports::One(id) => Ok(vec![ports::existing(&self.machine.root, id)?.id as u16]),
            Ports::All => {
                let all = ports::all(&self.machine.root)?;
                if all.is_empty() {
                    return Err(Error::Conflict("there is no port to export at; create one first".into()));
                }
                Ok(all.into_iter().map(|port| port.id as u16).collect())
            }
        }
    }

    /// Refuses a volume that anybody but its own export uses: there would be two writers.
    fn claim_exportable(&self, volume: &Volume, dev: Dev, nqn: &Nqn) -> Result<File> {
        let root = &self.machine.root;
        if block::is_read_only(root, dev).cannot(format_args!("look at {volume}"))? {
            return Err(Error::Conflict(format!("{volume} is locked; unlock it first")));
        }
        let own = User::Namespace { nqn: nqn.to_string(), id: NAMESPACE };
        let refusal = match usage::claim_unused(root, dev, volume, Mode::Claim) {
            Ok(claim) => return Ok(claim),
            Err(refusal) => refusal,
        };
        // Its own export counts as an opener. Then only who can be seen counts.
        let users = usage::settled_users(root, dev)?;
        match users.iter().find(|&user| *user != own && !matches!(user, User::Unseen(_))) {
            _ if !users.contains(&own) => Err(refusal),
            Some(user) => Err(usage::in_use(volume, user)),
            None => usage::claim(root, dev, volume),
        }
    }

    /// The export of a volume, which must exist and be as it is made here. One that was made before the
    /// machine was renamed is known by its serial number.
    fn exported(&self, volume: &Volume) -> Result<(Nqn, Subsystem)> {
        let now = name(volume)?;
        let earlier = |subsystem: &Subsystem| {
            let nqn = Nqn::parse(&subsystem.nqn).filter(|nqn| nqn.is_export_of(volume));
            nqn.is_some_and(|nqn| subsystem.serial.as_deref() == Some(&*steps::serial(&nqn)))
        };
        let mut all = subsystems(&self.machine.root)?;
        let at = all.iter().position(|subsystem| subsystem.nqn == now.as_str());
        let found = at.or_else(|| all.iter().position(earlier)).map(|at| all.swap_remove(at));
        let not_exported = || Error::NotFound(format!("{volume} is not exported"));
        let subsystem = found.ok_or_else(not_exported)?;
        self.check_ours(&subsystem, volume)?;
        let nqn = Nqn::parse(&subsystem.nqn).ok_or_else(not_exported)?;
        Ok((nqn, subsystem))
    }

    /// Refuses a subsystem of our name that was not made here or was changed: it has other namespaces, or
    /// another device in ours.
    fn check_ours(&self, subsystem: &Subsystem, volume: &Volume) -> Result<()> {
        // The volume may be gone, or its driver not be loaded.
        let dev = self.volume_dev(volume).ok();
        let is_ours = |namespace: &Namespace| {
            let device = &namespace.device;
            let is_device = || dev.is_some() && block::dev_of_node(Path::new(device)) == Ok(dev);
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
            Volume::Disk(name) => block::node(&self.machine.root, &name.to_string()),
            Volume::Cache(name) => dm::node(&self.machine.root, name.as_dm()),
        };
        node.display().to_string()
    }
}

/// Makes what is not there yet. The links to the ports come last, so that what is offered is complete.
fn build<'a>(
    steps: Steps<'a>,
    there: Option<&Subsystem>,
    host: Option<&Nqn>,
    node: &str,
    ports: &[u16],
    undo: &mut Undo<'a>,
) -> Result<()> {
    let is_complete = there.is_some_and(is_complete);
    steps.ensure_subsystem(is_complete, undo)?;
    // Hosts that a half-made or half-removed export let in are not meant.
    let left = there.iter().filter(|_| !is_complete).flat_map(|there| &there.allowed_hosts);
    for stranger in left.filter(|&allowed| host.is_none_or(|host| host.as_str() != allowed)) {
        steps.drop_host(stranger, undo)?;
    }
    match host {
        Some(host) => steps.ensure_host(host, undo)?,
        None => steps.ensure_any_host(undo)?,
    }
    steps.ensure_namespace(node, undo)?;
    ports.iter().try_for_each(|&port| steps.ensure_offer(port, undo))
}

/// Whether an export got as far as an enabled namespace. One that a killed daemon left half-made did not,
/// and is finished by the next call.
fn is_complete(subsystem: &Subsystem) -> bool {
    subsystem.namespaces.iter().any(|namespace| namespace.enabled)
}

fn subsystems(root: &Root) -> Result<Vec<Subsystem>> {
    nvmet::subsystems(root).cannot("list the NVMe targets")
}

fn size_of_node(root: &Root, node: &str) -> kernel::Result<Option<u64>> {
    let Some(dev) = block::dev_of_node(Path::new(node))? else { return Ok(None) };
    Ok(block::sectors(root, dev)?.and_then(|sectors| sectors.checked_mul(SECTOR)))
}

fn name(volume: &Volume) -> Result<Nqn> {
    Nqn::of(&machine::host_name(), volume)
        .ok_or_else(|| Error::Invalid(format!("the NQN of {volume} would be longer than 223 bytes")))
}
