//! device-mapper, spoken to directly through `/dev/mapper/control`
//! (`linux/dm-ioctl.h`; no libdevmapper). One function owns the ioctl; each
//! command is a short wrapper that says which flags it allows.

mod buffer;
mod name;

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

pub use buffer::{Listed, Target};
pub use name::{NAME_MAX, Name};

use super::block::Dev;
use super::{Error, Result, Root, room_for};
use buffer::{Buffer, HEADER, Subject};

/// Longest UUID, in bytes (`DM_UUID_LEN` less the NUL).
pub const UUID_MAX: usize = 128;

/// Room for an answer at first, and the most it is ever given, in bytes.
const FIRST_SIZE: usize = 4 << 10;
const LAST_SIZE: usize = 16 << 20;

/// The least bytes of a device in a list (`struct dm_name_list` with a short name).
const LISTED_SIZE: usize = 24;

// Flags of `struct dm_ioctl`.
const SUSPEND: u32 = 1 << 1;
const STATUS_TABLE: u32 = 1 << 4;
const ACTIVE_PRESENT: u32 = 1 << 5;
const INACTIVE_PRESENT: u32 = 1 << 6;
const BUFFER_FULL: u32 = 1 << 8;
const NOFLUSH: u32 = 1 << 11;
/// In a list: with the UUIDs (`DM_UUID_FLAG`).
const LIST_UUIDS: u32 = 1 << 14;

/// Upper half of `event_nr`: tells udev's rules that the event comes from
/// somebody who made the change (`DM_UDEV_PRIMARY_SOURCE_FLAG`).
const UDEV_PRIMARY_SOURCE: u32 = 0x40 << 16;

/// For a device that is a part of another: udev's rules make no node of its name, do not look at its
/// contents, and run nothing else for it (`DM_UDEV_DISABLE_DM_RULES_FLAG`, `..._SUBSYSTEM_...`,
/// `..._DISK_...` and `..._OTHER_RULES_FLAG`).
const UDEV_PART: u32 = UDEV_PRIMARY_SOURCE | 0xf << 16;

/// The commands in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    ListDevices = 2,
    DevCreate = 3,
    DevRemove = 4,
    DevSuspend = 6,
    DevStatus = 7,
    TableLoad = 9,
    TableClear = 10,
    TableDeps = 11,
    TableStatus = 12,
    ListVersions = 13,
    TargetMsg = 14,
}

/// The state of a mapped device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its device number.
    pub dev: Dev,
    /// Its UUID, empty where it was made without one.
    pub uuid: String,
    /// Whether it has a table in use.
    pub active: bool,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Whether a table is loaded that the next resumption puts to use.
    pub has_next: bool,
    /// How often it is open: in programs, mounted, in other mappings.
    pub open_count: u32,
}

/// Which text of the targets is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// What they count and report now.
    Status,
    /// The parameters they were made with.
    Table,
}

/// An open `/dev/mapper/control`.
pub struct Control {
    file: File,
    event: u32,
}

impl Control {
    /// Opens the control node. ENOENT, ENODEV or ENXIO: the driver is not loaded.
    pub fn open(root: &Root) -> Result<Control> {
        let path = root.path("dev/mapper/control");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| Error::new(format!("open {}", path.display()), &error))?;
        let event = if has_udev(root)? { UDEV_PRIMARY_SOURCE } else { 0 };
        Ok(Control { file, event })
    }

    /// The same, for devices that are parts of others: udev leaves them alone.
    pub fn for_parts(mut self) -> Control {
        self.event = if self.event == 0 { 0 } else { UDEV_PART };
        self
    }

    /// All mapped devices.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let answer = payload(&self.call(Command::ListDevices, LIST_UUIDS, &Subject::Driver, &[])?)?;
        room_for(answer.len() / LISTED_SIZE)?;
        Ok(buffer::parse_list(&answer))
    }

    /// The target types the kernel has at the moment.
    pub fn target_types(&self) -> Result<Vec<String>> {
        let answer = self.call(Command::ListVersions, 0, &Subject::Driver, &[])?;
        Ok(buffer::parse_versions(&payload(&answer)?))
    }

    /// Makes a device without a table, with a UUID of at most [`UUID_MAX`] bytes.
    /// EBUSY: the name or the UUID is taken.
    pub fn create(&self, name: &Name, uuid: &str) -> Result<Dev> {
        Ok(self.call(Command::DevCreate, 0, &Subject::New(name, uuid), &[])?.dev())
    }

    /// Loads a table; [`Control::resume`] puts it to use.
    pub fn load(&self, name: &Name, targets: &[Target]) -> Result<()> {
        let subject = Subject::Table(name, targets.len() as u32);
        self.call(Command::TableLoad, 0, &subject, &buffer::table(targets)).map(drop)
    }

    /// Forgets a table that was loaded and is not in use.
    pub fn clear(&self, name: &Name) -> Result<()> {
        self.call(Command::TableClear, 0, &Subject::Name(name), &[]).map(drop)
    }

    /// Puts a loaded table to use, or ends a suspension.
    pub fn resume(&self, name: &Name) -> Result<()> {
        self.call(Command::DevSuspend, 0, &Subject::Name(name), &[]).map(drop)
    }

    /// Suspends: waits until all I/O under way is done, then holds back what comes.
    pub fn suspend(&self, name: &Name) -> Result<()> {
        self.call(Command::DevSuspend, SUSPEND, &Subject::Name(name), &[]).map(drop)
    }

    /// Removes a device that nobody has open. EBUSY: somebody has.
    pub fn remove(&self, name: &Name) -> Result<()> {
        self.call(Command::DevRemove, 0, &Subject::Name(name), &[]).map(drop)
    }

    /// The state of a device. ENXIO: there is none of that name.
    pub fn info(&self, name: &Name) -> Result<Info> {
        let answer = self.call(Command::DevStatus, 0, &Subject::Name(name), &[])?;
        Ok(Info {
            dev: answer.dev(),
            uuid: answer.uuid(),
            active: answer.flags() & ACTIVE_PRESENT != 0,
            suspended: answer.flags() & SUSPEND != 0,
            has_next: answer.flags() & INACTIVE_PRESENT != 0,
            open_count: answer.open_count(),
        })
    }

    /// The devices that the table in use stands on, in the kernel's order.
    pub fn deps(&self, name: &Name) -> Result<Vec<Dev>> {
        let answer = self.call(Command::TableDeps, 0, &Subject::Name(name), &[])?;
        Ok(buffer::parse_deps(&payload(&answer)?))
    }

    /// What the targets report. This never makes a target flush, so that it does not wait for a disk.
    pub fn report(&self, name: &Name, report: Report) -> Result<Vec<Target>> {
        let table = if report == Report::Table { STATUS_TABLE } else { 0 };
        let answer = self.call(Command::TableStatus, table | NOFLUSH, &Subject::Name(name), &[])?;
        Ok(buffer::parse_status(&payload(&answer)?, answer.target_count()))
    }

    /// Sends a message to the first target.
    pub fn message(&self, name: &Name, text: &str) -> Result<()> {
        self.call(Command::TargetMsg, 0, &Subject::Name(name), &buffer::message(0, text)).map(drop)
    }

    /// The one place that does the ioctl. Asks again with a larger buffer where
    /// the answer did not fit, which happens to commands that only read.
    fn call(&self, command: Command, flags: u32, subject: &Subject<'_>, payload: &[u8]) -> Result<Buffer> {
        let version = if command == Command::TargetMsg { [4, 2, 0] } else { [4, 0, 0] };
        let event = match command {
            Command::DevCreate | Command::DevRemove | Command::DevSuspend => self.event,
            _ => 0,
        };
        let mut size = FIRST_SIZE;
        loop {
            let failed = |errno: Errno| Error::new(describe(command, subject), &errno.into());
            let mut buffer = Buffer::new(version, flags, event, subject, payload, size).map_err(failed)?;
            let request = Request { command, words: buffer.words() };
            // SAFETY: `Request` points to a buffer whose length it states at byte
            // 12, as the driver demands; the driver writes inside that length only.
            unsafe { rustix::ioctl::ioctl(self.file.as_fd(), request) }.map_err(failed)?;
            if buffer.flags() & BUFFER_FULL == 0 {
                return Ok(buffer);
            }
            if size >= LAST_SIZE {
                return Err(Error::strange(describe(command, subject)));
            }
            size *= 4;
        }
    }
}

fn payload(answer: &Buffer) -> Result<Vec<u8>> {
    answer.payload().map_err(|errno| Error::new("device-mapper's answer", &errno.into()))
}

fn describe(command: Command, subject: &Subject<'_>) -> String {
    match subject {
        Subject::Driver => format!("device-mapper {command:?}"),
        Subject::Name(name) | Subject::New(name, _) | Subject::Table(name, _) => {
            format!("device-mapper {command:?} of {name}")
        }
    }
}

/// Where the node of a mapping is: `/dev/mapper/NAME`.
pub fn node(root: &Root, name: &Name) -> PathBuf {
    root.path("dev/mapper").join(name.as_str())
}

/// The names in `/dev/mapper`.
pub fn nodes(root: &Root) -> Result<Vec<String>> {
    root.names("dev/mapper")
}

/// Whether udev manages `/dev` here.
pub fn has_udev(root: &Root) -> Result<bool> {
    root.exists("run/udev/control")
}

/// Whether the error says that there is no device of that name.
pub fn is_missing(error: &Error) -> bool {
    error.is(Errno::NXIO)
}

struct Request<'a> {
    command: Command,
    words: &'a mut [u64],
}

// SAFETY: the opcode is `_IOWR(0xfd, command, struct dm_ioctl)` and the pointer
// is to a buffer at least that long, aligned to 8 bytes, which outlives the call.
unsafe impl Ioctl for Request<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<[u8; HEADER]>(0xfd, self.command as u8)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.words.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opcodes_are_the_kernels() {
        let request = Request { command: Command::TableStatus, words: &mut [] };
        // _IOWR(0xfd, 12, 312)
        assert_eq!(request.opcode(), 0xc138_fd0c);
    }
}
