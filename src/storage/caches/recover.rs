//! Repairing what a daemon that was killed during a change left.

use super::mapping::{is_ours, uuid};
use super::targets::remove_parts;
use super::{Caches, node};
use crate::kernel::dm::{self, Control};
use crate::storage::error::{Cannot, Result};
use crate::storage::names::{CacheName, Part};

impl Caches {
    /// Repairs what a daemon that was killed during a change left: a mapping of ours without a table is
    /// removed, a suspended one is resumed, each has its link in `/dev/mapper`, and no link or part is
    /// left of a cache that is gone. Returns a line for each thing that was done or could not be done.
    pub fn recover(&self) -> Vec<String> {
        let root = &self.machine.root;
        let Ok(control) = Control::open(root) else { return Vec::new() };
        let Ok(listed) = control.list() else { return Vec::new() };
        let mapped: Vec<_> = listed.iter().filter_map(|listed| CacheName::parse(&listed.name)).collect();
        let mut said: Vec<_> = mapped.iter().filter_map(|name| self.recover_one(&control, name)).collect();
        for name in node::all(root).into_iter().filter(|name| !mapped.contains(name)) {
            said.push(told(&name, "its link was left and is removed", node::remove(root, &name)));
        }
        let mut partial: Vec<_> = listed.iter().filter_map(|listed| Part::cache_of(&listed.name)).collect();
        partial.sort();
        partial.dedup();
        for name in partial.into_iter().filter(|name| is_gone(&control, name)) {
            if Part::ALL.iter().any(|part| is_ours(&control, &part.of(&name))) {
                said.push(told(&name, "its parts were left and are removed", remove_parts(root, &name)));
            }
        }
        said
    }

    fn recover_one(&self, control: &Control, name: &CacheName) -> Option<String> {
        let root = &self.machine.root;
        let info = control.info(name.as_dm()).ok()?;
        if info.uuid != uuid(name.as_dm()) {
            return None;
        }
        let (done, outcome) = if !info.active {
            ("it had no table and is removed", control.remove(name.as_dm()).cannot("remove it"))
        } else if info.suspended {
            ("it was suspended and is resumed", control.resume(name.as_dm()).cannot("resume it"))
        } else if !node::is_there(root, name, info.dev) {
            ("its link was missing and is made again", node::make(root, name, info.dev))
        } else {
            return None;
        };
        Some(told(name, done, outcome))
    }
}

fn is_gone(control: &Control, name: &CacheName) -> bool {
    control.info(name.as_dm()).is_err_and(|error| dm::is_missing(&error))
}

fn told(name: &CacheName, done: &str, outcome: Result<()>) -> String {
    match outcome {
        Ok(()) => format!("{name}: {done}"),
        Err(error) => format!("{name} could not be repaired: {error}"),
    }
}
