//! The registry of cache drivers. A new driver is a file in this folder, and two words here: its
//! `mod`, and its place in [`all`].

mod dm_cache;
mod rapiddisk_cache;
mod writecache;

use rustix::io::Errno;

use super::target::Target;
use crate::kernel::dm::Control;
use crate::kernel::{self, Root};
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::names::{CacheName, Policy};

/// Every driver, the preferred one first.
fn all() -> Vec<Box<dyn Target>> {
    vec![
        Box::new(rapiddisk_cache::RapidDiskCache),
        Box::new(dm_cache::DmCache),
        Box::new(writecache::Writecache),
    ]
}

/// The driver of write-through caches that the administrator chose, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheDriver(&'static str);

impl CacheDriver {
    /// The driver of this name; `None` if there is none that makes write-through caches.
    pub fn parse(name: &str) -> Option<CacheDriver> {
        let all = all();
        let found = all.iter().find(|target| target.name() == name && target.serves(Policy::WriteThrough))?;
        Some(CacheDriver(found.name()))
    }
}

/// The drivers, and which of them makes write-through caches if the administrator chose one.
pub struct Targets {
    all: Vec<Box<dyn Target>>,
    chosen: Option<CacheDriver>,
}

impl Targets {
    /// All drivers. A chosen one leaves no other for the policies that it competes for.
    pub fn new(chosen: Option<CacheDriver>) -> Targets {
        Targets { all: all(), chosen }
    }

    /// Each of them, the preferred one first.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Target> {
        self.all.iter().map(|target| &**target)
    }

    /// The driver for a new cache. It is not certain that the kernel has it: the kernel loads some by
    /// itself when they are wanted.
    pub fn choose(&self, policy: Policy, control: &Control) -> Result<&dyn Target> {
        let loaded = control.target_types().cannot("ask which targets the kernel has")?;
        let is_loaded = |target: &&dyn Target| loaded.iter().any(|kind| kind == target.kind());
        let may_load = |target: &&dyn Target| target.is_stock() || self.chosen.is_some();
        let found = self.allowed(policy).find(is_loaded).or_else(|| self.allowed(policy).find(may_load));
        found.ok_or_else(|| self.none_for(policy))
    }

    /// The policies that a new cache can have, each with its driver.
    pub fn policies(&self, control: &Control) -> Vec<(Policy, &'static str)> {
        let chosen = |policy| Some((policy, self.choose(policy, control).ok()?.name()));
        Policy::ALL.into_iter().filter_map(chosen).collect()
    }

    /// The drivers that the kernel has at the moment.
    pub fn loaded(&self, control: &Control) -> Vec<&'static str> {
        let loaded = control.target_types().unwrap_or_default();
        let is_loaded = |target: &&dyn Target| loaded.iter().any(|kind| kind == target.kind());
        self.iter().filter(is_loaded).map(|target| target.name()).collect()
    }

    /// The driver of a mapping with this target; `None` if caches of the policy do not have it.
    pub fn of(&self, kind: &str, policy: Policy) -> Option<&dyn Target> {
        self.iter().find(|target| target.kind() == kind && target.serves(policy))
    }

    /// The driver of which something is left under the name of a cache that is gone.
    pub fn of_leftovers(&self, control: &Control, name: &CacheName) -> Result<Option<&dyn Target>> {
        for target in self.iter() {
            if target.has_leftovers(control, name)? {
                return Ok(Some(target));
            }
        }
        Ok(None)
    }

    /// The error for a table that the kernel refused.
    pub fn load_refused(
        &self,
        root: &Root,
        control: &Control,
        target: &dyn Target,
        name: &CacheName,
        error: kernel::Error,
    ) -> Error {
        let loaded = control.target_types().unwrap_or_default();
        // The kernel loads the module of a target by itself where it can.
        if !loaded.iter().any(|kind| kind == target.kind()) {
            let others = self.allowed(name.policy()).filter(|other| other.name() != target.name());
            let others: String = others.map(|other| format!(" (or: modprobe {})", other.name())).collect();
            return Error::Unavailable(format!(
                "the kernel has no target {}; load its module with: modprobe {}{others}",
                target.kind(),
                target.name()
            ));
        }
        if let Some((what, module)) = target.missing_module(root).filter(|_| error.is(Errno::INVAL)) {
            return Error::Unavailable(format!(
                "the kernel has no {what}; load its module with: modprobe {module}"
            ));
        }
        if error.is(Errno::BUSY) {
            return Error::Conflict(format!(
                "{name} cannot be mapped: its source or RAM disk was taken in the meantime"
            ));
        }
        Error::Kernel(format!("cannot map {name}"), error)
    }

    /// The drivers that may make a cache of a policy, the preferred one first.
    fn allowed(&self, policy: Policy) -> impl Iterator<Item = &dyn Target> {
        let is_chosen = move |target: &&dyn Target| {
            // The choice is among those of write-through caches.
            policy == Policy::Writeback || self.chosen.is_none_or(|chosen| chosen.0 == target.name())
        };
        self.iter().filter(move |target| target.serves(policy)).filter(is_chosen)
    }

    /// The error for a policy that no driver serves which may be used and could be loaded.
    fn none_for(&self, policy: Policy) -> Error {
        let stock: Vec<_> = Policy::ALL
            .into_iter()
            .filter(|&policy| self.iter().any(|target| target.is_stock() && target.serves(policy)))
            .map(Policy::as_str)
            .collect();
        let modules: Vec<_> =
            self.iter().filter(|target| target.serves(policy)).map(|target| target.name()).collect();
        let not_used = self.chosen.map(|chosen| format!(" (and not used with --cache-driver {})", chosen.0));
        Error::Unavailable(format!(
            "the stock kernel has no target for {}, only for {}; the module that has one is loaded with: modprobe \
             {}{}",
            policy.as_str(),
            stock.join(" and "),
            modules.join(" or "),
            not_used.unwrap_or_default()
        ))
    }
}
