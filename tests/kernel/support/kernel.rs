//! The state of the kernel without asking the daemon: from sysfs, device-mapper and the
//! usual programs.

use std::collections::BTreeMap;
use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rapiddiskd::kernel::Root;
use rapiddiskd::kernel::dm::{Control, Name, Report};

use rustix::cmsg_space;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};

use super::data::{PAGE, fingerprint};

/// Runs a shell command that must succeed, and gives what it printed.
pub fn sh(command: &str) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Whether a shell command succeeds.
pub fn works(command: &str) -> bool {
    output(command).status.success()
}

fn output(command: &str) -> Output {
    let mut sh = Command::new("sh");
    sh.args(["-c", command])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"))
}

/// A shell command in the background, ended when dropped.
pub struct Process(Child);

impl Process {
    pub fn start(command: &str) -> Process {
        let mut sh = Command::new("sh");
        let child = sh.args(["-c", command]).stdin(Stdio::null()).spawn();
        Process(child.unwrap_or_else(|error| panic!("{command}: {error}")))
    }

    /// `sleep` with these redirections, which the shell has made by now.
    pub fn asleep(redirections: &str) -> Process {
        Process::start(&format!("exec sleep 1000 {redirections}")).until_asleep()
    }

    /// Waits for a command that ends with `exec sleep`: all before it is done, and the process has that name.
    pub fn until_asleep(self) -> Process {
        let name = format!("/proc/{}/comm", self.pid());
        eventually("the process sleeps", || sys(&name).is_some_and(|name| name == "sleep"));
        self
    }

    /// The process id of the command, if the command was started with `exec`.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        settle_after_use();
    }
}

/// udev looks into what was open for writing, and for that time is a user of it.
fn settle_after_use() {
    if !std::thread::panicking() {
        settle();
    }
}

/// The first page of a device, mapped by this process, whose descriptor is closed: no file in `/proc` shows that
/// the device is open. Unmapped when dropped.
pub struct Mapped(*mut std::ffi::c_void);

impl Mapped {
    pub fn new(path: &str) -> Mapped {
        let file = fs::File::options().read(true).write(true).open(path).expect(path);
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping that is not in the way of another.
        Mapped(unsafe { mmap(std::ptr::null_mut(), PAGE, protection, flags, &file, 0) }.expect("mapped"))
    }

    /// Writes a byte there, which gets to the device when the kernel wants or with [`rustix::fs::sync`].
    pub fn put(&self, byte: u8) {
        // SAFETY: the page stays mapped until this is dropped.
        unsafe { self.0.cast::<u8>().write_volatile(byte) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: nobody uses the page any more.
        unsafe { munmap(self.0, PAGE) }.expect("unmapped");
        settle_after_use();
    }
}

/// A descriptor of a device on its way through a socket, which nobody has received. Closed when dropped.
pub struct Sent(Option<(OwnedFd, OwnedFd)>);

impl Sent {
    pub fn new(path: &str) -> Sent {
        let file = fs::File::options().read(true).write(true).open(path).expect(path);
        let ends = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .expect("a socket");
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        let descriptors = [file.as_fd()];
        assert!(message.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let sent = sendmsg(&ends.0, &[IoSlice::new(b"x")], &mut message, SendFlags::empty());
        assert_eq!(sent, Ok(1));
        Sent(Some(ends))
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.0 = None;
        settle_after_use();
    }
}

/// A file system on a disk, mounted with these options in a mount namespace of its own, where
/// the daemon cannot see it. Unmounted when dropped.
pub fn mounted_out_of_sight(disk: &str, options: &str) -> Process {
    sh(&format!("mke2fs -q -F -O ^has_journal /dev/{disk}"));
    let command =
        format!("exec unshare -m sh -c 'mount -t ext4 {options} /dev/{disk} /mnt && exec sleep 1000'");
    Process::start(&command).until_asleep()
}

/// The text of a file of procfs or sysfs, without the white space around it.
pub fn sys(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Writes to a file of procfs or sysfs.
pub fn put(path: &str, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("write {text:?} to {path}: {error}"));
}

pub fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Where the files of RAM disks behind loop devices are.
pub const POOL: &str = "/run/rapiddiskd/disks";

/// Whether this guest is without RapidDisk's modules.
pub fn is_stock() -> bool {
    let is_stock = |mode: String| ["kernel-stock", "kernel-small"].contains(&&*mode);
    std::env::var("RAPIDDISKD_GUEST").is_ok_and(is_stock) || is_brd()
}

/// Whether the RAM disks of this guest are those of brd.
pub fn is_brd() -> bool {
    std::env::var("RAPIDDISKD_GUEST").is_ok_and(|mode| mode == "kernel-brd")
}

/// What makes RAM disks in this guest.
pub fn ram_driver() -> &'static str {
    match (is_stock(), is_brd()) {
        (false, _) => "rapiddisk",
        (true, true) => "brd",
        (true, false) => "loop",
    }
}

/// The policies that caches have in this guest, writeback last.
pub fn policies() -> &'static [&'static str] {
    if is_stock() { &["write-through", "writeback"] } else { &["write-through", "write-around", "writeback"] }
}

/// What makes write-through caches in this guest.
pub fn cache_driver() -> &'static str {
    if is_stock() { "dm-cache" } else { "rapiddisk-cache" }
}

/// The kernel's name of a disk. A RAM disk behind a loop device or a mapping has that one's name there.
pub fn device(disk: &str) -> String {
    let over = |(_, file): &(String, String)| file.strip_prefix(POOL) == Some(&format!("/{disk}"));
    let found = loops().into_iter().find(over).map(|(device, _)| device).or_else(|| mapped(disk));
    found.unwrap_or_else(|| disk.to_owned())
}

/// The kernel's name of the mapping with this name.
fn mapped(name: &str) -> Option<String> {
    let is_it = |device: &String| sys(&format!("/sys/block/{device}/dm/name")).as_deref() == Some(name);
    names("/sys/block").into_iter().filter(|device| device.starts_with("dm-")).find(is_it)
}

/// The disk of brd that a RAM disk stands on.
pub fn below(disk: &str) -> Option<String> {
    let device = mapped(disk)?;
    names(&format!("/sys/block/{device}/slaves")).into_iter().find(|name| name.starts_with("ram"))
}

/// The disk of zram that a RAM disk stands on.
pub fn below_in_zram(disk: &str) -> Option<String> {
    let device = mapped(disk)?;
    names(&format!("/sys/block/{device}/slaves")).into_iter().find(|name| name.starts_with("zram"))
}

/// Bytes that are stored in a disk of zram.
pub fn stored(zram: &str) -> Option<u64> {
    sys(&format!("/sys/block/{zram}/mm_stat"))?.split_whitespace().next()?.parse().ok()
}

/// The attached loop devices and their files.
pub fn loops() -> Vec<(String, String)> {
    let file = |name: String| Some((name.clone(), sys(&format!("/sys/block/{name}/loop/backing_file"))?));
    names("/sys/block").into_iter().filter_map(file).collect()
}

/// An attribute of a disk in sysfs.
pub fn attribute(disk: &str, name: &str) -> Option<String> {
    sys(&format!("/sys/block/{}/{name}", device(disk)))
}

/// The devices stacked on a disk.
pub fn holders(disk: &str) -> Vec<String> {
    names(&format!("/sys/block/{}/holders", device(disk)))
}

/// The size of a disk in bytes, as the kernel has it.
pub fn size(disk: &str) -> Option<u64> {
    Some(attribute(disk, "size")?.parse::<u64>().ok()? * 512)
}

/// The names of all RAM disks in the order of their numbers. A name that two disks have is
/// there twice.
pub fn ram_disks() -> Vec<String> {
    let number = |name: &String| name.strip_prefix("rd")?.parse::<u32>().ok();
    let files = loops().into_iter().filter_map(|(_, file)| Some(file.strip_prefix(POOL)?[1..].to_owned()));
    let all = names("/sys/block").into_iter().chain(files).chain(all_mappings());
    let mut disks: Vec<_> = all.filter(|name| number(name).is_some()).collect();
    disks.sort_by_key(number);
    disks
}

/// The memory that a RAM disk holds, in bytes: from the module's list, or from its file. Of one of zram, what is stored
/// in it.
pub fn used(disk: &str) -> Option<u64> {
    if let Ok(file) = fs::metadata(format!("{POOL}/{disk}")) {
        return Some(file.blocks() * 512);
    }
    if let Some(below) = below_in_zram(disk) {
        return stored(&below);
    }
    if let Some(below) = below(disk) {
        let pages: u64 = sys(&format!("/sys/kernel/debug/ramdisk_pages/{below}"))?.parse().ok()?;
        // One is the label.
        return Some(pages.saturating_sub(1) * PAGE as u64);
    }
    let listed = sys("/sys/kernel/rapiddisk/devices")?;
    let row = listed.lines().find(|line| line.split('\t').next() == Some(disk))?;
    row.split('\t').nth(3)?.parse().ok()
}

/// Between two looks at what is waited for.
pub const PAUSE: Duration = Duration::from_millis(20);

/// How long a test waits for what must happen, however slow the machine is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again for up to a minute.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// How many threads of a process hang in the kernel, where no signal ends them.
pub fn held(pid: u32) -> u64 {
    let task = format!("/proc/{pid}/task");
    let is_held = |thread: &String| {
        sys(&format!("{task}/{thread}/status")).is_some_and(|status| status.contains("State:\tD"))
    };
    names(&task).iter().filter(|thread| is_held(thread)).count() as u64
}

pub fn has_udev() -> bool {
    Path::new("/run/udev/control").exists()
}

/// Waits until udev has dealt with everything that happened so far.
pub fn settle() {
    if has_udev() {
        // A busy udev may close the connection of one that asks ("Broken pipe").
        eventually("udev has settled", || works("udevadm settle"));
    }
}

/// device-mapper's control node, with the project's own ioctls; `None` if device-mapper is
/// not loaded.
pub fn dm() -> Option<Control> {
    Control::open(&Root::new("/")).ok()
}

/// Makes a mapping with this table, and the node of it where udev does not make one.
pub fn map(name: &str, table: &str) {
    sh(&format!("echo '{table}' | dmsetup create {name}"));
    settle();
    sh(&format!("[ -e /dev/mapper/{name} ] || ln -s ../{} /dev/mapper/{name}", dm_of(name)));
}

/// The device of a mapping, such as `dm-0`.
pub fn dm_of(mapping: &str) -> String {
    let number = format!("$(dmsetup info -c --noheadings -o major,minor {mapping})");
    sh(&format!("basename $(readlink /sys/dev/block/{number})"))
}

/// The names of all mappings, without those that are parts of a cache that exists, and without RAM disks.
pub fn mappings() -> Vec<String> {
    let all = all_mappings();
    let is_part = |name: &str| {
        let source = name.strip_prefix("rc-wm_").or(name.strip_prefix("rc-wd_"));
        source.is_some_and(|source| all.contains(&format!("rc-wt_{source}")))
    };
    let is_disk = |name: &str| {
        name.strip_prefix("rd").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    all.iter().filter(|name| !is_part(name) && !is_disk(name)).cloned().collect()
}

/// The names of all mappings.
pub fn all_mappings() -> Vec<String> {
    let listed = dm().map_or(Vec::new(), |dm| dm.list().expect("list of mappings"));
    let mut names: Vec<_> = listed.into_iter().map(|listed| listed.name).collect();
    names.sort();
    names
}

/// The type and the report of a mapping's only target.
pub fn target(mapping: &str, report: Report) -> (String, String) {
    let name = Name::new(mapping).expect("a name");
    let targets = dm().expect("device-mapper").report(&name, report).expect("report");
    assert_eq!(targets.len(), 1, "{targets:?}");
    (targets[0].kind.clone(), targets[0].text.clone())
}

/// Whether a mapping is suspended.
pub fn is_suspended(mapping: &str) -> bool {
    dm().expect("device-mapper").info(&Name::new(mapping).expect("a name")).expect("info").suspended
}

/// Everything that a refused request must not change.
#[derive(Debug, PartialEq, Eq)]
pub struct State(pub BTreeMap<String, String>);

impl State {
    pub fn now() -> State {
        // What a file system still has to write would look like a change.
        rustix::fs::sync();
        settle();
        let mut state = BTreeMap::new();
        for disk in names("/sys/block") {
            let dir = format!("/sys/block/{disk}");
            // The daemon removes those that are free, in its own time. Those of brd stay.
            let is_free_loop = disk.starts_with("loop") && !Path::new(&format!("{dir}/loop")).exists();
            if is_free_loop || disk.starts_with("ram") && names(&format!("{dir}/holders")).is_empty() {
                continue;
            }
            let attribute = |name: &str| sys(&format!("{dir}/{name}")).unwrap_or_default();
            let holders = names(&format!("{dir}/holders")).join(" ");
            let text = format!("size {} ro {} holders {holders}", attribute("size"), attribute("ro"));
            state.insert(dir, text);
        }
        for disk in ram_disks() {
            // A mounted file system may write at any time, also through a cache, and so may a cache. Of one that is
            // suspended, or half-made, nothing can be read.
            let is_readable = !all_mappings().contains(&disk) || !is_suspended(&disk);
            if is_readable && !is_written_to(&disk) && Path::new(&format!("/dev/{disk}")).exists() {
                state.insert(
                    format!("{disk}'s contents"),
                    format!("{:x}", fingerprint(&format!("/dev/{disk}"))),
                );
            }
            state.insert(format!("{disk}'s memory"), used(&disk).unwrap_or_default().to_string());
        }
        for node in names("/dev/mapper") {
            let path = format!("/dev/mapper/{node}");
            state.insert(path.clone(), format!("{:?}", fs::read_link(&path).ok()));
        }
        for mapping in all_mappings() {
            state.insert(format!("mapping {mapping}"), describe(&mapping));
        }
        state.insert(POOL.into(), names(POOL).join(" "));
        state.insert("loops".into(), format!("{:?}", loops()));
        tree("/sys/kernel/config/nvmet", &mut state);
        State(state)
    }

    /// Says what differs.
    pub fn assert_unchanged(&self, request: &str) {
        let now = State::now();
        let keys: std::collections::BTreeSet<_> = self.0.keys().chain(now.0.keys()).collect();
        let differences: Vec<_> = keys
            .into_iter()
            .filter(|key| self.0.get(*key) != now.0.get(*key))
            .map(|key| format!("{key}: was {:?}, is {:?}", self.0.get(key), now.0.get(key)))
            .collect();
        assert!(differences.is_empty(), "{request} was refused and changed: {differences:#?}");
    }
}

/// Whether something above a device writes to it without being asked.
fn is_written_to(device: &str) -> bool {
    is_mounted_for_writing(device)
        || attribute(device, "dm/name").is_some_and(|name| name.starts_with("rc-wb_"))
        || holders(device).iter().any(|holder| is_written_to(holder))
}

fn is_mounted_for_writing(disk: &str) -> bool {
    let dev = format!(" {} ", attribute(disk, "dev").unwrap_or_default());
    let mounts = sys("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| {
        line.contains(&dev) && line.rsplit(' ').next().is_some_and(|options| options.starts_with("rw"))
    })
}

fn describe(mapping: &str) -> String {
    // Some names that others can give are none for the daemon.
    let Some(name) = Name::new(mapping) else { return "there".into() };
    let dm = dm().expect("device-mapper");
    let info = dm.info(&name).expect("info");
    let kinds: Vec<_> = dm.report(&name, Report::Status).expect("report");
    let kinds: Vec<_> = kinds.into_iter().map(|target| (target.kind, target.start, target.length)).collect();
    let deps = dm.deps(&name).expect("deps");
    format!("{} {} {} {} {deps:?} {kinds:?}", info.dev, info.uuid, info.active, info.suspended)
}

fn tree(path: &str, into: &mut BTreeMap<String, String>) {
    for name in names(path) {
        let path = format!("{path}/{name}");
        match fs::symlink_metadata(&path) {
            Ok(node) if node.is_dir() => {
                into.insert(path.clone(), "directory".into());
                tree(&path, into);
            }
            Ok(node) if node.is_symlink() => {
                into.insert(path.clone(), format!("{:?}", fs::read_link(&path)));
            }
            _ => {
                into.insert(path.clone(), sys(&path).unwrap_or_default());
            }
        }
    }
}
