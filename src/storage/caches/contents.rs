//! What is on a source, as far as it decides which logical blocks a cache in front of it may have: a file
//! system cannot be mounted through a device whose logical blocks are larger than its own.
//!
//! The layouts are those of the kernel: `fs/ext4/ext4.h`, `fs/xfs/libxfs/xfs_format.h` and
//! `include/uapi/linux/msdos_fs.h`; that of a partition table is in `block/partitions/msdos.c`.

/// Bytes at the start of a source that are looked at. All known superblocks are within.
pub const START: u64 = 128 << 10;

/// The largest block that any cache has, in bytes.
const LARGEST: u64 = 4096;

/// What is on a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// A description, as in "sdb holds …".
    pub what: String,
    /// Bytes in the largest logical block that it can be used with.
    pub block: u64,
}

impl Contents {
    /// What is on a device that begins with `start` and has logical blocks of `logical` bytes. What is not
    /// known can only be used with the blocks that it has been used with so far. If nothing is there,
    /// nothing needs them.
    pub fn of(start: &[u8], logical: u64) -> Contents {
        let found = [ext(start), xfs(start), boot_sector(start, logical)];
        let strictest = found.into_iter().flatten().min_by_key(|contents| contents.block);
        let mut contents = strictest.unwrap_or_else(|| match start.iter().all(|&byte| byte == 0) {
            true => Contents::new("nothing", LARGEST),
            false => Contents::new("data of an unknown kind", logical),
        });
        // It is used with these blocks now.
        contents.block = contents.block.clamp(logical, LARGEST.max(logical));
        contents
    }

    fn new(what: &str, block: u64) -> Contents {
        Contents { what: what.to_owned(), block }
    }
}

/// ext2, ext3 and ext4: `s_magic` and `s_log_block_size` of the superblock at byte 1024.
fn ext(start: &[u8]) -> Option<Contents> {
    let [log, ..] = *bytes(start, 1024 + 24, 4)? else { return None };
    let is_ext = bytes(start, 1024 + 56, 2)? == [0x53, 0xef] && log <= 6;
    is_ext.then(|| file_system("ext2, ext3 or ext4", 1024 << log))
}

/// XFS: `sb_magicnum` and `sb_sectsize`.
fn xfs(start: &[u8]) -> Option<Contents> {
    let sector = u16::from_be_bytes(bytes(start, 102, 2)?.try_into().ok()?);
    (bytes(start, 0, 4)? == b"XFSB").then(|| file_system("XFS", sector.into()))
}

/// FAT, or a partition table. The addresses in a table count logical blocks.
fn boot_sector(start: &[u8], logical: u64) -> Option<Contents> {
    if bytes(start, 510, 2)? != [0x55, 0xaa] {
        return None;
    }
    let sector = u16::from_le_bytes(bytes(start, 11, 2)?.try_into().ok()?);
    let (cluster, fats, media) = (start[13], start[16], start[21]);
    // What the kernel takes for FAT (`fat_read_bpb`).
    let is_fat = (512..=4096).contains(&sector)
        && sector.is_power_of_two()
        && cluster.is_power_of_two()
        && (1..=2).contains(&fats)
        && media >= 0xf0;
    Some(match is_fat {
        true => file_system("FAT", sector.into()),
        false => Contents::new("a partition table or a boot loader", logical),
    })
}

fn file_system(name: &str, block: u64) -> Contents {
    Contents::new(&format!("a file system ({name}) with blocks of {block} bytes"), block)
}

fn bytes(start: &[u8], at: usize, count: usize) -> Option<&[u8]> {
    start.get(at..at + count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut start = vec![0; START as usize];
        for (at, bytes) in parts {
            start[*at..][..bytes.len()].copy_from_slice(bytes);
        }
        start
    }

    fn block(start: &[u8], logical: u64) -> u64 {
        Contents::of(start, logical).block
    }

    #[test]
    fn blocks_follow_what_is_there() {
        const EXT: (usize, &[u8]) = (1024 + 56, &[0x53, 0xef]);
        const BOOT: (usize, &[u8]) = (510, &[0x55, 0xaa]);
        let fat = |sector| with(&[BOOT, (11, sector), (13, &[8]), (16, &[2]), (21, &[0xf8])]);
        let xfs = |sector| with(&[(0, b"XFSB"), (102, sector)]);
        for (start, wanted) in [
            (with(&[]), 4096),
            (with(&[EXT]), 1024),
            (with(&[EXT, (1024 + 24, &[1])]), 2048),
            (with(&[EXT, (1024 + 24, &[2])]), 4096),
            (with(&[EXT, (1024 + 24, &[6])]), 4096),
            (xfs(&[2, 0]), 512),
            (xfs(&[16, 0]), 4096),
            (fat(&[0, 2]), 512),
            (fat(&[0, 16]), 4096),
            (with(&[BOOT]), 512),
            // A table in front of a file system.
            (with(&[BOOT, EXT, (1024 + 24, &[2])]), 512),
            (with(&[(65536 + 64, b"_BHRfS_M")]), 512),
            (vec![1; 4096], 512),
            (vec![0; 512], 4096),
        ] {
            assert_eq!(block(&start, 512), wanted, "{:?}", Contents::of(&start, 512));
        }
        assert_eq!(Contents::of(&xfs(&[2, 0]), 512).what, "a file system (XFS) with blocks of 512 bytes");
    }

    #[test]
    fn nothing_needs_smaller_blocks_than_its_device_has() {
        assert_eq!(block(&with(&[(510, &[0x55, 0xaa])]), 4096), 4096);
        assert_eq!(block(&with(&[(0, b"XFSB"), (102, &[2, 0])]), 4096), 4096);
        assert_eq!(block(&with(&[]), 8192), 8192);
    }

    proptest! {
        /// Any data of any length gives a block from that of the device up to the largest.
        #[test]
        fn any_start_has_an_answer(start in prop::collection::vec(any::<u8>(), 0..2048)) {
            prop_assert!((512..=4096).contains(&block(&start, 512)));
        }
    }
}
