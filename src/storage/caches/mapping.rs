//! The mappings of caches.

use crate::kernel::Root;
use crate::kernel::dm::{self, Control, Info, Report};
use crate::storage::error::{Cannot, Error, Result};
pub use crate::storage::mapping::{
    control, exists_already, if_loaded, info_of, not_made, ours, suspended, uuid,
};
use crate::storage::names::CacheName;
use crate::storage::usage::{self, User};

/// The state of a cache's mapping, which must exist.
pub fn info(control: &Control, name: &CacheName) -> Result<Info> {
    info_of(control, name.as_dm())?.ok_or_else(|| no_cache(name))
}

/// Refuses a mapping that another program has suspended: whatever reads or writes it would hang.
pub fn check_running(control: &Control, name: &dm::Name) -> Result<()> {
    match info_of(control, name)? {
        Some(info) if info.suspended => Err(suspended(
            name,
            if is_cache_of_ours(name, &info) {
                ", or restart rapiddiskd, which resumes its caches"
            } else {
                ""
            },
        )),
        _ => Ok(()),
    }
}

/// Ends the suspension of a cache that was made here.
pub fn resume_cache(control: &Control, name: &CacheName) -> Result<()> {
    match info_of(control, name.as_dm())? {
        Some(info) if info.suspended && is_cache_of_ours(name.as_dm(), &info) => {
            control.resume(name.as_dm()).cannot(format_args!("resume {name}"))
        }
        _ => Ok(()),
    }
}

fn is_cache_of_ours(name: &dm::Name, info: &Info) -> bool {
    CacheName::parse(name.as_str()).is_some() && info.uuid == uuid(name)
}

/// Refuses a mapping that anybody has open but `own`, a cache that stands on it, and says who.
pub fn check_closed(root: &Root, control: &Control, name: &dm::Name, own: Option<&CacheName>) -> Result<()> {
    let own = own.map(|cache| User::Holder(cache.to_string()));
    let look = || info_of(control, name)?.ok_or_else(|| Error::NotFound(format!("there is no {name}")));
    usage::unless_used(root, look()?.dev, name, own.as_ref(), || {
        let is_closed = look()?.open_count <= u32::from(own.is_some());
        Ok(if is_closed { Ok(()) } else { Err(User::Opener) })
    })
}

/// The one target of a cache's mapping, with its status or its table. A mapping of another form is no
/// cache.
pub fn report(control: &Control, name: &CacheName, what: Report) -> Result<dm::Target> {
    let mut targets = match control.report(name.as_dm(), what) {
        Err(error) if dm::is_missing(&error) => return Err(no_cache(name)),
        targets => targets.cannot(format_args!("ask for the state of {name}"))?,
    };
    if targets.len() == 1 { Ok(targets.remove(0)) } else { Err(no_cache(name)) }
}

/// There is no such cache.
pub fn no_cache(name: &CacheName) -> Error {
    Error::NotFound(format!("there is no cache {name}"))
}
