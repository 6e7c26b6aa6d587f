//! `rapiddiskd` makes a Linux box a RAM-storage appliance.

pub mod kernel;
pub mod storage;
