//! Tests that need a kernel of their own: they load modules, make and destroy
//! devices and kill the daemon. They run as root inside the guest of
//! `tests/guest/boot` and refuse to run anywhere else.
//!
//! Each test has the guest for itself, with any number of test threads: see
//! [`support::Guest`]. The modules `reference` and `bench` need the guest that has the
//! reference daemon; `tests/run` and `tests/bench` run them there.

#[path = "../faults/mod.rs"]
mod faults;
mod support;

mod bench;
mod brd;
mod cache;
mod contents;
mod dmcache;
mod export;
mod hung;
mod inject;
mod life;
mod listing;
mod modules;
mod nvme;
mod pairs;
mod privileges;
mod quiesce;
mod ramdisk;
mod rapiddisk;
mod reference;
mod refusal;
mod small;
mod source;
mod stock;
mod suspended;
mod undone;
mod usage;
mod writeback;
mod zram;
