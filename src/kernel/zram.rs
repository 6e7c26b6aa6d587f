//! Compressed RAM disks, `zramN` (`drivers/block/zram`; Documentation/admin-guide/blockdev/zram.rst).
//!
//! The kernel makes a disk when it is asked for one (`hot_add`). It has no size until it is given one, and
//! takes no memory before that.

use std::fs;

use super::block::{self, Mode};
use super::{Error, Result, Root};

const CONTROL: &str = "sys/class/zram-control";

/// What one discard empties at most, in bytes.
const STEP: u64 = 1 << 30;

/// What a disk holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of the pages that have data.
    pub stored: u64,
    /// The memory that they take, in bytes.
    pub held: u64,
    /// The most that they may take, in bytes; 0 where there is no limit.
    pub limit: u64,
}

/// The kernel's name of a disk.
pub fn name(number: u32) -> String {
    format!("zram{number}")
}

/// The number of the disk with this name.
pub fn number(name: &str) -> Option<u32> {
    name.strip_prefix("zram")?.parse().ok()
}

/// Whether the driver is loaded.
pub fn is_loaded(root: &Root) -> Result<bool> {
    root.exists(CONTROL)
}

/// Has the kernel make a disk. Gives its number.
pub fn add(root: &Root) -> Result<u32> {
    // Each read makes one.
    let number = root.number(format!("{CONTROL}/hot_add"))?.and_then(|number| number.try_into().ok());
    number.ok_or_else(|| Error::strange("make a disk of zram"))
}

/// Removes a disk, and what it holds. EBUSY: somebody has it open. ENODEV: there is none.
pub fn remove(root: &Root, number: u32) -> Result<()> {
    write(root, format!("{CONTROL}/hot_remove"), &number.to_string())
}

/// Empties a disk and takes its size from it. EBUSY: somebody has it open.
pub fn reset(root: &Root, number: u32) -> Result<()> {
    write(root, attribute(number, "reset"), "1")
}

/// Gives a disk its size in bytes, and the most memory that its data may take. It can be given once.
pub fn set_size(root: &Root, number: u32, size: u64, limit: u64) -> Result<()> {
    write(root, attribute(number, "mem_limit"), &limit.to_string())?;
    write(root, attribute(number, "disksize"), &size.to_string())
}

/// Chooses how a disk without a size compresses.
pub fn set_algorithm(root: &Root, number: u32, algorithm: &str) -> Result<()> {
    write(root, attribute(number, "comp_algorithm"), algorithm)
}

/// How a disk compresses, and how it could. `None`: there is no such disk.
pub fn algorithms(root: &Root, number: u32) -> Result<Option<(String, Vec<String>)>> {
    Ok(root.attribute(attribute(number, "comp_algorithm"))?.map(|text| parse_algorithms(&text)))
}

fn parse_algorithms(text: &str) -> (String, Vec<String>) {
    let in_use = text.split(' ').find_map(|name| name.strip_prefix('[')?.strip_suffix(']'));
    let all = text.split_whitespace().map(|name| name.trim_matches(['[', ']']).to_owned()).collect();
    (in_use.unwrap_or_default().to_owned(), all)
}

/// What a disk holds. `None`: there is no such disk.
pub fn stats(root: &Root, number: u32) -> Result<Option<Stats>> {
    let Some(text) = root.attribute(attribute(number, "mm_stat"))? else { return Ok(None) };
    parse_stats(&text).map(Some).ok_or_else(|| Error::strange(format!("read the state of {}", name(number))))
}

/// Reads `orig_data_size compr_data_size mem_used_total mem_limit …`.
fn parse_stats(text: &str) -> Option<Stats> {
    let mut fields = text.split_whitespace().map(|field| field.parse().ok());
    let mut next = || fields.next().flatten();
    let (stored, _compressed) = (next()?, next()?);
    Some(Stats { stored, held: next()?, limit: next()? })
}

/// Frees the memory of what is from byte `at` to byte `end`. `at` moves along: what is before it is free, also
/// after a failure.
pub fn clear(root: &Root, number: u32, at: &mut u64, end: u64) -> Result<()> {
    let disk = block::open(root, &name(number), Mode::Write)?;
    block::discard_in_steps(&disk, at, end, STEP)
}

fn attribute(number: u32, attribute: &str) -> String {
    format!("sys/block/{}/{attribute}", name(number))
}

fn write(root: &Root, path: String, text: &str) -> Result<()> {
    let path = root.path(path);
    fs::write(&path, text).map_err(|error| Error::new(format!("write {text} to {}", path.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_disk_is_read() {
        let text = "   65536     2176    12288  8388608    12288       14        0        0        0";
        assert_eq!(parse_stats(text), Some(Stats { stored: 65536, held: 12288, limit: 8388608 }));
        assert_eq!(parse_stats("1 2 3"), None);
        let (in_use, all) = parse_algorithms("lzo [lzo-rle] lz4 zstd");
        assert_eq!(
            (&*in_use, &all[..]),
            ("lzo-rle", &["lzo", "lzo-rle", "lz4", "zstd"].map(String::from)[..])
        );
        assert_eq!(parse_algorithms("").0, "");
        assert_eq!([number("zram12"), number("zram"), number("ram1")], [Some(12), None, None]);
    }
}
