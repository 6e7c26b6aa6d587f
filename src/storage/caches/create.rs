//! Making a cache: what was asked for is resolved, checked under the locks, and built.

use std::fs::File;

use super::contents::{self, Contents};
use super::mapping::{self, uuid};
use super::target::{New, Source, Target};
use super::{Caches, NewCache, node};
use crate::kernel::block::{self, Dev, Mode, SECTOR};
use crate::kernel::dm::{self, Control};
use crate::storage::disks::Device;
use crate::storage::error::{Cannot, Error, Result};
use crate::storage::locks::Key;
use crate::storage::names::{BlockSize, CacheName, DiskName, Part, Policy, SourceName, unmangled};
use crate::storage::undo::Undo;
use crate::storage::usage;
use crate::storage::wait::retry_busy;

/// Bytes at the start of a RAM disk that may hold a superblock.
const START: usize = 4096;

/// What was asked for, as the kernel had it before the locks were taken.
struct Wanted<'a> {
    name: CacheName,
    disk: DiskName,
    source: &'a SourceName,
    policy: Policy,
    /// The size of the cache's blocks, if it was given.
    block: Option<BlockSize>,
    /// The source's device number, and the kernel's name of it.
    device: (Dev, String),
    target: &'a dyn Target,
    control: Control,
}

/// What can be built: nothing stands in the way.
struct Checked<'a> {
    disk: Device<'a>,
    source: Source,
    /// Bytes in a block of the cache.
    block: u64,
    /// The claim on the RAM disk. It ends before the table is loaded, which claims the disk itself.
    claim: File,
    /// The first bytes of the RAM disk.
    start: Vec<u8>,
}

impl Caches {
    /// Maps `disk` as a cache in front of `source`. The blocks of a writeback cache have the size `block`, or
    /// the one that suits what is on the source.
    pub fn create(
        &self,
        disk: DiskName,
        source: &SourceName,
        policy: Policy,
        block: Option<BlockSize>,
    ) -> Result<NewCache> {
        let wanted = Wanted { block, ..self.resolve(disk, source, policy)? };
        let mut keys = vec![
            Key::disk(disk),
            Key::Device(wanted.device.1.clone()),
            // The source may be a mapping, which others know by its own name.
            Key::Mapping(usage::shown_name(&self.machine.root, &wanted.device.1)?),
            Key::Mapping(wanted.name.to_string()),
        ];
        // Or a partition, of which another call may take the whole disk.
        keys.extend(self.whole_disk(wanted.device.0)?.map(Key::Device));
        let _held = self.machine.hold(keys)?;
        let checked = self.check(&wanted)?;
        self.build(wanted, checked)
    }

    fn resolve<'a>(&'a self, disk: DiskName, source: &'a SourceName, policy: Policy) -> Result<Wanted<'a>> {
        let name = CacheName::of(policy, source).ok_or_else(|| {
            Error::Invalid(format!("the name of {source} is too long for a cache in front of it"))
        })?;
        let device = self.source_device(source)?;
        // Without the RAM disk this driver is of no use.
        let control = mapping::control(&self.machine.root)
            .or_else(|error| self.disks.existing(disk).and(Err(error)))?;
        let target = self.targets.choose(policy, &control)?;
        Ok(Wanted { name, disk, source, policy, block: None, device, target, control })
    }

    fn check<'a>(&'a self, wanted: &Wanted<'a>) -> Result<Checked<'a>> {
        let (root, name) = (&self.machine.root, &wanted.name);
        let disk = self.disks.repaired(wanted.disk)?;
        if let Some(why) = disk.driver.why_no_cache() {
            return Err(Error::Conflict(format!("{} {why}", disk.name)));
        }
        self.disks.check_node(&disk)?;
        // The kernel gives the numbers of loop devices and mappings to others again.
        if self.source_device(wanted.source)? != wanted.device {
            return Err(Error::Conflict(format!("{} has just been changed; try again", wanted.source)));
        }
        if mapping::info_of(&wanted.control, name.as_dm())?.is_some() {
            return Err(self.name_taken(wanted));
        }
        wanted.target.remove_leftovers(root, name)?;
        node::check_place(root, name)?;
        if block::is_read_only(root, disk.dev).cannot(format_args!("look at {}", disk.name))? {
            return Err(Error::Conflict(format!("{} is locked; unlock it first", disk.name)));
        }
        let mode = if wanted.target.has_superblock() { Mode::ClaimWrite } else { Mode::Claim };
        let claim = usage::claim_unused(root, disk.dev, disk.name, mode)?;
        let source = self.usable_source(wanted, &disk)?;
        let block = wanted.target.block(&disk, &source, wanted.block)?;
        let mut start = vec![0; START];
        block::read_start(&claim, &mut start).cannot(format_args!("read {}", disk.name))?;
        self.targets.iter().try_for_each(|target| target.check_start(disk.name, &start))?;
        Ok(Checked { disk, source, block, claim, start })
    }

    /// The refusal of a cache whose name is taken. Two sources whose names have the same last part would get
    /// the same cache name: then the refusal says how to name this one otherwise.
    fn name_taken(&self, wanted: &Wanted<'_>) -> Error {
        let root = &self.machine.root;
        let (name, (dev, device)) = (&wanted.name, &wanted.device);
        let there = match self.mapped(&wanted.control, name) {
            Ok(there) if there.devices.source != *dev => there,
            _ => return mapping::exists_already(name),
        };
        let other = self.source_name(name, there.devices.source).unwrap_or_default();
        let own = match block::mapped_name(root, device) {
            Ok(Some(mapped)) => format!("mapper/{mapped}"),
            _ => device.replace('!', "/"),
        };
        let gets = |own: &SourceName| CacheName::of(wanted.policy, own);
        let advice = match SourceName::parse(&own).filter(|own| gets(own).as_ref() != Some(name)) {
            None => "that source can only be cached once this cache is removed".to_owned(),
            Some(own) => format!("ask for {} as {}", wanted.source, own.encoded()),
        };
        Error::Conflict(format!("{name} exists already, in front of {other}; {advice}"))
    }

    fn build(&self, wanted: Wanted<'_>, checked: Checked<'_>) -> Result<NewCache> {
        let root = &self.machine.root;
        let Wanted { name, target, control, policy, .. } = &wanted;
        let Checked { disk, source, block, claim, start } = checked;
        let for_parts = mapping::control(root)?.for_parts();
        Undo::run(|undo| {
            if target.has_superblock() {
                // The target makes a superblock where it finds none.
                if start.iter().any(|&byte| byte != 0) {
                    block::write_start(&claim, &[0; START])
                        .cannot(format_args!("clear the first block of {}", disk.name))?;
                }
                undo.push(format!("clearing the first block of {}", disk.name), || {
                    self.restore_start(&disk, &start)
                });
            }
            drop(claim);
            let new =
                New { root, control: &for_parts, name, disk: &disk, source: &source, block, policy: *policy };
            let table = target.build(&new, undo)?;
            let dev = control
                .create(name.as_dm(), &uuid(name.as_dm()))
                .map_err(|error| mapping::not_made(name, error))?;
            undo.push(format!("making {name}"), || {
                retry_busy(|| control.remove(name.as_dm())).cannot(format_args!("remove {name}"))
            });
            control
                .load(name.as_dm(), &[table])
                .map_err(|error| self.targets.load_refused(root, control, *target, name, error))?;
            control.resume(name.as_dm()).cannot(format_args!("start {name}"))?;
            undo.push(format!("making /dev/mapper/{name}"), || node::remove(root, name));
            node::make(root, name, dev)
        })?;
        Ok(NewCache { driver: target.name(), block, name: wanted.name })
    }

    /// The device number of a source, and the kernel's name of it.
    fn source_device(&self, source: &SourceName) -> Result<(Dev, String)> {
        let root = &self.machine.root;
        let look = format!("look at {source}");
        let node = |name: &SourceName| block::dev_of_node(&root.path("dev").join(name.as_str()));
        let mut dev = node(source).cannot(&look)?;
        if let (None, Some(name)) = (dev, source.of_sysfs()) {
            dev = node(&name).cannot(&look)?;
        }
        if let (None, Some(name)) = (dev, source.mapping()) {
            dev = self.mapping_named(name)?;
        }
        let name = dev.map_or(Ok(None), |dev| block::name_of(root, dev)).cannot(&look)?;
        let found = dev
            .zip(name)
            .ok_or_else(|| Error::NotFound(format!("there is no block device /dev/{source}")))?;
        let mapped = block::mapped_name(root, &found.1).cannot(&look)?;
        if let Some(cache) = Part::cache_of(&mapped.unwrap_or_default()) {
            return Err(Error::Invalid(format!("{source} is a part of the cache {cache}")));
        }
        if self.disks.owns(&found.1)? {
            return Err(Error::Invalid(format!(
                "{source} is a RAM disk itself, or a part of one; a cache goes in front of a slower device"
            )));
        }
        Ok(found)
    }

    /// The kernel's name of the disk that a partition is on.
    fn whole_disk(&self, partition: Dev) -> Result<Option<String>> {
        let root = &self.machine.root;
        let disk = block::whole(root, partition)
            .and_then(|disk| disk.map_or(Ok(None), |disk| block::name_of(root, disk)));
        disk.cannot("look for the disk of a partition")
    }

    /// The mapping of this name, however its node in `/dev/mapper` is named: udev and libdevmapper write some
    /// characters in another way, and without them there may be none.
    fn mapping_named(&self, name: &str) -> Result<Option<Dev>> {
        let Some(control) = mapping::if_loaded(&self.machine.root)? else { return Ok(None) };
        let all = control.list().cannot("list the mappings")?;
        let same = all.iter().find(|listed| listed.name == name);
        let found = same.or_else(|| all.iter().find(|listed| unmangled(&listed.name) == unmangled(name)));
        Ok(found.map(|listed| listed.dev))
    }

    /// The source, if nobody uses it and a cache on this RAM disk can stand in front of it.
    fn usable_source(&self, wanted: &Wanted<'_>, disk: &Device<'_>) -> Result<Source> {
        let (root, (dev, device)) = (&self.machine.root, wanted.device.clone());
        let look = format!("look at {}", wanted.source);
        let logical = |dev| Ok(block::logical_block_size(root, dev).cannot(&look)?.unwrap_or(SECTOR));
        let block = logical(dev)?;
        let least = block.max(logical(disk.dev)?);
        let sectors = block::sectors(root, dev).cannot(&look)?.unwrap_or(0);
        let mut source =
            Source { name: wanted.source.clone(), dev, device, sectors, block, blocks: least..=least };
        let mapped = block::mapped_name(root, &source.device).cannot(&look)?;
        if let Some(mapping) = mapped.as_deref().and_then(dm::Name::new) {
            mapping::check_running(&wanted.control, &mapping)?;
        }
        if block::is_read_only(root, dev).cannot(&look)? {
            return Err(source.refused("is read-only; make it writable first"));
        }
        if source.sectors == 0 {
            return Err(source.refused("has no medium or no size"));
        }
        usage::check_node(root, dev, &source.device, wanted.source)?;
        wanted.target.check_source(&source)?;
        let claim = usage::claim_unused(root, dev, wanted.source, Mode::Claim)?;
        let mut start = vec![0; (sectors * SECTOR).min(contents::START) as usize];
        block::read_start(&claim, &mut start).cannot(format_args!("read {}", source.name))?;
        let contents = Contents::of(&start, block);
        if least > contents.block {
            return Err(source.refused(format_args!(
                "holds {}, which cannot be used with the blocks of {}, which have {least} bytes",
                contents.what, disk.name
            )));
        }
        source.blocks = least..=contents.block;
        Ok(source)
    }

    /// Gives a RAM disk its first bytes back. Nothing is written where nothing has changed: a block
    /// that was never written holds no memory.
    fn restore_start(&self, disk: &Device<'_>, before: &[u8]) -> Result<()> {
        let root = &self.machine.root;
        let device = self.disks.existing(disk.name)?.device;
        let mut now = vec![0; before.len()];
        block::open(root, &device, Mode::Read)
            .and_then(|disk| block::forget_cached(&disk).and_then(|()| block::read_start(&disk, &mut now)))
            .cannot(format_args!("read the first block of {}", disk.name))?;
        if now == before {
            return Ok(());
        }
        block::open(root, &device, Mode::ClaimWrite)
            .and_then(|disk| block::write_start(&disk, before))
            .cannot(format_args!("write the first block of {}", disk.name))
    }
}
