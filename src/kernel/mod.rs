//! The kernel's interfaces: sysfs, procfs, configfs, block-device and device-mapper ioctls, links in
//! `/dev`, signals. This is the only place with `unsafe` and with kernel paths, all of which start
//! at one [`Root`].

pub mod block;
pub mod brd;
pub mod child;
pub mod dm;
mod error;
pub mod hardware;
pub mod links;
pub mod lock;
pub mod loops;
pub mod machine;
pub mod modules;
pub mod net;
pub mod nvmet;
pub mod openers;
pub mod pool;
pub mod privileges;
pub mod proc;
pub mod rapiddisk;
mod root;
pub mod signal;
pub mod zram;

pub use error::{Error, Result};
pub use root::{Dir, Root, room_for, unless_gone};
