//! Mappings that this program made, as device-mapper knows them.

use std::fmt::Display;

use rustix::io::Errno;

use crate::kernel::dm::{self, Control, Info, Report};
use crate::kernel::{self, Root};
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::names::CacheName;
use crate::storage::usage::{self, User};

/// Opens device-mapper.
///
/// # Errors
/// Its driver is not loaded (`Unavailable`), or cannot be opened.
pub fn control(root: &Root) -> Result<Control> {
    if_loaded(root)?.ok_or_else(|| {
        Error::Unavailable("device-mapper is not loaded; load it with: modprobe dm-mod".into())
    })
}

/// Opens device-mapper; `None` where its driver is not loaded.
pub fn if_loaded(root: &Root) -> Result<Option<Control>> {
    match Control::open(root) {
        Err(error) if is_not_loaded(&error) => Ok(None),
        opened => opened.cannot("use device-mapper").map(Some),
    }
}

fn is_not_loaded(error: &kernel::Error) -> bool {
    [Errno::NOENT, Errno::NODEV, Errno::NXIO].iter().any(|&errno| error.is(errno))
}

/// The UUID of a mapping that was made here.
pub fn uuid(name: &dm::Name) -> String {
    let mut uuid = format!("rapiddiskd-{name}");
    uuid.truncate(dm::UUID_MAX);
    uuid
}

/// The state of a mapping; `None` if there is none of this name.
pub fn info_of(control: &Control, name: &dm::Name) -> Result<Option<Info>> {
    match control.info(name) {
        Err(error) if dm::is_missing(&error) => Ok(None),
        info => info.map(Some).cannot(format_args!("look at {name}")),
    }
}

/// The state of a mapping that was made here; `None` if there is none of this name.
pub fn ours(control: &Control, name: &dm::Name) -> Result<Option<Info>> {
    Ok(info_of(control, name)?.filter(|info| info.uuid == uuid(name)))
}

/// The state of a cache's mapping, which must exist.
pub fn info(control: &Control, name: &CacheName) -> Result<Info> {
    info_of(control, name.as_dm())?.ok_or_else(|| no_cache(name))
}

/// Refuses a mapping that another program has suspended: whatever reads or writes it would hang.
pub fn check_running(control: &Control, name: &dm::Name) -> Result<()> {
    match info_of(control, name)? {
        Some(info) if info.suspended => Err(Error::Conflict(format!(
            "{name} was suspended by another program; resume it first: dmsetup resume {name}{}",
            if is_cache_of_ours(name, &info) {
                ", or restart rapiddiskd, which resumes its caches"
            } else {
                ""
            }
        ))),
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

/// A mapping has this name already.
pub fn exists_already(name: impl Display) -> Error {
    Error::Conflict(format!("{name} exists already; remove it first"))
}

/// The error of a mapping that could not be made: another program may have taken its name since it
/// was free.
pub fn not_made(name: impl Display, error: kernel::Error) -> Error {
    match error.is(Errno::BUSY) {
        true => exists_already(name),
        false => Error::Kernel(format!("cannot make {name}"), error),
    }
}
