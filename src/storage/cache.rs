//! Caches: a RAM disk in front of a slower device, mapped by device-mapper.

use std::fs::File;

use rustix::io::Errno;

use super::locks::Key;
use super::names::natural;
use super::ramdisk::device_key;
use super::undo::Undo;
use super::usage;
use super::{CacheName, DiskName, Error, Policy, Result, SourceName, Storage, node, retry_busy, stats};
use crate::kernel::block::{self, Access, Dev};
use crate::kernel::dm::{self, Control, Info, Report, Target};
use crate::kernel::{self};

/// The target behind write-through and write-around.
const RAPIDDISK_CACHE: &str = "rapiddisk-cache";
/// The target behind writeback.
const WRITECACHE: &str = "writecache";
/// Bytes in a block of a writeback cache, and in the superblock at its start.
const WRITECACHE_BLOCK: u64 = 4096;
/// The first bytes of a writecache superblock.
const WRITECACHE_MAGIC: [u8; 4] = 0x2348_9321u32.to_le_bytes();

/// The smallest RAM disk that `rapiddisk-cache` can use, in bytes: one set of 512
/// blocks of 4 KiB.
const RAPIDDISK_CACHE_MIN: u64 = 2 << 20;

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
}

/// What a mapping stands on, by the kernel's names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
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
                    caches.push(Cache { policy: name.policy(), name, disk: parts.disk, source });
                }
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        caches.sort_by(|a, b| natural(a.name.as_dm().as_str()).cmp(&natural(b.name.as_dm().as_str())));
        Ok(caches)
    }

    /// Maps `disk` as a cache in front of `source`.
    pub fn create_cache(&self, disk: DiskName, source: &SourceName, policy: Policy) -> Result<CacheName> {
        let name = CacheName::of(policy, source).ok_or_else(|| {
            Error::Invalid(format!("the name of {source} is too long for a cache in front of it"))
        })?;
        let ram = self.existing(disk)?;
        let (source_dev, source_name) = self.source(source)?;
        let control = self.control()?;
        let _held = self.hold(vec![
            device_key(disk),
            Key::Device(source_name.clone()),
            // A mapping is known by its own name elsewhere.
            Key::Mapping(usage::shown_name(&self.root, &source_name)),
            Key::Mapping(name.to_string()),
        ])?;
        // Numbers of loop and mapped devices are used again.
        if self.source(source)? != (source_dev, source_name.clone()) {
            return Err(Error::Conflict(format!("{source} has just been changed; try again")));
        }
        if control.info(name.as_dm()).is_ok() {
            return Err(exists_already(&name));
        }
        node::check_place(&self.root, &name)?;
        if block::is_read_only(&self.root, ram.dev) {
            return Err(Error::Conflict(format!("{disk} is locked; unlock it first")));
        }
        let sectors = self.usable_sectors(&source_name, source_dev, policy)?;
        let target = self.target(disk, &source_name, sectors, policy)?;
        // The claims end before the table is loaded, which claims both devices itself.
        let access = if policy == Policy::Writeback { Access::ClaimWrite } else { Access::Claim };
        let claim = usage::claim_unused(&self.root, ram.dev, disk, access)?;
        drop(usage::claim_unused(&self.root, source_dev, &*source_name, Access::Claim)?);
        let before = first_block(disk, &claim)?;
        Undo::run(|undo| {
            if policy == Policy::Writeback {
                // The target makes a superblock where it finds none.
                if before.iter().any(|&byte| byte != 0) {
                    block::write_start(&claim, &[0; WRITECACHE_BLOCK as usize])?;
                }
                undo.push(format!("clearing the first block of {disk}"), move || {
                    self.restore_start(disk, &before)
                });
            }
            drop(claim);
            let dev =
                control.create(name.as_dm(), &uuid(&name)).map_err(|error| made_meanwhile(&name, error))?;
            undo.push(format!("making {name}"), || Ok(retry_busy(|| control.remove(name.as_dm()))?));
            control
                .load(name.as_dm(), &target)
                .map_err(|error| load_refused(&control, &target, &name, error))?;
            control.resume(name.as_dm()).map_err(Error::kernel(format!("cannot start {name}")))?;
            undo.push(format!("making /dev/mapper/{name}"), || node::remove(&self.root, &name));
            node::make(&self.root, &name, dev)
        })?;
        Ok(name)
    }

    /// Removes a cache. Writeback: only once all its data is on the source.
    pub fn remove_cache(&self, name: &CacheName) -> Result<()> {
        let control = self.control()?;
        let parts = self.parts(&control, name)?;
        let devices = [&parts.disk, &parts.source].map(|device| Key::Device(device.clone()));
        let keys = devices.into_iter().chain([Key::Mapping(name.to_string())]).collect();
        let _held = self.hold(keys)?;
        // It may have gone, or come back in front of another device, while we waited.
        if self.parts(&control, name)? != parts {
            return Err(Error::Conflict(format!("{name} has just been changed; try again")));
        }
        self.check_closed(name, &info(&control, name)?)?;
        Undo::run(|undo| {
            if name.policy() == Policy::Writeback {
                write_back(&control, name)?;
                undo.push(format!("suspending {name}"), || Ok(control.resume(name.as_dm())?));
                suspend_clean(&control, name)?;
            }
            retry_busy(|| control.remove(name.as_dm()))
                .map_err(|error| self.remove_refused(&control, name, error))
        })?;
        // The cache is gone whatever becomes of what it leaves behind.
        let cleared = match DiskName::parse(&parts.disk) {
            // Nothing is in it any more: it must not look as if there were.
            Some(disk) if name.policy() == Policy::Writeback => {
                self.write_start(disk, &[0; WRITECACHE_BLOCK as usize])
            }
            _ => Ok(()),
        };
        node::remove(&self.root, name).and(cleared).map_err(|error| match error {
            Error::Kernel(what, error) => Error::Kernel(format!("{name} is removed, but {what}"), error),
            other => other,
        })
    }

    /// Repairs what a daemon that was killed in the middle of a change left: a
    /// mapping of ours without a table goes, one left suspended runs on, each has
    /// its node, and no node is left without its mapping. Returns what was done or
    /// could not be, a line each.
    pub(super) fn recover_caches(&self) -> Vec<String> {
        let Ok(control) = Control::open(&self.root) else { return Vec::new() };
        let Ok(listed) = control.list() else { return Vec::new() };
        let mapped: Vec<_> = listed.iter().filter_map(|listed| CacheName::parse(&listed.name)).collect();
        let mut said: Vec<_> = mapped.iter().filter_map(|name| self.recover_one(&control, name)).collect();
        for name in node::all(&self.root).into_iter().filter(|name| !mapped.contains(name)) {
            said.push(tell(&name, "its node was removed", node::remove(&self.root, &name)));
        }
        said
    }

    fn recover_one(&self, control: &Control, name: &CacheName) -> Option<String> {
        let info = control.info(name.as_dm()).ok()?;
        if info.uuid != uuid(name) {
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

    pub(super) fn control(&self) -> Result<Control> {
        Control::open(&self.root).map_err(|error| match is_not_loaded(&error) {
            true => Error::Unavailable("device-mapper is not loaded; load it with: modprobe dm-mod".into()),
            false => error.into(),
        })
    }

    /// What a cache stands on; an error if there is no such cache.
    fn parts(&self, control: &Control, name: &CacheName) -> Result<Parts> {
        report(control, name)?;
        let deps = control.deps(name.as_dm())?;
        // A device that was pulled out has no name any more, but its cache is there.
        let shown = |&dev: &Dev| block::name_of(&self.root, dev).unwrap_or_else(|| dev.to_string());
        let names: Vec<_> = deps.iter().map(shown).collect();
        // The kernel lists the device taken last first: the RAM disk.
        let [disk, source] = &names[..] else { return Err(no_cache(name)) };
        let disk = self.disk_name_of(disk).map_or_else(|| disk.clone(), |name| name.to_string());
        Ok(Parts { disk, source: source.clone() })
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
        if self.disk_name_of(&found.1).is_some() {
            return Err(Error::Invalid(format!(
                "{source} is a RAM disk itself; a cache goes in front of a slower device"
            )));
        }
        Ok(found)
    }

    /// The source's size, if a cache can stand in front of it.
    fn usable_sectors(&self, source: &str, dev: Dev, policy: Policy) -> Result<u64> {
        let refuse = |why: &str| Err(Error::Conflict(format!("{source} {why}")));
        if block::is_read_only(&self.root, dev) {
            return refuse("is read-only; make it writable first");
        }
        let block_size = block::logical_block_size(&self.root, dev).unwrap_or(block::SECTOR);
        let sectors = block::sectors(&self.root, dev).unwrap_or(0);
        if sectors == 0 {
            return refuse("has no medium or no size");
        }
        match policy {
            Policy::Writeback if block_size > WRITECACHE_BLOCK => {
                refuse(&format!("has blocks of {block_size} bytes, and writeback takes 4096 at most"))
            }
            Policy::Writeback if !(sectors * block::SECTOR).is_multiple_of(WRITECACHE_BLOCK) => refuse(
                "has a size that is no multiple of 4096 bytes, which writeback needs; use another policy",
            ),
            Policy::WriteThrough | Policy::WriteAround if block_size != block::SECTOR => refuse(&format!(
                "has blocks of {block_size} bytes, and this policy takes 512 alone; use writeback"
            )),
            _ => Ok(sectors),
        }
    }

    fn target(&self, disk: DiskName, source: &str, length: u64, policy: Policy) -> Result<Target> {
        let size = self.existing(disk)?.size;
        let node = |name: &str| block::node(&self.root, name).display().to_string();
        let (source, cache) = (node(source), node(&disk.to_string()));
        let mode = match policy {
            Policy::WriteThrough => 0,
            Policy::WriteAround => 1,
            Policy::Writeback => {
                let text = format!("s {source} {cache} {WRITECACHE_BLOCK} 0");
                return Ok(Target { start: 0, length, kind: WRITECACHE.into(), text });
            }
        };
        if size < RAPIDDISK_CACHE_MIN {
            return Err(Error::Conflict(format!("{disk} is too small for a cache; it takes 2 MiB")));
        }
        let text = format!("{source} {cache} {} {mode}", size / block::SECTOR);
        Ok(Target { start: 0, length, kind: RAPIDDISK_CACHE.into(), text })
    }

    /// The name that `create_cache` would take for it.
    fn name_below_dev(&self, name: &str) -> String {
        match block::mapped_name(&self.root, name) {
            Some(name) => format!("mapper/{name}"),
            None => name.replace('!', "/"),
        }
    }

    fn write_start(&self, disk: DiskName, bytes: &[u8]) -> Result<()> {
        block::open(&self.root, &self.existing(disk)?.device, Access::ClaimWrite)
            .and_then(|disk| block::write_start(&disk, bytes))
            .map_err(Error::kernel(format!("cannot write the first block of {disk}")))
    }

    /// Writes nothing where nothing has changed: a block that was never written
    /// holds no memory.
    fn restore_start(&self, disk: DiskName, before: &[u8]) -> Result<()> {
        let mut now = vec![0; before.len()];
        block::open(&self.root, &self.existing(disk)?.device, Access::Read)
            .and_then(|disk| block::read_start(&disk, &mut now))
            .map_err(Error::kernel(format!("cannot read the first block of {disk}")))?;
        if now == before { Ok(()) } else { self.write_start(disk, before) }
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

fn tell(name: &CacheName, done: &str, outcome: Result<()>) -> String {
    match outcome {
        Ok(()) => format!("{name}: {done}"),
        Err(error) => format!("{name}: not {done}: {error}"),
    }
}

/// Identifies a mapping as made here, whatever its name.
fn uuid(name: &CacheName) -> String {
    format!("rapiddiskd-{name}")
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

/// What the cache's target reports. A mapping with such a name that has another
/// target is no cache.
pub(super) fn report(control: &Control, name: &CacheName) -> Result<String> {
    let kind = if name.policy() == Policy::Writeback { WRITECACHE } else { RAPIDDISK_CACHE };
    match control.report(name.as_dm(), Report::Status) {
        Ok(targets) => match &targets[..] {
            [target] if target.kind == kind => Ok(target.text.clone()),
            _ => Err(no_cache(name)),
        },
        Err(error) if dm::is_missing(&error) => Err(no_cache(name)),
        Err(error) => Err(error.into()),
    }
}

/// Reads the block in which a writecache keeps its superblock. Refused where there
/// is one, whatever the disk is to be now: it may hold data that the source of that
/// cache, which is not named in it, has not.
fn first_block(disk: DiskName, claim: &File) -> Result<Vec<u8>> {
    let mut block = vec![0; WRITECACHE_BLOCK as usize];
    block::read_start(claim, &mut block)?;
    if block.starts_with(&WRITECACHE_MAGIC) {
        return Err(Error::Conflict(format!(
            "{disk} may still hold unwritten data of an earlier writeback cache that was not removed by this \
             service; flush {disk} first if that data is of no use any more"
        )));
    }
    Ok(block)
}

fn exists_already(name: &CacheName) -> Error {
    Error::Conflict(format!("{name} exists already; remove it first"))
}

/// Somebody else was quicker than the look whether the name is free.
fn made_meanwhile(name: &CacheName, error: kernel::Error) -> Error {
    match error.is(Errno::BUSY) {
        true => exists_already(name),
        false => Error::Kernel(format!("cannot make {name}"), error),
    }
}

/// Has all data of a writeback cache written to its source.
fn write_back(control: &Control, name: &CacheName) -> Result<()> {
    let what = || format!("cannot write the data of {name} to its source; it stays mapped");
    control.message(name.as_dm(), "flush").map_err(Error::kernel(what()))?;
    // What is written from here on is flushed by the suspension.
    control.message(name.as_dm(), "flush_on_suspend").map_err(Error::kernel(what()))
}

/// Suspends a writeback cache and makes sure that it holds no data any more.
fn suspend_clean(control: &Control, name: &CacheName) -> Result<()> {
    control.suspend(name.as_dm()).map_err(Error::kernel(format!("cannot suspend {name}")))?;
    let state = stats::writecache(&report(control, name)?)?;
    let count = |field| state.iter().find(|(name, _)| *name == field).map_or(0, |(_, count)| *count);
    if count("errors") == 0 && count("num_free_blocks") == count("num_blocks") {
        return Ok(());
    }
    Err(Error::Kernel(
        format!("cannot write the data of {name} to its source; it stays mapped"),
        kernel::Error::new("writecache status", &Errno::IO.into()),
    ))
}

fn load_refused(control: &Control, target: &Target, name: &CacheName, error: kernel::Error) -> Error {
    // The kernel loads a target's module by itself where it can.
    let is_there = control.target_types().is_ok_and(|types| types.contains(&target.kind));
    if !is_there {
        let module = if target.kind == WRITECACHE { "dm-writecache" } else { RAPIDDISK_CACHE };
        return Error::Unavailable(format!(
            "the kernel has no target {}; load its module with: modprobe {module}",
            target.kind
        ));
    }
    if error.is(Errno::BUSY) {
        return Error::Conflict(format!(
            "{name} cannot be mapped: its source or RAM disk was taken meanwhile"
        ));
    }
    Error::Kernel(format!("cannot map {name}"), error)
}
