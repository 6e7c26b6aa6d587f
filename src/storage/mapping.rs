//! Mappings that this program made, as device-mapper knows them.

use std::fmt::Display;

use rustix::io::Errno;

use super::error::{Cannot, Error, Result};
use crate::kernel::dm::{self, Control, Info};
use crate::kernel::{self, Root};

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

/// The refusal of a mapping that another program has suspended: whatever reads or writes it would hang. `or` is
/// what helps beside resuming it.
pub fn suspended(name: impl Display, or: &str) -> Error {
    Error::Conflict(format!(
        "{name} was suspended by another program; resume it first: dmsetup resume {name}{or}"
    ))
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
