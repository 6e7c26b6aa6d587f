//! The bytes of the device-mapper ioctls: `struct dm_ioctl` and what follows it
//! (`linux/dm-ioctl.h`). Nothing the kernel returns is trusted to lie inside the
//! buffer.

use rustix::io::Errno;

use super::name::Name;
use crate::kernel::block::Dev;

/// Bytes of `struct dm_ioctl`, after which the payload starts.
pub const HEADER: usize = 312;
const SPEC: usize = 40;

/// Where the name begins in an entry of a list (`struct dm_name_list`).
const LISTED_NAME: usize = 12;

/// `DM_NAME_LIST_FLAG_HAS_UUID` and `DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID`.
const HAS_UUID: u32 = 1;
const HAS_NO_UUID: u32 = 2;

/// One target of a table, or of a status report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// First sector of the mapping that it serves.
    pub start: u64,
    /// Number of sectors.
    pub length: u64,
    /// The target's type, such as `writecache`.
    pub kind: String,
    /// Its parameters, or what it reports.
    pub text: String,
}

/// A device in the list of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its device number.
    pub dev: Dev,
    /// Its UUID, empty where it was made without one. `None`: an older kernel, which does not list it.
    pub uuid: Option<String>,
}

/// What a request is about.
pub enum Subject<'a> {
    /// The driver as a whole.
    Driver,
    /// The device of this name.
    Name(&'a Name),
    /// A device to be made, with its UUID.
    New(&'a Name, &'a str),
    /// The device of this name, and how many targets its new table has.
    Table(&'a Name, u32),
}

/// A buffer for one ioctl, aligned to 8 bytes as the kernel's structures are.
pub struct Buffer(Vec<u64>);

impl Buffer {
    /// A request with room for an answer of `size` bytes in all. ENOMEM: there is no memory for it.
    pub fn new(
        version: [u32; 3],
        flags: u32,
        event: u32,
        subject: &Subject<'_>,
        payload: &[u8],
        size: usize,
    ) -> Result<Buffer, Errno> {
        let size = size.max(HEADER + payload.len()).next_multiple_of(8);
        let mut words = Vec::new();
        words.try_reserve_exact(size / 8).map_err(|_| Errno::NOMEM)?;
        words.resize(size / 8, 0);
        let mut buffer = Buffer(words);
        for (i, number) in version.into_iter().enumerate() {
            buffer.put_u32(4 * i, number);
        }
        buffer.put_u32(12, size as u32);
        buffer.put_u32(16, HEADER as u32);
        buffer.put_u32(28, flags);
        buffer.put_u32(32, event);
        match subject {
            Subject::Driver => {}
            Subject::Name(name) => buffer.put(48, name.as_str().as_bytes()),
            Subject::New(name, uuid) => {
                buffer.put(48, name.as_str().as_bytes());
                buffer.put(176, uuid.as_bytes());
            }
            Subject::Table(name, targets) => {
                buffer.put(48, name.as_str().as_bytes());
                buffer.put_u32(20, *targets);
            }
        }
        buffer.put(HEADER, payload);
        Ok(buffer)
    }

    /// The words, for the ioctl.
    pub fn words(&mut self) -> &mut [u64] {
        &mut self.0
    }

    /// The flags the kernel set.
    pub fn flags(&self) -> u32 {
        u32_at(&self.header(), 28).unwrap_or(0)
    }

    /// How often the device is open.
    pub fn open_count(&self) -> u32 {
        u32_at(&self.header(), 24).unwrap_or(u32::MAX)
    }

    /// The device number.
    pub fn dev(&self) -> Dev {
        Dev::from_kernel(u64_at(&self.header(), 40).unwrap_or(0))
    }

    /// The device's UUID.
    pub fn uuid(&self) -> String {
        string_at(&self.header()[..305], 176).unwrap_or_default()
    }

    /// What follows the header. ENOMEM as for [`Buffer::new`].
    pub fn payload(&self) -> Result<Vec<u8>, Errno> {
        let header = self.header();
        let start = u32_at(&header, 16).unwrap_or(0) as usize;
        let end = (u32_at(&header, 12).unwrap_or(0) as usize).min(8 * self.0.len());
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(end.saturating_sub(start) + 8).map_err(|_| Errno::NOMEM)?;
        // The payload may begin inside a word.
        let words = self.0.get(start / 8..end.div_ceil(8)).unwrap_or_default();
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.drain(..(start % 8).min(bytes.len()));
        bytes.truncate(end.saturating_sub(start));
        Ok(bytes)
    }

    /// The number of targets the kernel reports.
    pub fn target_count(&self) -> u32 {
        u32_at(&self.header(), 20).unwrap_or(0)
    }

    fn header(&self) -> Vec<u8> {
        octets(&self.0[..HEADER / 8])
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_ne_bytes());
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            let word = &mut self.0[(at + i) / 8];
            let mut octets = word.to_ne_bytes();
            octets[(at + i) % 8] = byte;
            *word = u64::from_ne_bytes(octets);
        }
    }
}

fn octets(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// A string up to its NUL; `None` where it has none inside the buffer.
fn string_at(bytes: &[u8], at: usize) -> Option<String> {
    let bytes = bytes.get(at..)?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// The payload of TABLE_LOAD.
pub fn table(targets: &[Target]) -> Vec<u8> {
    targets.iter().flat_map(spec).collect()
}

/// One target in it, whose `next` is its own length.
fn spec(target: &Target) -> Vec<u8> {
    let length = (SPEC + target.text.len() + 1).next_multiple_of(8);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(target.start.to_ne_bytes());
    bytes.extend(target.length.to_ne_bytes());
    bytes.extend(0i32.to_ne_bytes());
    bytes.extend((length as u32).to_ne_bytes());
    let mut kind = [0; 16];
    // One byte stays for the NUL.
    for (to, from) in kind[..15].iter_mut().zip(target.kind.bytes()) {
        *to = from;
    }
    bytes.extend(kind);
    bytes.extend(target.text.as_bytes());
    bytes.resize(length, 0);
    bytes
}

/// The payload of TARGET_MSG: the sector whose target is meant, and the message.
pub fn message(sector: u64, text: &str) -> Vec<u8> {
    let mut bytes = sector.to_ne_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

/// Reads the answer to LIST_DEVICES.
pub fn parse_list(bytes: &[u8]) -> Vec<Listed> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some((dev, next, name)) = list_entry(bytes, at) {
        // An empty list is one entry with device number 0.
        if dev != 0 {
            let end = if next == 0 { bytes.len() } else { bytes.len().min(at + next as usize) };
            let uuid = listed_uuid(&bytes[..end], at + LISTED_NAME + name.len() + 1);
            found.push(Listed { name, dev: Dev::from_kernel(dev), uuid });
        }
        // `next` counts from this entry; the last has none.
        match next {
            0 => break,
            next => at += next as usize,
        }
    }
    found
}

fn list_entry(bytes: &[u8], at: usize) -> Option<(u64, u32, String)> {
    Some((
        u64_at(bytes, at)?,
        u32_at(bytes, at.checked_add(8)?)?,
        string_at(bytes, at.checked_add(LISTED_NAME)?)?,
    ))
}

/// The UUID in an entry of the list. Behind the name, aligned, are a count of events and flags, and then the UUID.
fn listed_uuid(entry: &[u8], name_end: usize) -> Option<String> {
    let at = name_end.next_multiple_of(8);
    match u32_at(entry, at + 4)? & (HAS_UUID | HAS_NO_UUID) {
        HAS_UUID => string_at(entry, at + 8),
        HAS_NO_UUID => Some(String::new()),
        _ => None,
    }
}

/// Reads the answer to LIST_VERSIONS: the target types the kernel has now.
pub fn parse_versions(bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while let (Some(next), Some(name)) = (u32_at(bytes, at), string_at(bytes, at + 16)) {
        found.push(name);
        match next {
            0 => break,
            next => at += next as usize,
        }
    }
    found
}

/// Reads the answer to TABLE_DEPS.
pub fn parse_deps(bytes: &[u8]) -> Vec<Dev> {
    let count = u32_at(bytes, 0).unwrap_or(0) as usize;
    (0..count).map_while(|i| u64_at(bytes, 8 + 8 * i)).map(Dev::from_kernel).collect()
}

/// Reads the answer to TABLE_STATUS.
pub fn parse_status(bytes: &[u8], count: u32) -> Vec<Target> {
    let mut found = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let Some((target, next)) = status_entry(bytes, at) else { break };
        found.push(target);
        // `next` counts from the first entry; one that does not lead on ends it.
        if next as usize <= at {
            break;
        }
        at = next as usize;
    }
    found
}

fn status_entry(bytes: &[u8], at: usize) -> Option<(Target, u32)> {
    let spec = bytes.get(at..at.checked_add(SPEC)?)?;
    let kind = spec[24..40].split(|&byte| byte == 0).next()?;
    let target = Target {
        start: u64_at(spec, 0)?,
        length: u64_at(spec, 8)?,
        kind: String::from_utf8_lossy(kind).into_owned(),
        text: string_at(bytes, at + SPEC)?,
    };
    Some((target, u32_at(spec, 20)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target() -> Target {
        Target {
            start: 0,
            length: 131072,
            kind: "writecache".into(),
            text: "s /dev/sda /dev/rd0 4096 0".into(),
        }
    }

    #[test]
    fn a_request_lies_where_the_kernel_looks() {
        let name = Name::new("rc-wt_sda").unwrap();
        let buffer = Buffer::new([4, 2, 0], 6, 7, &Subject::New(&name, "our-uuid"), b"payload", 0).unwrap();
        let bytes = octets(&buffer.0);
        assert_eq!(bytes.len(), 320);
        assert_eq!(u32_at(&bytes, 0), Some(4));
        assert_eq!(u32_at(&bytes, 4), Some(2));
        assert_eq!(u32_at(&bytes, 12), Some(320));
        assert_eq!(u32_at(&bytes, 16), Some(312));
        assert_eq!(u32_at(&bytes, 28), Some(6));
        assert_eq!(u32_at(&bytes, 32), Some(7));
        assert_eq!(string_at(&bytes, 48).unwrap(), "rc-wt_sda");
        assert_eq!(buffer.uuid(), "our-uuid");
        assert_eq!(&bytes[312..319], b"payload");
        assert_eq!(&buffer.payload().unwrap()[..7], b"payload");
    }

    #[test]
    fn a_buffer_for_which_there_is_no_memory_is_an_error() {
        let buffer = Buffer::new([4, 0, 0], 0, 0, &Subject::Driver, b"", usize::MAX / 2);
        assert_eq!(buffer.err(), Some(Errno::NOMEM));
    }

    #[test]
    fn a_table_is_padded_and_counts_its_length() {
        let bytes = table(&[target()]);
        assert_eq!(bytes.len() % 8, 0);
        assert_eq!(u32_at(&bytes, 20), Some(bytes.len() as u32));
        // What we load is read back as a status report would be.
        let (read, _) = status_entry(&bytes, 0).unwrap();
        assert_eq!(read, target());
    }

    #[test]
    fn a_list_is_read_to_its_end() {
        let mut bytes = Vec::new();
        for (dev, next, name) in
            [(253u64 << 8, 24u32, "rc-wt_sda\0\0\0"), (253 << 8 | 1, 0, "vg-home\0\0\0\0\0")]
        {
            bytes.extend(dev.to_ne_bytes());
            bytes.extend(next.to_ne_bytes());
            bytes.extend(name.as_bytes());
        }
        let names: Vec<_> =
            parse_list(&bytes).into_iter().map(|listed| (listed.name, listed.dev.minor)).collect();
        assert_eq!(names, [("rc-wt_sda".into(), 0), ("vg-home".into(), 1)]);
        assert_eq!(parse_list(&[0; 24]), []);
    }

    #[test]
    fn a_uuid_in_a_list_is_read_where_the_kernel_gives_it() {
        let entry = |name: &str, flags: u32, uuid: &[u8], is_last: bool| {
            let mut bytes = Vec::from(253u64.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(name.bytes().chain([0]));
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend(
                7u32.to_ne_bytes().into_iter().chain(flags.to_ne_bytes()).chain(uuid.iter().copied()),
            );
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let next = if is_last { 0 } else { bytes.len() as u32 };
            bytes[8..12].copy_from_slice(&next.to_ne_bytes());
            bytes
        };
        let bytes = [
            entry("rd0", HAS_UUID, b"rapiddiskd-rd0\0", false),
            entry("other", HAS_NO_UUID, b"", false),
            entry("older", 0, b"", false),
            // One that does not end within its entry.
            entry("cut", HAS_UUID, b"12345678", true),
        ];
        let uuids: Vec<_> = parse_list(&bytes.concat()).into_iter().map(|listed| listed.uuid).collect();
        assert_eq!(uuids, [Some("rapiddiskd-rd0".to_owned()), Some(String::new()), None, None]);
        // Before there were counts of events, the next entry followed the name.
        let mut old = Vec::from((253u64 << 8).to_ne_bytes());
        old.extend(16u32.to_ne_bytes().into_iter().chain(*b"rd0\0"));
        old.extend([1; 16]);
        assert_eq!(parse_list(&old)[0].uuid, None);
    }

    #[test]
    fn status_entries_count_from_the_first() {
        let mut first = table(&[target()]);
        let second =
            table(&[Target { start: 131072, kind: "linear".into(), text: "8:0 0".into(), ..target() }]);
        let (one, two) = (first.len() as u32, (first.len() + second.len()) as u32);
        first[20..24].copy_from_slice(&one.to_ne_bytes());
        let mut bytes = first;
        bytes.extend(second);
        let at = one as usize + 20;
        bytes[at..at + 4].copy_from_slice(&two.to_ne_bytes());
        let kinds: Vec<_> = parse_status(&bytes, 2).into_iter().map(|target| target.kind).collect();
        assert_eq!(kinds, ["writecache", "linear"]);
    }

    proptest! {
        /// Whatever the kernel returned, reading it ends and stays inside.
        #[test]
        fn no_answer_leads_outside_the_buffer(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..400), count in any::<u32>()
        ) {
            prop_assert!(parse_list(&bytes).len() <= bytes.len());
            prop_assert!(parse_versions(&bytes).len() <= bytes.len());
            prop_assert!(parse_deps(&bytes).len() <= bytes.len());
            prop_assert!(parse_status(&bytes, count).len() <= bytes.len());
        }

        /// A request carries any valid name, and the length it claims is its own.
        #[test]
        fn any_name_fits(name in "[0-9A-Za-z#+:=@_-]{1,127}", payload in prop::collection::vec(any::<u8>(), 0..100)) {
            let parsed = Name::new(&name).unwrap();
            let buffer = Buffer::new([4, 0, 0], 0, 0, &Subject::Name(&parsed), &payload, 512).unwrap();
            let bytes = octets(&buffer.0);
            prop_assert_eq!(string_at(&bytes[..176], 48).unwrap(), name);
            prop_assert_eq!(u32_at(&bytes, 12).unwrap() as usize, bytes.len());
            prop_assert_eq!(&bytes[HEADER..HEADER + payload.len()], &payload[..]);
        }
    }
}
