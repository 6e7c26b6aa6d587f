//! Kernel modules.

use super::{Result, Root};

/// Whether a module is loaded, as far as sysfs shows it: one that is built into the kernel may have no
/// entry there. Its name may be written with `-` or `_`.
pub fn is_loaded(root: &Root, name: &str) -> Result<bool> {
    root.exists(format!("sys/module/{}", name.replace('-', "_")))
}
