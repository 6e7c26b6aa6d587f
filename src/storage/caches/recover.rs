//! Repairing what a daemon that was killed during a change left.

use super::mapping;
use super::targets::remove_parts;
use super::{Caches, node};
use crate::kernel::dm::Control;
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
        for name in partial {
            match mapping::has_only_parts(&control, &name) {
                Ok(true) => {
                    said.push(told(&name, "its parts were left and are removed", remove_parts(root, &name)))
                }
                Ok(false) => {}
                Err(error) => said.push(told(&name, "", Err(error))),
            }
        }
        said
    }

    fn recover_one(&self, control: &Control, name: &CacheName) -> Option<String> {
        let root = &self.machine.root;
        let info = match mapping::ours(control, name.as_dm()) {
            Ok(info) => info?,
            Err(error) => return Some(told(name, "", Err(error))),
        };
        let (done, outcome) = if !info.active {
            ("it had no table and is removed", control.remove(name.as_dm()).cannot("remove it"))
        } else if info.suspended {
            ("it was suspended and is resumed", control.resume(name.as_dm()).cannot("resume it"))
        } else if node::is_there(root, name, info.dev) != Ok(true) {
            ("its link was missing and is made again", node::make(root, name, info.dev))
        } else {
            return None;
        };
        Some(told(name, done, outcome))
    }
}

fn told(name: &CacheName, done: &str, outcome: Result<()>) -> String {
    match outcome {
        Ok(()) => format!("{name}: {done}"),
        Err(error) => format!("{name} could not be repaired: {error}"),
    }
}
