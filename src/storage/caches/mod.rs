//! Caches: a RAM disk in front of a slower device, mapped by device-mapper.

mod contents;
mod create;
mod mapping;
mod node;
mod recover;
mod remove;
mod stats;
mod target;
mod targets;

use std::sync::Arc;

pub use stats::{CacheStats, Metadata};
pub use targets::{CacheDriver, Targets};

use super::disks::Disks;
use super::error::{Cannot, Error, Result};
use super::machine::Machine;
use super::names::{CacheName, Policy, natural};
use super::usage;
use crate::kernel::block::{self, Dev};
use crate::kernel::dm::{self, Control, Report};
use target::{Devices, Target};

/// A cache mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Its name.
    pub name: CacheName,
    /// The RAM disk that caches.
    pub disk: String,
    /// The device that is cached, as named below `/dev`.
    pub source: String,
    /// How it treats writes.
    pub policy: Policy,
    /// The name of its driver.
    pub driver: &'static str,
}

/// A cache that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCache {
    /// Its name.
    pub name: CacheName,
    /// The name of its driver.
    pub driver: &'static str,
    /// Bytes in one of its blocks.
    pub block: u64,
}

/// A cache as the kernel has it.
struct Mapped<'a> {
    target: &'a dyn Target,
    devices: Devices,
}

/// The caches of a machine.
pub struct Caches {
    machine: Arc<Machine>,
    disks: Arc<Disks>,
    targets: Targets,
}

impl Caches {
    /// The caches of `machine`. New write-through caches are made by the chosen driver, or by the first
    /// that the kernel has.
    pub fn new(machine: Arc<Machine>, disks: Arc<Disks>, chosen: Option<CacheDriver>) -> Caches {
        Caches { machine, disks, targets: Targets::new(chosen) }
    }

    /// All caches, by name. There are none where device-mapper is not loaded.
    pub fn list(&self) -> Result<Vec<Cache>> {
        let Some(control) = mapping::if_loaded(&self.machine.root)? else { return Ok(Vec::new()) };
        let mut caches = Vec::new();
        for name in names(&control)? {
            match self.mapped(&control, &name) {
                Ok(mapped) => caches.push(self.listed(name, &mapped)?),
                // A cache that is being made or removed is not listed, and neither is a mapping that
                // is something else.
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        caches.sort_by(|a, b| natural(a.name.as_dm().as_str()).cmp(&natural(b.name.as_dm().as_str())));
        Ok(caches)
    }

    fn listed(&self, name: CacheName, mapped: &Mapped<'_>) -> Result<Cache> {
        Ok(Cache {
            policy: name.policy(),
            disk: self.disk_name(mapped.devices.disk)?,
            source: self.source_name(&name, mapped.devices.source)?,
            name,
            driver: mapped.target.name(),
        })
    }

    /// The name of a cache's source, as a call takes it. The number of a device that was pulled out may be
    /// another's by now, on which the cache does not stand: then the number is shown.
    fn source_name(&self, cache: &CacheName, source: Dev) -> Result<String> {
        let root = &self.machine.root;
        if !usage::holders(root, source)?.contains(&cache.to_string()) {
            return Ok(source.to_string());
        }
        let source = self.device_name(source)?;
        Ok(match block::mapped_name(root, &source).cannot("look at what a cache stands on")? {
            Some(name) => format!("mapper/{name}"),
            None => source.replace('!', "/"),
        })
    }

    /// The names of all mappings that are named as caches. Asks no device, and none where device-mapper
    /// is not loaded.
    pub fn names(&self) -> Result<Vec<CacheName>> {
        mapping::if_loaded(&self.machine.root)?.map_or(Ok(Vec::new()), |control| names(&control))
    }

    /// The counters of a cache.
    pub fn stats(&self, name: &CacheName) -> Result<CacheStats> {
        let (target, status) = self.status(&mapping::control(&self.machine.root)?, name)?;
        target.stats(name, &status)
    }

    /// The device number of a cache that must exist.
    pub fn dev(&self, name: &CacheName) -> Result<Dev> {
        let control = mapping::control(&self.machine.root)?;
        self.status(&control, name)?;
        Ok(mapping::info(&control, name)?.dev)
    }

    /// Refuses a cache that another program has suspended.
    pub fn check_running(&self, name: &CacheName) -> Result<()> {
        match mapping::if_loaded(&self.machine.root)? {
            Some(control) => mapping::check_running(&control, name.as_dm()),
            None => Ok(()),
        }
    }

    /// Ends the suspension of a cache that was made here.
    pub fn resume(&self, name: &CacheName) -> Result<()> {
        mapping::resume_cache(&mapping::control(&self.machine.root)?, name)
    }

    /// The policies that a new cache can have, each with its driver, and the drivers that the kernel has
    /// at the moment.
    pub fn offers(&self) -> (Vec<(Policy, &'static str)>, Vec<&'static str>) {
        match Control::open(&self.machine.root) {
            Ok(control) => (self.targets.policies(&control), self.targets.loaded(&control)),
            Err(_) => (Vec::new(), Vec::new()),
        }
    }

    /// What the kernel says of each writeback cache: it changes while their data gets to the sources.
    /// Asks no device. Empty where the kernel does not say.
    pub fn writeback_state(&self) -> Vec<(String, String)> {
        let Ok(control) = Control::open(&self.machine.root) else { return Vec::new() };
        let caches = names(&control).unwrap_or_default().into_iter();
        let writeback = caches.filter(|name| name.policy() == Policy::Writeback);
        writeback.filter_map(|name| Some((name.to_string(), self.status(&control, &name).ok()?.1))).collect()
    }

    /// Writes to its source what only a cache has, as far as it is there.
    pub fn write_back(&self, name: &CacheName) -> Result<()> {
        let control = mapping::control(&self.machine.root)?;
        self.status(&control, name)?.0.write_back(&control, name)
    }

    /// A cache's driver, and what its target reports. A mapping of this name with another target is no
    /// cache.
    fn status(&self, control: &Control, name: &CacheName) -> Result<(&dyn Target, String)> {
        let target = mapping::report(control, name, Report::Status)?;
        match self.targets.of(&target.kind, name.policy()) {
            Some(driver) => Ok((driver, target.text)),
            None => Err(mapping::no_cache(name)),
        }
    }

    /// A cache that must exist, and what it stands on.
    fn mapped(&self, control: &Control, name: &CacheName) -> Result<Mapped<'_>> {
        let (target, _) = self.status(control, name)?;
        let deps = match control.deps(name.as_dm()) {
            // It was removed a moment ago.
            Err(error) if dm::is_missing(&error) => return Err(mapping::no_cache(name)),
            deps => deps.cannot(format_args!("ask what {name} stands on"))?,
        };
        let devices = target.devices(control, name, &deps)?.ok_or_else(|| mapping::no_cache(name))?;
        Ok(Mapped { target, devices })
    }

    /// The name of the RAM disk with this device number.
    fn disk_name(&self, dev: Dev) -> Result<String> {
        let device = self.device_name(dev)?;
        Ok(self.disks.name_of(&device)?.map_or(device, |name| name.to_string()))
    }

    /// Has `/dev/mapper/NAME` lead to the cache again, where somebody has removed the link or changed it.
    ///
    /// # Errors
    /// Something else than a link is there.
    pub fn repair_node(&self, name: &CacheName, dev: Dev) -> Result<()> {
        let root = &self.machine.root;
        if node::is_there(root, name, dev).cannot(format_args!("look at the node of {name}"))? {
            return Ok(());
        }
        node::check_place(root, name)?;
        node::make(root, name, dev)
    }

    /// The kernel's name of a device. A device that was pulled out has no name any more, although its
    /// cache is there: it is shown by its number.
    fn device_name(&self, dev: Dev) -> Result<String> {
        let name = block::name_of(&self.machine.root, dev).cannot("look at what a cache stands on")?;
        Ok(name.unwrap_or_else(|| dev.to_string()))
    }
}

fn names(control: &Control) -> Result<Vec<CacheName>> {
    let listed = control.list().cannot("list the caches")?;
    Ok(listed.iter().filter_map(|listed| CacheName::parse(&listed.name)).collect())
}
