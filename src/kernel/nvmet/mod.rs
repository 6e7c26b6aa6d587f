//! The NVMe target's tree in configfs (`/sys/kernel/config/nvmet`), read here and
//! changed in [`build`].

pub mod build;

use super::{Error, Result, Root};

const CONFIGFS: &str = "sys/kernel/config";
const NVMET: &str = "sys/kernel/config/nvmet";
const DEBUG: &str = "sys/kernel/debug/nvmet";

/// What of the NVMe target the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// The tree is there.
    Ready,
    /// configfs is not mounted.
    NoConfigfs,
    /// configfs is mounted, the module nvmet is not loaded.
    NoModule,
}

/// A namespace of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The namespace id.
    pub id: u32,
    /// The backing device or file, as written to `device_path`.
    pub device: String,
    /// Whether it is enabled.
    pub enabled: bool,
}

/// A subsystem, that is, a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsystem {
    /// Its NQN.
    pub nqn: String,
    /// Its namespaces by id.
    pub namespaces: Vec<Namespace>,
    /// The hosts linked under `allowed_hosts`, sorted.
    pub allowed_hosts: Vec<String>,
    /// Whether every host may connect.
    pub any_host: bool,
    /// Its serial number.
    pub serial: Option<String>,
    /// How many controllers are connected, where the kernel tells (6.11 and newer,
    /// with debugfs mounted).
    pub controllers: Option<usize>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub id: u32,
    /// `addr_traddr`, `None` while it is not set.
    pub address: Option<String>,
    /// `addr_trtype`, `None` while it is not set.
    pub protocol: Option<String>,
    /// `addr_trsvcid`, `None` while it is not set.
    pub service_id: Option<String>,
    /// The NQNs linked to it, sorted.
    pub subsystems: Vec<String>,
}

/// Whether the tree is there, and if not, why.
pub fn availability(root: &Root) -> Result<Availability> {
    Ok(if root.exists(NVMET)? {
        Availability::Ready
    } else if is_configfs_mounted(root)? {
        Availability::NoModule
    } else {
        Availability::NoConfigfs
    })
}

/// Whether a configfs is mounted at its usual place.
fn is_configfs_mounted(root: &Root) -> Result<bool> {
    let place = root.path(CONFIGFS);
    Ok(super::proc::mounts(root)?.iter().any(|mount| std::path::Path::new(&mount.on) == place))
}

/// Whether nvmet has targets although its tree cannot be seen. They stay alive when configfs is
/// unmounted. Each item of the tree takes a reference to the module, and so does each module that uses it.
pub fn is_hidden(root: &Root) -> Result<bool> {
    if root.exists(NVMET)? {
        return Ok(false);
    }
    // A module that is being unloaded shows -1: it has no targets any more.
    let references = root.attribute("sys/module/nvmet/refcnt")?;
    let references = references.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    let modules = root.names("sys/module/nvmet/holders")?.len();
    Ok(references > modules as u64)
}

/// All subsystems, sorted by NQN.
pub fn subsystems(root: &Root) -> Result<Vec<Subsystem>> {
    let mut found = Vec::new();
    for nqn in sorted(root.names(format!("{NVMET}/subsystems"))?) {
        let dir = format!("{NVMET}/subsystems/{nqn}");
        let namespaces = namespaces(root, &dir)?;
        let allowed_hosts = sorted(root.names(format!("{dir}/allowed_hosts"))?);
        let any_host = root.number(format!("{dir}/attr_allow_any_host"))? == Some(1);
        // The kernel fills it up with blanks.
        let serial = root.attribute(format!("{dir}/attr_serial"))?.map(|serial| serial.trim_end().to_owned());
        // They are shown and decide nothing: debugfs may be closed to this process.
        let controllers = controllers(root, &nqn).unwrap_or(None);
        found.push(Subsystem { nqn, namespaces, allowed_hosts, any_host, serial, controllers });
    }
    Ok(found)
}

fn namespaces(root: &Root, subsystem: &str) -> Result<Vec<Namespace>> {
    let mut found = Vec::new();
    for name in root.names(format!("{subsystem}/namespaces"))? {
        let Ok(id) = name.parse() else { continue };
        let dir = format!("{subsystem}/namespaces/{name}");
        // An export must not be overlooked because its attribute could not be read.
        let device = root.attribute(format!("{dir}/device_path"))?.filter(|path| path != "(null)");
        let enabled = root.number(format!("{dir}/enable"))? == Some(1);
        found.push(Namespace { id, device: device.unwrap_or_default(), enabled });
    }
    found.sort_by_key(|namespace| namespace.id);
    Ok(found)
}

fn controllers(root: &Root, nqn: &str) -> Result<Option<usize>> {
    let Some(dir) = root.dir(format!("{DEBUG}/{nqn}"))? else { return Ok(None) };
    Ok(Some(dir.names()?.iter().filter(|name| name.starts_with("ctrl")).count()))
}

/// All ports, by number.
pub fn ports(root: &Root) -> Result<Vec<Port>> {
    let mut found = Vec::new();
    for name in root.names(format!("{NVMET}/ports"))? {
        let Ok(id) = name.parse() else { continue };
        let dir = format!("{NVMET}/ports/{name}");
        let set = |attribute| {
            let value = root.attribute(format!("{dir}/{attribute}"))?;
            Ok::<_, Error>(value.filter(|value| !value.is_empty()))
        };
        found.push(Port {
            id,
            address: set("addr_traddr")?,
            protocol: set("addr_trtype")?,
            service_id: set("addr_trsvcid")?,
            subsystems: sorted(root.names(format!("{dir}/subsystems"))?),
        });
    }
    found.sort_by_key(|port| port.id);
    Ok(found)
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}
