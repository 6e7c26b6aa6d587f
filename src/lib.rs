//! `rapiddiskd` makes a Linux machine a RAM-storage appliance: RAM disks, RAM caches in front of
//! slow disks, and NVMe targets, managed over HTTP.
//!
//! The layers, from the top; each knows only those below it:
//!
//! * [`daemon`] starts and stops the service.
//! * [`cli`] reads the command line.
//! * [`api`] is the /v1 contract.
//! * [`http`] has the connections, and knows no storage.
//! * [`storage`] has the RAM disks, the caches and the exports.
//! * [`kernel`] is the only layer with system calls, ioctls, and paths of sysfs, procfs and
//!   configfs.
//!
//! Beside them, [`logger`] writes the log of all layers, and [`client`] is a small HTTP client for
//! the watchdog and the tests.

pub mod api;
pub mod cli;
pub mod client;
pub mod daemon;
pub mod http;
pub mod kernel;
pub mod logger;
pub mod storage;
