//! Test data that differs for each seed, written and read with direct I/O: the comparison is
//! with what the device has, and not with the page cache.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::OFlags;

/// A page, the unit of RAM disks and caches.
pub const PAGE: usize = 4096;
pub const MIB: u64 = 1 << 20;

/// Numbers from a fixed seed (xorshift64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// This many bytes, different ones for each seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let words = std::iter::repeat_with(|| random.next().to_le_bytes());
    words.flatten().take(length).collect()
}

/// A buffer and where it is aligned, as direct I/O needs it.
fn aligned(length: usize) -> (Vec<u8>, usize) {
    let buffer = vec![0; length + PAGE];
    let start = buffer.as_ptr().align_offset(PAGE);
    (buffer, start)
}

fn open(path: &str, write: bool) -> std::io::Result<File> {
    let direct = OFlags::DIRECT.bits() as i32;
    File::options().read(true).write(write).custom_flags(direct).open(path)
}

/// Writes to a device; whole sectors.
pub fn try_write(path: &str, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let (mut buffer, start) = aligned(bytes.len());
    buffer[start..][..bytes.len()].copy_from_slice(bytes);
    let file = open(path, true)?;
    for (i, chunk) in buffer[start..][..bytes.len()].chunks(1 << 20).enumerate() {
        file.write_all_at(chunk, offset + (i as u64) * MIB)?;
    }
    file.sync_data()
}

pub fn write(path: &str, offset: u64, bytes: &[u8]) {
    try_write(path, offset, bytes).unwrap_or_else(|error| panic!("write {path} at {offset}: {error}"));
}

/// Reads from a device; whole sectors.
pub fn read(path: &str, offset: u64, length: usize) -> Vec<u8> {
    let (mut buffer, start) = aligned(length);
    open(path, false)
        .and_then(|file| file.read_exact_at(&mut buffer[start..][..length], offset))
        .unwrap_or_else(|error| panic!("read {length} of {path} at {offset}: {error}"));
    buffer[start..][..length].to_vec()
}

/// Compares without printing megabytes.
pub fn assert_same_data(what: &str, got: &[u8], wanted: &[u8]) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    if let Some(at) = got.iter().zip(wanted).position(|(got, wanted)| got != wanted) {
        let differ = got.iter().zip(wanted).filter(|(got, wanted)| got != wanted).count();
        panic!("{what}: {differ} of {} bytes differ, the first at {at}", got.len());
    }
}

pub fn assert_zero(what: &str, got: &[u8]) {
    assert_eq!(got.iter().position(|&byte| byte != 0), None, "{what} is not zero there");
}

/// A number that stands for the contents of a device.
pub fn fingerprint(path: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let (mut buffer, start) = aligned(1 << 20);
    let file = open(path, false).unwrap_or_else(|error| panic!("open {path}: {error}"));
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer[start..][..1 << 20], offset) {
            Ok(0) => return hash,
            Ok(length) => {
                for word in buffer[start..][..length].chunks(8) {
                    let mut bytes = [0; 8];
                    bytes[..word.len()].copy_from_slice(word);
                    hash = (hash ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
                }
                offset += length as u64;
            }
            Err(error) => panic!("read {path} at {offset}: {error}"),
        }
    }
}
