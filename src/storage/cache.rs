//! Caches: a RAM disk in front of a slower device, mapped by device-mapper.

mod dmcache;
mod driver;
mod recover;
pub(super) mod writeback;

use std::fmt::Display;

use rustix::io::Errno;

use super::locks::Key;
use super::names::{Part, natural};
use super::ramdisk::device_key;
use super::undo::Undo;
use super::usage;
use super::{CacheName, DiskName, Error, Policy, Result, SourceName, Storage, node, retry_busy};
use crate::kernel;
use crate::kernel::block::{self, Access, Dev};
use crate::kernel::dm::{self, Control, Info, Report, Target};
use dmcache::Layout;
pub use driver::{CacheDriver, Driver};

/// Bytes in a block of `rapiddisk-cache`.
const RAPIDDISK_CACHE_BLOCK: u64 = 4096;
/// The smallest RAM disk that `rapiddisk-cache` can use, in bytes: one set of 512
/// blocks.
const RAPIDDISK_CACHE_MIN: u64 = 512 * RAPIDDISK_CACHE_BLOCK;

/// A cache mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Its name.
    pub name: CacheName,
    /// The RAM disk that caches.
    pub disk: String,
    /// The device that is cached, as named below `/dev`.
    pub source: String,
    /// How it treats writes.
    pub policy: Policy,
    /// What serves it.
    pub driver: Driver,
}

/// A cache that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCache {
    /// Its name.
    pub name: CacheName,
    /// What serves it.
    pub driver: Driver,
    /// Bytes in one of its blocks.
    pub block: u64,
}

/// What serves a mapping and what it stands on, by the kernel's names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    driver: Driver,
    disk: String,
    source: String,
}

impl Storage {
    /// All caches, by name. None where device-mapper is not loaded: then there
    /// can be none.
    pub(super) fn caches(&self) -> Result<Vec<Cache>> {
        let control = match Control::open(&self.root) {
            Ok(control) => control,
            Err(error) if is_not_loaded(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut caches = Vec::new();
        for listed in control.list()? {
            let Some(name) = CacheName::parse(&listed.name) else { continue };
            // One that is being made or removed, or is something else, is not listed.
            match self.parts(&control, &name) {
                Ok(parts) => {
                    let source = self.name_below_dev(&parts.source);
                    let Parts { driver, disk, .. } = parts;
                    caches.push(Cache { policy: name.policy(), name, disk, source, driver });
                }
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        caches.sort_by(|a, b| natural(a.name.as_dm().as_str()).cmp(&natural(b.name.as_dm().as_str())));
        Ok(caches)
    }

    /// Maps `disk` as a cache in front of `source`.
    pub fn create_cache(&self, disk: DiskName, source: &SourceName, policy: Policy) -> Result<NewCache> {
        let name = CacheName::of(policy, source).ok_or_else(|| {
            Error::Invalid(format!("the name of {source} is too long for a cache in front of it"))
        })?;
        self.existing(disk)?;
        let (source_dev, source_name) = self.source(source)?;
        let control = self.control()?;
        let parts = self.control()?.for_parts();
        let driver = self.cache_driver.choose(policy, &control)?;
        let _held = self.hold(vec![
            device_key(disk),
            Key::Device(source_name.clone()),
            // A mapping is known by its own name elsewhere.
            Key::Mapping(usage::shown_name(&self.root, &source_name)),
            Key::Mapping(name.to_string()),
        ])?;
        let ram = self.existing(disk)?;
        self.check_node(&ram)?;
        let size = ram.size;
        // Numbers of loop and mapped devices are used again.
        if self.source(source)? != (source_dev, source_name.clone()) {
            return Err(Error::Conflict(format!("{source} has just been changed; try again")));
        }
        if control.info(name.as_dm()).is_ok() {
            return Err(exists_already(&name));
        }
        if driver == Driver::DmCache {
            // What a removal that was cut short left.
            self.remove_parts(&name)?;
        }
        node::check_place(&self.root, &name)?;
        if block::is_read_only(&self.root, ram.dev) {
            return Err(Error::Conflict(format!("{disk} is locked; unlock it first")));
        }
        let sectors = self.usable_sectors(&source_name, source_dev, driver)?;
        let layout = match driver {
            Driver::DmCache => Some(Layout::of(disk, size)?),
            Driver::RapidDiskCache if size < RAPIDDISK_CACHE_MIN => {
                return Err(Error::Conflict(format!("{disk} is too small for a cache; it takes 2 MiB")));
            }
            _ => None,
        };
        // The others write nothing there but data.
        let has_superblock = driver != Driver::RapidDiskCache;
        // The claims end before the table is loaded, which claims both devices itself.
        let access = if has_superblock { Access::ClaimWrite } else { Access::Claim };
        let claim = usage::claim_unused(&self.root, ram.dev, disk, access)?;
        drop(usage::claim_unused(&self.root, source_dev, &*source_name, Access::Claim)?);
        let before = writeback::first_block(disk, &claim)?;
        Undo::run(|undo| {
            if has_superblock {
                // The target makes a superblock where it finds none.
                if before.iter().any(|&byte| byte != 0) {
                    block::write_start(&claim, &[0; writeback::BLOCK as usize])?;
                }
                undo.push(format!("clearing the first block of {disk}"), move || {
                    self.restore_start(disk, &before)
                });
            }
            drop(claim);
            let (on, of) = ((ram.dev, size), (source_dev, sectors));
            let target = match layout {
                Some(layout) => dmcache::make_parts(&parts, &name, on, of, layout, undo)?,
                None => self.target(disk, size, &source_name, sectors, policy),
            };
            let dev = control
                .create(name.as_dm(), &uuid(name.as_dm()))
                .map_err(|error| made_meanwhile(&name, error))?;
            undo.push(format!("making {name}"), || Ok(retry_busy(|| control.remove(name.as_dm()))?));
            control.load(name.as_dm(), &target).map_err(|error| {
                self.cache_driver.load_refused(&self.root, &control, driver, &name, error)
            })?;
            control.resume(name.as_dm()).map_err(Error::kernel(format!("cannot start {name}")))?;
            undo.push(format!("making /dev/mapper/{name}"), || node::remove(&self.root, &name));
            node::make(&self.root, &name, dev)
        })?;
        let block = layout.map_or(RAPIDDISK_CACHE_BLOCK, |layout| layout.block);
        Ok(NewCache { name, driver, block })
    }

    /// Removes a cache. Writeback: only once all its data is on the source.
    pub fn remove_cache(&self, name: &CacheName) -> Result<()> {
        let control = self.control()?;
        let parts = match self.parts(&control, name) {
            // What an earlier removal, or somebody else's, left behind holds the RAM disk.
            Err(Error::NotFound(_)) if dmcache::has_parts(&control, name) => {
                let _held = self.hold(vec![Key::Mapping(name.to_string())])?;
                return self.remove_parts(name).and_then(|()| node::remove(&self.root, name));
            }
            parts => parts?,
        };
        let devices = [&parts.disk, &parts.source].map(|device| Key::Device(device.clone()));
        let keys = devices.into_iter().chain([Key::Mapping(name.to_string())]).collect();
        let _held = self.hold(keys)?;
        // It may have gone, or come back in front of another device, while we waited.
        if self.parts(&control, name)? != parts {
            return Err(Error::Conflict(format!("{name} has just been changed; try again")));
        }
        self.check_closed(name, &info(&control, name)?)?;
        if parts.driver == Driver::DmCache {
            self.check_parts_closed(&control, name)?;
        }
        Undo::run(|undo| {
            if parts.driver == Driver::Writecache {
                writeback::write_back(&control, name)?;
            }
            let suspend = match parts.driver {
                Driver::RapidDiskCache => None,
                Driver::DmCache => Some(dmcache::suspend_written as fn(&Control, &CacheName) -> Result<()>),
                Driver::Writecache => Some(writeback::suspend_clean as _),
            };
            if let Some(suspend) = suspend {
                undo.push(format!("suspending {name}"), || Ok(control.resume(name.as_dm())?));
                suspend(&control, name)?;
            }
            retry_busy(|| control.remove(name.as_dm()))
                .map_err(|error| self.remove_refused(&control, name, error))
        })?;
        // The cache is gone whatever becomes of what it leaves behind.
        let cleared = match (parts.driver, DiskName::parse(&parts.disk)) {
            // Nothing is in it any more: it must not look as if there were.
            (Driver::Writecache, Some(disk)) => self.write_start(disk, &[0; writeback::BLOCK as usize]),
            (Driver::DmCache, _) => self.remove_parts(name),
            _ => Ok(()),
        };
        node::remove(&self.root, name).and(cleared).map_err(|error| match error {
            Error::Kernel(what, error) => Error::Kernel(format!("{name} is removed, but {what}"), error),
            other => other,
        })
    }

    pub(super) fn control(&self) -> Result<Control> {
        Control::open(&self.root).map_err(|error| match is_not_loaded(&error) {
            true => Error::Unavailable("device-mapper is not loaded; load it with: modprobe dm-mod".into()),
            false => error.into(),
        })
    }

    /// What a cache stands on; an error if there is no such cache.
    fn parts(&self, control: &Control, name: &CacheName) -> Result<Parts> {
        let (driver, _) = report(control, name)?;
        let deps = |name: &dm::Name| control.deps(name);
        let (disk, source) = match (driver, &deps(name.as_dm())?[..]) {
            // The kernel lists the device taken last first.
            (Driver::DmCache, &[source, _, _]) => match &deps(&Part::Data.of(name)) {
                Ok(on) if on.len() == 1 => (on[0], source),
                // Made by others on other devices.
                _ => return Err(no_cache(name)),
            },
            (Driver::RapidDiskCache | Driver::Writecache, &[disk, source]) => (disk, source),
            _ => return Err(no_cache(name)),
        };
        // A device that was pulled out has no name any more, but its cache is there.
        let shown = |dev: Dev| block::name_of(&self.root, dev).unwrap_or_else(|| dev.to_string());
        let disk = shown(disk);
        let disk = self.disk_name_of(&disk).map_or(disk, |name| name.to_string());
        Ok(Parts { driver, disk, source: shown(source) })
    }

    /// The device number of a cache that must exist.
    pub(super) fn cache_dev(&self, name: &CacheName) -> Result<Dev> {
        let control = self.control()?;
        report(&control, name)?;
        Ok(info(&control, name)?.dev)
    }

    /// The source's device number and the kernel's name of it.
    fn source(&self, source: &SourceName) -> Result<(Dev, String)> {
        let found = block::dev_of_node(&self.root.path("dev").join(source.as_str()))
            .and_then(|dev| Some((dev, block::name_of(&self.root, dev)?)))
            .ok_or_else(|| Error::NotFound(format!("there is no block device /dev/{source}")))?;
        if let Some(cache) = Part::cache_of(&block::mapped_name(&self.root, &found.1).unwrap_or_default()) {
            return Err(Error::Invalid(format!("{source} is a part of the cache {cache}")));
        }
        if self.disk_name_of(&found.1).is_some() {
            return Err(Error::Invalid(format!(
                "{source} is a RAM disk itself; a cache goes in front of a slower device"
            )));
        }
        Ok(found)
    }

    /// The source's size, if a cache can stand in front of it.
    fn usable_sectors(&self, source: &str, dev: Dev, driver: Driver) -> Result<u64> {
        let refuse = |why: &str| Err(Error::Conflict(format!("{source} {why}")));
        if block::is_read_only(&self.root, dev) {
            return refuse("is read-only; make it writable first");
        }
        let block_size = block::logical_block_size(&self.root, dev).unwrap_or(block::SECTOR);
        let sectors = block::sectors(&self.root, dev).unwrap_or(0);
        if sectors == 0 {
            return refuse("has no medium or no size");
        }
        match driver {
            Driver::Writecache if block_size > writeback::BLOCK => {
                refuse(&format!("has blocks of {block_size} bytes, and writeback takes 4096 at most"))
            }
            Driver::Writecache if !(sectors * block::SECTOR).is_multiple_of(writeback::BLOCK) => refuse(
                "has a size that is no multiple of 4096 bytes, which writeback needs; use another policy",
            ),
            Driver::RapidDiskCache if block_size != block::SECTOR => refuse(&format!(
                "has blocks of {block_size} bytes, and this policy takes 512 alone; use writeback"
            )),
            _ => Ok(sectors),
        }
    }

    /// The table of a cache that has its RAM disk for itself.
    fn target(&self, disk: DiskName, size: u64, source: &str, length: u64, policy: Policy) -> Target {
        let node = |name: &str| block::node(&self.root, name).display().to_string();
        let (source, cache, size) = (node(source), node(&disk.to_string()), size / block::SECTOR);
        let (driver, text) = match policy {
            Policy::WriteThrough => (Driver::RapidDiskCache, format!("{source} {cache} {size} 0")),
            Policy::WriteAround => (Driver::RapidDiskCache, format!("{source} {cache} {size} 1")),
            Policy::Writeback => (Driver::Writecache, format!("s {source} {cache} {} 0", writeback::BLOCK)),
        };
        Target { start: 0, length, kind: driver.target().into(), text }
    }

    /// The name that `create_cache` would take for it.
    fn name_below_dev(&self, name: &str) -> String {
        match block::mapped_name(&self.root, name) {
            Some(name) => format!("mapper/{name}"),
            None => name.replace('!', "/"),
        }
    }

    /// Refuses a mapping that somebody has open, and says who.
    fn check_closed(&self, name: &CacheName, info: &Info) -> Result<()> {
        if let Some(user) = usage::settled_users(&self.root, info.dev)?.first() {
            return Err(usage::in_use(name, user));
        }
        Ok(())
    }

    fn remove_refused(&self, control: &Control, name: &CacheName, error: kernel::Error) -> Error {
        if !error.is(Errno::BUSY) {
            return Error::Kernel(format!("cannot remove {name}"), error);
        }
        let named = info(control, name).and_then(|info| self.check_closed(name, &info));
        named.err().unwrap_or_else(|| {
            Error::Conflict(format!("{name} is open in a program that does not show itself; end that first"))
        })
    }
}

/// Identifies a mapping as made here, whatever its name.
fn uuid(name: &dm::Name) -> String {
    let mut uuid = format!("rapiddiskd-{name}");
    uuid.truncate(dm::UUID_MAX);
    uuid
}

fn no_cache(name: &CacheName) -> Error {
    Error::NotFound(format!("there is no cache {name}"))
}

fn is_not_loaded(error: &kernel::Error) -> bool {
    [Errno::NOENT, Errno::NODEV, Errno::NXIO].iter().any(|&errno| error.is(errno))
}

fn info(control: &Control, name: &CacheName) -> Result<Info> {
    control.info(name.as_dm()).map_err(|error| match dm::is_missing(&error) {
        true => no_cache(name),
        false => error.into(),
    })
}

/// What serves the cache, and what its target reports. A mapping with such a name
/// that has another target is no cache.
pub(super) fn report(control: &Control, name: &CacheName) -> Result<(Driver, String)> {
    let targets = match control.report(name.as_dm(), Report::Status) {
        Err(error) if dm::is_missing(&error) => return Err(no_cache(name)),
        targets => targets?,
    };
    let [Target { kind, text, .. }] = &targets[..] else { return Err(no_cache(name)) };
    let driver = Driver::of_target(kind, name.policy()).ok_or_else(|| no_cache(name))?;
    Ok((driver, text.clone()))
}

fn exists_already(name: impl Display) -> Error {
    Error::Conflict(format!("{name} exists already; remove it first"))
}

/// Somebody else was quicker than the look whether the name is free.
fn made_meanwhile(name: impl Display, error: kernel::Error) -> Error {
    match error.is(Errno::BUSY) {
        true => exists_already(name),
        false => Error::Kernel(format!("cannot make {name}"), error),
    }
}
