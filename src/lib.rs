//! `rapiddiskd` makes a Linux box a RAM-storage appliance: RAM disks, RAM caches
//! in front of slow disks and NVMe targets, managed over HTTP.
//!
//! The layers, each knowing only those after it: [`daemon`] starts and stops the
//! service, [`api`] is the /v1 contract, [`http`] the connections, [`storage`]
//! what an administrator thinks in, and [`kernel`] the only place with system
//! calls, ioctls and the paths of sysfs, procfs and configfs. [`logger`] takes what all of them
//! have to say, [`notify`] tells the service manager.

pub mod api;
pub mod args;
pub mod client;
pub mod daemon;
pub mod http;
pub mod kernel;
pub mod logger;
pub mod notify;
pub mod storage;
