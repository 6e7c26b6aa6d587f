//! NVMe targets and ports, as the kernel's configfs has them.

use super::{Error, Result, Storage};
use crate::kernel::nvmet::{self, Presence};

pub use crate::kernel::nvmet::Port;

/// A namespace of a target, with who may connect and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The subsystem's NQN.
    pub nqn: String,
    /// The namespace.
    pub namespace: nvmet::Namespace,
    /// The hosts that may connect; where it is open to any, none is named.
    pub allowed_hosts: Vec<String>,
    /// The ports that the subsystem is linked to.
    pub ports: Vec<Port>,
}

impl Storage {
    /// Every namespace of every target, by NQN and number.
    pub fn targets(&self) -> Result<Vec<Target>> {
        let ports = self.ports()?;
        let mut targets = Vec::new();
        for subsystem in nvmet::subsystems(&self.root)? {
            let is_linked = |port: &&Port| port.subsystems.contains(&subsystem.nqn);
            let linked: Vec<_> = ports.iter().filter(is_linked).cloned().collect();
            targets.extend(subsystem.namespaces.into_iter().map(|namespace| Target {
                nqn: subsystem.nqn.clone(),
                namespace,
                allowed_hosts: subsystem.allowed_hosts.clone(),
                ports: linked.clone(),
            }));
        }
        Ok(targets)
    }

    /// Every port, by number.
    pub fn ports(&self) -> Result<Vec<Port>> {
        match nvmet::presence(&self.root) {
            Presence::Ready => Ok(nvmet::ports(&self.root)?),
            Presence::NoModule => {
                Err(Error::Unavailable("the kernel module nvmet is not loaded; load it with: modprobe nvmet".into()))
            }
            Presence::NoConfigfs => Err(Error::Unavailable(
                "configfs is not mounted; mount it with: modprobe configfs; mount -t configfs none /sys/kernel/config"
                    .into(),
            )),
        }
    }
}
