//! Tests that need a kernel of their own: they load modules, make and destroy
//! devices and kill the daemon. They run as root inside the guest of
//! `tests/guest/boot` and refuse to run anywhere else.
//!
//! Each test has the guest for itself, whatever the harness does: see
//! [`support::Guest`]. Those of the modules `reference` and `bench` need the
//! reference daemon: they run alone (`-- reference::`), the others without them
//! (`-- --skip reference:: --skip bench::`).

mod support;

mod bench;
mod cache;
mod dmcache;
mod export;
mod hung;
mod life;
mod listing;
mod modules;
mod nvme;
mod privileges;
mod ramdisk;
mod rapiddisk;
mod reference;
mod refusal;
mod source;
mod stock;
mod undone;
mod usage;
mod writeback;
