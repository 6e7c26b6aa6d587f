//! Repairing what a daemon that was killed during a change left.

use super::mapping;
use super::{Caches, node};
use crate::kernel::dm::Control;
use crate::storage::error::{Cannot, Result};
use crate::storage::locks::Key;
use crate::storage::names::{CacheName, Part};

impl Caches {
    /// Repairs what a daemon that was killed during a change left: a mapping of ours without a table is
    /// removed, a suspended one is resumed, each has its link in `/dev/mapper`, and no link or part is
    /// left of a cache that is gone. Returns a line for each thing that was done or could not be done.
    pub fn recover(&self) -> Vec<String> {
        let root = &self.machine.root;
        let not_looked = |error| vec![format!("the caches could not be looked for: {error}")];
        let control = match mapping::if_loaded(root) {
            Ok(Some(control)) => control,
            Ok(None) => return Vec::new(),
            Err(error) => return not_looked(error),
        };
        let listed = match control.list().cannot("list the caches") {
            Ok(listed) => listed,
            Err(error) => return not_looked(error),
        };
        let mapped = listed.iter().filter_map(|listed| CacheName::parse(&listed.name));
        let partial = listed.iter().filter_map(|listed| Part::cache_of(&listed.name));
        let mut names: Vec<_> = mapped.chain(node::all(root)).chain(partial).collect();
        names.sort();
        names.dedup();
        names.iter().flat_map(|name| self.recover_one(&control, name)).collect()
    }

    /// Repairs what has the name of a cache: its mapping, or its link and its parts without one. A cache on
    /// which a request is at work is left alone.
    fn recover_one(&self, control: &Control, name: &CacheName) -> Vec<String> {
        let root = &self.machine.root;
        let Some(_held) = self.machine.locks.try_hold(vec![Key::Mapping(name.to_string())]) else {
            return Vec::new();
        };
        let mut said: Vec<_> = self.recover_mapping(control, name).into_iter().collect();
        match mapping::info_of(control, name.as_dm()) {
            Ok(Some(_)) => return said,
            Ok(None) => {}
            Err(error) => {
                said.push(told(name, "", Err(error)));
                return said;
            }
        }
        if node::has_entry(root, name) {
            said.push(told(name, "its link was left and is removed", node::remove(root, name)));
        }
        match self.targets.of_leftovers(control, name) {
            Ok(Some(target)) => {
                let removed = target.remove_leftovers(root, name);
                said.push(told(name, "its parts were left and are removed", removed));
            }
            Ok(None) => {}
            Err(error) => said.push(told(name, "", Err(error))),
        }
        said
    }

    fn recover_mapping(&self, control: &Control, name: &CacheName) -> Option<String> {
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
