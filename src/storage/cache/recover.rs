//! What a daemon that was killed in the middle of a change left.

use super::uuid;
use crate::kernel::dm::{self, Control};
use crate::storage::names::Part;
use crate::storage::{CacheName, Error, Result, Storage, node};

impl Storage {
    /// Repairs what a daemon that was killed in the middle of a change left: a
    /// mapping of ours without a table goes, one left suspended runs on, each has
    /// its node, and no node or part is left without its mapping. Returns what was
    /// done or could not be, a line each.
    pub(in super::super) fn recover_caches(&self) -> Vec<String> {
        let Ok(control) = Control::open(&self.root) else { return Vec::new() };
        let Ok(listed) = control.list() else { return Vec::new() };
        let mapped: Vec<_> = listed.iter().filter_map(|listed| CacheName::parse(&listed.name)).collect();
        let mut said: Vec<_> = mapped.iter().filter_map(|name| self.recover_one(&control, name)).collect();
        for name in node::all(&self.root).into_iter().filter(|name| !mapped.contains(name)) {
            said.push(tell(&name, "its node was removed", node::remove(&self.root, &name)));
        }
        let mut partial: Vec<_> = listed.iter().filter_map(|listed| Part::cache_of(&listed.name)).collect();
        partial.sort();
        partial.dedup();
        for name in partial.into_iter().filter(|name| is_gone(&control, name)) {
            if Part::ALL.iter().any(|part| is_ours(&control, &part.of(&name))) {
                said.push(tell(&name, "what was left of it was removed", self.remove_parts(&name)));
            }
        }
        said
    }

    fn recover_one(&self, control: &Control, name: &CacheName) -> Option<String> {
        let info = control.info(name.as_dm()).ok()?;
        if info.uuid != uuid(name.as_dm()) {
            return None;
        }
        let (done, outcome) = if !info.active {
            ("removed, as it had no table", control.remove(name.as_dm()).map_err(Error::from))
        } else if info.suspended {
            ("resumed, as it was suspended", control.resume(name.as_dm()).map_err(Error::from))
        } else if !node::is_there(&self.root, name, info.dev) {
            ("its node was made", node::make(&self.root, name, info.dev))
        } else {
            return None;
        };
        Some(tell(name, done, outcome))
    }
}

fn is_gone(control: &Control, name: &CacheName) -> bool {
    control.info(name.as_dm()).is_err_and(|error| dm::is_missing(&error))
}

fn is_ours(control: &Control, name: &dm::Name) -> bool {
    control.info(name).is_ok_and(|info| info.uuid == uuid(name))
}

fn tell(name: &CacheName, done: &str, outcome: Result<()>) -> String {
    match outcome {
        Ok(()) => format!("{name}: {done}"),
        Err(error) => format!("{name}: not {done}: {error}"),
    }
}
