//! On Linux 6.12, whose `brd` can discard.

use super::{FILE, Load, Target, ZRAM, compare, make, median, time};
use crate::support::{guest_after, guest_with, sh};
use crate::zram;

/// Disks that are there while others are made and removed, and how many these are.
const DISKS: u32 = 1000;
const CHANGES: u32 = 20;

#[test]
fn disks_of_brd_and_zram_beside_loop() {
    let guest = guest_after(&[], zram::load);
    make(&guest, &["brd", "loop", ZRAM]);
    // The kernel makes it when it is opened. The daemon's have other numbers.
    sh("mknod /dev/ram900 b 1 900");
    let places = [
        ("brd", "/dev/ram900"),
        ("mapped brd", "/dev/rd0"),
        ("zram", "/dev/rd2"),
        ("loop", "/dev/rd1"),
        ("tmpfs file", FILE),
    ];
    let beside_loop = |load: &Load| match load {
        Load { block: 4096, depth: 1, .. } => Some(6.0),
        Load { block: 4096, .. } => Some(1.0),
        _ => None,
    };
    let reads = |load: &Load| beside_loop(load).filter(|_| load.depth == 1 && !load.is_write);
    let targets = [
        Target { place: "mapped brd", beside: "loop", least: &beside_loop },
        Target { place: "mapped brd", beside: "brd", least: &|_| Some(0.65) },
        Target { place: "zram", beside: "loop", least: &reads },
    ];
    compare(&places, &targets);
}

#[test]
fn a_thousand_disks_of_brd_and_of_loop() {
    for driver in ["brd", "loop"] {
        let guest = guest_with(&["--ram-driver", driver, "--memory-limit", "4G"]);
        let change = |path: &str| time(|| drop(guest.change(path)));
        let last = format!("removeRapidDisk/rd{DISKS}");
        let first = change("createRapidDisk/1");
        (1..DISKS).for_each(|_| _ = change("createRapidDisk/1"));
        let (mut made, mut removed): (Vec<_>, Vec<_>) =
            (0..CHANGES).map(|_| (change("createRapidDisk/1"), change(&last))).unzip();
        println!(
            "{driver}: the first disk is made in {first:.1} ms; beside {DISKS} others, one is made in {:.1} ms and removed \
             in {:.1} ms",
            median(&mut made),
            median(&mut removed)
        );
    }
}
