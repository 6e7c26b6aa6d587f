//! Which of the kernel's targets makes a cache, and what is said where it has none.

use rustix::io::Errno;

use crate::kernel::dm::{self, Control};
use crate::kernel::{self, Root};
use crate::storage::{CacheName, Error, Policy, Result};

/// What makes write-through caches, as the administrator wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheDriver {
    /// `rapiddisk-cache` where the kernel has it, dm-cache elsewhere.
    Auto,
    /// `rapiddisk-cache` alone.
    RapidDiskCache,
    /// dm-cache alone.
    DmCache,
}

impl CacheDriver {
    /// Reads `auto` or a driver's name.
    pub fn parse(name: &str) -> Option<CacheDriver> {
        match name {
            "auto" => Some(CacheDriver::Auto),
            "rapiddisk-cache" => Some(CacheDriver::RapidDiskCache),
            "dm-cache" => Some(CacheDriver::DmCache),
            _ => None,
        }
    }

    /// The driver for a new cache. That the kernel has it is not certain: it loads
    /// some by itself when they are wanted.
    pub(super) fn choose(self, policy: Policy, control: &Control) -> Result<Driver> {
        let is_module_there = match self {
            CacheDriver::Auto => has(control, Driver::RapidDiskCache)?,
            CacheDriver::RapidDiskCache => true,
            CacheDriver::DmCache => false,
        };
        match policy {
            Policy::Writeback => Ok(Driver::Writecache),
            _ if is_module_there => Ok(Driver::RapidDiskCache),
            Policy::WriteThrough => Ok(Driver::DmCache),
            Policy::WriteAround => Err(Error::Unavailable(
                "the stock kernel has no target for write-around, only for write-through and writeback; the module \
                 that has one is loaded with: modprobe rapiddisk-cache (and not used with --cache-driver dm-cache)"
                    .into(),
            )),
        }
    }

    /// Which policies a new cache can have, each with its driver.
    pub(in crate::storage) fn policies(self, control: &Control) -> Vec<(Policy, Driver)> {
        let chosen = |policy| Some((policy, self.choose(policy, control).ok()?));
        Policy::ALL.into_iter().filter_map(chosen).collect()
    }

    /// The error for a table that the kernel refused.
    pub(super) fn load_refused(
        self,
        root: &Root,
        control: &Control,
        driver: Driver,
        name: &CacheName,
        error: kernel::Error,
    ) -> Error {
        // The kernel loads a target's module by itself where it can.
        if !has(control, driver).unwrap_or(false) {
            let (target, module) = (driver.target(), driver.as_str());
            let other = match (self, driver) {
                (CacheDriver::Auto, Driver::DmCache) => " (or: modprobe rapiddisk-cache)",
                _ => "",
            };
            return Error::Unavailable(format!(
                "the kernel has no target {target}; load its module with: modprobe {module}{other}"
            ));
        }
        if driver == Driver::DmCache && error.is(Errno::INVAL) && !dm::has_module(root, "dm_cache_smq") {
            return Error::Unavailable(
                "the kernel has no policy for dm-cache; load its module with: modprobe dm-cache-smq".into(),
            );
        }
        if error.is(Errno::BUSY) {
            return Error::Conflict(format!(
                "{name} cannot be mapped: its source or RAM disk was taken meanwhile"
            ));
        }
        Error::Kernel(format!("cannot map {name}"), error)
    }
}

/// A target of the kernel's that makes caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// RapidDisk's own, for write-through and write-around.
    RapidDiskCache,
    /// The stock kernel's, for write-through.
    DmCache,
    /// The stock kernel's, for writeback.
    Writecache,
}

impl Driver {
    const ALL: [Driver; 3] = [Driver::RapidDiskCache, Driver::DmCache, Driver::Writecache];

    /// Those that the kernel has at the moment.
    pub(in crate::storage) fn loaded(control: &Control) -> Vec<Driver> {
        let targets = control.target_types().unwrap_or_default();
        Driver::ALL
            .into_iter()
            .filter(|driver| targets.iter().any(|target| target == driver.target()))
            .collect()
    }

    /// Its name, which is also that of its module.
    pub fn as_str(self) -> &'static str {
        match self {
            Driver::RapidDiskCache => "rapiddisk-cache",
            Driver::DmCache => "dm-cache",
            Driver::Writecache => "dm-writecache",
        }
    }

    /// The name of the target.
    pub(super) fn target(self) -> &'static str {
        match self {
            Driver::RapidDiskCache => "rapiddisk-cache",
            Driver::DmCache => "cache",
            Driver::Writecache => "writecache",
        }
    }

    /// The driver of a mapping with this target, if caches of the policy have it.
    pub(super) fn of_target(target: &str, policy: Policy) -> Option<Driver> {
        let driver = Driver::ALL.into_iter().find(|driver| driver.target() == target)?;
        let serves = match driver {
            Driver::RapidDiskCache => policy != Policy::Writeback,
            Driver::DmCache => policy == Policy::WriteThrough,
            Driver::Writecache => policy == Policy::Writeback,
        };
        serves.then_some(driver)
    }
}

fn has(control: &Control, driver: Driver) -> Result<bool> {
    Ok(control.target_types()?.iter().any(|target| target == driver.target()))
}
