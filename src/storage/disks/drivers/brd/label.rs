//! The label in the first page of a `ramK`: it says that the disk is ours to use again, and what it holds. The page
//! is full of it, so that whoever else begins to use the disk destroys it.

use crate::kernel::block::{self, Mode};
use crate::kernel::{self, Root, brd, unless_gone};

/// Bytes of a label.
const SIZE: usize = 4096;

/// What it begins with; the size of the disk follows.
const TEXT: &str = "rapiddiskd keeps a RAM disk here, its size in bytes: ";

/// What stands between the size and the reach.
const AND: &str = ", data up to byte ";

/// What a label says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// The size of the RAM disk in bytes. 0 while it is being made or removed, and where there is none.
    pub size: u64,
    /// How far there may be data, in bytes.
    pub reach: u64,
}

/// The bytes of a label.
fn encode(Label { size, reach }: Label) -> Vec<u8> {
    format!("{TEXT}{size}{AND}{reach}\n").into_bytes().into_iter().cycle().take(SIZE).collect()
}

/// `None` if this is no label.
fn decode(page: &[u8]) -> Option<Label> {
    let line = page.split(|&byte| byte == b'\n').next()?;
    let (size, reach) = std::str::from_utf8(line).ok()?.strip_prefix(TEXT)?.split_once(AND)?;
    let label = Label { size: size.parse().ok()?, reach: reach.parse().ok()? };
    (encode(label) == page).then_some(label)
}

/// The label of `ramK`; `None` if it has none, or if the kernel has not made `ramK` yet.
pub fn read(root: &Root, number: u32) -> kernel::Result<Option<Label>> {
    let Some(ram) = unless_gone(block::open(root, &brd::name(number), Mode::Read))? else { return Ok(None) };
    let mut page = vec![0; SIZE];
    block::read_start(&ram, &mut page)?;
    Ok(decode(&page))
}

/// Writes the label.
pub fn write(root: &Root, number: u32, label: Label) -> kernel::Result<()> {
    block::write_start(&block::open(root, &brd::name(number), Mode::Write)?, &encode(label))
}

/// Writes another size of the RAM disk into a label that is there. Gives the label as it is then.
pub fn set_size(root: &Root, number: u32, size: u64) -> kernel::Result<Option<Label>> {
    let Some(label) = read(root, number)? else { return Ok(None) };
    let wanted = Label { size, ..label };
    if label != wanted {
        write(root, number, wanted)?;
    }
    Ok(Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_as_it_was_written_and_a_damaged_one_is_none() {
        for (size, reach) in [(0, 0), (0, 16 << 20), (8 << 20, 16 << 20), (u64::MAX, u64::MAX)] {
            let label = Label { size, reach };
            let page = encode(label);
            assert_eq!((page.len(), decode(&page)), (SIZE, Some(label)));
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
