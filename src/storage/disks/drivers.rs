//! The registry of RAM-disk drivers. A new driver is a file in this folder, and two words here: its
//! `mod`, and its place in [`all`].

mod brd;
mod link;
mod loops;
mod mapped;
mod rapiddisk;
mod zram;

use super::driver::Driver;
use crate::kernel::Root;
use crate::storage::error::{Error, Result};

/// Every driver, the preferred one first.
fn all() -> Vec<Box<dyn Driver>> {
    vec![
        Box::new(rapiddisk::Module::default()),
        Box::new(brd::Brd),
        Box::new(loops::Loops::default()),
        Box::new(zram::Zram),
    ]
}

/// The driver that the administrator chose, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamDriver(&'static str);

impl RamDriver {
    /// The driver of this name; `None` if there is none.
    pub fn parse(name: &str) -> Option<RamDriver> {
        all().iter().map(|driver| driver.name()).find(|&known| known == name).map(RamDriver)
    }
}

/// The drivers, and which of them makes new disks if the administrator chose one.
pub struct Drivers {
    all: Vec<Box<dyn Driver>>,
    chosen: Option<RamDriver>,
}

impl Drivers {
    /// All drivers. New disks are made by the chosen one, or by the first that the kernel has and that need not be
    /// named.
    pub fn new(chosen: Option<RamDriver>) -> Drivers {
        Drivers { all: all(), chosen }
    }

    /// Each of them, the preferred one first.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Driver> {
        self.all.iter().map(|driver| &**driver)
    }

    /// The one that makes new disks.
    ///
    /// # Errors
    /// The kernel has none of those that may.
    pub fn for_new(&self, root: &Root) -> Result<&dyn Driver> {
        self.for_this(root, None)
    }

    /// The chosen one, or the one that makes new disks.
    ///
    /// # Errors
    /// As for [`Drivers::for_new`].
    pub fn for_this(&self, root: &Root, chosen: Option<RamDriver>) -> Result<&dyn Driver> {
        let chosen = chosen.or(self.chosen);
        let may = |driver: &&dyn Driver| match chosen {
            Some(chosen) => chosen.0 == driver.name(),
            None => !driver.is_only_taken_by_name(),
        };
        let mut lacking = Vec::new();
        for driver in self.iter().filter(may) {
            match driver.lacks(root)? {
                None => return Ok(driver),
                Some(lack) => lacking.push(lack),
            }
        }
        Err(Error::Unavailable(lacking.join("; or ")))
    }

    /// The drivers that the kernel has at the moment, and what it lacks for the others.
    pub fn offers(&self, root: &Root) -> (Vec<&'static str>, Vec<(&'static str, String)>) {
        let (mut there, mut lacking) = (Vec::new(), Vec::new());
        for driver in self.iter() {
            match driver.lacks(root) {
                Ok(None) => there.push(driver.name()),
                Ok(Some(lack)) => lacking.push((driver.name(), lack)),
                Err(error) => lacking.push((driver.name(), error.to_string())),
            }
        }
        (there, lacking)
    }
}
