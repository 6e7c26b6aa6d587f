//! The label in the first page of a `ramK`: it says that the disk is ours to use again, and how far its data
//! reaches at most. The page is full of it, so that whoever else begins to use the disk destroys it.

use crate::kernel::block::{self, Mode};
use crate::kernel::{self, Root, brd};

/// Bytes of a label.
const SIZE: usize = 4096;

/// What it begins with; the reach in bytes follows.
const TEXT: &str = "rapiddiskd keeps the data of a RAM disk here, up to byte ";

/// The bytes of a label.
fn encode(reach: u64) -> Vec<u8> {
    format!("{TEXT}{reach}\n").into_bytes().into_iter().cycle().take(SIZE).collect()
}

/// The reach; `None` if this is no label.
fn decode(page: &[u8]) -> Option<u64> {
    let text = page.strip_prefix(TEXT.as_bytes())?;
    let digits = text.split(|&byte| byte == b'\n').next()?;
    let reach = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (encode(reach) == page).then_some(reach)
}

/// How far the data of the disk on `ramK` reaches at most, in bytes; `None` if `ramK` has no label.
pub fn read(root: &Root, number: u32) -> kernel::Result<Option<u64>> {
    let mut page = vec![0; SIZE];
    block::read_start(&block::open(root, &brd::name(number), Mode::Read)?, &mut page)?;
    Ok(decode(&page))
}

/// Writes the label.
pub fn write(root: &Root, number: u32, reach: u64) -> kernel::Result<()> {
    block::write_start(&block::open(root, &brd::name(number), Mode::Write)?, &encode(reach))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_as_it_was_written_and_a_damaged_one_is_none() {
        for reach in [0, 16 << 20, u64::MAX] {
            let page = encode(reach);
            assert_eq!((page.len(), decode(&page)), (SIZE, Some(reach)));
            for at in [0, 60, 1024, SIZE - 1] {
                let mut damaged = page.clone();
                damaged[at] ^= 1;
                assert_eq!(decode(&damaged), None, "{at}");
            }
        }
        assert_eq!(decode(&[0; SIZE]), None);
        assert_eq!(decode(b""), None);
    }
}
