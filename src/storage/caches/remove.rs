//! Removing a cache.

use rustix::io::Errno;

use super::mapping;
use super::{Caches, Mapped, node};
use crate::kernel;
use crate::kernel::dm::Control;
use crate::storage::error::{Cannot, Error, Left, Result};
use crate::storage::locks::Key;
use crate::storage::names::CacheName;
use crate::storage::undo::Undo;
use crate::storage::usage::{self, User};
use crate::storage::wait::retry_busy;

impl Caches {
    /// Removes a cache. A writeback cache is only removed once all its data is on the source.
    pub fn remove(&self, name: &CacheName) -> Result<Left> {
        self.remove_with(name, false).map(|(_, left)| left)
    }

    /// Removes a cache, too, if its source does not take its data any more. Returns how many blocks of data
    /// are lost.
    pub fn discard(&self, name: &CacheName) -> Result<(u64, Left)> {
        self.remove_with(name, true)
    }

    fn remove_with(&self, name: &CacheName, discard: bool) -> Result<(u64, Left)> {
        let control = mapping::control(&self.machine.root)?;
        let mapped = match self.mapped(&control, name) {
            // What an earlier removal left, or one by another program, holds the RAM disk.
            Err(Error::NotFound(_)) if self.targets.of_leftovers(&control, name)?.is_some() => {
                return self.remove_leftovers(&control, name).map(|left| (0, left));
            }
            mapped => mapped?,
        };
        let keys = self.keys(&mapped, name)?;
        let _held = self.machine.hold(keys.clone())?;
        // It may have gone while this call waited, or be in front of another device now. A device's number
        // may be another's by now, so the names are compared as well.
        let again = self.mapped(&control, name)?;
        if again.devices != mapped.devices
            || again.target.name() != mapped.target.name()
            || self.keys(&again, name)? != keys
        {
            return Err(Error::Conflict(format!("{name} has just been changed; try again")));
        }
        mapping::check_running(&control, name.as_dm())?;
        mapping::check_closed(&self.machine.root, &control, name.as_dm(), None)?;
        mapped.target.check_parts(&self.machine.root, &control, name)?;
        // Asked for now: the mapping will not tell any more.
        let device = self.device_name(mapped.devices.disk)?;
        let disk = self.disks.name_of(&device)?;
        if let Some(disk) = disk {
            self.disks.check_running(disk)?;
        }
        let lost = self.unmap(&control, name, &mapped, discard)?;
        let mut left = Left::default();
        left.note(node::remove(&self.machine.root, name));
        left.note(mapped.target.clean_up(&self.machine.root, name, disk.map(|_| device.as_str())));
        Ok((lost, left))
    }

    fn keys(&self, mapped: &Mapped<'_>, name: &CacheName) -> Result<Vec<Key>> {
        Ok(vec![
            Key::Device(self.disk_name(mapped.devices.disk)?),
            Key::Device(self.device_name(mapped.devices.source)?),
            Key::Mapping(name.to_string()),
        ])
    }

    /// Removes the mapping. Returns how many blocks of data are lost, which is 0 unless `discard` is set.
    fn unmap(&self, control: &Control, name: &CacheName, mapped: &Mapped<'_>, discard: bool) -> Result<u64> {
        let mut lost = 0;
        // Data is given up only where the target says that it cannot be written.
        let mut give_up = |written: Result<()>| match written {
            Err(error) if discard => {
                lost = mapped.target.lost(control, name)?.ok_or(error)?;
                Ok(())
            }
            written => written,
        };
        Undo::run(|undo| {
            give_up(mapped.target.write_back(control, name))?;
            if mapped.target.is_suspended_first() {
                undo.push(format!("suspending {name}"), || {
                    control.resume(name.as_dm()).cannot(format_args!("resume {name}"))
                });
                control.suspend(name.as_dm()).cannot(format_args!("suspend {name}"))?;
                give_up(mapped.target.check_written(control, name))?;
            }
            retry_busy(|| control.remove(name.as_dm()))
                .map_err(|error| self.removal_refused(control, name, error))
        })?;
        Ok(lost)
    }

    /// Removes what is left of a cache that is gone itself.
    fn remove_leftovers(&self, control: &Control, name: &CacheName) -> Result<Left> {
        let _held = self.machine.hold(vec![Key::Mapping(name.to_string())])?;
        // It may belong to a cache that was being made until now.
        let Some(target) = self.targets.of_leftovers(control, name)? else {
            return Err(Error::Conflict(format!("{name} has just been changed; try again")));
        };
        target.remove_leftovers(&self.machine.root, name)?;
        let mut left = Left::default();
        left.note(node::remove(&self.machine.root, name));
        Ok(left)
    }

    fn removal_refused(&self, control: &Control, name: &CacheName, error: kernel::Error) -> Error {
        if !error.is(Errno::BUSY) {
            return Error::Kernel(format!("cannot remove {name}"), error);
        }
        let refusal = mapping::check_closed(&self.machine.root, control, name.as_dm(), None).err();
        refusal.unwrap_or_else(|| usage::in_use(name, &User::Opener))
    }
}
